"""Rules: which choices a spec allows each layer, whether they were measured or not."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from pruneaug.errors import SpecError
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, LinearOp, Op, can_have
from pruneaug.sparsity.patterns import LayerChoice, parse_pattern
from pruneaug.spec.models import LayerRule, SpaceSpec


def wanted_choices(network: Network, spec: SpaceSpec) -> dict[str, tuple[LayerChoice, ...]]:
    """The choices beside dense that the spec allows each layer, on its grid; of a fixed layer the one it must have.

    Raises SpecError if a rule matches no layer or cannot hold, or if no layer may be anything but dense.
    """
    check_rules(network, spec.layers)
    wanted = {layer.name: _wanted(layer, spec) for layer in network.layers}
    if not any(wanted.values()):
        raise SpecError(
            f"some layer must be allowed a pattern that fits its weight matrix, but all of "
            f"{', '.join(wanted)} must stay dense; add smaller patterns to `space.patterns` or remove `dense: true`"
        )
    return wanted


def dense_ops(network: Network, spec: SpaceSpec) -> frozenset[Op]:
    """The ops of which every layer must stay dense."""
    wanted = wanted_choices(network, spec)
    free = {layer.op for layer in network.layers if wanted[layer.name]}
    return frozenset(layer.op for layer in network.layers) - free


def matching_rule(layer: Layer, rules: Sequence[LayerRule]) -> LayerRule | None:
    """The first rule that matches the layer."""
    return next((rule for rule in rules if _matches(layer, rule)), None)


def is_fixed(layer: Layer, spec: SpaceSpec) -> bool:
    """Whether a rule says just what the layer is."""
    rule = matching_rule(layer, spec.layers)
    return rule is not None and rule.fix is not None


def group_of(layer: Layer, spec: SpaceSpec) -> str | None:
    """The group that a rule puts the layer into."""
    rule = matching_rule(layer, spec.layers)
    return None if rule is None else rule.group


def measured_choices(network: Network, spec: SpaceSpec) -> tuple[list[str], list[float]]:
    """The patterns and sparsities that a profile must hold for this network."""
    rules = [rule for layer in network.layers if (rule := matching_rule(layer, spec.layers)) is not None]
    fixed = [rule.fix for rule in rules if rule.fix is not None]
    patterns = [*spec.patterns, *(p for rule in rules for p in rule.patterns or ()), *(fix.pattern for fix in fixed)]
    grid = [*spec.sparsities, *(s for rule in rules for s in rule.sparsities or ()), *(fix.sparsity for fix in fixed)]
    return list(dict.fromkeys(patterns)), sorted(set(grid))


def _matches(layer: Layer, rule: LayerRule) -> bool:
    return fnmatchcase(layer.name, rule.match) and (rule.op is None or rule.op in _kinds(layer))


def _kinds(layer: Layer) -> tuple[str, ...]:
    if isinstance(layer.op, LinearOp):
        return ("linear",)
    assert isinstance(layer.op, Conv2dOp)
    return ("conv2d", "conv2d-1x1") if layer.op.kernel == (1, 1) else ("conv2d",)


def check_rules(network: Network, rules: Sequence[LayerRule]) -> None:
    """Raises SpecError for a rule that matches no layer."""
    kept = {layer.name: layer.reason for layer in network.kept_dense}
    for index, rule in enumerate(rules):
        if any(_matches(layer, rule) for layer in network.layers):
            continue
        dense = [name for name in kept if fnmatchcase(name, rule.match)] if rule.op is None else []
        if dense and rule.dense:
            continue
        why = f"only {dense[0]!r}, which stays dense: {kept[dense[0]]}" if dense else "none"
        of_kind = "" if rule.op is None else f" of op {rule.op!r}"
        raise SpecError(
            f"space.layers.{index}.match: a rule must match a prunable layer, but {rule.match!r}{of_kind} matches "
            f"{why}; prunable layers are {', '.join(layer.name for layer in network.layers)}"
        )


def _wanted(layer: Layer, spec: SpaceSpec) -> tuple[LayerChoice, ...]:
    rule = matching_rule(layer, spec.layers)
    if rule is None:
        return _fitting(layer, spec.patterns, spec.sparsities)
    if rule.dense:
        return ()
    if rule.fix is not None:
        fixed = _fitting(layer, [rule.fix.pattern], [rule.fix.sparsity])
        if not fixed:
            raise SpecError(
                "a layer that is fixed to a pattern must hold a whole block of it, or with N:M be a linear layer whose "
                f"features 16 and M divide, but {layer.name!r} has the weight matrix {list(layer.op.matrix_shape)} and "
                f"`fix.pattern` is {rule.fix.pattern}; fix a smaller one, or a block"
            )
        return fixed
    patterns = [text for text in rule.patterns or spec.patterns if text not in rule.exclude]
    grid = rule.sparsities or spec.sparsities
    low, high = rule.min_sparsity, rule.max_sparsity
    inner = [bound for bound in (low, high) if bound is not None and min(grid) <= bound <= max(grid)]
    bounded = [at for at in {*grid, *inner} if (low is None or at >= low) and (high is None or at <= high)]
    if not bounded:
        raise SpecError(
            f"some sparsity of the grid must lie within a layer's bounds, but {layer.name!r} has the bounds "
            f"[{low}, {high}] and the grid {', '.join(f'{at:g}' for at in grid)}; widen the bounds or the grid"
        )
    return tuple(
        choice
        for choice in _fitting(layer, patterns, bounded)  # the sparsity of N:M is not of the grid
        if (low is None or choice.sparsity >= low) and (high is None or choice.sparsity <= high)
    )


def _fitting(layer: Layer, patterns: Sequence[str], sparsities: Sequence[float]) -> tuple[LayerChoice, ...]:
    known = [pattern for pattern in map(parse_pattern, dict.fromkeys(patterns)) if pattern is not None]
    fitting = [pattern for pattern in known if can_have(layer.op, pattern)]
    return tuple(LayerChoice(each, sparsity) for each in fitting for sparsity in each.sparsities(sorted(sparsities)))
