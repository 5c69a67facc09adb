"""The C++ example runs a compiled network and computes what Python does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from float64_networks import compile_model
from torch import nn

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("make")), reason="needs g++ and make")
def test_a_cpp_program_runs_a_network_without_python(tmp_path):
    torch.manual_seed(0)
    # The program feeds zeros for integers, so that its outputs can be foretold.
    model = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8)).eval()
    ids = torch.zeros(2, 5, dtype=torch.int64)
    compile_model(model, (ids,)).save(tmp_path / "network.so")
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    subprocess.run(
        ["make", f"PYTHON={sys.executable}", "CXX=g++", "CXXFLAGS=-Wall -Wextra -Werror"], cwd=tmp_path, check=True
    )
    done = subprocess.run(
        [tmp_path / "run_network", "network.so", "3"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert subprocess.run([tmp_path / "run_network"], check=False, capture_output=True).returncode == 2
    assert "input    int64 [2, 5]\n" in done.stdout
    (values,) = re.findall(r"^output +(.*) \.\.\. \(80 values\)$", done.stdout, flags=re.MULTILINE)
    expected = model(ids).flatten()[:5].detach()
    torch.testing.assert_close(torch.tensor([float(v) for v in values.split()]), expected, atol=2e-5, rtol=1e-4)
    assert re.search(r"^median +[\d.]+ ms of 3 calls$", done.stdout, flags=re.MULTILINE)
