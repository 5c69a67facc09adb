"""`local`: one trial at a time, in the driver's own process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pruneaug.errors import SpecError
from pruneaug.searcher.executors.protocol import Setup
from pruneaug.searcher.executors.sending import on_device
from pruneaug.searcher.progress import work_progress
from pruneaug.searcher.work import Event, OnRung, TrialWork, do_work


class Local:
    """Trains in the driver's process when it is waited for. `device`: where, such as `cuda`."""

    is_isolated = False
    capacity = 1

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._queue: deque[TrialWork] = deque()

    def open(self, setup: Setup) -> None:
        if setup.workers != 1:
            raise SpecError(
                f"search.executor.workers must be 1 for the executor 'local', but got {setup.workers}; choose "
                "`name: processes` or `name: ray` for more"
            )
        self._evaluator, self._progress = on_device(setup.evaluator, self._device), setup.progress

    def submit(self, work: TrialWork) -> None:
        self._queue.append(work)

    def wait(self, on_rung: OnRung) -> Sequence[Event]:
        work = self._queue.popleft()
        return (do_work(work, self._evaluator, on_rung, work_progress(self._progress, work)),)

    def stop(self, key: str) -> None:
        self._queue = deque(work for work in self._queue if work.key != key)

    def close(self) -> None:
        self._queue.clear()
