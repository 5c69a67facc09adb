"""The compiled network in a checkpoint: it runs where it was compiled, and whatever is wrong with it is said."""

import json
import os

import pytest
import torch
from checkpoints import edit, make_checkpoint

from pruneaug.api.loading import load
from pruneaug.errors import CheckpointError, InputError
from pruneaug.exporter.artifact import add_artifact, artifact_path
from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.platforms import detect

HERE = detect(1)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The machine code of the checkpoint that `make_checkpoint` writes."""
    folder = tmp_path_factory.mktemp("library")
    model, _ = make_checkpoint(folder)
    load(folder, model=model).save(folder / "network.so")
    return (folder / "network.so").read_bytes()


@pytest.fixture
def exported(tmp_path, library):
    """A checkpoint with an artifact: (folder, model, inputs)."""
    model, inputs = make_checkpoint(tmp_path)
    path = artifact_path(tmp_path, HERE)
    path.parent.mkdir()
    path.write_bytes(library)
    assert add_artifact(tmp_path, HERE) == path
    return tmp_path, model, inputs


def test_the_artifact_computes_what_pytorch_does_and_needs_no_model(exported):
    folder, model, inputs = exported
    network = load(folder, artifact=True)
    with torch.no_grad():
        expected = model(*inputs)
    assert float((network(*inputs) - expected).norm() / expected.norm()) < 1e-5
    assert network.threads == 1
    assert {path.name for path in folder.iterdir()} == {
        "pruneaug.json", "model.safetensors", "example_inputs.safetensors", f"artifact-{HERE.name}",
    }  # fmt: skip


def test_code_of_a_checkpoint_is_not_loaded_unless_it_is_asked_for(exported, monkeypatch):
    folder, model, _ = exported
    monkeypatch.setattr("pruneaug.runtime.network.load_network", lambda path: pytest.fail("loaded"))
    assert load(folder, model=model, trust_code=True).report.products == 3


@pytest.mark.parametrize("changes", [{"threads": 1}, {"model": torch.nn.Linear(2, 2)}])
def test_arguments_that_an_artifact_cannot_heed_are_refused(exported, changes):
    folder, _, _ = exported
    with pytest.raises(InputError, match="leave `model` and `threads` out, or `artifact`"):
        load(folder, artifact=True, **changes)


def test_a_checkpoint_without_an_artifact_says_how_to_load_it(tmp_path):
    make_checkpoint(tmp_path)
    assert add_artifact(tmp_path, HERE) is None
    with pytest.raises(CheckpointError, match="holds no compiled network; load the checkpoint without `artifact=True`"):
        load(tmp_path, artifact=True)


def test_a_library_of_an_export_that_was_killed_is_no_artifact(tmp_path, library):
    make_checkpoint(tmp_path)
    path = artifact_path(tmp_path, HERE)
    path.parent.mkdir()
    path.write_bytes(library)
    with pytest.raises(CheckpointError, match="holds no compiled network"):
        load(tmp_path, artifact=True)


@pytest.mark.parametrize("size", [0, 4096])
def test_a_truncated_library_is_never_run(exported, size):
    folder, _, _ = exported
    os.truncate(artifact_path(folder, HERE), size)
    with pytest.raises(CheckpointError, match=r"network\.so must be the file that was exported, but its SHA-256"):
        load(folder, artifact=True)


def test_a_missing_library_is_named(exported):
    folder, _, _ = exported
    artifact_path(folder, HERE).unlink()
    with pytest.raises(CheckpointError, match=r"network\.so cannot be read \(No such file.*without `artifact=True`"):
        load(folder, artifact=True)


def test_an_artifact_of_another_machine_or_version_is_refused_with_all_differences(exported):
    folder, _, _ = exported
    platform = {**detect(1).to_json(), "cpu": "another", "isa": ["neon"]}
    del platform["fingerprint"]
    platform["versions"] = {**platform["versions"], "apache-tvm": "0.1", "torch": "0.4"}
    edit(folder, platform=platform)
    with pytest.raises(CheckpointError) as caught:
        load(folder, artifact=True)
    message = str(caught.value)
    for words in ("cpu: ", "another there", "('neon',) there", "apache-tvm: ", "0.1 there", "which compiles it here"):
        assert words in message
    assert "torch" not in message  # which the compiled code does not need


def test_another_pytorch_runs_the_same_artifact(exported):
    folder, _, inputs = exported
    platform = detect(1).to_json()
    edit(folder, platform={**platform, "versions": {**platform["versions"], "torch": "0.4"}})
    assert load(folder, artifact=True)(*inputs).shape == (2, 4)


def test_a_platform_that_was_edited_by_hand_is_a_checkpoint_error(exported):
    folder, _, _ = exported
    edit(folder, platform={**detect(1).to_json(), "cpu": "another"})
    with pytest.raises(CheckpointError, match="must name its platform, but the fingerprint"):
        load(folder, artifact=True)


def test_a_file_with_the_right_digest_that_is_no_network_is_refused(tmp_path):
    make_checkpoint(tmp_path)
    path = artifact_path(tmp_path, HERE)
    path.parent.mkdir()
    path.write_bytes(b"no machine code")
    add_artifact(tmp_path, HERE)
    with pytest.raises(CheckpointError, match="must be a network that this version of pruneaug compiled"):
        load(tmp_path, artifact=True)


def test_an_export_over_another_removes_its_artifact(exported):
    folder, _, _ = exported
    make_checkpoint(folder)
    assert not list(folder.glob("artifact-*"))
    assert "artifact_sha256" not in json.loads((folder / "pruneaug.json").read_text())
    assert read_checkpoint(folder).masks
