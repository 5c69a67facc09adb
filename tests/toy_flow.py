"""A job that runs in seconds, and the command line in this process, for the tests of the verbs and commands."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import yaml

from pruneaug.cli import main

TRAIN = {"epochs": 4, "batch_size": 32, "learning_rate": 0.05}
SHORT = {"epochs": 1, "batch_size": 32, "learning_rate": 0.02}


def toy_job(folder, **changes):
    """A job with its run and its latency table in `folder`; `changes` are dotted keys with `__` for the dots."""
    job = {
        "run": str(folder / "run"),
        # Layers as small as these have nothing to gain at a smaller batch.
        "task": {"name": "pruneaug.testing.task:ToyTask", "train": dict(TRAIN)},
        "platform": {"batch": 1024, "threads": 1, "latency_db": str(folder / "db")},
        "space": {"patterns": ["block:1x1", "block:8x1"], "sparsities": [0.5, 0.9]},
        "search": {"trials": 3, "strategy": "random", "max_accuracy_loss": 0.5},
        "finetune": {"trial": dict(SHORT), "final": dict(SHORT)},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = job
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return job


def write_job(folder, **changes):
    """The path of `toy_job` as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(toy_job(folder, **changes)))
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def pruneaug(*words):
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["pruneaug", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    return Ended(code, out.getvalue(), err.getvalue())
