"""`pruneaug.compile`: a module and example inputs in, a callable and one file out."""

import json
import os
import stat

import pytest
import torch
from torch import nn

import pruneaug
from pruneaug.errors import CheckpointError, CompileError, InputError, NetworkError, StorageError

INPUTS = (torch.randn(2, 16, generator=torch.Generator().manual_seed(0)),)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8)).eval()


def functions_of(path):
    """The functions that a saved network says it has, as C++ reads them."""
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    return list(json.loads(bytes(machine["metadata"]().numpy()))["functions"])


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("sizes", "functions"),
    [
        (None, ["main"]),
        ([3], ["main"]),
        ([3, 3], ["main"]),
        ([4, 1], ["main_4", "main_1"]),
        ([1, 2, 1], ["main_1", "main_2"]),
    ],
)
def test_a_single_batch_is_main_and_several_are_told_by_their_sizes(tmp_path, sizes, functions):
    model = make_model()
    network = pruneaug.compile(model, INPUTS, batch_sizes=sizes, threads=1)
    network.save(tmp_path / "network.so")
    assert functions_of(tmp_path / "network.so") == functions
    for compiled in (network, pruneaug.load(tmp_path / "network.so")):
        for size in sizes or (2,):
            x = torch.randn(size, 16)
            with torch.no_grad():
                assert relative_error(compiled(x), model(x)) < 1e-5
        with pytest.raises(InputError, match="compile it for these"):
            compiled(torch.randn(5, 16))


@pytest.mark.parametrize("sizes", [[], [0], [-1, 2]])
def test_batch_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(InputError, match="`batch_sizes`"):
        pruneaug.compile(make_model(), INPUTS, batch_sizes=sizes)


def test_inputs_without_a_common_batch_are_refused():
    with pytest.raises(InputError, match="all have the examples in their first dimension"):
        pruneaug.compile(nn.Bilinear(16, 3, 2), (torch.zeros(2, 16), torch.zeros(1, 3)), batch_sizes=[1, 2])


def test_a_number_of_examples_is_one_batch_size():
    network = pruneaug.compile(make_model(), INPUTS, batch_sizes=4, threads=1)
    assert network.inputs == [("float32 [4, 16]",)]


def test_tensors_within_an_argument_are_batched_too():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, given, scale):
            return self.layer(given["x"]) * given["parts"][0] * scale

    model, x = Nested().eval(), torch.randn(1, 16)
    network = pruneaug.compile(model, ({"x": x, "parts": [x[:, :4]]}, 2.0), batch_sizes=[1, 3], threads=1)
    for size in (1, 3):
        given = {"parts": [torch.randn(size, 4)], "x": torch.randn(size, 16)}
        with torch.no_grad():
            assert relative_error(network(given, 2.0), model(given, 2.0)) < 1e-5
    with pytest.raises(InputError, match="first dimension"):
        pruneaug.compile(model, ({"x": x, "parts": [torch.randn(2, 4)]}, 2.0), batch_sizes=3)


def test_a_single_tensor_needs_no_tuple():
    model, network = make_model(), pruneaug.compile(make_model(), INPUTS[0], threads=1)
    with torch.no_grad():
        assert relative_error(network(*INPUTS), model(*INPUTS)) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (INPUTS[0].numpy(), r"must hold PyTorch tensors, but got a NumPy array; give `torch\.from_numpy"),
        ((INPUTS[0].numpy(),), "must hold PyTorch tensors, but got a NumPy array"),
        ([INPUTS[0]], r"a tensor, or a tuple .* but got a list; write `\(x,\)`"),
        ({"input": INPUTS[0]}, r"a tensor, or a tuple .* but got a dict; write"),
        ((), r"at least one tensor, but got \(\)"),
        ((list(range(1000)),), "at least one tensor, but got .{1,60}; give tensors"),
        ((INPUTS[0].double(),), r"float64 \[2, 16\].* weights are float32, so give inputs in float32"),
        ((torch.zeros(2, 5),), r"float32 \[2, 5\]\) it raised RuntimeError: mat1 .* give inputs that"),
        ((*INPUTS, None), r"\(float32 \[2, 16\], None\) it raised TypeError"),
    ],
)
def test_examples_that_are_no_inputs_are_refused_with_what_to_give(inputs, message):
    with pytest.raises(InputError, match=message):
        pruneaug.compile(make_model(), inputs)


class Forward(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self._forward = forward

    def forward(self, x):
        return self._forward(x)


def test_what_forward_itself_raises_is_told_as_that():
    with pytest.raises(NetworkError, match=r"raised NameError: name 'missing' is not defined; .* mend its `forward`"):
        pruneaug.compile(Forward(lambda x: missing(x)), INPUTS)  # noqa: F821


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x if x.sum() > 0 else -x, "remove data-dependent Python control flow"),
        (lambda x: x * float(x.sum()), "remove data-dependent Python control flow"),
        (lambda x: torch.from_numpy(x.numpy() * 2), r"RuntimeError: \.numpy\(\) .* by PyTorch's operators on tensors"),
    ],
)
def test_control_flow_is_blamed_only_where_it_is_the_reason(forward, message):
    with pytest.raises(CompileError, match=message):
        pruneaug.compile(Forward(forward), INPUTS)


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


