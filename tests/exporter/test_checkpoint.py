import copy
import errno
import os

import pytest
import torch
from checkpoints import CHOICES, edit, make_checkpoint, make_model, write
from safetensors.torch import load_file, save_file
from torch import nn

from pruneaug.api.loading import load
from pruneaug.errors import CheckpointError, StorageError
from pruneaug.exporter.checkpoint import add_facts, block_map, map_digest, read_checkpoint
from pruneaug.network.layers import find_layers
from pruneaug.sparsity.masks import check_mask
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import DENSE, TWO_OF_FOUR, Block, LayerChoice


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_a_checkpoint_read_back_is_what_was_written(tmp_path):
    model, inputs = make_checkpoint(tmp_path, note="kept")
    opened = read_checkpoint(tmp_path)
    assert {name: tensor.tolist() for name, tensor in opened.weights.items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    assert opened.assignment == {**CHOICES, "4": DENSE}
    assert opened.network.layers == find_layers(model, inputs).layers
    assert set(opened.masks) == set(CHOICES)
    for name, mask in opened.masks.items():
        assert torch.equal(mask, model.get_submodule(name).weight != 0)
    assert torch.equal(opened.example_inputs[0], inputs[0])
    assert opened.info["note"] == "kept"
    kept = {layer["name"]: layer.get("blocks_kept") for layer in opened.info["layers"]}
    assert kept == {"0": count_blocks(model[0], 4, 2), "3": count_blocks(model[3], 8, 1), "4": None}


def count_blocks(layer, rows, cols):
    """Blocks with a weight that is not zero, one by one."""
    matrix = weight_matrix(layer.weight.detach())
    starts = ((row, col) for row in range(0, matrix.shape[0], rows) for col in range(0, matrix.shape[1], cols))
    return sum(bool(matrix[row : row + rows, col : col + cols].any()) for row, col in starts)


def test_a_block_map_says_which_blocks_hold_a_weight():
    weight = torch.zeros(4, 2, 1, 3)
    weight[1, 1, 0, 2] = 1.0
    rows = weight_matrix(weight).reshape(2, 2, 3, 2).abs().sum(dim=(1, 3))
    assert torch.equal(block_map(weight, Block(2, 2)), rows > 0)
    assert map_digest(torch.tensor([[True, False]])) != map_digest(torch.tensor([[True], [False]]))


def test_weights_that_share_memory_or_are_transposed_are_written(tmp_path):
    model = make_model()
    model[3].weight = nn.Parameter(torch.randn(360, 30).t())
    make_checkpoint(tmp_path, model)
    assert torch.equal(read_checkpoint(tmp_path).weights["3.weight"], model[3].weight)


@pytest.mark.parametrize("name", ["pruneaug.json", "model.safetensors", "example_inputs.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    make_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"must hold {name}.*No such file.*pruneaug export RUN"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "example_inputs.safetensors"])
@pytest.mark.parametrize("size", [0, 5, 1000])
def test_a_truncated_file_is_named(tmp_path, name, size):
    make_checkpoint(tmp_path)
    os.truncate(tmp_path / name, size)
    with pytest.raises(CheckpointError, match=f"{name} must be a safetensors file.*export the run again"):
        read_checkpoint(tmp_path)


def test_zeros_that_do_not_match_the_map_name_the_layer(tmp_path):
    make_checkpoint(tmp_path)

    def fill(weights):
        weights["3.weight"][:] = 1.0

    change_weights(tmp_path, fill)
    with pytest.raises(CheckpointError, match=r"zeros of layer '3' must match .*\(1440 of 1440 blocks are kept\)"):
        read_checkpoint(tmp_path)


def test_other_changed_weights_are_noticed(tmp_path):
    make_checkpoint(tmp_path)
    change_weights(tmp_path, lambda weights: weights["4.bias"].add_(1.0))
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        read_checkpoint(tmp_path)


def test_a_layer_without_its_weight_is_named(tmp_path):
    make_checkpoint(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop("3.weight"))
    with pytest.raises(CheckpointError, match="must hold the weight of layer '3'"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "must have version 1, but has 2"),
        ({"layers": ...}, "must hold layers"),
        ({"platform": ..., "spec": ...}, "must hold platform, spec"),
        ({"layers": [{"name": "0"}]}, "lacks or garbles something .*'op'"),
        ({"layers": [{"name": "0", "op": "lstm-3", "calls": 1}]}, "lacks or garbles something .*lstm-3"),
        ({"layers": ["0"]}, "lacks or garbles something"),
        ({"layers": None}, "lacks or garbles something"),
    ],
)
def test_a_description_that_is_not_whole_says_what_is_wrong(tmp_path, changes, message):
    make_checkpoint(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_description_that_is_no_json_object_is_refused(tmp_path, text):
    make_checkpoint(tmp_path)
    (tmp_path / "pruneaug.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"pruneaug\.json must"):
        read_checkpoint(tmp_path)


def test_a_layer_without_any_kept_block_is_written_and_runs(tmp_path):
    model, inputs = make_checkpoint(tmp_path)
    with torch.no_grad():
        for name in CHOICES:
            model.get_submodule(name).weight.zero_()
    everything = {name: LayerChoice(choice.pattern, 1.0) for name, choice in CHOICES.items()}
    write(tmp_path, model, find_layers(model, inputs), everything, inputs)

    opened = read_checkpoint(tmp_path)

    assert [layer["blocks_kept"] for layer in opened.info["layers"][:2]] == [0, 0]
    assert not any(bool(mask.any()) for mask in opened.masks.values())
    with torch.no_grad():
        expected = model(*inputs)
    got = load(tmp_path, model=make_model())(*inputs)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_an_export_over_another_leaves_nothing_of_it(tmp_path):
    make_checkpoint(tmp_path)
    (tmp_path / ".model.safetensors.4242.part").write_bytes(b"left by a killed export")
    other = copy.deepcopy(make_model())
    model, _ = make_checkpoint(tmp_path, other, {"3": LayerChoice(Block(1, 1), 0.9)})
    assert torch.equal(read_checkpoint(tmp_path).weights["3.weight"], model[3].weight)
    assert {path.name for path in tmp_path.iterdir()} == {
        "pruneaug.json", "model.safetensors", "example_inputs.safetensors",
    }  # fmt: skip


def test_an_export_that_stops_half_way_is_no_checkpoint(tmp_path, monkeypatch):
    make_checkpoint(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full; make room and run again"):
            make_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold pruneaug\.json"):
        read_checkpoint(tmp_path)
    make_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path).masks


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "checkpoint").write_text("a file")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        make_checkpoint(tmp_path / "checkpoint")


def test_facts_are_added_to_the_others(tmp_path):
    make_checkpoint(tmp_path, note="kept")
    add_facts(tmp_path, {"speedup_measured": 2.0})
    info = read_checkpoint(tmp_path).info
    assert (info["note"], info["speedup_measured"]) == ("kept", 2.0)


def test_the_map_of_n_of_m_is_one_of_weights(tmp_path):
    choices = {"3": LayerChoice(TWO_OF_FOUR, 0.5)}
    model, _ = make_checkpoint(tmp_path, choices=choices)
    opened = read_checkpoint(tmp_path)
    assert opened.assignment["3"] == choices["3"]
    assert torch.equal(opened.masks["3"], model[3].weight != 0)
    assert check_mask(opened.masks["3"], TWO_OF_FOUR)
    (layer,) = (layer for layer in opened.info["layers"] if layer["name"] == "3")
    assert (layer["pattern"], layer["sparsity"]) == ("nm:2:4", 0.5)
    assert (layer["blocks"], layer["blocks_kept"]) == (360 * 30, 360 * 30 // 2)
    change_weights(tmp_path, lambda weights: weights["3.weight"].fill_(1.0))
    with pytest.raises(CheckpointError, match="the zeros of layer '3' must match its block map"):
        read_checkpoint(tmp_path)
