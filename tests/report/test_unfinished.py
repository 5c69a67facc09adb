"""Reports of runs that are not finished, and of several runs."""

import json
import os
import subprocess
import sys

import pytest
from test_html import Page
from test_watch import begin, finish

from pruneaug.errors import RunError
from pruneaug.report import console_report, render_comparison, render_html
from pruneaug.report.analysis import analysis
from pruneaug.report.compare import check_same_task, comparison, comparison_table
from pruneaug.report.folder import is_driven, layer_rows, value_of
from pruneaug.report.unfinished import unfinished_report
from pruneaug.report.verdict import outcome, verdict

JOB = {"search": {"trials": 10, "max_accuracy_loss": 0.01, "strategy": "joint"}, "task": {"name": "digits"}}
LAYERS = {
    "latency_us_dense": 4000.0,
    "rest_us": 1000.0,
    "platform": {"name": "here", "cpu": "a CPU"},
    "validation_examples": 100,
    "layers": [
        {
            "name": "fc",
            "op": "linear-t128-i768-o3072",
            "calls": 1,
            "latency_us_dense": 3000.0,
            "choices": [
                {"pattern": "dense", "sparsity": 0.0, "latency_us": 3000.0},
                {"pattern": "block:8x1", "sparsity": 0.5, "latency_us": 2000.0},
                {"pattern": "block:8x1", "sparsity": 0.9, "latency_us": 400.0},
            ],
        }
    ],
}
PRUNED = {"assignment": {"fc": {"pattern": "block:8x1", "sparsity": 0.7}}}


def with_facts(folder):
    begin(folder)
    (folder / "layers.json").write_text(json.dumps(LAYERS))
    (folder / "dense").mkdir()
    (folder / "dense" / "record.json").write_text(json.dumps({"accuracy_validation": 0.95}))


def reports(folder):
    """The data of a run, after the page and the terminal's tables were made of it."""
    data = unfinished_report(folder, JOB)
    data |= {"analysis": analysis(data), "verdict": verdict(data)}
    page = Page(render_html(data))
    console_report(data)
    return data, page.text


def test_a_run_that_was_just_begun_has_a_report(tmp_path):
    begin(tmp_path)
    (tmp_path / "layers.json").unlink()
    data, text = reports(tmp_path)
    assert (outcome(data), data["status"]["state"]) == ("unfinished", "stopped")
    assert "0 of 10 trials are finished. No trial was judged yet. The command that began it goes on" in text


def test_a_stopped_run_tells_its_best_and_how_to_go_on(tmp_path):
    with_facts(tmp_path)
    finish(tmp_path, 0, **PRUNED, sparsity=0.7)
    finish(tmp_path, 1, "stopped", rungs=[[0.5, 0.7]])
    (tmp_path / "trials" / "2.json").write_text("{")
    data, text = reports(tmp_path)
    assert "2 of 10 trials are finished. So far trial 0 is best: predicted 2.00 ms, 2.00× faster than dense" in text
    assert "Search not finished" in text
    assert data["layers"][0]["latency_us"] == pytest.approx(1200.0)
    assert data["layers"][0]["latency_us_least"] == 400.0
    assert "What holds the network back" in text
    assert data["search"] | {"stopped": 1, "trials_done": 1} == data["search"]


def test_a_searched_run_has_its_final_accuracy_and_its_repeats(tmp_path):
    with_facts(tmp_path)
    for number in range(10):
        finish(tmp_path, number, "complete" if number == 3 else "skipped", **PRUNED, own_seconds=0.5)
    (tmp_path / "best").mkdir()
    made = [{"seed": 1, "accuracy_validation": 0.94}, {"seed": 2, "accuracy_validation": 0.95}]
    ended = {
        "number": 3,
        "accuracy_validation": 0.949,
        "finalists": [{"number": 3, "epochs": 5.0}],
        "repeats": [*made, {"seed": 3, "accuracy_validation": None, "error": "x"}],
    }
    (tmp_path / "best" / "record.json").write_text(json.dumps(ended))
    data, text = reports(tmp_path)
    assert (data["status"]["state"], outcome(data)) == ("searched", "unmeasured")
    assert data["best"]["accuracy_validation"] == 0.949
    assert data["best"]["repeats"] == {
        "accuracies": [0.94, 0.95],
        "mean": pytest.approx(0.945),
        "spread": pytest.approx(0.005 * 2**0.5),
        "failed": 1,
    }
    assert (data["search"]["epochs_final"], data["search"]["seconds_own"]) == (5.0, 5.0)
    assert " pruneaug export RUN  does." in text
    assert "Made again with 2 other seeds" in text


