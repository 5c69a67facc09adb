"""Moments of the layers' inputs over calibration data, in the order of their weight matrix's columns.

A layer's inputs are a matrix X [groups, samples, columns]: one row for each product with the weight matrix, so a token
or an output position; a convolution of G groups has G of them, one for the weight's rows of each group. Only sums over
the samples are kept, never the activations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruneaug.errors import NetworkError
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, Op
from pruneaug.pruners.calibration import calibration_batches, looked_at
from pruneaug.pruners.gradients import at_least_float32
from pruneaug.pruners.protocol import CalibrationData

_CHUNK = 1 << 24  # values of unfolded input held at once: 64 MB of float32


def column_norms(model: nn.Module, network: Network, data: CalibrationData, count: int) -> dict[str, Tensor]:
    """Layer name -> the Euclidean norm of each column of X, [groups, columns]."""

    def squares(x: Tensor, op: Op) -> Tensor:
        # The columns are picked from x, so the sum over the batch may come first: nothing is unfolded per sample.
        return input_columns(x.square().sum(0, keepdim=True), op).sum(1)

    return {name: total.sqrt() for name, total in _sums(model, network, data, count, squares).items()}


def gram_matrices(model: nn.Module, network: Network, data: CalibrationData, count: int) -> dict[str, Tensor]:
    """Layer name -> X^T X, [groups, columns, columns]."""

    def gram(x: Tensor, op: Op) -> Tensor:
        per_sample = max(x[:1].numel(), 1)
        if isinstance(op, Conv2dOp):
            per_sample *= op.kernel[0] * op.kernel[1]
        total: Tensor | None = None
        for part in torch.split(x, max(1, _CHUNK // per_sample)):
            columns = input_columns(part, op)
            product = columns.transpose(1, 2) @ columns
            total = product if total is None else total.add_(product)
        assert total is not None
        return total

    return _sums(model, network, data, count, gram)


def input_columns(x: Tensor, op: Op) -> Tensor:
    """X of a layer's input: [batch, features] of a linear, [batch, channels, height, width] of a convolution."""
    if not isinstance(op, Conv2dOp):
        return x.unsqueeze(0)
    top, left, bottom, right = op.padding
    padded = functional.pad(x, (left, right, top, bottom))
    unfolded = functional.unfold(padded, op.kernel, dilation=op.dilation, stride=op.stride)  # [batch, C*kh*kw, L]
    area = op.kernel[0] * op.kernel[1]
    grouped = unfolded.view(len(x), op.groups, -1, area, unfolded.shape[-1])  # [batch, G, C/G, kh*kw, L]
    return grouped.permute(1, 0, 4, 3, 2).reshape(op.groups, len(x) * unfolded.shape[-1], -1)


def per_row(moments: Tensor, rows: int) -> Tensor:
    """What each row of a weight matrix sees: [groups, columns] -> [rows, columns]."""
    return moments.repeat_interleave(rows // len(moments), dim=0)


def _sums(
    model: nn.Module, network: Network, data: CalibrationData, count: int, moment: Callable[[Tensor, Op], Tensor]
) -> dict[str, Tensor]:
    """Layer name -> the sum of `moment(x, op)` over all calls of the layer, in one pass over the batches."""
    totals: dict[str, Tensor] = {}

    def watch(layer: Layer) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = at_least_float32((args[0] if args else kwargs["input"]).detach())
            # A single image may come without a batch; a linear layer takes any number of leading dimensions.
            x = x.reshape(-1, *x.shape[-3:]) if isinstance(layer.op, Conv2dOp) else x.reshape(-1, x.shape[-1])
            found = moment(x, layer.op)
            totals[layer.name] = totals[layer.name].add_(found) if layer.name in totals else found

        return add

    with looked_at(model, network), torch.no_grad(), ExitStack() as hooks:
        for layer in network.layers:
            hook = model.get_submodule(layer.name).register_forward_pre_hook(watch(layer), with_kwargs=True)
            hooks.callback(hook.remove)
        for batch in calibration_batches(data, count):
            data.loss(model, batch)  # what runs the model; the loss itself is not used
    for layer in network.layers:
        if layer.name not in totals:
            raise NetworkError(
                f"layer {layer.name!r} must run on the calibration data, but did not; keep it dense, or choose a "
                "pruner that needs no activations"
            )
        if not totals[layer.name].isfinite().all():
            raise NetworkError(
                f"layer {layer.name!r}: its inputs must be finite, but some are NaN or infinite; check that the "
                "weights and the calibration data are finite"
            )
    return {layer.name: totals[layer.name] for layer in network.layers}
