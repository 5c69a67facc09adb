import pytest
import torch
from torch import nn

from pruneaug.errors import TaskError, TrainingError
from pruneaug.tasks import Batch, ClassificationTask, Examples, Task
from pruneaug.tasks.pixels import CropAndFlip


def examples(count, first=0):
    """Sample i is the number i, its class i % 3."""
    numbers = torch.arange(first, first + count)
    return Examples((numbers.float()[:, None],), numbers % 3)


def make_task(build=lambda: nn.Linear(1, 3), **changes):
    splits = {"train": examples(20), "validation": examples(7, 100), "test": examples(5, 200)}
    return ClassificationTask(**({"name": "toy", "build": build, "splits": splits, "num_classes": 3} | changes))


class Constant(nn.Module):
    """The same logits for every sample."""

    def __init__(self, logits):
        super().__init__()
        self.dropout = nn.Dropout()
        self.row = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.row.expand(len(x), -1)


def test_it_is_a_task():
    assert isinstance(make_task(), Task)


def test_without_a_seed_batches_come_in_order_and_whole():
    batches = list(make_task().batches("train", 8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.inputs[0] for batch in batches]).flatten().tolist() == list(range(20))
    assert torch.cat([batch.targets for batch in batches]).tolist() == [i % 3 for i in range(20)]


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [7, 7, 6]), (19, [10, 10]), (50, [20]), (1, [1] * 20)])
def test_with_a_seed_batches_are_a_permutation_in_even_batches(batch_size, sizes):
    batches = list(make_task().batches("train", batch_size, seed=1))
    assert [len(batch) for batch in batches] == sizes
    order = torch.cat([batch.inputs[0] for batch in batches]).flatten().long()
    assert sorted(order.tolist()) == list(range(20))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), order % 3)


def test_the_seed_decides_order_and_augmentation():
    images = torch.randint(0, 256, (12, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Examples((images,), torch.arange(12) % 3)
    task = make_task(splits=dict.fromkeys(("train", "validation", "test"), data), augment=CropAndFlip(2, True))
    first, again, other = (torch.cat([b.inputs[0] for b in task.batches("train", 4, seed)]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.cat([b.inputs[0] for b in task.batches("train", 4)]), images)


def test_example_inputs_repeat_a_small_set():
    (inputs,) = make_task().example_inputs(45)
    assert inputs.flatten().tolist() == [i % 20 for i in range(45)]


def test_accuracy_is_the_share_of_right_answers():
    task = make_task()
    labels = [i % 3 for i in range(100, 107)]
    assert task.evaluate(Constant([0.0, 5.0, 1.0]), "validation") == pytest.approx(labels.count(1) / 7)


def test_evaluation_leaves_the_model_in_the_mode_it_was_in():
    model = Constant([0.0, 1.0, 2.0]).train()
    model.dropout.eval()
    make_task().evaluate(model, "test")
    assert model.training
    assert not model.dropout.training


def test_loss_is_the_cross_entropy():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    batch = Batch((torch.zeros(4, 1),), torch.tensor([0, 2, 1, 1]))
    log_probabilities = logits - logits.exp().sum(1, keepdim=True).log()
    exact = -log_probabilities[torch.arange(4), batch.targets].mean()
    smoothed = 0.9 * exact - 0.1 * log_probabilities.mean()
    task = make_task()
    torch.testing.assert_close(task.loss(logits, batch), exact)
    torch.testing.assert_close(task.loss(logits, batch, label_smoothing=0.1), smoothed)


class Output:
    logits = torch.eye(2)


@pytest.mark.parametrize(
    "output",
    [torch.eye(2), Output(), {"logits": torch.eye(2)}, (torch.eye(2), None)],
    ids=["tensor", "object", "dict", "tuple"],
)
def test_logits_are_found_in_what_networks_return(output):
    assert torch.equal(make_task().logits(output), torch.eye(2))


@pytest.mark.parametrize("output", [None, {}, (), "text"])
def test_an_output_without_logits_is_refused(output):
    with pytest.raises(TaskError, match="must return its logits"):
        make_task().logits(output)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_a_training_error(value):
    with pytest.raises(TrainingError, match=r"7 of 7 samples of a validation batch.*lower learning rate"):
        make_task().evaluate(Constant([0.0, value, 0.0]), "validation")


def test_a_network_with_too_few_classes_is_refused():
    with pytest.raises(TaskError, match=r"label 2 and 2 classes.*num_classes=3"):
        make_task().evaluate(Constant([0.0, 1.0]), "test")


def test_logits_of_another_shape_are_refused():
    with pytest.raises(TaskError, match=r"\[batch, classes\] with batch 4, but got \[4, 3, 2\]"):
        make_task().loss(torch.zeros(4, 3, 2), Batch((), torch.zeros(4, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("split", "data", "message"),
    [
        ("test", examples(0), "the test data .* must hold at least one sample"),
        ("validation", Examples((torch.zeros(3, 1),), torch.tensor([0, 3, 1])), "0..2, but the validation .* label 3"),
        ("train", Examples((torch.zeros(2, 1),), torch.tensor([0, -1])), "label -1"),
        ("train", Examples((torch.zeros(2, 1),), torch.tensor([0])), "as many inputs as labels"),
    ],
)
def test_wrong_data_is_refused(split, data, message):
    splits = dict(make_task().splits) | {split: data}
    with pytest.raises(TaskError, match=message):
        make_task(splits=splits)
