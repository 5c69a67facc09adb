import pytest
import torch
from sklearn.datasets import load_digits

from pruneaug.errors import PluginError, TaskError
from pruneaug.spec.models import PlugIn, TaskSpec
from pruneaug.tasks import Task, build_task


def make(**options):
    return build_task(TaskSpec(name="digits", options=options, model=PlugIn(name="digits_cnn")))


@pytest.fixture(scope="module")
def task():
    return make()


def pixels(task, split):
    (images,) = task.splits[split].inputs
    return images


def test_it_is_an_untrained_task(task):
    assert isinstance(task, Task)
    assert not task.trained


def test_the_split_is_60_20_20_with_all_classes_alike(task):
    assert [task.size(split) for split in ("train", "validation", "test")] == [1079, 359, 359]
    for split in ("validation", "test"):
        counts = task.splits[split].targets.bincount()
        exact = torch.bincount(torch.from_numpy(load_digits().target)) * (359 / 1797)
        assert (counts - exact).abs().max() < 2


def test_the_images_are_scikit_learns():
    small = make(size=8)
    ours = torch.cat([pixels(small, split) for split in small.splits]).flatten(1).float()
    theirs = (torch.from_numpy(load_digits().data) * 255 / 16).round().float()
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_the_splits_are_the_same_on_every_call(task):
    again = make()
    for split in task.splits:
        assert torch.equal(pixels(task, split), pixels(again, split))


def test_inputs_are_normalised_images_of_the_asked_size(task):
    (inputs,) = task.example_inputs(3)
    assert inputs.shape == (3, 1, 32, 32)
    assert inputs.dtype == torch.float32
    assert make(size=16).example_inputs(2)[0].shape == (2, 1, 16, 16)


def test_the_network_takes_the_inputs_and_is_the_same_on_every_call(task):
    model, again = task.build_model(), task.build_model()
    assert model is not again
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert task.logits(model(*task.example_inputs(2))).shape == (2, 10)


def test_a_size_below_the_original_is_refused():
    with pytest.raises(TaskError, match="`size` must be at least 8, but got 4"):
        make(size=4)


def test_an_unknown_option_is_refused():
    with pytest.raises(PluginError, match="did you mean 'size'"):
        make(sise=32)


@pytest.mark.slow
def test_digits_cnn_learns_the_digits():
    task = make(size=16, pad=1)
    model = task.build_model().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3 * 17)
    for epoch in range(3):
        for batch in task.batches("train", 64, seed=epoch):
            optimizer.zero_grad()
            task.loss(model(*batch.inputs), batch).backward()
            optimizer.step()
            schedule.step()
    assert task.evaluate(model, "validation") > 0.9
