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
    """GFLOP/s of multiply-adds in the platform's dtype on registers alone, by its threads.

    Raises MeasurementError if the measuring process fails.
    """
    command = [sys.executable, "-m", "pruneaug.profiler.peak"]
    with LineProcess(command, worker_environment(platform.threads)) as process:
        process.send({"dtype": platform.dtype, "target": platform.kernel_target()})
        return float(json.loads(process.read(_LONGEST_S))["gflops"])


def main() -> None:
    die_with_parent()
    with claim_stdout() as out:
        from pruneaug.kernels.build import Builder, CpuTarget
        from pruneaug.kernels.lowp.formats import FORMATS
        from pruneaug.kernels.lowp.peak import peak_gops
        from pruneaug.kernels.peak import peak_gflops

        asked = json.loads(sys.stdin.readline())
        builder, form = Builder(CpuTarget(**asked["target"])), FORMATS.get(asked["dtype"])
        out.write(json.dumps({"gflops": peak_gflops(builder) if form is None else peak_gops(builder, form)}) + "\n")


if __name__ == "__main__":
    main()
