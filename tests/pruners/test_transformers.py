"""Pruners that read the inputs of layers, on transformers: against inputs that hooks recorded, in float64."""

import pytest
import torch
from pruner_cases import Inputs, small_transformer
from test_sparsegpt import error, one_by_one
from torch import nn

from pruneaug.network.layers import Network, find_layers, get_weight
from pruneaug.pruners.reconstruction import damped
from pruneaug.pruners.sparsegpt import SparseGPT
from pruneaug.pruners.wanda import Wanda
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.tasks.protocol import Batch

pytestmark = pytest.mark.parametrize("name", ["bert", "vit"])


class Labelled(Inputs):
    """For a model that gives its logits by name."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(*batch.inputs).logits, batch.targets)


def case(name: str) -> tuple[nn.Module, Network, Labelled]:
    """A network in float64; token numbers are those of the model, images are drawn."""
    model, inputs = small_transformer(name, "sdpa")
    generator = torch.Generator().manual_seed(1)
    drawn = [
        torch.randn(4, *x.shape[1:], generator=generator, dtype=torch.float64) if x.is_floating_point() else x
        for x in inputs
    ]
    return model.double(), find_layers(model, tuple(drawn)), Labelled(*drawn)


def recorded(model: nn.Module, network: Network, data: Labelled) -> dict[str, torch.Tensor]:
    """Linear layer -> the inputs of all tokens, [tokens, in features]."""
    names = [layer.name for layer in network.layers if isinstance(model.get_submodule(layer.name), nn.Linear)]
    found = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, __, name=name: found.__setitem__(name, args[0].detach().flatten(0, -2))
        )
        for name in names
    ]
    with torch.no_grad():
        model(*data.inputs)
    for hook in hooks:
        hook.remove()
    assert len(found) >= 12  # six in each of two blocks
    return found


def test_wanda_scores_every_layer_by_the_inputs_it_meets(name: str) -> None:
    model, network, data = case(name)
    scores = Wanda().scores(model, network, data)
    assert scores.keys() == {layer.name for layer in network.layers}
    for layer, x in recorded(model, network, data).items():
        expected = get_weight(model, layer).detach().abs() * x.square().sum(0).sqrt()
        assert torch.allclose(scores[layer].double(), expected, rtol=1e-5, atol=1e-9), layer


@pytest.mark.parametrize("refit", [False, True])
def test_sparsegpt_makes_up_for_what_it_removes_in_every_layer(name: str, refit: bool) -> None:
    model, network, data = case(name)
    inputs = recorded(model, network, data)
    before = {layer: get_weight(model, layer).detach().clone() for layer in inputs}
    assignment = {layer.name: LayerChoice(Block(1, 2), 0.5) for layer in network.layers}
    masks = SparseGPT(refit=refit).prune(model, network, assignment, data).masks
    assert masks.keys() == assignment.keys()
    for layer, x in inputs.items():
        weight, mask = get_weight(model, layer).detach(), masks[layer]
        assert check_mask(mask, Block(1, 2))
        assert mask_sparsity(mask) == pytest.approx(0.5, abs=2 / mask.numel())
        assert not weight[~mask].any()
        hessian = damped((x.T @ x)[None], 0.01)
        if refit:  # the best there is under this mask
            assert error(before[layer], weight, hessian) < error(before[layer], before[layer] * mask, hessian), layer
        else:
            assert torch.allclose(weight, one_by_one(before[layer], hessian, mask), rtol=1e-6, atol=1e-9), layer
