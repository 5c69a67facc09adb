"""A training written as a LightningModule."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pruneaug.errors import PluginError
from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.outside import Watch, check_signature, check_teacher, run_outside, select
from pruneaug.finetune.protocol import FineTuneResult, Progress
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task

_NOTES = (".*does not have many workers", ".*`IterableDataset` has `__len__`", ".*isinstance\\(treespec, LeafSpec\\)")


class Lightning:
    """Trains with Lightning's Trainer the LightningModule that `module` makes of the network.

    module: `package.module:attr`, a LightningModule's class or a function, called with what it asks for by the names
        of its parameters (`model` first of all; see Function). options: its other parameters.
    trainer: keyword arguments of `lightning.pytorch.Trainer`, such as `precision: bf16-mixed`.

    Its `training_step` gets (inputs, targets). The training runs in one process, for the spec's epochs.
    """

    def __init__(
        self, module: str, options: Mapping[str, Any] | None = None, trainer: Mapping[str, Any] | None = None
    ) -> None:
        self._who = f"the Lightning module {module!r}"
        self._module = FINETUNERS.load(module)
        self._options, self._trainer = dict(options or {}), dict(trainer or {})
        check_signature(self._who, self._module, self._options)
        _import_lightning()

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
        check_teacher(self._who, self._module, spec)
        place = torch.device(device)

        def loop(offered: Mapping[str, Any], watch: Watch) -> None:
            pl = _import_lightning()
            module = self._module(**select(self._module, offered), **self._options)
            if not isinstance(module, pl.LightningModule):
                raise PluginError(f"{self._who} must make a LightningModule, but made {type(module).__name__}")
            with _quiet():
                trainer = pl.Trainer(**self._arguments(pl, watch, place))
                trainer.fit(module, offered["loader"])

        return run_outside(
            loop, self._who, model, pruned, task, spec, seed=seed, teacher=teacher, progress=progress, device=place
        )

    def _arguments(self, pl: Any, watch: Watch, device: torch.device) -> dict[str, Any]:
        class TellLoss(pl.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
                loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
                if isinstance(loss, torch.Tensor):
                    watch.loss = float(loss)

        ours = {
            "max_steps": watch.total,
            "max_epochs": -1,
            "accelerator": "gpu" if device.type == "cuda" else "cpu",
            "devices": [device.index or 0] if device.type == "cuda" else 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return {**ours, **self._trainer, "callbacks": [TellLoss(), *self._trainer.get("callbacks", ())]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on hardware and workers; Ctrl-C ends the search, not only Lightning's part of it."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    handler = signal.getsignal(signal.SIGINT)
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for note in _NOTES:
                warnings.filterwarnings("ignore", message=note)
            yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        logger.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _import_lightning() -> Any:
    try:
        import lightning.pytorch as pl
    except ImportError as error:
        raise PluginError(
            "the fine-tuner 'lightning' needs the package lightning; pip install 'pruneaug[lightning]'"
        ) from error
    return pl
