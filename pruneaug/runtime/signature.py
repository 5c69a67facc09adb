"""What a compiled function takes and returns, as PyTorch's callers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True)
class Signature:
    """`inputs` describes every leaf of the arguments; `tensors` are those that the compiled function takes.

    `leaves` are the outputs: None where the compiled function's next result belongs, else a constant in a tuple of one.
    `structure` is PyTorch's tree of the outputs, None for a network loaded without its classes.
    """

    inputs: tuple[str, ...]
    tensors: tuple[int, ...]
    leaves: tuple[tuple[Any] | None, ...]
    structure: pytree.TreeSpec | None

    @classmethod
    def of(cls, program: ExportedProgram, graph: fx.GraphModule) -> Signature:
        """The signature of a program whose graph was made from it."""
        arguments, _ = program.example_inputs or ((), {})
        leaves = pytree.tree_leaves(list(arguments))
        output = next(node for node in graph.graph.nodes if node.op == "output")
        return cls(
            inputs=describe(arguments),
            tensors=tuple(index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)),
            leaves=tuple(None if isinstance(leaf, fx.Node) else (leaf,) for leaf in pytree.tree_leaves(output.args[0])),
            structure=program.call_spec.out_spec,
        )

    def arguments(self, inputs: Sequence[Any]) -> list[Any]:
        """The tensors or arrays that the compiled function takes, of the network's arguments."""
        leaves = pytree.tree_leaves(list(inputs))
        return [leaves[index] for index in self.tensors]

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
        return cls(tuple(value["inputs"]), tuple(value["tensors"]), leaves, structure)

    def pack(self, results: Sequence[Any]) -> Any:
        """What the network returns, from the compiled function's results."""
        remaining = iter(results)
        leaves = [next(remaining) if leaf is None else leaf[0] for leaf in self.leaves]
        if self.structure is not None:
            return pytree.tree_unflatten(leaves, self.structure)
        return leaves[0] if len(leaves) == 1 else tuple(leaves)


def describe(inputs: Sequence[Any]) -> tuple[str, ...]:
    """What a compiled network depends on in its inputs: shapes, dtypes, and values of what is no tensor."""
    return tuple(_describe(x) for x in pytree.tree_leaves(list(inputs)))


def _describe(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return repr(x)
