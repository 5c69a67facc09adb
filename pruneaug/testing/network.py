"""Whole networks whose times are computed: every verb works without measuring anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from pruneaug.platforms.platform import Platform
from pruneaug.profiler import run
from pruneaug.profiler.network import NetworkTime, Progress, Subject
from pruneaug.profiler.plan import Cell
from pruneaug.testing.platform import ANALYTIC_MEASURER, analytic_latency_us

_REST_US = 5.0
_FULL_RATE = "block:8x1"
_PEAK_GFLOPS = 100.0


def analytic_times(
    subjects: Sequence[Subject], platform: Platform, *, progress: Progress | None = None, **_: Any
) -> tuple[NetworkTime, ...]:
    """A rest and the layers' computed times, at the masks' densities; PyTorch's runtimes are slower than ours."""
    network = next(subject.network for subject in subjects if subject.network is not None)
    times = []
    for done, subject in enumerate(subjects, 1):
        library = "tvm" if subject.network is not None else "torch"
        cells = []
        for layer in network.layers:
            mask = subject.masks.get(layer.name)
            density = 1.0 if mask is None else float(mask.float().mean())
            pattern = "dense" if mask is None else _FULL_RATE
            cells += layer.calls * [Cell(layer.op, pattern, 1 - density, library)]
        latency_ms = (_REST_US + sum(analytic_latency_us(cell, platform) for cell in cells)) / 1e3
        times.append(NetworkTime(subject.runtime, latency_ms, 0.99 * latency_ms, 1.03 * latency_ms, 1, 0.0))
        if progress is not None:
            progress(done, len(subjects), subject.runtime)
    return tuple(times)


@contextmanager
def computed_times() -> Iterator[None]:
    """Inside, the verbs and the command line compute every time: a whole run takes seconds, on any machine alike."""

    def profile_ops(*args: Any, **kwargs: Any) -> run.ProfileResult:
        return run.profile_ops(*args, **{**kwargs, "measurer": ANALYTIC_MEASURER})

    with (
        patch("pruneaug.api.profiling.profile_ops", profile_ops),
        patch("pruneaug.api.bench_kernels.profile_ops", profile_ops),
        patch("pruneaug.api.bench_kernels.measure_peak", lambda platform: _PEAK_GFLOPS),
        patch("pruneaug.profiler.place.time_networks", analytic_times),
    ):
        yield
