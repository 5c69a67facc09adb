"""Compiled networks as files: saved, loaded, replaced, saved again."""

import os

import pytest
import torch
from float64_networks import compile_model, conv, image, seeded
from torch import nn

import pruneaug
from pruneaug.runtime.network import load_network
from pruneaug.runtime.scopes import without_scopes

X = image(1, 3, 5, 5)


def make(outputs):
    return compile_model(seeded(nn.Sequential(conv(3, outputs), nn.ReLU())), (X,))


@pytest.fixture(scope="module")
def networks():
    return make(2), make(4)


def test_a_file_that_was_replaced_is_loaded_anew(networks, tmp_path):
    path = tmp_path / "network.so"
    for network in networks:
        network.save(path)
        assert torch.equal(load_network(path)(X), network(X))


def test_a_loaded_network_is_saved_as_it_was_loaded(networks, tmp_path):
    first, second = networks
    first.save(tmp_path / "first.so")
    loaded = load_network(tmp_path / "first.so")
    second.save(tmp_path / "first.so")  # another network has its name now
    loaded.save(tmp_path / "folder" / "copy.so")
    assert torch.equal(load_network(tmp_path / "folder" / "copy.so")(X), first(X))
    loaded.save(tmp_path / "first.so")
    assert torch.equal(load_network(tmp_path / "first.so")(X), first(X))
    (tmp_path / "first.so").unlink()
    loaded.save(tmp_path / "again.so")
    assert torch.equal(load_network(tmp_path / "again.so")(X), first(X))


@pytest.mark.parametrize("name", ["network", "network.bin", "with space.so"])
def test_a_file_may_have_any_name(networks, tmp_path, name):
    networks[0].save(tmp_path / name)
    assert torch.equal(pruneaug.load(tmp_path / name)(X), networks[0](X))


def test_saving_and_loading_do_not_list_the_constants(networks, tmp_path, capfd):
    networks[0].save(tmp_path / "network.so")
    load_network(tmp_path / "network.so")
    assert "Scope" not in capfd.readouterr().err


def test_all_else_that_is_written_to_standard_error_is_kept(capfd):
    with without_scopes():
        os.write(2, b"before\n[10:00:00] /executable.cc:276: Warning: Scope Saving:\nbehind")
    assert capfd.readouterr().err == "before\nbehind"
