"""What a compiled network says of itself."""

import pytest
from float64_networks import compile_model, conv, image, seeded
from torch import nn

from pruneaug.runtime.network import load_network
from pruneaug.runtime.report import CompileReport, StepReport, StepTime, StepTimes

X = image(2, 3, 9, 9)


class Sum(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.sum = conv(3, 3), Sum()

    def forward(self, x):
        return self.sum(self.conv(x)).cumsum(2)


@pytest.fixture(scope="module")
def network():
    return compile_model(seeded(nn.Sequential(Block(), Block())), (X,))


def test_fallbacks_name_the_modules_that_they_come_from(network, tmp_path):
    assert network.report.fallbacks == ("cumsum in 0.sum, 0", "cumsum in 1.sum, 1")
    network.save(tmp_path / "network.so")
    assert load_network(tmp_path / "network.so").report == network.report


def test_a_report_is_printed_as_a_short_table(network):
    lines = str(network.report).splitlines()
    assert lines[0] == network.report.summary
    assert "2 of them layers, 2 without a kernel of ours" in lines[0]
    assert [line.split() for line in lines if line.startswith("convolution")] == [["convolution", "2"]]
    assert "  1 ×  cumsum in 0.sum, 0" in lines
    assert all(len(line) <= 120 for line in lines)
    assert len(lines) < 15


def test_many_equal_fallbacks_take_few_lines():
    steps = [StepReport("cumsum", None), StepReport("sort", None, ("a", "b", "c", "d", "e"))] * 30
    steps += [StepReport(f"op{index}", None) for index in range(40)]
    lines = str(CompileReport(tuple(steps))).splitlines()
    assert lines[0] == "100 steps, 0 of them layers, 100 without a kernel of ours"
    assert "  30 ×  cumsum" in lines
    assert "  30 ×  sort in a, b, c and 2 more" in lines
    assert len(lines) < 30


def test_a_network_is_printed_as_what_it_takes(network):
    assert repr(network) == f"CompiledNetwork(inputs (float32 [2, 3, 9, 9]), 2 threads, {network.report.summary})"


def test_times_are_printed_with_the_longest_first():
    product, sort = StepReport("fc", "product"), StepReport("sort", None, ("head",))
    lines = str(StepTimes([StepTime(product, 25.0), StepTime(sort, 75.0)])).splitlines()
    assert [line.split() for line in lines] == [
        ["step", "kernel", "µs", "share"],
        ["sort", "in", "head", "none", "of", "ours", "75.0", "75.0%"],
        ["fc", "product", "25.0", "25.0%"],
        ["all", "steps", "100.0", "100.0%"],
    ]
    lines = str(StepTimes([StepTime(product, 1.0)] * 50)).splitlines()
    assert lines[-2].split() == ["30", "other", "steps", "30.0", "60.0%"]
    assert "0.0%" in str(StepTimes([]))


def test_a_network_of_our_kernels_alone_is_printed_without_fallbacks():
    text = str(CompileReport((StepReport("fc", "product"),)))
    assert text.startswith("1 step, 1 of them layers, 0 without")
    assert "TVM" not in text
