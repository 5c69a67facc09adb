"""The parent's side of the measuring process: start, ask, notice a crash or a hang, start again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pruneaug.errors import DeviceError, LatencyTableError, MeasurementError
from pruneaug.latency.records import LatencyRecord, record_from_json
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.plan import Task

# Of glibc: memory that is freed stays with the process, and need not be mapped page by page for the next kernel.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
_START_S = 180.0  # imports of compilers take long on a busy machine


class TaskFailure(MeasurementError):
    """One task crashed, hung or raised; the next may work."""


class WorkerProcess:
    """The measuring process, started when the first task comes and again after each crash or hang."""

    def __init__(self, platform: Platform, measurer: str, timeout_s: float) -> None:
        self._command = [sys.executable, "-m", "pruneaug.profiler.worker", "--measurer", measurer]
        self._environment = {**worker_environment(platform.threads), **_KEPT_MEMORY}
        self._timeout_s = timeout_s
        self._process: LineProcess | None = None
        self._is_ready = False
        self._is_closed = False

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._stop()

    def measure(self, task: Task) -> Iterator[LatencyRecord]:
        """The task's records as they come.

        Raises TaskFailure if the process crashes, raises or writes nothing for `timeout_s`; MeasurementError if it
        cannot even start; DeviceError if the measurer has lost its device.
        """
        if self._is_closed:  # another thread has stopped the profile
            raise MeasurementError("a measuring process must not be used after its end")
        if self._process is None:
            self._process, self._is_ready = LineProcess(self._command, self._environment), False
        self._process.send(task.to_json())
        while True:
            line = self._read(self._process)
            match json.loads(line).get("event"):
                case "ready":
                    self._is_ready = True
                case "done":
                    return
                case "failed":
                    raise TaskFailure(json.loads(line)["error"])
                case "stopped":
                    self._stop()
                    raise DeviceError(json.loads(line)["error"])
                case _:
                    yield _record(line)

    def _read(self, process: LineProcess) -> str:
        limit_s = self._timeout_s if self._is_ready else max(_START_S, self._timeout_s)
        try:
            return process.read(limit_s)
        except ProcessEnded as ended:
            self._stop()
            if self._is_ready:
                raise TaskFailure(f"the measuring process {ended}") from None
            raise MeasurementError(f"the measuring process must start, but it {ended}; run `pruneaug doctor`") from None

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


def worker_environment(threads: int) -> dict[str, str]:
    """This process's environment, with every thread pool set to `threads` and this pruneaug importable."""
    pools = ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **dict.fromkeys(pools, str(threads)), "PYTHONPATH": os.pathsep.join(paths)}


def _record(line: str) -> LatencyRecord:
    try:
        return record_from_json(line)
    except LatencyTableError as error:
        raise TaskFailure(f"the measurer gave a broken record: {error}") from error
