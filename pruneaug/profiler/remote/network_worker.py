"""The process that measures networks on a remote device: its platform and how to reach it on stdin's first line, then a
request on each line, and an answer to each on stdout.

{"compile"} makes a network, which has the next number; {"check"} runs it on the device; {"time", "seconds", "least"}
times a turn of it there; {"save", "to"} writes its library to a file. "error" in an answer is about that network;
"stopped" says that the device is lost.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from tvm import relax

from pruneaug.errors import DeviceError, PruneaugError, StorageError
from pruneaug.files import atomic_file
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.cross import find_compiler, linked_by
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.network_worker import described_network, load_program, relative_error
from pruneaug.profiler.remote.measure import open_session
from pruneaug.profiler.remote.session import TRIES, ConnectionLostError, Session, lost
from pruneaug.profiler.runtimes import example_inputs
from pruneaug.profiler.worker import claim_stdout, die_with_parent
from pruneaug.runtime.compiler import build_programs
from pruneaug.runtime.network import CompiledFunction, link_library
from pruneaug.spec.platform import RemoteSpec

_SESSION = 15  # timeouts that a session may last: networks are large, and take turns
_MOST_RUNS = 500  # in a turn
_FUNCTION = "main"

Answer = dict[str, Any]
Value = TypeVar("Value")


@dataclass(slots=True)
class _Network:
    """A compiled network: its library here, what it takes, and its virtual machine on the device in a session."""

    library: Path
    function: CompiledFunction
    inputs: list[torch.Tensor]
    expected: str
    machine: Any = None


@dataclass(slots=True)
class Networks:
    """Networks on one device, which are loaded again where a session ends."""

    platform: Platform
    remote: RemoteSpec
    folder: Path
    networks: list[_Network | None] = field(default_factory=list)
    session: Session | None = None

    def compile(self, setup: Mapping[str, Any]) -> Answer:
        """Make the library of a network."""
        number = len(self.networks)
        self.networks.append(None)
        program = load_program(setup)
        target = CpuTarget(**self.platform.kernel_target())
        link = linked_by(find_compiler(self.platform.arch, self.remote.compiler))
        executable, functions = build_programs({_FUNCTION: program}, *described_network(setup), target)
        library = self.folder / f"network{number}.so"
        link_library(executable, library, library, link)
        inputs = functions[_FUNCTION].signature.arguments(example_inputs(program))
        self.networks[number] = _Network(library, functions[_FUNCTION], inputs, setup["expected"])
        return {}

    def check(self, number: int) -> Answer:
        """The error of a network's outputs on the device."""

        def outputs(network: _Network) -> list[torch.Tensor]:
            network.machine.invoke_stateful(_FUNCTION)
            return [torch.from_numpy(result.numpy()) for result in network.machine.get_outputs(_FUNCTION)]

        network = self._network(number)
        packed = network.function.signature.pack(self._on_device(network, outputs))
        return {"max_relative_error": relative_error(packed, network.expected)}

    def time(self, number: int, seconds: float, least: int) -> Answer:
        """Microseconds of the runs of a turn, by the device's clock."""

        def runs(network: _Network, count: int) -> list[float]:
            assert self.session is not None
            module = network.machine.module
            times = module.time_evaluator("invoke_stateful", self.session.cpu, number=1, repeat=count)(_FUNCTION)
            return [1e6 * run_s for run_s in times.results]

        def turn(network: _Network) -> list[float]:
            once_us = runs(network, 1)[0]
            return runs(network, max(least, min(_MOST_RUNS, int(1e6 * seconds / max(once_us, 1.0)))))

        return {"times_us": self._on_device(self._network(number), turn)}

    def save(self, number: int, to: str) -> Answer:
        """Write a network's library to a file."""
        try:
            with atomic_file(to) as part:
                shutil.copyfile(self._network(number).library, part)
        except StorageError as error:
            return {"error": str(error)}
        return {"error": None}

    def close(self) -> None:
        if self.session is not None:
            self.session.close()

    def _network(self, number: int) -> _Network:
        network = self.networks[number]
        assert network is not None
        return network

    def _on_device(self, network: _Network, use: Callable[[_Network], Value]) -> Value:
        """What `use` returns of a network that is loaded, in another session where one ends. Raises DeviceError."""
        for left in reversed(range(TRIES)):
            try:
                if self.session is None:
                    limit_s = _SESSION * self.remote.timeout_s
                    self.session = open_session(self.remote, self.platform, limit_s)
                if network.machine is None:
                    network.machine = _loaded(self.session, network)
                with lost():
                    return use(network)
            except ConnectionLostError as error:
                self._forget()
                if not left:
                    raise DeviceError(
                        f"the device at {self.remote.address} must stay connected while a network runs, but its "
                        f"session ended {TRIES} times: {error}; look at the server's log, and at its memory"
                    ) from error
        raise AssertionError("unreachable")

    def _forget(self) -> None:
        self.close()
        self.session = None
        for network in self.networks:
            if network is not None:
                network.machine = None


def _loaded(session: Session, network: _Network) -> Any:
    module = session.load(network.library)
    with lost():
        machine = relax.VirtualMachine(module, session.cpu)
        machine.set_input(_FUNCTION, *(session.tensor(x.detach().numpy()) for x in network.inputs))
        return machine


def answer_to(networks: Networks, request: Mapping[str, Any]) -> Answer:
    """What the process says to a request."""
    try:
        if "compile" in request:
            return networks.compile(request["compile"])
        if "check" in request:
            return networks.check(request["check"])
        if "time" in request:
            return networks.time(request["time"], request["seconds"], request["least"])
        return networks.save(request["save"], request["to"])
    except DeviceError as error:
        return {"stopped": str(error)}
    except Exception as error:
        return {"error": str(error) if isinstance(error, PruneaugError) else f"{type(error).__name__}: {error}"}


def main() -> None:
    die_with_parent()
    with claim_stdout() as out, tempfile.TemporaryDirectory(prefix="pruneaug-") as folder:
        told = json.loads(sys.stdin.readline())
        torch.set_num_threads(1)
        platform, remote = Platform.from_json(told["platform"]), RemoteSpec.model_validate(told["remote"])
        networks = Networks(platform, remote, Path(folder))
        for line in sys.stdin:
            out.write(json.dumps(answer_to(networks, json.loads(line))) + "\n")
            out.flush()
        networks.close()


if __name__ == "__main__":
    main()
