"""The C++ example runs compiled networks and computes what PyTorch does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pruneaug
from pruneaug.network.layers import find_layers
from pruneaug.platforms import detect
from pruneaug.profiler.network import Subject, time_networks
from pruneaug.runtime.graph import export_program

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
IDS = torch.zeros(2, 5, dtype=torch.int64)  # the program's own input: it feeds zeros for integers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") and shutil.which("make")), reason="needs g++ and make"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The folder of the program, built."""
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("Makefile", "run_network.cpp"):
        shutil.copy(EXAMPLE / name, folder)
    flags = "CXXFLAGS=-Wall -Wextra -Werror"
    subprocess.run(["make", f"PYTHON={sys.executable}", "CXX=g++", flags], cwd=folder, check=True)
    return folder


def run(program, *words):
    done = subprocess.run([program / "run_network", *words], cwd=program, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8)).eval()


def assert_first_values(out, functions):
    """What the program printed of each function: `functions` are their names with the network's outputs."""
    assert re.findall(r"^function (.*)$", out, flags=re.MULTILINE) == list(functions)
    printed = re.findall(r"^output +(.*) \.\.\. \((\d+) values\)$", out, flags=re.MULTILINE)
    for (values, count), expected in zip(printed, functions.values(), strict=True):
        assert int(count) == expected.numel()
        got = torch.tensor([float(value) for value in values.split()])
        torch.testing.assert_close(got, expected.detach().flatten()[:5], atol=2e-5, rtol=1e-4)


def test_a_cpp_program_runs_a_network_without_python(program):
    model = make_model()
    pruneaug.compile(model, (IDS,), threads=1).save(program / "network.so")
    code, out, _ = run(program, "network.so", "3")
    assert code == 0
    assert "input    int64 [2, 5]\n" in out
    assert_first_values(out, {"main": model(IDS)})
    assert re.search(r"^median +[\d.]+ ms of 3 calls$", out, flags=re.MULTILINE)


def test_a_network_for_several_batch_sizes_has_a_function_for_each(program):
    model = make_model()
    pruneaug.compile(model, (IDS,), batch_sizes=[1, 3], threads=1).save(program / "sizes.so")
    code, out, _ = run(program, program / "sizes.so", "1")
    assert code == 0
    assert_first_values(out, {"main_1": model(IDS[:1]), "main_3": model(IDS[:1].expand(3, 5))})


def test_the_artifact_that_a_measurement_saves_runs(program):
    model = make_model()
    network = find_layers(model, (IDS,))
    subject = Subject(
        "ours", model, export_program(model, (IDS,)), network, save_to=program / "artifact" / "network.so"
    )
    (result,) = time_networks([subject], detect(1), rounds=0)
    assert result.save_error is None
    code, out, _ = run(program, "artifact/network.so")
    assert code == 0
    assert_first_values(out, {"main": model(IDS)})


def test_a_wrong_call_says_what_is_wrong(program):
    assert run(program)[0] == 2
    code, out, err = run(program, "no_such.so")
    assert (code, out) == (1, "")
    assert "error: " in err
    assert "no_such.so" in err
