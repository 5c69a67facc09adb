"""Pruners look and leave no trace; they work on odd sizes, grouped convolutions and shared modules."""

import contextlib
from typing import Any

import pytest
import torch
from pruner_cases import Data, blend
from torch import nn

from pruneaug.network.layers import apply_masks, find_layers, get_weight
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.protocol import Scorer
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import Block, LayerChoice

OPTIONS: dict[str, dict[str, Any]] = {"synflow": {"iterations": 5}}
ALL = PRUNERS.names()


def create(name: str) -> Any:
    return PRUNERS.create(name, OPTIONS.get(name, {}))


def trace(model: nn.Module) -> dict[str, object]:
    """All that a pruner might leave behind."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "grad": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in model.named_modules()},
        "random": torch.get_rng_state(),
        "grad enabled": torch.is_grad_enabled(),
    }


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


@pytest.mark.parametrize("name", ALL)
def test_a_network_in_the_midst_of_training_is_left_as_it_was(name: str) -> None:
    model, network = blend()
    model.dropout = nn.Dropout(0.5)
    model.train()
    model.norm.eval()
    model.last.weight.requires_grad_(False)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    before = trace(model)
    create(name).prune(model, network, {"first": LayerChoice(Block(1, 1), 0.5)}, Data())
    after = trace(model)
    if name == "sparsegpt":  # its weights are updated: that of the pruned layer and no other
        before["state"].pop("first.weight")  # type: ignore[attr-defined]
        assert not torch.equal(after["state"].pop("first.weight"), torch.zeros(()))  # type: ignore[attr-defined]
    for key, value in before.items():
        assert same(value, after[key]), key


class LossFailedError(Exception):
    pass


@pytest.mark.parametrize("name", ALL)
def test_a_failure_leaves_no_trace_either(name: str) -> None:
    class Fails(Data):
        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            super().loss(model, batch)
            raise LossFailedError

    model, network = blend()
    model.train()
    before = trace(model)
    with contextlib.suppress(LossFailedError):  # not all look at the loss
        create(name).prune(model, network, {"first": LayerChoice(Block(1, 1), 0.5)}, Fails())
    assert all(same(value, trace(model)[key]) for key, value in before.items())


@pytest.mark.parametrize("block", [Block(1, 1), Block(4, 1), Block(2, 5), Block(16, 4), Block(1, 64)], ids=str)
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("lamp", "movement", "gradual")])
def test_each_layer_of_odd_size_gets_the_sparsity_asked_in_whole_blocks(name: str, block: Block) -> None:
    model, network = blend()
    assignment = {layer.name: LayerChoice(block, 0.6) for layer in network.layers}
    masks = create(name).prune(model, network, assignment, Data()).masks
    for layer in network.layers:
        matrix = weight_matrix(masks[layer.name])
        assert check_mask(matrix, block)
        rows, cols = layer.op.matrix_shape
        one_block = min(block.rows, rows) * min(block.cols, cols)
        assert abs(mask_sparsity(matrix) - 0.6) <= one_block / matrix.numel() + 1e-9
        assert bool(matrix.any())


@pytest.mark.parametrize("name", ALL)
def test_a_module_known_by_two_names_is_pruned_once(name: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8).double()
            self.b = self.a
            self.c = nn.Linear(8, 5).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    torch.manual_seed(0)
    model, data = Tied(), Data(shape=(8,))
    network = find_layers(model, (torch.zeros(1, 8, dtype=torch.float64),))
    assert [(layer.name, layer.calls) for layer in network.layers] == [("a", 2), ("c", 1)]
    assignment = {layer.name: LayerChoice(Block(2, 1), 0.5) for layer in network.layers}
    pruned = create(name).prune(model, network, assignment, data)
    apply_masks(model, pruned.masks)
    assert torch.equal(get_weight(model, "a"), get_weight(model, "b"))
    assert set(pruned.masks) == {"a", "c"}


NORMALISED = ("snip", "grasp")  # over the layers that are scored


@pytest.mark.parametrize("name", [name for name in ALL if isinstance(create(name), Scorer) and name not in NORMALISED])
def test_the_scores_of_some_layers_are_those_of_these_layers_among_all(name: str) -> None:
    model, network = blend()
    every = create(name).scores(model, network, Data())
    some = create(name).scores(model, type(network)(network.layers[1:2]), Data())
    assert set(some) == {"grouped"}
    assert torch.allclose(some["grouped"], every["grouped"], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_weights_are_pruned_too(name: str) -> None:
    model, _ = blend()
    model = model.to(torch.bfloat16)

    class Half(Data):
        def batches(self, count: int):
            for batch in super().batches(count):
                yield type(batch)((batch.inputs[0].bfloat16(),), batch.targets)

    network = find_layers(model, (torch.zeros(1, 3, 7, 6, dtype=torch.bfloat16),))
    assignment = {layer.name: LayerChoice(Block(2, 1), 0.5) for layer in network.layers}
    pruned = create(name).prune(model, network, assignment, Half())
    assert set(pruned.masks) == set(assignment)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
