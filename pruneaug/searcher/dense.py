"""The dense network that everything is compared with: trained if it must be, judged and stored once."""

from __future__ import annotations

import logging
import warnings
from itertools import islice
from typing import Any

import torch
from torch import nn

from pruneaug.finetune.batchnorm import BATCHNORM_BATCHES, reestimate_batchnorm
from pruneaug.finetune.protocol import FineTuner, Rewinder, Rung, Rungs, accepts
from pruneaug.searcher.candidate import finite_accuracy
from pruneaug.searcher.progress import Progress, training_progress
from pruneaug.searcher.rundir import RunDir, read_json, write_json
from pruneaug.searcher.weights import MODEL, load_tensors, load_weights, save_tensors
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.chance import chance_accuracy, undertrained
from pruneaug.tasks.protocol import Task

_log = logging.getLogger(__name__)
EARLY = "early.safetensors"


def prepare_dense(
    task: Task,
    spec: TrainSpec,
    finetuner: FineTuner,
    run: RunDir,
    *,
    seed: int,
    progress: Progress | None = None,
    device: str = "cpu",
) -> tuple[nn.Module, float]:
    """The dense network, in eval mode, and its validation accuracy.

    What an earlier driver stored is used: a training that was finished is never repeated. Warns of an accuracy that is
    about that of guessing.
    Raises TrainingError if the training fails or the accuracy is not finite.
    """
    model = task.build_model()
    if not (run.dense / MODEL).exists():
        if not task.trained:
            _log.info("training the dense network for %g epochs", spec.epochs)
            report = training_progress(progress, "Dense training")
            options: dict[str, Any] = {"rungs": _rungs(finetuner, spec, run)} if accepts(finetuner, "rungs") else {}
            finetuner.finetune(model, None, task, spec, seed=seed, progress=report, device=device, **options)
            # As after every fine-tuning, or a short training would judge the dense network by stale statistics.
            reestimate_batchnorm(model, islice(task.batches("train", spec.batch_size, seed), BATCHNORM_BATCHES))
        save_tensors(run.dense / MODEL, model.state_dict())
        run.drop_checkpoint("dense")
    load_weights(model.cpu(), run.dense / MODEL)
    model.to(device).eval()
    record = run.dense / "record.json"
    if not record.exists():
        accuracy = finite_accuracy(task.evaluate(model, "validation"))
        write_json(record, {"accuracy_validation": accuracy, "accuracy_chance": chance_accuracy(task)})
    known = read_json(record)
    accuracy = float(known["accuracy_validation"])
    if (words := undertrained(accuracy, float(known.get("accuracy_chance", 0.0)))) is not None:
        warnings.warn(words, RuntimeWarning, stacklevel=2)
    return model, accuracy


def early_weights(run: RunDir) -> dict[str, torch.Tensor] | None:
    """The dense network's weights after the part of its training that the fine-tuner named; None if it named none."""
    path = run.dense / EARLY
    return load_tensors(path) if path.exists() else None


def _rungs(finetuner: FineTuner, spec: TrainSpec, run: RunDir) -> Rungs:
    """A checkpoint, so that a kill costs little; and one rung, if the fine-tuner goes back to the weights of then."""

    def keep(rung: Rung) -> bool:
        save_tensors(run.dense / EARLY, rung.model.state_dict())
        return True

    fraction = finetuner.early_fraction if isinstance(finetuner, Rewinder) else None
    return Rungs(() if fraction is None else (spec.epochs * fraction,), keep, run.checkpoint("dense"))


def load_dense(task: Task, run: RunDir) -> nn.Module:
    """The dense network of a run, on the CPU, in eval mode. Raises RunError if it is not stored yet."""
    model = task.build_model()
    load_weights(model, run.dense / MODEL)
    return model.eval()
