import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toy_flow import toy_job

import pruneaug
from pruneaug.errors import CheckpointError, InputError, RunError, SpecError
from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.latency.store import LatencyStore
from pruneaug.platforms import Platform
from pruneaug.profiler.network import time_networks
from pruneaug.report import outcome
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.searcher.rundir import RunDir
from pruneaug.tasks import task_from_modules
from pruneaug.testing.network import analytic_times
from pruneaug.testing.platform import OPTIONS_VARIABLE
from pruneaug.testing.task import ToyTask


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


def store_of(folder):
    (table,) = (folder / "db").iterdir()
    return LatencyStore(table)


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip


def make_loaders():
    """Of the toy's data, in batches of another size than the job's."""
    task = ToyTask()
    loaders = {}
    for split in ("train", "validation", "test"):
        (batch,) = task.batches(split, task.size(split))
        loaders[split] = DataLoader(TensorDataset(*batch.inputs, batch.targets), batch_size=20)
    return loaders


def test_a_job_ends_with_a_checkpoint_that_is_described_truly(tmp_path, computed):
    stages = []
    exported = pruneaug.run(toy_job(tmp_path), progress=lambda stage, *_: stages.append(stage))

    assert exported.checkpoint == tmp_path / "run" / "checkpoint"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report == exported.report
    assert outcome(report) == "pays"
    assert report["speedup_measured"] > 1
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    order = list(dict.fromkeys(stages))
    assert [name for name in order if not name.startswith("Trial")] == [
        "Profile", "Whole network", "Dense training", "Search", "Final fine-tuning", "Export", "Bench",
    ]  # fmt: skip

    info = json.loads((exported.checkpoint / "pruneaug.json").read_text())
    weights = load_file(exported.checkpoint / "model.safetensors")
    for layer in info["layers"]:
        weight = weights[f"{layer['name']}.weight"]
        if layer["pattern"] != "dense":
            assert float((weight == 0).float().mean()) == pytest.approx(layer["sparsity"], abs=0.1)
            assert layer["blocks_kept"] < layer["blocks"]
    model = ToyTask().build_model()
    model.load_state_dict(weights)
    assert ToyTask().evaluate(model, "test") == info["best"]["accuracy_test"] == report["best"]["accuracy_test"]
    assert ToyTask().evaluate(model, "validation") == report["best"]["accuracy_validation"]


def test_the_same_run_again_measures_and_trains_nothing(toy_at, monkeypatch):
    folder = toy_at("exported")
    monkeypatch.setattr("pruneaug.finetune.train.Train.finetune", lambda *args, **kwargs: pytest.fail("trained again"))
    records = store_of(folder).load()
    before = json.loads((folder / "run" / "report.json").read_text())
    again = pruneaug.run(toy_job(folder)).report
    assert store_of(folder).load() == records
    assert again["search"].pop("seconds_own") >= before["search"].pop("seconds_own")  # looking costs a moment too
    assert {**again, "created_at": "", "warnings": []} == {
        **before,
        "created_at": "",
        "warnings": [],
        "job": again["job"],
    }


def test_plain_pytorch_and_the_compiled_network_compute_the_same(toy_at):
    checkpoint = toy_at("exported") / "run" / "checkpoint"
    plain = ToyTask().build_model()
    plain.load_state_dict(load_file(checkpoint / "model.safetensors"))
    (x,) = load_file(checkpoint / "example_inputs.safetensors").values()

    compiled = pruneaug.load(checkpoint, trust_code=True)

    assert compiled.report.products > 0
    with torch.no_grad():
        assert relative_error(compiled(x), plain.eval()(x)) < 1e-5
    with pytest.raises(InputError, match="it was compiled for"):
        compiled(x[:3])


