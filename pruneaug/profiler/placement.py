"""A CPU for each thread of a runtime that is measured, and CPUs that lie together.

A scheduler may leave two threads of a pool on one CPU for seconds while another is idle, above all after they have
slept. Each kernel then takes twice as long, or three times if it is short; which runtime it hits, and when, is chance.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_RUN_S = 0.1  # several ticks of the clock that counts a thread's time
_TASKS = Path("/proc/self/task")


def place_threads(call: Callable[[], object], threads: int) -> None:
    """Give the main thread, and those others that work most while `call` runs, a CPU each.

    Does nothing where the process may not use as many CPUs, or where the system cannot tell threads' times. Threads
    that are started later may use the main thread's CPU only: call it again for their work, or `use_all_cpus` in them.
    """
    if sys.platform != "linux":
        return
    cpus = sorted(_allowed)
    if len(cpus) < threads:
        return
    os.sched_setaffinity(0, cpus)  # threads that the calls start inherit it
    before = _cpu_times()
    end = time.perf_counter() + _RUN_S
    while time.perf_counter() < end:
        call()
    spent = {task: ticks - before.get(task, 0) for task, ticks in _cpu_times().items() if task != os.getpid()}
    busiest = sorted(spent, key=lambda task: spent[task], reverse=True)[: threads - 1]
    for task, cpu in zip((0, *busiest), cpus):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(task, {cpu})


def use_all_cpus() -> None:
    """Give the calling thread back what `place_threads` took from the one that started it."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, _allowed)


def draw_together(threads: int, seconds: float) -> None:
    """For so long, let threads wake each other in turn, each on a CPU of its own.

    That is what a hypervisor goes by when it looks for a place for a CPU that wakes up: near the one that woke it.
    Sleeps where the process may not use as many CPUs.
    """
    cpus = sorted(_allowed)
    if threads < 2 or len(cpus) < threads:
        time.sleep(seconds)
        return
    pipes = [os.pipe() for _ in range(threads)]
    end = time.perf_counter() + seconds

    def pass_on(index: int) -> None:
        os.sched_setaffinity(0, {cpus[index]})
        reader, (_, writer) = pipes[index][0], pipes[(index + 1) % threads]
        while os.read(reader, 1) == b"1" and time.perf_counter() < end:
            os.write(writer, b"1")
        os.write(writer, b"0")  # the next one ends too

    ring = [threading.Thread(target=pass_on, args=(index,)) for index in range(threads)]
    for thread in ring:
        thread.start()
    os.write(pipes[0][1], b"1")
    for thread in ring:
        thread.join()
    for pipe in pipes:
        for end_of_pipe in pipe:
            os.close(end_of_pipe)


def _cpu_times() -> dict[int, int]:
    """Clock ticks that each thread of this process has run, by its number."""
    times = {}
    for task in _TASKS.iterdir():
        with suppress(OSError):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            times[int(task.name)] = int(fields[11]) + int(fields[12])  # in user mode and in the kernel
    return times


_allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set[int]()
