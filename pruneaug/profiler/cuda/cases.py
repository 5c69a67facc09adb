"""What is measured on a GPU: groups of subjects that compute one layer, and take turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.kernels.cuda.products import chunk_for
from pruneaug.kernels.cuda.shapes import COLUMNS, ROWS, Shape, parse_shape
from pruneaug.kernels.cuda.variants import cuda_candidates
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import LinearOp, parse_op
from pruneaug.sparsity.patterns import parse_pattern

TORCH, TORCH_2_4 = "torch", "torch-2:4"
LIBRARIES = (TORCH, TORCH_2_4)
"""`torch.nn.functional.linear` with a dense weight (cuBLAS), and with a semi-structured one, of which half is zero."""
DENSE = "dense"
ANY_COLUMNS = 1 << 30  # a block of so many columns is a dense layer


@dataclass(frozen=True, slots=True)
class Group:
    """One layer under one mask; whoever computes it is measured in turns with the others."""

    op: LinearOp
    dtype: str  # a name of FORMATS
    pattern: str  # "dense" or "block:64x64"
    sparsity: float

    @property
    def block_cols(self) -> int:
        block = parse_pattern(self.pattern)
        return ANY_COLUMNS if block is None else block.cols

    def to_json(self) -> dict[str, Any]:
        return {"op": self.op.key, "dtype": self.dtype, "pattern": self.pattern, "sparsity": self.sparsity}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Group:
        op = parse_op(value["op"])
        assert isinstance(op, LinearOp)
        return cls(op, str(value["dtype"]), str(value["pattern"]), float(value["sparsity"]))


@dataclass(frozen=True, slots=True)
class Subject:
    """Who computes a group's layer: a library, and of ours (RUNTIME_LIBRARY) the key of the kernel."""

    library: str
    variant: str = ""

    def __str__(self) -> str:
        return self.variant or self.library


def groups_of(
    ops: Iterable[LinearOp], dtypes: Sequence[str], patterns: Sequence[str], sparsities: Sequence[float]
) -> tuple[Group, ...]:
    """Every op in every dtype, first dense, then each pattern that fits it at each sparsity."""
    found: list[Group] = []
    for op in ops:
        for dtype in dtypes:
            found.append(Group(op, dtype, DENSE, 0.0))
            for pattern in patterns:
                block = parse_pattern(pattern)
                if block is not None and block.fits(op.matrix_shape):
                    found += [Group(op, dtype, str(block), sparsity) for sparsity in sparsities]
    return tuple(dict.fromkeys(found))


def subjects_of(group: Group, libraries: Sequence[str]) -> tuple[Subject, ...]:
    """Our variants, and the dense library with each group; the semi-structured one with the dense groups it can do."""
    found = [Subject(RUNTIME_LIBRARY, shape.key) for shape in shapes_of(group)]
    if TORCH in libraries:
        found.append(Subject(TORCH))
    if TORCH_2_4 in libraries and group.pattern == DENSE and FORMATS[group.dtype].size == 2:
        found.append(Subject(TORCH_2_4))
    return tuple(found)


def shapes_of(group: Group) -> tuple[Shape, ...]:
    """Our kernels that are worth measuring: each tile in each layout that there is in this dtype."""
    form, block = FORMATS[group.dtype], parse_pattern(group.pattern)
    variants = cuda_candidates(group.op.tokens, group.op.out_features if block is None else block.rows)
    layouts = (ROWS, COLUMNS) if form.size == 2 else (ROWS,)
    return tuple(
        Shape(form, variant, layout, chunk_for(group.block_cols, variant, form))
        for layout in layouts
        for variant in variants
    )


def layout_of(subject: Subject) -> str:
    """How a subject's inputs and outputs lie: see `pruneaug.kernels.cuda.shapes`."""
    return parse_shape(subject.variant).layout if subject.variant else ROWS
