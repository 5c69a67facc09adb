"""Classification on data that fits in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneaug.errors import TaskError
from pruneaug.tasks.protocol import SPLITS, Batch, Split
from pruneaug.tasks.scoring import Classifier

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Samples of one split. inputs: tensors [samples, ...]; targets: int64 [samples], the class of each."""

    inputs: Inputs
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Tensor) -> Examples:
        return Examples(tuple(tensor[indices] for tensor in self.inputs), self.targets[indices])


def _unchanged(inputs: Inputs) -> Inputs:
    return inputs


@dataclass(frozen=True)
class ClassificationTask(Classifier):
    """A network and three splits in memory.

    build: makes the network, the same on every call.
    augment: changes stored inputs of a training batch at random, with the generator given.
    prepare: turns stored inputs of a batch (for example uint8 pixels) into what the network takes.
    """

    name: str
    build: Callable[[], nn.Module]
    splits: Mapping[Split, Examples]
    num_classes: int
    trained: bool = False
    augment: Callable[[Inputs, torch.Generator], Inputs] | None = None
    prepare: Callable[[Inputs], Inputs] = _unchanged

    def __post_init__(self) -> None:
        for split in SPLITS:
            if split not in self.splits or not len(self.splits[split]):
                raise TaskError(f"the {split} data of task {self.name!r} must hold at least one sample, but has none")
            examples = self.splits[split]
            lengths = {len(tensor) for tensor in examples.inputs} | {len(examples)}
            if len(lengths) != 1:
                raise TaskError(f"the {split} data must have as many inputs as labels, but got {sorted(lengths)}")
            low, high = int(examples.targets.min()), int(examples.targets.max())
            if low < 0 or high >= self.num_classes:
                raise TaskError(
                    f"labels must lie in 0..{self.num_classes - 1}, but the {split} data of task {self.name!r} "
                    f"holds label {low if low < 0 else high}; mend the data"
                )

    def build_model(self) -> nn.Module:
        return self.build()

    def example_inputs(self, batch: int) -> Inputs:
        """The first training samples, from the start again where there are fewer than `batch`."""
        examples = self.splits["train"]
        return self.prepare(examples.select(torch.arange(batch) % len(examples)).inputs)

    def size(self, split: Split) -> int:
        return len(self.splits[split])

    def batches(self, split: Split, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """One pass over the split in ceil(size / batch_size) batches.

        In order, all but the last have `batch_size` samples. Shuffled, their sizes differ by one at most, so that no
        batch is too small for batch norm.
        """
        examples = self.splits[split]
        if seed is None:
            for start in range(0, len(examples), batch_size):
                chosen = examples.select(torch.arange(start, min(start + batch_size, len(examples))))
                yield Batch(self.prepare(chosen.inputs), chosen.targets)
            return
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(examples), generator=generator)
        for indices in order.tensor_split(-(-len(examples) // batch_size)):
            chosen = examples.select(indices)
            inputs = self.augment(chosen.inputs, generator) if self.augment else chosen.inputs
            yield Batch(self.prepare(inputs), chosen.targets)
