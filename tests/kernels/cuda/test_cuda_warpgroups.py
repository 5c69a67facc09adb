"""Products by warpgroups, the source for sm_90a run on the CPU, against float64."""

from functools import partial
from itertools import cycle

import pytest
import torch
from emulate import compile_for_cpu, emulate, needs_gxx
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_convolutions import check as check_convolution
from test_cuda_products import array, check

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.compiler import cuda_source
from pruneaug.kernels.cuda.formats import BFLOAT16, FLOAT16, TF32
from pruneaug.kernels.cuda.products import linear_product
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import WGMMA_VARIANTS, parse_cuda_variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp

pytestmark = needs_gxx
SM90A = CudaTarget("sm_90a")
SMALL = "t64n64k64s3g1x1"
layouts = pytest.mark.parametrize("layout", ["rows", "columns"])
KINDS = cycle([(FLOAT16, "rows"), (BFLOAT16, "columns"), (BFLOAT16, "rows"), (FLOAT16, "columns")])
EACH = [(variant, *next(KINDS)) for variant in WGMMA_VARIANTS]
EACH += [(parse_cuda_variant("t128n128k32s3g1x2"), BFLOAT16, layout) for layout in ("rows", "columns")]


@pytest.mark.parametrize(("variant", "form", "layout"), EACH, ids=lambda value: str(value)[:20])
def test_every_variant(variant, form, layout):
    """More than one tile of tokens and outputs, the last of each not full, and more stages than the pipeline holds."""
    op = LinearOp(variant.tokens + 9, 300, variant.outputs + 8)
    check(op, str(variant), form=form, layout=layout, block=(variant.outputs, 16), density=0.7)


@layouts
@pytest.mark.parametrize("tokens", [1, 7, 65])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 33), (100, 70), (257, 24)])
def test_sizes_that_are_no_whole_tiles(layout, tokens, inputs, outputs):
    check(LinearOp(tokens, inputs, outputs), SMALL, layout=layout, block=(32, 16), seed=tokens)


@layouts
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("block", [(16, 16), (64, 64), (128, 128), (32, 8)], ids=str)
def test_blocks_of_every_shape(layout, density, block):
    check(LinearOp(70, 400, 136), SMALL, layout=layout, block=block, density=density)


@layouts
@pytest.mark.parametrize("block", [(64, 1), (128, 1), (64, 2)], ids=str)
def test_vectors(layout, block):
    check(LinearOp(70, 300, 136), SMALL, layout=layout, form=BFLOAT16, block=block, density=0.25)


@layouts
def test_row_groups_that_keep_nothing_one_chunk_and_all(layout):
    mask = torch.zeros(256, 512, dtype=torch.bool)
    mask[64:128, 496:] = True  # of the second group the last chunk
    mask[128:192] = True
    mask[255, 17] = True  # of the last group one weight
    check(LinearOp(33, 512, 256), SMALL, layout=layout, mask=mask)


@layouts
@pytest.mark.parametrize("epilogue", [Epilogue("gelu", (-0.5, 0.75), residual=True), Epilogue("sigmoid")], ids=str)
def test_epilogues(layout, epilogue):
    """Of two warpgroups with two slabs of rows each, in both layouts."""
    op = LinearOp(135, 96, 120)
    check(op, "t256n128k64s3g2x1", form=BFLOAT16, layout=layout, epilogue=epilogue, orders=[(False, True)])
    check(op, "t128n128k64s3g1x1", layout=layout, epilogue=epilogue, bias=False, orders=[(True, False)])


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 140), st.integers(1, 400), st.integers(1, 100), st.sampled_from([1, 5, 8, 24, 64, 1000]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]), st.sampled_from(["rows", "columns"]), st.integers(0, 999),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_any_layer(tokens, inputs, outputs, columns, density, layout, seed, backwards, eager):
    op = LinearOp(tokens, inputs, outputs)
    orders = [(backwards, eager)]
    check(op, SMALL, layout=layout, block=(64, columns), density=density, seed=seed, orders=orders)


