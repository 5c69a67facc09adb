"""Gradients of the calibration loss with respect to the weights of the prunable layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from pruneaug.errors import NetworkError
from pruneaug.network.layers import Network
from pruneaug.pruners.calibration import calibration_batches, looked_at
from pruneaug.pruners.protocol import CalibrationData
from pruneaug.tasks.protocol import Batch


def batch_gradients(
    model: nn.Module, network: Network, data: CalibrationData, count: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(samples, layer name -> gradient of their mean loss) of each of at most `count` batches."""
    return _gradients(model, network, data, calibration_batches(data, count))


def sample_gradients(
    model: nn.Module, network: Network, data: CalibrationData, samples: int
) -> Iterator[dict[str, Tensor]]:
    """Layer name -> gradient of the loss of one sample, for at most `samples` of them."""
    single = (
        Batch(tuple(tensor[index : index + 1] for tensor in batch.inputs), batch.targets[index : index + 1])
        for batch in calibration_batches(data, samples)
        for index in range(len(batch))
    )
    few = islice(single, samples)
    return (gradients for _, gradients in _gradients(model, network, data, few))


def mean_gradients(model: nn.Module, network: Network, data: CalibrationData, count: int) -> dict[str, Tensor]:
    """Layer name -> gradient of the mean loss over all samples of at most `count` batches, at least float32."""
    total: dict[str, Tensor] = {}
    seen = 0
    for samples, gradients in batch_gradients(model, network, data, count):
        seen += samples
        for name, gradient in gradients.items():
            part = at_least_float32(gradient) * samples
            total[name] = total[name] + part if name in total else part
    return {name: gradient / seen for name, gradient in total.items()}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; the rest as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_reached(names: Iterable[str], gradients: Iterable[Tensor | None]) -> Mapping[str, Tensor]:
    """Name -> gradient. Raises NetworkError for a layer that the loss does not reach."""
    reached = {}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            raise NetworkError(
                f"layer {name!r} got no gradient: the loss does not depend on its weight; keep it dense, "
                "or choose a pruner that needs no gradients"
            )
        reached[name] = gradient
    return reached


def _gradients(
    model: nn.Module, network: Network, data: CalibrationData, batches: Iterable[Batch]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    with looked_at(model, network) as weights:
        for batch in batches:
            with torch.enable_grad():
                loss = data.loss(model, batch)
                if not loss.requires_grad:
                    check_reached(weights, [None] * len(weights))
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            yield len(batch), dict(check_reached(weights, found))
