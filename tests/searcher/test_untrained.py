"""Searches without fine-tuning: what is pruned is judged as it is."""

import pytest
import torch
from toy_search import make_job, make_parts

from pruneaug.errors import SpecError
from pruneaug.finetune.train import Train
from pruneaug.searcher.study import run_search
from pruneaug.searcher.weights import load_tensors
from pruneaug.spec.load import parse_job
from pruneaug.spec.models import FineTuneSpec, PlugIn, TrainSpec

NONE = FineTuneSpec(trial=TrainSpec(epochs=0), final=TrainSpec(epochs=0), repeats=1)


def untrained(folder, monkeypatch, pruner, **search):
    """(result, what fine-tuners were called for)"""
    task, network, table = make_parts("cnn")
    job = make_job(**{"max_accuracy_loss": 1.0, "trials": 2, "strategy": "rule", **search})
    job = job.model_copy(update={"finetune": NONE, "pruner": PlugIn(name=pruner)})
    calls, finetune = [], Train.finetune

    def counted(self, model, pruned, *args, **options):
        calls.append(pruned)
        return finetune(self, model, pruned, *args, **options)

    monkeypatch.setattr(Train, "finetune", counted)
    return run_search(job, task, network, table, 5.0, folder), calls


def test_nothing_but_the_dense_network_is_trained(tmp_path, monkeypatch):
    result, calls = untrained(tmp_path, monkeypatch, "magnitude")
    assert calls == [None]
    assert result.best.epochs == 0.0
    assert len(result.repeats) == 1
    dense, best = (load_tensors(tmp_path / name / "model.safetensors") for name in ("dense", "best"))
    masks = load_tensors(tmp_path / "best" / "masks.safetensors")
    assert masks
    for name, weight in dense.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):  # these are re-estimated
            mask = masks.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            assert torch.equal(best[name], weight if mask is None else weight * mask), name


@pytest.mark.parametrize("pruner", ["sparsegpt", "gradual"])
def test_pruners_that_change_weights_or_masks_give_what_was_asked(tmp_path, monkeypatch, pruner):
    result, calls = untrained(tmp_path, monkeypatch, pruner, strategy="uniform")
    assert calls == [None]
    assert {trial.state for trial in result.trials} <= {"complete", "skipped"}
    assert result.best.sparsity > 0.3


def test_a_pruner_that_learns_while_it_is_trained_says_that_it_needs_training(tmp_path, monkeypatch):
    result, _ = untrained(tmp_path, monkeypatch, "movement")
    assert all("saw none before the sparsity rises" in trial.error for trial in result.trials if trial.error)
    assert "failed" in {trial.state for trial in result.trials}


def test_a_dense_training_must_train():
    with pytest.raises(SpecError, match=r"dense training must have epochs above 0, but got 0.*`checkpoint`"):
        parse_job({"task": {"name": "digits", "train": {"epochs": 0}}})
    with pytest.raises(SpecError, match="epochs"):
        parse_job({"task": {"name": "digits"}, "finetune": {"trial": {"epochs": -1}}})
