"""The CPU's measured peak, and the process that measures it."""

from __future__ import annotations

import json
import sys

from pruneaug.platforms.platform import Platform
from pruneaug.profiler.lines import LineProcess
from pruneaug.profiler.process import worker_environment
from pruneaug.profiler.worker import claim_stdout, die_with_parent

_LONGEST_S = 180.0  # imports of compilers take long on a busy machine


def measure_peak(platform: Platform) -> float:
    """GFLOP/s of float32 multiply-adds on registers alone, by the platform's threads.

    Raises MeasurementError if the measuring process fails.
    """
    command = [sys.executable, "-m", "pruneaug.profiler.peak"]
    with LineProcess(command, worker_environment(platform.threads)) as process:
        process.send(platform.kernel_target())
        return float(json.loads(process.read(_LONGEST_S))["gflops"])


def main() -> None:
    die_with_parent()
    with claim_stdout() as out:
        from pruneaug.kernels.build import Builder, CpuTarget
        from pruneaug.kernels.peak import peak_gflops

        target = CpuTarget(**json.loads(sys.stdin.readline()))
        out.write(json.dumps({"gflops": peak_gflops(Builder(target))}) + "\n")


if __name__ == "__main__":
    main()
