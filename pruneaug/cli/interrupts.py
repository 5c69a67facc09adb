"""Ctrl-C: once ends the work cleanly, twice ends the process at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pruneaug.report import Progress

INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def stoppable(progress: Progress) -> Iterator[Progress]:
    """Inside, the first Ctrl-C raises KeyboardInterrupt, and a second one ends the process without any cleaning up."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a job in the background is not what Ctrl-C is for
        with progress:
            yield progress
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if progress.stopping:
            end_at_once()
        progress.stopping = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        with progress:
            yield progress
    finally:
        signal.signal(signal.SIGINT, before)


def end_at_once() -> None:
    """End this process now. The kernel frees its lock; workers end with their driver."""
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    os.write(2, b"\nstopped at once; finished trials are kept\n")
    os._exit(INTERRUPTED)


def how_to_go_on() -> str:
    """The command that goes on with this one: itself."""
    return shlex.join(["pruneaug", *sys.argv[1:]])
