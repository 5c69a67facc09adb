import math

import pytest
import torch
from toy_search import make_job, make_parts

from pruneaug.finetune.protocol import FineTuneResult
from pruneaug.network.layers import Layer, Network, apply_masks, get_weight
from pruneaug.network.ops import LinearOp
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.pruners.sparsegpt import SparseGPT
from pruneaug.searcher.candidate import PruneAndFineTune, Session
from pruneaug.searcher.origin import Origin, distance, kept_share, nearest
from pruneaug.searcher.study import run_search
from pruneaug.sparsity.masks import block_mask
from pruneaug.sparsity.patterns import Block, LayerChoice

SMALL, LARGE = LinearOp(1, 8, 8), LinearOp(1, 8, 24)
NETWORK = Network((Layer("small", SMALL), Layer("large", LARGE)))
ELEMENT, ROWS = Block(1, 1), Block(4, 1)


def test_the_distance_weighs_layers_by_their_multiplications():
    one = {"small": LayerChoice(ELEMENT, 0.5), "large": LayerChoice(ELEMENT, 0.5)}
    assert distance(one, one, NETWORK) == 0
    assert distance(one, {**one, "large": LayerChoice(ELEMENT, 0.7)}, NETWORK) == 0.75 * (0.7 - 0.5)
    assert distance(one, {"small": one["small"]}, NETWORK) == 0.75 * 0.5


def test_masks_of_different_patterns_count_as_independent():
    one, other = {"small": LayerChoice(ELEMENT, 0.5)}, {"small": LayerChoice(ROWS, 0.8)}
    assert abs(distance(one, other, NETWORK) - 0.25 * (0.5 * 0.2 + 0.8 * 0.5)) < 1e-12


def test_the_nearest_trial_is_chosen_unless_dense_is_nearer():
    asked = {"large": LayerChoice(ELEMENT, 0.6)}
    finished = {
        0: {"large": LayerChoice(ELEMENT, 0.9)},
        1: {"large": LayerChoice(ELEMENT, 0.5)},
        2: {"large": LayerChoice(ELEMENT, 0.7)},
        3: {"large": LayerChoice(ELEMENT, 0.3)},
    }
    assert nearest(asked, finished, NETWORK) == 2  # as near as 1, and later
    assert nearest({"large": LayerChoice(ELEMENT, 0.1)}, finished, NETWORK) is None
    assert nearest(asked, {}, NETWORK) is None


def test_a_trial_that_keeps_much_less_is_no_origin():
    def network(small, large):
        return {"small": LayerChoice(ELEMENT, small), "large": LayerChoice(ROWS, large)}

    asked = network(0.9, 0.9)
    assert math.isclose(kept_share(asked, network(0.9, 0.95), NETWORK), 0.25 + 0.75 * 0.5)
    assert math.isclose(kept_share(asked, network(0.95, 0.8), NETWORK), 0.25 * 0.5 + 0.75)
    assert kept_share(asked, {}, NETWORK) == 1
    finished = {0: network(0.9, 0.95), 1: network(0.5, 0.5), 2: network(0.0, 0.3)}
    assert nearest(asked, finished, NETWORK) == 1  # 0 is nearer, but lacks three eighths
    assert nearest(asked, {0: finished[0]}, NETWORK) is None
    assert nearest(asked, {0: network(0.95, 0.9)}, NETWORK) == 0  # an eighth of it only


