"""The search: the space of assignments, the strategies that propose one, and the study that trains and judges them."""

from pruneaug.registry import Registry

STRATEGIES = Registry(
    "strategies",
    {
        "allocate": "pruneaug.searcher.strategies.allocate:Allocate",
        "joint": "pruneaug.searcher.strategies.joint:Joint",
        "uniform": "pruneaug.searcher.strategies.uniform:Uniform",
        "random": "pruneaug.searcher.strategies.random:Random",
        "nsga2": "pruneaug.searcher.strategies.nsga2:Nsga2",
        "greedy": "pruneaug.searcher.strategies.greedy:Greedy",
        "rule": "pruneaug.searcher.strategies.rule:Rule",
    },
)
