"""Everything that goes wrong ends in one message that says what, and what to do, with the right exit code."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from toy_flow import pruneaug, write_job

from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.latency.store import LatencyStore
from pruneaug.platforms import Platform
from pruneaug.profiler.network import time_networks
from pruneaug.searcher.rundir import RunDir
from pruneaug.testing.task import ToyTask

PROGRAM = Path(__file__).with_name("computed_cli.py")


class SpoiltTask(ToyTask):
    """Its accuracy is not a number."""

    def evaluate(self, model, split):
        return float("nan")


class ExplodingTask(ToyTask):
    """Its loss is not a number."""

    def loss(self, model_output, batch, label_smoothing=0.0):
        return super().loss(model_output, batch, label_smoothing) * float("nan")


def fail(*words, code=2):
    """The one message of a command that fails."""
    ended = pruneaug(*words)
    assert ended.code == code, ended
    lines = ended.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], ended.err
    return lines[-1]


def table_of(folder):
    (table,) = (folder / "db").iterdir()
    return table


def state_of(folder):
    """What was measured and trained: times of changes of the files that hold it."""
    kept = [*folder.rglob("*.jsonl"), *folder.rglob("*.safetensors"), *folder.rglob("trials/*.json")]
    return {path: path.stat().st_mtime_ns for path in kept}


def images(task, **options):
    return {"task": {"name": task, "options": options, "model": {"name": "resnet20"}}}


WRONG_JOBS = [
    ({"serach__trials": 3}, r"job\.yaml:\d+: serach: unknown key; did you mean 'search'\?"),
    ({"search__trails": 3}, r"job\.yaml:\d+: search\.trails: unknown key; did you mean 'trials'\?"),
    ({"space__patterns": ["block:0x1"]}, r"space\.patterns: .*block:0x1"),
    ({"task__name": "digitz"}, "'digitz' is not one of the tasks plug-ins; did you mean 'digits'"),
    ({"task": {"name": "digits", "model": {"name": "resnet2"}}}, "models plug-ins; did you mean 'resnet20'"),
    ({"task": {"name": "digits", "model": {"name": "my_models:Net"}}}, "'my_models:Net' does not import: ModuleNotFou"),
    ({"task": {"name": "digits", "model": {"name": "broken_model:Net"}}}, "does not import: SyntaxError"),
    ({"pruner__name": "magnitud"}, "pruners plug-ins; did you mean 'magnitude'"),
    ({"pruner": {"name": "magnitude", "options": {"scop": "layer"}}}, "has no option 'scop'; did you mean 'scope'"),
    ({"finetune__name": "trian"}, "finetuners plug-ins; did you mean 'train'"),
    ({"search__strategy": "unifrom"}, "strategies plug-ins; did you mean 'uniform'"),
    (images("image-folder", root="no/such"), "no/such is none"),
    (images("parquet-images", train="x.parquet", test="x.parquet"), r"x\.parquet is not there; check the path"),
    (images("parquet-images", train="bad.parquet", test="bad.parquet"), r"bad\.parquet cannot be read"),
    ({"task": {"name": "digits", "model": {"name": "digits_cnn"}, "checkpoint": "no.pt"}}, r"no\.pt"),
    ({"platform__threads": 4096}, r"platform\.threads of a job\) must be between 1 and the \d+ CPUs"),
    ({"space__layers": [{"match": "head.*", "dense": True}]}, r"space\.layers\.0\.match: .*'head\.\*' matches none"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_JOBS)
def test_a_wrong_job_says_what_to_mend(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_model.py").write_text("class Net(:\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no parquet file PAR1")
    job = write_job(tmp_path, **changes)
    line = fail("run", job)
    assert re.search(message, line), line
    assert fail("search", job, "--dry-run") == line
    assert not (tmp_path / "run").exists()
    assert state_of(tmp_path) == {}


def test_a_job_that_is_not_there_is_named(tmp_path):
    assert "job.yaml" in fail("run", tmp_path / "job.yaml")
    assert "did you mean 'trials'?" in fail("run", write_job(tmp_path), "--set", "search.trails=2")


@pytest.mark.parametrize(
    ("task", "message"),
    [("SpoiltTask", "an accuracy must lie in [0, 1], but the task's `evaluate` gave nan"), ("ExplodingTask", "finite")],
)
def test_a_metric_that_is_nan_ends_the_search_and_what_was_trained_stays(toy_at, task, message):
    folder = toy_at("profiled")
    job = write_job(folder, task__name=f"test_cli_errors:{task}")
    assert message in fail("search", job, code=1)
    assert (folder / "run" / "dense" / "model.safetensors").exists() == (task == "SpoiltTask")


def test_a_search_without_a_table_says_to_profile(tmp_path):
    assert "run `pruneaug profile JOB` first" in fail("search", write_job(tmp_path))


def test_a_table_of_another_machine_shows_what_differs(toy_at):
    folder = toy_at("searched")
    path = table_of(folder) / "platform.json"
    here = Platform.from_json(json.loads(path.read_text()))
    path.write_text(json.dumps(replace(here, cpu="another", caches=(("L2", 1),)).to_json()))
    job = write_job(folder, platform__name=table_of(folder).name)
    before = state_of(folder)
    for words in (("profile", job), ("search", job), ("search", job, "--dry-run")):
        line = fail(*words)
        assert "cpu: " in line
        assert " here, another there" in line
        assert "caches: " in line
        assert "platform.name" in line
    path.write_text(path.read_text().replace('"another"', '"edited"'))
    assert "edited by hand" in fail("profile", job)
    assert state_of(folder) == before


def test_a_last_line_cut_short_is_a_warning_and_is_measured_again(toy_at):
    folder = toy_at("profiled")
    path = table_of(folder) / "tvm.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[:-40])
    dry = pruneaug("search", folder / "job.yaml", "--dry-run", "--json")
    assert json.loads(dry.out)["cells_missing"] == 1
    assert dry.err.count("the last line was cut short by a crash and is left out") == 1
    assert pruneaug("search", folder / "job.yaml").code == 0

    path.write_bytes(before[:-40])
    shutil.rmtree(folder / "run")
    assert "1 cells measured, 9 known" in pruneaug("profile", folder / "job.yaml").out
    assert path.read_bytes() == before
    ended = pruneaug("search", folder / "job.yaml")
    assert (ended.code, "cut short" in ended.err) == (0, False)


def test_a_broken_line_in_the_middle_is_named_with_its_number(toy_at):
    folder = toy_at("profiled")
    path = table_of(folder) / "tvm.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:50], *lines[3:]]) + "\n")
    before = state_of(folder)
    for words in (
        ("profile", folder / "job.yaml"),
        ("search", folder / "job.yaml"),
        ("search", folder / "job.yaml", "--dry-run"),
        ("db", "show", table_of(folder)),
    ):
        assert f"{path}:3: " in fail(*words)
    assert state_of(folder) == before


def broken_zeros(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: tensor + 1.0 for name, tensor in weights.items()}, checkpoint / "model.safetensors")


def truncated(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_description(checkpoint):
    (checkpoint / "pruneaug.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_zeros, "the zeros of layer '1' must match its block map"),
        (truncated, "model.safetensors must be a safetensors file"),
        (without_description, "a checkpoint must hold pruneaug.json"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_and_exported_again(toy_at, spoil, message):
    folder = toy_at("exported")
    checkpoint = folder / "run" / "checkpoint"
    spoil(checkpoint)
    assert message in fail("bench", checkpoint, "--trust-code")
    assert pruneaug("export", folder / "run").code == 0
    assert pruneaug("bench", checkpoint, "--trust-code").code == 0


def test_an_unknown_runtime_is_named_before_anything_is_measured():
    line = fail("bench", "network", "resnet20", "--against", "torch,onnx")
    assert "must name runtimes of torch, torch-compile, onnxruntime, openvino, but got onnx" in line


def test_a_run_folder_that_cannot_be_written_shows_before_anything_is_measured(tmp_path):
    line = fail("run", write_job(tmp_path), "--set", "run=/proc/no/run", code=1)
    assert "cannot write /proc/no/run: No such file or directory; check the disk and the folder" in line
    assert state_of(tmp_path) == {}


def test_the_run_folder_in_place_of_its_checkpoint_is_told(toy_at):
    run = toy_at("exported") / "run"
    assert fail("bench", run).endswith(f"; did you mean {run / 'checkpoint'}?")
    assert fail("bench", run / "dense").endswith("name the folder that `pruneaug export RUN` printed")


def test_a_job_that_is_a_folder_is_told(tmp_path):
    assert fail("spec", "validate", tmp_path).endswith("Is a directory; name a YAML file that is readable")


def test_an_export_before_the_search_says_to_search(toy_at):
    folder = toy_at("profiled")
    assert "run `pruneaug search JOB`" in fail("export", folder / "run")
    assert "run `pruneaug run JOB` first" in fail("report", folder / "run")
    assert not (folder / "run").exists()


def test_two_drivers_of_one_run_are_refused(toy_at):
    folder = toy_at("searched")
    code = (
        f"from pruneaug.searcher.rundir import RunDir\nwith RunDir({str(folder / 'run')!r}).lock():\n"
        " print('locked', flush=True)\n input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        for words in (("search", folder / "job.yaml"), ("run", folder / "job.yaml"), ("export", folder / "run")):
            assert f"in use by process {other.pid}" in fail(*words)
    finally:
        other.communicate("\n")
    with RunDir(folder / "run").lock():
        assert "one driver at a time" in fail("export", folder / "run")
    assert pruneaug("export", folder / "run").code == 0


def test_a_run_of_another_job_names_the_keys_that_differ(toy_at):
    folder = toy_at("searched")
    before = state_of(folder)
    line = fail("run", folder / "job.yaml", "--set", "search.seed=7")
    assert "search.seed (0, now 7)" in line
    line = fail("run", folder / "job.yaml", "--set", "pruner.options.scope=layer")
    assert "another value of pruner.options.scope (not set, now 'layer'); set them back" in line
    assert "--set run=" in line
    assert state_of(folder) == before


@contextlib.contextmanager
def tiny_disk(folder, kilobytes):
    """A file system of this size at `folder`, a copy of what was there on it; skips where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder.with_name(folder.name + "-saved")
    shutil.copytree(folder, saved)
    options = f"size={kilobytes}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
        pytest.skip("mounting needs to be root")
    try:
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        yield
        shutil.rmtree(saved)
        shutil.copytree(folder, saved)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        shutil.rmtree(saved)


