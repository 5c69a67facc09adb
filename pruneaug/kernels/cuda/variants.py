"""Tiles of the CUDA kernel: an explicit, small set, of which measurements choose."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.cuda.formats import PIECE, Format
from pruneaug.kernels.cuda.target import CudaTarget

_NAME = re.compile(r"t([1-9]\d*)n([1-9]\d*)k([1-9]\d*)s([1-9]\d*)([wg])([1-9]\d*)x([1-9]\d*)")
WARP, WARPGROUP = 32, 128  # threads
TORCH, TORCH_2_4 = "torch", "torch-2:4"
"""In place of a variant: PyTorch computes the layer, or does so by its product with a semi-structured weight."""


@dataclass(frozen=True, slots=True)
class CudaVariant:
    """A thread block computes `outputs` outputs of `tokens` tokens, `depth` columns of the weights at a time.

    `stages` tiles of columns are in shared memory: one is multiplied while the others arrive. The tile is cut into
    `token_parts` x `output_parts` equal parts, each of them that of a warp, or with `wgmma` that of a warpgroup, four
    warps that multiply together by Hopper's own instructions. `depth` counts columns of 2 bytes: tf32 takes half as
    many. A sparse layer's row groups have `outputs` rows.
    """

    tokens: int
    outputs: int
    depth: int
    stages: int
    token_parts: int
    output_parts: int
    wgmma: bool = False

    def __post_init__(self) -> None:
        part = self.tokens / self.token_parts, self.outputs / self.output_parts
        if self.wgmma:
            if any(size % 64 or size > 256 for size in part) or self.depth not in (32, 64) or self.stages < 3:
                raise InputError(
                    "a CUDA variant of warpgroups must have 64, 128 or 256 tokens and outputs for each of them, a "
                    f"depth of 32 or 64 and at least 3 stages, but got {self}; change its tile or its warpgroups"
                )
        elif any(size % 16 for size in part) or self.depth not in (16, 32, 64, 128) or self.stages < 2:
            raise InputError(
                "a CUDA variant must have 16, 32, 48... tokens and outputs for each warp, a depth of 16, 32, 64 or 128 "
                f"and at least 2 stages, but got {self}; change its tile or its warps"
            )
        if self.outputs & (self.outputs - 1) or self.tokens & (self.tokens - 1):
            raise InputError(f"a CUDA variant's tokens and outputs must be powers of two, but got {self}; change them")

    def __str__(self) -> str:
        parts = f"{'g' if self.wgmma else 'w'}{self.token_parts}x{self.output_parts}"
        return f"t{self.tokens}n{self.outputs}k{self.depth}s{self.stages}{parts}"

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.part_threads * self.token_parts * self.output_parts

    @property
    def part_threads(self) -> int:
        """Threads that compute a part of the tile together."""
        return WARPGROUP if self.wgmma else WARP

    @property
    def part_tokens(self) -> int:
        return self.tokens // self.token_parts

    @property
    def part_outputs(self) -> int:
        return self.outputs // self.output_parts

    @property
    def slab(self) -> int:
        """Rows of a product that an instruction computes: 16 by a warp, 64 by a warpgroup, 16 by each of its warps."""
        return self.part_threads // 2

    def together(self, form: Format) -> int:
        """Outputs that follow each other, of which each of the four lanes that share a row of a fragment holds a run.

        A run is stored at once: at most 16 bytes.
        """
        return min(4 * form.per_piece, self.part_outputs)

    @property
    def row_bytes(self) -> int:
        """Of a row of a tile: `depth` columns."""
        return 2 * self.depth

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, in bytes."""
        return self.stages * (self.tokens + self.outputs) * self.row_bytes

    @property
    def sums(self) -> int:
        """Sums of a thread."""
        return self.part_tokens * self.part_outputs // self.part_threads

    @property
    def least_registers(self) -> int:
        """Registers that a thread needs for its sums and the fragments of one step; addresses come on top."""
        return self.sums + (0 if self.wgmma else self.part_tokens // 4 + self.part_outputs // 4)

    def columns(self, form: Format) -> int:
        """Columns of the weights in a stage."""
        return self.row_bytes // form.size

    @property
    def pieces(self) -> int:
        """Pieces of 16 bytes in a row of a tile."""
        return self.row_bytes // PIECE

    def check(self, target: CudaTarget, form: Format) -> None:
        """Raises CompileError if the architecture or the format lacks what a block needs."""
        if self.wgmma and not (target.has_wgmma and form.wgmma):
            raise CompileError(
                f"a variant of warpgroups needs sm_90a and float16 or bfloat16, but {self} got {target.arch} and "
                f"{form.name}; choose one of warps, such as t128n64k32s4w4x1"
            )
        if self.shared_bytes > target.shared_bytes:
            raise CompileError(
                f"a variant must fit into {target.shared_bytes} bytes of shared memory on {target.arch}, but {self} "
                f"takes {self.shared_bytes}; choose fewer stages or a smaller tile"
            )
        if self.least_registers > target.registers(self.threads):
            raise CompileError(
                f"a thread must fit into {target.registers(self.threads)} registers on {target.arch}, but {self} takes "
                f"at least {self.least_registers}; choose more {'warpgroups' if self.wgmma else 'warps'} or a smaller "
                "tile"
            )

    def fits(self, target: CudaTarget, form: Format) -> bool:
        """Whether `check` lets it pass."""
        try:
            self.check(target, form)
        except CompileError:
            return False
        return True


def parse_cuda_variant(name: str) -> CudaVariant:
    """The variant of this name. Raises InputError if it is none."""
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(
            f"a CUDA variant must read like 't128n64k32s4w4x1' or 't128n256k64s4g2x1', but got {name!r}; write it so"
        )
    tokens, outputs, depth, stages, token_parts, output_parts = (int(match[i]) for i in (1, 2, 3, 4, 6, 7))
    return CudaVariant(tokens, outputs, depth, stages, token_parts, output_parts, wgmma=match[5] == "g")


def parse_plan(text: str) -> tuple[int | None, CudaVariant]:
    """Chunk and variant of a plan, such as "c16-t64n32k32s3w2x1"; None where it names the variant alone.

    Raises InputError if it is none.
    """
    chunk, _, name = text.rpartition("-")
    if chunk and not re.fullmatch(r"c[1-9]\d*", chunk, re.ASCII):
        raise InputError(
            f"a plan of a layer on a GPU must read like 'c16-t128n64k32s4w4x1', but got {text!r}; write it so"
        )
    return int(chunk[1:]) if chunk else None, parse_cuda_variant(name)


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

WGMMA_VARIANTS = tuple(
    map(
        parse_cuda_variant,
        (
            "t128n256k64s4g2x1",  # dense layers
            "t256n128k64s4g2x1",
            "t256n128k64s4g1x2",  # layout "columns"
            "t128n128k64s3g2x1",  # two thread blocks to a multiprocessor, as the next and the last but one
            "t256n64k32s4g2x1",
            "t256n64k64s4g2x1",
            "t128n64k64s4g2x1",
            "t64n64k64s4g1x1",  # few tokens
        ),
    )
)
"""What is worth measuring first on sm_90a, in float16 and bfloat16. None of them was measured yet."""


def cuda_candidates(tokens: int, block_rows: int, target: CudaTarget, form: Format) -> list[CudaVariant]:
    """The variants to measure for so many tokens and blocks of so many rows (dense layers: any large number).

    Row groups are no taller than a block, if there are such: taller ones join the columns of several blocks.
    """
    variants = [variant for variant in (*WGMMA_VARIANTS, *VARIANTS) if variant.fits(target, form)]
    flat = [variant for variant in variants if variant.outputs <= max(block_rows, 16)]
    least = min(variant.tokens for variant in variants)
    most = max(least, 1 << (tokens - 1).bit_length())  # one tile that is half full, at most
    return [variant for variant in flat if variant.tokens <= most] or sorted(flat, key=lambda v: v.tokens)[:1]
