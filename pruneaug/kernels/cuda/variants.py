"""Tiles of the CUDA kernel: an explicit, small set, of which measurements choose."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.cuda.formats import PIECE, Format
from pruneaug.kernels.cuda.target import CudaTarget

_NAME = re.compile(r"t([1-9]\d*)n([1-9]\d*)k([1-9]\d*)s([1-9]\d*)w([1-9]\d*)x([1-9]\d*)")
WARP = 32
TORCH, TORCH_2_4 = "torch", "torch-2:4"
"""In place of a variant: PyTorch computes the layer, or does so by its product with a semi-structured weight."""


@dataclass(frozen=True, slots=True)
class CudaVariant:
    """A thread block computes `outputs` outputs of `tokens` tokens, `depth` columns of the weights at a time.

    `stages` tiles of columns are in shared memory: one is multiplied while the others arrive. The block has
    `token_warps` x `output_warps` warps, each with its share of the tile. `depth` counts columns of 2 bytes: tf32 takes
    half as many. A sparse layer's row groups have `outputs` rows.
    """

    tokens: int
    outputs: int
    depth: int
    stages: int
    token_warps: int
    output_warps: int

    def __post_init__(self) -> None:
        warp_tokens, warp_outputs = self.tokens / self.token_warps, self.outputs / self.output_warps
        if warp_tokens % 16 or warp_outputs % 16 or self.depth not in (16, 32, 64, 128) or self.stages < 2:
            raise InputError(
                "a CUDA variant must have 16, 32, 48... tokens and outputs for each warp, a depth of 16, 32, 64 or 128 "
                f"and at least 2 stages, but got {self}; change its tile or its warps"
            )
        if self.outputs & (self.outputs - 1) or self.tokens & (self.tokens - 1):
            raise InputError(f"a CUDA variant's tokens and outputs must be powers of two, but got {self}; change them")

    def __str__(self) -> str:
        return f"t{self.tokens}n{self.outputs}k{self.depth}s{self.stages}w{self.token_warps}x{self.output_warps}"

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.token_warps * self.output_warps

    @property
    def warp_tokens(self) -> int:
        return self.tokens // self.token_warps

    @property
    def warp_outputs(self) -> int:
        return self.outputs // self.output_warps

    def together(self, form: Format) -> int:
        """Outputs that follow each other, of which each of the four lanes that share a row of a fragment holds a run.

        A run is stored at once: at most 16 bytes.
        """
        return min(4 * form.per_piece, self.warp_outputs)

    @property
    def row_bytes(self) -> int:
        """Of a row of a tile: `depth` columns."""
        return 2 * self.depth

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, in bytes."""
        return self.stages * (self.tokens + self.outputs) * self.row_bytes

    @property
    def least_registers(self) -> int:
        """Registers that a thread needs for its sums and the fragments of one step; addresses come on top."""
        sums = self.warp_tokens * self.warp_outputs // WARP
        return sums + self.warp_tokens // 4 + self.warp_outputs // 4

    def columns(self, form: Format) -> int:
        """Columns of the weights in a stage."""
        return self.row_bytes // form.size

    @property
    def pieces(self) -> int:
        """Pieces of 16 bytes in a row of a tile."""
        return self.row_bytes // PIECE

    def check(self, target: CudaTarget) -> None:
        """Raises CompileError if a block needs more than the architecture has."""
        if self.shared_bytes > target.shared_bytes:
            raise CompileError(
                f"a variant must fit into {target.shared_bytes} bytes of shared memory on {target.arch}, but {self} "
                f"takes {self.shared_bytes}; choose fewer stages or a smaller tile"
            )
        if self.least_registers > target.registers(self.threads):
            raise CompileError(
                f"a thread must fit into {target.registers(self.threads)} registers on {target.arch}, but {self} takes "
                f"at least {self.least_registers}; choose more warps or a smaller tile"
            )


def parse_cuda_variant(name: str) -> CudaVariant:
    """The variant of this name. Raises InputError if it is none."""
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(f"a CUDA variant must read like 't128n64k32s4w4x1', but got {name!r}; write it so")
    return CudaVariant(*map(int, match.groups()))


VARIANTS = tuple(
    map(
        parse_cuda_variant,
        (
            "t16n64k64s4w1x2",  # few tokens
            "t32n128k64s4w1x4",
            "t64n16k64s4w4x1",
            "t128n16k64s3w4x1",
            "t64n32k64s4w2x2",
            "t128n32k32s4w4x1",
            "t64n64k32s4w2x2",
            "t128n64k32s4w4x1",
            "t128n64k64s3w4x2",
            "t64n128k32s4w2x2",
            "t128n128k32s4w2x2",
            "t128n128k64s3w4x2",
        ),
    )
)
"""What is worth measuring first. None of them was measured yet."""


def cuda_candidates(tokens: int, block_rows: int) -> list[CudaVariant]:
    """The variants to measure for so many tokens and blocks of so many rows (dense layers: any large number).

    Row groups are no taller than a block, if there are such: taller ones join the columns of several blocks.
    """
    outputs = {variant.outputs for variant in VARIANTS if variant.outputs <= max(block_rows, 16)}
    least = min(variant.tokens for variant in VARIANTS)
    most = max(least, 1 << (tokens - 1).bit_length())  # one tile that is half full, at most
    found = [variant for variant in VARIANTS if variant.outputs in outputs and variant.tokens <= most]
    smallest = [variant for variant in VARIANTS if variant.outputs in outputs]
    return found or sorted(smallest, key=lambda variant: variant.tokens)[:1]
