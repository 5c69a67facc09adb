"""What platform a remote device is."""

from __future__ import annotations

import json
import sys

from pruneaug.errors import DeviceError
from pruneaug.platforms.platform import Platform
from pruneaug.platforms.remote import DeviceFacts, device_warnings, remote_platform, tells_all
from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.process import worker_environment
from pruneaug.spec.platform import RemoteSpec

_START_S = 180.0  # imports of compilers take long on a busy machine


def detect_remote(remote: RemoteSpec, threads: int | None = None, name: str | None = None) -> Platform:
    """The platform of the device with `threads` threads (none: one per core).

    The device is asked unless `remote.hardware` says all. Raises DeviceError if it does not answer or facts are
    missing, SpecError for a name that is no folder name or for too many threads.
    """
    facts = DeviceFacts(None, None, {}) if tells_all(remote.hardware) else ask(remote)
    return remote_platform(remote.hardware, facts, threads, name)


def examine(
    remote: RemoteSpec, threads: int | None = None, name: str | None = None
) -> tuple[Platform, tuple[str, ...]]:
    """`detect_remote`, of a device that is asked in any case, and `warnings_of` it."""
    facts = ask(remote)
    return remote_platform(remote.hardware, facts, threads, name), device_warnings(facts)


def warnings_of(remote: RemoteSpec) -> tuple[str, ...]:
    """Reasons why times measured on the device may be wrong. Raises DeviceError if it does not answer."""
    return device_warnings(ask(remote))


def ask(remote: RemoteSpec) -> DeviceFacts:
    """What the device tells. Raises DeviceError if it does not answer."""
    command = [sys.executable, "-m", "pruneaug.profiler.remote.facts"]
    with LineProcess(command, worker_environment(1)) as process:
        process.send(remote.model_dump(mode="json"))
        try:
            answer = json.loads(process.read(_START_S + 4 * remote.timeout_s))
        except ProcessEnded as ended:
            raise DeviceError(f"the process that asks the device at {remote.address} {ended}; run it again") from None
    if "error" in answer:
        raise DeviceError(answer["error"])
    return DeviceFacts(**answer["facts"])
