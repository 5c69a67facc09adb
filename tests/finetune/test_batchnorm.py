from typing import Any

import pytest
import torch
from torch import nn

from pruneaug.errors import TaskError
from pruneaug.finetune.batchnorm import reestimate_batchnorm
from pruneaug.tasks.protocol import Batch


def batch(values: torch.Tensor) -> Batch:
    return Batch((values,), torch.zeros(len(values), dtype=torch.int64))


def test_statistics_are_the_plain_average_over_the_batches() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(100.0)  # type: ignore[union-attr]
    data = torch.randn(4, 8, 3) * 5 + 2
    reestimate_batchnorm(nn.Sequential(norm), [batch(part) for part in data])
    assert torch.allclose(norm.running_mean, data.mean(dim=(0, 1)), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, data.var(dim=1).mean(dim=0), atol=1e-4)  # type: ignore[arg-type]


def test_all_else_stays_as_it_was(task: Any) -> None:
    model = task.build_model()
    model.train()
    model[1].momentum = 0.3
    model[6].eval()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    state = torch.get_rng_state()
    reestimate_batchnorm(model, task.batches("train", 32))
    assert torch.equal(torch.get_rng_state(), state)  # no dropout
    assert model[1].momentum == 0.3
    assert [module.training for module in model] == [True] * 6 + [False, True]
    before.pop("1.num_batches_tracked")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_norm_behind_another_sees_that_one_s_batch_statistics(task: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1)).eval()
    reestimate_batchnorm(model, task.batches("train", 96))
    assert model[1].running_mean.item() == pytest.approx(0, abs=1e-4)  # type: ignore[union-attr, operator]
    assert model[1].running_var.item() == pytest.approx(1, abs=1e-3)  # type: ignore[union-attr, operator]


def test_a_network_without_batch_norm_reads_no_data() -> None:
    def never() -> Any:
        raise AssertionError
        yield

    reestimate_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), never())


@pytest.mark.parametrize("batches", [[], [batch(torch.ones(1, 3))]])
def test_without_a_usable_batch_the_statistics_are_untouched(batches: list[Batch]) -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(7.0)  # type: ignore[union-attr]
    with pytest.raises(TaskError, match="at least one batch of two samples"):
        reestimate_batchnorm(nn.Sequential(norm), batches)
    assert norm.running_mean.tolist() == [7.0] * 3  # type: ignore[union-attr]


def test_a_batch_of_a_single_sample_is_left_out() -> None:
    norm = nn.BatchNorm1d(1)
    reestimate_batchnorm(nn.Sequential(norm), [batch(torch.tensor([[1.0], [3.0]])), batch(torch.tensor([[99.0]]))])
    assert norm.running_mean.item() == 2.0  # type: ignore[union-attr]
