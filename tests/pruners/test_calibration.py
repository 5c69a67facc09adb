from collections.abc import Iterator

import torch
from torch import nn

from pruneaug.pruners.protocol import TaskCalibration
from pruneaug.tasks.protocol import Batch


class Ten:
    """Ten samples of one feature; only what calibration asks of a task."""

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        assert split == "train"
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed or 0))
        for part in order.split(batch_size):
            yield Batch((part[:, None].float(),), part % 2)

    def loss(self, output: torch.Tensor, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        return nn.functional.cross_entropy(output, batch.targets)


def test_calibration_gives_the_same_training_batches_each_time_and_no_more_than_asked() -> None:
    data = TaskCalibration(Ten(), batch_size=3, seed=5)  # type: ignore[arg-type]
    first, second = list(data.batches(2)), list(data.batches(2))
    assert len(first) == 2
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, second, strict=True))
    assert len(list(data.batches(99))) == 4


def test_the_calibration_loss_is_the_task_s_and_reaches_the_weights() -> None:
    data = TaskCalibration(Ten(), batch_size=4)  # type: ignore[arg-type]
    model = nn.Linear(1, 2)
    (batch,) = data.batches(1)
    loss = data.loss(model, batch)
    loss.backward()
    assert torch.equal(loss, nn.functional.cross_entropy(model(batch.inputs[0]), batch.targets))
    assert model.weight.grad is not None
    assert model.weight.grad.any()
