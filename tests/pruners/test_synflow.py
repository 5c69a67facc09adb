"""SynFlow against the sum over all paths, its conservation, and what it does to other networks than its own."""

import itertools

import pytest
import torch
from pruner_cases import Data, Inputs, blend, small_transformer
from torch import nn

from pruneaug.network.layers import Network, apply_masks, find_layers, get_weight
from pruneaug.pruners.linearised import positive_copy
from pruneaug.pruners.synflow import SynFlow, synaptic_flow
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.patterns import Block, LayerChoice


def chain(widths: tuple[int, ...], seed: int = 0) -> tuple[nn.Sequential, Network]:
    torch.manual_seed(seed)
    layers = [module for a, b in itertools.pairwise(widths) for module in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    return model, find_layers(model, (torch.zeros(1, widths[0]),))


def test_a_weight_s_score_is_the_share_of_the_paths_through_it() -> None:
    widths = (3, 4, 2, 3)
    model, network = chain(widths)
    weights = [get_weight(model, layer.name).detach().double().abs() for layer in network.layers]
    expected = [torch.zeros_like(weight) for weight in weights]
    total = 0.0
    for path in itertools.product(*(range(width) for width in widths)):
        steps = list(enumerate(itertools.pairwise(path)))
        product = 1.0
        for depth, (start, end) in steps:
            product *= float(weights[depth][end, start])
        total += product
        for depth, (start, end) in steps:
            expected[depth][end, start] += product
    scores = SynFlow().scores(model, network, Inputs(torch.randn(2, 3)))
    for layer, paths in zip(network.layers, expected):
        assert torch.allclose(scores[layer.name].double(), paths / total, rtol=1e-5)


def test_flow_is_conserved_by_every_layer_of_a_chain_with_batch_norm_and_grouped_convolutions() -> None:
    model, network = blend()
    scores = SynFlow().scores(model, network, Data())
    assert all(float(score.double().sum()) == pytest.approx(1.0, abs=1e-5) for score in scores.values())


def test_a_batch_norm_in_eval_mode_is_its_scale() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    norm.weight.data.copy_(torch.tensor([0.5, -2.0, 1.0]))
    norm.bias.data.fill_(7.0)
    norm.running_mean.fill_(-3.0)
    norm.running_var.copy_(torch.tensor([0.25, 4.0, 9.0]))
    model = nn.Sequential(nn.Linear(2, 3), norm, nn.ReLU(), nn.Linear(3, 2)).eval()
    network = find_layers(model, (torch.zeros(1, 2),))
    scale = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    first, last = model[0].weight.detach().abs(), model[3].weight.detach().abs()
    expected = first * (scale * last.sum(0))[:, None]
    scores = SynFlow().scores(model, network, Inputs(torch.zeros(1, 2)))
    assert torch.allclose(scores["0"], expected / expected.sum(), rtol=1e-5)


def test_only_the_shape_of_the_data_is_read() -> None:
    model, network = blend()
    shape = (2, 3, 7, 6)
    first = SynFlow().scores(model, network, Inputs(torch.randn(shape, dtype=torch.float64)))
    second = SynFlow().scores(model, network, Inputs(torch.full(shape, torch.nan, dtype=torch.float64)))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rounds_keep_paths_where_one_round_cuts_the_network() -> None:
    """A narrow layer between wide ones: by one round its weights go first, as each carries little of the flow."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    model[2].weight.data.abs_().add_(0.01)
    network = find_layers(model, (torch.zeros(1, 40),))
    assignment = {layer.name: LayerChoice(Block(1, 1), 0.985) for layer in network.layers}

    def flow_left(iterations: int) -> float:
        masks = SynFlow("global", iterations).prune(model, network, assignment, Inputs(torch.zeros(1, 40))).masks
        positive = positive_copy(model)
        apply_masks(positive, masks)
        with torch.no_grad():
            return float(positive(torch.ones(1, 40, dtype=torch.float64)).sum())

    assert flow_left(100) > 3 * flow_left(1)
    assert flow_left(100) > 0


def test_the_density_falls_exponentially_and_what_is_removed_stays_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, network = chain((20, 20, 10))
    seen: list[dict[str, torch.Tensor]] = []

    def spy(positive: nn.Module, *rest: object) -> dict[str, torch.Tensor]:
        seen.append({layer.name: get_weight(positive, layer.name).detach() != 0 for layer in network.layers})
        return synaptic_flow(positive, *rest)

    monkeypatch.setattr("pruneaug.pruners.synflow.synaptic_flow", spy)
    assignment = {"0": LayerChoice(Block(1, 1), 0.9), "2": LayerChoice(Block(2, 1), 0.6)}
    masks = SynFlow(iterations=4).prune(model, network, assignment, Inputs(torch.zeros(1, 20))).masks
    densities = [float(kept["0"].float().mean()) for kept in seen]
    assert densities == pytest.approx([0.1 ** (step / 4) for step in range(4)], abs=1 / 400)
    for earlier, later in itertools.pairwise([*seen, masks]):
        assert all(not bool((later[name] & ~earlier[name]).any()) for name in masks)
    assert [mask_sparsity(mask) for mask in masks.values()] == [0.9, 0.6]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_every_layer_of_a_transformer_gets_flow_queries_and_keys_included(name: str, attention: str) -> None:
    model, inputs = small_transformer(name, attention)
    network = find_layers(model, inputs)
    scores = SynFlow().scores(model, network, Inputs(*inputs))
    for layer in network.layers:
        assert bool((scores[layer.name] > 0).all()), layer.name
    total = {name: float(score.double().sum()) for name, score in scores.items()}
    assert total["classifier"] == pytest.approx(1.0, abs=1e-5)
    assert max(total.values()) < 1.0 + 1e-5


class Attends(nn.Module):
    """One attention and one gate between two linear layers, without a way around them."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 3)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.gate, self.gated = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.fused:
            x = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(1, 2) / 6**0.5).softmax(dim=-1) @ v
        return self.leave(torch.sigmoid(self.gate(x)) * self.gated(x)).log_softmax(-1)


