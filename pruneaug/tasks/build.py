"""From the spec of a task to the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pruneaug.errors import TaskError
from pruneaug.registry import Registry
from pruneaug.spec.models import TaskSpec
from pruneaug.tasks.checkpoint import load_weights
from pruneaug.tasks.loaders import LoaderTask, task_from_modules
from pruneaug.tasks.network import NetworkSource, argument_names
from pruneaug.tasks.protocol import SPLITS, Task

TASKS = Registry(
    "tasks",
    {
        "digits": "pruneaug.tasks.digits:digits",
        "parquet-images": "pruneaug.tasks.parquet:parquet_images",
        "image-folder": "pruneaug.tasks.folder:image_folder",
        "text-tsv": "pruneaug.tasks.text:text_tsv",
        "synthetic": "pruneaug.tasks.synthetic:synthetic",
    },
)


def build_task(spec: TaskSpec) -> Task:
    """The task of a job: a built-in one, or what the user's `package.module:callable` gives.

    A callable with an argument `model` gets the job's network as a NetworkSource. It returns a Task, a mapping with the
    keyword arguments of `task_from_modules`, or a tuple (model, train, validation, test). A mapping without `model`
    is completed with the job's network.
    """
    source = None if spec.model is None else NetworkSource(spec.model, spec.checkpoint)
    takes_model = takes_network(spec)
    result = TASKS.create(spec.name, spec.options, **({"model": source} if takes_model else {}))
    if isinstance(result, Task):
        if not takes_model and (source is not None or spec.checkpoint is not None):
            raise TaskError(
                f"the task {spec.name!r} brings its own network, so `model` and `checkpoint` must be left out; "
                "or give its callable an argument `model`, to be called with the job's network"
            )
        return result
    if isinstance(result, tuple) and len(result) == 4:
        result = dict(zip(("model", *SPLITS), result, strict=True))
    if not isinstance(result, Mapping):
        raise TaskError(
            f"{spec.name!r} must give a Task, a mapping with the keys model, {', '.join(SPLITS)}, or a tuple "
            f"(model, train, validation, test), but gave {type(result).__name__}"
        )
    parts = _checked_keys(dict(result), spec.name)
    if source is None:
        return _with_own_network(parts, spec)
    if "model" in parts and not takes_model:
        raise TaskError(
            f"the network must come from one place, but both {spec.name!r} and the job's `model` name one; "
            "leave one of them out"
        )
    network: dict[str, Any] = {"model": source.builder(), "trained": source.trained}
    return task_from_modules(**(network | parts), name=spec.name)


def takes_network(spec: TaskSpec) -> bool:
    """Whether the task's callable asks for the job's network. Raises TaskError if it does and the job has none."""
    asks = "model" in argument_names(TASKS.load(spec.name))
    if asks and spec.model is None:
        raise TaskError(f"the task {spec.name!r} needs a network, but `model` is missing; for example name: resnet20")
    return asks


def _checked_keys(parts: dict[str, Any], name: str) -> dict[str, Any]:
    missing = [split for split in SPLITS if split not in parts]
    unknown = sorted(set(parts) - {"model", *SPLITS, "example_inputs", "trained"})
    if missing or unknown:
        fault = f"{missing[0]!r} is missing" if missing else f"it gave {unknown[0]!r}"
        raise TaskError(
            f"{name!r} must give {', '.join(SPLITS)}, and may give model, example_inputs and trained, but {fault}"
        )
    return parts


def _with_own_network(parts: dict[str, Any], spec: TaskSpec) -> LoaderTask:
    if "model" not in parts:
        raise TaskError(f"a task needs a network, but neither {spec.name!r} nor the job names one; set `model`")
    task = task_from_modules(**parts, name=spec.name)
    if spec.checkpoint is None:
        return task
    return replace(task, build=partial(_build_with_weights, task.build, Path(spec.checkpoint)), trained=True)


def _build_with_weights(build: Callable[[], nn.Module], checkpoint: Path) -> nn.Module:
    model = build()
    load_weights(model, checkpoint)
    return model
