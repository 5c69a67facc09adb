"""What pruners share when they look at data: the batches, and a network that is only looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pruneaug.errors import InputError, NetworkError, SpecError
from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.protocol import CalibrationData
from pruneaug.tasks.protocol import Batch


def required(data: CalibrationData | None, method: str) -> CalibrationData:
    """The calibration data. Raises InputError if there is none."""
    if data is None:
        raise InputError(
            f"{method} pruning needs calibration data, but got none; give training data "
            "(`TaskCalibration(task, batch_size)`), or choose 'magnitude', 'lamp' or 'random', which need none"
        )
    return data


def check_batches(batches: int) -> int:
    """Raises SpecError unless the option `batches` is a positive number."""
    if batches < 1:
        raise SpecError(f"`batches` of calibration data must be at least 1, but got {batches}")
    return batches


def calibration_batches(data: CalibrationData, count: int) -> Iterator[Batch]:
    """At most `count` batches. Raises InputError if there is none."""
    empty = True
    for batch in data.batches(count):
        empty = False
        yield batch
    if empty:
        raise InputError("calibration needs at least one batch of training data, but got none; check the training data")


@contextmanager
def looked_at(model: nn.Module, network: Network) -> Iterator[dict[str, nn.Parameter]]:
    """The weights of the network's layers by name, of a model that may now be run and differentiated.

    It is in eval mode: no dropout, and batch norm uses its statistics and does not update them. Frozen weights have
    gradients too. Modes, `requires_grad` and the random state are as before afterwards; `.grad` is not used.
    """
    weights = {layer.name: get_weight(model, layer.name) for layer in network.layers}
    training = {module: module.training for module in model.modules()}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    devices = sorted({weight.device.index or 0 for weight in weights.values() if weight.is_cuda})
    with torch.random.fork_rng(devices=devices):
        model.eval()
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            yield weights
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
            for module, flag in training.items():
                module.training = flag


def check_finite(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Raises NetworkError if a layer's scores hold what is no number."""
    wrong = scores.numel() - int(scores.isfinite().sum())
    if wrong:
        raise NetworkError(
            f"layer {name!r}: scores must be finite, but {wrong} of {scores.numel()} are NaN or infinite; check that "
            "the weights, the calibration data and the loss are finite"
        )
    return scores
