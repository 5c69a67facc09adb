"""Whole networks on a GPU in turns: which are timed, what they are compared with; the GPU is a fake."""

import sys
from threading import Event
from types import ModuleType

import pytest
import torch
from torch import nn

from pruneaug.errors import InputError
from pruneaug.platforms.gpu_state import GpuState
from pruneaug.profiler.gpu_networks import (
    GpuSubject,
    absent_gpu_packages,
    check_gpu_runtimes,
    time_on_gpu,
    torch_subject,
)


class Clock:
    """A GPU on which the n-th of the runs takes n + 1 times `us` microseconds."""

    torch_device = torch.device("cpu")

    def __init__(self, us=2000.0):
        self.us, self.asked = us, []

    def times_us(self, runs):
        for run in runs:
            run()
        self.asked.append(len(runs))
        return [self.us * (i + 1) for i in range(len(runs))]

    def state(self):
        return GpuState(1000.0, 2000.0, 300.0, 50.0, ("idle",), "1.0")


class Recorder:
    def record(self, call):
        return call, call()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)).train()


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def subject(model, dtype="bfloat16", runtime="torch"):
    return torch_subject(runtime, model, (X,), dtype, Clock.torch_device, Recorder())


def test_networks_are_timed_in_turns_and_compared_with_float64():
    model, clock = network(), Clock()
    said = []
    (first, second), state = time_on_gpu(
        [subject(model), subject(model, "float32")], (X,), "bfloat16", clock, rounds=2,
        progress=lambda *done: said.append(done),
    )  # fmt: skip
    assert (first.latency_ms, first.p10_ms, second.latency_ms) == (2.0, 2.0, 4.0)
    assert 1e-4 < first.max_relative_error < 2e-2
    assert second.max_relative_error < 1e-5
    assert clock.asked[-first.runs :] == [2] * first.runs
    assert said[0] == (0, 4, "compiling for torch")
    assert said[-1] == (3, 4, "measuring")
    assert state == clock.state()
    assert model.training
    assert model[0].weight.dtype == torch.float32


def test_what_holds_clocks_down_is_read_while_networks_are_timed():
    class AtWork(Clock):
        """Its clocks are held down while it works, and someone looks."""

        working, read = False, Event()

        def times_us(self, runs):
            self.read.clear()
            self.working = len(self.asked) > 0
            assert not self.working or self.read.wait(20)
            self.working = False
            return super().times_us(runs)

        def state(self):
            if not self.working:
                return super().state()
            self.read.set()
            return GpuState(900.0, None, 700.0, 80.0, ("power limit",), "1.0")

    clock = AtWork()
    _, state = time_on_gpu([subject(network())], (X,), "bfloat16", clock, rounds=1)
    assert (state.sm_mhz, state.memory_mhz, state.power_w, state.temperature_c) == (900.0, 2000.0, 700.0, 80.0)
    assert "power limit" in state.held_down_by
    assert time_on_gpu([subject(network())], (X,), "bfloat16", clock, rounds=0)[1] is None


def test_a_short_network_is_timed_several_times_at_once():
    calls = []
    counted = GpuSubject("ours", network(), lambda: lambda: calls.append(0) or network().eval()(X))
    (time,), _ = time_on_gpu([counted], (X,), "float32", Clock(300.0), rounds=1)
    assert time.latency_ms == pytest.approx(0.3 / 4)
    assert len(calls) == 2 + 4 * time.runs


def test_one_that_fails_or_is_wrong_or_not_finite_becomes_an_error_and_the_others_go_on():
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model = network()
    subjects = [
        GpuSubject("broken", model, broken),
        GpuSubject("wrong", model, lambda: lambda: torch.zeros(2, 5)),
        GpuSubject("nan", model, lambda: lambda: torch.full((2, 5), float("nan"))),
        GpuSubject("shape", model, lambda: lambda: torch.zeros(2, 6)),
        subject(model),
    ]
    (*failed, right), _ = time_on_gpu(subjects, (X,), "bfloat16", Clock(), rounds=1)
    assert [time.latency_ms for time in failed] == [None] * 4
    assert "illegal memory access" in failed[0].error
    assert "must be at most 0.1, but is 1" in failed[1].error
    assert ("but is nan" in failed[2].error, "but is inf" in failed[3].error) == (True, True)
    assert right.latency_ms == 2.0


def test_a_gpu_that_fails_in_a_round_leaves_errors_and_no_traceback():
    class Failing(Clock):
        def times_us(self, runs):
            if len(self.asked) == 4:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().times_us(runs)

    model = network()
    times, _ = time_on_gpu([subject(model), subject(model)], (X,), "bfloat16", Failing(), rounds=3)
    assert [time.latency_ms for time in times] == [None, None]
    assert all("the GPU failed while all networks were timed: RuntimeError: CUDA error" in time.error for time in times)


def test_tensorrt_compiles_in_the_networks_own_dtypes(monkeypatch):
    asked = []

    def compiled(network, **options):
        asked.append((next(network.parameters()).dtype, options))
        return network

    assert absent_gpu_packages("tensorrt") == "torch_tensorrt not installed; pip install torch-tensorrt"
    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    monkeypatch.setattr(torch, "compile", compiled)
    (time,), _ = time_on_gpu([subject(network(), runtime="tensorrt")], (X,), "bfloat16", Clock(), rounds=1)
    assert time.error is None
    ((dtype, options),) = asked
    assert (dtype, options["backend"], options["options"]["disable_tf32"]) == (torch.bfloat16, "torch_tensorrt", True)


def test_runtimes_that_there_are_not_are_named():
    with pytest.raises(
        InputError,
        match=r"runtimes of torch, torch-compile, tensorrt on a GPU, but got tensorr; did you mean .tensorrt",
    ):
        check_gpu_runtimes(["torch", "tensorr"])
