"""The process that runs one network in one runtime: how it is made on stdin's first line, then a request on each line.

{"seconds", "least"} asks for the times of one turn. Of a network in our own runtime {"repeats"} asks what its operators
without a kernel take of the time, and {"save"} for the compiled network in a file.

Every runtime has a process of its own. Thread pools that share a process disturb each other: the threads of one spin
on the cores for a while after its last operator, while the next runtime already works.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pruneaug.errors import StorageError
from pruneaug.profiler.placement import place_threads
from pruneaug.profiler.runtimes import RUNTIMES, Call, example_inputs, torch_call
from pruneaug.profiler.worker import claim_stdout, die_with_parent

if TYPE_CHECKING:
    from pruneaug.network.layers import Network
    from pruneaug.runtime.network import CompiledNetwork

_WARM_UP = 3  # calls at the start of every turn: wake the threads, fill the caches


def main() -> None:
    die_with_parent()
    with claim_stdout() as out:

        def say(value: Mapping[str, Any]) -> None:
            out.write(json.dumps(value) + "\n")
            out.flush()

        setup = json.loads(sys.stdin.readline())
        torch.set_num_threads(setup["threads"])
        program = load_program(setup)
        peer = RUNTIMES.get(setup["runtime"])
        if peer is not None:
            compiled = None
            call = peer.make(program, setup["threads"], Path(setup["program"]).parent)
        else:
            compiled = _compiled(program, setup)
            call = torch_call(compiled, program)
        error = relative_error(call(), setup["expected"])
        place_threads(call, setup["threads"])
        say({"event": "ready", "max_relative_error": error})
        for line in sys.stdin:
            request = json.loads(line)
            if "seconds" in request:
                say({"times_us": _turn_us(call, request["seconds"], request["least"])})
                continue
            assert compiled is not None
            say(_saved(compiled, request["save"]) if "save" in request else _shares(compiled, program, **request))


def load_program(setup: Mapping[str, Any]) -> torch.export.ExportedProgram:
    """The exported network that a process is told of."""
    with contextlib.suppress(ImportError):
        # A class of outputs must be known before a program that returns it can be read.
        importlib.import_module(setup["output_module"])
    return torch.export.load(setup["program"])


def _saved(compiled: CompiledNetwork, path: str) -> dict[str, str | None]:
    try:
        compiled.save(path)
    except StorageError as error:
        return {"error": str(error)}
    return {"error": None}


def _shares(
    compiled: CompiledNetwork, program: torch.export.ExportedProgram, repeats: int
) -> dict[str, dict[str, float]]:
    from pruneaug.runtime.report import fallback_shares

    return {"fallbacks": fallback_shares(compiled.profile(*example_inputs(program), repeats=repeats))}


def _compiled(program: torch.export.ExportedProgram, setup: Mapping[str, Any]) -> CompiledNetwork:
    """The network as pruneaug compiles it."""
    from pruneaug.kernels.build import CpuTarget
    from pruneaug.runtime.compiler import compile_network

    return compile_network(program, *described_network(setup), CpuTarget(**setup["target"]))


def described_network(setup: Mapping[str, Any]) -> tuple[Network, dict[str, torch.Tensor], dict[str, str]]:
    """The network, the masks and the plans that a process is told of."""
    from safetensors.torch import load_file

    from pruneaug.network.layers import Layer, Network
    from pruneaug.network.ops import parse_op

    layers = tuple(Layer(layer["name"], parse_op(layer["op"])) for layer in setup["layers"])
    plans = {layer["name"]: layer["variant"] for layer in setup["layers"]}
    masks = {name: mask.bool() for name, mask in load_file(setup["masks"]).items()} if setup["masks"] else {}
    return Network(layers), masks, plans


def tensors_of(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors, or arrays, in what a network returned."""
    leaves = torch.utils._pytree.tree_leaves(output)
    tensors = (torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves)
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()]


def relative_error(output: Any, expected_path: str) -> float:
    """`relative_distance` of the output's tensors to those in a file."""
    from safetensors.torch import load_file

    expected = load_file(expected_path)
    return relative_distance(tensors_of(output), [expected[str(i)] for i in range(len(expected))])


def relative_distance(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """norm(got - expected) / norm(expected) over all tensors together; infinite if their shapes differ."""
    if [y.shape for y in got] != [y.shape for y in expected]:
        return math.inf
    difference = sum(float((y.double() - want.double()).square().sum()) for y, want in zip(got, expected))
    return float((difference / max(1e-60, sum(float(y.double().square().sum()) for y in expected))) ** 0.5)


def _turn_us(call: Call, seconds: float, least: int) -> list[float]:
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return times


if __name__ == "__main__":
    main()
