"""The search: the space of assignments, the strategies that propose one, and the study that trains and judges them."""

from pruneaug.registry import Registry

STRATEGIES = Registry(
    "strategies",
    {
        "joint": "pruneaug.searcher.strategies.joint:Joint",
        "uniform": "pruneaug.searcher.strategies.uniform:Uniform",
        "random": "pruneaug.searcher.strategies.random:Random",
    },
)
