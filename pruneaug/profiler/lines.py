"""A child process that is spoken to in JSON lines, and that may crash or hang."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from pruneaug.errors import MeasurementError
from pruneaug.files import storage_errors

_END_S = 5.0  # a process's output ends a moment before it does
_LAST_WORDS = 1500  # characters
_READ_BYTES = 65536


class ProcessEnded(MeasurementError):
    """How a child ended, or that it hung; its last words included."""


class LineProcess:
    """One child: JSON lines to its stdin, JSON lines from its stdout. What it writes to stderr explains its death."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with storage_errors("a temporary file"):
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self._buffer = b""
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches the parent only, which then kills this whole group
        )

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, value: Mapping[str, Any]) -> None:
        """Write one line; if the process is dead, the next `read` tells how it died."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def read(self, timeout_s: float) -> str:
        """The next line. Raises ProcessEnded if the process ends or is silent for `timeout_s`."""
        line = self.poll(timeout_s)
        if line is None:
            raise self._failure(f"hung: it gave no result within {timeout_s:g} s")
        return line

    def poll(self, timeout_s: float) -> str | None:
        """The next line; None if there is none within `timeout_s`. Raises ProcessEnded if the process ends."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                return None
            data = os.read(descriptor, _READ_BYTES)
            if not data:
                raise self._failure(None)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """End the process and its children, if they have not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # closing flushes a line that was never read
                pipe.close()
        self._stderr.close()

    def _failure(self, reason: str | None) -> ProcessEnded:
        """Why the process is of no use: `reason`, or else how it ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.0 if reason else _END_S)
        code = self._process.poll()
        if reason is None:
            if code is None:
                reason = "closed its output"
            else:
                reason = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip()[-_LAST_WORDS:]
        return ProcessEnded(f"{reason}: {words}" if words else reason)
