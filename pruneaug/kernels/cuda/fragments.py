"""Instructions of tensor-core kernels as TIR statements: copies to shared memory, fragments, products.

A function emits statements where the kernel's body calls it, inside the function that is being built. Shared memory is
one array of bytes. Rows of a tile there have a power of two of pieces of 16 bytes, in an order of their own (`place`),
so that eight rows which are read at once lie in different banks. It is the order that Hopper's tensor cores know as
swizzling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.cuda.formats import PIECE, Format, place
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.kernels.cuda.variants import CudaVariant


def each(count: int, thread: Any, threads: int, body: Callable[[int, Any], None]) -> None:
    """body(n, i) for i < count, dealt out to the threads in turn; i is the thread's n-th."""
    for number, first in enumerate(range(0, count, threads)):
        index = thread + first
        if first + threads <= count:
            body(number, index)
        else:
            with T.If(index < count), T.Then():
                body(number, index)


def rows_of_thread(variant: CudaVariant) -> int:
    """Rows of a tile of tokens of which a thread copies a piece."""
    return max(1, variant.tokens * variant.pieces // variant.threads)


def each_row(variant: CudaVariant, thread: Any, body: Callable[[int, Any], None]) -> None:
    """body(n, row) for the rows of a tile of tokens of which a thread copies piece `thread % variant.pieces`."""
    apart = variant.threads // variant.pieces
    for number in range(rows_of_thread(variant)):
        row = thread // variant.pieces + number * apart
        if apart <= variant.tokens:
            body(number, row)
        else:
            with T.If(row < variant.tokens), T.Then():
                body(number, row)


def in_strips(shape: Shape, column: Any, piece: Any) -> Any:
    """Where a piece of tokens of a column lies in a tile [depth, tokens], in bytes.

    Such a tile is cut into strips of up to 64 tokens, which lie one after the other: rows of 128 bytes, at most.
    """
    strip = min(64, shape.variant.tokens) // shape.form.per_piece  # pieces
    row = piece // strip * shape.variant.columns(shape.form) + column
    return (row * strip + place(column, piece % strip, strip)) * PIECE


def copy_async(shared: Any, to: Any, source: Any, size: Any, width: int = PIECE) -> None:
    """Start to copy the first `size` of `width` bytes, 16 or 4, from global memory; the others become zero."""
    size = T.Cast("uint32", size) if not isinstance(size, int) else T.uint32(size)
    by = "cg" if width == PIECE else "ca"  # only whole pieces may pass the first-level cache by
    T.evaluate(T.ptx[f"cp.async.{by}.shared.global"](shared.ptr_to([to]), source, width, size))


def commit_copies() -> None:
    """All copies that this thread has started since the last time are a group."""
    T.evaluate(T.ptx["cp.async.commit_group"]())


def wait_for_copies(groups: int) -> None:
    """Until all but the last `groups` groups of copies that this thread started are done."""
    T.evaluate(T.ptx["cp.async.wait_group"](groups))


def registers(count: int, dtype: str = "uint32") -> Any:
    """An array of one thread whose indices are numbers, so that it lies in registers."""
    return T.alloc_buffer((count,), dtype, scope="local")


def opaque(value: Any) -> Any:
    """The int32 value, in a register that TVM does not look into.

    What `T.bind` binds is simplified again in every index that it is part of, which can take seconds of compiling.
    """
    cell = registers(1, "int32")
    T.buffer_store(cell, value, [0])
    return cell[0]


def load_fragments(shared: Any, at: Any, words: Any, first: int, transposed: bool = False) -> None:
    """words[first : first + 4] from four matrices of 8 rows of 16 bytes; `at` is this lane's row of one of them."""
    name = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if transposed else ''}.shared.b16"
    T.evaluate(T.ptx[name](*(words[first + i] for i in range(4)), shared.ptr_to([at])))


def round_to_tf32(words: Any, count: int) -> None:
    """float32 values of a fragment rounded as tensor cores want them: they would cut off the last bits."""
    for i in range(count):
        T.evaluate(T.ptx["cvt.rna.tf32.f32"](words[i], T.reinterpret("float32", words[i])))


def split_to_tf32(words: Any, high: Any, count: int) -> None:
    """float32 values of a fragment as sums of two: `high`, rounded to tf32, and in `words` the rest, rounded alike.

    With 11 bits in each, the product of two values is that of float32 to some 2**-21 if only that of the two rests is
    left out. An infinite value has no rest that is a number: what it is multiplied with becomes NaN.
    """
    for i in range(count):
        T.evaluate(T.ptx["cvt.rna.tf32.f32"](high[i], T.reinterpret("float32", words[i])))
        rest = T.reinterpret("float32", words[i]) - T.reinterpret("float32", high[i])
        T.buffer_store(words, T.reinterpret("uint32", rest), [i])
    round_to_tf32(words, count)


def multiply(form: Format, sums: Any, at: int, left: Any, first: int, right: Any, second: int) -> None:
    """sums[at : at + 4] += left[first : first + 4] * right[second : second + 2], tiles of 16x8 numbers."""
    four = [sums[at + i] for i in range(4)]
    operands = [left[first + i] for i in range(4)] + [right[second + i] for i in range(2)]
    T.evaluate(T.ptx[form.mma](*four, *operands, *four))


def load_words(words: Any, source: Any, count: int, first: int = 0) -> None:
    """words[first : first + count] (uint32 or float32) from global memory that no one writes meanwhile."""
    kind = "f32" if str(words.dtype) == "float32" else "b32"
    shape = f".v{count}" if count > 1 else ""
    T.evaluate(T.ptx[f"ld.global.nc{shape}.{kind}"](*(words[first + i] for i in range(count)), source))


def store_words(to: Any, words: Any, count: int, first: int = 0) -> None:
    """words[first : first + count] (uint32) to global memory."""
    shape = f".v{count}" if count > 1 else ""
    T.evaluate(T.ptx[f"st.global{shape}.b32"](to, *(words[first + i] for i in range(count))))


def unpack(form: Format, words: Any, values: Any, count: int) -> None:
    """values[: count] float32 from words that hold them in the format."""
    for i in range(count):
        if form.size == 4:
            T.buffer_store(values, T.reinterpret("float32", words[i]), [i])
            continue
        word = words[i // 2]
        if form.name == "float16":
            half = T.Cast("uint16", T.shift_right(word, T.uint32(16)) if i % 2 else word & T.uint32(0xFFFF))
            T.evaluate(T.ptx["cvt.f32.f16"](values[i], half))
        else:
            bits = word & T.uint32(0xFFFF0000) if i % 2 else T.shift_left(word, T.uint32(16))
            T.buffer_store(values, T.reinterpret("float32", bits), [i])


def pack(form: Format, values: Any, words: Any, count: int) -> None:
    """words that hold values[: count] float32, rounded to the format."""
    if form.size == 4:
        for i in range(count):
            T.buffer_store(words, T.reinterpret("uint32", values[i]), [i])
    else:
        for i in range(count // 2):
            T.evaluate(T.ptx[form.pack](words[i], values[2 * i + 1], values[2 * i]))
