"""SparseGPT: removal and update of weights from a layer's inputs (Frantar and Alistarh, 2023, arXiv:2301.00774)."""

from __future__ import annotations

import torch
from torch import nn

from pruneaug.errors import SpecError
from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.activations import gram_matrices
from pruneaug.pruners.calibration import check_batches, check_finite, required
from pruneaug.pruners.choosing import naming, pattern_of, pruned_layers
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.pruners.reconstruction import damped, inverse_factor, refit, sweep
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix
from pruneaug.sparsity.patterns import Assignment


class SparseGPT:
    """Removes what a layer's output needs least, and updates the weights that are kept to make up for it.

    The layers' inputs are those of the network as it was given, from one pass. `batches`: of calibration data.
    `damping`: added to the diagonal of the inputs' moments, as a fraction of its mean. `columns`: chosen from at a
    time. `refit` ends with an exact least-squares fit of all kept weights instead of the paper's one pass from left to
    right: a smaller error, at the cost of a linear system for each row of blocks.
    """

    def __init__(self, batches: int = 8, damping: float = 0.01, columns: int = 128, refit: bool = False) -> None:
        if not 0.0 < damping < float("inf"):
            raise SpecError(f"the `damping` of sparsegpt pruning must be above 0, but got {damping}; 0.01 is usual")
        if columns < 1:
            raise SpecError(f"the `columns` of sparsegpt pruning must be at least 1, but got {columns}")
        self.batches = check_batches(batches)
        self.damping = damping
        self.columns = columns
        self.refit = refit

    @torch.no_grad()
    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        layers = pruned_layers(network, assignment)
        if not layers:
            return Pruned({})
        grams = gram_matrices(model, Network(layers), required(data, "sparsegpt"), self.batches)
        masks = {}
        for layer in layers:
            name, weight = layer.name, get_weight(model, layer.name)
            matrix = weight_matrix(check_finite(name, weight))
            block, sparsity = pattern_of(name, assignment), assignment[name].sparsity
            with naming(name):
                hessian = damped(grams.pop(name), self.damping)
                updated, mask = sweep(matrix, inverse_factor(hessian), block, sparsity, self.columns)
                if self.refit:
                    updated = refit(matrix, hessian, mask, block)
            weight.copy_(weight_from_matrix(updated, weight.shape))
            masks[name] = weight_from_matrix(mask, weight.shape)
        return Pruned(masks)
