"""Movement pruning against Sanh et al.'s own formulation: scores as parameters, a straight-through mask."""

import copy
import itertools

import pytest
import torch
from torch import nn

from pruneaug.errors import InputError, NetworkError
from pruneaug.finetune.train import Train
from pruneaug.network.layers import Network, apply_masks, find_layers, get_weight
from pruneaug.pruners.movement import Movement
from pruneaug.pruners.protocol import Pruned
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.spec.models import TrainSpec
from pruneaug.testing.task import ToyTask

SPARSITY = 0.6
RATE = 0.3
X = torch.randn(32, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def model_and_network() -> tuple[nn.Sequential, Network]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 6, bias=False), nn.Tanh(), nn.Linear(6, 4, bias=False)).double()
    return model, find_layers(model, (X[:1],))


class StraightThrough(torch.autograd.Function):
    """Keeps the entries of largest score; backwards, the gradient reaches the scores as if nothing were masked."""

    @staticmethod
    def forward(ctx, scores: torch.Tensor, count: int) -> torch.Tensor:
        mask = torch.zeros_like(scores)
        mask.view(-1)[scores.flatten().topk(count).indices] = 1.0
        return mask

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient, None


def reference(steps: int, counts: list[int]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Train W * M(S) of the first layer with plain SGD on W and S: (masks by step, W, S)."""
    model, _ = model_and_network()
    weight = model[0].weight.detach().clone().requires_grad_(True)
    scores = torch.zeros_like(weight).requires_grad_(True)
    masks = []
    for step in range(steps):
        mask = StraightThrough.apply(scores, counts[step])
        loss = (torch.tanh(X @ (weight * mask).T) @ model[2].weight.detach().T - Y).square().mean()
        by_weight, by_scores = torch.autograd.grad(loss, (weight, scores))
        masks.append(mask.bool())
        with torch.no_grad():
            weight -= RATE * by_weight
            scores -= by_scores
    return masks, weight.detach(), scores.detach()


def fine_tune(model: nn.Module, pruned: Pruned, progress: list[float]) -> list[dict[str, torch.Tensor]]:
    """What a fine-tuner does in each step, with plain SGD on the first layer."""
    assert pruned.revise is not None
    assert pruned.observe is not None
    masks = []
    for point in progress:
        masks.append(pruned.revise(model, point))
        apply_masks(model, masks[-1])
        model.zero_grad()
        (model(X) - Y).square().mean().backward()
        pruned.observe(model)
        with torch.no_grad():
            weight = get_weight(model, "0")
            weight -= RATE * weight.grad
        apply_masks(model, masks[-1])
    return masks


def test_masks_weights_and_scores_are_those_of_learned_scores_with_a_straight_through_gradient() -> None:
    model, network = model_and_network()
    pruned = Movement(begin=0.0, end=0.5).prune(model, network, {"0": LayerChoice(Block(1, 1), SPARSITY)}, None)
    progress = [step / 19 for step in range(20)]
    masks = [found["0"] for found in fine_tune(model, pruned, progress)]
    expected, weight, scores = reference(20, [int(mask.sum()) for mask in masks])
    assert all(torch.equal(a, b) for a, b in zip(masks, expected))
    assert mask_sparsity(masks[-1]) == SPARSITY
    came_back = [bool((later & ~earlier).any()) for earlier, later in itertools.pairwise(masks)]
    assert any(came_back)  # or the case would say nothing about weights kept aside
    assert torch.allclose(get_weight(model, "0").detach(), weight * masks[-1])
    assert pruned.state is not None
    assert torch.allclose(pruned.state["score 0"].double(), scores, rtol=1e-4, atol=1e-6)
    assert torch.allclose(pruned.state["aside 0"], weight * ~masks[-1])


def test_a_weight_that_grows_outlives_a_larger_one_that_shrinks() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0, 0.1]], dtype=torch.float64)
    network = find_layers(model, (torch.zeros(1, 2, dtype=torch.float64),))
    pruned = Movement(begin=0.0, end=1.0).prune(model, network, {"0": LayerChoice(Block(1, 1), 0.5)}, None)
    assert pruned.observe is not None
    assert pruned.revise is not None
    model[0].weight.grad = torch.tensor([[0.5, -0.5]], dtype=torch.float64)  # SGD: the first falls, the second rises
    pruned.observe(model)
    assert pruned.revise(model, 1.0)["0"].tolist() == [[False, True]]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_fine_tuner_trains_by_movement_to_the_sparsity_asked_in_whole_blocks(scope: str) -> None:
    task = ToyTask("cnn")
    model = task.build_model()
    network = find_layers(model, task.example_inputs(1))
    assignment = {layer.name: LayerChoice(Block(4, 1), 0.5) for layer in network.layers}
    pruned = Movement(scope).prune(model, network, assignment, None)  # type: ignore[arg-type]
    before = task.evaluate(model, "validation")
    result = Train().finetune(model, pruned, task, TrainSpec(epochs=4, batch_size=32, learning_rate=0.05), seed=0)
    assert task.evaluate(model, "validation") > before
    sizes = {name: mask.numel() for name, mask in result.masks.items()}
    reached = sum(sizes[name] * mask_sparsity(mask) for name, mask in result.masks.items()) / sum(sizes.values())
    assert reached == pytest.approx(0.5, abs=0.05)
    for name, mask in result.masks.items():
        assert check_mask(weight_matrix(mask), Block(4, 1))
        assert not get_weight(model, name).detach()[~mask].any()


def test_an_interrupted_fine_tuning_goes_on_from_the_stored_state() -> None:
    model, network = model_and_network()
    choice = {"0": LayerChoice(Block(2, 1), SPARSITY)}
    pruned = Movement().prune(model, network, choice, None)
    fine_tune(model, pruned, [0.0, 0.2, 0.4])
    resumed = copy.deepcopy(model)
    again = Movement().prune(resumed, network, choice, None)
    assert pruned.state is not None
    assert again.state is not None
    for key, tensor in pruned.state.items():
        again.state[key].copy_(tensor)
    through, stopped = (fine_tune(net, one, [0.6, 0.8, 1.0]) for net, one in ((model, pruned), (resumed, again)))
    assert all(torch.equal(a["0"], b["0"]) for a, b in zip(through, stopped))
    assert torch.equal(model[0].weight, resumed[0].weight)


def test_a_fine_tuner_that_does_not_observe_is_found_out() -> None:
    model, network = model_and_network()
    pruned = Movement().prune(model, network, {"0": LayerChoice(Block(1, 1), 0.5)}, None)
    assert pruned.revise is not None
    assert bool(pruned.revise(model, 0.1)["0"].all())
    with pytest.raises(InputError, match="calls `observe`"):
        pruned.revise(model, 0.2)


def test_a_layer_without_a_gradient_is_named() -> None:
    model, network = model_and_network()
    pruned = Movement().prune(model, network, {"2": LayerChoice(Block(1, 1), 0.5)}, None)
    assert pruned.observe is not None
    with pytest.raises(NetworkError, match="'2' got no gradient"):
        pruned.observe(model)


def test_gradients_that_are_no_numbers_are_refused() -> None:
    model, network = model_and_network()
    pruned = Movement().prune(model, network, {"0": LayerChoice(Block(1, 1), 0.5)}, None)
    assert pruned.observe is not None
    assert pruned.revise is not None
    model[0].weight.grad = torch.full_like(model[0].weight, torch.nan)
    pruned.observe(model)
    with pytest.raises(NetworkError, match="layer '0': scores must be finite"):
        pruned.revise(model, 1.0)
