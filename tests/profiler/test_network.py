"""Timing whole networks in processes of their own: what is reported, and every way in which a process fails."""

import math
import sys

import pytest
import torch
from torch import nn

from pruneaug.api.loading import load
from pruneaug.network.layers import Layer, Network, apply_masks, find_layers
from pruneaug.network.ops import LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler import network as timing
from pruneaug.profiler.lines import LineProcess
from pruneaug.profiler.network import Subject, time_networks
from pruneaug.profiler.process import worker_environment
from pruneaug.runtime.graph import export_program

PLATFORM = detect(threads=1)

SCRIPTS = {
    "good": """
ready()
for request in requests():
    if "seconds" in request: say(times_us=[1000.0, 2000.0, 3000.0])
    elif "save" in request: open(request["save"], "w").close(); say(error=None)
    else: say(fallbacks={"sort": 0.25, "cumsum": request["repeats"] / 1000})
""",
    "cannot save": """
ready()
for request in requests():
    if "seconds" in request: say(times_us=[1000.0])
    elif "save" in request: say(error="the disk is full")
    else: say(fallbacks={})
""",
    "crashes after its turns": """
ready()
for request in requests(): say(times_us=[1000.0]) if "seconds" in request else os.abort()
""",
    "crashes at once": "os.abort()",
    "has no such package": "sys.exit('No module named that')",
    "crashes later": """
ready()
sys.stdin.readline()
say(times_us=[1.0])
sys.stdin.readline()
os.abort()
""",
    "hangs": "time.sleep(600)",
    "hangs later": "ready(); time.sleep(600)",
    "is wrong": "ready(0.02); time.sleep(600)",
    "is not finite": "ready(float('nan')); time.sleep(600)",
}
HEAD = """
import json, os, sys, time
def say(**values): print(json.dumps(values), flush=True)
def ready(error=1e-6): say(event="ready", max_relative_error=error)
def requests(): return map(json.loads, sys.stdin)
setup = json.loads(sys.stdin.readline())
"""


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


EXAMPLE = (torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture
def scripted(monkeypatch):
    """Time networks whose processes run these scripts instead, in this order."""

    def run(*names, folder=None, rounds=2, **values):
        scripts = iter([SCRIPTS[name] for name in names])

        def start(platform):
            command = [sys.executable, "-c", HEAD + next(scripts)]
            return LineProcess(command, worker_environment(platform.threads))

        monkeypatch.setattr(timing, "_start", start)
        monkeypatch.setattr(timing, "START_S", 30.0 if "hangs" not in names else 0.5)
        monkeypatch.setattr("pruneaug.profiler.turns.LONGEST_TURN_S", 30.0 if "hangs later" not in names else 2.0)
        network = model()
        program = export_program(network, EXAMPLE)
        subjects = [Subject(name, network, program, save_to=folder and folder / f"{name}.so") for name in names]
        return time_networks(subjects, PLATFORM, rounds=rounds, turn_s=0.0, **values)

    return run


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("crashes at once", "its process died of SIGABRT"),
        ("has no such package", "its process ended with exit status 1: No module named that"),
        ("crashes later", "its process died of SIGABRT"),
        ("hangs later", "its process hung: it gave no result within 2 s"),
        ("is wrong", "its outputs' relative error must be at most 0.001, but is 0.02; please report it"),
        ("is not finite", "its outputs' relative error must be at most 0.001, but is nan; please report it"),
    ],
)
def test_a_runtime_that_fails_is_a_result_with_an_error_and_the_others_go_on(scripted, script, error):
    first, failed, last = scripted("good", script, "good")
    assert failed.runtime == script
    assert failed.error.startswith(error)
    assert (failed.latency_ms, failed.p10_ms, failed.p90_ms, failed.runs) == (None, None, None, 0)
    for good in (first, last):
        assert (good.latency_ms, good.p10_ms, good.p90_ms) == pytest.approx((2.0, 1.0, 3.0))
        assert (good.runs, good.max_relative_error, good.error) == (6, 1e-6, None)


def test_a_runtime_that_never_starts_is_given_up(scripted):
    (failed,) = scripted("hangs")
    assert failed.error == "its process hung: it gave no result within 0.5 s"


