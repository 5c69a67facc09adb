"""A session on a device: TVM's RPC with bounded waits, and errors that name the address."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tvm
from tvm import rpc
from tvm.rpc import base

from pruneaug.errors import DeviceError
from pruneaug.spec.platform import RemoteSpec

TRIES = 3
_PAUSE_S = 2.0  # between two of them: a server takes a moment to notice that a session has ended
_NO_MAGIC = b"\0\0\0\0"  # a server hangs up at once on whoever begins so

_TIMED_OUT = "RPCSessionTimeoutError"
_LOST = ("Socket SockChannel", "code == RPCCode::kReturn")  # the socket, and the server's last words

PLAIN_SERVER = "python -m tvm.exec.rpc_server"

Array = npt.NDArray[Any]
Value = TypeVar("Value")


class ConnectionLostError(Exception):
    """The connection ended within a session; another session may work. `timed_out`: the server ended it."""

    def __init__(self, message: str, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Session:
    """One connection to the device of `remote`, which the server ends after `limit_s`, if that is not None.

    `server` is the command that starts one there, for whom there is none. Raises DeviceError after a few tries.
    """

    def __init__(self, remote: RemoteSpec, limit_s: float | None, *, server: str = PLAIN_SERVER) -> None:
        self.opened = time.monotonic()
        self._rpc = _connect(remote, limit_s, server)
        self._cpu = self._rpc.cpu(0)
        self._names = (f"library{number}.so" for number in count())

    def close(self) -> None:
        """End the session; the device is free for others."""
        with contextlib.suppress(Exception):
            self._rpc.get_function("CloseRPCConnection")()

    def function(self, name: str) -> Any | None:
        """A function of the server; None if it has none of this name. Raises ConnectionLostError."""
        with lost():
            try:
                return self._rpc.get_function(name)
            except AttributeError:
                return None

    def load(self, library: Path) -> Any:
        """Upload a library and load it there. Raises DeviceError if the device cannot, ConnectionLostError."""
        name = next(self._names)
        self.upload(library, name)
        with lost():
            try:
                return self._rpc.load_module(name)
            except Exception as error:
                if is_lost(error):
                    raise
                raise DeviceError(
                    "the device must load libraries that were compiled for it, but it does not: "
                    f"{reason(error)}; check platform.remote.hardware.arch and .mcpu, and that the device has the same "
                    "TVM and no older C library than the compiler's"
                ) from error

    def upload(self, path: Path, name: str) -> None:
        """Copy a file into the session's folder there. Raises ConnectionLostError."""
        with lost():
            self._rpc.upload(bytearray(path.read_bytes()), name)

    def tensor(self, value: Array) -> Any:
        """A copy of the array on the device. Raises ConnectionLostError."""
        with lost():
            return tvm.runtime.tensor(np.ascontiguousarray(value), self._cpu)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """An array on the device. Raises ConnectionLostError."""
        with lost():
            return tvm.runtime.empty(shape, dtype, self._cpu)

    def use_threads(self, threads: int) -> None:
        """Let kernels of this session use so many threads. Raises DeviceError, ConnectionLostError."""
        configure = self.function("runtime.config_threadpool")
        if configure is None:
            raise DeviceError(
                "the device's server must have `runtime.config_threadpool`, but it has not; start TVM's own server: "
                f"{PLAIN_SERVER}"
            )
        with lost():
            configure(1, threads)

    @property
    def cpu(self) -> Any:
        """The device as TVM's functions take it."""
        return self._cpu


def tried(remote: RemoteSpec, begin: Callable[[], Value]) -> Value:
    """What `begin` returns, which begins with a session: again, a few times, if that ends at once.

    Raises DeviceError.
    """
    for left in reversed(range(TRIES)):
        try:
            return begin()
        except ConnectionLostError as error:
            if not left:
                raise DeviceError(
                    f"the device at {remote.address} must stay connected, but its session ended at once, {TRIES} "
                    f"times: {error}; look at the server's log"
                ) from error
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """Raises ConnectionLostError for the errors of a connection that ended."""
    try:
        yield
    except Exception as error:
        if is_lost(error):
            raise ConnectionLostError(reason(error), type(error).__name__ == _TIMED_OUT) from error
        raise


def is_lost(error: BaseException) -> bool:
    """Whether an error of TVM tells that the connection ended, and not that a function failed there."""
    kind, text = type(error).__name__, str(error)
    return isinstance(error, ConnectionLostError) or kind == _TIMED_OUT or any(words in text for words in _LOST)


