"""Evaluators with faults, for workers: told by number of evaluation, counted over all processes in a log."""

import os
import signal
import time
from pathlib import Path

from toy_search import gentle, make_job, make_parts

from pruneaug.searcher.study import run_search
from pruneaug.testing.evaluator import AnalyticEvaluator
from pruneaug.testing.task import ToyTask


class Faulty(AnalyticEvaluator):
    """`faults` maps the number of an evaluation, from 1, to what happens in it; each line of `log` is one, begun."""

    def __init__(self, log, faults=None, delay_s=0.0):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)
        self.log, self.faults, self.delay_s = Path(log), faults or {}, delay_s

    def prune(self, assignment, *, seed, **options):
        with self.log.open("a") as file:
            file.write(f"{seed}\n")
        fault = self.faults.get(len(self.log.read_text().splitlines()))
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hang":
            time.sleep(3600)
        elif fault == "hang for good":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            time.sleep(3600)
        elif fault is not None:
            raise fault
        time.sleep(self.delay_s)
        candidate = super().prune(assignment, seed=seed, **options)
        with self.log.with_suffix(".done").open("a") as file:
            file.write(f"{seed}\n")
        return candidate


class Placed(AnalyticEvaluator):
    """Notes the GPUs that its process sees, and goes on when `together` evaluations have begun."""

    def __init__(self, log, together=1):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)
        self.log, self.together = Path(log), together

    def prune(self, assignment, **options):
        with self.log.open("a") as file:
            file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.getpid()}\n")
        until = time.monotonic() + 60
        while len(self.log.read_text().splitlines()) < self.together:
            if time.monotonic() > until:
                raise TimeoutError(f"no {self.together} evaluations at a time")
            time.sleep(0.02)
        return super().prune(assignment, **options)


class Unloadable(AnalyticEvaluator):
    """Goes to a worker, where nothing can make it again."""

    def __init__(self):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)

    def __reduce__(self):
        return _missing, ()


def _missing():
    raise ModuleNotFoundError("No module named 'of_the_user'")


class DyingTask(ToyTask):
    """Kills its process in the evaluation, by number from 1, counted over all processes in a log of steps."""

    def __init__(self, log, die_at=0):
        super().__init__("cnn")
        self.note = (Path(log), die_at)

    def loss(self, *args, **options):
        self._write("step")
        return super().loss(*args, **options)

    def evaluate(self, model, split):
        self._write("evaluate")
        log, die_at = self.note
        if [line.split()[0] for line in log.read_text().splitlines()].count("evaluate") == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(model, split)

    def _write(self, what):
        with self.note[0].open("a") as file:
            file.write(f"{what} {os.getpid()}\n")


def run(folder, evaluator, **search):
    task, network, table = make_parts()
    job = make_job(**{"executor": {"name": "processes"}, **search})
    return run_search(job, task, network, table, 5.0, folder, evaluator=evaluator)
