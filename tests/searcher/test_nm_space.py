"""N:M in a search: one choice a layer, whatever sparsities are asked, and every strategy can propose it."""

import math

import optuna
import pytest
import torch

from pruneaug.errors import PluginError, SpecError
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.searcher import STRATEGIES
from pruneaug.searcher.candidate import achieved, check_masks
from pruneaug.searcher.limits import settle
from pruneaug.searcher.rules import dense_ops, wanted_choices
from pruneaug.searcher.saliency import lose
from pruneaug.searcher.space import build_space
from pruneaug.searcher.strategies.rule import best_blocks
from pruneaug.sparsity.masks import block_mask
from pruneaug.sparsity.patterns import DENSE, TWO_OF_FOUR, Block, LayerChoice
from pruneaug.spec.models import SpaceSpec
from pruneaug.testing.platform import analytic_table

WIDE, ODD, CONV = LinearOp(1024, 64, 128), LinearOp(1024, 64, 40), Conv2dOp(4, 64, 64, 8, 8, (1, 1))
NETWORK = Network((Layer("a", WIDE), Layer("b", WIDE, 2), Layer("odd", ODD), Layer("conv", CONV)))
PATTERNS, SPARSITIES = ["nm:2:4", "block:8x1"], [0.6, 0.9]
TABLE = analytic_table([layer.op for layer in NETWORK.layers], PATTERNS, SPARSITIES)
HALF, EIGHT = LayerChoice(TWO_OF_FOUR, 0.5), LayerChoice(Block(8, 1), 0.9)


def spec(**options):
    return SpaceSpec(**{"patterns": PATTERNS, "sparsities": SPARSITIES, "steps": 1, **options})


def space(**options):
    return build_space(NETWORK, spec(**options), TABLE)


def choices(found):
    return {layer.name: [str(choice) for choice in layer.choices] for layer in found.layers}


def scores():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (128, 64), "b": (128, 64), "odd": (40, 64), "conv": (64, 64, 1, 1)}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def test_a_linear_layer_of_whole_sixteens_has_it_at_its_own_sparsity():
    blocks = ["block:8x1@0.6", "block:8x1@0.75", "block:8x1@0.9"]
    assert choices(space(steps=2)) == {
        "a": ["dense", "nm:2:4@0.5", *blocks], "b": ["dense", "nm:2:4@0.5", *blocks],
        "odd": ["dense", *blocks], "conv": ["dense", *blocks],
    }  # fmt: skip


def test_its_time_is_the_measured_one():
    layer = space().layers[1]
    assert layer.latencies_us[1] == pytest.approx(2 * TABLE.latency_us(WIDE, HALF))
    assert layer.latencies_us[1] < layer.latencies_us[0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"min_sparsity": 0.6}, ["dense", "block:8x1@0.6", "block:8x1@0.9"]),
        ({"min_sparsity": 0.5, "max_sparsity": 0.6}, ["dense", "nm:2:4@0.5", "block:8x1@0.6"]),
        ({"sparsities": [0.9]}, ["dense", "nm:2:4@0.5", "block:8x1@0.9"]),
        ({"exclude": ["nm:2:4"]}, ["dense", "block:8x1@0.6", "block:8x1@0.9"]),
        ({"patterns": ["nm:2:4"]}, ["dense", "nm:2:4@0.5"]),
        ({"fix": {"pattern": "nm:2:4", "sparsity": 0.5}}, ["nm:2:4@0.5"]),
    ],
)
def test_rules_hold_for_it(rule, expected):
    assert choices(space(layers=[{"match": "a", **rule}]))["a"] == expected


@pytest.mark.parametrize("name", ["odd", "conv"])
def test_a_layer_that_cannot_have_it_is_not_fixed_to_it(name):
    rule = {"match": name, "fix": {"pattern": "nm:2:4", "sparsity": 0.5}}
    with pytest.raises(SpecError, match=f"whose features 16 and M divide, but '{name}' has the weight matrix"):
        wanted_choices(NETWORK, spec(layers=[rule]))


