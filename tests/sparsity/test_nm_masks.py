"""Masks of N:M against all choices of so many columns."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.sparsity.masks import block_mask, block_mask_by_rows, check_mask, mask_sparsity
from pruneaug.sparsity.patterns import NM, TWO_OF_FOUR

ofs = st.integers(2, 6).flatmap(lambda m: st.builds(NM, st.integers(1, m - 1), st.just(m)))
shapes = st.tuples(st.integers(1, 5), st.integers(1, 17))
seeds = st.integers(0, 2**31)


def random_scores(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Small whole numbers: sums are exact, and there are ties."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).double()


def chosen(scores: list[float], count: int) -> list[bool]:
    """Of all choices of so many the one of largest sum, and of equal ones the first in order."""
    best = max(
        combinations(range(len(scores)), count), key=lambda kept: (sum(scores[i] for i in kept), [-i for i in kept])
    )
    return [i in best for i in range(len(scores))]


@given(shapes, ofs, seeds)
def test_each_group_keeps_its_best_columns(shape: tuple[int, int], pattern: NM, seed: int) -> None:
    scores = random_scores(shape, seed)
    expected = []
    for row in scores.tolist():
        groups = [row[start : start + pattern.m] for start in range(0, len(row), pattern.m)]
        counts = [-(-len(group) * pattern.n // pattern.m) for group in groups]
        expected.append([keep for group, count in zip(groups, counts) for keep in chosen(group, count)])
    mask = block_mask(scores, pattern, pattern.sparsity)
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected
    assert check_mask(mask, pattern)
    assert torch.equal(block_mask_by_rows(scores, pattern, pattern.sparsity), mask)
    assert torch.equal(block_mask(scores, pattern, 1.0), mask)
    if shape[1] % pattern.m == 0:
        assert mask_sparsity(mask) == pytest.approx(pattern.sparsity)


@given(shapes, ofs, seeds, st.floats(0, 1))
def test_on_the_way_there_the_largest_of_the_others_stay(
    shape: tuple[int, int], pattern: NM, seed: int, way: float
) -> None:
    scores = random_scores(shape, seed)
    end = block_mask(scores, pattern, pattern.sparsity)
    mask = block_mask(scores, pattern, way * pattern.sparsity)
    assert bool(mask[end].all())
    removed, spare = scores[~mask], scores[mask & ~end]
    assert len(removed) == 0 or len(spare) == 0 or float(spare.min()) >= float(removed.max())
    most = int((~end).sum())
    assert abs(int((~mask).sum()) - min(way * pattern.sparsity * mask.numel(), most)) <= 0.5 + 1e-6
    assert bool(block_mask(scores, pattern, 0.0).all())


def test_infinite_scores_do_not_fill_a_group() -> None:
    scores = torch.tensor([[torch.inf, torch.inf, torch.inf, 1.0, -torch.inf, -torch.inf]])
    assert block_mask(scores, TWO_OF_FOUR, 0.5).tolist() == [[True, True, False, False, True, False]]


@pytest.mark.parametrize("scores", [torch.full((2, 4), float("nan")), torch.zeros(4), torch.zeros(0, 4)])
def test_scores_that_are_no_numbers_or_no_matrix_are_refused(scores: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"NaN|must be a matrix \[N, K\]"):
        block_mask(scores, TWO_OF_FOUR, 0.5)


def test_a_sparsity_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\], but got 1.5"):
        block_mask(torch.ones(2, 4), TWO_OF_FOUR, 1.5)


@given(shapes, ofs, seeds)
def test_a_mask_is_checked_group_by_group(shape: tuple[int, int], pattern: NM, seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    groups = [row[start : start + pattern.m] for row in mask.tolist() for start in range(0, shape[1], pattern.m)]
    assert check_mask(mask, pattern) == all(sum(group) <= pattern.kept(len(group)) for group in groups)
