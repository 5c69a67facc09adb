"""Which kernel computes a pruned layer on a GPU: by a rule, or by whatever function a caller has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.convolutions import conv_product
from pruneaug.kernels.cuda.formats import Format
from pruneaug.kernels.cuda.products import ANY_COLUMNS, CudaCall, linear_product
from pruneaug.kernels.cuda.shapes import ROWS
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import CudaVariant, cuda_candidates, parse_plan
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import LinearOp, Op
from pruneaug.sparsity.masks import rows_alike
from pruneaug.sparsity.patterns import Block

Choose = Callable[[Op, Weights, Sequence[CudaVariant]], CudaVariant]
"""(layer, its weights and mask, the variants that may compute it) -> the variant that shall, one of them."""

_SIZES = (128, 64, 32, 16, 8, 4, 2)  # of blocks, as kernels see them
_BLOCKS_AT_ONCE = 128  # thread blocks: about one for each multiprocessor of a large GPU


def largest_that_fills(op: Op, weights: Weights, variants: Sequence[CudaVariant]) -> CudaVariant:
    """The largest tile of which a layer still has one for each multiprocessor of a large GPU, else the smallest tile.

    A large tile reads its inputs fewer times. This rule was never compared with measured times.
    """
    tokens, outputs = _tokens(op), op.matrix_shape[0]

    def thread_blocks(variant: CudaVariant) -> int:
        return -(-tokens // variant.tokens) * -(-outputs // variant.outputs)

    filling = [variant for variant in variants if thread_blocks(variant) >= _BLOCKS_AT_ONCE]
    if not filling:
        return max(variants, key=thread_blocks)
    return max(filling, key=lambda variant: variant.tokens * variant.outputs)


def block_of(mask: torch.Tensor) -> Block:
    """The largest blocks of 1 to 128 rows and columns, powers of two, that a mask [N, K] keeps or removes whole."""
    return Block(rows_alike(mask, _SIZES), rows_alike(mask.t(), _SIZES))


def pack_layer(
    name: str,
    op: Op,
    weights: Weights,
    epilogue: Epilogue,
    form: Format,
    target: CudaTarget,
    choose: Choose,
    variants: Mapping[str, CudaVariant | str],
) -> CudaCall:
    """A pruned layer's kernel with its packed weights, by the variant of its name in `variants` or what `choose` says.

    Raises CompileError for a layer that the kernels do not compute.
    """
    block = Block(*op.matrix_shape) if weights.mask is None else block_of(weights.mask)
    columns = ANY_COLUMNS if weights.mask is None else block.cols
    if given := variants.get(name):
        chunk, variant = parse_plan(given) if isinstance(given, str) else (None, given)
        if chunk is not None and weights.mask is not None:  # a mask may happen to have wider blocks than its pattern
            columns = math.gcd(chunk, block.cols)
    else:
        candidates = cuda_candidates(_tokens(op), block.rows, target, form)
        variant = choose(op, weights, candidates)
        if variant not in candidates:
            raise InputError(
                f"the variant chosen for layer {name!r} must be one of {', '.join(map(str, candidates))}, but got "
                f"{variant}; return one of those that were given"
            )
    if isinstance(op, LinearOp):
        return linear_product(op, weights, columns, variant, form, ROWS, target, epilogue)
    return conv_product(op, weights, columns, variant, form, target, epilogue)


def _tokens(op: Op) -> int:
    """Rows of the product: of a convolution the output positions of all images."""
    return op.tokens if isinstance(op, LinearOp) else op.batch * op.out_size[0] * op.out_size[1]
