import pytest
import torch

from pruneaug.kernels.build import Builder, CpuTarget
from pruneaug.kernels.handover import SECOND_CACHE, THIRD_CACHE, handover_call


@pytest.mark.parametrize(("threads", "part"), [(1, SECOND_CACHE), (2, THIRD_CACHE), (3, SECOND_CACHE)])
def test_each_part_is_what_the_next_thread_had(threads, part):
    target = CpuTarget(lanes=8, registers=16, threads=threads)
    call = handover_call(target, part)
    assert call.size == threads * part
    x = torch.rand(call.size)
    y = Builder(target).run(call, x)
    assert torch.equal(y, x.view(threads, -1).roll(-1, 0).flatten())
