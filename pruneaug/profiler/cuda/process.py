"""The parent's side of the process that measures on a GPU: a crash or a hang costs the subject that was tried."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from pruneaug.errors import DeviceError, InputError, MeasurementError, PruneaugError
from pruneaug.platforms.cuda import Gpu, gpu_platform
from pruneaug.profiler.cuda.cases import Group, Subject
from pruneaug.profiler.cuda.records import GpuRecord, failed
from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.process import worker_environment

DEVICE = "pruneaug.profiler.cuda.device:TorchDevice"
TIMEOUT_S = 90.0
BUDGET_S = 0.5
START_S = 180.0  # imports, the context of the GPU
_HOST_THREADS = 4  # of PyTorch on the CPU, which only prepares
SESSIONS = 3  # with a remote GPU, for one group or for all networks
_KEPT = "what was measured is kept, and the same command goes on from there"


class SessionEnded(MeasurementError):
    """The session with the machine of a remote GPU has ended; another one may work."""


def worker_process(device: str = DEVICE, index: int = 0) -> LineProcess:
    """The measuring process of a GPU of this machine, started: see `pruneaug.profiler.cuda.worker`."""
    command = [sys.executable, "-m", "pruneaug.profiler.cuda.worker", "--device", device, "--index", str(index)]
    return LineProcess(command, worker_environment(_HOST_THREADS))


def gpu_of(ready: Mapping[str, Any]) -> Gpu:
    """The GPU that the first event of a measuring process tells of."""
    facts = ready["gpu"]
    return Gpu(**{**facts, "capability": tuple(facts["capability"])})


class GpuProcess:
    """The measuring process, started when it is asked for something and again after each crash or hang."""

    def __init__(
        self,
        kernels: Path,
        *,
        timeout_s: float = TIMEOUT_S,
        budget_s: float = BUDGET_S,
        device: str = DEVICE,
        index: int = 0,
        start: Callable[[], LineProcess] | None = None,
        start_s: float = START_S,
    ) -> None:
        """`kernels` is the folder of compiled kernels, `timeout_s` the longest silence before it counts as hung.

        Rounds of a group go on for about `budget_s`. `device` is the `package.module:attr` that makes a `Device` from
        `index`, the number of the GPU. Or `start` starts another process that speaks as `worker_process` does, which
        may take `start_s` until it does.
        """
        self._start = start or partial(worker_process, device, index)
        self.kernels = kernels
        self._timeout_s, self._start_s, self._budget_s = timeout_s, start_s, budget_s
        self._process: LineProcess | None = None
        self._first: Gpu | None = None

    def __enter__(self) -> GpuProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def gpu(self) -> Gpu:
        """What the process measures on.

        Raises InputError if there is no GPU, DeviceError if a remote one cannot be used or if it is another than it was
        at the first call, MeasurementError if the process does not start.
        """
        self._stop()
        self._process = self._start()
        try:
            found = gpu_of(self._heard(self._process, self._start_s))
        except ProcessEnded as ended:
            self._stop()
            raise MeasurementError(f"the measuring process must start, but it {ended}; run `pruneaug doctor`") from None
        except PruneaugError:
            self._stop()
            raise
        self._check_same(found)
        return found

    def measure(self, group: Group, subjects: Sequence[Subject], gpu: str) -> Iterator[GpuRecord]:
        """Exactly one record for each subject; `gpu` is the name for those that the process could not write.

        A session with a remote GPU that ends costs no subject: what has no record is measured in another one, a few
        times. Raises DeviceError if that fails, MeasurementError if the process cannot be started again.
        """
        left, ended_sessions = list(subjects), 0
        while left:
            trying: list[Subject] = []
            try:
                for event in self._events(group, left):
                    if event["event"] == "trying":
                        trying = [] if event["subject"] is None else [Subject(*event["subject"])]
                    else:
                        record = GpuRecord.from_json(event["record"])
                        left.remove(record.subject)
                        yield record
                why = "the measuring process gave no record for it"
                blamed = list(left)
            except ProcessEnded as ended:
                self._stop()
                why = f"the measuring process {ended}"
                # After its record a subject may still end the process; then the others have lost nothing.
                blamed = [subject for subject in trying or left if subject in left]
            except SessionEnded as ended:
                self._stop()
                ended_sessions += 1
                if ended_sessions == SESSIONS:
                    raise DeviceError(
                        f"the machine of the GPU must stay connected, but {SESSIONS} sessions ended while "
                        f"{group.op.key} was measured: {ended}; look at the server's log; {_KEPT}"
                    ) from None
                continue
            except DeviceError as error:
                raise DeviceError(f"{error}; {_KEPT}") from error
            for subject in blamed:
                left.remove(subject)
                yield failed(group, subject, gpu, why)

    def asked(self, task: Mapping[str, Any], extra_s: float = 0.0) -> Iterator[dict[str, Any]]:
        """What the process says of a task until it is done; it may be silent for `extra_s` longer.

        Raises ProcessEnded, SessionEnded, DeviceError, and what `gpu` raises if it is to be started.
        """
        if self._process is None:
            self.gpu()
        process = self._process
        assert process is not None
        process.send(task)
        while (event := self._heard(process, self._timeout_s + extra_s))["event"] != "done":
            yield event

    def _events(self, group: Group, subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
        task = {
            "group": group.to_json(),
            "subjects": [[subject.library, subject.variant] for subject in subjects],
            "kernels": str(self.kernels.absolute()),
            "budget_s": self._budget_s,
        }
        return self.asked(task)

    @staticmethod
    def _heard(process: LineProcess, limit_s: float) -> dict[str, Any]:
        """The next event, if it is none of an end.

        Raises InputError if there is no GPU, DeviceError, ProcessEnded, SessionEnded.
        """
        event: dict[str, Any] = json.loads(process.read(limit_s))
        match event["event"]:
            case "stopped":
                raise InputError(event["error"])
            case "refused":
                raise DeviceError(event["error"])
            case "lost":
                raise SessionEnded(event["error"])
            case "ended":
                raise ProcessEnded(event["error"])
        return event

    def _check_same(self, found: Gpu) -> None:
        """Raises DeviceError for another kind of GPU than the one that answered first."""
        self._first = self._first or found
        first, now = (gpu_platform(gpu, dtype="any") for gpu in (self._first, found))
        if differences := first.hardware_differences(now):
            raise DeviceError(
                f"all times must be of one kind of GPU, but another one answers: {'; '.join(differences)} (here: the "
                "first, there: this one); give a tracker's key to equal ones only"
            )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()
