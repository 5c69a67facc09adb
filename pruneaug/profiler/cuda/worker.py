"""The process that measures on a GPU: tasks in on stdin, records out on stdout, one JSON line each.

A process of its own, because a kernel that reads a wrong address ends the use of the GPU for its whole process, and one
that hangs is ended with it. Besides records it writes events: "ready" with the GPU, or "stopped" with the reason why
there is none; "trying" with a subject before it is run, or with none before all are timed; after each task "done".

A task is of kernels, or of whole networks, in a file that holds `GpuNetworks`. Of these it tells "progress", "network"
with the time of each, and "warnings", or "refused" with the reason why they cannot be loaded.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import platform as python
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.profiler.cuda.cases import Group, Subject
from pruneaug.profiler.cuda.device import Device
from pruneaug.profiler.cuda.measure import Trying, measure_group
from pruneaug.profiler.local_gpu import GpuNetworks, LocalGpu
from pruneaug.profiler.worker import claim_stdout, die_with_parent


def serve(tasks: TextIO, records: TextIO, device: Device) -> None:
    """Measure each task until the input ends. Raises RuntimeError when the GPU takes no more from this process."""
    _say(records, {"event": "ready", "gpu": asdict(device.gpu)})
    for line in tasks:
        task = json.loads(line)
        (_time_networks if "networks" in task else _measure_kernels)(task, records, device)
        _say(records, {"event": "done"})


def _measure_kernels(task: Mapping[str, Any], records: TextIO, device: Device) -> None:
    group, folder = Group.from_json(task["group"]), ProgramFolder(Path(task["kernels"]))
    subjects = [Subject(*pair) for pair in task["subjects"]]
    with torch.inference_mode():
        for step in measure_group(group, subjects, device, folder, budget_s=task["budget_s"]):
            if isinstance(step, Trying):
                subject = step.subject
                _say(records, {"event": "trying", "subject": subject and [subject.library, subject.variant]})
            else:
                _say(records, {"event": "record", "record": step.to_json()})


def _time_networks(task: Mapping[str, Any], records: TextIO, device: Device) -> None:
    def tell(done: int, total: int, note: str) -> None:
        _say(records, {"event": "progress", "done": done, "total": total, "note": note})

    try:
        networks = _unpacked(Path(task["networks"]), task["python"])
    except InputError as error:
        return _say(records, {"event": "refused", "error": str(error)})
    gpu = LocalGpu(folder=task["kernels"], make_device=lambda _: device)
    for time in networks.time(gpu, tell):
        _say(records, {"event": "network", "time": asdict(time)})
    return _say(records, {"event": "warnings", "warnings": list(gpu.warnings())})


def _unpacked(path: Path, version: str) -> GpuNetworks:
    """The networks that another machine has pickled, with their code, by this version of Python.

    Raises InputError, which goes on from the words for this machine, if they cannot be loaded here.
    """
    here = python.python_version()
    if here.split(".")[:2] != version.split(".")[:2]:
        raise InputError(f"must have Python {version.rpartition('.')[0]}, as the one that sends them, but has {here}")
    try:
        networks: GpuNetworks = pickle.loads(path.read_bytes())
    except Exception as error:  # of other versions of packages, whatever they raise
        raise InputError(
            "must have the packages of the network, in the versions of the machine that sends it, but "
            f"{type(error).__name__}: {error}; install the same there"
        ) from error
    return networks


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure tasks from stdin, write records to stdout.")
    parser.add_argument("--device", required=True, help="package.module:attr that makes a device from its number")
    parser.add_argument("--index", required=True, type=int, help="the number of the device")
    arguments = parser.parse_args()
    module, _, attribute = arguments.device.partition(":")
    die_with_parent()
    with claim_stdout() as records:
        make: Callable[[int], Device] = getattr(importlib.import_module(module), attribute)
        try:
            device = make(arguments.index)
        except InputError as error:
            _say(records, {"event": "stopped", "error": str(error)})
            return
        serve(sys.stdin, records, device)


def _say(records: TextIO, event: Mapping[str, Any]) -> None:
    records.write(json.dumps(event) + "\n")
    records.flush()


if __name__ == "__main__":
    main()
