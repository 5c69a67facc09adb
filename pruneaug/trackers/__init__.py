"""Trackers: what records a search's trials in another tool, while it runs."""

from pruneaug.registry import Registry

TRACKERS = Registry(
    "trackers",
    {
        "tensorboard": "pruneaug.trackers.tensorboard:TensorBoard",
        "mlflow": "pruneaug.trackers.mlflow:MLflow",
    },
)
