"""What every executor must keep: subclass the contract in a test, say how to make the executor, and pytest runs it.

class TestMyExecutor(ExecutorContract):
    def make(self):
        return MyExecutor()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruneaug.errors import TrainingError
from pruneaug.finetune.protocol import Progress
from pruneaug.network.layers import find_layers
from pruneaug.pruners.protocol import Masks
from pruneaug.searcher.candidate import Candidate, Session
from pruneaug.searcher.executors.protocol import Executor, Setup
from pruneaug.searcher.weights import MASKS, MODEL, load_tensors
from pruneaug.searcher.work import Failed, Judged, RungScore, TrialWork
from pruneaug.sparsity.patterns import Assignment, Block, LayerChoice
from pruneaug.testing.evaluator import AnalyticEvaluator
from pruneaug.testing.task import ToyTask

_LAYER = "3"
_FAIL_AT = 13
"""The seed with which the contract's evaluator fails."""


class SteppingEvaluator(AnalyticEvaluator):
    """An analytic evaluator with rungs: at each it is 0.1 below its accuracy. It fails with seed 13."""

    def __init__(self) -> None:
        task = ToyTask()
        network = find_layers(task.build_model(), task.example_inputs(1))
        super().__init__(task, network, lambda sparsity: 1.0 - 0.1 * sparsity)

    def prune(
        self, assignment: Assignment, *, seed: int, progress: Progress | None = None, session: Session | None = None
    ) -> Candidate:
        if seed == _FAIL_AT:
            raise TrainingError("told to fail")
        candidate = super().prune(assignment, seed=seed, progress=progress)
        session = session or Session()
        for epochs in session.rungs:
            if not session.judge(epochs, candidate.accuracy - 0.1):
                return Candidate({}, candidate.masks, 0.0, epochs, stopped=True)
        return candidate

    def refine(self, weights: object, masks: Masks, **options: object) -> Candidate:
        raise TrainingError("not in this contract")


class ExecutorContract:
    """Of an Executor. Override `make`; a new one for each test. pytest gives `tmp_path`."""

    def make(self) -> Executor:
        raise NotImplementedError

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Executor]:
        """An executor of one worker, closed at the end."""
        executor = self.make()
        try:
            executor.open(Setup(SteppingEvaluator(), folder, workers=1))
            yield executor
        finally:
            executor.close()

    def work(self, folder: Path, number: int, seed: int = 1, rungs: tuple[float, ...] = ()) -> TrialWork:
        assignment = {_LAYER: LayerChoice(Block(1, 1), 0.5)}
        return TrialWork(str(number), number, assignment, seed, folder / "weights" / str(number), rungs=rungs)

    def test_a_work_is_judged_and_its_weights_are_on_disk(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as executor:
            assert executor.capacity >= 1
            work = self.work(tmp_path, 0)
            executor.submit(work)
            (event,) = executor.wait(lambda work, rungs: True)
        assert isinstance(event, Judged)
        assert event.work == work
        assert event.stored
        assert abs(event.accuracy - (1 - 0.1 * 0.5 / 3)) < 1e-6
        assert abs(event.sparsities[_LAYER] - 0.5) < 1e-6
        weight = load_tensors(work.folder / MODEL)[f"{_LAYER}.weight"]
        mask = load_tensors(work.folder / MASKS)[_LAYER]
        assert not bool(weight[~mask].count_nonzero())

    def test_a_work_that_raises_has_failed_and_the_next_is_done(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as executor:
            executor.submit(self.work(tmp_path, 0, seed=_FAIL_AT))
            (failed,) = executor.wait(lambda work, rungs: True)
            executor.submit(self.work(tmp_path, 1))
            (judged,) = executor.wait(lambda work, rungs: True)
        assert isinstance(failed, Failed)
        assert failed.error == "TrainingError: told to fail"
        assert not failed.full
        assert isinstance(judged, Judged)

    def test_a_rung_is_asked_about_and_may_end_the_work(self, tmp_path: Path) -> None:
        seen: list[tuple[RungScore, ...]] = []

        def on_rung(work: TrialWork, rungs: tuple[RungScore, ...]) -> bool:
            seen.append(rungs)
            return len(rungs) < 2

        with self.opened(tmp_path) as executor:
            executor.submit(self.work(tmp_path, 0, rungs=(0.25, 0.5, 0.75)))
            (event,) = executor.wait(on_rung)
            executor.submit(self.work(tmp_path, 1, rungs=(0.5,)))
            (whole,) = executor.wait(on_rung)
        assert isinstance(event, Judged)
        assert event.stopped
        assert not event.stored
        assert [[epochs for epochs, _ in rungs] for rungs in seen] == [[0.25], [0.25, 0.5], [0.5]]
        assert event.rungs == seen[1]
        assert isinstance(whole, Judged)
        assert not whole.stopped
        assert abs(whole.rungs[0][1] - (whole.accuracy - 0.1)) < 1e-6

    def test_a_work_that_was_given_up_tells_nothing(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as executor:
            executor.submit(self.work(tmp_path, 0))
            executor.stop("0")
            executor.submit(self.work(tmp_path, 1))
            (event,) = executor.wait(lambda work, rungs: True)
        assert event.work.number == 1
