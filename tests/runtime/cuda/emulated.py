"""Our operator on the CPU: the emulator runs the very source that a GPU's compiler gets."""

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "cuda"))

from emulate import needs_gxx
from fake_driver import FakeApi, fake_program

from pruneaug.kernels.cuda.driver import Driver
from pruneaug.runtime.cuda.building import build_graph
from pruneaug.runtime.cuda.network import CudaNetwork
from pruneaug.runtime.cuda.operator import LoadedKernels, block_sparse, compute

__all__ = ["ARCH", "CPU", "KERNELS", "Recorded", "build", "needs_gxx", "on_cpu"]

CPU = torch.device("cpu")
ARCH = "sm_80"


class Recorded:
    """Calls instead of recording: what is repeated overwrites the first result, as a CUDA graph does."""

    def __init__(self):
        self.recorded = 0

    def record(self, call):
        self.recorded += 1
        results = call()

        def again():
            for held, new in zip(results, call(), strict=True):
                held.copy_(new)

        return again, results


KERNELS = LoadedKernels(lambda: Driver(FakeApi()), lambda: 0)
block_sparse.register_kernel("cpu")(partial(compute, KERNELS))


def on_cpu(graph, **options):
    """A built graph whose kernels the emulator runs."""
    programs = [fake_program(shape, ARCH) for shape in graph.shapes]
    return CudaNetwork(graph, programs, recorder=Recorded(), kernels=KERNELS, **options)


def build(model, inputs, masks, dtype="float32", **options):
    return build_graph(model, inputs, masks, dtype=dtype, arch=ARCH, device=CPU, **options)
