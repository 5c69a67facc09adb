"""Measuring whole networks: several runtimes in turns, each in its own process."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.export import ExportedProgram

from pruneaug.files import storage_errors
from pruneaug.network.layers import Network
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.network_worker import tensors_of
from pruneaug.profiler.probe import ProbeProcess
from pruneaug.profiler.process import worker_environment
from pruneaug.profiler.runtimes import RUNTIMES
from pruneaug.profiler.turns import LONGEST_TURN_S, TurnTaking
from pruneaug.runtime.plan import Plans

ROUNDS = 8
_PROBED_S = 0.5  # of turns; fewer are over before a probe would be ready
START_S = 600.0  # torch.compile of a large network takes minutes on few cores
LARGEST_ERROR = 1e-3  # float32 rounding adds up to some 1e-5 over a hundred layers; a wrong kernel is far above
_AT_ONCE = 3  # networks that are compiled side by side: a compiler uses one core, and not all of the time
_REPEATS = 20  # calls whose steps are timed one by one, at most

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """A network in a runtime of `RUNTIMES`, or by any other name in our own, with these plans and masks.

    `program` are the operators of `model`. `save_to` names a file for the compiled network of our own runtime: the very
    code that is measured.
    """

    runtime: str
    model: nn.Module
    program: ExportedProgram
    network: Network | None = None
    plans: Plans = field(default_factory=dict)
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    save_to: Path | None = None

    @property
    def is_ours(self) -> bool:
        return self.runtime not in RUNTIMES


@dataclass(frozen=True, slots=True)
class NetworkTime:
    """The measured time of one forward pass; `error` says why there is none.

    `max_relative_error` is norm(output - expected) / norm(expected) against PyTorch's operators on the same weights.
    `fallbacks` are the operators that have no kernel of ours, each run of them with its share of the time, the largest
    first; None if it is not known. `save_error` says why the compiled network was not saved, if it was to be.
    `disturbed`: the machine was not quiet in enough of its turns.
    """

    runtime: str
    latency_ms: float | None
    p10_ms: float | None
    p90_ms: float | None
    runs: int
    max_relative_error: float | None
    error: str | None = None
    fallbacks: Mapping[str, float] | None = None
    save_error: str | None = None
    disturbed: bool = False


def time_networks(
    subjects: Sequence[Subject],
    platform: Platform,
    *,
    rounds: int = ROUNDS,
    turn_s: float = 0.25,
    progress: Progress | None = None,
) -> tuple[NetworkTime, ...]:
    """Time the subjects on their programs' example inputs, in `rounds` interleaved turns of about `turn_s` seconds.

    A runtime that does not start, crashes, hangs or computes something else becomes a result with an error; the others
    go on. Networks that fail so are not saved. Without rounds they are only compiled, checked and saved.
    """
    with tempfile.TemporaryDirectory(prefix="pruneaug-") as folder, ExitStack() as stack:
        processes: dict[int, LineProcess] = {}
        probe = stack.enter_context(closing(ProbeProcess(platform))) if rounds * turn_s >= _PROBED_S else None
        programs: dict[int, dict[str, str]] = {}  # subjects of the same program share its files
        errors: dict[int, str] = {}
        accuracy: dict[int, float] = {}
        times: dict[int, list[float]] = {}
        disturbed: set[int] = set()
        starting: deque[tuple[int, LineProcess]] = deque()

        def receive() -> None:
            """From the first that was started: whether it computes what it should."""
            index, process = starting.popleft()
            try:
                accuracy[index] = float(json.loads(process.read(START_S))["max_relative_error"])
            except ProcessEnded as error:
                errors[index] = f"its process {error}"
                return
            if accuracy[index] <= LARGEST_ERROR:
                processes[index] = process
            else:
                errors[index] = (
                    f"its outputs' relative error must be at most {LARGEST_ERROR:g}, but is {accuracy[index]:g}; "
                    "please report it"
                )

        for index, subject in enumerate(subjects):
            if progress is not None:
                progress(index, len(subjects) + rounds, f"compiling for {subject.runtime}")
            process = stack.enter_context(_start(platform))
            try:
                key = id(subject.program)
                if key not in programs:
                    programs[key] = store_program(subject.program, Path(folder) / str(len(programs)))
                masks = Path(folder) / f"masks{index}.safetensors"
                process.send(programs[key] | setup_of(subject, platform, masks))
            except ProcessEnded as error:
                errors[index] = f"its process {error}"
                continue
            starting.append((index, process))
            if len(starting) == _AT_ONCE:
                receive()
        while starting:
            receive()
        if rounds:
            turns = TurnTaking(processes, probe, rounds, turn_s)
            done = 0
            while turns.go_on():
                if progress is not None:  # rounds in search of quiet ones come on top: the last step lasts as long
                    progress(len(subjects) + min(done, rounds - 1), len(subjects) + rounds, "measuring")
                turns.round()
                done += 1
            errors |= turns.errors
            times = {index: turns.times_us(index) for index in processes}
            disturbed = {index for index in processes if turns.is_disturbed(index)}
        ours = {index: process for index, process in processes.items() if subjects[index].is_ours}
        fallbacks = {index: _fallbacks(process, times[index], turn_s) for index, process in ours.items() if rounds}
        unsaved = {index: _save(process, subjects[index].save_to) for index, process in ours.items()}
        if progress is not None:
            progress(len(subjects) + rounds, len(subjects) + rounds, "")
        return tuple(
            replace(
                network_time(subject.runtime, times.get(index, []), accuracy.get(index), errors.get(index)),
                fallbacks=fallbacks.get(index),
                disturbed=index in disturbed,
                save_error=None if subject.save_to is None else unsaved.get(index, errors.get(index)),
            )
            for index, subject in enumerate(subjects)
        )


def _fallbacks(process: LineProcess, times_us: Sequence[float], turn_s: float) -> dict[str, float] | None:
    """The operators without a kernel, and their shares of the time, in about `turn_s` seconds.

    None if that breaks the process: the times are known already.
    """
    repeats = int(turn_s * 1e6 / float(np.median(times_us)))
    try:
        process.send({"repeats": min(max(repeats, 1), _REPEATS)})
        return dict(json.loads(process.read(LONGEST_TURN_S))["fallbacks"])
    except ProcessEnded:
        return None


def _save(process: LineProcess, path: Path | None) -> str | None:
    """Let the process save its network; the error, or None."""
    if path is None:
        return None
    try:
        process.send({"save": str(path)})
        error: str | None = json.loads(process.read(START_S))["error"]
    except ProcessEnded as ended:
        return f"its process {ended}"
    return error


def _start(platform: Platform) -> LineProcess:
    command = [sys.executable, "-m", "pruneaug.profiler.network_worker"]
    return LineProcess(command, worker_environment(platform.threads))


def store_program(program: ExportedProgram, folder: Path) -> dict[str, str]:
    """Write the program, and what it computes on its example inputs, into a new `folder`, and say where they are."""
    data = io.BytesIO()  # torch's own writer aborts the whole process where the disk is full
    torch.export.save(program, data)
    inputs, _ = program.example_inputs
    with torch.inference_mode():
        output = program.module(check_guards=False)(*inputs)
    expected = {str(i): y.contiguous().clone() for i, y in enumerate(tensors_of(output))}
    with storage_errors(folder):
        folder.mkdir()
        (folder / "program.pt2").write_bytes(data.getbuffer())
        (folder / "expected.safetensors").write_bytes(save(expected))
    return {
        "program": str(folder / "program.pt2"),
        "expected": str(folder / "expected.safetensors"),
        "output_module": type(output).__module__,
    }


def setup_of(subject: Subject, platform: Platform, masks: Path) -> dict[str, Any]:
    """What else the process needs to know; its masks are written to the file `masks`."""
    if subject.masks:
        data = save({name: mask.contiguous() for name, mask in subject.masks.items()})
        with storage_errors(masks):
            masks.write_bytes(data)
    layers = () if subject.network is None else subject.network.layers
    return {
        "runtime": subject.runtime,
        "threads": platform.threads,
        "masks": str(masks) if subject.masks else None,
        "layers": [
            {"name": layer.name, "op": layer.op.key, "variant": subject.plans.get(layer.name, "")} for layer in layers
        ],
        "target": platform.kernel_target(),
    }


def network_time(runtime: str, times_us: list[float], accuracy: float | None, error: str | None) -> NetworkTime:
    if error is not None or not times_us:
        return NetworkTime(runtime, None, None, None, 0, accuracy, error or "it was not measured")
    p10, median, p90 = (float(value) / 1e3 for value in np.percentile(times_us, (10, 50, 90)))
    return NetworkTime(runtime, median, p10, p90, len(times_us), accuracy)
