"""What a server of TVM's RPC offers on a machine with a GPU: the measuring process, spoken to in lines.

The server forks a process for each session, in which the functions are called one after the other. Each returns soon,
so that both sides notice within their limits that the other is gone.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from pathlib import Path
from threading import Thread

import tvm_ffi

from pruneaug.kernels.cuda.program import generator_digest
from pruneaug.platforms.detect import installed
from pruneaug.profiler.cuda.process import worker_process
from pruneaug.profiler.lines import LineProcess, ProcessEnded

PREFIX = "pruneaug.gpu."
FUNCTIONS = ("versions", "start", "send", "read", "append", "part")  # methods of `Measuring`
_LOG = logging.getLogger("RPCServer")  # TVM's own


def register() -> None:
    """Offer the functions to the sessions of this process's server; to be called where the server begins."""
    multiprocessing.set_start_method("fork", force=True)  # whatever else starts a session's process knows no functions
    measuring = Measuring()
    for name in FUNCTIONS:
        tvm_ffi.register_global_func(PREFIX + name, getattr(measuring, name), override=True)


def versions() -> dict[str, str]:
    """What must be the same on both sides: what kernels and records are made by."""
    return {**dict(installed(["pruneaug"])), "the generator of kernels": generator_digest()}


class Measuring:
    """The measuring process of a session, in whose folder uploaded files are."""

    def __init__(self) -> None:
        self._process: LineProcess | None = None
        self._called = 0.0

    def versions(self) -> str:
        """`versions` as JSON."""
        self._called = time.monotonic()
        return json.dumps(versions())

    def start(self, device: str, index: int, silence_s: float) -> None:
        """Start the measuring process as `worker_process` does; it ends with the session.

        The session ends when no function is called for `silence_s`: its client is gone, and others wait for the GPU.
        """
        self._called = time.monotonic()
        self._process = worker_process(device, index)
        Thread(target=self._watch, args=(silence_s,), daemon=True).start()

    def send(self, line: str) -> None:
        """Write a line of JSON to the process."""
        self._called = time.monotonic()
        self._started().send(json.loads(line))

    def read(self, wait_s: float) -> str:
        """The next line of the process, "" if there is none within `wait_s`; the event "ended" if the process ends."""
        self._called = time.monotonic()
        try:
            return self._started().poll(wait_s) or ""
        except ProcessEnded as ended:
            return json.dumps({"event": "ended", "error": str(ended)})

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file in the session's folder: a large one comes in parts."""
        self._called = time.monotonic()
        with Path(name).open("ab") as file:
            file.write(data)

    def part(self, name: str, start: int, size: int) -> bytes:
        """So many bytes of a file in the session's folder, fewer where it ends."""
        self._called = time.monotonic()
        with Path(name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _started(self) -> LineProcess:
        assert self._process is not None
        return self._process

    def _watch(self, silence_s: float) -> None:
        while (left_s := self._called + silence_s - time.monotonic()) > 0:
            time.sleep(left_s)
        _LOG.warning("a session ends: its client has been silent for %g s", silence_s)
        os._exit(0)  # this is a thread; the main one waits for the client
