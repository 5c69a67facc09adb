"""The cubic schedule, and any pruner on it."""

import copy
from dataclasses import replace

import pytest
import torch
from pruner_cases import Data, blend

from pruneaug.errors import PluginError, SpecError
from pruneaug.network.layers import Network, apply_masks, get_weight
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.protocol import Pruned, Scorer
from pruneaug.pruners.schedule import Ramp
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice

CHOICES = {"first": LayerChoice(Block(1, 1), 0.8), "grouped": LayerChoice(Block(3, 1), 0.5), "last": DENSE}


def start(**options: object) -> tuple[torch.nn.Module, Network, Pruned]:
    model, network = blend()
    return model, network, PRUNERS.create("gradual", options).prune(model, network, CHOICES, Data())


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.2, 0.35, 0.5, 0.6, 1.0])
def test_sparsity_follows_the_formula_of_zhu_and_gupta(progress: float) -> None:
    ramp = Ramp(begin=0.2, end=0.6, initial=0.3)
    found = ramp.assignment({"a": LayerChoice(Block(1, 1), 0.9), "b": DENSE}, ramp.way(progress))
    t = min(max(progress, 0.2), 0.6)
    assert found["a"].sparsity == pytest.approx(0.9 + (0.3 - 0.9) * (1 - (t - 0.2) / 0.4) ** 3)
    assert found["b"] == DENSE


def test_the_end_of_the_schedule_is_exactly_what_was_asked() -> None:
    ramp = Ramp(0.0, 0.75, steps=7)
    assert ramp.assignment(CHOICES, ramp.way(0.75)) == CHOICES
    assert Ramp(0.5, 0.5).way(0.5) == 1.0
    assert Ramp(0.5, 0.5).way(0.49) == 0.0


def test_an_asked_sparsity_below_the_initial_one_holds_from_the_start() -> None:
    choice = LayerChoice(Block(1, 1), 0.2)
    assert Ramp(0.0, 1.0, initial=0.5).assignment({"a": choice}, 0.1) == {"a": choice}


def test_sparsity_rises_step_by_step_to_what_was_asked() -> None:
    model, _, pruned = start(steps=4, end=0.8)
    assert all(bool(mask.all()) for mask in pruned.masks.values())
    assert set(pruned.masks) == {"first", "grouped"}
    assert pruned.revise is not None
    seen = []
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0):
        masks = pruned.revise(model, progress)
        apply_masks(model, masks)
        seen.append(mask_sparsity(masks["first"]))
    steps = [0.8 * (1 - (1 - way) ** 3) for way in (0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1)]
    assert seen == pytest.approx(steps, abs=1 / 162)
    assert mask_sparsity(masks["grouped"]) == pytest.approx(0.5, abs=3 / 54)


def test_each_step_scores_the_weights_as_they_are_then() -> None:
    model, _, pruned = start(begin=0.0, end=0.5)
    assert pruned.revise is not None
    with torch.no_grad():  # as if fine-tuning had turned the order round
        get_weight(model, "first").copy_(1 / get_weight(model, "first"))
    mask = pruned.revise(model, 1.0)["first"]
    size = get_weight(model, "first").detach().abs()
    assert float(size[mask].min()) >= float(size[~mask].max())


def test_with_grasp_each_step_is_its_own_and_what_was_removed_may_come_back() -> None:
    model, network, pruned = start(pruner="grasp", steps=4, end=1.0)
    assert pruned.revise is not None
    for way in (0.25, 0.5, 0.75, 1.0):
        asked = {
            name: replace(choice, sparsity=choice.sparsity * (1 - (1 - way) ** 3)) for name, choice in CHOICES.items()
        }
        alone = PRUNERS.create("grasp", {}).prune(copy.deepcopy(model), network, asked, Data()).masks
        masks = pruned.revise(model, way)
        assert masks.keys() == alone.keys()
        assert all(torch.equal(masks[name], alone[name]) for name in masks)
        apply_masks(model, masks)


@pytest.mark.parametrize("name", ["magnitude", "lamp", "taylor", "snip", "fisher", "synflow", "wanda", "random"])
def test_what_is_removed_stays_removed(name: str) -> None:
    options = {"iterations": 5} if name == "synflow" else {}
    model, _, pruned = start(pruner=name, options=options, steps=5)
    assert pruned.revise is not None
    before = pruned.masks
    for progress in (0.2, 0.4, 0.6, 0.8):
        masks = pruned.revise(model, progress)
        apply_masks(model, masks)
        assert all(not bool((masks[key] & ~before[key]).any()) for key in masks)
        before = masks


def test_between_steps_the_pruner_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, pruned = start(steps=2, end=1.0)
    assert pruned.revise is not None
    first = pruned.revise(model, 0.6)
    monkeypatch.setattr("pruneaug.pruners.magnitude.Magnitude.prune", lambda *_: pytest.fail("ran"))
    assert all(torch.equal(mask, first[name]) for name, mask in pruned.revise(model, 0.9).items())


def test_a_fine_tuning_that_was_interrupted_goes_on_from_the_stored_state() -> None:
    model, _, pruned = start(steps=2, end=1.0)
    assert pruned.revise is not None
    masks = pruned.revise(model, 0.6)
    _, _, again = start(steps=2, end=1.0)
    assert pruned.state is not None
    assert again.state is not None
    assert again.revise is not None
    for key, tensor in pruned.state.items():
        again.state[key].copy_(tensor)
    with torch.no_grad():  # were the pruner run once more, it would choose others
        get_weight(model, "first").copy_(get_weight(model, "first").flip(0))
    assert all(torch.equal(mask, masks[name]) for name, mask in again.revise(model, 0.9).items())


def test_a_pruner_that_updates_weights_does_so_at_each_step() -> None:
    model, _, pruned = start(pruner="sparsegpt", steps=3)
    assert pruned.revise is not None
    weight = get_weight(model, "grouped")
    before = weight.detach().clone()
    masks = pruned.revise(model, 0.3)
    kept = masks["grouped"]
    assert not torch.equal(weight[kept], before[kept])
    assert weight_matrix(kept).float().mean() > 0.5


def test_its_scores_are_those_of_the_pruner_inside_if_that_has_any() -> None:
    model, network = blend()
    scorer = PRUNERS.create("gradual", {"pruner": "taylor"})
    assert isinstance(scorer, Scorer)
    expected = PRUNERS.create("taylor", {}).scores(model, network, Data())
    assert all(torch.equal(score, expected[name]) for name, score in scorer.scores(model, network, Data()).items())
    assert not isinstance(PRUNERS.create("gradual", {"pruner": "sparsegpt"}), Scorer)


@pytest.mark.parametrize("inner", ["movement", "gradual"])
def test_a_pruner_that_raises_sparsity_by_itself_is_refused(inner: str) -> None:
    with pytest.raises(SpecError, match=f"'{inner}' raises the sparsity by itself"):
        start(pruner=inner)


def test_the_inner_pruner_s_options_are_checked_when_it_is_made() -> None:
    with pytest.raises(PluginError, match="has no option 'scop'"):
        PRUNERS.create("gradual", {"pruner": "magnitude", "options": {"scop": "layer"}})
    with pytest.raises(PluginError, match="did you mean 'taylor'"):
        PRUNERS.create("gradual", {"pruner": "tailor"})