def test_removed_weights_are_the_dense_ones_and_all_else_is_inherited():
    task, network, _ = make_parts("cnn")
    dense, tuned = task.build_model(), task.build_model()
    with torch.no_grad():
        for tensor in tuned.state_dict().values():
            tensor.add_(1)
    name = network.layers[1].name
    scores = get_weight(dense, name).detach().abs().flatten(1)
    mask = block_mask(scores, ELEMENT, 0.5).view_as(get_weight(dense, name))
    model = task.build_model()
    Origin(tuned.state_dict(), {name: mask}).put_into(model)
    expected = {key: value.clone() for key, value in tuned.state_dict().items()}
    expected[f"{name}.weight"][~mask] = dense.state_dict()[f"{name}.weight"][~mask]
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_layer_with_the_same_choice_keeps_its_mask():
    old = block_mask(torch.rand(8, 24), ELEMENT, 0.5)
    new = block_mask(torch.rand(8, 24), ELEMENT, 0.5)
    origin = Origin({}, {"large": old})
    assert torch.equal(origin.same_masks({"large": new}, {"large": LayerChoice(ELEMENT, 0.5)})["large"], old)
    assert torch.equal(origin.same_masks({"large": new}, {"large": LayerChoice(ELEMENT, 0.9)})["large"], new)
    assert torch.equal(origin.same_masks({"large": new}, {"large": LayerChoice(ROWS, 0.5)})["large"], new)


def test_trials_begin_with_the_weights_of_the_nearest_and_the_last_used_are_kept(tmp_path):
    task, network, table = make_parts("cnn")
    job = make_job(trials=10, max_accuracy_loss=0.5, inherit=True, keep_weights=2, objective="front")
    result = run_search(job, task, network, table, 5.0, tmp_path)
    heirs = [trial for trial in result.trials if trial.inherited_from is not None]
    assert heirs
    assert all(trial.inherited_from < trial.number for trial in heirs)
    kept = {int(folder.name) for folder in (tmp_path / "weights").iterdir()}
    needed = {trial.number for trial in (*result.front, result.best)}
    needed |= {trial.inherited_from for trial in (*result.front, result.best) if trial.inherited_from is not None}
    assert needed <= kept
    assert len(kept - needed) <= 2


class Untrained:
    """A fine-tuner that trains nothing."""

    def finetune(self, model, pruned, task, spec, **options):
        return FineTuneResult(dict(pruned.masks), 0, 0.0, 0.0)


@pytest.mark.parametrize("pruner", [SparseGPT(), Magnitude()])
def test_weights_that_a_pruner_has_updated_keep_the_pruners_own_mask(pruner):
    task, network, _ = make_parts()
    dense, tuned = task.build_model(), task.build_model()
    name = network.layers[1].name
    assignment = {name: LayerChoice(ELEMENT, 0.6)}
    before = block_mask(torch.rand(get_weight(dense, name).shape), ELEMENT, 0.6)
    apply_masks(tuned, {name: before})
    evaluator = PruneAndFineTune(task, network, dense, pruner, Untrained(), make_job().finetune)
    found = evaluator.prune(assignment, seed=0, session=Session(origin=Origin(tuned.state_dict(), {name: before})))
    kept = found.weights[f"{name}.weight"][found.masks[name]]
    assert int(kept.count_nonzero()) == len(kept)
    assert torch.equal(found.masks[name], before) == isinstance(pruner, Magnitude)


def test_a_long_fine_tuning_begins_with_the_weights_that_its_network_and_the_origin_keep():
    task, network, _ = make_parts()
    dense, own, before = task.build_model(), task.build_model(), task.build_model()
    with torch.no_grad():
        for model, value in ((own, 1.0), (before, 2.0)):
            for tensor in model.state_dict().values():
                tensor.add_(value)
    name = network.layers[1].name
    mask, other = (block_mask(torch.rand(get_weight(dense, name).shape), ELEMENT, 0.5) for _ in range(2))
    apply_masks(own, {name: mask})
    apply_masks(before, {name: other})
    evaluator = PruneAndFineTune(task, network, dense, Magnitude(), Untrained(), make_job().finetune)
    options = {"seed": 0, "session": Session(origin=Origin(before.state_dict(), {name: other}))}
    found = evaluator.refine(own.state_dict(), {name: mask}, **options).weights
    expected = before.state_dict()
    weight = f"{name}.weight"
    expected[weight] = torch.where(other, expected[weight], own.state_dict()[weight]) * mask
    assert (mask & ~other).any()
    assert (other & ~mask).any()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
