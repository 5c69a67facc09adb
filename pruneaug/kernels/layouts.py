"""Layouts: which planes the images of a network lie in, so that convolutions read each other's results in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pruneaug.kernels.planes import Planes, image_planes
from pruneaug.network.ops import Conv2dOp

Phase = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Taps:
    """Where a convolution reads.

    Kernel position (ky, kx) of output (y, x) is input position ((y + shift_y) * stride_y + phase_y, ... x alike), which
    is position (y + shift_y, x + shift_x) of the phase image: every stride-th row and column of the input.
    """

    phases: tuple[Phase, ...]  # those that some kernel position reads
    rows: tuple[tuple[int, int], ...]  # (phase_y, shift_y) of each ky
    cols: tuple[tuple[int, int], ...]  # (phase_x, shift_x) of each kx

    @property
    def least_shift(self) -> tuple[int, int]:
        """The smallest (shift_y, shift_x), 0 if none is negative."""
        return min(0, *(shift for _, shift in self.rows)), min(0, *(shift for _, shift in self.cols))

    @property
    def largest_shift(self) -> tuple[int, int]:
        """The largest (shift_y, shift_x), 0 if none is positive."""
        return max(0, *(shift for _, shift in self.rows)), max(0, *(shift for _, shift in self.cols))


def taps(op: Conv2dOp) -> Taps:
    """Where `op` reads."""
    (top, left, _, _), (stride_y, stride_x) = op.padding, op.stride
    rows = tuple(
        ((k * op.dilation[0] - top) % stride_y, (k * op.dilation[0] - top) // stride_y) for k in range(op.kernel[0])
    )
    cols = tuple(
        ((k * op.dilation[1] - left) % stride_x, (k * op.dilation[1] - left) // stride_x) for k in range(op.kernel[1])
    )
    phases = tuple((y, x) for y in sorted({y for y, _ in rows}) for x in sorted({x for x, _ in cols}))
    return Taps(phases, rows, cols)


class Layouts:
    """The planes of all images of a network, by their size.

    Images of one size lie alike, so that layers, sums and activations between them need no copies. Rows are as far
    apart as the widest need among the network's convolutions, and at least one column of zeros lies between them: what
    a 3x3 convolution needs, and what makes a convolution alone take as long as in its network.
    """

    def __init__(self, ops: Iterable[Conv2dOp], lanes: int) -> None:
        self.lanes = lanes
        ops = list(dict.fromkeys(ops))
        self._pitch: dict[tuple[int, int], int] = {}
        for op in ops:
            for size, pitch in (
                (op.out_size, _least_pitch(op)),
                ((op.height, op.width), op.width + max(_overhang(op))),
            ):
                self._pitch[size] = max(self._pitch_of(size), pitch)
        self._around: dict[tuple[int, int], tuple[int, int]] = {}
        for op in ops:
            size = (op.height, op.width)
            reaches = [_input_reach(op, self._pitch_of(size))]
            if self.reads_in_place(op):
                reaches.append(_reach(op, self._pitch_of(size), lanes))
            for before, after in reaches:
                most = self._around_of(size)
                self._around[size] = max(before, most[0]), max(after, most[1])

    def image(self, images: int, channels: int, rows: int, cols: int) -> Planes:
        """The planes of a tensor [images, channels, rows, cols]."""
        before, after = self._around_of((rows, cols))
        pitch = self._pitch_of((rows, cols))
        return image_planes(images, channels, rows, cols, self.lanes, pitch=pitch, before=before, after=after)

    def reads_in_place(self, op: Conv2dOp) -> bool:
        """Whether positions as lanes read the input where it lies; otherwise they need a copy in `phase_images`.

        Rows as lanes always read it there.
        """
        return op.stride == (1, 1) and self._pitch_of((op.height, op.width)) == self._pitch_of(op.out_size)

    def input(self, op: Conv2dOp) -> Planes:
        """The planes of the input of `op` as it lies in the network."""
        return self.image(op.batch, op.in_channels, op.height, op.width)

    def output(self, op: Conv2dOp) -> Planes:
        """The planes of the output of `op`."""
        return self.image(op.batch, op.out_channels, *op.out_size)

    def phase_images(self, op: Conv2dOp) -> Planes:
        """The planes of the copy that `op` reads: channel p * in_channels + c is phase p of channel c."""
        pitch = self._pitch_of(op.out_size)
        before, after = _reach(op, pitch, self.lanes)
        rows, cols = _phase_size(op)
        channels = len(taps(op).phases) * op.in_channels
        return image_planes(op.batch, channels, rows, cols, self.lanes, pitch=pitch, before=before, after=after)

    def _pitch_of(self, size: tuple[int, int]) -> int:
        default = size[1] + 1 if size != (1, 1) else 1
        return max(default, self._pitch.get(size, 0))

    def _around_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Border before and after an image: at least what a 3x3 convolution reads."""
        default = self._pitch_of(size) + 1 if size != (1, 1) else 0
        before, after = self._around.get(size, (0, 0))
        return max(default, before), max(default, after)


def channels_of(planes: Planes, channels: int) -> Planes:
    """The same planes for another number of channels."""
    return replace(planes, channels=channels)


def _phase_size(op: Conv2dOp) -> tuple[int, int]:
    """(rows, cols) of the largest phase image."""
    return -(-op.height // op.stride[0]), -(-op.width // op.stride[1])


def _least_pitch(op: Conv2dOp) -> int:
    """How far apart rows must be so that no tap of a row's output reaches values of another row by going sideways."""
    shifts = taps(op)
    (_, left), (_, right) = shifts.least_shift, shifts.largest_shift
    return max(_phase_size(op)[1] - left, op.out_size[1] + right)


def _overhang(op: Conv2dOp) -> tuple[int, int]:
    """Columns of zeros that `op` reads left and right of a row of its input, not negative."""
    _, left, _, _ = op.padding
    last = (op.out_size[1] - 1) * op.stride[1] + (op.kernel[1] - 1) * op.dilation[1] - left
    return left, max(0, last - (op.width - 1))


def _input_reach(op: Conv2dOp, pitch: int) -> tuple[int, int]:
    """Values read before the first and behind the last position of the input itself."""
    top, _, _, _ = op.padding
    left, right = _overhang(op)
    last = (op.out_size[0] - 1) * op.stride[0] + (op.kernel[0] - 1) * op.dilation[0] - top
    return top * pitch + left, max(0, last - (op.height - 1)) * pitch + right


def _reach(op: Conv2dOp, pitch: int, lanes: int) -> tuple[int, int]:
    """Values read before the first position of the input (phase) image and behind the last vector of its positions."""
    shifts = taps(op)
    (up, left), (down, right) = shifts.least_shift, shifts.largest_shift
    rows, cols = _phase_size(op)
    out_rows, out_cols = op.out_size
    computed = -(-((out_rows - 1) * pitch + out_cols) // lanes) * lanes
    held = -(-((rows - 1) * pitch + cols) // lanes) * lanes
    return -(up * pitch + left), max(0, computed + down * pitch + right - held)
