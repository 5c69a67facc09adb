import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from pruneaug.errors import TaskError
from pruneaug.tasks import Batch, Task, task_from_modules


def tensors(count, first=0):
    """Sample i is the row (i, i); its class is i % 2."""
    numbers = torch.arange(first, first + count)
    return numbers.float()[:, None].repeat(1, 2), numbers % 2


class Numbers(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.full((2,), float(index)), index % 2


def make(model=None, **changes):
    data = {"train": tensors(10), "validation": tensors(6, 100), "test": tensors(4, 200)}
    return task_from_modules(model or nn.Linear(2, 2), **(data | changes))


def numbers(batches):
    return [int(value) for batch in batches for value in batch.inputs[0][:, 0]]


KINDS = {
    "tensors": tensors(5),
    "dataset": Numbers(),
    "loader": DataLoader(Numbers(), batch_size=2, shuffle=True),
    "list": [(torch.full((1, 2), float(i)), torch.tensor([i % 2])) for i in range(5)],
    "batches": [Batch((torch.full((1, 2), float(i)),), torch.tensor([i % 2])) for i in range(5)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_every_kind_comes_in_order_without_a_seed(kind):
    task = make(train=KINDS[kind])
    batches = list(task.batches("train", 2))
    assert isinstance(task, Task)
    assert numbers(batches) == [0, 1, 2, 3, 4]
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0, 1, 0, 1, 0]
    assert task.size("train") == 5


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader"])
def test_the_batch_size_is_the_asked_one_and_the_seed_decides_the_order(kind):
    task = make(train=KINDS[kind])
    assert [len(batch) for batch in task.batches("train", 3)] == [3, 2]
    first, again, other = (numbers(task.batches("train", 3, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == [0, 1, 2, 3, 4]


def test_a_sampler_of_the_users_own_is_kept_for_training_only():
    sampler = WeightedRandomSampler([0.0, 0.0, 1.0, 0.0, 0.0], num_samples=4)
    task = make(train=DataLoader(Numbers(), batch_size=2, sampler=sampler))
    assert numbers(task.batches("train", 2, seed=0)) == [2, 2, 2, 2]
    assert numbers(task.batches("train", 2)) == [0, 1, 2, 3, 4]
    assert task.size("train") == 5


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Numbers()[i] for i in range(5))


def test_a_stream_keeps_its_batches_and_is_counted():
    task = make(train=DataLoader(Stream(), batch_size=2))
    assert [len(batch) for batch in task.batches("train", 5, seed=1)] == [2, 2, 1]
    assert task.size("train") == 5


class Ready(Dataset):
    """Whole batches at numbered places."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)


def test_a_dataset_of_whole_batches_is_not_batched_again():
    task = make(train=DataLoader(Ready(), batch_size=None))
    assert [len(batch) for batch in task.batches("train", 5)] == [3, 3]
    assert task.size("train") == 6


def test_the_users_network_is_copied():
    model = nn.Linear(2, 2)
    task = make(model)
    built = task.build_model()
    assert torch.equal(built.weight, model.weight)
    with torch.no_grad():
        built.weight.zero_()
    assert model.weight.any()
    assert task.build_model().weight.any()
    assert task.trained
    assert not make(model, trained=False).trained


def test_a_function_may_build_the_network_and_gets_the_same_random_numbers_every_time():
    task = make(lambda: nn.Linear(2, 7))
    assert torch.equal(task.build_model().weight, task.build_model().weight)
    with pytest.raises(TaskError, match=r"must build a torch.nn.Module, but built int"):
        make(lambda: 5).build_model()


def test_a_network_that_cannot_be_copied_is_refused():
    model = nn.Linear(2, 2)
    model.kept = model.weight * 2  # a tensor with a history
    with pytest.raises(TaskError, match=r"must be copyable.* give a function that builds it"):
        make(model).build_model()


def test_reading_data_leaves_the_global_generator_alone():
    task = make()
    before = torch.random.get_rng_state()
    list(task.batches("train", 2, seed=1))
    list(task.batches("train", 2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_example_inputs_are_validation_samples_or_those_given():
    assert make().example_inputs(3)[0][:, 0].tolist() == [100, 101, 102]
    assert make().example_inputs(8)[0][:, 0].tolist() == [100, 101, 102, 103, 104, 105, 100, 101]
    given = torch.tensor([[7.0, 7.0]])
    for example in (given, (given,)):
        assert make(example_inputs=example).example_inputs(2)[0].tolist() == [[7, 7], [7, 7]]


def test_accuracy_and_loss_work():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    task = make(model)
    assert task.evaluate(task.build_model(), "test") == 0.5
    batch = next(iter(task.batches("train", 10)))
    assert task.loss(model(*batch.inputs), batch).requires_grad


class TwoInputs(nn.Module):
    def forward(self, ids, mask, extra=None):
        return ids * mask


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2, 2), torch.zeros(2, 2), torch.tensor([0, 1])),
        ((torch.ones(2, 2), torch.zeros(2, 2)), torch.tensor([0, 1])),
        {"labels": torch.tensor([0, 1]), "mask": torch.zeros(2, 2), "ids": torch.ones(2, 2)},
    ],
    ids=["flat", "nested", "mapping"],
)
def test_several_inputs_are_passed_in_the_order_of_forward(batch):
    (found,) = make(TwoInputs(), train=[batch]).batches("train", 2)
    assert [tensor.sum().item() for tensor in found.inputs] == [4, 0]
    assert found.targets.tolist() == [0, 1]


@pytest.mark.parametrize("keys", [("ids", "mask"), ("ids", "extra", "labels"), ("ids", "mask", "index", "labels")])
def test_a_mapping_that_does_not_fit_forward_is_refused(keys):
    batch = {key: torch.zeros(2, dtype=torch.int64) for key in keys}
    with pytest.raises(TaskError, match=r"first arguments of the network's forward \(ids, mask, extra"):
        list(make(TwoInputs(), train=[batch]).batches("train", 2))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 2), "but got torch.float32"),
        ((torch.zeros(2, 2),), "but got tuple of Tensor"),
        ((torch.zeros(2, 2), [0, 1]), "but got tuple of Tensor, list"),
        ((torch.zeros(2, 2), torch.zeros(2)), r"integers of the shape \[batch\].* but got torch.float32 \[2\]"),
        ((torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)), r"torch.int64 \[2, 2\]"),
        ((torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)), r"here \[2\]"),
        ((torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), r"here \[0\]"),
        ((torch.zeros(2, 2), torch.tensor([0, -100])), "labels must be 0 or more, but a train batch holds -100"),
    ],
)
def test_a_wrong_batch_is_refused(batch, message):
    with pytest.raises(TaskError, match=message):
        list(make(train=[batch]).batches("train", 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": iter([])}, "train data must start anew on every pass"),
        ({"test": 5}, "test data must be a DataLoader.* but got int"),
        ({"model": 3}, "`model` must be a torch.nn.Module"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(TaskError, match=message):
        make(**changes)


def test_empty_data_is_refused():
    with pytest.raises(TaskError, match="test data must hold at least one batch"):
        make(test=[]).evaluate(nn.Linear(2, 2), "test")
    with pytest.raises(TaskError, match="validation data must hold at least one batch"):
        make(validation=TensorDataset(torch.zeros(0, 2), torch.zeros(0))).example_inputs(1)