def test_a_full_disk_stops_a_profile_and_it_goes_on_when_there_is_room(tmp_path, computed):
    job = write_job(tmp_path)
    with tiny_disk(tmp_path / "db", 12):  # one page for platform.json, two for the records of a library and its folder
        line = fail("profile", job, code=1)
        assert "the disk is full; make room and run again" in line
    records = LatencyStore(table_of(tmp_path)).load()
    ended = pruneaug("profile", job)
    assert ended.code == 0
    assert f"{10 - len(records)} cells measured, {len(records)} known already" in ended.out
    after = LatencyStore(table_of(tmp_path)).load()
    assert len(after) == 10
    assert all(record in after for record in records)


@pytest.mark.parametrize("kilobytes", [8, 60, 120, 200, 250])
def test_a_full_disk_stops_a_search_and_it_goes_on_when_there_is_room(toy_at, kilobytes):
    folder = toy_at("profiled")
    with tiny_disk(folder / "run", kilobytes):
        ended = pruneaug("search", folder / "job.yaml")
        assert ended.code == 1
        assert "make room" in ended.err or "a full disk?" in ended.err
        assert "Traceback" not in ended.err
    before = {path: path.read_bytes() for path in (folder / "run").glob("trials/*.json")}
    assert pruneaug("search", folder / "job.yaml").code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    trials = [json.loads(path.read_text()) for path in (folder / "run" / "trials").iterdir()]
    assert sorted(trial["number"] for trial in trials) == [0, 1, 2]
    assert not any(trial["state"] == "failed" for trial in trials)


def test_a_full_disk_stops_an_export_and_it_goes_on_when_there_is_room(toy_at):
    folder = toy_at("searched")
    before = state_of(folder)
    with tiny_disk(folder / "run" / "checkpoint", 16):
        assert "the disk is full; make room and run again" in fail("export", folder / "run", code=1)
    assert {path: time for path, time in state_of(folder).items() if path in before} == before
    assert "must hold pruneaug.json" in fail("bench", folder / "run" / "checkpoint")
    assert pruneaug("export", folder / "run").code == 0
    assert pruneaug("bench", folder / "run" / "checkpoint", "--trust-code").code == 0


@pytest.mark.slow
def test_a_full_disk_of_temporary_files_stops_the_measuring_and_keeps_the_checkpoint(toy_at, tmp_path, monkeypatch):
    folder = toy_at("searched")
    monkeypatch.setattr("pruneaug.profiler.place.time_networks", time_networks)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with tiny_disk(tmp_path / "tmp", 32):
        assert "the disk is full; make room and run again" in fail("export", folder / "run", code=1)
    assert read_checkpoint(folder / "run" / "checkpoint").info["best"]["accuracy_test"] is not None
    assert "Not measured yet" in pruneaug("report", folder / "run").out
