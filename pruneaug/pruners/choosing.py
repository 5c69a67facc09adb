"""Scores to masks: by layer, or by one threshold over all layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from pruneaug.errors import InputError, NetworkError, SpecError
from pruneaug.network.layers import Layer, Network
from pruneaug.pruners.calibration import check_finite
from pruneaug.pruners.protocol import CalibrationData, Masks, Pruned, Scorer
from pruneaug.registry import did_you_mean
from pruneaug.sparsity.masks import block_mask, block_masks
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix
from pruneaug.sparsity.patterns import NM, Assignment, Pattern

Scope = Literal["layer", "global"]
"""`layer`: each layer gets its own sparsity. `global`: one threshold over all layers that are not dense."""


def check_scope(scope: str, method: str) -> Scope:
    """Raises SpecError unless the option `scope` is one of Scope."""
    if scope == "layer":
        return "layer"
    if scope == "global":
        return "global"
    raise SpecError(f"the scope of {method} pruning must be 'layer' or 'global', but got {scope!r}")


def prune_by_scores(
    scorer: Scorer,
    model: nn.Module,
    network: Network,
    assignment: Assignment,
    data: CalibrationData | None,
    scope: Scope = "layer",
) -> Pruned:
    """The masks of the layers that are not dense, by the scores that `scorer` gives these layers."""
    layers = pruned_layers(network, assignment)
    if not layers:
        return Pruned({})
    return Pruned(choose(scorer.scores(model, Network(layers), data), layers, assignment, scope))


def choose(scores: Mapping[str, Tensor], layers: tuple[Layer, ...], assignment: Assignment, scope: Scope) -> Masks:
    """The masks that keep the blocks of largest score: layer name -> score in the weight's layout, of any sign.

    With scope `layer` blocks compare by their sum, within the layer. With `global` they compare by their mean, over
    all layers of blocks: the operation sparsity of these layers together becomes what the assignment asks, and each
    layer's follows. The best block of each layer stays. Layers of N:M compare within their groups.
    """
    if not layers:
        return {}
    matrices = {layer.name: weight_matrix(check_finite(layer.name, scores[layer.name])) for layer in layers}
    patterns = {layer.name: pattern_of(layer.name, assignment) for layer in layers}
    blocks = {name: block for name, block in patterns.items() if scope == "global" and not isinstance(block, NM)}
    found = {}
    if blocks:
        macs = {layer.name: layer.op.macs * layer.calls for layer in layers if layer.name in blocks}
        sparsity = sum(macs[name] * assignment[name].sparsity for name in macs) / sum(macs.values())
        costs = {name: macs[name] / matrices[name].numel() for name in macs}
        found = block_masks({name: matrices[name] for name in blocks}, blocks, min(sparsity, 1.0), costs)
    for name, matrix in matrices.items():
        if name not in blocks:
            with naming(name):
                found[name] = block_mask(matrix, patterns[name], assignment[name].sparsity)
    return {name: weight_from_matrix(found[name], scores[name].shape) for name in matrices}


@contextmanager
def naming(name: str) -> Iterator[None]:
    """An InputError within names the layer."""
    try:
        yield
    except InputError as error:
        raise NetworkError(f"layer {name!r}: {error}") from error


def pattern_of(name: str, assignment: Assignment) -> Pattern:
    """The pattern of a layer that is not dense."""
    pattern = assignment[name].pattern
    assert pattern is not None
    return pattern


def pruned_layers(network: Network, assignment: Assignment) -> tuple[Layer, ...]:
    """The layers that are not dense, in the network's order. Raises NetworkError if a name is no prunable layer."""
    names = tuple(layer.name for layer in network.layers)
    for name in assignment:
        if name not in names:
            reasons = {kept.name: kept.reason for kept in network.kept_dense}
            why = f": {reasons[name]}" if name in reasons else did_you_mean(name, names)
            raise NetworkError(f"an assignment must name prunable layers, but {name!r} is none{why}")
    return tuple(layer for layer in network.layers if layer.name in assignment and not assignment[layer.name].is_dense)
