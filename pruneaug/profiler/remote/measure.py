"""Measuring one op on a remote device: kernels compiled here, checked and timed there by the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pruneaug.errors import DeviceError, MeasurementError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.cross import Libraries
from pruneaug.kernels.layers import layer_calls
from pruneaug.kernels.products import Weights
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.latency.records import LatencyRecord, error_record
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.platforms.remote import remote_platform
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.plan import Cell
from pruneaug.profiler.remote.chain import Chain, Memory
from pruneaug.profiler.remote.facts import read_facts
from pruneaug.profiler.remote.session import TRIES, ConnectionLostError, Session
from pruneaug.sparsity.patterns import Block, parse_pattern
from pruneaug.spec.models import RemoteSpec

_MOST_VARIANTS = 3
_LARGE_MATRIX = 50_000  # weights; masks of larger ones vary less than times do
_LARGEST_ERROR = 1e-4  # products of these lengths stay below 1e-5; a wrong kernel is far above
_VISITS = 8  # of each kernel in turn, so that a drift of the device meets all alike
_MOST_RUNS = 5  # in each visit


@dataclass(slots=True)
class _Bench:
    """An op that is measured: its arrays on the device while a session lasts, and the fastest variant of each pattern
    at the sparsity that was measured last."""

    data: OpData
    memory: Memory | None = None
    fastest: dict[Block | None, Variant] = field(default_factory=dict)


class RemoteMeasurer:
    """Measures cells on the device of a spec's section `remote`, in float32, by our kernels only.

    A session that ends is begun again, a few times for each cell. It is renewed between cells, and the server ends one
    in which a kernel hangs.
    """

    def __init__(
        self, platform: Platform, *, remote: Mapping[str, Any], seeds: Sequence[int] = (0, 1), budget_s: float = 0.1
    ) -> None:
        """`budget_s` is about the time that each cell's repeats take; `seeds` are those of its masks.

        Raises DeviceError if the device does not answer, is another one than `platform`, or cannot be compiled for.
        """
        self._platform = platform
        self._remote = RemoteSpec.model_validate(remote)
        self._seeds = tuple(seeds)
        self._budget_s = budget_s
        self._libraries = Libraries(CpuTarget(**platform.kernel_target()), self._remote.compiler)
        self._compilers = ThreadPoolExecutor(_MOST_VARIANTS)
        self._session = open_session(self._remote, platform, 2 * self._remote.timeout_s)

    def measure(self, op: Op, cells: Sequence[Cell]) -> Iterator[LatencyRecord]:
        """One record for each cell, in order, as soon as it is measured; a cell that fails yields its error.

        Raises DeviceError if the device is lost: the cells that are left have no record.
        """
        bench = _Bench(OpData(op))
        for cell in cells:
            try:
                record = self._patiently(bench, cell)
            except DeviceError:
                raise
            except Exception as error:  # one broken kernel never ends a profile
                record = error_record(
                    op, cell.pattern, cell.sparsity, cell.library, dtype=self._platform.dtype,
                    threads=self._platform.threads, measured_at=_now(), error=f"{type(error).__name__}: {error}",
                )  # fmt: skip
            yield record

    def _patiently(self, bench: _Bench, cell: Cell) -> LatencyRecord:
        """The record of a cell, in another session where one ends."""
        if time.monotonic() - self._session.opened > self._remote.timeout_s:
            self._reopen(bench)
        for left in reversed(range(TRIES)):
            if bench.memory is None:
                bench.memory = Memory(self._session)
            try:
                return self._measure(bench, cell)
            except ConnectionLostError as error:
                self._reopen(bench)
                if error.timed_out or not left:
                    raise MeasurementError(
                        f"the device must measure {cell.pattern}@{cell.sparsity:g} within timeout_s, "
                        f"{self._remote.timeout_s:g} s, but its session ended: {error}; look at the server's log"
                    ) from error
        raise AssertionError("unreachable")

    def _reopen(self, bench: _Bench) -> None:
        """Begin another session, and forget what the old one held."""
        bench.memory = None
        self._session.close()
        self._session = open_session(self._remote, self._platform, 2 * self._remote.timeout_s)

    def _measure(self, bench: _Bench, cell: Cell) -> LatencyRecord:
        if cell.library != RUNTIME_LIBRARY:
            raise MeasurementError(f"a remote device measures our kernels only, but got the library {cell.library}")
        assert bench.memory is not None
        data, block = bench.data, parse_pattern(cell.pattern)
        variants = self._variants(bench, block, cell.sparsity)
        seeds = self._seeds if block is not None and data.matrix.numel() <= _LARGE_MATRIX else self._seeds[:1]
        chains: list[Chain] = []
        try:
            for seed in seeds:
                mask = data.mask(block, cell.sparsity, seed)
                weights = Weights(data.matrix, mask, data.bias)
                target = self._libraries.target
                layers = [layer_calls(data.op, weights, variant, target) for variant in variants]
                paths = self._compilers.map(lambda layer: self._libraries.chain(layer[2]), layers)
                chains += [
                    Chain(bench.memory, path, data.x, layer, 4 * int(mask.sum()))
                    for path, layer in zip(paths, layers, strict=True)
                ]
            first = data.mask(block, cell.sparsity, seeds[0])
            errors = [
                _checked(data.relative_error(chain.result(), first), cell, variant)
                for chain, variant in zip(chains, variants)
            ]
            times = self._times(chains).reshape(len(seeds), len(variants), -1)
        finally:
            for chain in chains:
                chain.free()
        # The first half of the runs chooses the variant, the second half times it: a lucky reading earns nothing.
        half = times.shape[-1] // 2
        best = int(np.median(times[:, :, :half], axis=2).mean(axis=0).argmin())
        bench.fastest[block] = variants[best]
        return self._record(cell, str(variants[best]), times[:, best, half:].reshape(-1), errors[best])

    def _times(self, chains: Sequence[Chain]) -> npt.NDArray[np.float64]:
        """Microseconds of every run of every chain: [chains, runs]."""
        once_us = sum(float(chain.time(1, untimed=1)[0]) for chain in chains)
        runs = max(1, min(_MOST_RUNS, int(self._budget_s * 1e6 / (_VISITS * max(once_us, 1e-3)))))
        visits = [[chain.time(runs, untimed=2) for chain in chains] for _ in range(_VISITS)]
        return np.stack([np.concatenate(of_one) for of_one in zip(*visits, strict=True)])

    def _variants(self, bench: _Bench, block: Block | None, sparsity: float) -> list[Variant]:
        """What is measured: the likeliest, and later the fastest at the pattern's last sparsity beside the first."""
        target = self._libraries.target
        found = candidates(
            bench.data.op, 1 if block is None else block.rows, sparsity,
            lanes=target.lanes, registers=target.registers, threads=target.threads, most=_MOST_VARIANTS,
        )  # fmt: skip
        last = bench.fastest.get(block)
        return found if last is None else list(dict.fromkeys([last, found[0]]))

    def _record(self, cell: Cell, variant: str, times: npt.NDArray[np.float64], error: float) -> LatencyRecord:
        p10, median, p90 = np.percentile(times, (10, 50, 90))
        return LatencyRecord(
            cell.op, cell.pattern, cell.sparsity, cell.library, variant, self._platform.dtype, self._platform.threads,
            latency_us=float(median), p10_us=float(p10), p90_us=float(p90), runs=times.size,
            max_relative_error=error, measured_at=_now(),
        )  # fmt: skip


def open_session(remote: RemoteSpec, platform: Platform, limit_s: float) -> Session:
    """A session of at most `limit_s` with a device that is `platform`, with its threads.

    Raises DeviceError if the device does not answer or is another one.
    """
    session = Session(remote, limit_s)
    try:
        found = remote_platform(remote.hardware, read_facts(session, remote), platform.threads, platform.name)
        if differences := platform.hardware_differences(found):
            raise DeviceError(
                f"the device at {remote.address} must be the platform {platform.name!r}, but it is another one: "
                f"{'; '.join(differences)} (here: the platform, there: the device); choose another platform.name"
            )
        session.use_threads(platform.threads)
    except ConnectionLostError as error:
        raise DeviceError(
            f"the device at {remote.address} must stay connected, but its session ended at once: {error}; look at the "
            "server's log"
        ) from error
    except BaseException:
        session.close()
        raise
    return session


def _checked(error: float, cell: Cell, variant: Variant) -> float:
    """The relative error. Raises MeasurementError if it is too large."""
    if not error <= _LARGEST_ERROR:
        raise MeasurementError(
            f"a relative error must be at most {_LARGEST_ERROR:g}, but variant {variant} of {cell} has {error:g} on "
            "the device; please report it"
        )
    return error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
