"""The time of every operator of a compiled network, measured while the network runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from tvm import relax

_OWN = "vm.builtin."  # what the virtual machine does between the operators


def operator_times(
    machine: relax.VirtualMachine, inputs: Sequence[Any], *, function: str = "main", repeats: int = 10
) -> list[tuple[str, float]]:
    """Name and median microseconds of every kernel that `function` calls for `inputs`, in the order of the calls.

    A kernel that is called twice is there twice. The virtual machine's own work, some microseconds a kernel, is left
    out; asking for the time adds about one microsecond to each. Call it from the thread whose pool of threads is set.
    """
    runs: list[list[tuple[str, float]]] = []
    started_ns = 0

    def instrument(_: Any, name: str, is_before: bool, *__: Any) -> int:
        nonlocal started_ns
        if is_before:
            started_ns = time.perf_counter_ns()
        elif not name.startswith(_OWN):
            runs[-1].append((name, (time.perf_counter_ns() - started_ns) / 1e3))
        return 0  # go on

    call = machine[function]
    call(*inputs)  # the first call allocates
    machine.set_instrument(instrument)
    try:
        for _ in range(repeats):
            runs.append([])
            call(*inputs)
    finally:
        machine.set_instrument(None)
    return [(calls[0][0], statistics.median(us for _, us in calls)) for calls in zip(*runs, strict=True)]
