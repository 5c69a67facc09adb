"""`processes`: several trials at a time on this machine, each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pruneaug.errors import SpecError, TrainingError
from pruneaug.searcher.executors.protocol import Setup
from pruneaug.searcher.executors.sending import cannot_load, pack
from pruneaug.searcher.progress import work_progress
from pruneaug.searcher.work import Event, Failed, Lost, OnRung, TrialWork, timeout_text

_GRACE_S = 5.0  # in which a trial that took too long can end itself, before its process is killed
_STARTS = 3  # a worker that ends by itself so often before it is ready will never be


class Processes:
    """Worker processes that live as long as the driver; one that dies is replaced when its place is needed.

    `threads`: of each worker; by default the cores are shared out. `gpus`: the worker of index i trains on the GPU
    number `gpus[i % len(gpus)]`; name a GPU twice to have two workers share it.
    """

    is_isolated = True

    def __init__(self, threads: int | None = None, gpus: Sequence[int] | None = None) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise SpecError(f"search.executor.options.threads must be a whole number from 1 on, but got {threads!r}")
        self._threads, self._gpus = threads, list(gpus or ())
        self._workers: list[_Worker | None] = []
        self._failed_starts = 0

    def open(self, setup: Setup) -> None:
        self._setup, self._packed = setup, pack(setup.evaluator)
        self._workers = [None] * setup.workers

    @property
    def capacity(self) -> int:
        return len(self._workers)

    def submit(self, work: TrialWork) -> None:
        place = next(i for i, worker in enumerate(self._workers) if worker is None or worker.work is None)
        worker = self._workers[place]
        if worker is None or not worker.is_alive:
            if worker is not None:
                worker.kill()
            worker = self._workers[place] = self._start(place)
        worker.begin(work)

    def wait(self, on_rung: OnRung) -> Sequence[Event]:
        while True:
            busy = [worker for worker in self._workers if worker is not None and worker.work is not None]
            wait([source for worker in busy for source in worker.sources], _seconds_to(busy))
            events = [event for worker in busy if (event := self._serve(worker, on_rung)) is not None]
            if events:
                return events

    def stop(self, key: str) -> None:
        for place, worker in enumerate(self._workers):
            if worker is not None and worker.work is not None and worker.work.key == key:
                worker.kill()
                self._workers[place] = None

    def close(self) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.kill()
        self._workers = []

    def _start(self, place: int) -> _Worker:
        cores = len(os.sched_getaffinity(0))
        threads = self._threads or max(1, cores // len(self._workers))
        gpu = self._gpus[place % len(self._gpus)] if self._gpus else None
        worker = _Worker(self._setup.folder / "workers" / f"{place}.log", threads, gpu)
        device = None if gpu is None else "cuda"
        worker.send({"path": sys.path, "threads": threads, "device": device, "evaluator": self._packed})
        return worker

    def _serve(self, worker: _Worker, on_rung: OnRung) -> Event | None:
        """What one worker has to tell; None if its work goes on."""
        work = worker.work
        assert work is not None
        is_alive = worker.is_alive  # before its last messages are read, or one could come in between
        while (message := worker.receive()) is not None:
            kind, content = message
            if kind == "done":
                worker.work = None
                return content  # type: ignore[no-any-return]
            if kind == "ready":
                self._failed_starts = 0
                worker.make_ready()
            elif kind == "rung":
                worker.send(on_rung(work, content))
            elif kind == "progress" and (progress := work_progress(self._setup.progress, work)) is not None:
                progress(*content)
            elif kind == "unusable":
                raise cannot_load(content)
        if not is_alive:
            worker.work = None
            self._count_failed_start(worker)
            return Lost(work, worker.how_it_ended(), worker.seconds)
        if worker.deadline is not None and time.monotonic() > worker.deadline:
            worker.kill()
            worker.work = None
            return Failed(work, f"TrialTimeout: {timeout_text(work)}", worker.seconds)
        return None

    def _count_failed_start(self, worker: _Worker) -> None:
        if worker.is_ready or worker.exit_code < 0:  # killed from outside
            return
        self._failed_starts += 1
        if self._failed_starts >= _STARTS:
            raise TrainingError(
                f"a worker process must start, but it {worker.how_it_ended()} {_STARTS} times; see {worker.log}"
            )


class _Worker:
    """One worker process, from the driver's side."""

    def __init__(self, log: Path, threads: int, gpu: int | None) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pruneaug.searcher.executors.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the driver, and a kill takes its data loaders too
            )
        self._channel: Connection[Any, Any] = Connection(ours.detach())
        self._ended = os.pidfd_open(self._process.pid)
        self._began = time.monotonic()
        self._is_closed = False
        self.log = log
        self.work: TrialWork | None = None
        self.is_ready = False
        self.deadline: float | None = None

    @property
    def sources(self) -> list[Any]:
        """What becomes readable when there is something to know."""
        return [self._channel, self._ended]

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int:
        """Negative: the signal that killed it."""
        return self._process.wait()

    @property
    def seconds(self) -> float:
        """Of the work that it has, or had last."""
        return time.monotonic() - self._began

    def begin(self, work: TrialWork) -> None:
        self.work = work
        self._began = time.monotonic()
        self._set_deadline()
        self.send(work)

    def make_ready(self) -> None:
        """It has loaded the task; only now the time of its first work begins."""
        self.is_ready = True
        self._began = time.monotonic()
        self._set_deadline()

    def send(self, message: object) -> None:
        with suppress(OSError):  # a worker that died is noticed when it is waited for
            self._channel.send(message)

    def receive(self) -> tuple[str, Any] | None:
        """The next message; None if there is none."""
        try:
            return self._channel.recv() if self._channel.poll() else None
        except (EOFError, OSError):
            return None

    def how_it_ended(self) -> str:
        code = self.exit_code
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL; by the kernel, as memory ran out?)"
        return f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def kill(self) -> None:
        """End it and whatever it started; once."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._ended)
        self._channel.close()

    def _set_deadline(self) -> None:
        limit_s = None if self.work is None else self.work.timeout_s
        self.deadline = None if limit_s is None or not self.is_ready else time.monotonic() + limit_s + _GRACE_S


def _seconds_to(workers: Sequence[_Worker]) -> float | None:
    """Until the first deadline."""
    deadlines = [worker.deadline for worker in workers if worker.deadline is not None]
    return max(0.0, min(deadlines) - time.monotonic()) + 0.01 if deadlines else None
