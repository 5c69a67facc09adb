"""Where a job may name nm:2:4, and what it must say beside it."""

import pytest

from pruneaug.errors import SpecError
from pruneaug.spec import dump_job, load_job, parse_job

GPU = {"device": "cuda", "dtype": "bfloat16"}


def job(platform, **space):
    return parse_job({"task": {"name": "digits"}, "platform": platform, "space": space})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_gpu_in_a_half_precision_takes_it(dtype, tmp_path):
    found = job({"device": "cuda", "dtype": dtype}, patterns=["nm:2:4", "block:32x32"])
    assert found.space.patterns == ["nm:2:4", "block:32x32"]
    (tmp_path / "resolved.yaml").write_text(dump_job(found))
    assert load_job(tmp_path / "resolved.yaml") == found


SPACES = [
    {"patterns": ["block:8x1", "nm:2:4"]},
    {"layers": [{"match": "a", "patterns": ["nm:2:4"]}]},
    {"layers": [{"match": "a", "fix": {"pattern": "nm:2:4", "sparsity": 0.5}}]},
]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("platform", "got"),
    [
        ({}, "device: cpu, dtype: float32"),
        ({"device": "cuda"}, "device: cuda, dtype: float32"),
        ({"device": "cuda:1", "dtype": "tf32"}, "device: cuda:1, dtype: tf32"),
    ],
)
def test_elsewhere_it_is_one_error(platform, got, space):
    message = "nm:2:4 needs platform.device: cuda and platform.dtype: bfloat16 or float16, where PyTorch multiplies 2:4"
    with pytest.raises(SpecError, match=rf"{message} weights, but got {got}; change these, or leave nm:2:4 out"):
        job(platform, **space)


def test_to_exclude_it_is_no_error_anywhere():
    assert job({}, layers=[{"match": "a", "exclude": ["nm:2:4"]}]).space.layers[0].exclude == ["nm:2:4"]


def test_other_shares_run_nowhere():
    with pytest.raises(SpecError, match="of N:M patterns a space may have nm:2:4, but got nm:1:4"):
        job(GPU, patterns=["nm:1:4"])


def test_a_fixed_layer_has_the_patterns_own_sparsity():
    with pytest.raises(SpecError, match=r"the sparsity of nm:2:4 must be 0\.5, but got 0\.9; choose a block"):
        job(GPU, layers=[{"match": "a", "fix": {"pattern": "nm:2:4", "sparsity": 0.9}}])
