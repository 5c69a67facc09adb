"""What a graph on a GPU holds alive, and how PyTorch is set while one is recorded; the GPU's parts are fakes."""

import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pruneaug.profiler.cuda.device import TorchDevice
from pruneaug.runtime.cuda.recording import GraphRecorder, network_settings


class Graph:
    replayed = 0

    def replay(self):
        self.replayed += 1


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch's CUDA, whose graphs record nothing."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "current_stream": lambda: stream, "Stream": lambda: stream, "stream": lambda _: nullcontext(),
        "graph": lambda _: nullcontext(), "CUDAGraph": Graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)


class Weights:
    """Memory that a kernel reads."""


def call_with(weights):
    def call():
        return weights

    return call


@pytest.mark.parametrize("by", ["layers", "networks"])
def test_what_a_graph_reads_lives_as_long_as_it_can_be_replayed(gpu, by):
    weights = Weights()
    alive, call = weakref.ref(weights), call_with(weights)
    if by == "layers":
        replay = TorchDevice.recorded(None, [call, call])
    else:
        replay, result = GraphRecorder().record(call)
        assert result is weights
        del result
    del weights, call
    gc.collect()
    assert alive() is not None
    replay()
    assert replay.graph.replayed == 1
    del replay
    gc.collect()
    assert alive() is None


def test_settings_are_those_of_the_dtype_and_then_as_before():
    from torch._inductor import config

    def now():
        cudnn = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, config.freezing

    before = now()
    for dtype, precision in (("tf32", "high"), ("float32", "highest"), ("bfloat16", "highest")):
        with network_settings(dtype):
            assert now() == (precision, dtype == "tf32", True, True)
        assert now() == before


def test_weights_are_constants_to_a_compiler():
    """Dynamo hands them over as inputs otherwise, and nothing can be laid out anew."""
    inputs = []

    def compiler(graph, given):
        inputs.append(len(given))
        return graph.forward

    network, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), torch.zeros(1, 4)
    with torch.no_grad():
        for settings in (nullcontext(), network_settings("float32")):
            torch._dynamo.reset()
            with settings:
                torch.compile(network, dynamic=False, backend=compiler)(x)
    assert inputs == [5, 1]
