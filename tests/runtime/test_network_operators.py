"""Networks that write in place, share layers, use rare operators, or cannot be compiled."""

import pytest
import torch
import torch.nn.functional as F
from float64_networks import Model, check, compile_model, conv, image, random_masks, seeded
from torch import nn

from pruneaug.errors import CompileError, InputError
from pruneaug.network.layers import find_layers
from pruneaug.runtime.graph import export_program

X, TOKENS = image(2, 4, 7, 7), image(2, 5, 6)


def chain(m, x):
    y = m["c"](x)
    y.add_(1).mul_(2)
    y += x.mean()
    y.clamp_(-1, 1)
    y[:, 0] = 3
    y[..., 1:] *= 2
    y[y > 0.5] = 0
    return y


def alias_of_a_dropout(m, x):
    y = m["c"](x)
    F.dropout(y, 0.5, training=False).add_(1)
    return y


def alias_of_a_cast(m, x):
    y = m["c"](x)
    y.type_as(x).mul_(2)
    y.to(x.dtype).add_(1)
    return y + y.contiguous()


def narrower_than_its_operand(m, x):
    y = m["c"](x).round().int().float()
    y.add_(torch.full((7,), 0.1, dtype=torch.float64))
    return y


def view_before_the_write(m, x):
    y = m["c"](x)
    flat = y.flatten(2)
    y.relu_()
    return flat


def write_through_a_view(m, x):
    y = m["c"](x)
    y.flatten(2).relu_()
    return m["d"](y)


def write_through_a_part(m, x):
    a, b = (y := m["c"](x)).chunk(2, 1)
    a.relu_()
    b[:, :1] = a[:, 1:]
    return y


def fills(m, x):
    y = m["c"](x)
    z = y.relu()
    y.zero_()
    w = torch.empty_like(x).fill_(2.0).copy_(x)
    return y + z, w, z.masked_fill_(z > 1, -1.0)


def collected(m, x):
    out = torch.zeros_like(x)
    for index in range(4):
        out[:, index] = m["c"](x)[:, index] * index
    return out


def writes_to_its_input(m, x):
    return m["c"](x.sub_(0.5).div_(2.0))


def writes_to_a_part_of_its_input(m, x):
    x[:, 0] = 1.0
    return m["c"](x)


IN_PLACE = [
    chain, alias_of_a_dropout, alias_of_a_cast, narrower_than_its_operand, view_before_the_write, write_through_a_view,
    write_through_a_part, fills, collected,
]  # fmt: skip


@pytest.mark.parametrize("forward", IN_PLACE)
def test_a_network_that_writes_in_place_is_right(forward):
    check(Model(forward, c=conv(4, 4), **({"d": conv(4, 5)} if forward is write_through_a_view else {})), (X,))


@pytest.mark.parametrize("forward", [writes_to_its_input, writes_to_a_part_of_its_input])
def test_a_network_that_writes_to_its_input_is_right_and_leaves_it_as_it_is(forward):
    model = seeded(Model(forward, c=conv(4, 4)))
    with torch.no_grad():
        want = model(X.clone())
    compiled = compile_model(model, (X.clone(),))
    x = X.clone()
    torch.testing.assert_close(compiled(x), want)
    assert torch.equal(x, X)


RARE = {
    "cumsum": lambda m, x: m["l"](x.cumsum(1)).cumsum(-1),
    "top k": lambda m, x: m["l"](x).topk(3, -1),
    "einsum": lambda m, x: torch.einsum("bij,bkj->bik", m["l"](x), m["l"](x)),
    "sort": lambda m, x: (m["l"](x).sort(1), m["l"](x).argsort(-1)),
    "gather": lambda m, x: m["l"](x).gather(1, m["l"](x).argmax(1, keepdim=True)),
    "products": lambda m, x: (m["l"](x).transpose(1, 2) @ x).flatten(1) @ torch.ones(24, 3).to(x.dtype),
    "norms": lambda m, x: F.layer_norm(m["l"](F.normalize(x, dim=-1)), (5, 4)) + F.rms_norm(m["l"](x), (4,)),
    "dtypes": lambda m, x: m["l"](x).int().float().to(x.dtype) + (m["l"](x) > 0),
    "tokens joined": lambda m, x: m["l"](torch.cat([torch.zeros_like(x[:, :1]), x], 1))[:, 0],
    "last token": lambda m, x: (m["l"](x)[:, -1], m["l"](x)[:, 0], m["l"](x)[0], m["l"](x)[1, 2]),
    "positions": lambda m, x: m["l"](x + torch.arange(5).view(5, 1)),
    "long softmax": lambda m, x: (m["l"](x) * 30).flatten(1).softmax(-1),
    "recurrent": lambda m, x: m["l"](m["r"](x)[0]),
    "weight-norm": lambda m, x: m["l"](m["w"](x)),
}  # fmt: skip


