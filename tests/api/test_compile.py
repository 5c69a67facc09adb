"""`pruneaug.compile`: a module and example inputs in, a callable and one file out."""

import json
import os
import stat

import pytest
import torch
from torch import nn

import pruneaug
from pruneaug.errors import CheckpointError, InputError, StorageError

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
    with pytest.raises(CheckpointError, match=r"network\.so must be a network that this version of pruneaug compiled"):
        pruneaug.load(tmp_path / "network.so")


def test_loading_what_is_not_there_names_both_that_could_be(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"a checkpoint's folder, or a file that `save` wrote, must be at .*none\.so"
    ):
        pruneaug.load(tmp_path / "none.so")
