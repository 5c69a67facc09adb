import pickle

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from pruneaug.errors import TaskError
from pruneaug.spec.models import PlugIn
from pruneaug.tasks import NetworkSource
from pruneaug.tasks.checkpoint import load_weights


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def as_safetensors(model, folder):
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def as_folder(model, folder):
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def as_state_dict(model, folder):
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def as_training_checkpoint(model, folder):
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "last.pth.tar")
    return folder / "last.pth.tar"


@pytest.mark.parametrize("save", [as_safetensors, as_folder, as_state_dict, as_training_checkpoint])
def test_weights_are_loaded_from_every_kind_of_file(save, tmp_path):
    trained, fresh = network(0), network(1)
    trained[1].running_mean += 1
    assert not same(trained, fresh)
    load_weights(fresh, save(trained, tmp_path))
    assert same(trained, fresh)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_weight_may_be_stored_once(tmp_path):
    trained, fresh = Tied(), Tied()
    save_model(trained, str(tmp_path / "tied.safetensors"))
    load_weights(fresh, tmp_path / "tied.safetensors")
    assert torch.equal(fresh.head.weight, trained.embedding.weight)
    assert fresh.head.weight is fresh.embedding.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("2.bias"), r"2.bias \(missing\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"extra \(unknown to the network\)"),
        (lambda state: state.update({"0.weight": torch.zeros(5, 3)}), r"0.weight is \[5, 3\] and must be \[4, 3\]"),
        (lambda state: state.clear(), r"0.weight, 0.bias, 1.weight and 6 more \(missing\)"),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_is_loaded(change, message, tmp_path):
    state = network(0).state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pt")
    model = network(1)
    with pytest.raises(TaskError, match=message):
        load_weights(model, tmp_path / "w.pt")
    assert same(model, network(1))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.safetensors", b"broken"),
        ("w.pt", b"broken"),
        ("w.pt", b""),
        ("w.pt", pickle.dumps({"a": Evil()}, protocol=2)),
    ],
)
def test_a_broken_file_is_refused(name, content, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match="cannot be read"):
        load_weights(network(0), tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, 5])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TaskError, match=r"holds no state_dict; save model.state_dict\(\)"):
        load_weights(network(0), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["nothing.pt", "."])
def test_a_missing_file_is_refused(name, tmp_path):
    with pytest.raises(TaskError, match="`checkpoint` must be a file"):
        load_weights(network(0), tmp_path / name)


def test_a_source_with_a_checkpoint_is_trained(tmp_path):
    plugin = PlugIn(name="resnet20", options={"seed": 5})
    trained = NetworkSource(plugin).build()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    source = NetworkSource(PlugIn(name="resnet20"), str(tmp_path / "w.safetensors"))
    assert source.trained
    assert not NetworkSource(plugin).trained
    assert same(source.build(), trained)
    with pytest.raises(TaskError, match=r"fc.weight is \[10, 64\] and must be \[7, 64\]"):
        source.build(num_classes=7)


def test_options_of_the_job_win_over_facts_of_the_data():
    source = NetworkSource(PlugIn(name="resnet20", options={"num_classes": 4}))
    assert source.build(num_classes=3, in_channels=1, image_size=32).fc.out_features == 4
