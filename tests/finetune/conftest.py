from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneaug.tasks.protocol import Batch, Split


@dataclass
class Stripes:
    """8x8 images of rows or columns with noise: two classes, learnt in a few steps."""

    samples: int = 96
    name: str = "stripes"
    trained: bool = False
    seeds: list[int | None] = field(default_factory=list)  # of the passes over the data, in order
    smoothing: list[float] = field(default_factory=list)  # of the losses

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.arange(self.samples) % 2
        rows = (torch.arange(8)[:, None] % 2).expand(8, 8).float()
        clean = torch.where(self.targets[:, None, None] == 0, rows, rows.T)
        self.images = (clean + 0.3 * torch.randn(self.samples, 8, 8, generator=generator))[:, None]

    def build_model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Dropout(0.1),
                nn.Linear(128, 2),
            )

    def example_inputs(self, batch: int) -> tuple[Tensor, ...]:
        return (self.images[:batch],)

    def batches(self, split: Split, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        self.seeds.append(seed)
        order = torch.arange(self.samples)
        if seed is not None:
            order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        for part in order.split(batch_size):
            yield Batch((self.images[part],), self.targets[part])

    def size(self, split: Split) -> int:
        return self.samples

    def logits(self, model_output: Any) -> Tensor:
        assert isinstance(model_output, Tensor)
        return model_output

    def loss(self, model_output: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        self.smoothing.append(label_smoothing)
        return nn.functional.cross_entropy(model_output, batch.targets, label_smoothing=label_smoothing)

    def evaluate(self, model: nn.Module, split: Split) -> float:
        model.eval()
        with torch.no_grad():
            return float((model(self.images).argmax(1) == self.targets).float().mean())


@pytest.fixture
def task() -> Stripes:
    torch.set_num_threads(1)
    return Stripes()
