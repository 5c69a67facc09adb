"""Products by Hopper's warpgroups: `wgmma`, which reads both operands from shared memory and runs beside the threads.

A warpgroup multiplies 64 rows by up to 256 columns, 16 columns of the weights at a time. Where an operand lies is told
by a descriptor of 64 bits: its address, two distances, and the order of the pieces of 16 bytes in its rows, which for
rows of 64 and 128 bytes is that of `formats.place` (PTX ISA, "Matrix Descriptor Format" and "Canonical Layouts").

    ROWS      tokens are the rows, weights the columns; values of both that are summed up follow each other.
    COLUMNS   weights are the rows. Tokens are the columns, and follow each other: 64 of them in each row of a strip.

Products are asynchronous: those of a step run while copies of later ones are started. A stage is overwritten two steps
after it was multiplied, when all warpgroups have passed a barrier behind the end of its products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.cuda import fragments as gpu
from pruneaug.kernels.cuda.shapes import ROWS, Shape
from pruneaug.kernels.cuda.variants import CudaVariant

_STRIP = 128  # bytes of a row of a strip
_SWIZZLING = {128: 1, 64: 2}  # bytes of a row -> number of its order
_SETTLE = """__forceinline__ __device__ void {name}(float& sum) {{
  asm volatile("" : "+f"(sum) : : "memory");
}}
"""


def multiply_tiles(
    shape: Shape,
    shared: Any,
    load: Callable[[Any, Any], None],
    count: Any,
    token_part: Any,
    output_part: Any,
    sums: Any,
) -> None:
    """Add up the products of `count` tiles; load(step, slot) starts the copies of a tile to a stage."""
    variant = shape.variant
    ahead = variant.stages - 2
    stage_bytes = variant.shared_bytes // variant.stages
    for step in range(ahead):
        with T.If(count > step), T.Then():
            load(step, step)
        gpu.commit_copies()
    rows, columns = _operands(shape, shared, token_part, output_part)
    _settle(sums, variant.sums)
    with T.serial(count) as step:
        gpu.wait_for_copies(ahead - 1)
        # What this thread has copied becomes visible to the tensor cores, then to those of all warpgroups. And all
        # products of the step before the last are done: its stage is overwritten next.
        T.evaluate(T.ptx["fence.proxy.async.shared::cta"]())
        T.evaluate(T.cuda.cta_sync())
        _issue("fence")  # of the sums, which the products of this step write to
        stage = T.bind(T.Cast("uint64", step % variant.stages * (stage_bytes // 16)))
        _multiply(shape, T.bind(rows + stage), T.bind(columns + stage), sums)
        _issue("commit_group")
        later = T.bind(step + ahead)
        with T.If(later < count), T.Then():
            load(later, later % variant.stages)
        gpu.commit_copies()
        _issue("wait_group", 1)
    _issue("wait_group", 0)
    _settle(sums, variant.sums)


def _operands(shape: Shape, shared: Any, token_part: Any, output_part: Any) -> tuple[Any, Any]:
    """Descriptors of the rows and the columns of a warpgroup's product in the first stage."""
    variant = shape.variant
    x_bytes = variant.tokens * variant.row_bytes
    first = T.bind(T.cuda.cvta_generic_to_shared(shared.ptr_to([0])))
    weight = first + x_bytes + output_part * (variant.part_outputs * variant.row_bytes)
    x = first + token_part * (variant.part_tokens * variant.row_bytes)
    if shape.layout == ROWS:
        return _follow_depth(variant, x), _follow_depth(variant, weight)
    # A strip is as long as 64 rows of tokens are, so that the first of a part's strips begins where its rows would.
    strip = variant.depth * _STRIP
    return _follow_depth(variant, weight), _descriptor(x, strip, 8 * _STRIP, _STRIP)


def _follow_depth(variant: CudaVariant, address: Any) -> Any:
    """Of an operand whose rows are `depth` values that are summed up, in groups of 8."""
    return _descriptor(address, 16, 8 * variant.row_bytes, variant.row_bytes)


def _descriptor(address: Any, leading: int, stride: int, row_bytes: int) -> Any:
    """A matrix descriptor, uint64; `leading` and `stride` are its distances in bytes."""
    distances = T.uint64(leading // 16 << 16 | stride // 16 << 32)
    order = T.shift_left(T.uint64(_SWIZZLING[row_bytes]), T.uint64(62))
    start = T.Cast("uint64", T.shift_right(T.Cast("uint32", address) & T.uint32(0x3FFFF), T.uint32(4)))
    return T.bind(start | distances | order)


def _multiply(shape: Shape, rows: Any, columns: Any, sums: Any) -> None:
    """All products of a warpgroup in a stage."""
    variant, by_token = shape.variant, shape.layout == ROWS
    row_count, column_count = variant.part_tokens, variant.part_outputs
    if not by_token:
        row_count, column_count = column_count, row_count
    name, each = shape.form.wgmma.format(column_count), column_count // 2  # sums of a thread
    for k in range(variant.row_bytes // 32):
        # 16 values of a row are 32 bytes, 16 rows of a strip 16 times 128.
        right = columns + T.uint64((32 if by_token else 16 * _STRIP) * k // 16)
        for i in range(row_count // variant.slab):
            left = rows + T.uint64((i * variant.slab * variant.row_bytes + 32 * k) // 16)
            own = [sums[i * each + j] for j in range(each)]
            T.evaluate(T.ptx[name](*own, left, right, True, 1, 1, 0, 0 if by_token else 1))


def _issue(name: str, *numbers: int) -> None:
    T.evaluate(T.ptx[f"wgmma.{name}.sync.aligned"](*numbers))


def _settle(sums: Any, count: int) -> None:
    """No calculation with the sums is moved across this place: to the compiler it is a change of them.

    It knows nothing of the products that still write to them.
    """
    name = "pruneaug_settle"
    for i in range(count):
        T.evaluate(T.cuda.func_call(name, sums[i], source_code=_SETTLE.format(name=name)))
