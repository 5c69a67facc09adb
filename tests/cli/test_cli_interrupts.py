"""Ctrl-C and reports while a search runs: real processes, a real terminal."""

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from test_cli_killed import PROGRAM, finish, finished_in_study, kill_when, trials_of
from toy_flow import pruneaug, write_job

from pruneaug.cli.interrupts import INTERRUPTED
from pruneaug.report.folder import is_driven, read_object

TRIALS = 4
pytestmark = pytest.mark.slow


@pytest.fixture
def slow(toy_at):
    """A profiled job, its run, and the file `gate` that makes its steps slow."""

    def begin(**options):
        folder = toy_at("profiled")
        gate = folder / "gate"
        changes = {
            "task__name": "slow_task:Slow",
            "task__options": {"gate": str(gate), **options},
            # Every proposal is trained: none is known to be slower than the best before the last.
            "search__trials": TRIALS,
            "search__strategy": "uniform",
            "search__max_accuracy_loss": 0.0,
            "space__patterns": ["block:8x1"],
        }
        return write_job(folder, **changes), folder / "run", gate

    return begin


def command(*words):
    return [sys.executable, str(PROGRAM), *map(str, words)]


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "COLUMNS": "110"}


def wait_for(condition, process, seconds=180):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.01)


def running(run):
    """The number of the trial that the driver trains now; None if it trains none."""
    names = read_object(run / "status.json").get("running", {})
    return next((int(name.split()[1]) for name in names if name.startswith("Trial")), None)


def start(job, run, gate, *more, step_s=20):
    """A search in the middle of a step of a trial, after at least one trial that finished."""
    gate.write_text("0.1")
    words = command("search", job, *more)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    wait_for(lambda: len(trials_of(run)) > 0, process)
    gate.write_text(str(step_s))
    wait_for(gate.with_name("asleep").exists, process)
    return process


def test_ctrl_c_gives_up_the_running_trial_keeps_the_others_and_names_the_command_that_goes_on(slow):
    job, run, gate = slow()
    process = start(job, run, gate, "--set", f"search.trials={TRIALS}")
    kept = trials_of(run)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in err
    said = err.splitlines()[-1]
    assert said == f"stopped; finished work is kept. Go on with: pruneaug search {job} --set search.trials={TRIALS}"
    assert trials_of(run) == kept
    assert not is_driven(run)
    assert finished_in_study(run) == [trial["number"] for trial in kept]  # and nothing is left running in the study

    gate.unlink()
    done = go_on(said.partition("Go on with: pruneaug ")[2].split())
    assert f"Search: {len(kept)} trials are finished already" in done.stderr
    assert trials_of(run)[: len(kept)] == kept
    assert finished_in_study(run) == list(range(TRIALS))


def go_on(words):
    done = subprocess.run(command(*words), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    return done


def test_ctrl_c_twice_ends_it_at_once_and_the_next_search_goes_on(slow):
    job, run, gate = slow(hangs=True)
    process = start(job, run, gate)
    kept = trials_of(run)
    process.send_signal(signal.SIGINT)
    while process.stderr.readline() != "cleaning up\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=40)  # a third of the minute that the cleaning up takes
    assert process.returncode == INTERRUPTED
    assert err.endswith("stopped at once; finished trials are kept\n")
    gate.unlink()
    go_on(("search", job))
    assert trials_of(run)[: len(kept)] == kept
    assert finished_in_study(run) == list(range(TRIALS))


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, words):
        self.master, follower = os.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 110, 0, 0))
        env = {**environment(), "TERM": "xterm-256color"}
        self.process = subprocess.Popen(words, env=env, preexec_fn=lambda: os.login_tty(follower))
        os.close(follower)
        self.written = ""

    def read(self):
        while select.select([self.master], [], [], 0.05)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self.written += data.decode(errors="replace")

    def shows(self, pattern):
        if self.process.poll() is None:
            self.read()
        return re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written)) is not None

    def close(self):
        until = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < until:
            self.read()
        self.process.kill()
        self.process.wait()
        self.read()
        os.close(self.master)


def test_a_terminal_shows_the_search_and_ctrl_c_on_it_stops_it(slow):
    job, _, gate = slow()
    gate.write_text("0.1")
    terminal = Terminal(command("search", job))
    try:
        wait_for(lambda: terminal.shows(r"[1-4] of 4: \d done.*; running \d"), terminal.process)
        gate.write_text("20")
        wait_for(lambda: terminal.shows("points lost") and gate.with_name("asleep").exists(), terminal.process)
        os.write(terminal.master, b"\x03")
    finally:
        terminal.close()
    assert terminal.process.returncode == INTERRUPTED, terminal.written[-3000:]
    assert terminal.shows("stopped; finished work is kept. Go on with: pruneaug search")
    assert terminal.written.rfind("\x1b[?25h") > terminal.written.rfind("\x1b[?25l")  # the cursor is back
    assert "Traceback" not in terminal.written


def test_a_report_can_be_read_while_the_search_runs_and_after_a_kill(slow):
    job, run, gate = slow()
    process = start(job, run, gate, step_s=4)
    count = len(trials_of(run))
    wait_for(lambda: running(run) not in (None, *(trial["number"] for trial in trials_of(run))), process)
    number = running(run)  # for seven steps more
    for _ in range(3):
        data = json.loads(pruneaug("report", run, "--json").out)
        assert (data["status"]["state"], data["status"]["running"]) == ("searching", [f"Trial {number}"])
    assert f"The search is under way: {count} of 4 trials are finished." in pruneaug("report", run).out
    assert "Searching" in (run / "report.html").read_text()
    assert process.poll() is None
    assert pruneaug("search", job).code == 2  # its lock was not touched
    process.kill()
    process.communicate()
    data = json.loads(pruneaug("report", run, "--json").out)
    assert (data["status"]["state"], data["status"]["running"], len(data["trials"])) == ("stopped", [], count)


def test_a_report_of_a_run_that_is_killed_anywhere_never_fails(slow):
    job, run, gate = slow()
    for moment in ("run.json", "dense/model.safetensors", "layers.json", "trials/0.json", "best/record.json"):
        kill_when(lambda moment=moment: (run / moment).exists(), "search", job)
        shown = pruneaug("report", run)
        assert (shown.code, "Traceback" in shown.err) == (0, False), shown.err
    finish("search", job)
    assert not gate.exists()
