"""A search shown while it runs, from the files of its folder."""

import io
import json

import pytest
from rich.console import Console

from pruneaug.report.live import figure_rows, live_table
from pruneaug.report.progress import Progress
from pruneaug.report.watch import RunWatch


def begin(folder, finetune=None, **search):
    (folder / "trials").mkdir(parents=True)
    search = {"trials": 10, "max_accuracy_loss": 0.01, "timeout_s": None, **search}
    (folder / "resolved.yaml").write_text(json.dumps({"search": search, "finetune": finetune}))
    (folder / "layers.json").write_text(json.dumps({"latency_us_dense": 4000.0}))


def finish(folder, number, state="complete", latency_us=2000.0, loss=0.005, **more):
    judged = state == "complete"
    record = {
        "number": number,
        "state": state,
        "latency_us": latency_us,
        "accuracy_loss": loss if judged else None,
        "violation": loss - 0.01 if judged else None,
        "epochs": 0.0 if state == "skipped" else 1.0,
        "seconds": 0.0 if state == "skipped" else 30.0,
        **more,
    }
    (folder / "trials" / f"{number}.json").write_text(json.dumps(record))


def shown(renderable, width=100):
    console = Console(width=width, file=io.StringIO(), emoji=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_tells_the_best_the_counts_the_cost_and_the_time_left(tmp_path):
    begin(tmp_path)
    finish(tmp_path, 0)
    finish(tmp_path, 1, "skipped", 3000.0)
    finish(tmp_path, 2, latency_us=1000.0, loss=0.05)
    finish(tmp_path, 3, "failed", error="MemoryError: no room\nmore")
    finish(tmp_path, 4, "stopped", rungs=[[0.25, 0.7]])
    watch = RunWatch(tmp_path)
    assert [row["number"] for row in watch.poll()] == [0, 1, 2, 3, 4]
    watch.wanted, watch.running = 10, {5, 6}
    rows = dict(figure_rows(watch))
    assert rows["dense"] == "4.00 ms predicted"
    assert rows["best"] == "trial 0: 2.00 ms predicted, 2.00× faster than dense, 0.50 points lost (1.00 allowed)"
    assert rows["trials"] == "5 of 10: 2 done, 1 skipped, 1 stopped, 1 failed; running 5, 6"
    assert rows["training"] == "4 epochs, 2 min in trials"
    assert rows["left"].startswith("about 1 min")  # five trials, 24 s each, two at a time
    text = shown(live_table(watch))
    assert "MemoryError: no room" in text
    assert "more" not in text
    assert "stopping" in shown(live_table(watch, stopping=True))


def test_only_what_is_new_is_read_and_half_a_file_is_left_for_later(tmp_path):
    begin(tmp_path)
    watch = RunWatch(tmp_path)
    assert watch.poll() == []
    finish(tmp_path, 0)
    whole = (tmp_path / "trials" / "0.json").read_text()
    (tmp_path / "trials" / "1.json").write_text(whole[: len(whole) // 2])
    (tmp_path / "trials" / ".2.json.77.part").write_text(whole)
    assert [row["number"] for row in watch.poll()] == [0]
    finish(tmp_path, 1)
    assert [row["number"] for row in watch.poll()] == [1]
    assert watch.poll() == []


def test_a_folder_that_is_not_there_yet_is_an_empty_search(tmp_path):
    watch = RunWatch(tmp_path / "none")
    assert watch.poll() == []
    assert watch.best == {}
    assert "nothing that keeps the limit" in dict(figure_rows(watch))["best"]
    begin(tmp_path / "none")
    finish(tmp_path / "none", 0)
    watch.poll()
    assert watch.best["number"] == 0


def test_what_is_not_faster_than_dense_is_not_the_best(tmp_path):
    begin(tmp_path)
    finish(tmp_path, 0, latency_us=4000.0, loss=0.0)
    watch = RunWatch(tmp_path)
    watch.poll()
    assert watch.best == {}


def test_of_objective_accuracy_the_least_loss_wins(tmp_path):
    begin(tmp_path, objective="accuracy", max_latency_ratio=0.5)
    finish(tmp_path, 0, latency_us=1000.0, loss=0.009)
    finish(tmp_path, 1, latency_us=1900.0, loss=0.002)
    watch = RunWatch(tmp_path)
    watch.poll()
    assert watch.best["number"] == 1
    assert "0.20 points lost (at most 2.00 ms allowed)" in dict(figure_rows(watch))["best"]


def test_the_time_left_ends_with_the_searchs_own_limit(tmp_path):
    begin(tmp_path, timeout_s=70.0)
    finish(tmp_path, 0)
    finish(tmp_path, 1)
    watch = RunWatch(tmp_path)
    watch.poll()
    watch.wanted = 1000
    assert watch.seconds_left == pytest.approx(10.0)


def test_the_time_left_holds_the_final_fine_tunings_and_the_repeats(tmp_path):
    finetune = {"trial": {"epochs": 1.0}, "final": {"epochs": 5.0}, "finalists": 3, "repeats": 4}
    begin(tmp_path, finetune, executor={"name": "processes", "workers": 2})
    finish(tmp_path, 0)  # an epoch in 30 s
    finish(tmp_path, 1, "skipped")
    watch = RunWatch(tmp_path)
    watch.poll()
    watch.wanted = 4
    repeats = 2 * (30 + 5 * 30)  # two rounds of two at a time
    assert watch.seconds_left == pytest.approx(2 * 15 + 2 * 5 * 30 + repeats)
    for number in (0, 1):
        (tmp_path / "finals" / str(number)).mkdir(parents=True)
        (tmp_path / "finals" / str(number) / "record.json").write_text("{}")
    watch.wanted = 2
    assert watch.seconds_left == pytest.approx(5 * 30 + repeats)


def search_in_a_log(folder, trials):
    """What a log gets of a search whose trials finish one by one."""
    file = io.StringIO()
    with Progress(Console(file=file, force_terminal=False, width=200), run=folder) as progress:
        progress.update("Search", 0, len(trials))
        for number, state in enumerate(trials):
            progress.update(f"Trial {number}", 1, 2, "loss 1")
            finish(folder, number, state)
            progress.update("Search", number + 1, len(trials))
    return file.getvalue().splitlines()


def test_a_log_gets_a_line_for_each_finished_trial(tmp_path):
    begin(tmp_path)
    lines = search_in_a_log(tmp_path, ["complete", "skipped", "failed"])
    assert lines == [
        "Search: started",
        "Search: trial 0 feasible (best): 2.00 ms (2.00× faster than dense), 0.50 points lost, 1 epoch in 30 s; "
        "1 of 3, about 1 min left",
        "Search: trial 1 skipped: 2.00 ms (2.00× faster than dense); 2 of 3, about 15 s left",
        "Search: trial 2 failed: 2.00 ms (2.00× faster than dense), 1 epoch in 30 s; 3 of 3",
        "Search: 3 done in 0:00",
    ]


def test_a_search_that_goes_on_counts_its_earlier_trials_and_lists_only_new_ones(tmp_path):
    begin(tmp_path)
    for number in range(3):
        finish(tmp_path, number)
    file = io.StringIO()
    with Progress(Console(file=file, force_terminal=False, width=200), run=tmp_path) as progress:
        progress.update("Search", 3, 4)
        finish(tmp_path, 3, "skipped")
        progress.update("Search", 4, 4)
    lines = file.getvalue().splitlines()
    assert lines[1] == "Search: 3 trials are finished already, 3 done"
    assert [line for line in lines if "trial " in line] == [
        "Search: trial 3 skipped: 2.00 ms (2.00× faster than dense); 4 of 4"
    ]


def redrawn(progress, file):
    """What is written when the table is drawn anew, which happens several times a second."""
    before = len(file.getvalue())
    progress._bars.refresh()
    return file.getvalue()[before:]


def test_a_terminal_shows_the_table_and_trials_beside_each_other(tmp_path):
    begin(tmp_path)
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=110, height=40)
    with Progress(console, clock, run=tmp_path) as progress:
        progress.update("Search", 0, 2)
        progress.update("Trial 0", 1, 4, "loss 1")
        progress.update("Trial 1", 1, 4, "loss 1")
        progress.update("Trial 0", 2, 4, "loss 0.9")
        drawn = redrawn(progress, file)
        assert "running 0, 1" in drawn
        assert "Trial 0" in drawn
        assert "Trial 1" in drawn
        finish(tmp_path, 1)
        progress.update("Search", 1, 2)
        drawn = redrawn(progress, file)
        assert "running 0" in drawn
        assert "Trial 1" not in drawn
        assert "trial 1: 2.00 ms predicted" in drawn
        finish(tmp_path, 0, "skipped")
        progress.update("Search", 2, 2)
    last = file.getvalue().split("\x1b[2K")[-1]
    assert "Trial" not in last
