"""The 1,797 handwritten digits that scikit-learn ships: a real task that needs no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pruneaug.errors import TaskError
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.extras import require
from pruneaug.tasks.network import NetworkSource
from pruneaug.tasks.pixels import CropAndFlip, Normalise
from pruneaug.tasks.splitting import stratified_split

_CLASSES = 10
_SHARE = 0.2  # of validation and of test
_SPLIT_SEED = 0


def digits(model: NetworkSource, size: int = 32, pad: int = 2) -> ClassificationTask:
    """Digits 0-9 in grey, 8x8 pixels enlarged to `size` x `size`; 60 % train, 20 % validation, 20 % test.

    pad: the largest shift in pixels of the augmented training images.
    """
    if size < 8:
        raise TaskError(f"`size` must be at least 8, but got {size}; the digits are 8x8 pixels")
    dataset = require("sklearn.datasets", "vision", "the task 'digits'").load_digits()
    small = torch.from_numpy(dataset.images).float()[:, None] * (
        255 / 16
    )  # [1797, 1, 8, 8]; sklearn's run from 0 to 16
    images = F.interpolate(small, (size, size), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(dataset.target).long()
    held_out = round(_SHARE * len(labels))
    validation, test, train = (
        Examples((images,), labels).select(part) for part in stratified_split(labels, (held_out, held_out), _SPLIT_SEED)
    )
    return ClassificationTask(
        name="digits",
        build=model.builder(num_classes=_CLASSES, in_channels=1, image_size=size),
        splits={"train": train, "validation": validation, "test": test},
        num_classes=_CLASSES,
        trained=model.trained,
        augment=CropAndFlip(pad, flip=False) if pad else None,
        prepare=Normalise.of(train.inputs[0]),
    )
