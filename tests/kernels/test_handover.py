import pytest
import torch

from pruneaug.kernels.build import Builder, CpuTarget
from pruneaug.kernels.handover import handover_call


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_part_is_what_the_next_thread_had(threads):
    target = CpuTarget(lanes=8, registers=16, threads=threads)
    call = handover_call(target)
    x = torch.rand(call.size)
    y = Builder(target).run(call, x)
    assert torch.equal(y, x.view(threads, -1).roll(-1, 0).flatten())
