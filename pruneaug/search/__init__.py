"""The search: the space of assignments, the strategies that propose one, and the study that trains and judges them."""

from pruneaug.registry import Registry

STRATEGIES = Registry(
    "strategies",
    {
        "joint": "pruneaug.search.strategies.joint:Joint",
        "uniform": "pruneaug.search.strategies.uniform:Uniform",
        "random": "pruneaug.search.strategies.random:Random",
    },
)
