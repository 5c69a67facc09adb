import numpy as np
import pytest
import torch

from pruneaug.kernels.build import Builder, CpuTarget
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.peak import multiply_adds


@pytest.mark.parametrize(("lanes", "accumulators", "tasks"), [(16, 24, 2), (8, 12, 1), (4, 3, 2)])
def test_the_peak_is_that_of_multiply_adds_which_are_all_computed(lanes, accumulators, tasks):
    steps = 5
    size = accumulators * lanes
    call = KernelCall("peak", multiply_adds(tasks, accumulators, lanes, steps), (), tasks * size)
    y = Builder(CpuTarget(lanes=lanes, registers=32, threads=2)).run(
        call, torch.tensor([0.5, 1.0]).repeat_interleave(lanes)
    )
    expected = np.arange(size, dtype=np.float64)
    for _ in range(steps):
        expected = expected * 0.5 + 1.0
    np.testing.assert_allclose(y.numpy(), np.tile(expected, tasks), rtol=1e-6)
