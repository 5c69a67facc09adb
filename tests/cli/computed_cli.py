"""The command line with computed times, for tests that kill it: `python computed_cli.py search job.yaml`."""

import os
import pathlib
import signal
import sys

import torch

from pruneaug.cli import main
from pruneaug.testing.network import computed_times


def run_until_killed(words, killed_at):
    """The command, killed just before it puts its file of this number (from 1) in place; 0: not killed."""
    torch.set_num_threads(1)
    real, put = pathlib.Path.replace, []

    def replace(self, target):
        put.append(target)
        if len(put) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)

    pathlib.Path.replace = replace
    sys.argv = ["pruneaug", *words]
    with computed_times(), open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with computed_times():
        main()
