"""Networks with random weights and masks, compiled and compared with what they compute in float64."""

import copy

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pruneaug.kernels.build import CpuTarget
from pruneaug.network.layers import apply_masks, list_layers
from pruneaug.runtime.compiler import compile_network
from pruneaug.runtime.graph import export_program

SMALL = CpuTarget(lanes=8, registers=16, threads=2)  # few registers: small tiles, which compile quickly


class Model(nn.Module):
    """A network from its layers and a function: `forward(layers, *inputs)`."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self._forward = forward

    def forward(self, *inputs):
        return self._forward(self.layers, *inputs)


def seeded(model, std=0.3):
    """The model with random weights and batch-norm statistics."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


def random_masks(model, network, density=0.4):
    generator = torch.Generator().manual_seed(1)
    weights = {layer.name: model.get_submodule(layer.name).weight for layer in network.layers}
    return {name: torch.rand(weight.shape, generator=generator) < density for name, weight in weights.items()}


def compile_model(model, inputs, masks=None, plans=None, target=SMALL):
    return compile_network(
        export_program(model, inputs), list_layers(model, inputs), masks or {}, plans or {}, target
    )  # fmt: skip


def check(model, inputs, *, plans=None, target=SMALL, std=0.3):
    """Compile the model with random weights, every second layer masked, and compare with float64."""
    seeded(model, std)
    masks = random_masks(model, list_layers(model, inputs))
    masks = {name: mask for index, (name, mask) in enumerate(masks.items()) if index % 2 == 0}
    compiled = compile_model(model, inputs, masks, plans, target)
    assert_tree_close(compiled(*inputs), in_float64(model, masks, inputs))
    return compiled


def in_float64(model, masks, inputs):
    """What the model with these masks returns in eval mode, computed in float64."""
    model = copy.deepcopy(model).eval()
    apply_masks(model, masks)
    inputs = pytree.tree_map(
        lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs
    )
    with torch.no_grad():
        return model.double()(*inputs)


def assert_tree_close(got, want):
    """The same structure; values are equal but for a relative error of 1e-5, NaN and infinities where they are."""
    got_leaves, got_spec = pytree.tree_flatten(got)
    want_leaves, want_spec = pytree.tree_flatten_with_path(want)
    assert got_spec == want_spec
    for ours, (path, theirs) in zip(got_leaves, want_leaves):
        where = pytree.keystr(path)
        if not isinstance(theirs, torch.Tensor):
            assert ours == theirs, where
            continue
        assert ours.dtype == (torch.float32 if theirs.dtype == torch.float64 else theirs.dtype), where
        assert ours.shape == theirs.shape, where
        if not theirs.is_floating_point():
            assert torch.equal(ours, theirs), where
            continue
        finite = theirs.isfinite()
        assert torch.equal(ours.isfinite(), finite), where
        assert torch.equal(ours[~finite].nan_to_num(), theirs[~finite].float().nan_to_num()), where
        assert (ours.double() - theirs)[finite].norm() <= 1e-5 * theirs[finite].norm(), where


def kernels_of(compiled):
    """What computes each step: {origin: [kernel, ...]}; no kernel is None."""
    found = {}
    for step in compiled.report.steps:
        found.setdefault(step.origin, []).append(step.kernel)
    return found


def conv(inputs, outputs, kernel=3, **values):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **values)


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
