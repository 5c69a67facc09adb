"""SparseGPT against removal one weight at a time with inverses computed anew, and against least squares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruner_cases import Data, blend
from torch import nn

from pruneaug.errors import InputError
from pruneaug.network.layers import find_layers, get_weight
from pruneaug.pruners.activations import gram_matrices, input_columns
from pruneaug.pruners.reconstruction import damped, inverse_factor, refit, sweep
from pruneaug.pruners.sparsegpt import SparseGPT
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import Block, LayerChoice


def problem(rows: int, cols: int, groups: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [rows, cols], and damped moments [groups, cols, cols] of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, cols, cols, generator=generator, dtype=torch.float64)
    x = torch.randn(groups, 3 * cols, cols, generator=generator, dtype=torch.float64) @ mix
    matrix = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    return matrix, damped(x.transpose(1, 2) @ x, 0.01)


def one_by_one(matrix: torch.Tensor, hessian: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Optimal brain surgeon for a mask that is known: remove from left to right, update what is behind."""
    result = matrix.clone()
    height = len(matrix) // len(hessian)
    for row in range(len(matrix)):
        moments = hessian[row // height]
        for column in range(matrix.shape[1]):
            if not mask[row, column]:
                inverse = torch.linalg.inv(moments[column:, column:])
                result[row, column:] -= result[row, column] / inverse[0, 0] * inverse[0]
                result[row, column] = 0.0
    return result


def error(matrix: torch.Tensor, changed: torch.Tensor, hessian: torch.Tensor) -> float:
    lost = (matrix - changed).view(len(hessian), -1, matrix.shape[1])
    return float(torch.einsum("gnk,gkl,gnl->", lost, hessian, lost))


def test_the_factor_holds_the_inverses_of_what_is_left() -> None:
    _, hessian = problem(1, 7, groups=2)
    factor = inverse_factor(hessian)
    assert torch.allclose(factor.transpose(1, 2) @ factor, torch.linalg.inv(hessian))
    for group in range(2):
        for column in range(7):
            inverse = torch.linalg.inv(hessian[group, column:, column:])
            assert torch.allclose(factor[group, column, column:] * factor[group, column, column], inverse[0])
    assert torch.equal(factor, factor.triu())


@settings(max_examples=25, deadline=None)
@given(
    st.builds(Block, st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 6),
    st.integers(1, 3),
    st.floats(0.1, 0.95),
    st.integers(1, 12),
)
def test_the_sweep_is_optimal_brain_surgery_from_left_to_right(
    block: Block, height: int, groups: int, sparsity: float, columns: int
) -> None:
    matrix, hessian = problem(height * groups, 13, groups)
    updated, mask = sweep(matrix, inverse_factor(hessian), block, sparsity, columns)
    assert check_mask(mask, block)
    assert abs(mask_sparsity(mask) - sparsity) <= block.rows * block.cols / mask.numel() + 1e-9
    assert torch.allclose(updated, one_by_one(matrix, hessian, mask), rtol=1e-6, atol=1e-8)
    assert not updated[~mask].any()


@pytest.mark.parametrize("width", [128, 8])
def test_each_group_of_columns_loses_the_blocks_of_least_saliency(width: int) -> None:
    """The saliency of weight j, once those before it are settled, is w^2 / [inverse of the rest]_jj."""
    matrix, hessian = problem(6, 32)
    block = Block(3, 1)
    _, mask = sweep(matrix, inverse_factor(hessian), block, 0.5, width)
    width = min(width, 32)
    for start in range(0, 32, width):
        settled = mask.clone()
        settled[:, start:] = True
        current = one_by_one(matrix, hessian, settled)
        saliency = torch.empty(6, width, dtype=torch.float64)
        for column in range(start, start + width):
            saliency[:, column - start] = current[:, column] ** 2 / torch.linalg.inv(hessian[0, column:, column:])[0, 0]
        pooled = saliency.view(2, 3, width).sum(1)
        kept = mask[::3, start : start + width]
        assert int(kept.sum()) == width
        assert float(pooled[kept].min()) >= float(pooled[~kept].max())


@pytest.mark.parametrize("block", [Block(1, 1), Block(4, 1), Block(4, 3), Block(2, 16)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_refit_is_least_squares_under_the_mask(block: Block, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, 40, 11, generator=generator, dtype=torch.float64)
    matrix = torch.randn(6 * groups, 11, generator=generator, dtype=torch.float64)  # blocks of 4 rows cross the groups
    hessian = x.transpose(1, 2) @ x
    updated, mask = sweep(matrix, inverse_factor(hessian), block, 0.6, 128)
    best = refit(matrix, hessian, mask, block)
    for row in range(6 * groups):
        met = x[row // 6]
        solution = torch.linalg.lstsq(met[:, mask[row]], met @ matrix[row]).solution
        assert torch.allclose(best[row, mask[row]], solution)
    assert not best[~mask].any()
    assert error(matrix, best, hessian) <= error(matrix, updated, hessian) + 1e-9
    assert error(matrix, best, hessian) <= error(matrix, matrix * mask, hessian) + 1e-9


def test_where_nothing_is_kept_before_what_is_removed_the_sweep_is_least_squares_already() -> None:
    matrix, hessian = problem(4, 9)
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[:, :3] = False
    assert torch.allclose(one_by_one(matrix, hessian, mask), refit(matrix, hessian, mask, Block(1, 1)))


def test_wide_blocks_do_not_keep_one_block_of_each_group_of_columns() -> None:
    matrix, hessian = problem(8, 256)
    _, mask = sweep(matrix, inverse_factor(hessian), Block(4, 16), 0.9, 16)
    assert mask_sparsity(mask) == pytest.approx(0.9, abs=64 / 2048)


@pytest.mark.parametrize("refit", [False, True])
def test_a_layer_s_output_changes_less_than_by_zeroing_the_same_weights(refit: bool) -> None:
    model, network = blend()
    before = {layer.name: weight_matrix(get_weight(model, layer.name)).detach().clone() for layer in network.layers}
    grams = gram_matrices(model, network, Data(), 2)
    assignment = {layer.name: LayerChoice(Block(2, 1), 0.5) for layer in network.layers}
    masks = SparseGPT(refit=refit).prune(model, network, assignment, Data()).masks
    for name, matrix in before.items():
        updated, mask = weight_matrix(get_weight(model, name)).detach(), weight_matrix(masks[name])
        assert not updated[~mask].any()
        hessian = damped(grams[name], 0.01)
        assert error(matrix, updated, hessian) < error(matrix, matrix * mask, hessian)
    x = Data().everything().inputs[0]
    conv = network.layers[0].op
    moved = input_columns(x, conv) @ (before["first"] - weight_matrix(model.first.weight).detach()).T
    zeroed = input_columns(x, conv) @ (before["first"] * ~weight_matrix(masks["first"])).T
    assert float(moved.square().sum()) < float(zeroed.square().sum())


def test_layers_that_stay_dense_keep_their_weights_and_so_do_biases_and_norms() -> None:
    model, network = blend()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    SparseGPT().prune(model, network, {"grouped": LayerChoice(Block(2, 2), 0.5)}, Data())
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["grouped.weight"]


def test_inputs_that_are_always_zero_are_removed_first_and_do_no_harm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    model[0].weight.data.sign_()

    class HalfSilent(Data):
        def batches(self, count: int):
            for batch in super().batches(count):
                batch.inputs[0][:, 3:] = 0
                yield batch

    data = HalfSilent(sizes=(8,), shape=(6,))
    network = find_layers(model, (torch.zeros(1, 6, dtype=torch.float64),))
    mask = SparseGPT().prune(model, network, {"0": LayerChoice(Block(1, 1), 0.5)}, data).masks["0"]
    assert mask.tolist() == [[True] * 3 + [False] * 3] * 5
    silent = damped(torch.zeros(1, 4, 4), 0.01)
    assert torch.equal(silent[0], torch.eye(4).double())


def test_moments_that_cannot_be_inverted_are_refused() -> None:
    with pytest.raises(InputError, match="positive definite"):
        inverse_factor(-torch.eye(3).double()[None])
