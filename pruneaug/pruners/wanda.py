"""Wanda: pruning by weights and activations (Sun et al., 2023, arXiv:2306.11695)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pruneaug.errors import SpecError
from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.activations import column_norms, per_row
from pruneaug.pruners.calibration import check_batches, check_finite, required
from pruneaug.pruners.choosing import naming, pattern_of, prune_by_scores, pruned_layers
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.masks import block_mask_by_rows
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix
from pruneaug.sparsity.patterns import Assignment


class Wanda:
    """Removes the weights of smallest |weight| * norm of the inputs that it meets.

    With scope `row`, as in the paper, weights compare within an output row, and blocks within a row of blocks: each
    gets the layer's sparsity, within one block. With `layer` they compare within the layer. `batches`: of calibration
    data.
    """

    def __init__(self, scope: Literal["row", "layer"] = "row", batches: int = 8) -> None:
        if scope not in ("row", "layer"):
            raise SpecError(f"the scope of wanda pruning must be 'row' or 'layer', but got {scope!r}")
        self.scope = scope
        self.batches = check_batches(batches)

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        scores = {}
        for name, norms in column_norms(model, network, required(data, "wanda"), self.batches).items():
            weight = get_weight(model, name).detach()
            matrix = weight_matrix(weight).abs() * per_row(norms, len(weight))
            scores[name] = check_finite(name, weight_from_matrix(matrix.float(), weight.shape))
        return scores

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        if self.scope == "layer":
            return prune_by_scores(self, model, network, assignment, data)
        layers = pruned_layers(network, assignment)
        if not layers:
            return Pruned({})
        masks = {}
        for name, scores in self.scores(model, Network(layers), data).items():
            with naming(name):
                mask = block_mask_by_rows(
                    weight_matrix(scores), pattern_of(name, assignment), assignment[name].sparsity
                )
            masks[name] = weight_from_matrix(mask, scores.shape)
        return Pruned(masks)
