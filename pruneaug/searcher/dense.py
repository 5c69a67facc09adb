"""The dense network that everything is compared with: trained if it must be, judged and stored once."""

from __future__ import annotations

import logging
from itertools import islice

from torch import nn

from pruneaug.finetune.batchnorm import BATCHNORM_BATCHES, reestimate_batchnorm
from pruneaug.finetune.protocol import FineTuner
from pruneaug.searcher.candidate import finite_accuracy
from pruneaug.searcher.progress import Progress, training_progress
from pruneaug.searcher.rundir import RunDir, read_json, write_json
from pruneaug.searcher.weights import load_weights, save_tensors
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task

_log = logging.getLogger(__name__)


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

    What an earlier driver stored is used: a training that was finished is never repeated.
    Raises TrainingError if the training fails or the accuracy is not finite.
    """
    model = task.build_model()
    if not (run.dense / "model.safetensors").exists():
        if not task.trained:
            _log.info("training the dense network for %g epochs", spec.epochs)
            report = training_progress(progress, "Dense training")
            finetuner.finetune(model, None, task, spec, seed=seed, progress=report, device=device)
            # As after every fine-tuning, or a short training would judge the dense network by stale statistics.
            reestimate_batchnorm(model, islice(task.batches("train", spec.batch_size, seed), BATCHNORM_BATCHES))
        save_tensors(run.dense / "model.safetensors", model.state_dict())
    load_weights(model.cpu(), run.dense / "model.safetensors")
    model.to(device).eval()
    record = run.dense / "record.json"
    if not record.exists():
        write_json(record, {"accuracy_validation": finite_accuracy(task.evaluate(model, "validation"))})
    return model, float(read_json(record)["accuracy_validation"])


def load_dense(task: Task, run: RunDir) -> nn.Module:
    """The dense network of a run, on the CPU, in eval mode. Raises RunError if it is not stored yet."""
    model = task.build_model()
    load_weights(model, run.dense / "model.safetensors")
    return model.eval()
