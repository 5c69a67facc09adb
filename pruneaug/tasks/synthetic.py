"""Random data, for profiles and benchmarks of networks without their data: shapes count, accuracies mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruneaug.errors import TaskError
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.network import NetworkSource


def synthetic(
    model: NetworkSource,
    shape: Sequence[int] = (3, 224, 224),
    vocabulary: int | None = None,
    classes: int = 1000,
    samples: int = 16,
) -> ClassificationTask:
    """`samples` random samples a split.

    shape: of one sample, [channels, height, width] for an image or [tokens] for a text; vocabulary: the number of
    different tokens, none for float inputs.
    """
    if samples < 1 or not shape or min(shape) < 1:
        raise TaskError(
            f"`samples` and every size in `shape` must be at least 1, but got samples={samples}, shape={list(shape)}"
        )
    facts = {"num_classes": classes}
    if len(shape) == 3:
        facts |= {"in_channels": shape[0], "image_size": shape[1]}
    if vocabulary is not None:
        facts |= {"vocab_size": vocabulary}

    def split(seed: int) -> Examples:
        generator = torch.Generator().manual_seed(seed)
        size = (samples, *shape)
        inputs = (
            torch.randn(size, generator=generator)
            if vocabulary is None
            else torch.randint(0, vocabulary, size, generator=generator)
        )
        return Examples((inputs,), torch.randint(0, classes, (samples,), generator=generator))

    return ClassificationTask(
        name="synthetic",
        build=model.builder(**facts),
        splits={"train": split(0), "validation": split(1), "test": split(2)},
        num_classes=classes,
        trained=True,  # random weights are as good as any where only times count
    )
