"""The process that stands for the measuring process of a GPU on another machine: it passes tasks and events on.

Its first line on stdin tells of which GPU; then it speaks as `pruneaug.profiler.cuda.worker` does. Kernels of a task
are uploaded before it. It has more events, each the last one: "ended" if the measuring process has crashed or hangs,
"lost" if the session has ended, "refused" if there is none or the machine cannot be used; all with the error.
"""

from __future__ import annotations

import json
import math
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneaug.errors import DeviceError, StorageError
from pruneaug.files import atomic_file
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import parse_shape
from pruneaug.profiler.cuda.process import START_S, gpu_of
from pruneaug.profiler.network import START_S as NETWORK_S
from pruneaug.profiler.remote.gpu_server import FUNCTIONS, PREFIX, versions
from pruneaug.profiler.remote.session import ConnectionLostError, Session, Value, in_time, lost, reason, tried
from pruneaug.profiler.worker import claim_stdout, die_with_parent
from pruneaug.spec.platform import RemoteSpec

SERVER = "python device_server.py --gpu"
_WAIT_S = 1.0  # of a call, for an event
_SHOWS_LIFE = 4  # times within timeout_s
_NETWORKS = "networks"  # their file in the session's folder
_PART_BYTES = 1 << 22  # of a file, at once: each call ends within timeout_s

Event = dict[str, Any]


class RemoteGpu:
    """A session with the measuring process of a GPU of another machine; `ready` is the first event of that process.

    Raises DeviceError if the server does not measure on GPUs, or by another version of pruneaug. All methods raise
    ConnectionLostError, also where there is no answer within `timeout_s`.
    """

    def __init__(self, remote: RemoteSpec, device: str, index: int) -> None:
        self._remote = remote
        self._session = Session(remote, None, server=SERVER)
        self._functions = {name: self._function(name) for name in FUNCTIONS}
        self._uploaded: set[str] = set()
        self._check(json.loads(self._call("versions")))
        self._call("start", device, index, 2 * remote.timeout_s)
        self.ready = self._event(START_S)

    def measure(self, task: Mapping[str, Any]) -> Iterator[Event]:
        """The events of a task: "done" is the last one, or "ended" or "refused"."""
        return self._time_networks(task) if "networks" in task else self._measure_kernels(task)

    def _measure_kernels(self, task: Mapping[str, Any]) -> Iterator[Event]:
        keys = [variant for _, variant in task["subjects"] if variant]
        self._in_time(lambda: self._upload(keys, ProgramFolder(Path(task["kernels"]))))
        self._call("send", json.dumps({**task, "kernels": "."}))  # the session's folder
        yield from self._events(self._remote.timeout_s)

    def _time_networks(self, task: Mapping[str, Any]) -> Iterator[Event]:
        """Of networks that are built there, which takes minutes; those that are to be saved are fetched."""
        self._in_time(lambda: self._upload(task["shapes"], ProgramFolder(Path(task["kernels"]))))
        size = (path := Path(task["networks"])).stat().st_size
        with path.open("rb") as file:
            while data := file.read(_PART_BYTES):
                self._call("append", _NETWORKS, data)
                yield {"event": "progress", "done": file.tell(), "total": size, "note": "sending the networks"}
        self._call("send", json.dumps({"networks": _NETWORKS, "python": task["python"], "kernels": "."}))
        saved = iter(task["saved"])  # of each network its file there and here, or none
        for event in self._events(NETWORK_S):
            if event["event"] == "refused":
                event["error"] = f"the machine at {self._remote.address} {event['error']}"
            elif event["event"] == "network" and (files := next(saved)) is not None:
                event["time"]["save_error"] = event["time"]["save_error"] or self._fetched(*files)
            yield event

    def _fetched(self, name: str, path: str) -> str | None:
        """Copy a file of the session's folder to this machine; the error, or None."""
        try:
            with atomic_file(path) as part, part.open("wb") as file:
                while data := self._part(name, file.tell()):
                    file.write(data)
        except StorageError as error:
            return str(error)
        return None

    def _part(self, name: str, start: int) -> bytes:
        return self._in_time(lambda: bytes(self._functions["part"](name, start, _PART_BYTES)))

    def _events(self, silence_s: float) -> Iterator[Event]:
        while True:
            yield (event := self._event(silence_s))
            if event["event"] in ("done", "ended", "refused"):
                return

    def show_life(self) -> None:
        """Keep the session, which ends when nothing is asked of it."""
        self._call("versions")

    def _check(self, theirs: Mapping[str, str]) -> None:
        if different := differences(versions(), theirs):
            raise DeviceError(
                f"the machine at {self._remote.address} must have this version of pruneaug, but has another: "
                f"{'; '.join(different)}; install the same on both, and start its server again"
            )

    def _upload(self, keys: Sequence[str], folder: ProgramFolder) -> None:
        """Upload those kernels that the session has not; a kernel that the folder lacks will be an error there."""
        arch = gpu_of(self.ready).arch
        for key in keys:
            if key not in self._uploaded:
                for path in folder.files(parse_shape(key), arch):
                    if path.exists():
                        self._session.upload(path, path.name)
                self._uploaded.add(key)

    def _event(self, silence_s: float) -> Event:
        """The next event; "ended" after a silence."""
        wait_s = min(_WAIT_S, self._remote.timeout_s / _SHOWS_LIFE)
        for _ in range(math.ceil(silence_s / wait_s)):
            if line := self._call("read", wait_s):
                return dict(json.loads(line))
        return {"event": "ended", "error": f"hung: it gave no result within {silence_s:g} s"}

    def _function(self, name: str) -> Any:
        function = self._in_time(lambda: self._session.function(PREFIX + name))
        if function is None:
            raise DeviceError(
                f"the server at {self._remote.address} must measure on a GPU, but it was not started for that; start "
                f"it with `{SERVER}`"
            )
        return function

    def _call(self, name: str, *arguments: Any) -> str:
        """What a function of the server returns."""
        return self._in_time(lambda: str(self._functions[name](*arguments)))

    def _in_time(self, call: Callable[[], Value]) -> Value:
        try:
            with lost():
                return in_time(call, self._remote.timeout_s)
        except TimeoutError:
            raise ConnectionLostError(f"no answer within timeout_s, {self._remote.timeout_s:g} s") from None


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """A readable line for each version that is not the same."""
    return [
        f"{what}: {version} here, {theirs.get(what, 'none')} there"
        for what, version in ours.items()
        if theirs.get(what) != version
    ]


