"""`bench kernels` on a GPU: what it measures, sums up and says; the GPU is a fake in a process of its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from pruneaug.api import bench_gpu as module
from pruneaug.api.bench_gpu import bench_gpu_kernels, compile_gpu_kernels
from pruneaug.cli.gpu import gpu_table
from pruneaug.cli.output import console
from pruneaug.errors import InputError
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms.cuda import Gpu
from pruneaug.profiler.cuda.cases import groups_of, shapes_of
from pruneaug.profiler.cuda.records import failed, timed

TESTS = Path(__file__).parents[1]
OP = LinearOp(40, 48, 16)
SETTINGS = {"patterns": ["block:16x16", "block:64x64"], "sparsities": [0.5], "dtypes": ["tf32"]}


@pytest.fixture
def with_fakes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS / "profiler" / "cuda"))
    monkeypatch.setattr("pruneaug.profiler.cuda.programs.find_spec", lambda package: None)


@pytest.fixture
def bench(with_fakes, tmp_path):
    def run(device, **options):
        paths = {"kernels": tmp_path / "kernels", "records": tmp_path / "times.jsonl"}
        return bench_gpu_kernels([OP], **{**SETTINGS, **paths, "budget_s": 0.0, "device": device, **options})

    return run


@pytest.mark.slow
def test_kernels_are_measured_in_turns_with_torch_and_checked(bench, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(TESTS / "kernels" / "cuda")
    from fake_driver import fake_program

    folder = ProgramFolder(tmp_path / "kernels")
    for group in groups_of([OP], ["tf32"], ["block:16x16"], [0.5]):
        for shape in shapes_of(group):
            folder.write(fake_program(shape))
    result = bench("fake_gpu:emulated")
    assert json.loads(json.dumps(result)) == result
    assert result["gpu"]["name"] == "Fake GPU"
    assert result["skipped"] == [{"op": OP.key, "pattern": "block:64x64", "reason": "its weight matrix is only 16x48"}]
    dense, sparse = result["groups"]
    for group, kept in ((dense, 1.0), (sparse, 2 / 3)):
        ours, torch = group["kernels"]
        assert (ours["library"], torch["library"], torch["variant"]) == ("tvm", "torch", "")
        assert ours["error"] is None
        assert ours["max_relative_error"] < 1e-3
        assert ours["tflops"] == pytest.approx(2 * OP.macs * kept / ours["latency_us"] / 1e6)
        assert group["best"] == group["layouts"]["rows"]
        assert group["best"]["speedup_vs_torch"] == pytest.approx(torch["latency_us"] / ours["latency_us"])
        assert group["layouts"]["columns"] is None
    assert set(result["break_even"]["tf32"]) == {"block:16x16"}
    assert result["warnings"] == [
        "clocks were held down by power limit, at 1980 MHz in the median; ratios within a group still compare"
    ]
    before = (tmp_path / "times.jsonl").read_text()
    assert len(before.splitlines()) == 4
    again = bench("fake_gpu:emulated")
    assert again["groups"] == result["groups"]
    assert (tmp_path / "times.jsonl").read_text() == before


def test_what_is_not_compiled_is_said_and_the_library_is_measured(bench):
    result = bench("fake_gpu:faulty")
    assert [[row["library"] for row in group["kernels"]] for group in result["groups"]] == [["torch"], ["torch"]]
    assert [group["best"] for group in result["groups"]] == [None, None]
    assert result["break_even"] == {"tf32": {}}
    (lacking, _) = result["warnings"]
    assert lacking.startswith("2 kernels are not measured: ")
    assert "compile them with --compile-for sm_80" in lacking
    shown(result)


class SameProcess:
    """In place of the measuring process: a GPU that nobody asks to measure."""

    def __init__(self, *settings, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def gpu(self):
        return Gpu("Fake GPU", "GPU-0", (8, 0), 108, 1 << 20, 1 << 30, driver="1.0")


@pytest.fixture
def computed(bench, monkeypatch):
    """`bench` with a function in place of `profile_groups`."""

    def run(profile, **options):
        monkeypatch.setattr(module, "GpuProcess", SameProcess)
        monkeypatch.setattr(module, "profile_groups", profile)
        monkeypatch.setattr(ProgramFolder, "missing", lambda self, shapes, arch: [])
        return bench("none", **options)

    return run


def shown(result):
    out = console()
    with out.capture() as captured:
        out.print(gpu_table(result))
    return captured.get()


def ratios(times):
    """Every group takes what `times` says of (pattern, sparsity): our kernels, and the dense library."""

    def profile(groups, process, journal, gpu, progress):
        found = {}
        for group, subjects in groups.items():
            ours, dense = times[group.pattern, group.sparsity]
            facts = {"zeros": group.sparsity, "max_relative_error": 1e-3}
            found[group] = [
                timed(group, subject, gpu, np.full(2, ours + i if subject.variant else dense), **facts)
                for i, subject in enumerate(subjects)
            ]
        return found

    return profile


def test_where_a_pattern_pays_is_told_by_ratios_in_the_same_turns(computed):
    block = "block:16x16"
    profile = ratios({("dense", 0.0): (200.0, 100.0), (block, 0.5): (120.0, 100.0), (block, 0.75): (160.0, 200.0)})
    result = computed(profile, sparsities=[0.5, 0.75], patterns=[block])
    assert [group["best"]["speedup_vs_torch"] for group in result["groups"]] == pytest.approx([0.5, 1 / 1.2, 1.25])
    # Ratios 1.2 and 0.8: halfway between them the library's time is reached; our dense kernel takes twice as long.
    assert result["break_even"]["tf32"][block] == {
        "ops": 1, "against_torch": pytest.approx(0.625, abs=1e-6), "against_all": pytest.approx(0.625, abs=1e-6),
    }  # fmt: skip
    text = shown(result)
    assert "tf32 block:16x16 is faster than torch's dense layer from 62% sparsity" in text
    assert "Fake GPU (sm_80), driver 1.0" in text


def test_the_fastest_is_chosen_by_other_times_than_its_own(computed, monkeypatch):
    times = [[1.0, 9.0], [2.0, 3.0], [4.0, 4.0]]

    def profile(groups, process, journal, gpu, progress):
        ((group, subjects),) = groups.items()
        return {group: [timed(group, subject, gpu, np.array(us)) for subject, us in zip(subjects, times, strict=True)]}

    monkeypatch.setattr(module, "groups_of", lambda *given: groups_of(*given)[:1])
    (group,) = computed(profile, dtypes=["bfloat16"])["groups"]
    assert (group["best"]["variant"], group["best"]["latency_us"]) == (group["kernels"][0]["variant"], 9.0)
    assert group["layouts"]["columns"]["speedup_vs_torch"] == pytest.approx(4 / 3)


def test_a_kernel_that_fails_is_shown_with_its_error(computed):
    def profile(groups, process, journal, gpu, progress):
        return {group: [failed(group, subject, gpu, "told to fail") for subject in groups[group]] for group in groups}

    result = computed(profile)
    assert [row["tflops"] for group in result["groups"] for row in group["kernels"]] == [None] * 4
    assert f"failed: {OP.key} tf32 dense@0 torch: told to fail" in shown(result)


def test_compiling_ahead_is_asked_for_the_kernels_that_are_measured(monkeypatch, tmp_path):
    asked = []

    def compile_ahead(shapes, arch, folder, progress):
        asked.append((shapes, arch, folder.path))
        return {shapes[0].key: "told to fail"}

    monkeypatch.setattr(module, "compile_ahead", compile_ahead)
    settings = {"patterns": ["block:16x16"], "dtypes": ["float16", "tf32"]}
    result = compile_gpu_kernels([OP], **settings, arch="sm_90a", kernels=tmp_path)
    ((shapes, arch, path),) = asked
    wanted = {
        s
        for group in groups_of([OP], ["float16", "tf32"], ["block:16x16"], [0.9])
        for s in shapes_of(group, arch="sm_90a")
    }
    assert (set(shapes), len(shapes), arch, path) == (wanted, len(wanted), "sm_90a", tmp_path)
    assert result == {"arch": "sm_90a", "kernels": len(wanted) - 1, "failed": {shapes[0].key: "told to fail"}}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"dtypes": ["float64"]},
            "`dtype` on a GPU must be one of float16, bfloat16, tf32, float32, but got 'float64'",
        ),
        ({"dtypes": []}, "needs a linear layer or a convolution of one group, and a dtype"),
        ({"against": ["cublas"]}, "`against` must name libraries of torch, torch-2:4 on a GPU, but got cublas"),
        ({"sparsities": [1.0]}, r"a sparsity must lie in \[0, 1\), but got 1"),
        ({"patterns": ["dense"]}, "dense is measured in any case"),
        ({"patterns": ["nm:2:4"]}, "patterns must be blocks, such as block:8x1, but got nm:2:4; `bench kernels"),
        ({"device": "fake_gpu:absent"}, "needs a GPU that PyTorch can use, but there is none"),
    ],
)
def test_a_wrong_request_is_one_error(bench, request_, message):
    with pytest.raises(InputError, match=message):
        bench(**{"device": "fake_gpu:faulty", **request_})


def test_a_convolution_of_several_groups_is_left_out_by_name(with_fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GpuProcess", SameProcess)
    monkeypatch.setattr(module, "profile_groups", lambda *given: {})
    conv = Conv2dOp(1, 8, 8, 5, 5, (3, 3), groups=2)
    result = bench_gpu_kernels([OP, conv.key], **SETTINGS, kernels=tmp_path, records=tmp_path / "times.jsonl")
    reason = "convolutions of several groups have no kernel on a GPU"
    assert {"op": conv.key, "pattern": "all", "reason": reason} in result["skipped"]
    with pytest.raises(InputError, match="needs a linear layer or a convolution of one group"):
        compile_gpu_kernels([conv], patterns=["block:16x16"], dtypes=["tf32"], arch="sm_80", kernels=tmp_path)
