"""The runtimes that pruneaug is compared with: what they compute, and what is said where they are not installed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from pruneaug.errors import InputError
from pruneaug.platforms import detect
from pruneaug.profiler import runtimes
from pruneaug.profiler.network import Subject, time_networks
from pruneaug.profiler.network_worker import tensors_of
from pruneaug.profiler.runtimes import RUNTIMES, absent_packages, check_runtimes, package_versions
from pruneaug.runtime.graph import export_program


class TwoInputs(nn.Module):
    """Tokens and numbers in, a mapping with an integer tensor out."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 64)
        self.linear = nn.Linear(64, 300)

    def forward(self, tokens, scale):
        y = self.linear(self.embedding(tokens) * scale)
        return {"values": y, "best": y.argmax(-1), "mean": y.mean(1)}


def model_and_inputs():
    torch.manual_seed(0)
    return TwoInputs().eval(), (torch.randint(0, 11, (2, 5)), torch.rand(2, 5, 1))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield 1
    torch.set_num_threads(before)


def installed(name):
    return pytest.param(name, marks=pytest.mark.skipif(absent_packages(name) is not None, reason=f"needs {name}"))


@pytest.mark.parametrize("name", ["torch", installed("onnxruntime"), installed("openvino")])
def test_a_runtime_computes_what_the_network_computes(name, tmp_path, one_thread):
    model, inputs = model_and_inputs()
    call = RUNTIMES[name].make(export_program(model, inputs), one_thread, tmp_path)
    with torch.no_grad():
        expected = tensors_of(model(*inputs))
    for _ in range(2):
        got = tensors_of(call())
        assert len(got) == len(expected) == 2
        for y, right in zip(got, expected):
            torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [installed("onnxruntime")])
def test_runtimes_of_one_program_share_its_onnx_file(first, tmp_path, monkeypatch, one_thread):
    program = export_program(*model_and_inputs())
    RUNTIMES[first].make(program, one_thread, tmp_path)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("it was exported before"))
    RUNTIMES[first].make(program, one_thread, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"onnx"}


@pytest.mark.parametrize("name", [installed("onnxruntime")])
def test_runtimes_that_start_at_once_export_the_program_once(name, tmp_path, monkeypatch, one_thread):
    program = export_program(*model_and_inputs())
    exported, export, both = [], torch.onnx.export, threading.Barrier(2)

    def slowly(*args, **options):
        exported.append(args)
        time.sleep(0.5)  # so that the other one asks while the file is not there yet
        return export(*args, **options)

    def make(_):
        both.wait()
        return RUNTIMES[name].make(program, one_thread, tmp_path)

    monkeypatch.setattr(torch.onnx, "export", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, range(2)))
    assert len(exported) == 1


@pytest.mark.slow
def test_every_installed_runtime_is_timed_in_a_process_of_its_own():
    model, inputs = model_and_inputs()
    program = export_program(model, inputs)
    names = [name for name in RUNTIMES if absent_packages(name) is None]
    for result in time_networks([Subject(name, model, program) for name in names], detect(1), rounds=1, turn_s=0.01):
        assert result.error is None
        assert result.latency_ms > 0
        assert result.max_relative_error < 1e-5


@pytest.mark.slow
def test_a_runtime_whose_packages_do_not_import_is_an_error_and_the_others_go_on(tmp_path, monkeypatch):
    for package in ("onnxruntime", "openvino"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('a broken package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model, inputs = model_and_inputs()
    program = export_program(model, inputs)
    first, second, last = time_networks(
        [Subject(name, model, program) for name in ("onnxruntime", "openvino", "torch")],
        detect(1),
        rounds=1,
        turn_s=0.01,
    )
    assert "a broken package" in first.error
    assert "a broken package" in second.error
    assert last.error is None


def test_an_absent_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda package: None if package == "onnx" else object())
    for name in ("onnxruntime", "openvino"):
        assert absent_packages(name) == "onnx not installed; pip install 'pruneaug[peers]'"
    assert absent_packages("torch") is None


def test_an_unknown_runtime_is_one_error_that_lists_the_known():
    check_runtimes(list(RUNTIMES))
    with pytest.raises(InputError, match=r"of torch, torch-compile, .*, but got openvno; did you mean 'openvino'\?"):
        check_runtimes(["torch", "openvno"])


def test_versions_are_those_of_the_packages_that_are_installed(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "mine", runtimes.Peer(runtimes.torch_eager, ("numpy", "no-such-package")))
    assert list(package_versions(["torch", "mine"])) == ["numpy"]
