from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.sparsity.masks import (
    block_mask,
    block_masks,
    block_sizes,
    check_mask,
    expand_blocks,
    mask_sparsity,
    pool_scores,
    rows_alike,
)
from pruneaug.sparsity.patterns import Block

blocks = st.builds(Block, st.integers(1, 6), st.integers(1, 6))
shapes = st.tuples(st.integers(1, 17), st.integers(1, 17))
sparsities = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1))
seeds = st.integers(0, 2**31)


def random_scores(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Small whole numbers: sums are exact, and there are ties."""
    return torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(seed)).double()


def slices(block: Block, shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The blocks of a matrix in row order, counted out."""
    return [
        (slice(r, min(r + block.rows, shape[0])), slice(c, min(c + block.cols, shape[1])))
        for r in range(0, shape[0], block.rows)
        for c in range(0, shape[1], block.cols)
    ]


@given(shapes, blocks, seeds)
def test_pooled_scores_and_sizes_are_those_of_each_block(shape: tuple[int, int], block: Block, seed: int) -> None:
    scores = random_scores(shape, seed)
    where = slices(block, shape)
    assert pool_scores(scores, block).flatten().tolist() == [float(scores[w].sum()) for w in where]
    assert block_sizes(block, shape).flatten().tolist() == [scores[w].numel() for w in where]


@given(shapes, blocks, sparsities, seeds)
def test_a_mask_has_the_asked_sparsity_within_one_block_and_whole_blocks(
    shape: tuple[int, int], block: Block, sparsity: float, seed: int
) -> None:
    mask = block_mask(random_scores(shape, seed), block, sparsity)
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    removed = int((~mask).sum())
    largest = min(block.rows, shape[0]) * min(block.cols, shape[1])
    assert abs(removed - sparsity * mask.numel()) <= largest
    assert all(bool(mask[w].all()) or not bool(mask[w].any()) for w in slices(block, shape))
    assert check_mask(mask, block)
    assert mask.any() or sparsity == 1
    assert mask_sparsity(mask) == pytest.approx(removed / mask.numel())


@settings(max_examples=60)
@given(st.tuples(st.integers(1, 5), st.integers(1, 7)), blocks, sparsities, seeds)
def test_no_choice_of_as_many_blocks_keeps_more_score(
    shape: tuple[int, int], block: Block, sparsity: float, seed: int
) -> None:
    scores = random_scores(shape, seed)
    sums = [float(scores[w].sum()) for w in slices(block, shape)]
    if len(sums) > 12:
        return
    mask = block_mask(scores, block, sparsity)
    count = sum(bool(mask[w].any()) for w in slices(block, shape))
    best = max(sum(choice) for choice in combinations(sums, count))
    assert float(scores[mask].sum()) == best


def test_no_other_count_of_the_best_blocks_is_nearer_to_the_asked_sparsity() -> None:
    scores = random_scores((7, 9), 3)
    block = Block(2, 4)
    order = sorted(slices(block, (7, 9)), key=lambda w: -float(scores[w].sum()))
    kept = [0]
    for w in order:
        kept.append(kept[-1] + scores[w].numel())
    for sparsity in (0.3, 0.55, 0.8):
        wanted = (1 - sparsity) * 63
        found = int(block_mask(scores, block, sparsity).sum())
        assert abs(found - wanted) == pytest.approx(min(abs(k - wanted) for k in kept))


def test_sparsity_zero_keeps_all_and_one_keeps_nothing() -> None:
    scores = random_scores((5, 7), 0)
    assert block_mask(scores, Block(4, 2), 0.0).all()
    assert not block_mask(scores, Block(4, 2), 1.0).any()


def test_the_best_block_stays_unless_everything_is_to_go() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    assert block_mask(scores, Block(1, 1), 0.99).tolist() == [[False, False, True, False]]


def test_a_block_larger_than_the_matrix_is_the_whole_matrix() -> None:
    assert block_mask(torch.ones(3, 2), Block(16, 8), 0.5).all()


def test_of_equal_blocks_the_first_in_row_order_stay() -> None:
    mask = block_mask(torch.ones(3, 4), Block(1, 1), 0.5)
    assert mask.flatten().tolist() == [True] * 6 + [False] * 6


@given(shapes, blocks, seeds)
def test_expanded_blocks_pool_back_to_their_sizes(shape: tuple[int, int], block: Block, seed: int) -> None:
    keep = torch.rand(block.grid(shape), generator=torch.Generator().manual_seed(seed)) < 0.5
    mask = expand_blocks(keep, block, shape)
    assert torch.equal(pool_scores(mask.double(), block).long(), keep * block_sizes(block, shape))


def test_a_mask_of_part_of_a_block_is_found() -> None:
    mask = expand_blocks(torch.tensor([[True, False], [False, True]]), Block(2, 3), (4, 5))
    assert check_mask(mask, Block(2, 3))
    mask[1, 1] = False
    assert not check_mask(mask, Block(2, 3))
    assert check_mask(mask, Block(1, 1))


@settings(max_examples=50)
@given(st.lists(st.tuples(shapes, blocks), min_size=1, max_size=4), sparsities, seeds)
def test_masks_over_several_layers_have_one_threshold_and_the_asked_sparsity(
    layers: list[tuple[tuple[int, int], Block]], sparsity: float, seed: int
) -> None:
    scores = {str(i): random_scores(shape, seed + i) for i, (shape, _) in enumerate(layers)}
    patterns = {str(i): block for i, (_, block) in enumerate(layers)}
    masks = block_masks(scores, patterns, sparsity)
    kept_means, removed_means, largest, best = [], [], 0, 0
    for name, (shape, block) in zip(masks, layers, strict=True):
        assert check_mask(masks[name], block)
        assert sparsity == 1 or masks[name].any()
        where = slices(block, shape)
        top = max(float(scores[name][w].mean()) for w in where)
        for w in where:
            mean = float(scores[name][w].mean())
            largest = max(largest, scores[name][w].numel())
            if not masks[name][w].any():
                removed_means.append(mean)
            elif mean < top:  # a layer's best block stays whatever the threshold
                kept_means.append(mean)
        best += max(scores[name][w].numel() for w in where)
    assert min(kept_means, default=9.0) >= max(removed_means, default=0.0) - 1e-9
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert abs(kept - (1 - sparsity) * total) <= max(largest, best if sparsity < 1 else 0)


def test_costs_make_the_overall_sparsity_one_of_operations() -> None:
    scores = {"cheap": torch.rand(20, 20), "dear": torch.rand(20, 20)}
    block = dict.fromkeys(scores, Block(1, 1))
    masks = block_masks(scores, block, 0.7, {"cheap": 1.0, "dear": 9.0})
    assert 0.1 * mask_sparsity(masks["cheap"]) + 0.9 * mask_sparsity(masks["dear"]) == pytest.approx(0.7, abs=0.002)


def test_no_layers_give_no_masks() -> None:
    assert block_masks({}, {}, 0.5) == {}


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_outside_zero_to_one_is_refused(sparsity: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        block_mask(torch.ones(2, 2), Block(1, 1), sparsity)


@pytest.mark.parametrize("scores", [torch.ones(4), torch.ones(2, 2, 2), torch.ones(0, 3)])
def test_scores_that_are_no_matrix_are_refused(scores: torch.Tensor) -> None:
    with pytest.raises(InputError, match="must be a matrix"):
        block_mask(scores, Block(1, 1), 0.5)


def test_scores_that_are_not_numbers_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="scores of layer 'fc' must be numbers"):
        block_masks({"fc": torch.tensor([[1.0, float("nan")]])}, {"fc": Block(1, 1)}, 0.5)


def test_a_layer_without_a_block_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="fc2"):
        block_masks({"fc1": torch.ones(2, 2), "fc2": torch.ones(2, 2)}, {"fc1": Block(1, 1)}, 0.5)


def test_a_choice_of_blocks_for_another_matrix_is_refused() -> None:
    with pytest.raises(InputError, match="block:2x2"):
        expand_blocks(torch.ones(2, 2, dtype=torch.bool), Block(2, 2), (6, 4))


def test_groups_of_rows_that_are_alike_are_recognised():
    keep = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    assert rows_alike(keep.repeat_interleave(8, 0), (16, 8, 4, 2)) == 8
    assert rows_alike(keep.repeat_interleave(8, 0)[:30], (16, 8, 4, 2)) == 8
    assert rows_alike(keep.repeat_interleave(8, 0), (4, 2)) == 4
    assert rows_alike(torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.bool), (4, 2)) == 1
    tail = torch.cat([keep[:2].repeat_interleave(8, 0), torch.tensor([[True] * 9, [False] * 9])])
    assert rows_alike(tail, (16, 8, 4, 2)) == 1
