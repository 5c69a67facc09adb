"""A toy task whose trials take long, for tests that stop a search; a job names it as `slow_task:Slow`."""

import os
import time
from pathlib import Path

from pruneaug.testing.task import ToyTask


class Slow(ToyTask):
    """Each step takes so many seconds as the file `gate` says, none if it does not exist; `asleep` tells of a long one.

    hangs: Ctrl-C in a step is followed by a cleaning up that takes a minute.
    """

    def __init__(self, gate, hangs=False):
        super().__init__()
        self.gate, self.hangs = Path(gate), hangs

    def loss(self, outputs, batch, **options):
        if self.gate.exists():
            try:
                seconds = float(self.gate.read_text() or 0)
                if seconds > 1:
                    self.gate.with_name("asleep").touch()
                time.sleep(seconds)
            except KeyboardInterrupt:
                if self.hangs:
                    os.write(2, b"cleaning up\n")
                    time.sleep(60)
                raise
        return super().loss(outputs, batch, **options)
