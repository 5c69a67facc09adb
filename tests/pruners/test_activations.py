"""Moments of layers' inputs against a product with the weight matrix, and Wanda against its definition in loops."""

import pytest
import torch
from pruner_cases import Data, blend
from torch import nn

from pruneaug.errors import NetworkError
from pruneaug.network.layers import find_layers, get_weight
from pruneaug.network.ops import Conv2dOp
from pruneaug.pruners import PRUNERS, activations
from pruneaug.pruners.activations import column_norms, gram_matrices, input_columns
from pruneaug.sparsity.masks import block_mask_by_rows, check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.tasks.protocol import Batch

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": (2, 3), "dilation": (2, 1), "groups": 2},
    {"kernel_size": (4, 3), "padding": "same", "groups": 3},
    {"kernel_size": 1, "stride": 2, "padding": "valid"},
]


def recorded(seed: int = 0) -> dict[str, torch.Tensor]:
    """Layer name -> the inputs of all samples, float64."""
    model, network = blend()
    inputs = {}
    hooks = [
        model.get_submodule(layer.name).register_forward_hook(
            lambda _, args, __, name=layer.name: inputs.__setitem__(name, args[0].detach())
        )
        for layer in network.layers
    ]
    with torch.no_grad():
        model(*Data().everything().inputs)
    for hook in hooks:
        hook.remove()
    return inputs


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_columns_times_the_weight_matrix_is_the_convolution(options: dict) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, bias=False, **options).double()
    x = torch.randn(3, 6, 7, 8, dtype=torch.float64)
    op = find_layers(nn.Sequential(conv), (x,)).layers[0].op
    assert isinstance(op, Conv2dOp)
    columns = input_columns(x, op)  # [G, samples, K]
    rows = weight_matrix(conv.weight).view(op.groups, -1, columns.shape[2])
    expected = conv(x)  # [3, 12, h, w]
    found = (columns @ rows.transpose(1, 2)).transpose(1, 2).reshape(12, 3, *expected.shape[2:]).transpose(0, 1)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_moments_are_those_of_all_samples_together(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(activations, "_CHUNK", chunk)
    model, network = blend()
    norms, grams = column_norms(model, network, Data(), 2), gram_matrices(model, network, Data(), 2)
    for layer in network.layers:
        x = input_columns(recorded()[layer.name], layer.op)
        assert torch.allclose(norms[layer.name], x.norm(dim=1))
        assert torch.allclose(grams[layer.name], x.transpose(1, 2) @ x)
        assert norms[layer.name].shape == x.shape[::2]


def test_every_call_counts_and_an_image_without_a_batch_is_one_sample() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.conv(self.conv(image)) for image in x])

    class Images(Data):
        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return model(*batch.inputs).mean()

    torch.manual_seed(0)
    model, data = Twice(), Images(sizes=(1,), shape=(2, 4, 4))
    (batch,) = data.batches(1)
    network = find_layers(model, batch.inputs)
    op = network.layers[0].op
    first = batch.inputs[0]
    expected = sum(input_columns(x, op).square().sum(1) for x in (first, model.conv(first).detach()))
    assert torch.allclose(column_norms(model, network, data, 1)["conv"].square(), expected)


def test_a_layer_that_does_not_run_on_the_data_is_named() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(4, 5).double()
            self.skip = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) if self.skip else self.a(x) + self.b(x)

    model = Skips()
    network = find_layers(model, (torch.zeros(1, 4, dtype=torch.float64),))
    model.skip = True
    with pytest.raises(NetworkError, match="'b' must run on the calibration data"):
        column_norms(model, network, Data(shape=(4,)), 1)
    model.skip = False
    model.b.weight.data[0] = torch.nan
    model_after = nn.Sequential(model, nn.Linear(5, 5).double())
    network = find_layers(model_after, (torch.zeros(1, 4, dtype=torch.float64),))
    with pytest.raises(NetworkError, match=r"'1': its inputs must be finite"):
        gram_matrices(model_after, network, Data(shape=(4,)), 1)


def test_wanda_is_the_weight_times_the_norm_of_what_it_meets() -> None:
    model, network = blend()
    scores = PRUNERS.create("wanda", {}).scores(model, network, Data())
    x = nn.functional.pad(recorded()["grouped"], (0, 0, 2, 2))  # kernel (3, 1), dilation 2, stride 1, 3 groups
    height = x.shape[2] - 4
    weight = get_weight(model, "grouped").detach()
    for out, channel, ky in [(0, 0, 0), (4, 1, 2), (8, 0, 1)]:
        met = x[:, out // 3 * 2 + channel, 2 * ky : 2 * ky + height]
        expected = float(weight[out, channel, ky, 0].abs() * met.square().sum().sqrt())
        assert float(scores["grouped"][out, channel, ky, 0]) == pytest.approx(expected, rel=1e-6)
    last = recorded()["last"]
    expected = get_weight(model, "last").detach().abs() * last.square().sum(0).sqrt()
    assert torch.allclose(scores["last"].double(), expected, rtol=1e-6)


def test_wanda_compares_within_a_row() -> None:
    model, network = blend()
    pruner = PRUNERS.create("wanda", {})
    scores = weight_matrix(pruner.scores(model, network, Data())["first"])  # [6, 27]
    mask = weight_matrix(
        pruner.prune(model, network, {"first": LayerChoice(Block(1, 1), 2 / 3)}, Data()).masks["first"]
    )
    for row, kept in zip(scores, mask):
        best = row.sort(descending=True).indices[:9]
        assert set(kept.nonzero().flatten().tolist()) == set(best.tolist())
    whole = PRUNERS.create("wanda", {"scope": "layer"})
    mask = weight_matrix(whole.prune(model, network, {"first": LayerChoice(Block(1, 1), 2 / 3)}, Data()).masks["first"])
    assert float(scores[mask].min()) >= float(scores[~mask].max())


@pytest.mark.parametrize("block", [Block(1, 1), Block(4, 1), Block(4, 3), Block(2, 16), Block(16, 16)], ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 0.99, 1.0])
def test_each_row_of_blocks_gets_its_share_and_the_matrix_the_sparsity(block: Block, sparsity: float) -> None:
    scores = torch.rand(11, 29, generator=torch.Generator().manual_seed(0))
    mask = block_mask_by_rows(scores, block, sparsity)
    assert check_mask(mask, block)
    assert abs(mask_sparsity(mask) - sparsity) <= block.rows * block.cols / mask.numel() + 1e-9
    assert bool(mask.any()) == (sparsity < 1)
    rows = mask[:: block.rows]
    heights = torch.tensor([min(block.rows, 11 - start) for start in range(0, 11, block.rows)])
    difference = (rows.sum(1) - (1 - sparsity) * 29) * heights
    assert float(difference.abs().max()) <= block.rows * min(block.cols, 29) + 1e-6
    for kept, start in zip(rows, range(0, 11, block.rows)):  # and within a row the best ones
        pooled = scores[start : start + block.rows].sum(0).split(block.cols)
        sums = torch.stack([part.sum() for part in pooled])
        chosen = kept[:: block.cols]
        if bool(chosen.any()) and not bool(chosen.all()):
            assert float(sums[chosen].min()) >= float(sums[~chosen].max())