DENSE = {
    "recurrent": (nn.LSTM(6, 5, batch_first=True), image(2, 4, 6)),
    "sequences": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), image(2, 3, 9)),
    "volumes": (nn.Conv3d(2, 3, 3), image(1, 2, 5, 6, 5)),
    "transposed convolution": (nn.ConvTranspose2d(2, 3, 3, stride=2), image(2, 2, 5, 5)),
    "functional": (Forward(lambda x: (x.softmax(0) @ x.t()).relu()), image(4, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), image(1, 4, 6, 6)),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_network_without_a_prunable_layer_is_compiled_dense(name):
    model, x = DENSE[name]
    network = pruneaug.compile(model.eval(), x, threads=1)
    assert name == "depthwise" or network.report.fallbacks
    got, want = network(x), model(x)
    got, want = (got[0], want[0]) if name == "recurrent" else (got, want)
    assert relative_error(got, want.detach()) < 1e-5


def test_attention_alone_is_compiled_dense():
    model, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), image(2, 5, 8)
    got = pruneaug.compile(model, (x, x, x), threads=1)(x, x, x)
    for ours, theirs in zip(got, model(x, x, x)):
        assert relative_error(ours, theirs.detach()) < 1e-5


@pytest.fixture(scope="module")
def compiled():
    return pruneaug.compile(make_model(), INPUTS, threads=1)


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.zeros(3, 16),),
        (torch.zeros(16),),
        (torch.zeros(2, 16).double(),),
        (torch.zeros(2, 16).numpy().astype("int64"),),
        (*INPUTS, *INPUTS),
        (None,),
        (),
        (torch.zeros(2, 16).tolist(),),
        ("long text " * 1000,),
    ],
)
def test_inputs_of_other_kinds_are_an_error_that_is_short(compiled, inputs):
    with pytest.raises(InputError, match=r"\(float32 \[2, 16\]\), but got .*; compile it for these, or give") as caught:
        compiled(*inputs)
    assert len(str(caught.value)) < 500


def test_inputs_by_name_are_refused(compiled):
    with pytest.raises(InputError, match="in the order of its example inputs, but got some by name: input, y; leave"):
        compiled(input=INPUTS[0], y=1)


def test_zeros_are_skipped_from_a_quarter_on_and_masks_remove_weights():
    model = make_model()
    keep = torch.rand(24, 16, generator=torch.Generator().manual_seed(1)) > 0.5
    masked = pruneaug.compile(model, INPUTS, masks={"0": keep}, threads=1)(*INPUTS)
    with torch.no_grad():
        model[0].weight.masked_fill_(~keep, 0.0)
        expected = model(*INPUTS)
    assert relative_error(masked, expected) < 1e-5
    assert relative_error(pruneaug.compile(model, INPUTS, threads=1)(*INPUTS), expected) < 1e-5


def test_a_saved_network_replaces_the_old_file_whole_or_not_at_all(tmp_path, monkeypatch):
    network = pruneaug.compile(make_model(), INPUTS, threads=1)
    path = tmp_path / "new" / "network.so"
    network.save(path)
    before = path.read_bytes()
    linker = tmp_path / "full-disk"
    linker.write_text('#!/bin/sh\nfor last; do [ "$o" = -o ] && echo half > "$last"; o=$last; done\n'
                      "echo No space left on device; exit 1\n")  # fmt: skip
    linker.chmod(linker.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(linker))
    with pytest.raises(StorageError, match=r"cannot link .*network\.so: .*No space left on device; check that"):
        network.save(path)
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(StorageError, match="a C\\+\\+ compiler is installed"):
        network.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["network.so"]


def test_a_network_cannot_be_saved_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        pruneaug.compile(make_model(), INPUTS, threads=1).save(tmp_path / "file" / "network.so")


def test_a_file_that_is_no_network_is_a_checkpoint_error(tmp_path):
    (tmp_path / "network.so").write_bytes(b"no machine code")
    with pytest.raises(
        CheckpointError, match=r"network\.so must be a network .* but it is no shared library .*; compile"
    ) as caught:
        pruneaug.load(tmp_path / "network.so")
    assert "Check failed" not in str(caught.value)
    with pytest.raises(CheckpointError, match="but it is a library with something else"):
        pruneaug.load(torch._C.__file__)


def test_loading_what_is_not_there_names_both_that_could_be(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"a checkpoint's folder, or a file that `save` wrote, must be at .*none\.so"
    ):
        pruneaug.load(tmp_path / "none.so")
