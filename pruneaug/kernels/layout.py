# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# The TVMScript decorator is untyped, and it reads the annotations of what it decorates as its own language.
"""Kernels that bring activations into the layout of `spmm` and back."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def pad_phases(step: int) -> Any:
    """TIR: a strided NCHW image -> flat images inside a border of zeros, one for each used phase of the stride.

    packed[b, f, c, y, x] = image[b, c, y * step_y + phase_y[f] - top, x * step + phase_x[f] - left] where that lies in
    the image. The rest is the border: it is never written, so the caller makes `packed` with zeros, once. `step` is
    the stride along a row; as a constant it lets the copy be vectorised.

    Arguments: image float32 [n] (flat memory); phase int32 [6 * phases], for each phase the first row and the number
    of rows in the image, the first column and the number of columns, and the image's row and column that the first one
    reads; packed float32 [at least batch * phases * channels * rows * cols]; then int32 batch, channels, the image's
    strides of batch, channel and row (that of a column is 1), rows and cols of a phase image, step_y, bands.

    The work is divided into `bands` of rows, as `spmm` divides it into tiles of positions: so the rows that a thread
    copies are mostly those that it reads next, and do not travel between the caches of two cores.
    """

    @T.prim_func(s_tir=True)
    def kernel(
        image: T.handle,
        phase: T.handle,
        packed: T.handle,
        batch: T.int32,
        channels: T.int32,
        batch_stride: T.int32,
        channel_stride: T.int32,
        row_stride: T.int32,
        rows: T.int32,
        cols: T.int32,
        step_y: T.int32,
        bands: T.int32,
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        image_len = T.int32()
        phases_6 = T.int32()
        packed_len = T.int32()
        Image = T.match_buffer(image, (image_len,), "float32")
        Phase = T.match_buffer(phase, (phases_6,), "int32")
        Packed = T.match_buffer(packed, (packed_len,), "float32")
        for task in T.parallel(batch * bands):
            for plane in T.serial(phases_6 // 6 * channels):
                with T.sblock("plane"):
                    T.reads()
                    T.writes()
                    f = plane // channels * 6
                    first = Phase[f + 1] * (task % bands) // bands
                    out = (
                        (task // bands * (phases_6 // 6) * channels + plane) * rows + Phase[f] + first
                    ) * cols + Phase[f + 2]
                    jump = step_y * row_stride
                    source = (
                        task // bands * batch_stride
                        + plane % channels * channel_stride
                        + Phase[f + 4] * row_stride
                        + Phase[f + 5]
                        + first * jump
                    )
                    for y in T.serial(Phase[f + 1] * (task % bands + 1) // bands - first):
                        for x in T.serial(Phase[f + 3]):
                            Packed[out + y * cols + x] = Image[source + y * jump + x * step]

    return kernel


def transpose(square: int) -> Any:
    """TIR: out[j * out_stride + i] = x[i * x_stride + j] for i < rows, j < cols, in squares that stay in the cache.

    Arguments: x float32 [n]; out float32 [m]; then int32 rows, cols, x_stride, out_stride.
    """

    @T.prim_func(s_tir=True)
    def kernel(x: T.handle, out: T.handle, rows: T.int32, cols: T.int32, x_stride: T.int32, out_stride: T.int32):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        x_len = T.int32()
        out_len = T.int32()
        X = T.match_buffer(x, (x_len,), "float32")
        Out = T.match_buffer(out, (out_len,), "float32")
        for task in T.parallel(T.ceildiv(rows, square) * T.ceildiv(cols, square)):
            for j in T.serial(T.min(square, cols - task // T.ceildiv(rows, square) * square)):
                for i in T.serial(T.min(square, rows - task % T.ceildiv(rows, square) * square)):
                    with T.sblock("value"):
                        T.reads()
                        T.writes()
                        Out[
                            (task // T.ceildiv(rows, square) * square + j) * out_stride
                            + task % T.ceildiv(rows, square) * square
                            + i
                        ] = X[
                            (task % T.ceildiv(rows, square) * square + i) * x_stride
                            + task // T.ceildiv(rows, square) * square
                            + j
                        ]

    return kernel
