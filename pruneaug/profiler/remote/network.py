"""Measuring whole networks on a remote device: compiled here, run and timed there, in turns."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pruneaug.errors import DeviceError
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.network import (
    LARGEST_ERROR,
    ROUNDS,
    START_S,
    NetworkTime,
    Progress,
    Subject,
    network_time,
    setup_of,
    store_program,
)
from pruneaug.profiler.process import worker_environment
from pruneaug.profiler.turns import LEAST
from pruneaug.spec.platform import RemoteSpec


def time_remotely(
    subjects: Sequence[Subject],
    platform: Platform,
    remote: RemoteSpec,
    *,
    rounds: int = ROUNDS,
    turn_s: float = 0.25,
    progress: Progress | None = None,
) -> tuple[NetworkTime, ...]:
    """Time networks of our own runtime on the device, in `rounds` turns of about `turn_s` seconds of its time.

    As `time_networks`: a network that is not compiled, does not run or computes something else becomes a result with an
    error, and is not saved. Without rounds they are only compiled, checked on the device and saved. Which operators
    have no kernel, and whether the device was quiet, is not told. Raises DeviceError if the device is lost.
    """
    with tempfile.TemporaryDirectory(prefix="pruneaug-") as folder, _Device(platform, remote) as device:
        programs: dict[int, dict[str, str]] = {}  # subjects of the same program share its files
        errors: dict[int, str] = {}
        accuracy: dict[int, float] = {}
        times: dict[int, list[float]] = {}
        total = len(subjects) + rounds

        def tell(done: int, note: str) -> None:
            if progress is not None:
                progress(done, total, note)

        for index, subject in enumerate(subjects):
            tell(index, f"compiling for {subject.runtime} on the device")
            key = id(subject.program)
            if key not in programs:
                programs[key] = store_program(subject.program, Path(folder) / str(len(programs)))
            setup = setup_of(subject, platform, Path(folder) / f"masks{index}.safetensors")
            answer = device.asked({"compile": programs[key] | setup}, START_S)
            if "error" in answer:
                errors[index] = answer["error"]
        for index in [i for i in range(len(subjects)) if i not in errors]:
            answer = device.asked({"check": index}, START_S)
            if "error" in answer:
                errors[index] = answer["error"]
                continue
            accuracy[index] = answer["max_relative_error"]
            if not accuracy[index] <= LARGEST_ERROR:
                errors[index] = (
                    f"its outputs' relative error must be at most {LARGEST_ERROR:g}, but is {accuracy[index]:g} on the "
                    "device; please report it"
                )
        good = [index for index in range(len(subjects)) if index not in errors]
        for done in range(rounds if good else 0):
            tell(len(subjects) + done, "measuring on the device")
            for index in good:
                turn = {"time": index, "seconds": turn_s, "least": LEAST}
                times.setdefault(index, []).extend(device.asked(turn, START_S + turn_s)["times_us"])
        unsaved = {index: device.save(index, subjects[index].save_to) for index in good}
        tell(total, "")
        return tuple(
            replace(
                network_time(subject.runtime, times.get(index, []), accuracy.get(index), errors.get(index)),
                save_error=None if subject.save_to is None else unsaved.get(index, errors.get(index)),
            )
            for index, subject in enumerate(subjects)
        )


class _Device:
    """The process that speaks with the device."""

    def __init__(self, platform: Platform, remote: RemoteSpec) -> None:
        self._remote = remote
        command = [sys.executable, "-m", "pruneaug.profiler.remote.network_worker"]
        self._process = LineProcess(command, worker_environment(platform.threads))
        self._process.send({"platform": platform.to_json(), "remote": remote.model_dump(mode="json")})

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def save(self, number: int, path: Path | None) -> str | None:
        """Write a network's library to a file; the error, or None."""
        if path is None:
            return None
        error: str | None = self.asked({"save": number, "to": str(path)}, START_S)["error"]
        return error

    def asked(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a request. Raises DeviceError if the device is lost."""
        try:
            self._process.send(request)
            answer: dict[str, Any] = json.loads(self._process.read(limit_s + 5 * self._remote.timeout_s))
        except ProcessEnded as ended:
            raise DeviceError(
                f"the process that measures on the device at {self._remote.address} {ended}; run it again"
            ) from None
        if "stopped" in answer:
            raise DeviceError(answer["stopped"])
        return answer
