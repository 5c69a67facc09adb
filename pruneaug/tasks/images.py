"""Encoded images -> one uint8 tensor, and the classification task on it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneaug.errors import TaskError
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.extras import require
from pruneaug.tasks.network import NetworkSource
from pruneaug.tasks.pixels import Augmentation, CropAndFlip, Erase, InTurn, Normalise
from pruneaug.tasks.protocol import Split

_MODES = {1: "L", 3: "RGB"}


def decode_images(encoded: Iterable[tuple[str, bytes | Path]], size: int | None, channels: int) -> Tensor:
    """Decode images given as (place for messages, file content or path) -> uint8 [samples, channels, height, width].

    size: the shorter side is scaled to it and the middle square is cut out; None keeps all pixels, and all images
    must then be equally large. Raises TaskError naming the place of the first image that is broken or differs.
    """
    pillow = require("PIL.Image", "vision", "reading images")
    mode = _MODES[channels]
    pixels: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for place, source in encoded:
        try:
            with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                image = image.convert(mode)
                if size is not None:
                    image = _middle_square(image, size, pillow.Resampling.BILINEAR)
                array = np.asarray(image, dtype=np.uint8)
        except Exception as error:  # broken bytes make Pillow's decoders fail in any way
            raise TaskError(f"an image must be readable, but {place} is not: {error}; replace or remove it") from error
        if pixels and array.shape != pixels[0].shape:
            height, width = array.shape[:2]
            raise TaskError(
                f"all images must have the same size, but {place} has {width}x{height} pixels and the first image "
                f"{pixels[0].shape[1]}x{pixels[0].shape[0]}; set the option `size`, for example size: 224"
            )
        pixels.append(array)
    stacked = torch.from_numpy(np.stack(pixels))
    return stacked[:, None] if channels == 1 else stacked.permute(0, 3, 1, 2).contiguous()


def _middle_square(image: Any, size: int, resampling: Any) -> Any:
    width, height = image.size
    if (width, height) == (size, size):
        return image
    scale = size / min(width, height)
    scaled = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), resampling)
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def check_options(size: int | None, channels: int, pad: int, erase: int) -> None:
    if channels not in _MODES:
        raise TaskError(f"`channels` must be 1 (grey) or 3 (RGB), but got {channels!r}")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise TaskError(f"`size` must be a number of pixels, but got {size!r}; for example 224")
    if not isinstance(pad, int) or pad < 0:
        raise TaskError(f"`pad` must be a number of pixels, 0 for no shifts, but got {pad!r}")
    if not isinstance(erase, int) or erase < 0:
        raise TaskError(f"`erase` must be a number of pixels, 0 to erase nothing, but got {erase!r}")


def image_task(
    name: str,
    model: NetworkSource,
    splits: Mapping[Split, Examples],
    num_classes: int,
    pad: int,
    flip: bool,
    erase: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ClassificationTask:
    """The task on uint8 images [samples, channels, height, width].

    mean, std: per channel on the scale 0..1, as the checkpoint was trained; None takes those of the training images.
    """
    images = splits["train"].inputs[0]
    channels, height = images.shape[1:3]
    for split, examples in splits.items():
        if examples.inputs[0].shape[1:] != images.shape[1:]:
            raise TaskError(
                f"all splits must hold images of one size, but {split} has {list(examples.inputs[0].shape[1:])} and "
                f"train {list(images.shape[1:])} (channels, height, width); set the option `size`"
            )
    return ClassificationTask(
        name=name,
        build=model.builder(num_classes=num_classes, in_channels=channels, image_size=height),
        splits=splits,
        num_classes=num_classes,
        trained=model.trained,
        augment=_augmentation(pad, flip, erase),
        prepare=_normalisation(images, mean, std),
    )


def _augmentation(pad: int, flip: bool, erase: int) -> Augmentation | None:
    steps: list[Augmentation] = [CropAndFlip(pad, flip)] if pad or flip else []
    if erase:
        steps.append(Erase(erase))
    return InTurn(tuple(steps)) if steps else None


def _normalisation(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalise:
    channels = images.shape[1]
    if mean is None and std is None:
        return Normalise.of(images)
    if mean is None or std is None or len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise TaskError(
            f"`mean` and `std` must both be given, each with {channels} values and std positive, "
            f"but got mean={mean!r} and std={std!r}; leave both out to use those of the training images"
        )
    return Normalise(tuple(map(float, mean)), tuple(map(float, std)))
