"""A worker process: `python -m pruneaug.searcher.executors.worker DESCRIPTOR`, started by `processes`.

It gets its set-up, then one work after the other, over a socket whose other end its driver holds. It ends when the
driver does, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

_PR_SET_PDEATHSIG = 1
_PROGRESS_S = 0.5  # between two reports of how far a training is


def main() -> None:
    _die_with_driver()
    channel: Connection[Any, Any] = Connection(int(sys.argv[1]))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(channel, inbox), daemon=True).start()
    setup = inbox.get()
    sys.path[:] = setup["path"]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    import torch

    from pruneaug.searcher.executors.sending import unpack
    from pruneaug.searcher.work import RungScore, TrialWork, do_work

    torch.set_num_threads(setup["threads"])
    try:
        evaluator = unpack(setup["evaluator"], setup["device"])
    except Exception as error:  # whatever importing a user's modules raises
        channel.send(("unusable", f"{type(error).__name__}: {error}"))
        return
    channel.send(("ready", None))
    told = 0.0

    def on_rung(work: TrialWork, rungs: tuple[RungScore, ...]) -> bool:
        channel.send(("rung", rungs))
        return bool(inbox.get())

    def progress(step: int, total: int, loss: float) -> None:
        nonlocal told
        if step == total or time.monotonic() - told > _PROGRESS_S:
            told = time.monotonic()
            channel.send(("progress", (step, total, loss)))

    while True:
        channel.send(("done", do_work(inbox.get(), evaluator, on_rung, progress)))


def _receive(channel: Connection[Any, Any], inbox: queue.SimpleQueue[Any]) -> None:
    """Take what the driver sends; when it is gone, so is this process, whatever it is doing."""
    try:
        while True:
            inbox.put(channel.recv())
    except (EOFError, OSError):
        os._exit(0)


def _die_with_driver() -> None:
    """On Linux the kernel sees to it even while no Python runs here."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver


if __name__ == "__main__":
    main()
