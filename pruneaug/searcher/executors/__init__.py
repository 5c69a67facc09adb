"""Executors: where trials are trained; one file each."""

from pruneaug.registry import Registry

EXECUTORS = Registry(
    "executors",
    {
        "local": "pruneaug.searcher.executors.local:Local",
        "processes": "pruneaug.searcher.executors.processes:Processes",
        "ray": "pruneaug.searcher.executors.ray_tune:RayTune",
    },
)
