"""Batch-norm statistics of a network whose weights have changed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruneaug.errors import TaskError
from pruneaug.tasks.protocol import Batch

BATCHNORM_BATCHES = 50  # averages settle long before


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running mean and variance of every batch norm by their plain average over `batches`, in place.

    Everything else is in eval mode meanwhile (no dropout), and each module's mode is as before afterwards. A network
    without batch norm reads no batch. A batch of a single sample is left out: it may have no variance.

    Raises TaskError if there is no batch to average over; the statistics are then untouched.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    usable = (batch for batch in batches if len(batch) > 1)
    first = next(usable, None)
    if first is None:
        raise TaskError(
            "batch-norm statistics need at least one batch of two samples, but got none; give training data"
        )
    training = {module: module.training for module in model.modules()}
    momentum = {norm: norm.momentum for norm in norms}
    device = next(model.parameters()).device
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    try:
        for batch in chain([first], usable):
            model(*batch.to(device).inputs)
    finally:
        for module, flag in training.items():
            module.training = flag
        for norm, value in momentum.items():
            norm.momentum = value
