"""What a CUDA kernel is compiled for, and what it is called with; no compiler is needed to know it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.formats import FORMATS, Format
from pruneaug.kernels.cuda.variants import CudaVariant, parse_cuda_variant

ROWS, COLUMNS = "rows", "columns"
_KEY = re.compile(r"([a-z0-9]+)-(rows|columns)-c([1-9]\d*)-(\w+?)(-residual)?(-image)?-(t\w+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is compiled for; sizes are arguments. `chunk` columns of X follow each other.

    With `image`, X is images and the product a convolution; its layout is ROWS.
    """

    form: Format
    variant: CudaVariant
    layout: str
    chunk: int
    activation: str = "none"
    residual: bool = False
    image: bool = False

    @property
    def key(self) -> str:
        """A readable identity: equal keys are equal shapes. Read back by `parse_shape`."""
        flags = "-residual" * self.residual + "-image" * self.image
        return f"{self.form.name}-{self.layout}-c{self.chunk}-{self.activation}{flags}-{self.variant}"

    @property
    def gathers(self) -> bool:
        """Whether values of X are copied one by one: chunks are shorter than 16 bytes."""
        return self.layout == ROWS and self.chunk < self.form.per_piece


class Scalars(NamedTuple):
    """Arguments of a kernel that are numbers."""

    tokens: Any
    outputs: Any
    x_limit: Any  # offsets from here on are of no column
    x_stride: Any  # values from a row of x to the next
    y_stride: Any
    low: Any  # the clamp
    high: Any


class ImageScalars(NamedTuple):
    """Arguments of a convolution's kernel that are numbers."""

    tokens: Any  # output positions of all images
    outputs: Any
    x_limit: Any  # input channels
    x_stride: Any  # values from a position of x to the next
    y_stride: Any
    low: Any  # the clamp
    high: Any
    height: Any  # of an input image
    width: Any
    out_positions: Any  # of an image
    out_width: Any
    stride_y: Any
    stride_x: Any
    top: Any  # padding
    left: Any


class Launch(NamedTuple):
    """How a kernel is started."""

    grid: tuple[int, int]  # thread blocks: tiles of tokens, row groups
    threads: int  # of a block
    shared_bytes: int  # dynamic shared memory of a block


def launch_of(shape: Shape, scalars: Scalars | ImageScalars) -> Launch:
    """How a kernel is started for a layer of these sizes."""
    variant = shape.variant
    grid = -(-scalars.tokens // variant.tokens), -(-scalars.outputs // variant.outputs)
    return Launch(grid, variant.threads, variant.shared_bytes)


def parse_shape(key: str) -> Shape:
    """The shape whose `key` this is. Raises InputError if it is none."""
    match = _KEY.fullmatch(key)
    if not match or match[1] not in FORMATS:
        raise InputError(
            f"a CUDA kernel's name must read like 'float16-rows-c32-none-t128n64k32s4w4x1', but got {key!r}"
        )
    form, layout, chunk, activation, residual, image, variant = match.groups()
    return Shape(
        FORMATS[form], parse_cuda_variant(variant), layout, int(chunk), activation,
        residual=residual is not None, image=image is not None,
    )  # fmt: skip
