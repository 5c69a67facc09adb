import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import TaskError
from pruneaug.tasks.splitting import check_labels, limited, part_size, stratified_split


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=200),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    seed=st.integers(0, 5),
)
def test_parts_are_disjoint_complete_and_stratified(labels, shares, seed):
    labels = torch.tensor(labels)
    sizes = [int(share * len(labels)) for share in shares]
    parts = stratified_split(labels, sizes, seed)
    assert [len(part) for part in parts[:2]] == sizes
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    for part in parts:
        for label in range(5):
            expected = len(part) / len(labels) * int((labels == label).sum())
            # A stretch of the interleaved order is off by less than one sample of a class at each end.
            assert abs(int((labels[part] == label).sum()) - expected) <= 3


def test_a_balanced_set_is_split_exactly():
    labels = torch.arange(10).repeat(100)
    first, rest = stratified_split(labels, (100,), seed=3)
    assert labels[first].bincount().tolist() == [10] * 10
    assert labels[rest].bincount().tolist() == [90] * 10


def test_the_seed_decides_the_split():
    labels = torch.arange(4).repeat(50)
    first, again, other = (stratified_split(labels, (40,), seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("part", "size"), [(10, 10), (0.25, 25), (10.0, 10)])
def test_a_part_is_a_count_or_a_fraction(part, size):
    assert part_size(part, 100, "validation") == size


@pytest.mark.parametrize("part", [0, 100, 0.0, 1.5, -1, True, "0.1", float("nan"), float("inf"), 0.001])
def test_a_part_that_leaves_nothing_is_refused(part):
    with pytest.raises(TaskError, match="`validation` must be a count from 1 to 99 or a fraction"):
        part_size(part, 100, "validation")


def test_a_limit_takes_the_first_and_must_be_positive():
    assert limited(torch.arange(5), 2).tolist() == [0, 1]
    assert limited(torch.arange(5), None).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(TaskError, match="`limit`"):
        limited(torch.arange(5), 0)


@pytest.mark.parametrize(
    ("labels", "other", "message"),
    [
        ([0, 1, -1], [0], "train.x holds -1"),
        ([0, 1], [-2], "test.x holds -2"),
        ([0, 2], [0], "class 1 has none in train.x"),
        ([1, 2, 10**12], [0], "class 0 has none"),
        ([0, 1], [2], "test.x holds label 2"),
    ],
)
def test_wrong_labels_are_refused(labels, other, message):
    with pytest.raises(TaskError, match=message):
        check_labels(torch.tensor(labels), torch.tensor(other), "train.x", "test.x")


def test_the_number_of_classes_is_that_of_the_training_labels():
    assert check_labels(torch.tensor([2, 0, 1, 1]), torch.tensor([0]), "a", "b") == 3
