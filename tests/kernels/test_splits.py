"""How the row groups of a product are divided into tasks of alike work."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.kernels.products import balanced_splits


def columns(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


@pytest.mark.parametrize("counts", [[286, 291], [291, 286], [1, 1], [0, 0]])
def test_two_groups_are_a_task_each(counts):
    assert balanced_splits(columns(counts), 2).tolist() == [0, 1, 2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 9), st.sampled_from([1, 4]))
def test_no_task_has_more_than_its_share_and_a_group(counts, splits, tile_columns):
    bounds = balanced_splits(columns(counts), splits, tile_columns)
    assert len(bounds) == splits + 1
    assert (bounds[0], bounds[-1]) == (0, len(counts))
    work = [sum(count + tile_columns for count in counts[first:last]) for first, last in itertools.pairwise(bounds)]
    assert sum(work) == sum(counts) + tile_columns * len(counts)
    assert max(work) <= sum(work) / splits + max(counts) + tile_columns
