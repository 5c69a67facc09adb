"""Random weights that are the same on every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator inside, and puts its state back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
