import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from toy_flow import pruneaug, toy_job, write_job

import pruneaug as package
from pruneaug.cli import main, output
from pruneaug.errors import InfeasibleError, PruneaugError
from pruneaug.exporter.artifact import artifact_path
from pruneaug.latency.store import LatencyStore
from pruneaug.report import Progress
from pruneaug.spec import json_schema, load_job, parse_job
from pruneaug.testing.network import analytic_times

REAL = [sys.executable, "-c", "from pruneaug.cli import main; main()"]


def table_of(folder):
    (table,) = (folder / "db").iterdir()
    return table


def succeed(*words):
    ended = pruneaug(*words)
    assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
    return ended


def test_one_command_does_the_whole_job_and_ends_with_the_verdict(tmp_path, computed):
    ended = succeed("run", write_job(tmp_path))
    assert "Pruning pays on this machine" in ended.out
    assert ended.out.endswith(f"Report: {tmp_path}/run/report.html\n")
    assert [line.partition(":")[0] for line in ended.err.splitlines() if line.endswith("started")] == [
        "Profile", "Whole network", "Dense training", "Search", "Final fine-tuning", "Export", "Bench",
    ]  # fmt: skip


def test_the_commands_one_by_one_do_the_same_and_each_says_what_it_did(tmp_path, computed):
    job = write_job(tmp_path)
    assert "(10 of 10 cells to measure)" in succeed("search", job, "--dry-run").out
    assert succeed("profile", job).out.startswith("10 cells measured, 0 known already, 0 failed")
    assert succeed("profile", job).out.startswith("0 cells measured, 10 known already, 0 failed")
    plan = succeed("search", job, "--dry-run").out
    assert "table coverage      100% (0 of 10 cells to measure)" in plan
    assert f"next: pruneaug export {tmp_path}/run" in succeed("search", job).out
    assert "Not measured yet" in succeed("export", tmp_path / "run", "--no-bench").out
    assert "Pruning pays" in succeed("export", tmp_path / "run").out
    assert "Pruning pays" in succeed("report", tmp_path / "run").out
    assert "against the best dense" in succeed("bench", tmp_path / "run" / "checkpoint", "--trust-code").out


def test_an_export_ends_with_where_its_files_are(toy_at, monkeypatch):
    folder = toy_at("searched")
    monkeypatch.setattr("pruneaug.api.exporting.add_artifact", artifact_path)
    lines = succeed("export", folder / "run").out.splitlines()
    name = table_of(folder).name
    assert lines[-2:] == [
        f"Report: {folder}/run/report.html",
        f"Compiled network: {folder}/run/checkpoint/artifact-{name}/network.so",
    ]