def test_what_has_no_kernel_is_told_with_its_share_in_few_calls_of_a_slow_network(scripted):
    results = scripted("good", "cannot save", "crashes after its turns")
    assert [result.fallbacks for result in results] == [{"sort": 0.25, "cumsum": 0.001}, {}, None]
    assert [result.latency_ms for result in results] == [2.0, 1.0, 1.0]
    assert {result.error for result in results} == {result.save_error for result in results} == {None}


def test_networks_are_saved_after_their_turns_and_not_if_they_failed(scripted, tmp_path):
    results = scripted("good", "cannot save", "crashes after its turns", "is wrong", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["good.so"]
    first, full, crashed, wrong = [result.save_error for result in results]
    assert (first, full) == (None, "the disk is full")
    assert crashed.startswith("its process died of SIGABRT")
    assert wrong == results[3].error
    assert [result.error for result in results[:3]] == [None, None, None]


def test_without_rounds_networks_are_only_checked_and_saved(scripted, tmp_path):
    (good,) = scripted("good", folder=tmp_path, rounds=0)
    assert (good.latency_ms, good.error, good.save_error, good.fallbacks) == (None, "it was not measured", None, None)
    (wrong,) = scripted("is wrong", folder=tmp_path, rounds=0)
    assert "relative error must be at most" in wrong.save_error
    assert [path.name for path in tmp_path.iterdir()] == ["good.so"]


def test_progress_counts_from_none_to_all(scripted):
    seen = []
    scripted("good", "crashes at once", progress=lambda *values: seen.append(values))
    assert [done for done, _, _ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen) - 1} == {4}


def test_progress_ends_once_where_more_rounds_are_needed(scripted, monkeypatch):
    asked = iter([True] * 5 + [False])
    monkeypatch.setattr(timing.TurnTaking, "go_on", lambda _: next(asked))
    seen = []
    scripted("good", progress=lambda *values: seen.append(values))
    assert [done for done, _, _ in seen] == [0, 1, 2, 2, 2, 2, 3]


@pytest.mark.slow
def test_a_tiny_network_is_timed_in_every_runtime_and_a_broken_plan_is_an_error(tmp_path):
    """Real processes: each imports PyTorch, all but the first one the compiler too."""
    dense, pruned = model(), model()
    network = find_layers(dense, EXAMPLE)
    masks = {"0": torch.rand(8, 3, 3, 3, generator=torch.Generator().manual_seed(2)) < 0.5}
    apply_masks(pruned, masks)
    program = export_program(dense, EXAMPLE)
    broken = Network((*network.layers, Layer("missing", LinearOp(1, 2, 3))))
    results = time_networks(
        [
            Subject("torch", dense, program),
            Subject("ours, dense", dense, program, network),
            Subject(
                "ours, pruned",
                pruned,
                export_program(pruned, EXAMPLE),
                network,
                masks=masks,
                save_to=tmp_path / "a.so",
            ),
            Subject("ours, broken", dense, program, broken),
        ],
        PLATFORM,
        rounds=2,
        turn_s=0.01,
    )
    for result in results[:3]:
        assert result.error is None
        assert 0 < result.p10_ms <= result.latency_ms <= result.p90_ms
        assert result.runs >= 6
        assert result.max_relative_error < 1e-5
    assert [result.fallbacks for result in results[:3]] == [None, {}, {}]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "a.so")(*EXAMPLE), pruned.eval()(*EXAMPLE), rtol=1e-4, atol=1e-5)
    assert "CompileError" in results[3].error
    assert "['missing'] are not" in results[3].error


def test_the_error_is_that_of_all_outputs_together(tmp_path):
    from safetensors.torch import save_file

    from pruneaug.profiler.network_worker import relative_error

    first, second = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])
    path = tmp_path / "expected.safetensors"
    save_file({"0": first, "1": second}, path)
    assert relative_error({"a": first, "n": torch.tensor([1]), "b": [second, None]}, str(path)) == 0.0
    assert relative_error((first, second + 0.5), str(path)) == pytest.approx(0.1)
    assert math.isnan(relative_error((first, second * math.nan), str(path)))
    assert relative_error(first, str(path)) == math.inf  # an output is missing