@pytest.mark.parametrize("columns", [1, 16, 64, 1000])
def test_convolutions(columns):
    op = Conv2dOp(2, 40, 70, 9, 8, (3, 3), (2, 1), (1, 1, 0, 1))
    check_convolution(op, variant=SMALL, form=BFLOAT16, block=(64, columns), density=0.4)


def test_a_convolution_with_everything_behind_it():
    op = Conv2dOp(1, 64, 136, 7, 7, (3, 3), padding=(1, 1, 1, 1))
    epilogue = Epilogue("gelu", (-0.5, 0.75), residual=True)
    check_convolution(op, variant="t128n128k64s4g2x1", block=(128, 32), epilogue=epilogue, orders=[(False, True)])


MISTAKES = {
    "a barrier that is missing": ("    tvm_builtin_cuda_cta_sync();\n", ""),
    "a wait for too few copies": ("cp.async.wait_group 0;", "cp.async.wait_group 1;"),
    "copies of no group": ("    tvm_builtin_ptx_cp_async_commit_group_async_commit_group();\n", ""),
    "copies that the tensor cores may not see": ("    tvm_builtin_ptx_fence_proxy_proxy_async_shared__cta();\n", ""),
    "no fence before the products": ("    tvm_builtin_ptx_wgmma_fence_fence_sync_aligned();\n", ""),
    "no wait before a stage is overwritten": ("wgmma.wait_group.sync.aligned 1;", "wgmma.wait_group.sync.aligned 2;"),
    "no wait before the sums are read": ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"),
    "products of no group": ("    tvm_builtin_ptx_wgmma_commit_group_commit_group_sync_aligned();\n", ""),
    "rows in the order of 64 bytes": ("(uint64_t)1ULL << (uint64_t)62ULL", "(uint64_t)2ULL << (uint64_t)62ULL"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_show(mistake):
    generator = torch.Generator().manual_seed(0)
    op, variant = LinearOp(128, 640, 64), parse_cuda_variant("t128n64k64s3g2x1")
    x, matrix = (torch.randn(n, 640, generator=generator).half() for n in (op.tokens, op.out_features))
    call = linear_product(op, Weights(matrix.float()), 1000, variant, FLOAT16, "rows", SM90A, Epilogue())
    before, after = MISTAKES[mistake]
    source = cuda_source(call.function, SM90A)
    assert before in source
    want = x.double() @ matrix.double().T

    def is_right(compiled, backwards, eager):
        y = torch.zeros(call.y_size, dtype=torch.float16)
        arguments = {"x": array(x, FLOAT16), "y": array(y, FLOAT16), **call.constants, **call.scalars._asdict()}
        try:
            emulate(call.shape, arguments, backwards=backwards, eager=eager, compiled=compiled)
        except RuntimeError:
            return False
        return torch.allclose(y.view(128, 64).double(), want, rtol=1e-2, atol=1e-2)

    orders = [(backwards, eager) for backwards in (False, True) for eager in (False, True)]
    assert all(is_right(None, *order) for order in orders)
    wrong = partial(is_right, compile_for_cpu(source.replace(before, after))[:2])
    assert not all(wrong(*order) for order in orders)


def test_what_a_warpgroup_does_not_compute_is_refused():
    def product(form=FLOAT16, target=SM90A):
        return linear_product(
            LinearOp(8, 32, 32), Weights(torch.ones(32, 32)), 16, parse_cuda_variant(SMALL), form, "rows", target,
            Epilogue(),
        )  # fmt: skip

    assert product().shape.variant.wgmma
    for arch in ("sm_80", "sm_90"):
        with pytest.raises(CompileError, match=f"needs sm_90a and float16 or bfloat16, but .* got {arch} and float16"):
            product(target=CudaTarget(arch))
    with pytest.raises(CompileError, match=r"got sm_90a and tf32; choose one of warps"):
        product(TF32)
