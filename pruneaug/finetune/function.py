"""The user's own training loop: a plain function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pruneaug.finetune.outside import check_signature, check_teacher, run_outside, select
from pruneaug.finetune.protocol import FineTuneResult, Progress
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task


def is_training_function(value: Any) -> bool:
    """Whether it is a function (not a class) whose first parameter is `model`."""
    if inspect.isclass(value) or not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters
    except ValueError:  # some callables written in C have none
        return False
    return next(iter(parameters), None) == "model"


class Function:
    """Calls `function` with what it asks for by the names of its parameters, and with `options` for the others.

    The masks are held after each step of every PyTorch optimizer that trains the model, without the function's doing.
    """

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any] | None = None, who: str = "") -> None:
        self._function, self._options = function, dict(options or {})
        self._who = f"the training function {who or getattr(function, '__name__', function)!r}"
        check_signature(self._who, function, self._options)

    def finetune(
        self,
        model: nn.Module,
        pruned: Pruned | None,
        task: Task,
        spec: TrainSpec,
        *,
        seed: int,
        teacher: nn.Module | None = None,
        progress: Progress | None = None,
        device: torch.device | str = "cpu",
    ) -> FineTuneResult:
        check_teacher(self._who, self._function, spec)
        return run_outside(
            lambda offered, _: self._function(**select(self._function, offered), **self._options),
            self._who,
            model,
            pruned,
            task,
            spec,
            seed=seed,
            teacher=teacher,
            progress=progress,
            device=torch.device(device),
        )
