"""Residual sums, gates and activations in networks: what is fused into convolutions, and what it computes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from float64_networks import Model, check, conv, image
from torch import nn

A, B, IN, SQUARE = (partial(conv, *sizes) for sizes in ((3, 8), (3, 8, 1), (3, 3), (8, 8)))
HALVED = partial(conv, 3, 8, stride=2)


def halves(m, x):
    return F.relu(m["a"](x) + m["b"](x))


def ready_later(m, x):
    """The first convolution's partner is computed after it."""
    y = m["a"](x)
    return y + F.relu(m["b"](x))


def read_twice(m, x):
    y = m["a"](x)
    return m["b"](y) + y


def result_too(m, x):
    y = m["a"](x)
    return y, F.relu(y + x)


def chain(m, x):
    y = m["a"](x)
    y = F.relu(m["b"](y) + y)
    return F.silu(m["b"](y) + y + m["c"](x))


# name -> forward, its layers, and the kernels between the copies of the network's inputs and outputs
SUMS = {
    "relu of a sum of two": (lambda m, x: F.relu(m["a"](x) + m["b"](x)), {"a": A, "b": B}, "CC"),
    "input first": (lambda m, x: F.relu(x + m["a"](x)), {"a": IN}, "C"),
    "input second": (lambda m, x: (m["a"](x) + x).clamp(-1, 1), {"a": IN}, "C"),
    "relu before the sum": (lambda m, x: F.relu(m["a"](x)) + m["b"](x), {"a": A, "b": B}, "CC"),
    "relu after and before": (lambda m, x: F.relu(F.relu(m["a"](x)) + m["b"](x)), {"a": A, "b": B}, "CC"),
    "relus of both": (lambda m, x: F.relu(m["a"](x)) + F.relu(m["b"](x)), {"a": A, "b": B}, "CC+"),
    "partner computed later": (ready_later, {"a": A, "b": B}, "CC+"),
    "result read twice": (read_twice, {"a": A, "b": SQUARE}, "CC"),
    "result returned too": (result_too, {"a": IN}, "C+|"),
    "with itself": (lambda m, x: (y := m["a"](x)) + y, {"a": A}, "C+"),
    "difference": (lambda m, x: x - m["a"](x), {"a": IN}, "C-"),
    "sum of three": (lambda m, x: x + m["a"](x) + m["b"](x), {"a": IN, "b": IN}, "CC"),
    "blocks": (chain, {"a": A, "b": SQUARE, "c": B}, "CCCC"),
    "activation, then clamp": (lambda m, x: F.gelu(m["a"](x)).clamp(-0.1, 0.4), {"a": A}, "C"),
    "clamp, then activation": (lambda m, x: F.silu(F.relu(m["a"](x))), {"a": A}, "C~"),
    "activation, then sum": (lambda m, x: F.hardswish(m["a"](x)) + x, {"a": IN}, "C+"),
    "numbers": (lambda m, x: F.relu(m["a"](x) + 1.5) * 2 / 3 - 1, {"a": IN}, "C+|*/-"),
    "stride": (halves, {"a": HALVED, "b": lambda: conv(3, 8, 1, stride=2)}, "CC"),
    "stride that is copied": (halves, {"a": lambda: conv(3, 6, stride=2), "b": lambda: conv(3, 6, 1, stride=2)}, "CcC"),
}  # fmt: skip
LETTERS = {
    "convolution": "C", "copy": "c", "add": "+", "sub": "-", "mul": "*", "div": "/", "silu": "~",
    "clamp": "|",
}  # fmt: skip


def letters(compiled):
    kernels = [step.kernel for step in compiled.report.steps if step.origin != "layout"]
    assert None not in kernels
    return "".join(LETTERS.get(kernel, "?") for kernel in kernels).removeprefix("c")


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_fused_into_the_convolution_that_ends_last(name):
    forward, layers, kernels = SUMS[name]
    compiled = check(Model(forward, **{key: make() for key, make in layers.items()}), (image(2, 3, 7, 7),))
    assert letters(compiled) == kernels


def test_sums_with_tensors_that_lie_otherwise_are_right():
    def sums(m, x):
        y = m["a"](x)
        return {
            "a value a channel": y + y.mean((2, 3), keepdim=True),
            "broadcast to an image": x.mean((2, 3), keepdim=True) + x,
            "one image for all": y + x[:1, :1].relu(),
            "a row": y + x[:, :1, :1],
            "a column": y * x[:, :1, :, :1],
            "a scalar": y + x.mean(),
            "a factor": torch.add(y, y.relu(), alpha=2),
            "from a number": 1 - y,
            "constants": y * torch.arange(8.0).view(8, 1, 1) + torch.arange(7.0),
            "positions": y + torch.arange(49.0).view(7, 7),
            "integers": y * torch.arange(7),
            "bools": y * (y > 0),
            "other layout": y.permute(0, 2, 3, 1) + torch.arange(8.0),
            "both layouts": y + y.permute(0, 1, 3, 2),
            "maximum": torch.maximum(y, x[:, :1]),
        }

    check(Model(sums, a=conv(3, 8)), (image(2, 3, 7, 7),))


def squeeze(pool, gate):
    def forward(m, x):
        y = F.silu(m["a"](x))
        return gate(y, m["d"](F.relu(m["c"](pool(y)))))

    return forward


GATES = {
    "convolutions": (lambda y: F.adaptive_avg_pool2d(y, 1), lambda y, g: y * F.hardsigmoid(g), partial(conv, kernel=1)),
    "gate first": (lambda y: y.mean((2, 3), keepdim=True), lambda y, g: g.sigmoid() * y, partial(conv, kernel=1)),
    "linear layers": (lambda y: y.mean((-2, -1)), lambda y, g: y * g.sigmoid()[:, :, None, None], nn.Linear),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", GATES)
def test_squeeze_and_excitation_is_compiled_to_kernels(name, batch):
    pool, gate, layer = GATES[name]
    model = Model(squeeze(pool, gate), a=conv(3, 9), c=layer(9, 4), d=layer(4, 9))
    assert check(model, (image(batch, 3, 7, 5),)).report.fallbacks == ()


def test_every_activation_follows_a_convolution():
    functions = [
        F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.mish, F.softplus, F.elu, F.hardtanh,
        torch.sigmoid, torch.tanh, torch.exp, F.leaky_relu, F.selu, F.celu, F.softsign, F.logsigmoid, F.tanhshrink,
        torch.square, torch.sin, lambda y: F.gelu(y, approximate="tanh"), lambda y: F.elu(y, 0.5),
        lambda y: F.softplus(y, 2.0), lambda y: F.threshold(y, 0.1, 7.0), lambda y: F.glu(y, 1),
        lambda y: F.hardtanh(y, -0.5, 0.25), lambda y: y.abs().sqrt(),
    ]  # fmt: skip
    layers = {f"c{index}": conv(3, 4, 1) for index in range(len(functions))}

    def forward(m, x):
        return [function(m[name](x)) for name, function in zip(layers, functions)]

    check(Model(forward, **layers), (image(1, 3, 4, 3),))


MODULES = {
    "prelu": lambda: nn.PReLU(8),
    "batch-norm": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)),
    "group-norm": lambda: nn.GroupNorm(2, 8),
    "instance-norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "dropout": nn.Dropout2d,
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_between_convolutions_are_right(name):
    check(nn.Sequential(conv(3, 8), MODULES[name](), conv(8, 4)), (image(2, 3, 6, 5),))
