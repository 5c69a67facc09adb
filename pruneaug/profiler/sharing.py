"""Tasks shared out over workers that measure at the same time, each on a device of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Queue
from threading import Lock, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Ended:
    """A worker has ended, with the error that stopped it, if one did."""

    error: BaseException | None = None


class _Left(Generic[Item]):
    """The tasks that no worker has begun."""

    def __init__(self, tasks: Sequence[Item]) -> None:
        self._tasks, self._lock = list(reversed(tasks)), Lock()

    def take(self) -> list[Item]:
        """The next one; none if there is none."""
        with self._lock:
            return [self._tasks.pop()] if self._tasks else []

    def drop(self) -> None:
        with self._lock:
            self._tasks.clear()


def share(tasks: Sequence[Item], workers: Sequence[Callable[[Item], Iterator[Result]]]) -> Iterator[Result]:
    """The results of all tasks as they come: a worker that is free takes the next task.

    What stops a worker is raised at the end, when the others have done the tasks that are left: no result is lost. A
    single worker works in this thread, and only as far as results are asked for.
    """
    if len(workers) == 1:
        for task in tasks:
            yield from workers[0](task)
        return
    left = _Left(tasks)
    results: Queue[tuple[Result] | _Ended] = Queue()

    def work(worker: Callable[[Item], Iterator[Result]]) -> None:
        try:
            while taken := left.take():
                for result in worker(taken[0]):
                    results.put((result,))
        except BaseException as error:
            results.put(_Ended(error))
        else:
            results.put(_Ended())

    for worker in workers:
        Thread(target=work, args=(worker,), daemon=True).start()
    errors: list[BaseException] = []
    running = len(workers)
    try:
        while running:
            got = results.get()
            if isinstance(got, tuple):
                yield got[0]
                continue
            running -= 1
            errors += [] if got.error is None else [got.error]
    finally:
        left.drop()
    if errors:
        raise errors[0]
