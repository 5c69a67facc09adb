"""The study elsewhere than in the run folder: another SQLite file, PostgreSQL; and a dashboard that looks on."""

import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
from test_search_resume import timeless
from toy_search import make_job, search

from pruneaug.searcher.rundir import read_json


def told(url, folder):
    trials = optuna.load_study(study_name=read_json(folder / "run.json")["study"], storage=url).trials
    return {trial.user_attrs["number"]: (trial.state, trial.values, trial.params) for trial in trials}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def stop(process):
    process.send_signal(signal.SIGINT)  # PostgreSQL would wait for its clients at a SIGTERM
    process.wait(60)


@pytest.fixture
def postgres():
    """The URL of a PostgreSQL server that lives as long as the test."""
    pytest.importorskip("psycopg")
    path = os.pathsep.join([os.environ["PATH"], *glob.glob("/usr/lib/postgresql/*/bin")])  # Debian's place
    initdb, server = shutil.which("initdb", path=path), shutil.which("postgres", path=path)
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pruneaug-postgres-"))
    as_user = {}
    if os.getuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **as_user}
    initdb, server = os.path.realpath(initdb), os.path.realpath(server)
    subprocess.run([initdb, "-D", folder / "data", "-U", "pruneaug", "-A", "trust"], check=True, **quiet)
    port = free_port()
    process = subprocess.Popen([server, "-D", folder / "data", "-p", str(port), "-k", str(folder)], **quiet)
    url = f"postgresql+psycopg://pruneaug@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                optuna.storages.RDBStorage(url)
                break
            except Exception:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield url
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_second_sqlite_file_holds_the_study(tmp_path):
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    result, _ = search(tmp_path / "run", make_job(storage=url))
    assert not (tmp_path / "run" / "study.db").exists()
    assert sorted(told(url, tmp_path / "run")) == [trial.number for trial in result.trials]


@pytest.mark.slow
def test_postgresql_holds_the_study_and_a_search_goes_on_with_it(tmp_path, postgres):
    alone, _ = search(tmp_path / "alone", make_job(trials=8))
    search(tmp_path / "run", make_job(trials=4, storage=postgres))
    result, evaluator = search(tmp_path / "run", make_job(trials=8, storage=postgres))
    assert timeless(result.trials) == timeless(alone.trials)
    assert len(evaluator.pruned) == sum(trial.state == "complete" for trial in result.trials[4:])
    own = told(f"sqlite:///{tmp_path}/alone/study.db", tmp_path / "alone")
    assert told(postgres, tmp_path / "run") == own


@pytest.mark.slow
def test_optuna_dashboard_opens_the_study(tmp_path):
    pytest.importorskip("optuna_dashboard")
    result, _ = search(tmp_path, make_job(trials=8))
    port = free_port()
    program = "from optuna_dashboard._cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"sqlite:///{tmp_path}/study.db", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
                    (summary,) = json.load(answer)["study_summaries"]
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}", timeout=30) as answer:
            study = json.load(answer)
    finally:
        stop(process)
    assert summary["study_name"] == read_json(tmp_path / "run.json")["study"]
    assert len(study["trials"]) == len(result.trials)
    states = {trial["state"] for trial in study["trials"]}
    assert states == {"Complete", "Pruned"}
    feasible = [trial for trial in study["trials"] if {"key": "feasible", "value": "True"} in trial["user_attrs"]]
    assert len(feasible) == sum(trial.feasible for trial in result.trials)
