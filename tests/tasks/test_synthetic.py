import pytest
import torch

from pruneaug.errors import TaskError
from pruneaug.spec.models import PlugIn
from pruneaug.tasks.network import NetworkSource
from pruneaug.tasks.synthetic import synthetic


def test_images_have_the_asked_shape_and_classes():
    task = synthetic(NetworkSource(PlugIn(name="resnet20")), shape=(3, 32, 32), classes=7, samples=5)
    (inputs,) = task.example_inputs(2)
    assert inputs.shape == (2, 3, 32, 32)
    assert task.build_model()(inputs).shape == (2, 7)
    assert [task.size(split) for split in ("train", "validation", "test")] == [5, 5, 5]
    assert task.trained


def test_the_data_are_the_same_on_every_call_and_differ_between_splits():
    first, second = (synthetic(NetworkSource(PlugIn(name="resnet20")), shape=(3, 32, 32)) for _ in range(2))
    torch.testing.assert_close(first.splits["train"].inputs, second.splits["train"].inputs)
    assert not torch.equal(first.splits["train"].inputs[0], first.splits["test"].inputs[0])


def test_tokens_stay_within_the_vocabulary():
    task = synthetic(NetworkSource(PlugIn(name="bert_base")), shape=(12,), vocabulary=50, classes=2, samples=3)
    (tokens,) = task.example_inputs(3)
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) < 50


@pytest.mark.parametrize("options", [{"samples": 0}, {"shape": []}, {"shape": [3, 0, 4]}])
def test_empty_data_are_refused(options):
    with pytest.raises(TaskError, match="at least 1"):
        synthetic(NetworkSource(PlugIn(name="resnet20")), **options)
