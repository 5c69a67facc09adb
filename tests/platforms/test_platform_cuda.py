"""A GPU as a platform, and what it tells of itself; NVML, nvidia-smi and PyTorch's devices are fakes."""

import hashlib
import json
import stat
import sys
from dataclasses import replace
from importlib import metadata
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pruneaug.errors import InputError, SpecError
from pruneaug.platforms import Platform, detect
from pruneaug.platforms.cuda import Gpu, detect_gpu, gpu_platform
from pruneaug.platforms.doctor import cuda_state
from pruneaug.platforms.gpu_state import GpuLimits, GpuState, gpu_limits, gpu_state, held_down, worst

LIMITS = GpuLimits(1980.0, 2619.0, 700.0)
H100 = Gpu("NVIDIA H100 80GB HBM3", "GPU-1", (9, 0), 132, 50 << 20, 80 << 30, "580.1", "13.0", 1980.0, 2619.0, 700.0)


@pytest.mark.parametrize(("capability", "arch"), [((8, 0), "sm_80"), ((8, 9), "sm_89"), ((9, 0), "sm_90a")])
def test_the_architecture_is_that_of_the_compute_capability(capability, arch):
    assert replace(H100, capability=capability).arch == arch


def test_a_gpu_is_a_platform_whose_times_compare_with_its_like():
    platform = gpu_platform(H100, dtype="bfloat16")
    assert platform.name == f"nvidia-h100-80gb-hbm3-1t-bfloat16-{platform.fingerprint[:6]}"
    assert (platform.arch, platform.cores, dict(platform.caches)) == ("sm_90a", 132, {"L2": 50 << 20})
    assert dict(platform.versions).items() >= {"driver": "580.1", "cuda": "13.0"}.items()
    assert Platform.from_json(json.loads(json.dumps(platform.to_json()))) == platform
    same = [replace(H100, driver="590.2"), replace(H100, uuid="GPU-2"), replace(H100, memory_bytes=1)]
    assert {gpu_platform(gpu, dtype="bfloat16").fingerprint for gpu in same} == {platform.fingerprint}
    others = [replace(H100, name="NVIDIA H200"), replace(H100, capability=(8, 0)), replace(H100, multiprocessors=114)]
    fingerprints = {gpu_platform(gpu, dtype="bfloat16").fingerprint for gpu in others}
    assert len(fingerprints | {gpu_platform(H100, dtype="float16").fingerprint, platform.fingerprint}) == 5
    assert gpu_platform(H100, dtype="tf32", name="mine").name == "mine"


def test_the_platform_of_a_gpu_elsewhere_has_the_version_of_pytorch_that_runs_there():
    here, there = (dict(gpu_platform(replace(H100, torch=found), dtype="tf32").versions) for found in (None, "0.1"))
    assert (here["torch"], there["torch"]) == (metadata.version("torch"), "0.1")
    assert here | {"torch": "0.1"} == there


def test_the_fingerprint_of_a_cpu_is_what_it_was_before_there_were_gpus():
    cpu = Platform("name", "CPU (1-2-3)", "x86_64", ("avx2", "fma"), 2, 2, (("L1d", 32768), ("L2", 1048576)))
    fields = ["CPU (1-2-3)", "x86_64", ["avx2", "fma"], 2, [["L1d", 32768], ["L2", 1048576]], 2, "float32"]
    assert cpu.fingerprint == hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:12]
    assert set(detect(1).to_json()) == {
        "name", "cpu", "arch", "isa", "cores", "threads", "caches", "dtype", "mcpu", "versions", "triple",
        "fingerprint",
    }  # fmt: skip


