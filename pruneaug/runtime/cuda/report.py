"""What computes each layer of a network on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pruneaug.kernels.cuda.variants import TORCH_2_4


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One call of a linear layer or convolution: our kernel's key, or None and PyTorch computes it.

    The key is TORCH_2_4 where PyTorch does so by its product of a 2:4 weight. `origin` are the operators that are
    computed together, `zeros` the share of the weights that are removed, `reason` why a pruned layer is PyTorch's.
    """

    name: str
    op: str
    origin: str
    kernel: str | None
    zeros: float
    reason: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class CudaReport:
    """All calls of layers in the order of execution, for an architecture and a dtype."""

    layers: tuple[LayerReport, ...]
    arch: str
    dtype: str

    @property
    def summary(self) -> str:
        """The numbers of layers, in a few words."""
        halves = sum(layer.kernel == TORCH_2_4 for layer in self.layers)
        ours = sum(layer.kernel is not None for layer in self.layers) - halves
        by_torch = f", {halves} by PyTorch's 2:4 product," if halves else ""
        return f"{ours} of {len(self.layers)} layers by our kernels{by_torch} for {self.arch} in {self.dtype}"

    def __repr__(self) -> str:
        lines = [self.summary]
        for layer in self.layers:
            by = layer.kernel or (f"PyTorch: {layer.reason}" if layer.reason else "PyTorch")
            lines.append(f"  {layer.name}  {layer.op}  {layer.origin}  {layer.zeros:.1%} zeros  {by}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CudaReport:
        layers = tuple(LayerReport(**layer) for layer in value["layers"])
        return cls(layers, str(value["arch"]), str(value["dtype"]))