def test_overrides_reach_the_job(toy_at):
    folder = toy_at("profiled")
    ended = succeed("search", folder / "job.yaml", "--set", "search.trials=1", "--set", f"run={folder}/other", "--json")
    assert json.loads(ended.out)["trials"] == 1
    assert (folder / "other" / "trials" / "0.json").exists()


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("search {job} --dry-run", {"layers", "coverage", "space_size", "latency_ms_best"}),
        ("profile {job}", {"measured", "reused", "failed", "warnings"}),
        ("search {job}", {"run", "trials", "best", "outcome", "how_close"}),
        ("export {run}", {"verdict", "best", "trials"}),
        ("report {run}", {"verdict", "best", "trials"}),
        ("run {job}", {"verdict", "best", "trials"}),
        (
            "bench {run}/checkpoint --against torch --trust-code",
            {"latency_ms", "speedup_vs_best_dense", "predicted_ms"},
        ),
        ("doctor", {"versions", "cpu", "threads", "load", "cuda"}),
        ("plugins", {"tasks", "models", "pruners", "finetuners", "strategies", "executors", "trackers"}),
        ("spec validate {job}", {"task", "search"}),
        ("db diff {table} {table}", None),
        ("db ls {folder}/db", None),
        ("db show {table}", None),
        ("db merge {table} {table}", {"added"}),
    ],
)
def test_json_is_all_that_is_on_stdout(toy_at, words, keys):
    folder = toy_at("exported")
    names = {"job": folder / "job.yaml", "run": folder / "run", "table": table_of(folder), "folder": folder}
    ended = succeed(*words.format(**names).split(), "--json")
    value = json.loads(ended.out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert isinstance(value, list) if keys is None else keys <= value.keys()


def test_doctor_and_plug_ins_are_words_too():
    assert "float32 lanes" in succeed("doctor").out
    assert "magnitude" in succeed("plugins").out


def test_a_machine_without_the_compiler_has_all_commands():
    """As one with a GPU, whose kernels are compiled elsewhere."""
    code = "import sys; sys.modules['tvm'] = None; from pruneaug.cli import main; main()"
    for words in (["doctor", "--json"], ["bench", "network", "resnet20", "--device", "cuda"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        assert done.returncode == 0 or "needs a GPU that PyTorch can use" in done.stderr


def test_the_package_can_be_run():
    done = subprocess.run([sys.executable, "-m", "pruneaug", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, pruneaug("--version").out)


def test_the_version_is_printed():
    assert succeed("--version").out == f"{package.__version__}\n"


def test_a_begun_job_is_valid_and_no_file_is_overwritten(tmp_path):
    path = tmp_path / "new" / "job.yaml"
    succeed("spec", "init", path)
    text = path.read_text()
    assert succeed("spec", "init").out == text
    validated = succeed("spec", "validate", path).out
    assert parse_job(yaml.safe_load(validated)) == load_job(path)
    assert json.loads(succeed("spec", "schema").out) == json_schema()
    again = pruneaug("spec", "init", path)
    assert again.code == 2
    assert "choose another name" in again.err
    assert path.read_text() == text


def test_a_spec_is_checked_with_its_plug_ins_and_what_is_not_checked_is_said(tmp_path):
    job = write_job(tmp_path)
    ended = pruneaug("spec", "validate", job)
    assert ended.code == 0
    assert f"not checked here: task 'pruneaug.testing.task:ToyTask'; `pruneaug search {job} --dry-run`" in ended.err
    assert parse_job(yaml.safe_load(ended.out)) == load_job(job)
    wrong = pruneaug("spec", "validate", job, "--set", "pruner.name=magnitud")
    assert (wrong.code, wrong.out) == (2, "")
    assert "error: pruner: 'magnitud' is not one of the pruners plug-ins" in wrong.err


def test_a_database_is_listed_shown_compared_and_merged(toy_at):
    folder = toy_at("profiled")
    table = table_of(folder)
    (row,) = json.loads(succeed("db", "ls", folder / "db", "--json").out)
    assert (row["platform"], row["times"]) == (table.name, 10)
    assert table.name[:12] in succeed("db", "ls", folder / "db").out
    shown = json.loads(succeed("db", "show", table, "--op", "o64", "--json").out)
    assert {row["op"] for row in shown} == {"linear-t1024-i64-o64"}
    assert len(shown) == 6
    assert "block:8x1" in succeed("db", "show", table).out

    other = folder / "other"
    other.mkdir()
    (other / "platform.json").write_bytes((table / "platform.json").read_bytes())
    assert succeed("db", "ls", folder / "db", "--json").code == 0
    assert json.loads(succeed("db", "show", other, "--json").out) == []
    for library in ("tvm", "torch"):
        lines = (table / f"{library}.jsonl").read_text().splitlines(keepends=True)
        (other / f"{library}.jsonl").write_text("".join(lines[:-1]))
    differences = json.loads(succeed("db", "diff", table, other, "--json").out)
    assert {row["library"] for row in differences} == {"tvm", "torch"}
    assert all(row["us there"] is None for row in differences)
    assert "none" in succeed("db", "diff", table, other).out
    assert json.loads(succeed("db", "merge", other, table, "--json").out) == {"added": 2}
    assert succeed("db", "merge", other, table).out == "0 records added\n"
    assert len(LatencyStore(other).load()) == 10


@pytest.mark.parametrize("words", [("ls", "none"), ("show", "none"), ("diff", "none", "none"), ("merge", "a", "none")])
def test_a_database_that_is_not_there_is_an_error(tmp_path, words):
    ended = pruneaug("db", words[0], *(tmp_path / word for word in words[1:]))
    assert ended.code == 2
    assert str(tmp_path / "none") in ended.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_met_the_constraint_is_exit_code_3_with_all_that_is_known(toy_at):
    folder = toy_at("profiled")
    changes = {"search__max_accuracy_loss": 0.0, "task__options": {"noise": 3.0}, "space__sparsities": [0.9]}
    job = toy_job(folder, **changes)["finetune"]["trial"] | {"epochs": 0.1, "learning_rate": 1e-6}
    path = write_job(folder, **changes, finetune__trial=job)
    for words in (("search", path), ("export", folder / "run"), ("run", path)):
        ended = pruneaug(*words, "--json")
        assert ended.code == InfeasibleError.exit_code == 3
        assert json.loads(ended.out)
        assert "nothing met the constraint, so dense is the answer" in ended.err
        assert "closest" in ended.err
    assert pruneaug("report", folder / "run").code == 0


def test_trials_that_all_fail_are_exit_code_1(toy_at, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("no such layer")

    folder = toy_at("profiled")
    monkeypatch.setattr("pruneaug.pruners.magnitude.Magnitude.prune", broken)
    for words in (("search", folder / "job.yaml"), ("export", folder / "run")):
        ended = pruneaug(*words)
        assert ended.code == PruneaugError.exit_code == 1
        assert "no such layer" in ended.err
        assert "choose a new `run`" in ended.err


def test_nothing_faster_than_dense_is_no_failure(toy_at, monkeypatch):
    folder = toy_at("profiled")
    monkeypatch.setattr("pruneaug.searcher.driver.keep_faster", lambda *args: {})
    assert "dense is the answer" in succeed("search", folder / "job.yaml").out
    assert "Stay dense" in succeed("export", folder / "run").out


def test_messages_keep_what_rich_would_take_for_emoji_or_markup(tmp_path, capsys):
    job = tmp_path / "job.yaml"
    job.write_text("\n" * 99 + "task: {name: digits}\nserach: {}\n")
    assert f"{job}:101: serach: unknown key; did you mean 'search'?" in pruneaug("spec", "validate", job).err
    job.write_text("\n" * 98 + "task: {name: digits}\nserach: {}\n")
    assert f"{job}:100: serach" in pruneaug("spec", "validate", job).err
    output.say("job.yaml:100: [red]x[/red] " + "long " * 100)
    assert capsys.readouterr().err == "job.yaml:100: [red]x[/red] " + "long " * 100 + "\n"
    with Progress() as progress:
        progress.message(":100: [/b]")
    assert ":100: [/b]" in capsys.readouterr().err


def test_a_failed_runtime_is_shown_whatever_its_words(toy_at, monkeypatch):
    def failing(*args, **kwargs):
        first, second, third, *others = analytic_times(*args, **kwargs)
        error = "its process ended: [enforce fail at [/tmp/x]:100: ]"
        failed = [replace(time, latency_ms=None, p10_ms=None, p90_ms=None, error=error) for time in (first, second)]
        return (*failed, replace(third, max_relative_error=float("nan")), *others)

    folder = toy_at("exported")
    monkeypatch.setattr("pruneaug.profiler.place.time_networks", failing)
    shown = succeed("bench", folder / "run" / "checkpoint", "--trust-code").out
    assert shown.count(" failed ") == 2
    assert "[enforce" in shown
    assert "not finite" in shown
    assert "Pruning pays" in succeed("export", folder / "run").out


def test_a_warning_is_said_once_on_stderr_and_the_hook_is_put_back(monkeypatch, capsys):
    def doctor():
        for _ in range(3):
            warnings.warn(":100: the [last] line", RuntimeWarning, stacklevel=1)
            warnings.warn("another", UserWarning, stacklevel=1)
        return {}

    before = warnings.showwarning
    monkeypatch.setattr("pruneaug.cli.platform.examine", doctor)
    ended = pruneaug("doctor", "--json")
    assert (ended.code, ended.out) == (0, "{}\n")
    assert ended.err == "warning: :100: the [last] line\nwarning: another\n"
    assert warnings.showwarning is before


def test_ctrl_c_is_exit_code_130_with_one_line(toy_at, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    folder = toy_at("profiled")
    with monkeypatch.context() as patch:
        patch.setattr("pruneaug.finetune.train.Train.finetune", interrupt)
        ended = pruneaug("search", folder / "job.yaml")
    assert ended.code == 130
    assert ended.err.endswith(f"stopped; finished work is kept. Go on with: pruneaug search {folder}/job.yaml\n")
    assert "Traceback" not in ended.err
    succeed("search", folder / "job.yaml")


def test_an_unknown_command_or_option_is_exit_code_2():
    for words in (("prune",), ("run", "job.yaml", "--quick"), ("search",), ("bench", "x", "--threads", "many")):
        assert pruneaug(*words).code == 2


@pytest.mark.slow
def test_the_installed_command_prints_json_and_dies_of_ctrl_c(tmp_path):
    done = subprocess.run([*REAL, "doctor", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cpu"]
    words = [*REAL, "profile", str(write_job(tmp_path))]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr.readline() == "Profile: started\n"
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "stopped; finished work is kept. Go on with: pruneaug" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_the_entry_point_is_the_command():
    import tomllib

    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["pruneaug"] == f"{main.__module__.rpartition('.')[0]}:{main.__name__}"
