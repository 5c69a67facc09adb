"""Kernel calls on targets of two vector widths, which both run on a CPU with AVX-512."""

import math
from functools import cache

import torch

from pruneaug.kernels.build import Builder, CpuTarget

LANES = (16, 8)


@cache
def builder_of(lanes):
    """One for all tests, so that each kernel is compiled once."""
    return Builder(CpuTarget(16, 32, threads=2) if lanes == 16 else CpuTarget(8, 16, threads=2, mcpu="haswell"))


def target_of(lanes):
    return builder_of(lanes).target


def run(lanes, call, *inputs):
    """The output of a call, which lay in NaN; what is before and behind it must stay as it was."""
    around = 16 * lanes
    memory = torch.full((call.size + 2 * around,), math.nan)
    memory[:around] = memory[-around:] = 7.0
    builder_of(lanes).bound(call)(*inputs, memory[around:-around])
    assert (memory[:around] == 7.0).all()
    assert (memory[-around:] == 7.0).all()
    return memory[around:-around].clone()


def assert_close(got, want, tolerance=1e-5):
    """`got` is `want` float64 but for an error that is small beside its norm."""
    assert got.shape == want.shape
    assert (got.double() - want).norm() <= tolerance * want.norm()
