"""Splitting samples into parts that have the classes in equal shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruneaug.errors import TaskError


def stratified_split(labels: Tensor, sizes: Sequence[int], seed: int) -> tuple[Tensor, ...]:
    """Indices of disjoint parts of exactly these sizes, each in ascending order; what is left over is the last part.

    labels: int64 [samples]. Every part has each class in nearly the share that it has in all samples.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    classes = labels[by_class]
    # Each sample's place within its class, in (0, 1): any stretch of these places holds all classes alike.
    places = (torch.arange(len(labels)) - starts[classes] + 0.5) / counts[classes]
    spread = by_class[places.argsort(stable=True)]
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0)
    return tuple(part.sort().values for part in spread.tensor_split(ends))


def part_size(part: int | float, samples: int, name: str) -> int:
    """Samples in a part given as a count or as a fraction below 1 (float); it and the rest must have one at least."""
    is_number = isinstance(part, int | float) and not isinstance(part, bool)
    size = round(part * samples) if isinstance(part, float) and part < 1 else part
    if not is_number or not 0 < size < samples or size != int(size):
        raise TaskError(
            f"`{name}` must be a count from 1 to {samples - 1} or a fraction between 0 and 1 of the {samples} samples, "
            f"but got {part!r}; for example 0.1"
        )
    return int(size)


def limited(indices: Tensor, limit: int | None) -> Tensor:
    """The first `limit` indices, or all of them."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise TaskError(f"`limit` must be a number of training samples, but got {limit!r}; leave it out to use all")
    return indices[:limit]


def check_labels(labels: Tensor, other: Tensor, file: str, other_file: str) -> int:
    """The number of classes of the training labels.

    Raises TaskError if a label is negative, a class below the largest has no sample, or `other` holds another class.
    """
    for values, name in ((labels, file), (other, other_file)):
        if int(values.min()) < 0:
            raise TaskError(f"labels must be 0 or more, but {name} holds {int(values.min())}; number classes from 0")
    present = sorted(set(labels.tolist()))
    num_classes: int = present[-1] + 1
    if len(present) < num_classes:
        empty = next(index for index, label in enumerate(present) if index != label)
        raise TaskError(
            f"every class from 0 to {num_classes - 1} must have a sample, but class {empty} has none in {file}; "
            "number the classes without gaps"
        )
    if int(other.max()) >= num_classes:
        raise TaskError(
            f"labels must be among the {num_classes} classes of {file}, but {other_file} holds label {int(other.max())}"
        )
    return num_classes
