"""Pieces of TIR for words: their dot products, and vectors of sums rounded to them.

TVM turns bfloat16 into other types before it makes code, and does not know these instructions. So they come as
functions of LLVM's language, which the kernel's code takes in. `native=False` says the same in plain TIR, for CPUs that
lack them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.lowp.formats import BFLOAT16, Format

UINT8_BASE = 2.0**23

# LLVM's older types of these intrinsics, words: every version reads them.
_LLVM = """
declare <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float>, <{n} x i32>, <{n} x i32>)
declare <{twice} x i16> @llvm.x86.avx512bf16.cvtne2ps2bf16.{bits}(<{n} x float>, <{n} x float>)
declare <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32>, <{n} x i32>, <{n} x i32>)

define <{n} x float> @dot_bfloat16_{n}(<{n} x float> %sum, <{n} x i32> %x, <{n} x i32> %w) {{
  %y = call <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float> %sum, <{n} x i32> %x, <{n} x i32> %w)
  ret <{n} x float> %y
}}
define <{n} x i32> @dot_int8_{n}(<{n} x i32> %sum, <{n} x i32> %x, <{n} x i32> %w) {{
  %y = call <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32> %sum, <{n} x i32> %x, <{n} x i32> %w)
  ret <{n} x i32> %y
}}
define <{n} x i32> @round_bfloat16_{n}(<{n} x float> %even, <{n} x float> %odd) {{
  %h = call <{twice} x i16> @llvm.x86.avx512bf16.cvtne2ps2bf16.{bits}(<{n} x float> %odd, <{n} x float> %even)
  %s = shufflevector <{twice} x i16> %h, <{twice} x i16> %h, <{twice} x i32> <{zipped}>
  %y = bitcast <{twice} x i16> %s to <{n} x i32>
  ret <{n} x i32> %y
}}
"""


def instructions(lanes: int) -> Any:
    """The frame in which a kernel's body may use the CPU's instructions for words."""
    zipped = ", ".join(f"i32 {i}, i32 {i + lanes}" for i in range(lanes))
    code = _LLVM.format(n=lanes, twice=2 * lanes, bits=32 * lanes, zipped=zipped)
    return T.attr(0, "pragma_import_llvm", code)


def dot(form: Format, sums: Any, w: Any, x: Any, lanes: int, native: bool) -> Any:
    """sums + the products of the values of the words x and w, lane by lane; int8: x is unsigned, w signed."""
    if native:
        return T.call_pure_extern(f"{form.accumulator}x{lanes}", f"dot_{form.name}_{lanes}", sums, x, w)
    if form is BFLOAT16:
        for part in range(2):
            sums = sums + _bfloat16(x, part, lanes) * _bfloat16(w, part, lanes)
        return sums
    for part in range(4):
        unsigned = (x >> _int(8 * part, lanes)) & _int(255, lanes)
        sums = sums + unsigned * ((w << _int(24 - 8 * part, lanes)) >> _int(24, lanes))
    return sums


def round_bfloat16(rows: Sequence[Any], lanes: int, native: bool) -> Any:
    """Two float32 vectors -> words of bfloat16, rounded to the nearest, ties to even."""
    if native:
        return T.call_pure_extern(f"int32x{lanes}", f"round_bfloat16_{lanes}", *rows)
    halves = []
    for value in rows:
        bits = T.bind(T.reinterpret(f"int32x{lanes}", value))
        odd = (bits >> _int(16, lanes)) & _int(1, lanes)
        rounded = (bits + (odd + _int(0x7FFF, lanes))) >> _int(16, lanes)
        # Rounding could carry NaN into the sign.
        halves.append(T.bind(T.Select(value == value, rounded, _int(0x7FC0, lanes))))
    return (halves[0] & _int(0xFFFF, lanes)) | (halves[1] << _int(16, lanes))


def uint8_words(rows: Sequence[Any], lanes: int) -> Any:
    """Four float32 vectors of 2^23 + 0..255 -> words of uint8.

    To add 2^23 rounds a value to the nearest integer, ties to even, and leaves it in the last bits of the sum.
    """
    # The first bits of 2^23 leave the word by the shift; those of the first row, which is not shifted, are subtracted.
    word: Any = _int(-0x4B000000, lanes)
    for part, value in enumerate(rows):
        bits = T.reinterpret(f"int32x{lanes}", value)
        word = word + (bits << _int(8 * part, lanes) if part else bits)
    return word


def _bfloat16(word: Any, part: int, lanes: int) -> Any:
    """Value `part` of words, as float32."""
    bits = word << _int(16, lanes) if part == 0 else (word >> _int(16, lanes)) << _int(16, lanes)
    return T.reinterpret(f"float32x{lanes}", bits)


def _int(value: int, lanes: int) -> Any:
    return T.broadcast(T.int32(value), lanes)
