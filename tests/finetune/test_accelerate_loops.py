from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruneaug.errors import PluginError
from pruneaug.finetune import FINETUNERS
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec

pytest.importorskip("accelerate")
SPEC = TrainSpec(epochs=2, batch_size=16)
MASK = torch.rand(2, 128, generator=torch.Generator().manual_seed(5)) > 0.5


def finetune(task: Any, **options: Any) -> tuple[nn.Module, Any]:
    model = task.build_model()
    model[6] = nn.Identity()  # dropout would draw other numbers: accelerate looks one batch ahead
    tuner = FINETUNERS.create("accelerate", {"function": "training_loops:accelerated", **options})
    return model, tuner.finetune(model, Pruned({"7": MASK}), task, SPEC, seed=2)


def test_the_loop_gives_what_it_gives_without_accelerate_and_with_masks_by_hand(task: Any) -> None:
    found, result = finetune(task, options={"lr": 0.02})
    wanted = task.build_model().train()
    wanted[6] = nn.Identity()
    wanted[7].weight.data[~MASK] = 0
    optimizer = torch.optim.AdamW(wanted.parameters(), lr=0.002)
    for epoch in range(2):
        for batch in task.batches("train", 16, 2 * 100_003 + epoch):
            functional.cross_entropy(wanted(*batch.inputs), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            wanted[7].weight.data[~MASK] = 0
    assert result.steps == 12
    assert torch.equal(found[7].weight != 0, MASK)
    for name, value in wanted.state_dict().items():
        assert torch.allclose(value, found.state_dict()[name], atol=1e-6), name


def test_mixed_precision_leaves_no_wrapper_behind_and_another_precision_can_follow(task: Any) -> None:
    mixed, _ = finetune(task, accelerator={"mixed_precision": "bf16"})
    assert "forward" not in mixed.__dict__
    assert mixed(task.images).dtype == torch.float32
    whole, _ = finetune(task)
    assert not torch.equal(mixed[7].weight, whole[7].weight)
    assert torch.equal(mixed[7].weight != 0, MASK)


def test_options_are_checked_before_any_training() -> None:
    with pytest.raises(PluginError, match="no option 'rate'"):
        FINETUNERS.create("accelerate", {"function": "training_loops:accelerated", "options": {"rate": 1}})
    with pytest.raises(PluginError, match="training_loops"):
        FINETUNERS.create("accelerate", {"function": "training_loops:nothing"})
