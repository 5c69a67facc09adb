"""Flushing leaves values as they are, and a kernel that asks for it computes the same."""

from dataclasses import replace

import pytest
import torch

from pruneaug.kernels import layers
from pruneaug.kernels.build import memory
from pruneaug.kernels.flush import can_flush, flush_call
from pruneaug.kernels.layers import LayerKernel
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import Weights
from pruneaug.network.ops import LinearOp

FAR = 64 << 20


def test_only_x86_has_the_instruction(builder):
    assert not can_flush(replace(builder.target, triple="aarch64-linux-gnu"))
    assert can_flush(replace(builder.target, triple="x86_64-linux-gnu"))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4099])
def test_flushed_values_stay(builder, size):
    if not can_flush(builder.target):
        pytest.skip("this CPU cannot flush")
    x = torch.randn(size)
    before = x.clone()
    builder.bound(flush_call(builder.target))(memory(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("flushes", [True, False])
def test_far_weights_are_flushed_or_copied_and_compute_the_same(builder, monkeypatch, flushes):
    monkeypatch.setattr(layers, "can_flush", lambda _: flushes and can_flush(builder.target))
    op = LinearOp(tokens=5, in_features=600, out_features=300)
    matrix, bias, x = torch.randn(300, 600), torch.randn(300), torch.randn(5, 600)
    kernel = LayerKernel(op, Weights(matrix, None, bias), Variant(4, 1, 2), builder, cold_bytes=FAR)
    assert (kernel.flush is not None) == (flushes and can_flush(builder.target))
    expected = x.double() @ matrix.double().T + bias
    for _ in range(3):
        if kernel.flush is not None:
            kernel.flush()
        kernel(kernel.prepare(x))
        assert (kernel.result() - expected).norm() / expected.norm() < 1e-5


def test_near_weights_are_never_flushed(builder):
    op = LinearOp(tokens=5, in_features=64, out_features=64)
    weights = Weights(torch.randn(64, 64), None, torch.randn(64))
    assert LayerKernel(op, weights, Variant(4, 1, 2), builder, cold_bytes=8 << 20).flush is None
    assert LayerKernel(op, weights, Variant(4, 1, 2), builder).flush is None
