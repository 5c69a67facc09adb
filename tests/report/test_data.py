import json
import re
from pathlib import Path

import pytest

from pruneaug.errors import RunError
from pruneaug.report.data import best_baseline, chosen_trial, closest_trial, read_report


def test_a_written_report_reads_back(tmp_path, report):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert read_report(path) == report


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "pruneaug run"), ("{", "must be JSON"), ("[]", "version 1"), ('{"version": 99}', "version 1, but has 99")],
)
def test_a_broken_report_names_the_file_and_the_way_out(tmp_path, content, said):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=said) as caught:
        read_report(path)
    assert "report.json" in str(caught.value)


def test_the_best_dense_runtime_is_a_baseline_or_our_own_dense_network(report):
    assert best_baseline(report) == report["baselines"][0]
    report["best_dense"] = "pruneaug-dense"
    assert best_baseline(report)["latency_ms"] == report["dense"]["latency_ms_measured"]
    report["best_dense"] = None
    assert best_baseline(report) == {}


def test_the_chosen_trial_is_the_fastest_feasible_and_the_closest_loses_least(report, infeasible):
    feasible = [t["latency_ms_predicted"] for t in report["trials"] if t["feasible"]]
    assert chosen_trial(report)["latency_ms_predicted"] == min(feasible)
    assert chosen_trial(infeasible) == {}
    losses = [t["accuracy_loss"] for t in infeasible["trials"] if t["accuracy_loss"] is not None]
    assert closest_trial(infeasible)["accuracy_loss"] == min(losses)


def test_the_documented_keys_are_those_of_a_report(report):
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    documented = {
        key: set(re.findall(r"`(\w+)`", meaning))
        for keys, meaning in re.findall(r"^\| (`.+?) \| (.+) \|$", page.split("## Report")[1], re.MULTILINE)
        for key in re.findall(r"`(\w+)`", keys)
    }
    assert documented.keys() == report.keys()
    for key in ("dense", "best", "network", "constraint", "search"):
        assert report[key].keys() <= documented[key if key in documented else "dense"]
    for key in ("baselines", "layers", "kept_dense", "trials"):
        assert report[key][0].keys() <= documented[key]
