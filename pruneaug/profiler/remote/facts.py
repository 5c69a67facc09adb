"""The process that asks a device what it is: the section `remote` of a spec on stdin, facts on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

from pruneaug.errors import DeviceError, PruneaugError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.cross import Libraries
from pruneaug.platforms.remote import ARCHITECTURES, DeviceFacts, read_files
from pruneaug.profiler.remote.session import Session, lost, tried
from pruneaug.profiler.worker import claim_stdout, die_with_parent
from pruneaug.spec.platform import RemoteSpec

_TEXT_BYTES = 1 << 14  # /proc/cpuinfo may be longer: its first processor counts


def read_facts(session: Session, remote: RemoteSpec) -> DeviceFacts:
    """What the device of the session tells; less if its server has no compiler and the spec says no architecture.

    Raises DeviceError if it cannot load a library, ConnectionLostError, CompileError.
    """
    triple, mcpu = (_answer(session, f"target.llvm_get_system_{fact}") for fact in ("triple", "cpu"))
    told = (triple or "").partition("-")[0]
    arch = remote.hardware.arch or told
    if told and arch != told:
        raise DeviceError(
            f"platform.remote.hardware.arch must be the device's, {told}, but got {arch}; leave it out, or give the "
            "address of another device"
        )
    if arch not in ARCHITECTURES:
        return DeviceFacts(arch or None, mcpu, {})
    read = _reader(session, session.load(_libraries(arch, remote.compiler).facts()))
    return DeviceFacts(arch, None if mcpu == "generic" else mcpu, read_files(read))


@cache
def _libraries(arch: str, compiler: str | None) -> Libraries:
    return Libraries(CpuTarget(4, 32, 1, "generic", f"{arch}-unknown-linux-gnu"), compiler)


def _answer(session: Session, name: str) -> str | None:
    """What a function of the server says; None if there is none."""
    ask = session.function(name)
    with lost():
        return None if ask is None else str(ask())


def _reader(session: Session, library: Any) -> Callable[[str], str | None]:
    text = session.empty((_TEXT_BYTES,), "uint8")
    read = library["read_file"]

    def read_text(path: str) -> str | None:
        with lost():
            size = int(read(session.tensor(np.frombuffer(f"/{path}\0".encode(), np.uint8)), text))
            return None if size < 0 else text.numpy()[:size].tobytes().decode(errors="replace")

    return read_text


def _asked(remote: RemoteSpec) -> DeviceFacts:
    """What the device tells in a session of its own."""
    session = Session(remote, 2 * remote.timeout_s)
    try:
        return read_facts(session, remote)
    finally:
        session.close()


def main() -> None:
    die_with_parent()
    with claim_stdout() as out:
        remote = RemoteSpec.model_validate_json(sys.stdin.readline())
        try:
            answer: dict[str, Any] = {"facts": asdict(tried(remote, lambda: _asked(remote)))}
        except PruneaugError as error:
            answer = {"error": str(error)}
        out.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
