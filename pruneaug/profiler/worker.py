"""The measuring process: tasks in on stdin, records out on stdout, one JSON line each.

A process of its own, because a kernel may crash or hang, and because compilers change the process that imports them.
Besides records it writes events: "ready" when it can measure, and after each task "done", or "failed" with the error.
"stopped" is the last one: a remote device is lost, so that nothing can be measured.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TextIO

from pruneaug.errors import DeviceError, PluginError, PruneaugError
from pruneaug.latency.records import LatencyRecord, record_to_json
from pruneaug.network.ops import Op
from pruneaug.profiler.plan import Cell, Task

_PR_SET_PDEATHSIG = 1


class Measurer(Protocol):
    """Measures cells of one op; made with the platform and the task's options."""

    def measure(self, op: Op, cells: Sequence[Cell]) -> Iterator[LatencyRecord]:
        """Exactly one record for each cell, each as soon as it is known; a broken kernel is a record with an error.

        DeviceError, raised here or when the measurer is made, ends the profile.
        """
        ...


def load_measurer(path: str) -> Callable[..., Measurer]:
    """The measurer's factory by `package.module:attr`. Raises PluginError."""
    module_name, _, attribute = path.partition(":")
    try:
        factory: Callable[..., Measurer] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PluginError(
            f"a measurer must read `package.module:attr` and import, but {path!r} does not: {error}"
        ) from error
    return factory


def serve(tasks: TextIO, records: TextIO, factory: Callable[..., Measurer]) -> None:
    """Measure each task until the input ends."""

    def say(line: str) -> None:
        records.write(line + "\n")
        records.flush()

    measurer: Measurer | None = None
    made_for: tuple[Any, ...] = ()
    for line in tasks:
        task = Task.from_json(json.loads(line))
        try:
            if measurer is None or made_for != (task.platform, task.options):
                measurer, made_for = factory(task.platform, **task.options), (task.platform, task.options)
        except DeviceError as error:
            say(json.dumps({"event": "stopped", "error": str(error)}))
            return
        say(json.dumps({"event": "ready"}))
        try:
            for record in measurer.measure(task.op, task.cells):
                say(record_to_json(record))
        except DeviceError as error:
            say(json.dumps({"event": "stopped", "error": str(error)}))
            return
        except Exception as error:
            say(json.dumps({"event": "failed", "error": f"{type(error).__name__}: {error}"}))
        else:
            say(json.dumps({"event": "done"}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure tasks from stdin, write records to stdout.")
    parser.add_argument("--measurer", required=True, help="package.module:attr of the measurer")
    arguments = parser.parse_args()
    die_with_parent()
    with claim_stdout() as records:
        try:
            serve(sys.stdin, records, load_measurer(arguments.measurer))
        except PruneaugError as error:
            sys.exit(str(error))


def claim_stdout() -> TextIO:
    """The real stdout for records alone: whatever a library prints goes to stderr."""
    records = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return records


def die_with_parent() -> None:
    """Let Linux kill this process when its parent is killed: an orphan would disturb the next profile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
