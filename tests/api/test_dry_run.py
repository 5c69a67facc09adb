"""What the dry run finds before anything is measured or trained."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_flow import SHORT, toy_job

import pruneaug
from pruneaug.errors import LatencyTableError, PluginError, SpecError, TaskError
from pruneaug.platforms import Platform
from pruneaug.tasks import task_from_modules


def test_a_plug_in_that_is_none_shows_before_anything_is_measured(tmp_path):
    for changes in ({"search__strategy": "jiont"}, {"pruner": {"name": "magnitud"}}, {"finetune__name": "trian"}):
        for verb in (pruneaug.run, pruneaug.dry_run):
            with pytest.raises(PluginError, match="did you mean"):
                verb(toy_job(tmp_path, **changes))
    rules = [{"match": "layer9", "dense": True}]
    for verb in (pruneaug.profile, pruneaug.run, pruneaug.dry_run):
        with pytest.raises(SpecError, match="'layer9' matches none"):
            verb(toy_job(tmp_path, space__layers=rules))
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("limit", ["max_latency_ms", "max_latency_ratio"])
def test_a_dry_run_tells_of_a_limit_that_cannot_be_reached_as_the_search_does(toy_at, limit):
    folder = toy_at("profiled")
    plan = pruneaug.dry_run(toy_job(folder))
    least = plan["latency_ms_best"] / (1 if limit == "max_latency_ms" else plan["latency_ms_dense"])

    def job(value):
        return toy_job(folder, search__objective="accuracy", **{f"search__{limit}": value})

    with pytest.raises(SpecError, match=rf"search\.{limit} must be reachable") as planned:
        pruneaug.dry_run(job(0.99 * least))
    with pytest.raises(SpecError) as searched:
        pruneaug.search(job(0.99 * least))
    assert str(planned.value) == str(searched.value)
    assert pruneaug.dry_run(job(1.001 * least))["latency_ms_best"] == plan["latency_ms_best"]


def test_a_dry_run_finds_labels_that_the_network_has_no_output_for(tmp_path):
    inputs, labels = torch.zeros(8, 1, 8, 8), torch.arange(8) % 4
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 4))
    data = {"train": (inputs, labels), "validation": (inputs, labels + 100), "test": (inputs, labels)}
    with pytest.raises(TaskError, match="labels must be below the number of classes"):
        pruneaug.dry_run(toy_job(tmp_path), task=task_from_modules(network, **data, trained=False))


def test_a_dry_run_of_a_table_of_another_machine_says_so(toy_at):
    folder = toy_at("profiled")
    (table,) = (folder / "db").iterdir()
    path = table / "platform.json"
    other = replace(Platform.from_json(json.loads(path.read_text())), cpu="another")
    path.write_text(json.dumps(other.to_json()))
    with pytest.raises(LatencyTableError, match=r"cpu: .* here, another there"):
        pruneaug.dry_run(toy_job(folder, platform__name=table.name))


@pytest.mark.parametrize(
    ("executor", "together"),
    [
        ({}, 1),
        ({"name": "processes", "workers": 2}, 1),  # they share the cores
        ({"name": "processes", "workers": 2, "options": {"gpus": [0, 1]}}, 2),
    ],
    ids=str,
)
def test_the_estimate_of_a_search_holds_all_its_trainings(tmp_path, monkeypatch, executor, together):
    monkeypatch.setattr("pruneaug.api.planning._step_s", lambda job, spec: 0.5)
    changes = {"finetune__finalists": 2, "finetune__repeats": 3, "finetune__final": {**SHORT, "epochs": 4}}
    plan = pruneaug.dry_run(toy_job(tmp_path, search__executor=executor, **changes))
    epochs = {1: 3 * 1 + 2 * 4 + 3 * (1 + 4), 2: 2 * 1 + 1 * 4 + 2 * (1 + 4)}[together]
    an_epoch_s = plan["seconds_dense_training"] / 4
    assert plan["seconds_search"] == pytest.approx(epochs * an_epoch_s)
