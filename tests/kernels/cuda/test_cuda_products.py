"""Products of the CUDA kernel, its source run on the CPU, against float64."""

import math
from itertools import cycle, islice

import pytest
import torch
import torch.nn.functional as F
from emulate import emulate, needs_gxx, target_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.formats import BFLOAT16, FLOAT16, FLOAT32, TF32
from pruneaug.kernels.cuda.products import linear_product
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import VARIANTS, CudaVariant, parse_cuda_variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import LinearOp

ACTIVATIONS = {"none": lambda y: y, "gelu": F.gelu, "sigmoid": torch.sigmoid, "hardswish": F.hardswish}
SM80 = CudaTarget("sm_80")
PLAIN = Epilogue()
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "tf32": 2.0**-20, "float32": 2.0**-20}


def held(x, form):
    """float64 values as the tensor cores read them."""
    if form is TF32:
        bits = x.float().view(torch.int32)
        return ((bits + 4096) & -8192).view(torch.float32).double()
    return x.to(form.torch_dtype).double()


def block_mask(rows, cols, block, density, generator):
    grid = torch.rand(-(-rows // block[0]), -(-cols // block[1]), generator=generator) < density
    return grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :cols].contiguous()


def array(values, form):
    """The words of a format, as numpy holds them; 16 bytes aligned."""
    flat = values.contiguous().reshape(-1)
    return (flat if form.size == 4 else flat.view(torch.int16)).numpy()


def rows_of(values, stride, fill):
    """[rows, values] as rows `stride` apart, filled up."""
    padded = torch.full((values.shape[0], stride), fill, dtype=values.dtype)
    padded[:, : values.shape[1]] = values
    return padded


def check(
    op, variant, *, form=FLOAT16, layout="rows", block=(64, 16), density=0.5, epilogue=PLAIN, seed=0, mask=None,
    orders=((False, False), (True, True)), bias=True, nan=False,
):  # fmt: skip
    """Returns norm(difference) / norm(expected) of the last order; `nan`: one input of the second token is."""
    variant = parse_cuda_variant(variant)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(op.tokens, op.in_features, generator=generator)
    if nan:
        x[1, 3] = math.nan
    matrix = torch.randn(op.matrix_shape, generator=generator)
    offsets = torch.randn(op.out_features, generator=generator) if bias else None
    residual = torch.randn(op.tokens, op.out_features, generator=generator) if epilogue.residual else None
    mask = block_mask(*op.matrix_shape, block, density, generator) if mask is None else mask
    target = target_of(variant)
    call = linear_product(op, Weights(matrix, mask, offsets), block[1], variant, form, layout, target, epilogue)
    want = F.linear(held(x, form), torch.where(mask, held(matrix, form), 0.0))
    want = want if offsets is None else want + offsets
    want = want if residual is None else want + residual.to(form.torch_dtype).double()
    want = ACTIVATIONS[epilogue.activation](want).clamp(*epilogue.clamp)

    def laid_out(values, stride):
        values = values.to(form.torch_dtype)
        # What lies behind the rows must not matter.
        return array(rows_of(values if layout == "rows" else values.T, stride, math.nan), form)

    arguments = {"x": laid_out(x, call.scalars.x_stride), **call.constants, **call.scalars._asdict()}
    assert len(arguments["x"]) == call.x_size
    if residual is not None:
        arguments["residual"] = laid_out(residual, call.scalars.y_stride)
    for backwards, eager in orders:
        y = torch.full((call.y_size,), math.nan, dtype=form.torch_dtype)
        emulate(call.shape, {**arguments, "y": array(y, form)}, backwards=backwards, eager=eager)
        got = y.view(-1, call.scalars.y_stride).double()
        got = got[:, : op.out_features] if layout == "rows" else got[:, : op.tokens].T
        near = EPSILON[form.name] * want.abs() + 2e-6 * math.sqrt(op.in_features)
        wrong = (got.isnan() != want.isnan()) | ((got - want).abs() > near)
        assert not wrong.any(), (got - want).abs().max()
    return float((got - want).norm() / want.norm())


pytestmark = needs_gxx
layouts = pytest.mark.parametrize("layout", ["rows", "columns"])


VARIANT = "t64n32k32s3w2x1"
KINDS = cycle([(FLOAT16, "rows"), (BFLOAT16, "columns"), (TF32, "rows"), (FLOAT16, "columns"), (BFLOAT16, "rows")])


@pytest.mark.parametrize(
    ("variant", "form", "layout"), [(variant, *next(KINDS)) for variant in VARIANTS], ids=lambda value: str(value)[:20]
)
def test_every_variant(variant, form, layout):
    """More than one tile of tokens and outputs, the last of each not full, and more stages than the pipeline holds."""
    op = LinearOp(variant.tokens + 9, 300, variant.outputs + 8)
    check(op, str(variant), form=form, layout=layout, block=(variant.outputs, 16), density=0.7)


@layouts
@pytest.mark.parametrize("tokens", [1, 7, 64, 65, 131])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 33), (64, 32), (100, 70), (257, 24)])
def test_sizes_that_are_no_whole_tiles(layout, tokens, inputs, outputs):
    check(LinearOp(tokens, inputs, outputs), VARIANT, layout=layout, block=(32, 16), seed=tokens)


@pytest.mark.parametrize("outputs", [1, 33, 44])
def test_what_is_stored_ends_with_its_row(outputs):
    """Rows of tf32 are whole pieces of 4 values: what is stored together must not reach into the next row."""
    check(LinearOp(9, 24, outputs), VARIANT, form=TF32, block=(32, 8), epilogue=Epilogue(residual=True))


