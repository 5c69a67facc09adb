"""Networks with random weights and masks, and what they compute in float64."""

import copy

import torch
from torch import nn

from pruneaug.network.layers import apply_masks


class Model(nn.Module):
    """A network from its layers and a function: `forward(layers, *inputs)`."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self._forward = forward

    def forward(self, *inputs):
        return self._forward(self.layers, *inputs)


def seeded(model):
    """The model with random weights and batch-norm statistics, in train mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def random_masks(model, network, density=0.4):
    generator = torch.Generator().manual_seed(1)
    weights = {layer.name: model.get_submodule(layer.name).weight for layer in network.layers}
    return {name: torch.rand(weight.shape, generator=generator) < density for name, weight in weights.items()}


def in_float64(model, masks, inputs):
    """What the model with these masks returns in eval mode, computed in float64."""
    model = copy.deepcopy(model).eval()
    apply_masks(model, masks)
    with torch.no_grad():
        return model.double()(*(x.double() if x.is_floating_point() else x for x in inputs))


def assert_tree_close(got, want):
    got_leaves, got_spec = torch.utils._pytree.tree_flatten(got)
    want_leaves, want_spec = torch.utils._pytree.tree_flatten(want)
    assert got_spec == want_spec
    for ours, theirs in zip(got_leaves, want_leaves):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-4)


def conv(inputs, outputs, kernel=3, **values):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **values)


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
