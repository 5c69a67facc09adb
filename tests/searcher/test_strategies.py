import optuna
import pytest

from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import LinearOp
from pruneaug.searcher.space import build_space
from pruneaug.searcher.strategies.joint import Joint
from pruneaug.searcher.strategies.random import Random
from pruneaug.searcher.strategies.uniform import Uniform
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice
from pruneaug.spec.models import SpaceSpec
from pruneaug.testing.platform import analytic_table

WIDE, NARROW = LinearOp(1024, 64, 64), LinearOp(1024, 64, 4)
NETWORK = Network((Layer("a", WIDE), Layer("b", WIDE), Layer("c", NARROW), Layer("d", NARROW)))
PATTERNS = ["block:1x1", "block:8x1"]


@pytest.fixture(scope="module")
def space():
    rules = [{"match": "b", "sparsities": [0.5, 0.7]}, {"match": "d", "dense": True}]
    spec = SpaceSpec(patterns=PATTERNS, sparsities=[0.5, 0.9], layers=rules)
    return build_space(NETWORK, spec, analytic_table([WIDE, NARROW], PATTERNS, [0.5, 0.7, 0.9]))


def fixed(**params):
    return optuna.trial.FixedTrial(params)


def test_uniform_gives_one_pattern_and_sparsity_to_every_layer_that_may_have_it(space):
    assignment = Uniform().propose(fixed(pattern="block:8x1", sparsity=0.8), space)
    eight = Block(8, 1)
    assert assignment == {"a": LayerChoice(eight, 0.8), "b": LayerChoice(eight, 0.7), "c": DENSE, "d": DENSE}


def test_joint_has_a_pattern_for_each_group_and_one_sparsity(space):
    params = {"sparsity": 0.6, "pattern a": "block:8x1", "pattern b": "dense", "pattern c": "block:1x1"}
    assignment = Joint().propose(optuna.trial.FixedTrial(params), space)
    assert assignment == {
        "a": LayerChoice(Block(8, 1), 0.6),
        "b": DENSE,
        "c": LayerChoice(Block(1, 1), 0.6),
        "d": DENSE,
    }


def test_random_has_a_pattern_and_a_sparsity_for_each_layer(space):
    params = {"pattern a": "block:8x1", "sparsity a": 0.6, "pattern b": "block:1x1", "sparsity b": 0.55}
    params |= {"pattern c": "dense", "sparsity c": 0.9}
    assignment = Random().propose(optuna.trial.FixedTrial(params), space)
    assert assignment == {
        "a": LayerChoice(Block(8, 1), 0.6),
        "b": LayerChoice(Block(1, 1), 0.55),
        "c": DENSE,
        "d": DENSE,
    }


@pytest.mark.parametrize("strategy", [Joint(), Uniform()])
def test_the_model_based_strategies_learn_where_the_good_trials_are(space, strategy):
    """With only latency to minimise, late proposals are sparser than those drawn at random."""
    study = optuna.create_study(direction="minimize")
    sparsities = []
    for number in range(60):
        study.sampler = strategy.sampler(number)
        trial = study.ask()
        assignment = strategy.propose(trial, space)
        sparsities.append(sum(choice.sparsity for choice in assignment.values()))
        trial.set_constraint("accuracy_loss", 0.0)
        study.tell(trial, 4 - sparsities[-1])
    assert sum(sparsities[-20:]) > sum(sparsities[:20])
