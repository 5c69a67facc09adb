import pytest
from toy_search import gentle, make_job, make_parts, search

from pruneaug.errors import RunError, TrainingError
from pruneaug.searcher.candidate import Candidate
from pruneaug.searcher.final import finalize, load_best
from pruneaug.searcher.rundir import RunDir, read_json
from pruneaug.testing.evaluator import AnalyticEvaluator
from pruneaug.testing.task import ToyTask


class Refining(AnalyticEvaluator):
    """A long fine-tuning that ends with a given accuracy."""

    def __init__(self, outcome):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)
        self.outcome = outcome

    def refine(self, weights, masks, **options):
        super().refine(weights, masks, **options)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        changed = {name: tensor + 1.0 for name, tensor in weights.items()}
        return Candidate(changed, masks, self.outcome, 5.0)


class CountingTask(ToyTask):
    """Counts the readings of the test data."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "read", [])

    def evaluate(self, model, split):
        self.read.append(split)
        return super().evaluate(model, split)


def test_the_longer_fine_tuning_is_kept_if_it_helps(tmp_path):
    result, _ = search(tmp_path, evaluator=Refining(0.999))
    assert result.best_accuracy == 0.999
    assert read_json(tmp_path / "best" / "record.json")["error"] is None


@pytest.mark.parametrize("outcome", [0.5, float("nan"), TrainingError("not finite")])
def test_the_trials_network_is_kept_if_the_longer_fine_tuning_does_not_help(tmp_path, outcome):
    result, _ = search(tmp_path, evaluator=Refining(outcome))
    assert result.best_accuracy == result.best.accuracy_validation
    kept = tmp_path / "weights" / str(result.best.number) / "model.safetensors"
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == kept.read_bytes()


def test_the_longer_fine_tuning_is_done_once_per_best_trial(tmp_path):
    first, evaluator = search(tmp_path, make_job(trials=3))
    assert evaluator.refined == 1
    assert search(tmp_path, make_job(trials=3))[1].refined == 0
    second, evaluator = search(tmp_path, make_job(trials=9))
    assert second.best.number != first.best.number
    assert evaluator.refined == 1
    assert load_best(make_parts()[0], RunDir(tmp_path)).trial == second.best


def test_the_test_data_is_read_once_for_each_network_however_often_it_is_asked_for(tmp_path):
    _, network, table = make_parts()
    task = CountingTask()
    result, _ = search(tmp_path, parts=(task, network, table))
    assert "test" not in task.read

    scores = [finalize(task, RunDir(tmp_path)) for _ in range(2)]

    assert task.read.count("test") == 2
    assert scores[0] == scores[1]
    best = load_best(task, RunDir(tmp_path))
    assert scores[0].best == ToyTask().evaluate(best.model, "test")
    assert best.trial == result.best


def test_without_a_feasible_trial_only_the_dense_network_is_tested(tmp_path):
    search(tmp_path, accuracy=lambda sparsity: 0.0)
    task = CountingTask()
    scores = finalize(task, RunDir(tmp_path))
    assert scores.best is None
    assert scores.dense > 0.9
    assert task.read == ["test"]


def test_finalize_needs_a_dense_network(tmp_path):
    with pytest.raises(RunError, match=r"dense/model\.safetensors"):
        finalize(ToyTask(), RunDir(tmp_path))
