"""Tasks: the user's network and data, and the built-in ones."""

from pruneaug.tasks.build import TASKS, build_task
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.loaders import LoaderTask, task_from_modules
from pruneaug.tasks.models import MODELS
from pruneaug.tasks.network import NetworkSource
from pruneaug.tasks.protocol import SPLITS, Batch, Split, Task
from pruneaug.tasks.scoring import Classifier

__all__ = [
    "MODELS",
    "SPLITS",
    "TASKS",
    "Batch",
    "ClassificationTask",
    "Classifier",
    "Examples",
    "LoaderTask",
    "NetworkSource",
    "Split",
    "Task",
    "build_task",
    "task_from_modules",
]