def test_the_users_own_network_and_loaders_go_the_whole_way(tmp_path, computed):
    network, loaders = make_network(), make_loaders()
    task = task_from_modules(network, **loaders, trained=False)
    job = toy_job(tmp_path, platform__batch=64, search__trials=2)
    del job["task"]["name"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    pruneaug.profile(job, task=task)
    plan = pruneaug.dry_run(job, task=task)
    assert plan["cells_missing"] == 0
    assert 0 < plan["latency_ms_best"] < plan["latency_ms_dense"]
    result = pruneaug.search(job, task=task)
    exported = pruneaug.export(tmp_path / "run", task=task)

    assert result.outcome == "found"
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(CheckpointError, match=r"load\(folder, model=\.\.\.\)"):
        pruneaug.load(exported.checkpoint)
    plain = make_network().eval()
    plain.load_state_dict(load_file(exported.checkpoint / "model.safetensors"))
    compiled = pruneaug.load(exported.checkpoint, model=make_network())
    (x,) = read_checkpoint(exported.checkpoint).example_inputs
    with torch.no_grad():
        assert relative_error(compiled(x), plain(x)) < 1e-5
    times = pruneaug.bench(exported.checkpoint, model=make_network(), against=["torch"])
    assert set(times["latency_ms"]) == {"torch", OWN_DENSE, OWN_SPARSE}
    assert times["speedup_vs_best_dense"] > 1
    assert times["predicted_ms"] == exported.report["best"]["latency_ms_predicted"]
    with pytest.raises(CheckpointError, match="must be of this network"):
        pruneaug.load(exported.checkpoint, model=nn.Sequential(nn.Linear(4, 4)))


def test_a_checkpoint_of_another_machine_runs_here_with_other_variants(toy_at):
    checkpoint = toy_at("exported") / "run" / "checkpoint"
    path = checkpoint / "pruneaug.json"
    info = json.loads(path.read_text())
    here = Platform.from_json(info["platform"])
    there = replace(here, cpu="another", cores=512, threads=512)
    info["platform"] = there.to_json()
    for layer in info["layers"]:
        layer["variant"] = "h2v1s1"
    path.write_text(json.dumps(info))

    compiled = pruneaug.load(checkpoint, trust_code=True)

    (x,) = read_checkpoint(checkpoint).example_inputs
    plain = ToyTask().build_model().eval()
    plain.load_state_dict(load_file(checkpoint / "model.safetensors"))
    with torch.no_grad():
        assert relative_error(compiled(x), plain(x)) < 1e-5
    times = pruneaug.bench(checkpoint, trust_code=True)
    assert times["predicted_ms"] is None
    assert times["speedup_vs_best_dense"] > 1


def test_code_that_a_checkpoint_names_is_not_run_unless_it_is_trusted(toy_at, tmp_path):
    checkpoint = toy_at("exported") / "run" / "checkpoint"
    info = json.loads((checkpoint / "pruneaug.json").read_text())
    touched = tmp_path / "touched"
    task = {"name": "digits", "model": {"name": "os:mkdir", "options": {"path": str(touched)}}}
    info["spec"] = {**info["spec"], "task": task}
    (checkpoint / "pruneaug.json").write_text(json.dumps(info))
    for verb in (pruneaug.load, pruneaug.bench):
        with pytest.raises(CheckpointError, match=r"names code of its own for its network, 'os:mkdir'.*trust_code"):
            verb(checkpoint)
    assert not touched.exists()


def test_more_threads_than_the_machine_has_are_refused(toy_at):
    checkpoint = toy_at("exported") / "run" / "checkpoint"
    for threads in (0, 4096):
        with pytest.raises(SpecError, match=r"threads .* must be between 1 and"):
            pruneaug.load(checkpoint, threads=threads, trust_code=True)


def test_a_network_with_a_layer_without_any_block_is_exported_and_runs(tmp_path, computed):
    job = toy_job(tmp_path, space__patterns=["block:8x1"], space__sparsities=[0.5, 1.0], search__max_accuracy_loss=1.0)
    job["search"] |= {"strategy": "test_flow:Everything", "trials": 1}

    exported = pruneaug.run(job)

    opened = read_checkpoint(exported.checkpoint)
    assert min(float(mask.float().mean()) for mask in opened.masks.values()) <= 8 / 64**2
    plain = ToyTask().build_model().eval()
    plain.load_state_dict(dict(opened.weights))
    with torch.no_grad():
        expected = plain(*opened.example_inputs)
    assert relative_error(pruneaug.load(exported.checkpoint, trust_code=True)(*opened.example_inputs), expected) < 1e-5


class Everything:
    """A strategy that prunes each layer as far as its range allows."""

    def propose(self, trial, space):
        trial.suggest_float("unused", 0.0, 1.0)
        return {layer.name: layer.nearest(pattern, 1.0) for layer in space.layers for pattern in layer.patterns[-1:]}

    def sampler(self, seed):
        import optuna

        return optuna.samplers.RandomSampler(seed)


def test_a_constraint_that_nothing_meets_is_reported_with_how_close_it_came(toy_at):
    folder = toy_at("profiled")
    job = toy_job(folder, space__sparsities=[0.9], search__max_accuracy_loss=0.0, task__options={"noise": 3.0})
    job["finetune"]["trial"] |= {"epochs": 0.1, "learning_rate": 1e-6}
    result = pruneaug.search(job)
    assert result.outcome == "infeasible"
    assert f"it loses {result.closest.accuracy_loss:.4f}" in result.how_close

    exported = pruneaug.export(folder / "run")

    assert exported.checkpoint is None
    assert outcome(exported.report) == "infeasible"
    assert exported.report["verdict"].startswith("Stay dense")
    assert f"trial {result.closest.number} " in exported.report["verdict"]


def test_where_nothing_is_faster_dense_is_the_answer(toy_at, monkeypatch):
    folder = toy_at("profiled")
    monkeypatch.setattr("pruneaug.searcher.driver.keep_faster", lambda *args: {})
    result = pruneaug.search(toy_job(folder))
    assert result.outcome == "stay dense"
    assert "dense is the answer" in result.how_close
    assert outcome(pruneaug.export(folder / "run").report) == "stay dense"


def test_if_every_trial_fails_the_outcome_is_a_failure_and_not_dense(toy_at, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("no such layer")

    folder = toy_at("profiled")
    monkeypatch.setattr("pruneaug.pruners.magnitude.Magnitude.prune", broken)
    result = pruneaug.search(toy_job(folder))
    assert result.outcome == "failed"
    assert "no such layer" in result.how_close
    report = pruneaug.export(folder / "run").report
    assert outcome(report) == "failed"
    assert "no such layer" in report["verdict"]


def test_an_export_needs_a_search_that_has_ended(toy_at):
    folder = toy_at("profiled")
    with pytest.raises(RunError, match="run `pruneaug search JOB`"):
        pruneaug.export(folder / "run")
    pruneaug.search(toy_job(folder))
    run = RunDir(folder / "run")
    (run.trials / "2.json").unlink()
    with pytest.raises(RunError, match=r"has 2 of 3 trials; .*--set search\.trials=2"):
        pruneaug.export(folder / "run")
    pruneaug.search(toy_job(folder))
    shutil.rmtree(run.best)
    with pytest.raises(RunError, match="final fine-tuning of trial"):
        pruneaug.export(folder / "run")
    pruneaug.search(toy_job(folder))
    assert pruneaug.export(folder / "run").checkpoint is not None


def test_a_search_ended_by_its_time_limit_can_be_exported(toy_at):
    folder = toy_at("profiled")
    result = pruneaug.search(toy_job(folder, search__timeout_s=1e-9, search__trials=50))
    assert 1 <= len(result.trials) < 50
    assert pruneaug.export(folder / "run").checkpoint is not None


def test_no_one_else_may_drive_a_run_while_it_is_exported(toy_at, monkeypatch):
    folder = toy_at("searched")
    tried = []

    def measure(*args, **kwargs):
        with pytest.raises(RunError, match="one driver at a time"):
            pruneaug.search(toy_job(folder))
        tried.append(True)
        return ()

    monkeypatch.setattr("pruneaug.api.exporting.measure", measure)
    assert pruneaug.export(folder / "run").checkpoint is not None
    assert tried


def test_a_run_keeps_the_times_its_search_began_with(tmp_path, computed, monkeypatch):
    job = toy_job(tmp_path)
    monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps({"faults": {"block:1x1@0.9": "error"}}))
    with pytest.warns(RuntimeWarning, match="2 cells could not be measured .* told to fail"):
        pruneaug.run(job)
    monkeypatch.delenv(OPTIONS_VARIABLE)
    assert pruneaug.run({**job, "search": {**job["search"], "trials": 4}}).checkpoint is not None


def test_the_rest_of_a_network_is_measured_with_the_table_held(toy_at, monkeypatch):
    folder = toy_at("profiled")
    shutil.rmtree(store_of(folder).folder / "rest")
    real = pruneaug.api.profiling.measure_rest

    def measure_rest(*args, **kwargs):
        with pytest.raises(RunError, match="only one process may profile"):
            pruneaug.profile(toy_job(folder))
        return real(*args, **kwargs)

    monkeypatch.setattr("pruneaug.api.profiling.measure_rest", measure_rest)
    pruneaug.profile(toy_job(folder))
    assert list((store_of(folder).folder / "rest").glob("*.json"))


def test_a_password_of_the_storage_is_in_no_report_and_no_checkpoint(toy_at, monkeypatch):
    folder = toy_at("profiled")
    monkeypatch.setattr("pruneaug.searcher.study.history.open_study", local_study(folder))
    job = toy_job(folder, search__storage="postgresql://me:se:cr/et@host:5432/name")
    pruneaug.search(job)
    exported = pruneaug.export(folder / "run")
    assert exported.report["job"]["spec"]["search"]["storage"] == "postgresql://me:***@host:5432/name"
    files = [path for path in [*(folder / "run").glob("report.*"), *exported.checkpoint.iterdir()] if path.is_file()]
    assert len(files) == 5
    assert not any(b"se:cr/et" in path.read_bytes() for path in files)
    pruneaug.load(exported.checkpoint, trust_code=True)


def local_study(folder):
    from pruneaug.searcher.history import open_study

    return lambda url, *rest, **options: open_study(f"sqlite:///{folder}/study.db", *rest, **options)


def test_outputs_that_are_not_finite_do_not_break_a_report(toy_at, monkeypatch):
    def broken(*args, **kwargs):
        return tuple(replace(time, max_relative_error=float("nan")) for time in analytic_times(*args, **kwargs))

    folder = toy_at("searched")
    monkeypatch.setattr("pruneaug.profiler.place.time_networks", broken)
    exported = pruneaug.export(folder / "run")
    assert exported.report["baselines"][0]["max_relative_error"] is None
    assert json.dumps(pruneaug.bench(exported.checkpoint, trust_code=True), allow_nan=False)


@pytest.mark.slow
def test_the_whole_job_runs_on_this_machine_measured_by_the_real_measurer(tmp_path, monkeypatch):
    briefly = partial(time_networks, rounds=2, turn_s=0.01)
    monkeypatch.setattr("pruneaug.profiler.place.time_networks", briefly)
    job = toy_job(tmp_path, task__options={"network": "cnn"}, platform__batch=1, platform__threads=None)
    job["space"] |= {"patterns": ["block:8x1"]}
    exported = pruneaug.run(job)
    report = exported.report
    assert report["dense"]["latency_ms_measured"] > 0
    assert {row["runtime"] for row in report["baselines"]} >= {"torch", "torch-compile", OWN_DENSE}
    assert all(row["error"] is None and row["max_relative_error"] < 1e-4 for row in report["baselines"])
    assert outcome(report) in ("pays", "stay dense")
    assert all(record.error is None for record in store_of(tmp_path).load())
    assert (exported.checkpoint is None) == (report["best"] is None)
