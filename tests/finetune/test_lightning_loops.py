import signal
import warnings
from typing import Any

import pytest
import torch
import training_loops
from torch import nn
from torch.nn import functional

from pruneaug.errors import PluginError
from pruneaug.finetune import FINETUNERS
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec

pl = pytest.importorskip("lightning.pytorch")
SPEC = TrainSpec(epochs=2, batch_size=16)
MASK = torch.rand(2, 128, generator=torch.Generator().manual_seed(5)) > 0.5


def finetune(task: Any, spec: TrainSpec = SPEC, **options: Any) -> tuple[nn.Module, Any]:
    model = task.build_model()
    model[6] = nn.Identity()  # no dropout
    tuner = FINETUNERS.create("lightning", {"module": "training_loops:lit", **options})
    return model, tuner.finetune(model, Pruned({"7": MASK}), task, spec, seed=2)


def test_a_lightning_module_gives_what_a_plain_loop_gives_with_masks_by_hand(task: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, result = finetune(task)
    wanted = task.build_model().train()
    wanted[6] = nn.Identity()
    wanted[7].weight.data[~MASK] = 0
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(2):
        for batch in task.batches("train", 16, 2 * 100_003 + epoch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(wanted(*batch.inputs), batch.targets)
            loss.backward()
            optimizer.step()
            wanted[7].weight.data[~MASK] = 0
    for name, value in wanted.state_dict().items():
        assert torch.allclose(value, found.state_dict()[name], atol=1e-6), name
    assert (result.steps, result.epochs) == (12, 2.0)
    assert result.last_loss == pytest.approx(float(loss.detach()), abs=1e-5)
    assert torch.equal(found[7].weight != 0, MASK)


def test_a_fraction_of_an_epoch_and_settings_of_the_trainer_are_kept(task: Any, capfd: Any) -> None:
    _, result = finetune(task, TrainSpec(epochs=0.5, batch_size=16), trainer={"gradient_clip_val": 0.1})
    assert (result.steps, result.epochs) == (3, 0.5)
    out = capfd.readouterr()
    assert out.out + out.err == ""


def test_ctrl_c_in_the_training_is_not_kept_from_the_search(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(functional, "cross_entropy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        finetune(task)
    assert signal.getsignal(signal.SIGINT) is handler


def test_something_else_than_a_lightning_module_is_refused(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loops, "lit", lambda model: model)
    with pytest.raises(PluginError, match="must make a LightningModule, but made Sequential"):
        finetune(task)
    with pytest.raises(PluginError, match="no option 'depth'"):
        finetune(task, options={"depth": 2})
