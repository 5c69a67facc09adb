import pytest

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.cuda.formats import BFLOAT16, FLOAT16, TF32
from pruneaug.kernels.cuda.products import chunk_for, row_stride
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import (
    VARIANTS,
    WGMMA_VARIANTS,
    CudaVariant,
    cuda_candidates,
    parse_cuda_variant,
    parse_plan,
)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_fits_every_data_centre_gpu_and_has_its_name(variant):
    assert parse_cuda_variant(str(variant)) == variant
    for arch in ("sm_80", "sm_90", "sm_90a"):
        variant.check(CudaTarget(arch), TF32)


@pytest.mark.parametrize("variant", WGMMA_VARIANTS, ids=str)
def test_every_variant_of_warpgroups_fits_hopper_and_has_its_name(variant):
    assert parse_cuda_variant(str(variant)) == variant
    variant.check(CudaTarget("sm_90a"), BFLOAT16)


def test_the_tiles_of_a_variant_are_counted():
    variant = CudaVariant(128, 64, 32, 4, 4, 2)
    assert (variant.threads, variant.part_tokens, variant.part_outputs) == (256, 32, 32)
    assert variant.shared_bytes == 4 * (128 + 64) * 32 * 2
    assert (variant.columns(FLOAT16), variant.columns(TF32), variant.pieces) == (32, 16, 4)
    assert variant.least_registers == 32 * 32 // 32 + 8 + 8  # sums, two fragments of 16 numbers a step
    groups = CudaVariant(256, 128, 64, 4, 2, 1, wgmma=True)
    assert (groups.threads, groups.part_tokens, groups.part_outputs) == (256, 128, 128)
    assert (groups.slab, groups.sums, groups.least_registers) == (64, 128, 128)


def test_limits_of_an_architecture():
    ada = CudaTarget("sm_89")
    assert (ada.shared_bytes, CudaTarget("sm_80").shared_bytes, CudaTarget("sm_90a").shared_bytes) == (
        101376, 166912, 232448,
    )  # fmt: skip
    assert [ada.registers(threads) for threads in (128, 256, 512, 1024)] == [255, 255, 128, 64]
    with pytest.raises(
        CompileError, match=r"must fit into 101376 bytes of shared memory on sm_89, but .* takes 131072"
    ):
        parse_cuda_variant("t128n128k64s4w4x2").check(ada, FLOAT16)


@pytest.mark.parametrize(
    ("tokens", "block_rows", "wanted"),
    [
        (1, 64, {"t16n64k64s4w1x2"}),
        (1, 16, {"t64n16k64s4w4x1"}),
        (4096, 16, {"t64n16k64s4w4x1", "t128n16k64s3w4x1"}),
        (64, 1000, {str(variant) for variant in VARIANTS if variant.tokens <= 64}),
        (4096, 1000, set(map(str, VARIANTS))),
    ],
)
def test_candidates_are_no_taller_than_blocks_and_no_wider_than_the_tokens(tokens, block_rows, wanted):
    for target, form in ((CudaTarget("sm_80"), FLOAT16), (CudaTarget("sm_90"), BFLOAT16), (CudaTarget("sm_90a"), TF32)):
        assert set(map(str, cuda_candidates(tokens, block_rows, target, form))) == wanted


@pytest.mark.parametrize(
    ("tokens", "block_rows", "wanted"),
    [
        (1, 64, set()),
        (64, 64, {"t64n64k64s4g1x1"}),
        (4096, 32, set()),
        (100, 64, {"t64n64k64s4g1x1", "t128n64k64s4g2x1"}),
        (4096, 128, {str(variant) for variant in WGMMA_VARIANTS if variant.outputs <= 128}),
        (4096, 1000, set(map(str, WGMMA_VARIANTS))),
    ],
)
def test_hopper_has_candidates_of_warpgroups_besides(tokens, block_rows, wanted):
    found = set(map(str, cuda_candidates(tokens, block_rows, CudaTarget("sm_90a"), BFLOAT16)))
    others = set(map(str, cuda_candidates(tokens, block_rows, CudaTarget("sm_80"), BFLOAT16)))
    assert found == wanted | others


def test_chunks_and_rows():
    variant = parse_cuda_variant("t64n64k32s4w2x2")
    assert [chunk_for(cols, variant, FLOAT16) for cols in (1, 5, 8, 24, 32, 64, 100, 4096)] == [
        1,
        1,
        8,
        8,
        32,
        32,
        32,
        32,
    ]
    assert chunk_for(16, variant, TF32) == 16
    assert [row_stride(values, FLOAT16) for values in (1, 8, 9)] == [8, 8, 16]
    assert row_stride(5, TF32) == 8


def test_what_is_no_variant_or_architecture_is_named():
    with pytest.raises(InputError, match="must read like 't128n64k32s4w4x1' or 't128n256k64s4g2x1', but got 'h8v3s1'"):
        parse_cuda_variant("h8v3s1")
    with pytest.raises(InputError, match=r"32, 48\.\.\. tokens and outputs for each warp.* but got t32n64k32s4w4x1"):
        parse_cuda_variant("t32n64k32s4w4x1")
    for name in ("t128n64k64s4g4x1", "t128n64k128s4g2x1", "t128n64k64s2g2x1", "t64n512k32s3g1x1"):
        with pytest.raises(
            InputError, match=f"of warpgroups must have 64, 128 or 256 tokens .* but got {name}; change"
        ):
            parse_cuda_variant(name)
    with pytest.raises(InputError, match="tokens and outputs must be powers of two, but got t48n64k32s4w1x1"):
        parse_cuda_variant("t48n64k32s4w1x1")
    with pytest.raises(InputError, match="must be one of sm_80, sm_86, sm_87, sm_89, sm_90, sm_90a, but got 'sm_70'"):
        CudaTarget("sm_70")


def test_a_plan_names_a_chunk_and_a_variant():
    variant = parse_cuda_variant("t64n64k32s4w2x2")
    assert parse_plan("c16-t64n64k32s4w2x2") == (16, variant)
    assert parse_plan("t64n64k32s4w2x2") == (None, variant)
    for wrong in ("c0-t64n64k32s4w2x2", "16-t64n64k32s4w2x2", "c16-tile", "c16-"):
        with pytest.raises(InputError, match="must read like"):
            parse_plan(wrong)