def test_the_others_are_dense_where_it_is_the_only_pattern():
    assert dense_ops(NETWORK, spec(patterns=["nm:2:4"])) == {ODD, CONV}


def test_it_loses_what_its_mask_removes():
    found = lose(space(), scores(), "network")
    total = sum(float(score.double().sum()) for score in scores().values())
    for layer in found.layers[:2]:
        matrix = scores()[layer.name]
        removed = matrix[~block_mask(matrix, TWO_OF_FOUR, 0.5)].double().sum()
        assert layer.lost[1] == pytest.approx(float(removed) / total, rel=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES.names())
@pytest.mark.parametrize("max_patterns", [None, 1])
def test_every_strategy_proposes_what_the_space_allows(strategy, max_patterns):
    found = lose(space(max_patterns=max_patterns), scores())
    chooses = STRATEGIES.create(strategy, {"sparsity": 0.6} if strategy == "rule" else {})
    study = optuna.create_study(directions=["minimize"] * getattr(chooses, "directions", 1))
    layers = {layer.name: layer for layer in found.layers}
    for number in range(6):
        study.sampler = chooses.sampler(number)
        trial = study.ask()
        assignment = chooses.propose(trial, found)
        for name, choice in assignment.items():
            assert choice == layers[name].nearest(choice.pattern, choice.sparsity)
            assert choice.pattern != TWO_OF_FOUR or choice.sparsity == 0.5
        assert len({choice.pattern for choice in assignment.values()} - {None}) <= (max_patterns or 2)
        trial.set_constraint("accuracy_loss", float(number % 2))
        study.tell(trial, [1.0] * len(study.directions))


def test_a_strategy_whose_only_pattern_it_is_has_one_sparsity():
    only = space(patterns=["nm:2:4"])
    assert (only.sparsity_range, only.size()) == ((0.5, 0.5), 4)
    proposed = STRATEGIES.create("uniform", {}).propose(
        optuna.trial.FixedTrial({"pattern": "nm:2:4", "sparsity": 0.5}), only
    )
    assert proposed == {"a": HALF, "b": HALF, "odd": DENSE, "conv": DENSE}


def test_layers_move_to_the_pattern_that_stays_and_back():
    wide = {"a": HALF, "b": EIGHT, "odd": EIGHT, "conv": EIGHT}
    assert settle(space(max_patterns=1), wide)["a"] == LayerChoice(Block(8, 1), 0.6)
    halves = {"a": EIGHT, "b": HALF, "odd": DENSE, "conv": DENSE}
    assert settle(space(max_patterns=1), halves)["a"] == HALF


def test_a_rule_measures_what_a_layer_may_lose_by_its_smallest_block():
    found = lose(space(), scores())
    for layer in found.layers[:2]:
        most = layer.lost[[str(choice) for choice in layer.choices].index("block:8x1@0.6")]
        allowed = [us for us, lost in zip(layer.latencies_us, layer.lost, strict=True) if lost <= most]
        chosen = best_blocks(found, 0.6)[layer.name]
        assert layer.latencies_us[layer.choices.index(chosen)] == min(allowed)
    assert best_blocks(lose(space(patterns=["nm:2:4"]), scores()), 0.5)["a"] == HALF


def test_masks_that_keep_more_are_refused_and_counted_dense():
    mask = block_mask(scores()["a"], TWO_OF_FOUR, 0.5)
    check_masks({"a": mask}, {"a": HALF})
    with pytest.raises(PluginError, match="with N:M keep N of each M, but the mask of layer 'a' is none of nm:2:4"):
        check_masks({"a": torch.ones_like(mask)}, {"a": HALF})
    assert achieved({"a": HALF}, {"a": 0.5}, space()) == {"a": HALF}
    assert achieved({"a": HALF}, {"a": 0.3}, space()) == {"a": DENSE}
    assert math.isclose(1 - float(mask.float().mean()), 0.5)
