"""What a compiled function takes and returns, as PyTorch's callers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pruneaug.errors import InputError
from pruneaug.runtime.bounds import Bounds, index_bounds

_ARRAYS = (torch.Tensor, np.ndarray)
_MOST_SHOWN = 8
_LONGEST = 80  # characters


@dataclass(frozen=True, slots=True)
class Signature:
    """`inputs` describes every leaf of the arguments; `tensors` are those that the compiled function takes, in turn.

    `bounds` are the numbers that each of these may hold if it is an index. `leaves` are the outputs: None where the
    compiled function's next result belongs, else a constant in a tuple of one. `structure` is PyTorch's tree of the
    outputs, None for a network loaded without its classes.
    """

    inputs: tuple[str, ...]
    tensors: tuple[int, ...]
    bounds: tuple[Bounds | None, ...]
    leaves: tuple[tuple[Any] | None, ...]
    structure: pytree.TreeSpec | None

    @classmethod
    def of(cls, program: ExportedProgram, graph: fx.GraphModule) -> Signature:
        """The signature of a program whose graph was made from it."""
        arguments, _ = program.example_inputs or ((), {})
        leaves = _leaves(arguments)
        place = {leaf[:2]: index for index, leaf in enumerate(_sorted(leaves))}
        output = next(node for node in graph.graph.nodes if node.op == "output")
        return cls(
            inputs=describe(arguments),
            tensors=tuple(place[leaf[:2]] for leaf in leaves if isinstance(leaf[2], torch.Tensor)),
            bounds=tuple(index_bounds(graph)),
            leaves=tuple(None if isinstance(leaf, fx.Node) else (leaf,) for leaf in pytree.tree_leaves(output.args[0])),
            structure=program.call_spec.out_spec,
        )

    def arguments(self, inputs: Sequence[Any]) -> list[Any]:
        """The tensors or arrays that the compiled function takes, of the network's arguments."""
        if _are_arrays(inputs):
            return [inputs[index] for index in self.tensors]
        leaves = _sorted(_leaves(inputs))
        return [leaves[index][2] for index in self.tensors]

    def check_bounds(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raises InputError for an index outside what it indexes, of the compiled function's tensors."""
        for number, (bounds, tensor) in enumerate(zip(self.bounds, tensors)):
            if bounds is None or tensor.numel() == 0:
                continue
            low, high = (int(value) for value in tensor.aminmax())
            if low < bounds[0] or high > bounds[1]:
                raise InputError(
                    f"tensor {number} of the inputs ({self.inputs[self.tensors[number]]}) is an index and must hold "
                    f"numbers from {bounds[0]} to {bounds[1]}, but got {low if low < bounds[0] else high}; give it "
                    "indices that there are"
                )

    def to_json(self) -> dict[str, Any]:
        structure: str | None = None
        if self.structure is not None:
            try:
                structure = pytree.treespec_dumps(self.structure)
            except NotImplementedError:  # a class that PyTorch cannot name: the outputs come as a tuple
                structure = None
        return {
            "inputs": list(self.inputs),
            "tensors": list(self.tensors),
            "bounds": [None if bounds is None else list(bounds) for bounds in self.bounds],
            "leaves": [None if leaf is None else list(leaf) for leaf in self.leaves],
            "structure": structure,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Signature:
        structure = None
        if value["structure"] is not None:
            try:
                structure = pytree.treespec_loads(value["structure"])
            except (NotImplementedError, ValueError, KeyError):  # its class is not imported here
                structure = None
        leaves = tuple(None if leaf is None else (leaf[0],) for leaf in value["leaves"])
        bounds = tuple(None if pair is None else (pair[0], pair[1]) for pair in value["bounds"])
        return cls(tuple(value["inputs"]), tuple(value["tensors"]), bounds, leaves, structure)

    def pack(self, results: Sequence[Any]) -> Any:
        """What the network returns, from the compiled function's results."""
        remaining = iter(results)
        leaves = [next(remaining) if leaf is None else leaf[0] for leaf in self.leaves]
        if self.structure is not None:
            return pytree.tree_unflatten(leaves, self.structure)
        return leaves[0] if len(leaves) == 1 else tuple(leaves)


def describe(inputs: Sequence[Any]) -> tuple[str, ...]:
    """What a compiled network depends on in its inputs: shapes, dtypes, and values of what is no tensor.

    In arguments that hold several, also the keys that lead to each.
    """
    if _are_arrays(inputs):
        return tuple([_describe_array(x.dtype, x.shape) for x in inputs])
    return tuple(_describe(x, keys) for _, keys, x in _sorted(_leaves(inputs)))


def _describe(x: Any, keys: str) -> str:
    text = _describe_array(x.dtype, x.shape) if isinstance(x, _ARRAYS) else repr(x)
    return f"{text} of {keys}" if keys else text


@lru_cache  # every call of a network describes its inputs
def _describe_array(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _are_arrays(inputs: Sequence[Any]) -> bool:
    """Whether every argument is a tensor or array itself, as mostly: then every call is some microseconds shorter."""
    return all(isinstance(x, _ARRAYS) for x in inputs)


def _leaves(inputs: Sequence[Any]) -> list[tuple[int, str, Any]]:
    """Every leaf of the arguments, in PyTorch's order: the number of its argument, the keys in there, and the leaf."""
    if _are_arrays(inputs):
        return [(index, "", x) for index, x in enumerate(inputs)]
    found, _ = pytree.tree_flatten_with_path(list(inputs))
    return [(path[0].idx, pytree.keystr(path[1:]), leaf) for path, leaf in found]  # type: ignore[attr-defined]


def _sorted(leaves: list[tuple[int, str, Any]]) -> list[tuple[int, str, Any]]:
    """By argument and keys: equal dicts may have their keys in different orders."""
    return sorted(leaves, key=itemgetter(0, 1)) if len(leaves) > 1 else leaves


def abbreviate(described: Sequence[str]) -> str:
    """What `describe` returned as a message shows it: of a list of numbers, the first ones."""
    shown = [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in described[:_MOST_SHOWN]]
    more = [f"and {len(described) - _MOST_SHOWN} more"] if len(described) > _MOST_SHOWN else []
    return f"({', '.join([*shown, *more])})"
