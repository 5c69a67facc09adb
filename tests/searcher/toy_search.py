"""A small search for the tests of this folder; also a program, so that a driver can be killed."""

import functools
import importlib
import os
import signal
import sys
from pathlib import Path

import torch

from pruneaug.network.layers import find_layers
from pruneaug.searcher.study import run_search
from pruneaug.spec.load import parse_job
from pruneaug.testing.evaluator import AnalyticEvaluator
from pruneaug.testing.platform import analytic_table
from pruneaug.testing.task import ToyTask

PATTERNS = ["block:1x1", "block:8x1"]
SPARSITIES = [0.5, 0.7, 0.9]
REST_US = 5.0
TRAIN = {"epochs": 4, "batch_size": 32, "learning_rate": 0.05}
SHORT = {"epochs": 1, "batch_size": 32, "learning_rate": 0.02}


def make_job(**search):
    return parse_job(
        {
            "task": {"name": "pruneaug.testing.task:ToyTask", "train": TRAIN},
            "space": {"patterns": PATTERNS, "sparsities": SPARSITIES},
            "search": {"strategy": "joint", "trials": 6, "max_accuracy_loss": 0.02, **search},
            "finetune": {"trial": SHORT, "final": SHORT},
        }
    )


@functools.cache
def make_parts(kind="mlp", noise=1.0):
    """(task, network, table); the toy layers are so small that only a batch gives them anything to gain."""
    task = ToyTask(kind, noise=noise)
    network = find_layers(task.build_model(), task.example_inputs(4096))
    return task, network, analytic_table([layer.op for layer in network.layers], PATTERNS, SPARSITIES)


def gentle(sparsity):
    """An accuracy that stays within 0.02 of 1 up to a mean sparsity of about 0.77."""
    return 1.0 - 0.033 * sparsity**2


def search(folder, job=None, evaluator=None, accuracy=gentle, parts=None, **options):
    """(result, evaluator) of a search that computes its accuracies; the dense network has accuracy 1."""
    task, network, table = parts or make_parts()
    evaluator = evaluator or AnalyticEvaluator(task, network, accuracy)
    result = run_search(job or make_job(), task, network, table, REST_US, folder, evaluator=evaluator, **options)
    return result, evaluator


class LoggingEvaluator(AnalyticEvaluator):
    """Writes one line per evaluation; one of them, by its index over all processes, never ends."""

    def __init__(self, log, block_at=-1):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)
        self.log, self.block_at = Path(log), block_at

    def prune(self, assignment, **options):
        self._note(str(sorted((name, str(choice)) for name, choice in assignment.items())))
        return super().prune(assignment, **options)

    def refine(self, weights, masks, **options):
        self._note("refine")
        return super().refine(weights, masks, **options)

    def _note(self, line):
        begun = len(self.log.read_text().splitlines()) if self.log.exists() else 0
        with self.log.open("a") as file:
            file.write(line + "\n")
        if begun == self.block_at:
            print("blocked", flush=True)
            sys.stdin.read()


def search_until_killed(folder, log, function, call):
    """A search whose process is killed just before the given call (from 1) of `package.module:function`."""
    torch.set_num_threads(1)
    module_name, name = function.split(":")
    module = importlib.import_module(module_name)
    real, calls = getattr(module, name), []

    def kill_at(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, name, kill_at)
    search(folder, evaluator=LoggingEvaluator(log))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_folder, log_file, block = sys.argv[1:]
    search(run_folder, evaluator=LoggingEvaluator(log_file, int(block)))
    print("finished", flush=True)
