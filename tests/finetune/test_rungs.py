"""Interrupted trainings; the contract in pruneaug.testing says the rest."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pruneaug import files
from pruneaug.errors import StorageError
from pruneaug.finetune import rungs as stops
from pruneaug.finetune.data import EndlessBatches
from pruneaug.finetune.protocol import Rung, Rungs
from pruneaug.finetune.train import Train
from pruneaug.network.layers import find_layers
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.protocol import Masks, Pruned
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Batch, Split

SPEC = TrainSpec(epochs=3, batch_size=16, learning_rate=0.05)  # 18 steps


class Killed(Exception):
    pass


def die(rung: Rung) -> bool:
    raise Killed


def run(task: Any, spec: TrainSpec = SPEC, seed: int = 0, rungs: Rungs | None = None, **given: Any) -> nn.Module:
    model = task.build_model()
    pruned = given.pop("pruned", Pruned({"7": torch.arange(256).reshape(2, 128) % 2 == 0}))
    Train().finetune(model, pruned, task, spec, seed=seed, rungs=rungs, **given)
    return model


def interrupted(task: Any, path: Path, at: float = 1.25, spec: TrainSpec = SPEC, make: Any = None) -> nn.Module:
    """Killed at this epoch, then run again."""
    with pytest.raises(Killed):
        run(task, spec, rungs=Rungs((at,), die, path), **({} if make is None else {"pruned": make()}))
    torch.rand(7)
    return run(task, spec, rungs=Rungs((at,), checkpoint=path), **({} if make is None else {"pruned": make()}))


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("at", [0.01, 1.0, 1.25, 2.9])
@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adamw", "learning_rate": 0.01}, {"momentum": 0.0}, {"mixed_precision": True}],
    ids=str,
)
def test_an_interrupted_training_ends_as_one_that_was_not(
    task: Any, tmp_path: Path, at: float, settings: dict[str, Any]
) -> None:
    spec = SPEC.model_copy(update=settings)
    assert same(run(task, spec), interrupted(task, tmp_path / "state", at, spec))


def test_a_loader_that_shuffles_by_the_global_generator_is_taken_up_where_it_was(task: Any, tmp_path: Path) -> None:
    class Unseeded(type(task)):  # type: ignore[misc]
        def batches(self, split: Split, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
            for part in torch.randperm(self.samples).split(batch_size):
                noise = 0.1 * torch.randn(len(part), 1, 8, 8)  # and augments by it, batch by batch
                yield Batch((self.images[part] + noise,), self.targets[part])

    assert same(run(Unseeded()), interrupted(Unseeded(), tmp_path / "state"))


def test_masks_that_are_revised_by_what_was_observed_go_on_too(task: Any, tmp_path: Path) -> None:
    def make() -> Pruned:
        state = {"seen": torch.zeros(2, 128)}

        def observe(model: nn.Module) -> None:
            state["seen"] += model[7].weight.grad.abs()  # type: ignore[index, operator]
            state["count"] = state.get("count", torch.zeros(())) + 1

        def revise(model: nn.Module, progress: float) -> Masks:
            order = state["seen"].flatten().argsort()
            mask = torch.ones(256, dtype=torch.bool)
            mask[order[: round(200 * progress)]] = False
            assert "count" not in state or state["count"] == round(progress * 17)
            return {"7": mask.reshape(2, 128)}

        return Pruned({"7": torch.ones(2, 128, dtype=torch.bool)}, revise, observe, state)

    whole = run(task, pruned=make())
    assert int((whole[7].weight == 0).sum()) == 200  # type: ignore[index]
    assert same(whole, interrupted(task, tmp_path / "state", make=make))


@pytest.mark.parametrize("name", ["movement", "gradual"])
def test_built_in_pruners_that_change_masks_while_training_go_on_too(task: Any, tmp_path: Path, name: str) -> None:
    def make() -> Pruned:
        model = task.build_model()
        network = find_layers(model, task.example_inputs(1))
        choice = LayerChoice(Block(2, 3), 0.75)
        pruned: Pruned = PRUNERS.create(name, {}).prune(model, network, {"3": choice, "7": choice}, None)
        return pruned

    whole = run(task, pruned=make())
    assert int((whole[7].weight == 0).sum()) > 180  # type: ignore[index]
    for at in (0.5, 2.0):
        assert same(whole, interrupted(task, tmp_path / f"state-{at}", at, make=make))


def test_a_pruner_that_keeps_what_it_saw_to_itself_has_its_training_begun_anew(task: Any, tmp_path: Path) -> None:
    pruned = Pruned({"7": torch.ones(2, 128, dtype=torch.bool)}, observe=lambda model: None)
    run(task, pruned=pruned, rungs=Rungs((1.0,), checkpoint=tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_gradients_are_seen_after_each_backward_pass(task: Any) -> None:
    seen: list[float] = []

    def observe(model: nn.Module) -> None:
        seen.append(float(model[7].weight.grad.abs().sum()))  # type: ignore[index, union-attr]

    run(task, pruned=Pruned({}, observe=observe))
    assert len(seen) == 18
    assert min(seen) > 0


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_broken_checkpoint_is_ignored_with_a_warning(
    task: Any, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    with pytest.raises(Killed):
        run(task, rungs=Rungs((1.0,), die, path))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a checkpoint"}[damage])
    with caplog.at_level(logging.WARNING):
        assert same(run(task), run(task, rungs=Rungs((), checkpoint=path)))
    assert "begins anew" in caplog.text


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"spec": SPEC.model_copy(update={"learning_rate": 0.1})}, {"pruned": Pruned({})}], ids=str
)
def test_a_checkpoint_of_another_training_is_ignored(task: Any, tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(Killed):
        run(task, rungs=Rungs((1.0,), die, tmp_path / "state"))
    assert same(run(task, **other), run(task, rungs=Rungs((), checkpoint=tmp_path / "state"), **other))


def test_a_checkpoint_of_a_training_that_began_with_other_weights_is_ignored(task: Any, tmp_path: Path) -> None:
    class Halved(type(task)):  # type: ignore[misc]
        def build_model(self) -> nn.Module:
            model = super().build_model()
            with torch.no_grad():
                model[3].weight.mul_(0.5)
            return model

    with pytest.raises(Killed):
        run(task, rungs=Rungs((1.0,), die, tmp_path / "state"))
    assert same(run(Halved()), run(Halved(), rungs=Rungs((), checkpoint=tmp_path / "state")))


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "mixed_precision": True}], ids=str)
@pytest.mark.parametrize("step", [1, 5, 6, 7, 13, 17])
def test_a_training_without_rungs_goes_on_where_it_was_killed(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(stops, "_STORE_EVERY_S", 0.0)
    monkeypatch.setattr(stops, "_STORE_SHARE", float("inf"))
    spec, checkpoint = SPEC.model_copy(update=settings), Rungs((), checkpoint=tmp_path / "state")
    trained: list[int] = []

    def die_after(done: int, total: int, loss: float) -> None:
        trained.append(done)
        if len(trained) == step + 1:
            raise Killed

    with pytest.raises(Killed):
        run(task, spec, rungs=checkpoint, progress=die_after)
    torch.rand(7)
    assert same(run(task, spec), run(task, spec, rungs=checkpoint, progress=die_after))
    assert trained == [*range(1, step + 2), *range(step + 1, 19)]  # the step that was not stored is trained again


@pytest.mark.parametrize(("storing_s", "stored"), [(1.0, [6, 12]), (2.0, [6, 16]), (3.0, [6])])
def test_a_training_is_stored_once_a_minute_and_more_seldom_where_that_takes_long(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storing_s: float, stored: list[int]
) -> None:
    clock, steps = SimpleNamespace(now=0.0), []

    class Slow(type(task)):  # type: ignore[misc]
        def loss(self, *args: Any, **options: Any) -> torch.Tensor:
            clock.now += 10.0  # seconds a step
            loss = super().loss(*args, **options)
            assert isinstance(loss, torch.Tensor)
            return loss

    def save(path: Path, state: Any, training: str) -> None:
        clock.now += storing_s
        steps.append(state.step)

    monkeypatch.setattr(stops, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(stops, "save_state", save)
    run(Slow(), rungs=Rungs((), checkpoint=tmp_path / "state"))
    assert steps == stored
    run(Slow(), rungs=Rungs(()))
    assert steps == stored  # without a file for it, nothing is stored


def test_the_first_act_of_a_resumed_training_is_to_ask_the_judge_again(task: Any, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(Killed):
        run(task, rungs=Rungs((1.0, 2.0), die, path))
    steps: list[int] = []
    seen: list[int] = []
    rungs = Rungs((1.0, 2.0), lambda rung: bool(seen.append(rung.steps)) or rung.steps < 12, path)  # type: ignore[func-returns-value]
    run(task, rungs=rungs, progress=lambda step, total, loss: steps.append(step))
    assert seen == [6, 12]
    assert steps == list(range(7, 13))


def test_a_judge_may_change_the_model_and_the_training_does_not_notice(task: Any) -> None:
    def judge(rung: Rung) -> bool:
        with torch.no_grad():
            for tensor in (*rung.model.parameters(), *rung.model.buffers()):
                tensor.zero_()
        rung.model.train()
        torch.manual_seed(1)
        return True

    assert same(run(task), run(task, rungs=Rungs((0.5, 1.0, 1.5), judge)))


def test_a_full_disk_is_the_callers_to_know(task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="make room"):
        run(task, rungs=Rungs((1.0,), checkpoint=tmp_path / "state"))


def test_batches_are_found_again_by_epoch_and_place(task: Any) -> None:
    batches = EndlessBatches(task, 16, 3)
    for _ in range(9):
        next(batches)
    assert (batches.epoch, batches.taken) == (1, 3)
    other = EndlessBatches(task, 16, 3)
    other.seek(batches.epoch, batches.taken, batches.random_state)
    for _ in range(9):
        assert torch.equal(next(batches).inputs[0], next(other).inputs[0])
