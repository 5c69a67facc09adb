"""Measuring one op on a remote device: kernels compiled here, checked and timed there by the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pruneaug.errors import DeviceError, MeasurementError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.cross import Libraries
from pruneaug.kernels.layers import layer_calls
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.kernels.weights import Weights
from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.platforms.remote import remote_platform
from pruneaug.profiler.cells import MOST_VARIANTS, Times, checked, failed, fastest, mask_seeds, timed, to_try
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.plan import Cell
from pruneaug.profiler.remote.chain import Chain, Memory
from pruneaug.profiler.remote.facts import read_facts
from pruneaug.profiler.remote.session import TRIES, ConnectionLostError, Session, tried
from pruneaug.sparsity.patterns import Pattern, parse_pattern
from pruneaug.spec.platform import RemoteSpec

_LARGEST_ERROR = 1e-4  # products of these lengths stay below 1e-5; a wrong kernel is far above
_VISITS = 8  # of each kernel in turn, so that a drift of the device meets all alike
_MOST_RUNS = 5  # in each visit


@dataclass(slots=True)
class _Bench:
    """An op that is measured: its arrays on the device while a session lasts, and the fastest variant of each pattern
    at the sparsity that was measured last."""

    data: OpData
    memory: Memory | None = None
    fastest: dict[Pattern | None, Variant] = field(default_factory=dict)


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
        self._compilers = ThreadPoolExecutor(MOST_VARIANTS)
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
                record = failed(cell, self._platform, f"{type(error).__name__}: {error}")
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
        variants = to_try(self._likeliest(data.op, block, cell.sparsity), bench.fastest.get(block))
        seeds = mask_seeds(data.op, block, self._seeds)
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
                checked(
                    data.relative_error(chain.result(), first),
                    _LARGEST_ERROR,
                    cell,
                    self._platform.dtype,
                    f"the device's variant {variant}",
                )
                for chain, variant in zip(chains, variants)
            ]
            times = self._times(chains).reshape(len(seeds), len(variants), -1)
        finally:
            for chain in chains:
                chain.free()
        best, times_us = fastest(times)
        bench.fastest[block] = variants[best]
        return timed(cell, self._platform, str(variants[best]), times_us, errors[best])

    def _times(self, chains: Sequence[Chain]) -> Times:
        """Microseconds of every run of every chain: [chains, runs]."""
        once_us = sum(float(chain.time(1, untimed=1)[0]) for chain in chains)
        runs = max(1, min(_MOST_RUNS, int(self._budget_s * 1e6 / (_VISITS * max(once_us, 1e-3)))))
        visits = [[chain.time(runs, untimed=2) for chain in chains] for _ in range(_VISITS)]
        return np.stack([np.concatenate(of_one) for of_one in zip(*visits, strict=True)])

    def _likeliest(self, op: Op, block: Pattern | None, sparsity: float) -> list[Variant]:
        target = self._libraries.target
        return candidates(
            op, 1 if block is None else block.rows, sparsity,
            lanes=target.lanes, registers=target.registers, threads=target.threads, most=MOST_VARIANTS,
        )  # fmt: skip


def open_session(remote: RemoteSpec, platform: Platform, limit_s: float) -> Session:
    """A session of at most `limit_s` with a device that is `platform`, with its threads.

    Raises DeviceError if the device does not answer or is another one.
    """
    return tried(remote, lambda: _opened(remote, platform, limit_s))


def _opened(remote: RemoteSpec, platform: Platform, limit_s: float) -> Session:
    session = Session(remote, limit_s)
    try:
        found = remote_platform(remote.hardware, read_facts(session, remote), platform.threads, platform.name)
        if differences := platform.hardware_differences(found):
            raise DeviceError(
                f"the device at {remote.address} must be the platform {platform.name!r}, but it is another one: "
                f"{'; '.join(differences)} (here: the platform, there: the device); choose another platform.name"
            )
        session.use_threads(platform.threads)
    except BaseException:
        session.close()
        raise
    return session
