import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.sparsity.packing import pack_columns, unpack_columns


@given(st.integers(1, 19), st.integers(1, 13), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**31))
def test_a_packed_matrix_unpacks_to_its_masked_weights(
    rows: int, cols: int, height: int, density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, cols, generator=generator)
    mask = torch.rand(rows, cols, generator=generator) < density
    packed = pack_columns(matrix, mask, height)
    assert torch.equal(unpack_columns(packed, (rows, cols)), torch.where(mask, matrix, 0))


@given(st.integers(1, 19), st.integers(1, 13), st.integers(1, 8), st.integers(0, 2**31))
def test_each_group_lists_its_columns_with_a_kept_weight_in_ascending_order(
    rows: int, cols: int, height: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, cols, generator=generator)
    mask = torch.rand(rows, cols, generator=generator) < 0.3
    packed = pack_columns(matrix, mask, height)
    assert packed.values.dtype == np.float32
    assert packed.columns.dtype == packed.indptr.dtype == np.int32
    assert packed.values.shape == (packed.indptr[-1], height)
    assert packed.values.flags.c_contiguous
    for group, start in enumerate(range(0, rows, height)):
        expected = [k for k in range(cols) if any(mask[start : start + height, k].tolist())]
        assert packed.columns[packed.indptr[group] : packed.indptr[group + 1]].tolist() == expected


def test_rows_past_the_last_are_zero() -> None:
    packed = pack_columns(torch.ones(5, 2), torch.ones(5, 2, dtype=torch.bool), 4)
    assert packed.height == 4
    assert packed.values[packed.indptr[1] :].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]


def test_removed_weights_may_be_anything() -> None:
    matrix = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])
    packed = pack_columns(matrix, torch.eye(2, dtype=torch.bool), 2)
    assert packed.values.tolist() == [[1, 0], [0, 2]]


def test_an_empty_mask_packs_to_nothing() -> None:
    packed = pack_columns(torch.ones(4, 3), torch.zeros(4, 3, dtype=torch.bool), 2)
    assert packed.values.shape == (0, 2)
    assert packed.indptr.tolist() == [0, 0, 0]
    assert torch.equal(unpack_columns(packed, (4, 3)), torch.zeros(4, 3))


def test_parameters_that_need_a_gradient_are_packed() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert pack_columns(weight, weight > 0, 1).values.sum() == 4


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool), torch.ones(6, dtype=torch.bool)]
)
def test_a_mask_of_another_shape_or_type_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(InputError, match="bool mask of the same shape"):
        pack_columns(torch.ones(2, 3), mask, 1)


def test_a_height_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1, but got 0"):
        pack_columns(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), 0)


def test_unpacking_to_a_shape_of_other_rows_is_refused() -> None:
    packed = pack_columns(torch.ones(4, 3), torch.ones(4, 3, dtype=torch.bool), 2)
    with pytest.raises(InputError, match="2 groups of 2 rows"):
        unpack_columns(packed, (5, 3))
