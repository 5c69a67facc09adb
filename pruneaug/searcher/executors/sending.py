"""Evaluators on their way to other processes and machines."""

from __future__ import annotations

import pickle
from dataclasses import replace

import cloudpickle  # also takes what is defined in a script or a notebook

from pruneaug.errors import PluginError
from pruneaug.searcher.candidate import Evaluator, PruneAndFineTune


def pack(evaluator: Evaluator) -> bytes:
    """The evaluator as bytes. Raises PluginError if a part of it, most likely the task, cannot be sent."""
    try:
        data: bytes = cloudpickle.dumps(evaluator)
    except Exception as error:  # whatever a user's object raises
        raise PluginError(
            "an executor with workers of its own must be able to send them the task, but it cannot be pickled "
            f"({type(error).__name__}: {error}); leave open files out of it, or use `executor: {{name: local}}`"
        ) from error
    return data


def unpack(data: bytes, device: str | None = None) -> Evaluator:
    """What `pack` made."""
    return on_device(pickle.loads(data), device)


def cannot_load(what: str) -> PluginError:
    """What to raise when a worker tells that it cannot unpack the evaluator; `what`: the error that it met."""
    return PluginError(
        f"a worker process must be able to load the task, but it cannot ({what}); define it in a module that can be "
        "imported where workers are, or use `executor: {name: local}`"
    )


def on_device(evaluator: Evaluator, device: str | None) -> Evaluator:
    """The evaluator, to train on another device if it is one that trains."""
    if device is not None and isinstance(evaluator, PruneAndFineTune):
        return replace(evaluator, device=device)
    return evaluator
