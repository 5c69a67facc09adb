import json
import re
import stat
import subprocess
import sys

import pytest
import torch

from pruneaug.platforms.cuda import cuda_obstacle
from pruneaug.platforms.doctor import doctor, package_versions


def test_doctor_says_everything_in_json_values():
    sections = doctor()
    assert list(sections) == ["versions", "cpu", "threads", "load", "cuda"]
    assert json.loads(json.dumps(sections)) == sections
    assert sections["versions"]["torch"] == torch.__version__
    assert sections["cuda"]["available"] == torch.cuda.is_available()


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    from pruneaug.platforms import doctor as module

    monkeypatch.setattr(module, "_version", lambda package: None)
    versions = package_versions()
    assert versions["apache-tvm"] == "not installed: run `pip install pruneaug[tvm]`"


def test_doctor_imports_no_compiler_and_no_search_library():
    run = "import sys; from pruneaug.platforms.doctor import doctor; doctor()"
    code = f"{run}; print({{'tvm', 'ray', 'optuna'}} & {{*sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "no NVIDIA driver"),
        ("echo 'driver mismatch' >&2; exit 18", "sees no GPU: driver mismatch"),
        ("exit 0", "sees no GPU: it lists no GPU"),
        ("echo 'GPU 0: H100'", r"too old for CUDA 13\.0"),
    ],
)
def test_the_reason_for_no_gpu_is_named(tmp_path, monkeypatch, script, reason):
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert re.search(reason, cuda_obstacle("13.0"))


def test_a_cpu_build_and_hidden_gpus_are_named(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "built for the CPU only" in cuda_obstacle(None)
    assert "CUDA_VISIBLE_DEVICES hides" in cuda_obstacle("13.0")