@pytest.mark.parametrize("fused", [True, False])
def test_what_meets_in_an_attention_or_a_gate_shares_the_flow(fused: bool) -> None:
    torch.manual_seed(0)
    model = Attends(fused).eval()
    inputs = torch.zeros(2, 5, 4)
    scores = SynFlow().scores(model, find_layers(model, (inputs,)), Inputs(inputs))
    total = {name: float(score.double().sum()) for name, score in scores.items()}
    assert total == pytest.approx(
        {"enter": 1, "query": 0.25, "key": 0.25, "value": 0.5, "gate": 0.5, "gated": 0.5, "leave": 1}, abs=1e-5
    )
    alone = SynFlow().scores(model, Network(find_layers(model, (inputs,)).layers[1:2]), Inputs(inputs))
    assert all(torch.equal(score, scores[name]) for name, score in alone.items())


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_both_attentions_of_a_transformer_carry_the_same_flow(name: str) -> None:
    found = []
    for attention in ("eager", "sdpa"):
        model, inputs = small_transformer(name, attention)
        found.append(SynFlow().scores(model, find_layers(model, inputs), Inputs(*inputs)))
    assert all(torch.allclose(found[0][key], found[1][key], rtol=1e-4) for key in found[0])


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(inplace=True),
        nn.GELU(),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Tanh(),
        nn.Sigmoid(),
        nn.Softmax(dim=-1),
        nn.LayerNorm(6),
        nn.RMSNorm(6),
        nn.Sequential(nn.Unflatten(1, (6, 1)), nn.GroupNorm(3, 6), nn.Flatten()),
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.Dropout(0.5),
        nn.LogSoftmax(dim=-1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_flow_is_conserved_through_every_known_function(module: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), module, nn.Linear(6, 3)).eval()
    network = find_layers(model, (torch.zeros(2, 4),))
    scores = SynFlow().scores(model, network, Inputs(torch.zeros(2, 4)))
    assert all(float(score.double().sum()) == pytest.approx(1.0, abs=1e-5) for score in scores.values())


def test_a_flow_that_is_not_finite_is_refused() -> None:
    model, network = chain((3, 4, 2))
    model[0].weight.data[0, 0] = torch.inf
    with pytest.raises(Exception, match="flow of synflow pruning must be finite"):
        SynFlow().scores(model, network, Inputs(torch.zeros(1, 3)))
