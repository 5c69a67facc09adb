"""What every plug-in must keep: subclass the contract in a test, say how to make the plug-in, and pytest runs the rest.

class TestMyPruner(PrunerContract):
    def make(self):
        return MyPruner()
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import torch
from torch import nn

from pruneaug.finetune.batchnorm import reestimate_batchnorm
from pruneaug.finetune.protocol import DenseTraining, FineTuner, Rung, Rungs, accepts
from pruneaug.network.layers import Network, apply_masks, find_layers, get_weight
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.pruners.protocol import Pruned, Pruner, Scorer, TaskCalibration
from pruneaug.searcher.space import SearchSpace, build_space
from pruneaug.searcher.strategies.protocol import Strategy
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import DENSE, TWO_OF_FOUR, Block, LayerChoice, Pattern
from pruneaug.spec.models import SpaceSpec, TrainSpec
from pruneaug.tasks.protocol import SPLITS, Task
from pruneaug.testing.platform import analytic_table
from pruneaug.testing.task import ToyTask

_TRAIN = TrainSpec(epochs=2, batch_size=32, learning_rate=0.05)


class PrunerContract:
    """Of a Pruner. Override `make`."""

    def make(self) -> Pruner:
        raise NotImplementedError

    def prune(
        self, sparsity: float = 0.75, patterns: Sequence[Pattern] = (Block(4, 1), Block(1, 1))
    ) -> tuple[nn.Module, Network, dict[str, LayerChoice], Pruned]:
        """Prune the toy network: its first layer stays dense, the others alternate between two patterns."""
        task = ToyTask("cnn")
        model = task.build_model().eval()
        network = find_layers(model, task.example_inputs(1))
        assignment = {layer.name: LayerChoice(patterns[i % 2], sparsity) for i, layer in enumerate(network.layers)}
        assignment[network.layers[0].name] = DENSE
        pruned = self.make().prune(model, network, assignment, TaskCalibration(task, 32))
        return model, network, assignment, pruned

    def masks_at_the_end(self, model: nn.Module, pruned: Pruned) -> dict[str, torch.Tensor]:
        """The masks after three steps of what a fine-tuner does, if the pruner changes them meanwhile."""
        if pruned.revise is None:
            return pruned.masks
        task, masks = ToyTask("cnn"), pruned.masks
        for progress, batch in zip((0.0, 0.5, 1.0), task.batches("train", 32, 0)):
            masks = pruned.revise(model, progress)
            apply_masks(model, masks)
            model.zero_grad()
            task.loss(model(*batch.inputs), batch).backward()  # type: ignore[no-untyped-call]
            if pruned.observe is not None:
                pruned.observe(model)
        return masks

    def test_each_layer_that_is_not_dense_gets_a_bool_mask_of_its_weights_shape(self) -> None:
        model, _, assignment, pruned = self.prune()
        assert set(pruned.masks) == {name for name, choice in assignment.items() if not choice.is_dense}
        for name, mask in pruned.masks.items():
            assert mask.dtype == torch.bool
            assert mask.shape == get_weight(model, name).shape

    def test_only_whole_blocks_are_removed(self) -> None:
        model, _, assignment, pruned = self.prune()
        for name, mask in self.masks_at_the_end(model, pruned).items():
            pattern = assignment[name].pattern
            assert pattern is not None
            assert check_mask(weight_matrix(mask), pattern)

    def test_the_network_gets_as_sparse_as_was_asked(self) -> None:
        model, _, _, pruned = self.prune()
        masks = self.masks_at_the_end(model, pruned)
        weights = {name: mask.numel() for name, mask in masks.items()}
        reached = sum(weights[name] * mask_sparsity(mask) for name, mask in masks.items()) / sum(weights.values())
        assert abs(reached - 0.75) < 0.05

    def test_of_each_four_columns_two_stay_where_that_was_asked(self) -> None:
        model, _, assignment, pruned = self.prune(TWO_OF_FOUR.sparsity, [TWO_OF_FOUR, Block(4, 1)])
        for name, mask in self.masks_at_the_end(model, pruned).items():
            if assignment[name].pattern == TWO_OF_FOUR:
                matrix = weight_matrix(mask)
                kept = [int(columns.sum(1).max()) for columns in torch.split(matrix, 4, dim=1)]
                assert max(kept) <= 2
                whole = matrix[:, : matrix.shape[1] // 4 * 4]
                assert int(whole.sum()) == whole.numel() // 2

    def test_no_layer_is_removed_whole(self) -> None:
        model, _, _, pruned = self.prune(0.99)
        assert all(bool(mask.any()) for mask in self.masks_at_the_end(model, pruned).values())

    def test_the_same_network_gives_the_same_masks(self) -> None:
        first, second = self.prune()[3].masks, self.prune()[3].masks
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_weights_stay_finite(self) -> None:
        model = self.prune()[0]
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())

    def test_a_scorer_scores_each_weight_and_leaves_the_network_as_it_was(self) -> None:
        pruner, task = self.make(), ToyTask("cnn")
        if not isinstance(pruner, Scorer):
            return
        model = task.build_model()
        before = copy.deepcopy(model.state_dict())
        network = find_layers(model, task.example_inputs(1))
        scores = pruner.scores(model, network, TaskCalibration(task, 32))
        assert set(scores) == {layer.name for layer in network.layers}
        for name, score in scores.items():
            assert score.dtype == torch.float32
            assert score.shape == get_weight(model, name).shape
            assert bool(score.isfinite().all())
            assert float(score.min()) >= 0
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert all(module.training for module in model.modules())


class FineTunerContract:
    """Of a FineTuner. Override `make`."""

    def make(self) -> FineTuner:
        raise NotImplementedError

    def finetune(self, seed: int = 0, **options: Any) -> tuple[nn.Module, Pruned, Any]:
        """Fine-tune a pruned toy network."""
        task = ToyTask("cnn")
        model = task.build_model().eval()
        network = find_layers(model, task.example_inputs(1))
        assignment = {layer.name: LayerChoice(Block(4, 1), 0.5) for layer in network.layers}
        pruned = Magnitude().prune(model, network, assignment, None)
        apply_masks(model, pruned.masks)
        finetuner = self.make()
        if accepts(finetuner, "dense"):
            options = {"dense": DenseTraining(_TRAIN, task.build_model().state_dict()), **options}
        return model, pruned, finetuner.finetune(model, pruned, task, _TRAIN, seed=seed, **options)

    def test_removed_weights_stay_exactly_zero(self) -> None:
        model, _, result = self.finetune()
        for name, mask in result.masks.items():
            assert int(get_weight(model, name).detach()[~mask].count_nonzero()) == 0

    def test_fixed_masks_are_given_back_as_they_were(self) -> None:
        _, pruned, result = self.finetune()
        assert set(result.masks) == set(pruned.masks)
        assert all(torch.equal(result.masks[name], mask) for name, mask in pruned.masks.items())

    def test_training_raises_accuracy(self) -> None:
        model, _, _ = self.finetune()
        task = ToyTask("cnn")
        assert task.evaluate(model, "train") > task.evaluate(task.build_model(), "train")

    def test_a_dense_network_is_trained_without_masks(self) -> None:
        task = ToyTask("mlp")
        model = task.build_model()
        result = self.make().finetune(model, None, task, _TRAIN, seed=0)
        assert result.masks == {}
        assert task.evaluate(model, "train") > task.evaluate(task.build_model(), "train")

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        first, second = self.finetune()[0].state_dict(), self.finetune()[0].state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_the_model_is_left_in_eval_mode(self) -> None:
        assert not any(module.training for module in self.finetune()[0].modules())

    def test_progress_counts_every_step_to_the_last(self) -> None:
        steps: list[tuple[int, int]] = []
        _, _, result = self.finetune(progress=lambda step, total, loss: steps.append((step, total)))
        assert steps[-1] == (result.steps, result.steps)
        assert [step for step, _ in steps] == sorted({step for step, _ in steps})


class ResumableContract(FineTunerContract):
    """Of a FineTuner that takes `rungs`. Override `make`."""

    def judge(self, rung: Rung) -> bool:
        """As a search judges a rung; then it leaves as much of a mess as it may."""
        task = ToyTask("cnn")
        reestimate_batchnorm(rung.model, task.batches("train", 32, 7))
        assert 0 <= task.evaluate(rung.model, "validation") <= 1
        torch.rand(5)
        rung.model.train()
        return True

    def test_rungs_change_nothing(self) -> None:
        plain, looked_at = self.finetune()[0], self.finetune(rungs=Rungs((0.3, 1.0), self.judge))[0]
        _assert_equal(plain, looked_at)

    def test_rungs_come_in_order_under_their_masks_in_eval_mode(self) -> None:
        seen: list[tuple[float, int]] = []

        def judge(rung: Rung) -> bool:
            seen.append((rung.epochs, rung.steps))
            assert not any(module.training for module in rung.model.modules())
            for name, mask in rung.masks.items():
                assert int(get_weight(rung.model, name).detach()[~mask].count_nonzero()) == 0
            return True

        self.finetune(rungs=Rungs((1.0, 0.5, 2.0), judge))  # there are 8 steps in each of the 2 epochs
        assert seen == [(0.5, 4), (1.0, 8)]

    def test_a_judge_ends_the_training(self) -> None:
        model, _, result = self.finetune(rungs=Rungs((0.5, 1.0), lambda rung: rung.epochs < 1))
        assert (result.stopped, result.steps, result.epochs) == (True, 8, 1.0)
        assert not any(module.training for module in model.modules())
        for name, mask in result.masks.items():
            assert int(get_weight(model, name).detach()[~mask].count_nonzero()) == 0

    def test_a_training_that_was_killed_goes_on_from_its_last_rung_to_the_same_weights(self) -> None:
        plain, _, whole = self.finetune()
        seen: list[int] = []

        def judge(rung: Rung) -> bool:
            seen.append(rung.steps)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return self.judge(rung)

        with TemporaryDirectory() as folder:
            rungs = Rungs((0.5, 1.0, 1.5), judge, Path(folder) / "training.safetensors")
            try:
                self.finetune(rungs=rungs)
            except KeyboardInterrupt:
                torch.rand(3)
            model, _, result = self.finetune(rungs=rungs)
        assert seen == [4, 8, 8, 12]
        assert (result.steps, result.epochs, result.last_loss) == (whole.steps, whole.epochs, whole.last_loss)
        _assert_equal(plain, model)

    def test_a_training_that_a_judge_ended_can_be_continued(self) -> None:
        plain = self.finetune()[0]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "training.safetensors"
            assert self.finetune(rungs=Rungs((1.0,), lambda rung: False, path))[2].stopped
            model, _, result = self.finetune(rungs=Rungs((1.0,), lambda rung: True, path))
        assert not result.stopped
        _assert_equal(plain, model)

    def test_the_checkpoint_of_another_training_is_left_alone(self) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "training.safetensors"
            self.finetune(seed=1, rungs=Rungs((1.0,), lambda rung: False, path))
            model = self.finetune(seed=2, rungs=Rungs((1.0,), checkpoint=path))[0]
        _assert_equal(self.finetune(seed=2)[0], model)


def _assert_equal(first: nn.Module, second: nn.Module) -> None:
    """Bit for bit."""
    others = second.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


class TaskContract:
    """Of a Task. Override `make`."""

    def make(self) -> Task:
        raise NotImplementedError

    def test_it_is_a_task(self) -> None:
        assert isinstance(self.make(), Task)

    def test_every_build_gives_the_same_weights(self) -> None:
        task = self.make()
        first, second = task.build_model().state_dict(), task.build_model().state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_builds_do_not_share_weights(self) -> None:
        task = self.make()
        first, second = task.build_model(), task.build_model()
        assert all(a is not b for a, b in zip(first.parameters(), second.parameters(), strict=True))

    def test_the_network_runs_on_example_inputs_of_each_batch_size(self) -> None:
        task = self.make()
        model = task.build_model().eval()
        for batch in (1, 3):
            with torch.no_grad():
                assert len(task.logits(model(*task.example_inputs(batch)))) == batch

    def test_one_pass_gives_every_sample_once(self) -> None:
        task = self.make()
        for split in SPLITS:
            assert sum(len(batch) for batch in task.batches(split, 16)) == task.size(split) > 0

    def test_without_a_seed_a_pass_repeats_itself(self) -> None:
        task = self.make()
        first, second = (next(iter(task.batches("validation", 8))) for _ in range(2))
        assert torch.equal(first.targets, second.targets)
        assert all(torch.equal(a, b) for a, b in zip(first.inputs, second.inputs, strict=True))

    def test_with_a_seed_a_pass_is_shuffled_and_can_be_repeated(self) -> None:
        task = self.make()
        passes = [torch.cat([batch.targets for batch in task.batches("train", 16, seed)]) for seed in (1, 1, 2)]
        assert torch.equal(passes[0], passes[1])
        assert not torch.equal(passes[0], passes[2])

    def test_the_loss_is_a_scalar_that_reaches_the_weights(self) -> None:
        task = self.make()
        model = task.build_model().eval()
        batch = next(iter(task.batches("train", 8, 0)))
        loss = task.loss(model(*batch.inputs), batch, 0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.shape == ()
        assert any(parameter.grad is not None for parameter in model.parameters())

    def test_accuracy_is_the_fraction_of_right_answers(self) -> None:
        task = self.make()
        model = task.build_model().eval()
        right = 0
        with torch.no_grad():
            for batch in task.batches("validation", 16):
                right += int((task.logits(model(*batch.inputs)).argmax(dim=1) == batch.targets).sum())
        assert abs(task.evaluate(model, "validation") - right / task.size("validation")) < 1e-9


class StrategyContract:
    """Of a Strategy. Override `make`."""

    def make(self) -> Strategy:
        raise NotImplementedError

    def space(self) -> SearchSpace:
        """Four layers, two of them equal."""
        task = ToyTask("cnn")
        network = find_layers(task.build_model(), task.example_inputs(1))
        spec = SpaceSpec(patterns=["block:1x1", "block:8x1"], sparsities=[0.5, 0.7, 0.9])
        table = analytic_table([layer.op for layer in network.layers], spec.patterns, spec.sparsities)
        return build_space(network, spec, table)

    def proposals(self, seed: int, count: int = 15) -> list[tuple[dict[str, LayerChoice], dict[str, Any]]]:
        """Assignments and parameters of a study in which half of the trials are infeasible and some are skipped."""
        strategy, space = self.make(), self.space()
        study = optuna.create_study(direction="minimize")
        found = []
        for number in range(count):
            study.sampler = strategy.sampler(seed * 1000 + number)
            trial = study.ask()
            assignment = dict(strategy.propose(trial, space))
            found.append((assignment, copy.deepcopy(trial.params)))
            cost = sum(1 - choice.sparsity for choice in assignment.values())
            if number % 5 == 4:
                trial.report(cost, 0)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                trial.set_constraint("accuracy_loss", float(number % 2))
                study.tell(trial, cost)
        return found

    def test_proposals_are_choices_of_the_space(self) -> None:
        layers = {layer.name: layer for layer in self.space().layers}
        for assignment, _ in self.proposals(0):
            for name, choice in assignment.items():
                assert choice == layers[name].nearest(choice.pattern, choice.sparsity)

    def test_every_trial_has_the_same_parameters(self) -> None:
        assert len({tuple(sorted(params)) for _, params in self.proposals(0)}) == 1

    def test_the_same_seed_gives_the_same_proposals(self) -> None:
        assert self.proposals(3) == self.proposals(3)

    def test_another_seed_gives_other_proposals(self) -> None:
        assert self.proposals(3) != self.proposals(4)

    def test_an_assignment_follows_from_its_parameters_alone(self) -> None:
        strategy, space = self.make(), self.space()
        for assignment, params in self.proposals(0):
            assert dict(strategy.propose(optuna.trial.FixedTrial(params), space)) == assignment  # type: ignore[arg-type]
