"""Where the time of a compiled network goes: every call belongs to its step. No test depends on what the times are."""

import pytest
import torch
from float64_networks import Model, compile_model, image, seeded
from torch import nn

import pruneaug
from pruneaug.errors import InputError
from pruneaug.runtime.network import load_network
from pruneaug.runtime.report import CompileReport, StepReport, StepTime, fallback_shares, step_times


def report_of(*steps, first_region=0):
    """Kernels by their names, fallbacks by their operators in brackets."""
    return CompileReport(
        tuple(StepReport(s[1:-1], None) if s.startswith("[") else StepReport("layer", s) for s in steps), first_region
    )


def times_of(report, *names):
    """The time of every step, if the calls of these names take 1, 2, 4, ... microseconds."""
    return [time.latency_us for time in step_times(report, [(name, 2.0**i) for i, name in enumerate(names)])]


@pytest.mark.parametrize(
    ("steps", "names", "expected"),
    [
        # A module numbers functions of equal names, and one function may be called by several steps.
        (("max pool", "product", "product"), ("max_pool", "product3", "product3"), [1, 2, 4]),
        # All loops of a run of operators are one step, fused or not.
        (
            ("product", "[sort, tanh]", "product", "[flip]"),
            (
                "product",
                "region_0_sort",
                "region_0_fused_a_b",
                "fused_region_0_c_region_0_d",
                "product",
                "region_1_flip",
            ),
            [1, 2 + 4 + 8, 16, 32],
        ),
        # Equal runs share the loops of the first one.
        (
            ("[cumsum]", "product", "[cumsum, sort]", "product", "[cumsum]"),
            ("region_0_cumsum", "product", "region_0_cumsum", "region_1_sort", "product", "region_0_cumsum"),
            [1, 2, 4 + 8, 16, 32],
        ),
        # Runs may follow each other; their loops' numbers tell them apart.
        (("[roll]", "[sort]", "product"), ("region_0_roll", "region_1_sort", "product"), [1, 2, 4]),
        # What depends on constants only is computed before; what nothing reads is left out.
        (("[exp]", "product", "transpose", "product"), ("product", "product1"), [0, 1, 0, 2]),
        # Operators of a run may be fused with those of a later one.
        (("[exp]", "product", "[mul]"), ("product", "fused_region_0_exp_region_1_mul"), [0, 1, 2]),
        ((), (), []),
    ],
)
def test_every_call_belongs_to_its_step(steps, names, expected):
    assert times_of(report_of(*steps), *names) == expected


def test_the_runs_of_later_functions_of_a_module_are_numbered_on():
    report = report_of("[sort]", "product", "[flip]", first_region=3)
    assert times_of(report, "region_0_sort", "product", "region_4_flip") == [1, 2, 4]


def test_a_call_of_no_step_is_a_step_of_its_own():
    report = report_of("product", "softmax")
    times = step_times(report, [("reshape", 1.0), ("product", 2.0), ("reshape", 4.0), ("softmax", 8.0), ("add", 16.0)])
    assert [(time.step.origin, time.step.kernel, time.latency_us) for time in times] == [
        ("reshape", None, 1.0), ("layer", "product", 2.0), ("reshape", None, 4.0), ("layer", "softmax", 8.0),
        ("add", None, 16.0),
    ]  # fmt: skip


def test_shares_are_of_all_steps_and_equal_operators_together():
    def time(origin, kernel, latency_us):
        return StepTime(StepReport(origin, kernel), latency_us)

    times = [time("sort", None, 1), time("1", "product", 5), time("flip", None, 3), time("sort", None, 1)]
    assert list(fallback_shares(times).items()) == [("flip", 0.3), ("sort", 0.2)]
    assert fallback_shares([time("1", "product", 5)]) == {}
    assert fallback_shares([time("sort", None, 0)]) == {"sort": 0}
    assert fallback_shares([]) == {}


class Mixed(nn.Module):
    """Kernels and runs of other operators in turns; the run before `b` uses a loop of the one before it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 8)

    def forward(self, x):
        y = self.b(torch.cumsum(self.a(x), -1) + 1)
        values, indices = torch.sort(torch.cumsum(y, -1), -1)
        return self.c(values).reshape(-1), indices, x.flip(0)


def test_a_network_is_profiled_step_by_step_and_computes_the_same_afterwards(tmp_path):
    x = image(2, 5, 16)
    network = compile_model(seeded(Mixed()), (x,))
    before = network(x)
    network.save(tmp_path / "network.so")
    for compiled in (network, load_network(tmp_path / "network.so")):
        times = compiled.profile(x, repeats=2)
        assert tuple(time.step for time in times) == network.report.steps
        assert all(time.latency_us > 0 for time in times)
        assert fallback_shares(times).keys() == set(network.report.fallbacks)
        assert 0 < sum(fallback_shares(times).values()) < 1
        assert all(torch.equal(ours, first) for ours, first in zip(compiled(x), before))


def test_each_batch_size_has_steps_of_its_own():
    model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8), nn.Softmax(-1)).eval()
    network = pruneaug.compile(model, (image(1, 16),), batch_sizes=[1, 4], threads=1)
    kernels = [[time.step.kernel for time in network.profile(image(size, 16), repeats=1)] for size in (1, 4)]
    assert kernels[0].count("vector product") == kernels[1].count("product") == 2
    assert [step.kernel for step in network.report.steps] == kernels[0]
    assert all(time.latency_us > 0 for time in network.profile(image(4, 16), repeats=1))


def test_arrays_are_profiled_too_and_bad_arguments_refused():
    network = compile_model(seeded(Model(lambda m, x: m["l"](x), l=nn.Linear(16, 24))), (image(3, 16),))
    assert [time.step.origin for time in network.profile(image(3, 16).numpy(), repeats=1)].count("layers.l") == 1
    with pytest.raises(InputError, match="`repeats` must be at least 1, but got 0"):
        network.profile(image(3, 16), repeats=0)
    with pytest.raises(InputError, match=r"it was compiled for, .* but got \(float32 \[4, 16\]\)"):
        network.profile(image(4, 16))
