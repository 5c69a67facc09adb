"""A small network of every kind of layer, with data, in float64: references are computed to the last digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pruneaug.network.layers import Network, find_layers
from pruneaug.tasks.protocol import Batch


class Blend(nn.Module):
    """Two convolutions (one grouped, of odd sizes), batch norms with statistics, a linear layer with odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 9, (3, 1), padding=(2, 0), dilation=(2, 1), groups=3)
        self.last = nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        return self.last(torch.tanh(self.grouped(x)).mean(dim=(2, 3)))


def blend() -> tuple[nn.Module, Network]:
    torch.manual_seed(0)
    model = Blend().double()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    return model, find_layers(model.eval(), (torch.zeros(1, 3, 7, 6, dtype=torch.float64),))


@dataclass
class Data:
    """Calibration data of float64 images with one of five classes; batches of different sizes."""

    sizes: tuple[int, ...] = (5, 3)
    shape: tuple[int, ...] = (3, 7, 6)

    def batches(self, count: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1)
        for size in self.sizes[:count]:
            images = torch.randn(size, *self.shape, generator=generator, dtype=torch.float64)
            yield Batch((images,), torch.randint(5, (size,), generator=generator))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(*batch.inputs), batch.targets)

    def everything(self) -> Batch:
        batches = list(self.batches(99))
        return Batch(
            (torch.cat([batch.inputs[0] for batch in batches]),), torch.cat([batch.targets for batch in batches])
        )


class Inputs(Data):
    """Calibration data of one batch, its labels all 0."""

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self.inputs = inputs

    def batches(self, count: int):
        yield Batch(self.inputs, torch.zeros(len(self.inputs[0]), dtype=torch.int64))


def small_transformer(name: str, attention: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    library = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    if name == "bert":
        config = library.BertConfig(vocab_size=30, num_labels=3, attn_implementation=attention, **sizes)
        mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
        return library.BertForSequenceClassification(config).eval(), (torch.arange(7)[None], mask)
    config = library.ViTConfig(image_size=8, patch_size=4, num_labels=3, attn_implementation=attention, **sizes)
    return library.ViTForImageClassification(config).eval(), (torch.zeros(1, 3, 8, 8),)
