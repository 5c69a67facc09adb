"""Pruners score a network's weights and say which to remove; one file a method."""

from pruneaug.registry import Registry

PRUNERS = Registry(
    "pruners",
    {
        "magnitude": "pruneaug.pruners.magnitude:Magnitude",
        "lamp": "pruneaug.pruners.lamp:Lamp",
        "random": "pruneaug.pruners.random:Random",
        "snip": "pruneaug.pruners.snip:Snip",
        "grasp": "pruneaug.pruners.grasp:Grasp",
        "synflow": "pruneaug.pruners.synflow:SynFlow",
        "taylor": "pruneaug.pruners.taylor:Taylor",
        "fisher": "pruneaug.pruners.fisher:Fisher",
        "wanda": "pruneaug.pruners.wanda:Wanda",
        "sparsegpt": "pruneaug.pruners.sparsegpt:SparseGPT",
        "movement": "pruneaug.pruners.movement:Movement",
        "gradual": "pruneaug.pruners.gradual:Gradual",
    },
)
