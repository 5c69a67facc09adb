"""The dense network: its early weights, for fine-tuners that go back to them, and what a kill costs."""

import warnings

import pytest
import torch
from toy_search import make_parts

from pruneaug.finetune.train import Train
from pruneaug.searcher.dense import early_weights, prepare_dense
from pruneaug.searcher.rundir import RunDir, read_json
from pruneaug.spec.models import TrainSpec

SPEC = TrainSpec(epochs=4, batch_size=32, learning_rate=0.05)


class Rewinding(Train):
    early_fraction = 0.5


class Killed(BaseException):
    pass


class Dying(Train):
    """Ends at a step as if it was killed."""

    def finetune(self, *args, rungs, **options):
        def progress(step, total, loss):
            if step == 3 * total // 4:
                raise Killed

        return super().finetune(*args, rungs=rungs, **{**options, "progress": progress})


class DyingRewinding(Dying, Rewinding):
    """Its early weights are kept long before it dies."""


def dense(folder, finetuner, progress=None):
    task, _, _ = make_parts("cnn")
    told = None if progress is None else lambda stage, step, total, note: progress(step, total)
    model, accuracy = prepare_dense(task, SPEC, finetuner, RunDir(folder), seed=1, progress=told)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, accuracy


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_weights_that_a_fine_tuner_goes_back_to_are_kept_and_change_nothing(tmp_path):
    plain, _ = dense(tmp_path / "plain", Train())
    weights, _ = dense(tmp_path / "rewinding", Rewinding())
    assert same(plain, weights)
    assert early_weights(RunDir(tmp_path / "plain")) is None
    task, _, _ = make_parts("cnn")
    reference = task.build_model()
    seen = {}

    def snapshot(step, total, loss):
        if step == total // 2:
            seen.update({name: tensor.clone() for name, tensor in reference.state_dict().items()})

    Train().finetune(reference, None, task, SPEC, seed=1, progress=snapshot)
    assert same(early_weights(RunDir(tmp_path / "rewinding")), seen)


@pytest.mark.parametrize("before", [Dying, DyingRewinding])
def test_a_dense_training_that_was_killed_goes_on_and_ends_with_the_same_bits(tmp_path, stored_at_each_step, before):
    plain, accuracy = dense(tmp_path / "plain", Train())
    try:
        dense(tmp_path / "killed", before())
        raise AssertionError("it must be killed")
    except Killed:
        pass
    assert RunDir(tmp_path / "killed").checkpoint("dense").exists()
    steps = []
    after = (Rewinding if before is DyingRewinding else Train)()
    weights, again = dense(tmp_path / "killed", after, lambda *step: steps.append(step[1]))
    assert same(plain, weights)
    assert accuracy == again
    assert not RunDir(tmp_path / "killed").checkpoint("dense").exists()
    assert len(steps) == max(steps) // 4 + 1  # what was left, and the step that was not stored


def test_a_network_that_is_hardly_better_than_guessing_is_warned_of_at_every_search(tmp_path):
    task, _, _ = make_parts("cnn")
    hopeless = TrainSpec(epochs=1e-3, batch_size=32, learning_rate=1e-9)
    chance = max(torch.bincount(torch.cat([batch.targets for batch in task.batches("validation", 64)]))).item()
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="should be far better than guessing"):
            prepare_dense(task, hopeless, Train(), RunDir(tmp_path / "hopeless"), seed=1)
    record = read_json(tmp_path / "hopeless" / "dense" / "record.json")
    assert record["accuracy_chance"] == chance / task.size("validation")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert dense(tmp_path / "trained", Train())[1] > 0.5
