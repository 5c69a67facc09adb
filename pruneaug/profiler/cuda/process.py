"""The parent's side of the process that measures on a GPU: a crash or a hang costs the subject that was tried."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pruneaug.errors import InputError, MeasurementError
from pruneaug.platforms.cuda import Gpu
from pruneaug.profiler.cuda.cases import Group, Subject
from pruneaug.profiler.cuda.records import GpuRecord, failed
from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.process import worker_environment

DEVICE = "pruneaug.profiler.cuda.device:TorchDevice"
TIMEOUT_S = 90.0
BUDGET_S = 0.5
_START_S = 180.0  # imports, the context of the GPU
_HOST_THREADS = 4  # of PyTorch on the CPU, which only prepares


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
    ) -> None:
        """`kernels` is the folder of compiled kernels, `timeout_s` the longest silence before it counts as hung.

        Rounds of a group go on for about `budget_s`. `device` is the `package.module:attr` that makes a `Device` from
        `index`, the number of the GPU.
        """
        worker = [sys.executable, "-m", "pruneaug.profiler.cuda.worker"]
        self._command = [*worker, "--device", device, "--index", str(index)]
        self.kernels = kernels
        self._timeout_s, self._budget_s = timeout_s, budget_s
        self._process: LineProcess | None = None

    def __enter__(self) -> GpuProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def gpu(self) -> Gpu:
        """What the process measures on. Raises InputError if there is no GPU, MeasurementError if it does not start."""
        self._stop()
        self._process = LineProcess(self._command, worker_environment(_HOST_THREADS))
        try:
            event = json.loads(self._process.read(_START_S))
        except ProcessEnded as ended:
            self._stop()
            raise MeasurementError(f"the measuring process must start, but it {ended}; run `pruneaug doctor`") from None
        if event["event"] == "stopped":
            self._stop()
            raise InputError(event["error"])
        facts = event["gpu"]
        return Gpu(**{**facts, "capability": tuple(facts["capability"])})

    def measure(self, group: Group, subjects: Sequence[Subject], gpu: str) -> Iterator[GpuRecord]:
        """Exactly one record for each subject; `gpu` is the name for those that the process could not write.

        Raises MeasurementError if the process cannot be started again.
        """
        left = list(subjects)
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
            for subject in blamed:
                left.remove(subject)
                yield failed(group, subject, gpu, why)

    def _events(self, group: Group, subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
        """What the process says until it is done. Raises ProcessEnded."""
        if self._process is None:
            self.gpu()
        process = self._process
        assert process is not None
        process.send(
            {
                "group": group.to_json(),
                "subjects": [[subject.library, subject.variant] for subject in subjects],
                "kernels": str(self.kernels.absolute()),
                "budget_s": self._budget_s,
            }
        )
        while (event := json.loads(process.read(self._timeout_s)))["event"] != "done":
            yield event

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()
