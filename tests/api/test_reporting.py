"""The report of a run that went on after it was exported."""

import json

import pytest
import torch
from toy_flow import toy_job

import pruneaug
from pruneaug.api.reporting import report
from pruneaug.report import outcome
from pruneaug.searcher.weights import load_tensors, save_tensors


@pytest.fixture
def exported(toy_at):
    """(folder, report) of the toy job, exported."""
    folder = toy_at("searched")
    return folder, pruneaug.export(folder / "run").report


def test_repeats_that_were_made_after_an_export_are_in_its_report(exported):
    folder, before = exported
    assert before["best"]["repeats"] is None
    result = pruneaug.search(toy_job(folder, finetune__repeats=2))
    after = report(folder / "run")
    assert after["best"]["repeats"]["accuracies"] == list(result.repeats)
    same = {"best", "analysis", "verdict"}
    assert {k: v for k, v in after.items() if k not in same} == {k: v for k, v in before.items() if k not in same}
    assert after["best"]["latency_ms_measured"] == before["best"]["latency_ms_measured"]


def test_a_report_does_not_outlive_the_network_that_it_is_about(exported):
    folder, before = exported
    assert report(folder / "run") == before
    path = folder / "run" / "best" / "model.safetensors"
    save_tensors(path, {name: torch.zeros_like(tensor) for name, tensor in load_tensors(path).items()})
    after = report(folder / "run")
    assert (after["status"]["state"], outcome(after)) == ("searched", "unmeasured")
    again = pruneaug.export(folder / "run").report
    assert again["best"]["accuracy_test"] != before["best"]["accuracy_test"]
    assert again["best"]["weights"] != before["best"]["weights"]
    assert report(folder / "run") == again


def test_a_report_of_a_search_that_ends_with_another_trial_now_is_not_shown(exported):
    folder, before = exported
    path = folder / "run" / "best" / "record.json"
    record = json.loads(path.read_text())
    others = {trial["number"] for trial in before["trials"]} - {record["number"]}
    path.write_text(json.dumps({**record, "number": min(others)}))
    assert report(folder / "run")["best"]["number"] == min(others)


def test_the_report_of_a_run_whose_weights_were_removed_stays(exported):
    folder, before = exported
    (folder / "run" / "best" / "model.safetensors").unlink()
    assert report(folder / "run") == before
