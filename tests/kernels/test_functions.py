"""Activations in vectors against PyTorch in float64."""

import math
import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from targets import LANES, builder_of, run
from tvm.script import tirx as T

from pruneaug.kernels.build import CpuTarget, compile_function
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.functions import ACTIVATIONS, apply, preserves_zero
from pruneaug.kernels.vectors import prim_func

REFERENCES = {
    "none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "mish": F.mish, "elu": F.elu,
    "softplus": F.softplus, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "exp": torch.exp, "erf": torch.erf,
}  # fmt: skip
NAMES = sorted(ACTIVATIONS)
SPECIAL = torch.tensor(
    [0.0, -0.0, math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, -3e38, 1e-30, -1e-30, 0, 0, 0, 0, 0]
)


@cache
def kernel(name, count, lanes):
    """y[i] = name(x[i]) for i < count, a multiple of lanes."""

    def body(x, y):
        with T.serial(count // lanes) as i:
            at = T.ramp(i * lanes, 1, lanes) if lanes > 1 else i
            T.buffer_store(y, apply(name, x[at], lanes), [at])

    return prim_func(["float32", "float32"], body)


def computed(name, x, lanes):
    call = KernelCall(name, kernel(name, len(x), lanes), (), len(x))
    return run(16 if lanes == 1 else lanes, call, x)


def assert_accurate(got, want, absolute=1e-6):
    torch.testing.assert_close(got.double(), want, rtol=5e-7, atol=absolute, equal_nan=True)
    assert (got.double() - want).norm() <= 2e-7 * want.norm()


def test_every_activation_has_a_reference():
    assert set(REFERENCES) == ACTIVATIONS


def test_unknown_activations_are_refused():
    with pytest.raises(KeyError):
        apply("swish", T.float32(0), 1)


@pytest.mark.parametrize("lanes", [*LANES, 1])
@pytest.mark.parametrize("name", NAMES)
def test_values_near_zero(name, lanes):
    x = torch.linspace(-10, 10, 16000)
    assert_accurate(computed(name, x, lanes), REFERENCES[name](x.double()))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", NAMES)
def test_values_far_out(name, lanes):
    x = torch.cat([torch.linspace(-87, 88.7, 8000), torch.linspace(-3000, 3000, 8000)])
    got, want = computed(name, x, lanes), REFERENCES[name](x.double())
    finite = want.abs() < torch.finfo(torch.float32).max
    assert (got[~finite] == want[~finite].float()).all()
    assert_accurate(got[finite], want[finite])


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name, lanes):
    got, want = computed(name, SPECIAL, lanes), REFERENCES[name](SPECIAL.double()).float()
    if name == "gelu":  # PyTorch's is NaN at both infinities
        want = torch.where(SPECIAL.isinf(), SPECIAL.relu(), want)
    torch.testing.assert_close(got, want, rtol=5e-7, atol=1e-20, equal_nan=True)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", ["erf", "tanh", "sigmoid", "hardsigmoid"])
def test_bounded_functions_stay_in_their_bounds(name, lanes):
    y = computed(name, torch.linspace(-20, 20, 16000), lanes)
    assert y.max() == 1.0
    assert y.min() >= (0.0 if "sigmoid" in name else -1.0)


@pytest.mark.parametrize("name", NAMES)
def test_zero_stays_zero_where_it_is_said_to(name):
    y = computed(name, torch.zeros(16), 16)
    assert preserves_zero(name) == bool((y == 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_no_function_is_called_for_a_lane(name):
    aarch64 = CpuTarget(4, 32, threads=2, mcpu="neoverse-n1", triple="aarch64-linux-gnu")
    for target in (*(builder_of(lanes).target for lanes in LANES), aarch64):
        machine_code = compile_function(target, name, kernel(name, 64, target.lanes)).mod.inspect_source("asm")
        assert not re.search(r"\b(exp|erf|tanh|log|pow|floor|round)\w*(@PLT)?$", machine_code, re.MULTILINE)
