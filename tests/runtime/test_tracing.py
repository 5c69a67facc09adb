"""What compiling writes to the terminal: nothing of its own affairs, and all that the network writes."""

import gc
import sys
import warnings

import pytest
import torch
from float64_networks import Model, compile_model, image
from regions import Function, calls, compute, graph_of, region_module
from torch import nn

from pruneaug.errors import CompileError
from pruneaug.runtime.fallback import extract_region
from pruneaug.runtime.graph import export_program

TOKENS = image(2, 5, 6)


def test_pytorchs_warnings_about_its_own_affairs_are_left_out():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile_model(Model(lambda m, x: m["r"](m["l"](x))[0], l=nn.Linear(6, 6), r=nn.LSTM(6, 6)), (TOKENS,))
    assert [warning for warning in caught if "LeafSpec" in str(warning.message)] == []
    assert [warning for warning in caught if "during export" in str(warning.message)] == []


def test_a_network_that_cannot_be_exported_is_not_printed(capfd, caplog):
    def forward(x):
        print("said by forward", file=sys.stderr)
        warnings.warn("warned by forward", stacklevel=1)
        return x if x.sum() > 0 else -x

    with pytest.warns(UserWarning, match="warned by forward"), pytest.raises(CompileError):
        export_program(Function(forward), (TOKENS,))
    assert capfd.readouterr().err == "said by forward\n"
    assert [record.getMessage() for record in caplog.records if "user code" in record.getMessage()] == []


def test_an_operator_that_cannot_be_compiled_leaves_nothing_open(capfd):
    graph = graph_of(Function(lambda x: torch.fft.rfft(x).abs()), TOKENS)
    with pytest.raises(CompileError):
        region_module(extract_region(graph, calls(graph)))
    gc.collect()
    assert capfd.readouterr().err == ""


def test_operators_are_compiled_in_silence(capfd):
    ones = torch.ones(2, 5, 6).long()
    compute(
        Function(lambda x: (x.scatter(1, ones, 2.0), x.roll(1, 1), x[:, torch.tensor([0, 2])], x.sort(1)[0])), TOKENS
    )
    assert capfd.readouterr().err == ""
