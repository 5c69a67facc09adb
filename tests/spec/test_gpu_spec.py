"""A GPU as the platform of a job: what may be said of it, and what not."""

import pytest

from pruneaug.errors import SpecError
from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.spec import parse_job, result_settings

THERE = {"address": "gpu:9090"}
REMOTE = {"device": "cuda:1"}


def platform(**values):
    return parse_job({"task": {"name": "digits"}, "platform": values}).platform


@pytest.mark.parametrize(
    ("device", "gpu", "kept"),
    [("cpu", None, "cpu"), ("cuda", 0, "cuda"), ("cuda:0", 0, "cuda"), ("cuda:12", 12, "cuda:12")],
)
def test_a_device_is_the_cpu_or_a_gpu_by_its_number(device, gpu, kept):
    spec = platform(device=device)
    assert (spec.gpu, spec.device) == (gpu, kept)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_gpu_takes_every_format_of_its_kernels(dtype):
    assert platform(device="cuda", dtype=dtype).dtype == dtype


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:1.5", "cuda:²", "CUDA", "cuda:0 "])
def test_another_device_is_an_error(device):
    with pytest.raises(SpecError, match=r"platform\.device: a device must be `cpu`, `cuda`, or a GPU by its number"):
        platform(device=device)


def test_a_gpu_may_be_that_of_another_machine():
    spec = platform(**REMOTE, remote={"tracker_key": "h100", "devices": 2, "timeout_s": 5, **THERE})
    assert (spec.gpu, spec.remote.address, spec.has_remote_gpu) == (1, "gpu:9090", True)
    assert not platform(device="cuda").has_remote_gpu
    assert not platform(remote=THERE).has_remote_gpu


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype must be float32 on a CPU, but got dtype: bfloat16; add `device: cuda`"),
        ({"device": "cuda", "threads": 2}, "threads are a CPU's, but got threads: 2 with device: cuda"),
        ({**REMOTE, "remote": {"compiler": "cc", **THERE}}, r"remote\.compiler must be left out with device: cuda:1"),
        ({**REMOTE, "remote": {"hardware": {"cores": 2}, **THERE}}, r"remote\.hardware must be left out with device"),
        ({"device": "cuda", "dtype": "int8"}, r"platform\.dtype"),
    ],
)
def test_what_cannot_be_combined_is_one_error(values, message):
    with pytest.raises(SpecError, match=message):
        platform(**values)


def test_which_of_equal_gpus_measures_and_where_its_kernels_are_does_not_decide_results():
    def settings(**values):
        return result_settings(parse_job({"task": {"name": "digits"}, "platform": {"device": "cuda", **values}}))

    assert settings() == settings(device="cuda:1", kernels="elsewhere")
    assert settings() != settings(dtype="float16")