@layouts
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("block", [(16, 16), (64, 64), (128, 128), (32, 8)], ids=str)
def test_blocks_of_every_shape(layout, density, block):
    check(LinearOp(70, 200, 136), VARIANT, layout=layout, block=block, density=density)


@pytest.mark.parametrize("form", [FLOAT16, TF32], ids=["float16", "tf32"])
@pytest.mark.parametrize("block", [(64, 1), (128, 1), (32, 2)], ids=str)
def test_vectors_are_gathered_value_by_value_from_rows(form, block):
    check(LinearOp(70, 200, 136), VARIANT, form=form, block=block, density=0.2)


@pytest.mark.parametrize("columns", [1, 16])
def test_float32_is_not_rounded_to_tf32(columns):
    """The reference is of unrounded inputs and weights; without any of the three products it is missed by 1e-3."""
    check(LinearOp(70, 150, 41), VARIANT, form=FLOAT32, block=(32, columns))


def test_float32_is_as_exact_with_many_columns():
    """Tensor cores round sums towards zero: had they all of them, the error would be 4e-5 here."""
    few = check(LinearOp(16, 256, 32), VARIANT, form=FLOAT32, density=1.0)
    many = check(LinearOp(16, 4096, 32), VARIANT, form=FLOAT32, density=1.0)
    assert few < many < 1e-6


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@layouts
def test_nan_stays_nan(layout, activation):
    epilogue = Epilogue(activation, (-1.0, 2.0), residual=True)
    check(LinearOp(9, 32, 24), VARIANT, layout=layout, density=1.0, epilogue=epilogue, nan=True)


@pytest.mark.parametrize("block", [(64, 1), (128, 1)], ids=str)
def test_vectors_are_gathered_by_whole_rows_of_columns(block):
    check(LinearOp(70, 200, 136), VARIANT, layout="columns", block=block, density=0.2)


@layouts
def test_row_groups_that_keep_nothing_one_chunk_and_all(layout):
    mask = torch.zeros(128, 256, dtype=torch.bool)
    mask[32:64, 240:256] = True  # of the second group the last chunk
    mask[64:96] = True
    mask[127, 17] = True  # of the last group one weight
    check(LinearOp(33, 256, 128), VARIANT, layout=layout, mask=mask)


@pytest.mark.parametrize(("form", "layout"), list(islice(KINDS, 5)), ids=str)
def test_residuals(form, layout):
    epilogue = Epilogue("gelu", (-0.5, 0.75), residual=True)
    check(LinearOp(65, 48, 40), VARIANT, form=form, layout=layout, epilogue=epilogue, orders=[(False, True)])


@layouts
def test_a_clamp(layout):
    check(LinearOp(65, 48, 40), VARIANT, layout=layout, epilogue=Epilogue(clamp=(-0.5, 0.75)))


@pytest.mark.parametrize("activation", ["sigmoid", "hardswish"])
def test_activations(activation):
    check(LinearOp(65, 48, 40), VARIANT, epilogue=Epilogue(activation))


@layouts
def test_no_bias(layout):
    check(LinearOp(65, 48, 40), VARIANT, layout=layout, bias=False)


def test_nan_and_infinity_stay_where_they_are():
    """Removed blocks are not multiplied, nor what fills up the last tile; NaN passes a clamp."""
    op, variant = LinearOp(40, 64, 32), parse_cuda_variant(VARIANT)
    mask = torch.zeros(32, 64, dtype=torch.bool)
    mask[:, 16:32] = True
    x = torch.ones(40, 64)
    x[3, 20], x[5, 0], x[7, 63] = math.nan, math.inf, math.nan
    call = linear_product(
        op, Weights(torch.ones(32, 64), mask), 16, variant, FLOAT16, "rows", SM80, Epilogue(clamp=(0.0, 5.0))
    )
    y = torch.zeros(call.y_size, dtype=torch.float16)
    arguments = {"x": array(x.half(), FLOAT16), "y": array(y, FLOAT16), **call.constants, **call.scalars._asdict()}
    emulate(call.shape, arguments)
    want = torch.full((40, 32), 5.0)
    want[3] = math.nan
    torch.testing.assert_close(y.view(40, 32).float(), want, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 140), st.integers(1, 150), st.integers(1, 100), st.sampled_from([1, 5, 8, 24, 64, 1000]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]), st.sampled_from(["rows", "columns"]), st.integers(0, 999),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_any_layer(tokens, inputs, outputs, columns, density, layout, seed, backwards, eager):
    op = LinearOp(tokens, inputs, outputs)
    orders = [(backwards, eager)]
    check(op, VARIANT, layout=layout, block=(32, columns), density=density, seed=seed, orders=orders)


def test_what_the_kernel_does_not_compute_is_refused():
    def product(variant, form=FLOAT16, layout="rows", target=SM80):
        weights = Weights(torch.ones(32, 32))
        return linear_product(LinearOp(8, 32, 32), weights, 16, variant, form, layout, target, Epilogue())

    large = CudaVariant(128, 128, 128, 3, 2, 2)
    with pytest.raises(CompileError, match="into 166912 bytes of shared memory on sm_80, but t128n128k128s3w2x2 takes"):
        product(large)
    assert product(large, target=CudaTarget("sm_90a")).shape.variant == large
    with pytest.raises(CompileError, match="at least 304; choose more warps"):
        product(CudaVariant(64, 128, 32, 2, 1, 1))
    with pytest.raises(CompileError, match="'columns' needs values of 2 bytes, but got tf32; use layout 'rows'"):
        product(parse_cuda_variant(VARIANT), TF32, "columns")
    with pytest.raises(CompileError, match="layout must be 'rows' or 'columns', but got 'planes'"):
        product(parse_cuda_variant(VARIANT), layout="planes")
