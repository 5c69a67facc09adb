"""Whether the machine is quiet: kernels that take always the same time on cores that are free.

As a program it is a process that runs them for others: a line on stdin asks, a line on stdout gives the seconds.
Networks are timed in processes of their own, whose thread pools a probe's would disturb.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pruneaug.network.ops import LinearOp
from pruneaug.platforms.detect import is_virtual
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.placement import draw_together, place_threads
from pruneaug.profiler.process import worker_environment
from pruneaug.profiler.timing import LONGEST_WAIT_S, Probe
from pruneaug.profiler.worker import claim_stdout, die_with_parent

if TYPE_CHECKING:
    from pruneaug.kernels.build import Builder

_LIMITS = 1.2, 1.2, 2.5, 1.5  # of the network's probe: hand-overs in a cache differ by up to 2, beyond it by 4 and more
_ARITHMETIC, _HANDOVER = 0, 2  # the places of multiply-adds, and of the hand-over from core to core, among its calls
_REST_S = 0.02  # before and after it runs: the spinning threads of the last process must have gone to sleep
_STEPS = 5_000  # some 15 microseconds
_WARM_UP = 200
_RUNS = 20  # for one answer: the threads have slept since the last one
_LONGEST_S = 180.0  # imports of compilers take long on a busy machine


def kernel_probe(builder: Builder) -> Probe:
    """Multiply-adds on registers and a small sparse product, in this process, by all threads of the builder's target.

    Either may be disturbed alone: by who computes, and by who loads, on the same cores.
    """
    return _warm(Probe(_multiply_adds(builder), _sparse_product(builder)), builder.target.threads)


def network_probe(builder: Builder) -> Probe:
    """The same, and threads that read what others wrote, as from layer to layer: little of it, and much.

    A virtual machine's cores move: for seconds they may be where they share no cache. And others on the same host may
    fill the last one.
    """
    from pruneaug.kernels.handover import SECOND_CACHE, THIRD_CACHE

    handovers = (_handover(builder, part) for part in (SECOND_CACHE, THIRD_CACHE))
    calls = _multiply_adds(builder), _sparse_product(builder), *handovers
    return _warm(Probe(*calls, limits=_LIMITS), builder.target.threads)


def _warm(probe: Probe, threads: int) -> Probe:
    for _ in range(_WARM_UP):
        probe.run()
    place_threads(probe.run, threads)
    return probe


def _multiply_adds(builder: Builder) -> Callable[[], object]:
    import torch

    from pruneaug.kernels.build import memory
    from pruneaug.kernels.peak import peak_call

    call, factors = peak_call(builder.target, _STEPS)
    kernel, x, y = builder.bound(call), memory(factors), memory(torch.empty(call.size))
    return lambda: kernel(x, y)


def _handover(builder: Builder, part: int) -> Callable[[], object]:
    import torch

    from pruneaug.kernels.build import memory
    from pruneaug.kernels.handover import handover_call

    call = handover_call(builder.target, part)
    kernel, x, y = builder.bound(call), memory(torch.zeros(call.size)), memory(torch.zeros(call.size))

    def to_and_fro() -> None:
        kernel(x, y)
        kernel(y, x)

    return to_and_fro


def _sparse_product(builder: Builder) -> Callable[[], object]:
    """Some 20 microseconds of a kernel that loads as much as it computes, from the caches of one core."""
    from pruneaug.kernels.layers import LayerKernel
    from pruneaug.kernels.variants import candidates
    from pruneaug.kernels.weights import Weights
    from pruneaug.profiler.op_data import OpData
    from pruneaug.sparsity.patterns import Block

    op, block, sparsity = LinearOp(tokens=128, in_features=128, out_features=512), Block(16, 1), 0.5
    data, target = OpData(op), builder.target
    (variant,) = candidates(
        op, block.rows, sparsity, lanes=target.lanes, registers=target.registers, threads=target.threads, most=1
    )
    product = LayerKernel(op, Weights(data.matrix, data.mask(block, sparsity, 0), data.bias), variant, builder)
    tokens = product.prepare(data.x)
    return lambda: product(tokens)


class ProbeProcess(Probe):
    """A probe in a process of its own, which starts at once and is waited for by the first run.

    A virtual machine's CPUs may lie apart from the first run to the last, which then has nothing to compare with. But
    CPUs of one cache take about as long for the hand-over as for the multiply-adds: 13 and 15 microseconds of a Zen 5,
    34 and 35 of a Zen 4, apart 52 and 150. So it counts as slow there until waiting has shown that they stay apart.
    """

    fastest: ClassVar[dict[str, list[float]]] = {}  # by target: what an earlier probe has seen holds for the next
    apart: ClassVar[set[str]] = set()  # targets whose CPUs stayed apart as long as a measurement waits

    def __init__(self, platform: Platform) -> None:
        super().__init__(limits=_LIMITS)
        self._target = json.dumps(platform.kernel_target(), sort_keys=True)
        self._fastest_s = self.fastest.setdefault(self._target, [float("inf")] * len(_LIMITS))
        self._threads = platform.threads
        command = [sys.executable, "-m", "pruneaug.profiler.probe"]
        self._process = LineProcess(command, worker_environment(platform.threads))
        self._process.send(platform.kernel_target())

    def close(self) -> None:
        self._process.close()

    def slownesses(self, run: Sequence[float]) -> list[float]:
        """See Probe; of the hand-over also as a multiple of the multiply-adds, as above."""
        found = super().slownesses(run)
        if is_virtual() and self._target not in self.apart:
            together = self._fastest_s[_ARITHMETIC] * _LIMITS[_HANDOVER]
            found[_HANDOVER] = max(found[_HANDOVER], run[_HANDOVER] / together)
        return found

    def wait(self) -> tuple[float, ...]:
        """See Probe; CPUs that do not come together are this machine's nature from then on."""
        seconds = super().wait()
        if self._waited_s >= LONGEST_WAIT_S and self.slownesses(seconds)[_HANDOVER] > 1:
            self.apart.add(self._target)
        return seconds

    def settle(self, seconds: float, run: Sequence[float]) -> None:
        """Give the machine so long to become quiet, and CPUs that lie apart a reason to come together."""
        if self.slownesses(run)[_HANDOVER] > 1:
            draw_together(self._threads, seconds)
        else:
            time.sleep(seconds)

    def run(self) -> tuple[float, ...]:
        """Seconds of each call, the medians of several; all quiet once the process has ended.

        It only serves other measurements: these go on without it.
        """
        try:
            time.sleep(_REST_S)
            self._process.send({})
            seconds = json.loads(self._process.read(_LONGEST_S))["seconds"]
            time.sleep(_REST_S)
            return self.noted(seconds)
        except ProcessEnded:
            return (0.0,) * len(_LIMITS)


def main() -> None:
    die_with_parent()
    with claim_stdout() as out:
        from pruneaug.kernels.build import Builder, CpuTarget

        probe = network_probe(Builder(CpuTarget(**json.loads(sys.stdin.readline()))))
        for _ in sys.stdin:
            seconds = np.median([probe.run() for _ in range(_RUNS)], axis=0).tolist()
            out.write(json.dumps({"seconds": seconds}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