def first_event(gpu: RemoteGpu, address: str) -> Event:
    """What the machine says at the beginning; that there is no GPU is an error of the remote machine."""
    if gpu.ready["event"] == "stopped":
        return {"event": "refused", "error": f"on the machine at {address} {gpu.ready['error']}"}
    return gpu.ready


def serve(tell: Callable[[Event], None], told: Mapping[str, Any]) -> None:
    """Begin a session, then measure what stdin asks for until it or the session ends."""
    remote = RemoteSpec.model_validate(told["remote"])
    gpu = tried(remote, lambda: RemoteGpu(remote, told["device"], told["index"]))
    tell(first_event(gpu, remote.address))
    period_s = remote.timeout_s / _SHOWS_LIFE
    while True:
        # The parent sends a task when the one before is done: no other line waits in a buffer.
        if not select.select([sys.stdin], [], [], period_s)[0]:
            gpu.show_life()
            continue
        line = sys.stdin.readline()
        if not line:
            return
        for event in gpu.measure(json.loads(line)):
            tell(event)


def main() -> None:
    die_with_parent()
    with claim_stdout() as out:

        def tell(event: Event) -> None:
            out.write(json.dumps(event) + "\n")
            out.flush()

        try:
            serve(tell, json.loads(sys.stdin.readline()))
        except ConnectionLostError as error:
            tell({"event": "lost", "error": str(error)})
        except DeviceError as error:
            tell({"event": "refused", "error": str(error)})
        except Exception as error:
            tell({"event": "refused", "error": f"the session with the machine failed: {reason(error)}"})


if __name__ == "__main__":
    main()
