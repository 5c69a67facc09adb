"""TVM's own RPC servers and trackers, as processes on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pruneaug.spec.platform import RemoteSpec

PLAIN = ("-m", "tvm.exec.rpc_server")
LASTING = (str(Path(__file__).parents[1] / "examples" / "platforms" / "device_server.py"),)
GPU = (*LASTING, "--gpu")
_START_S = 300  # imports of compilers take long on a busy machine


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Process:
    """A server or tracker, all of whose processes end with `kill`."""

    port: int
    process: subprocess.Popen

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def spec(self, **values):
        return RemoteSpec(address=self.address, **{"timeout_s": 60.0, **values})

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()

    def kill_session(self):
        """Kill the process of the session that the server has, and not the server."""
        (listener,) = psutil.Process(self.process.pid).children()
        for session in listener.children():
            session.kill()


@contextmanager
def running(*words, port=None, host_option="--host"):
    port = port or free_port()
    command = [sys.executable, *words, host_option, "127.0.0.1", "--port", str(port)]
    if words[0] == "-m":
        command += ["--port-end", str(port + 1)]
    started = Process(port, subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL))
    try:
        deadline = time.monotonic() + _START_S
        while not _listens(port):
            assert started.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        yield started
    finally:
        started.kill()


def server(port=None, *, words=PLAIN, tracker=None, key=None):
    more = [] if tracker is None else ["--tracker", tracker, "--key", key]
    return running(*words, *more, port=port)


def tracker():
    return running("-m", "tvm.exec.rpc_tracker")


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