@pytest.mark.parametrize("name", RARE)
def test_operators_without_a_kernel_are_right(name):
    layers = {
        "recurrent": {"r": nn.LSTM(6, 6, batch_first=True)},
        "weight-norm": {"w": nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))},
    }.get(name, {})
    check(Model(RARE[name], l=nn.Linear(6, 4), **layers), (TOKENS,))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(F.relu(self.inner(self.embed(ids))))


class TwoPaths(nn.Module):
    """One layer under several names."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Sequential(self.a, nn.ReLU(), self.a)

    def forward(self, x):
        return self.b(self.a(x))


class OtherReader(nn.Module):
    """A layer's weight, of which some is removed, is read by another operator, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x) @ self.layer.weight, self.layer.weight.t() * 2


class Unread(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unread = nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x):
        self.unread(x)
        return self.used(x)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Tied, (torch.tensor([[1, 2, 3], [0, 10, 4]]),)),
        (TwoPaths, (TOKENS,)),
        (OtherReader, (TOKENS,)),
        (Unread, (TOKENS,)),
    ],
)
def test_weights_that_are_shared_or_not_read_are_masked_right(model, inputs):
    check(model(), inputs)


def test_masks_of_two_paths_are_those_of_the_first():
    model = seeded(TwoPaths())
    network = find_layers(model, (TOKENS,))
    assert [layer.name for layer in network.layers] == ["a"]
    compiled = compile_model(model, (TOKENS,), random_masks(model, network))
    assert [step.origin for step in compiled.report.steps if step.kernel == "product"] == ["a"] * 3


class Counter(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.layer, self._write = nn.Linear(6, 4), write
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self._write(self.calls)
        return self.layer(x) * self.calls


@pytest.mark.parametrize("write", [lambda calls: calls.add_(1), lambda calls: calls[:1].add_(1)])
def test_a_network_that_changes_its_own_buffers_is_an_error(write):
    with pytest.raises(CompileError, match="must compute the same in every call, but this one changes its own 'calls'"):
        compile_model(Counter(write), (TOKENS,))


ERRORS = {
    "control flow": (lambda m, x: m["l"](x) if x.sum() > 0 else x, "must be exportable .*data-dependent"),
    "rows by values": (lambda m, x: m["l"](x)[x[..., 0] > 0], "all shapes must be known .* depends on values"),
    "number of a tensor": (lambda m, x: m["l"](x) * x.sum().item(), "must be tensors, but .*item.* gives a SymFloat"),
    "random": (lambda m, x: m["l"](x) + torch.rand(4), "aten.rand.default is not"),
    "dropout in eval mode": (lambda m, x: F.dropout(m["l"](x)), "aten.dropout.default is not: .* is random"),
    "complex": (lambda m, x: torch.fft.rfft(m["l"](x)).abs(), "aten.fft_rfft.default is not"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_compiled_is_an_error_that_says_why(name):
    forward, message = ERRORS[name]
    with pytest.raises(CompileError, match=message):
        compile_model(seeded(Model(forward, l=nn.Linear(6, 4))), (TOKENS,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_dtype_is_an_error(dtype):
    with pytest.raises(InputError, match=rf"float32 weights .* has {dtype}; call `model.float\(\)`"):
        compile_model(nn.Sequential(nn.Linear(6, 4)).to(dtype), (TOKENS.to(dtype),))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_no_images_gives_none(stride):
    check(Model(lambda m, x: m["c"](x), c=conv(3, 4, stride=stride)), (image(0, 3, 7, 7),))


def test_a_module_named_like_a_keyword_is_an_error():
    with pytest.raises(CompileError, match="no keywords of Python to be compiled, but got in; rename"):
        compile_model(Model(lambda m, x: m["in"](x), **{"in": nn.Linear(6, 4)}), (TOKENS,))


def test_what_is_no_module_is_an_error():
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, but got function"):
        export_program(lambda x: x, (TOKENS,))


def test_a_report_names_the_operator_that_gives_an_item():
    def forward(m, x):
        a, b = m["l"](x).chunk(2, -1)
        return a * b.cumsum(1)

    assert check(Model(forward, l=nn.Linear(6, 4)), (TOKENS,)).report.fallbacks == ("chunk, cumsum, mul",)