def test_a_dense_network_that_only_guesses_is_warned_of(tmp_path):
    with_facts(tmp_path)
    assert reports(tmp_path)[0]["warnings"] == []
    record = {"accuracy_validation": 0.12, "accuracy_chance": 0.1}
    (tmp_path / "dense" / "record.json").write_text(json.dumps(record))
    data, text = reports(tmp_path)
    assert data["dense"]["accuracy_chance"] == 0.1
    assert len(data["warnings"]) == 1
    assert "should be far better than guessing, but its validation accuracy is 12.0 %" in text


def test_a_run_that_ended_without_its_final_fine_tuning_is_not_searched(tmp_path):
    with_facts(tmp_path)
    for number in range(10):
        finish(tmp_path, number, **PRUNED)
    assert reports(tmp_path)[0]["status"]["state"] == "stopped"


def test_whether_a_driver_holds_the_lock_is_asked_without_taking_it(tmp_path):
    assert not is_driven(tmp_path)
    code = """
import sys
from pruneaug.searcher.rundir import RunDir
with RunDir(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read(1)
    print("still", flush=True)
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout.readline() == "locked\n"
        assert not is_driven(tmp_path)  # an export has the lock too
        (tmp_path / "status.json").write_text(json.dumps({"pid": driver.pid, "searching": True}))
        assert is_driven(tmp_path)
        assert is_driven(tmp_path)
        driver.communicate("x")
    assert not is_driven(tmp_path)


def test_this_processs_own_lock_is_not_lost_by_asking(tmp_path):
    from pruneaug.searcher.rundir import RunDir

    (tmp_path / "status.json").write_text(json.dumps({"pid": os.getpid(), "searching": True}))
    code = "import sys; from pruneaug.report.folder import is_driven; from pathlib import Path; "
    code += "print(is_driven(Path(sys.argv[1])))"
    with RunDir(tmp_path).lock():
        assert is_driven(tmp_path)
        asked = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert asked.stdout == "True\n"


def test_times_between_those_of_the_list_are_interpolated():
    layer = LAYERS["layers"][0]

    def at(pattern, sparsity):
        return value_of(layer, {"pattern": pattern, "sparsity": sparsity}, "latency_us")

    assert (at("dense", 0.0), at("block:8x1", 0.5), at("block:8x1", 0.8)) == (3000.0, 2000.0, pytest.approx(800.0))
    assert (at("block:8x1", 0.4), at("block:8x1", 0.99), at("block:4x1", 0.5)) == (2000.0, 400.0, None)
    assert layer_rows(LAYERS, {})[0]["latency_us"] == 3000.0


def runs_of(report, infeasible):
    for data, name in ((report, "a"), (infeasible, "b")):
        data["job"]["name"] = name
    return [report, infeasible]


def test_several_runs_are_drawn_into_one_chart_a_colour_each(report, infeasible):
    runs = runs_of(report, infeasible)
    check_same_task(runs)
    text = render_comparison(runs)
    page = Page(text)
    assert page.headings == ["Runs side by side", "Accuracy against latency", "What training bought"]
    assert [row[0] for row in page.tables[0][1:]] == ["a", "b"]
    assert text.count('class="l-line l-p0"') == text.count('class="l-line l-p1"') > 0
    assert "0.50 points may be lost" in page.text
    found = comparison(runs)
    assert found["covered"][0] > found["covered"][1] > 0
    assert found["names"] == ["a", "b"]
    assert found["reference"]["accuracy_loss"] == 0.05


def test_the_terminal_lists_the_runs(report, infeasible):
    from test_console import shown

    infeasible["constraint"]["max_accuracy_loss"] = 0.007
    text = shown(comparison_table(runs_of(report, infeasible)))
    assert "Nothing kept enough" in text
    assert "The runs differ in the accepted loss." in text


def test_runs_without_any_figure_are_compared_all_the_same():
    Page(render_comparison([{}, {}]))
    comparison_table([{}, {}])


def test_runs_of_different_tasks_are_refused(report, infeasible):
    infeasible["job"]["spec"]["task"]["model"]["name"] = "resnet20"
    with pytest.raises(RunError, match="parquet-images with vgg16 and 'b' has parquet-images with resnet20"):
        check_same_task(runs_of(report, infeasible))


@pytest.mark.parametrize("value", ["</script><b>", "\"'<&"])
def test_names_of_runs_are_escaped(report, infeasible, value):
    report["search"]["strategy"] = value
    runs = runs_of(report, infeasible)
    report["job"]["name"] = value
    assert value in Page(render_comparison(runs)).text