def reason(error: BaseException) -> str:
    """The last words of an error of TVM, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-3:])[-500:] or type(error).__name__


def in_time(call: Callable[[], Value], limit_s: float) -> Value:
    """What `call` returns or raises. Raises TimeoutError after `limit_s`; the call then goes on in a thread."""
    found: list[Value | Exception] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _connect(remote: RemoteSpec, limit_s: float | None, server: str) -> rpc.RPCSession:
    failure = DeviceError("")
    for number in range(TRIES):
        if number:
            time.sleep(_PAUSE_S)
        try:
            return (_direct if remote.tracker_key is None else _requested)(remote, limit_s or 0.0)
        except DeviceError:
            raise
        except Exception as error:
            failure = DeviceError(
                f"platform.remote.address must be that of a device that answers, but after {TRIES} tries "
                f"{remote.address} does not: {reason(error)}; start its server there, `{server}`, and "
                "check that the network lets it through"
            )
    raise failure


def _direct(remote: RemoteSpec, limit_s: float) -> rpc.RPCSession:
    """A session with the server at the address."""
    host, port = _host_port(remote)
    with socket.create_connection((host, port), timeout=remote.timeout_s) as ping:
        ping.sendall(_NO_MAGIC)
        try:
            answer = ping.recv(1)
        except ConnectionResetError:
            answer = b""
        except TimeoutError:
            raise DeviceError(
                f"the device at {remote.address} must be free within timeout_s, {remote.timeout_s:g} s, but it is not: "
                "another session uses it, or its server has stopped listening after a session that crashed; wait, or "
                "restart the server"
            ) from None
    if answer:
        raise DeviceError(f"platform.remote.address must be a TVM RPC server, but {remote.address} is something else")
    return _begun(remote, lambda: rpc.connect(host, port, session_timeout=limit_s))


def _requested(remote: RemoteSpec, limit_s: float) -> rpc.RPCSession:
    """A session with a free device of the tracker at the address."""
    host, port = _host_port(remote)
    with socket.create_connection((host, port), timeout=remote.timeout_s) as tracker:
        tracker.sendall(base.RPC_TRACKER_MAGIC.to_bytes(4, "little"))
        try:
            known = int.from_bytes(base.recvall(tracker, 4), "little") == base.RPC_TRACKER_MAGIC
        except OSError:
            known = False
        if not known:
            raise DeviceError(
                f"with tracker_key, platform.remote.address must be a TVM RPC tracker, but {remote.address} is "
                "something else; leave tracker_key out for a server"
            )
        base.sendjson(tracker, [base.TrackerCode.SUMMARY])
        servers = base.recvjson(tracker)[1]["server_info"]
        keys = sorted({server["key"].removeprefix("server:") for server in servers})
        if remote.tracker_key not in keys:
            raise DeviceError(
                f"the tracker at {remote.address} must have devices of tracker_key {remote.tracker_key!r}, but has "
                f"{', '.join(keys) or 'none'}; start a server there with `--tracker` and `--key {remote.tracker_key}`"
            )
        base.sendjson(tracker, [base.TrackerCode.REQUEST, remote.tracker_key, "", 1])
        try:
            url, device_port, key = base.recvjson(tracker)[1]
        except TimeoutError:
            raise DeviceError(
                f"a device of tracker_key {remote.tracker_key!r} must be free within timeout_s, "
                f"{remote.timeout_s:g} s, but none is; wait, or ask for fewer `devices`"
            ) from None
        return _begun(remote, lambda: rpc.connect(url, device_port, key, limit_s))


def _begun(remote: RemoteSpec, connect: Callable[[], Value]) -> Value:
    """The session that `connect` begins. Raises DeviceError if that takes longer than the timeout."""
    try:
        return in_time(connect, remote.timeout_s)
    except TimeoutError:
        raise DeviceError(
            f"the device at {remote.address} must begin a session within timeout_s, {remote.timeout_s:g} s, but does "
            "not; wait until it is free, or restart its server"
        ) from None
    except Exception as error:
        if "matches key" not in str(error):
            raise
        raise DeviceError(
            f"the server at {remote.address} was started with a key, so only a tracker leads to it; start it without "
            "--key, or give the tracker's address and tracker_key"
        ) from None


def _host_port(remote: RemoteSpec) -> tuple[str, int]:
    host, _, port = remote.address.rpartition(":")
    return host.strip("[]"), int(port)