@pytest.fixture
def one_gpu(monkeypatch):
    facts = SimpleNamespace(
        name=H100.name, uuid="1", major=9, minor=0, multi_processor_count=132, L2_cache_size=50 << 20,
        total_memory=80 << 30,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("pruneaug.platforms.cuda.gpu_state", lambda uuid: GpuState(*[None] * 5, "580.1"))
    monkeypatch.setattr("pruneaug.platforms.cuda.gpu_limits", lambda uuid: LIMITS)


def test_doctor_shows_what_pytorch_tells_of_a_gpu(one_gpu):
    assert detect_gpu() == replace(H100, torch=metadata.version("torch"))
    state = cuda_state()
    assert json.loads(json.dumps(state)) == state
    assert (state["available"], state["runtime"]) == (True, "13.0")
    assert state["devices"] == [
        {
            "name": H100.name, "compute capability": "9.0", "arch": "sm_90a", "multiprocessors": 132,
            "L2 bytes": 50 << 20, "memory bytes": 80 << 30, "driver": "580.1",
            "largest SM MHz": 1980.0, "largest memory MHz": 2619.0, "largest power W": 700.0,
        }
    ]  # fmt: skip


def test_a_gpu_that_is_not_there_is_an_error_with_the_number_of_those_that_are(one_gpu):
    with pytest.raises(InputError, match="'cuda:1' must be one of the 1 GPUs that PyTorch sees, counted from 0"):
        detect_gpu(1)


def test_a_platforms_name_is_a_folder_name():
    with pytest.raises(SpecError, match=r"platform\.name must be letters"):
        gpu_platform(H100, dtype="float16", name="../up")


def test_without_a_gpu_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="needs a GPU that PyTorch can use, but this torch is built for the CPU only"):
        detect_gpu()


READING = GpuState(1980.0, 2619.0, 651.5, 60.0, ("power limit", "temperature, by the driver"), "580.1")


def nvml(fails=False):
    module = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0
    module.nvmlInit = module.nvmlShutdown = lambda: None

    def handle(uuid):
        if fails:
            raise module.NVMLError
        return uuid

    module.nvmlDeviceGetHandleByUUID = handle
    module.nvmlDeviceGetClockInfo = lambda handle, kind: {1: 1980, 2: 2619}[kind]
    module.nvmlDeviceGetPowerUsage = lambda handle: 651500
    module.nvmlDeviceGetTemperature = lambda handle, kind: 60
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x24
    module.nvmlSystemGetDriverVersion = lambda: "580.1"
    module.nvmlDeviceGetMaxClockInfo = lambda handle, kind: {1: 1980, 2: 2619}[kind]
    module.nvmlDeviceGetEnforcedPowerLimit = lambda handle: 700000
    return module


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Makes nvidia-smi a script."""

    def make(script):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", str(tmp_path))
    return make


def test_nvml_is_asked_first(monkeypatch, smi):
    smi("echo must not be asked; exit 1")
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert gpu_state("GPU-1") == READING
    assert gpu_limits("GPU-1") == LIMITS


@pytest.mark.parametrize("module", [None, nvml(fails=True)], ids=["no NVML", "NVML fails"])
def test_nvidia_smi_is_asked_where_nvml_does_not_answer(monkeypatch, smi, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    smi('[ "$1" = --id=GPU-1 ] && echo "1980, 2619, 651.50, 60, 0x0000000000000024, 580.1"')
    assert gpu_state("GPU-1") == READING
    smi('echo "1980, [N/A], [N/A], 60, [N/A], 580.1"')
    assert gpu_state("GPU-1") == GpuState(1980.0, None, None, 60.0, None, "580.1")
    smi('[ "$2" = --query-gpu=clocks.max.sm,clocks.max.mem,enforced.power.limit ] && echo "1980, 2619, 700.00"')
    assert gpu_limits("GPU-1") == LIMITS


@pytest.mark.parametrize("script", ["exit 9", "echo no such GPU", None])
def test_what_is_not_told_is_not_known(monkeypatch, smi, script):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    if script is not None:
        smi(script)
    assert gpu_state("GPU-1") == GpuState(*[None] * 6)
    assert gpu_limits("GPU-1") == GpuLimits(None, None, None)


def test_the_worst_of_readings_is_each_ones_worst():
    nothing = GpuState(*[None] * 6)
    found = worst([nothing, READING, replace(READING, sm_mhz=1.0, power_w=9e9, held_down_by=("idle",)), nothing])
    assert found == replace(READING, sm_mhz=1.0, power_w=9e9, held_down_by=(*READING.held_down_by, "idle"))
    assert worst([nothing]) == worst([]) == nothing


def test_idleness_holds_nothing_down():
    assert held_down(["idle", "power limit"]) == ("power limit",)
    assert held_down(None) == ()
    assert READING.to_json()["held_down_by"] == ["power limit", "temperature, by the driver"]
