"""A GPU that is not there, and a measuring process whose times are computed."""

import numpy as np

from pruneaug.errors import InputError
from pruneaug.platforms.cuda import Gpu
from pruneaug.profiler.cuda.records import failed, timed

GPU = Gpu("Fake GPU", "GPU-0", (8, 0), 108, 0, 1 << 30, driver="1.0", cuda="13.0")
STATE = {"sm_mhz": 1980.0, "held_down_by": ["power limit"]}


class ComputedProcess:
    """In place of the measuring process: times are a microsecond and what a subject's multiply-adds take.

    Kernels whose key holds a text of `broken` fail. `asked` are the groups and how many subjects each had.
    """

    asked, broken, gpu_here = [], [], GPU

    def __init__(self, kernels, *, index):
        self.kernels, self.index = kernels, index

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def gpu(self):
        if self.gpu_here is None:
            raise InputError("device 'cuda' needs a GPU that PyTorch can use, but there is none")
        return self.gpu_here

    def measure(self, group, subjects, gpu):
        self.asked.append((group, len(subjects)))
        for number, subject in enumerate(subjects):
            if any(part in subject.variant for part in self.broken):
                yield failed(group, subject, gpu, "told to fail")
                continue
            rate = 1e5 / (number + 1) if subject.variant else 4e5  # the first kernel is the fastest, the library faster
            us = 1 + group.op.macs * (1 - group.sparsity) / rate
            state = {"before": STATE, "during": STATE}
            yield timed(group, subject, gpu, np.array([us, us]), max_relative_error=1e-3, state=state)
