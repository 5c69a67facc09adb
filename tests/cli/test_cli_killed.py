"""A command that is killed at any moment goes on by the same command: nothing is lost, nothing is done twice."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from computed_cli import run_until_killed
from toy_flow import pruneaug, write_job

from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.latency.store import LatencyStore
from pruneaug.profiler.plan import cell_of
from pruneaug.searcher.history import RECORDED
from pruneaug.searcher.rundir import read_json
from pruneaug.testing.platform import OPTIONS_VARIABLE

PROGRAM = Path(__file__).with_name("computed_cli.py")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["computed_cli", "pruneaug.searcher.study"])  # imported once, not per process
CELLS = 10


def killed(words, at):
    """Whether the command was killed before its file of this number, or ended before it came to it."""
    process = FORKS.Process(target=run_until_killed, args=(list(map(str, words)), at))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def kill_when(condition, *words):
    """Start the command, and kill it as soon as the condition holds; whether it was still running."""
    with subprocess.Popen([sys.executable, PROGRAM, *words], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not condition():
            time.sleep(0.002)
        process.kill()
    return process.returncode == -signal.SIGKILL


def finish(*words):
    done = subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def cells_of(folder):
    return Counter(cell_of(record) for path in folder.glob("db/*") for record in LatencyStore(path).load())


def trials_of(run):
    """The trials without what a clock decides."""
    records = [json.loads(path.read_text()) for path in (run / "trials").glob("*.json")]
    return sorted(
        ({**record, "seconds": 0, "own_seconds": 0} for record in records), key=lambda record: record["number"]
    )


def finished_in_study(run):
    import optuna

    study = optuna.load_study(study_name=read_json(run / "run.json")["study"], storage=f"sqlite:///{run}/study.db")
    assert all(trial.state.is_finished() for trial in study.trials)
    return sorted(trial.user_attrs[RECORDED] for trial in study.trials if RECORDED in trial.user_attrs)


def assert_whole(checkpoint, expected):
    """It reads, holds the expected weights, and nothing is beside it."""
    opened, other = read_checkpoint(checkpoint), read_checkpoint(expected)
    assert opened.info["weights_sha256"] == other.info["weights_sha256"]
    assert opened.assignment == other.assignment
    assert opened.info["best"]["latency_ms_measured"] is not None
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.mark.slow
def test_a_profile_killed_at_several_moments_measures_each_cell_once(tmp_path, monkeypatch):
    job, log = write_job(tmp_path), tmp_path / "log"
    monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps({"log": str(log), "delay_s": 0.05}))
    moments = [
        lambda: list(tmp_path.glob("db/*/platform.json")),
        lambda: cells_of(tmp_path).total() >= 4,
    ]
    kept, kills = Counter(), 0
    for moment in moments:
        kills += kill_when(moment, "profile", job)
        assert kept <= cells_of(tmp_path)
        kept = cells_of(tmp_path)
    assert kills == len(moments)
    assert 4 <= kept.total() < CELLS

    again = finish("profile", job, "--json")

    assert json.loads(again.stdout)["reused"] == kept.total()
    assert cells_of(tmp_path).total() == CELLS
    assert set(cells_of(tmp_path).values()) == {1}
    assert list(tmp_path.glob("db/*/rest/*.json"))
    begun = Counter(log.read_text().splitlines())
    assert len(begun) == CELLS
    monkeypatch.delenv(OPTIONS_VARIABLE)
    assert json.loads(pruneaug("profile", job, "--json").out)["measured"] == 0


@pytest.mark.slow
def test_a_search_killed_at_several_moments_does_no_trial_twice(toy_at):
    folder = toy_at("searched")
    undisturbed, run = trials_of(folder / "run"), folder / "again"
    words = ("search", folder / "job.yaml", "--set", f"run={run}")
    moments = [
        lambda: (run / "run.json").exists(),
        lambda: (run / "trials" / "0.json").exists(),
        lambda: (run / "trials" / "2.json").exists(),
    ]
    seen = []
    for moment in moments:
        kill_when(moment, *words)
        assert all(trial in trials_of(run) for trial in seen)
        seen = trials_of(run)

    finish(*words)

    assert trials_of(run) == undisturbed
    assert finished_in_study(run) == [0, 1, 2]
    assert read_json(run / "best" / "record.json") == read_json(folder / "run" / "best" / "record.json")
    ended = [line.partition(" trial ")[2].split()[0] for line in (run / "run.log").open() if " complete: " in line]
    assert len(set(ended)) == len(ended)


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_again_and_again_ends_as_if_it_was_not(toy_at):
    folder = toy_at("searched")
    run, kills = folder / "again", 0
    words = ("search", folder / "job.yaml", "--set", f"run={run}")
    while killed(words, 6):  # enough for the files of one training, and then in the middle of something
        kills += 1
    assert kills > 2
    assert trials_of(run) == trials_of(folder / "run")
    assert finished_in_study(run) == [0, 1, 2]


@pytest.mark.slow
def test_an_export_killed_before_one_of_its_files_leaves_no_half_checkpoint_and_the_next_is_whole(toy_at):
    folder = toy_at("exported")
    run, expected = folder / "run", folder / "expected"
    (run / "checkpoint").rename(expected)
    (run / "final.json").unlink()
    trials, checkpoint = trials_of(run), run / "checkpoint"
    for at in (1, 4, 5, 6, 8):
        assert killed(("export", run), at)
        if (checkpoint / "pruneaug.json").exists():
            assert read_checkpoint(checkpoint).info["best"]["accuracy_test"] is not None
    assert not killed(("export", run), 0)
    assert_whole(checkpoint, expected)
    assert trials_of(run) == trials


@pytest.mark.slow
def test_an_export_killed_at_several_moments_ends_with_a_whole_checkpoint(toy_at):
    folder = toy_at("exported")
    run, expected = folder / "run", folder / "expected"
    (run / "checkpoint").rename(expected)
    (run / "final.json").unlink()
    for name in ("final.json", "checkpoint/model.safetensors"):
        kill_when(lambda name=name: (run / name).exists(), "export", run)
    finish("export", run)
    assert_whole(run / "checkpoint", expected)
