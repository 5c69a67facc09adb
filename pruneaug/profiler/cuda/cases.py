"""What is measured on a GPU: groups of subjects that compute one layer, and take turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneaug.kernels.cuda.convolutions import as_linear, channel_chunk
from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.kernels.cuda.products import ANY_COLUMNS, chunk_for
from pruneaug.kernels.cuda.shapes import COLUMNS, ROWS, Shape, parse_shape
from pruneaug.kernels.cuda.target import OLDEST_ARCH, CudaTarget
from pruneaug.kernels.cuda.variants import TORCH, TORCH_2_4, CudaVariant, cuda_candidates
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Conv2dOp, LinearOp, Op, can_have, parse_op
from pruneaug.sparsity.patterns import NM, TWO_OF_FOUR, parse_pattern

LIBRARIES = (TORCH, TORCH_2_4)
"""PyTorch's layer with a dense weight (cuBLAS, cuDNN), and a linear one whose weight is semi-structured, half zeros."""
BOTH_LAYOUTS = (ROWS, COLUMNS)
NETWORK_LAYOUTS = (ROWS,)
"""In which layers of a network get and give their values: tokens x features, and images with their channels last."""
DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Group:
    """One layer under one mask; whoever computes it is measured in turns with the others."""

    op: Op
    dtype: str  # a name of FORMATS
    pattern: str  # "dense", "block:64x64" or "nm:2:4"
    sparsity: float

    @property
    def block_cols(self) -> int:
        block = parse_pattern(self.pattern)
        return ANY_COLUMNS if block is None else block.cols

    def to_json(self) -> dict[str, Any]:
        return {"op": self.op.key, "dtype": self.dtype, "pattern": self.pattern, "sparsity": self.sparsity}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Group:
        return cls(parse_op(value["op"]), str(value["dtype"]), str(value["pattern"]), float(value["sparsity"]))


@dataclass(frozen=True, slots=True)
class Subject:
    """Who computes a group's layer: a library, and of ours (RUNTIME_LIBRARY) the key of the kernel."""

    library: str
    variant: str = ""

    def __str__(self) -> str:
        return self.variant or self.library


def groups_of(
    ops: Iterable[Op], dtypes: Sequence[str], patterns: Sequence[str], sparsities: Sequence[float]
) -> tuple[Group, ...]:
    """Every op in every dtype, first dense, then each pattern that it can have at each sparsity of the pattern."""
    found: list[Group] = []
    for op in ops:
        for dtype in dtypes:
            found.append(Group(op, dtype, DENSE, 0.0))
            for pattern in patterns:
                block = parse_pattern(pattern)
                if block is not None and can_have(op, block):
                    found += [Group(op, dtype, str(block), sparsity) for sparsity in block.sparsities(sparsities)]
    return tuple(dict.fromkeys(found))


def subjects_of(
    group: Group, libraries: Sequence[str], layouts: Sequence[str] = BOTH_LAYOUTS, arch: str = OLDEST_ARCH
) -> tuple[Subject, ...]:
    """Our variants for an architecture, and the dense library with each group; the semi-structured one with the dense
    and the 2:4 groups that it can do.
    """
    found = [Subject(RUNTIME_LIBRARY, shape.key) for shape in shapes_of(group, layouts, arch)]
    if TORCH in libraries:
        found.append(Subject(TORCH))
    halves = group.pattern in (DENSE, str(TWO_OF_FOUR))
    if TORCH_2_4 in libraries and halves and FORMATS[group.dtype].size == 2 and isinstance(group.op, LinearOp):
        found.append(Subject(TORCH_2_4))
    return tuple(found)


def has_kernels(op: Op) -> bool:
    """Whether our kernels compute it: all but convolutions of several groups."""
    return isinstance(op, LinearOp) or op.groups == 1


def shapes_of(group: Group, layouts: Sequence[str] = BOTH_LAYOUTS, arch: str = OLDEST_ARCH) -> tuple[Shape, ...]:
    """Our kernels that are worth measuring on an architecture: each tile in each of the layouts that there is for this
    layer and dtype. None for N:M, which is PyTorch's.
    """
    op, form, block = group.op, FORMATS[group.dtype], parse_pattern(group.pattern)
    if not has_kernels(op) or isinstance(block, NM):
        return ()
    if isinstance(op, Conv2dOp):
        layouts = (ROWS,)
    rows = op.matrix_shape[0] if block is None else block.rows

    def shape(variant: CudaVariant, layout: str) -> Shape:
        if isinstance(op, Conv2dOp) and as_linear(op) is None:
            return Shape(form, variant, layout, channel_chunk(op, group.block_cols, variant, form), image=True)
        return Shape(form, variant, layout, chunk_for(group.block_cols, variant, form))

    variants = cuda_candidates(positions_of(op), rows, CudaTarget(arch), form)
    possible = [layout for layout in layouts if layout == ROWS or form.size == 2]
    return tuple(shape(variant, layout) for layout in possible for variant in variants)


def positions_of(op: Op) -> int:
    """Rows of the output: tokens, or positions of all images."""
    return op.tokens if isinstance(op, LinearOp) else op.batch * op.out_size[0] * op.out_size[1]


def layout_of(subject: Subject) -> str:
    """How a subject's inputs and outputs lie: see `pruneaug.kernels.cuda.shapes`."""
    return parse_shape(subject.variant).layout if subject.variant else ROWS
