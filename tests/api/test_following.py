"""What goes on beside a search: its files, its trackers, and that neither ends it."""

import json
import os
import sys
import warnings

import pytest
from toy_flow import pruneaug, write_job

from pruneaug.api.following import Following
from pruneaug.errors import PluginError
from pruneaug.report.folder import read_object


class Fake:
    """A tracker that remembers, and may fail at a trial or when it is closed."""

    def __init__(self, fails_at=None):
        self.fails_at, self.told, self.closes = fails_at, [], 0

    def trial_finished(self, record):
        if record["number"] == self.fails_at:
            raise OSError("no server")
        self.told.append(record["number"])

    def closed(self):
        self.closes += 1
        if self.fails_at == "closed":
            raise OSError("no server")


def finish(folder, number):
    (folder / "trials").mkdir(exist_ok=True)
    (folder / "trials" / f"{number}.json").write_text(json.dumps({"number": number, "state": "complete"}))


def test_trackers_are_told_each_trial_once_and_the_progress_goes_on(tmp_path):
    tracker, seen = Fake(), []
    finish(tmp_path, 0)
    with Following(tmp_path, lambda: {"a": 1}, [("fake", tracker)], lambda *told: seen.append(told)) as following:
        assert tracker.told == []  # before the driver says its first word, the folder may be another's
        following("Search", 1, 3, "")
        following("Trial 1", 5, 10, "loss 1")
        finish(tmp_path, 1)
        following("Search", 2, 3, "best")
        finish(tmp_path, 2)
    assert (tracker.told, tracker.closes) == ([0, 1, 2], 1)
    assert seen == [("Search", 1, 3, ""), ("Trial 1", 5, 10, "loss 1"), ("Search", 2, 3, "best")]
    assert read_object(tmp_path / "layers.json") == {"a": 1}


def test_the_status_says_what_runs_and_at_the_end_that_nothing_does(tmp_path):
    now = [0.0]
    with Following(tmp_path, dict, [], None, clock=lambda: now[0]) as following:
        following("Search", 0, 4, "")
        for _ in range(3):
            now[0] += 2.0
            following("Trial 0", 5, 10, "loss 1")
            following("Trial 1", 1, 10, "loss 2")
        status = read_object(tmp_path / "status.json")
        assert (status["pid"], status["searching"], status["wanted"]) == (os.getpid(), True, 4)
        assert status["running"]["Trial 0"] == {"done": 5, "total": 10, "note": "loss 1"}
        finish(tmp_path, 0)
        following("Search", 1, 4, "")
        assert list(read_object(tmp_path / "status.json")["running"]) == ["Trial 1"]
    status = read_object(tmp_path / "status.json")
    assert (status["searching"], status["running"]) == (False, {})


def test_a_tracker_that_fails_is_told_no_more_with_one_warning(tmp_path):
    broken, whole = Fake(fails_at=1), Fake()

    def follow():
        with Following(tmp_path, dict, [("broken", broken), ("whole", whole)], None) as following:
            for number in range(3):
                finish(tmp_path, number)
                following("Search", number + 1, 3, "")

    with pytest.warns(
        RuntimeWarning, match=r"tracker 'broken' failed and is told no more \(OSError: no server\)"
    ) as told:
        follow()
    assert len(told) == 1
    assert (broken.told, broken.closes) == ([0], 0)
    assert (whole.told, whole.closes) == ([0, 1, 2], 1)


def test_a_tracker_that_fails_at_its_end_is_a_warning(tmp_path):
    with pytest.warns(RuntimeWarning, match="no server"), Following(tmp_path, dict, [("x", Fake("closed"))], None):
        pass


def test_a_file_that_cannot_be_written_is_left_out(tmp_path):
    def no_facts():
        raise ValueError("nothing is known")

    for name in ("layers.json", "status.json"):
        (tmp_path / name).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for facts in (no_facts, lambda: {"a": 1}):
            with Following(tmp_path, facts, [], None) as following:
                following("Search", 0, 1, "")


def test_nothing_is_written_where_the_driver_said_nothing(tmp_path):
    with Following(tmp_path, dict, [], None):
        pass
    assert list(tmp_path.iterdir()) == []


class Failing(Fake):
    """A tracker for a job, whose second trial fails."""

    def __init__(self, run):
        super().__init__(fails_at=1)


class NoTracker:
    def __init__(self, run):
        pass


class CannotBegin:
    def __init__(self, run):
        raise OSError("no server")


def test_a_search_ends_well_though_its_tracker_fails(toy_at, monkeypatch):
    folder = toy_at("profiled")
    monkeypatch.setitem(sys.modules, "my_trackers", sys.modules[__name__])
    job = write_job(folder, search__trackers=["my_trackers:Failing"])
    ended = pruneaug("search", job)
    assert ended.code == 0
    assert ended.err.count("the tracker 'my_trackers:Failing' failed") == 1
    assert len(list((folder / "run" / "trials").iterdir())) == 3


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ("my_trackers:NoTracker", "must have `trial_finished` and `closed`"),
        ("my_trackers:CannotBegin", "cannot begin: OSError: no server"),
        ({"name": "tensorboard", "options": {"dir": "x"}}, "has no option 'dir'"),
    ],
)
def test_a_tracker_that_is_none_is_said_before_any_trial(toy_at, monkeypatch, tracker, said):
    folder = toy_at("profiled")
    monkeypatch.setitem(sys.modules, "my_trackers", sys.modules[__name__])
    ended = pruneaug("search", write_job(folder, search__trackers=[tracker]))
    assert ended.code == PluginError.exit_code
    assert said in ended.err
    assert not (folder / "run").exists()


def test_other_trackers_do_not_make_it_another_job(toy_at):
    folder = toy_at("searched")
    assert pruneaug("search", write_job(folder, search__trackers=["tensorboard"])).code == 0
    assert (folder / "run" / "tensorboard" / "trial-0002").is_dir()
