"""A training loop written for Hugging Face accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruneaug.errors import PluginError
from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.outside import OFFERED, Watch, check_signature, check_teacher, run_outside, select
from pruneaug.finetune.protocol import FineTuneResult, Progress
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task

_WRAPPED = ("forward", "_original_forward")  # what accelerate sets on a model for mixed precision, and leaves


class Accelerate:
    """Calls `function` like a plain training function (see Function), and offers it an `accelerator` too.

    function: `package.module:attr`. options: its other parameters. accelerator: keyword arguments of
    `accelerate.Accelerator`, such as `mixed_precision: bf16`. The training runs in one process.
    """

    def __init__(
        self, function: str, options: Mapping[str, Any] | None = None, accelerator: Mapping[str, Any] | None = None
    ) -> None:
        self._who = f"the training function {function!r}"
        self._function = FINETUNERS.load(function)
        self._options, self._accelerator = dict(options or {}), dict(accelerator or {})
        check_signature(self._who, self._function, self._options, (*OFFERED, "accelerator"))
        _import_accelerate()

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
        place = torch.device(device)
        library = _import_accelerate()
        state = library.state.AcceleratorState
        was_used = bool(state._shared_state)
        accelerator = library.Accelerator(**{"cpu": place.type == "cpu", **self._accelerator})

        forward = {name: value for name, value in model.__dict__.items() if name in _WRAPPED}

        def loop(offered: Mapping[str, Any], _: Watch) -> Any:
            try:
                with_accelerator = select(self._function, {**offered, "accelerator": accelerator})
                return self._function(**with_accelerator, **self._options)
            finally:
                for name in _WRAPPED:
                    model.__dict__.pop(name, None)
                model.__dict__.update(forward)
                accelerator.free_memory()
                if not was_used:  # or no other precision could be chosen in this process
                    state._reset_state()

        return run_outside(
            loop, self._who, model, pruned, task, spec, seed=seed, teacher=teacher, progress=progress, device=place
        )


def _import_accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise PluginError(
            "the fine-tuner 'accelerate' needs the package accelerate; pip install 'pruneaug[accelerate]'"
        ) from error
    return accelerate
