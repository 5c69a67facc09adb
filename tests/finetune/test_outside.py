"""Training loops of the user's own."""

import functools
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from training_loops import plain

from pruneaug.errors import PluginError, SpecError, TrainingError
from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.function import Function
from pruneaug.finetune.train import Train
from pruneaug.pruners.protocol import Masks, Pruned
from pruneaug.spec.models import TrainSpec

SPEC = TrainSpec(epochs=3, batch_size=16)
MASK = torch.rand(2, 128, generator=torch.Generator().manual_seed(5)) > 0.5


def finetune(function: Any, task: Any, spec: TrainSpec = SPEC, **given: Any) -> tuple[nn.Module, Any]:
    model = task.build_model()
    pruned = given.pop("pruned", Pruned({"7": MASK}))
    options = given.pop("options", {})
    result = Function(function, options).finetune(model, pruned, task, spec, seed=2, **given)
    assert not model.training
    return model, result


@pytest.fixture
def module() -> Iterator[Any]:
    """A module of the user's, by the name `my_training`."""
    made = types.ModuleType("my_training")
    sys.modules["my_training"] = made
    yield made
    del sys.modules["my_training"]


def test_a_loop_that_knows_nothing_of_masks_gives_what_it_gives_with_masks_applied_by_hand(task: Any) -> None:
    found, result = finetune(plain, task)
    wanted = task.build_model().train()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        wanted[7].weight.data[~MASK] = 0
        optimizer = torch.optim.SGD(wanted.parameters(), lr=0.05, momentum=0.9)
        for epoch in range(3):
            torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws one number when a pass begins
            for batch in task.batches("train", 16, 2 * 100_003 + epoch):
                optimizer.zero_grad()
                functional.cross_entropy(wanted(*batch.inputs), batch.targets).backward()
                optimizer.step()
                wanted[7].weight.data[~MASK] = 0
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in wanted.state_dict().items())
    assert (result.steps, result.epochs) == (18, 3.0)
    assert torch.equal(result.masks["7"], MASK)


def test_masks_are_held_after_each_step_and_gradients_are_gone_at_the_end(task: Any) -> None:
    seen = []

    def loop(model: nn.Module, loader: Any, loss: Any) -> None:
        optimizer = torch.optim.AdamW(model.parameters())
        other = nn.Linear(2, 2)
        other_optimizer = torch.optim.SGD(other.parameters(), lr=1)
        for x, y in loader:
            loss(model(x), y).backward()
            optimizer.step()
            other.weight.grad = torch.ones_like(other.weight)
            other_optimizer.step()  # of another model: no step of this training
            seen.append(bool((model[7].weight[~MASK] == 0).all()))

    model, result = finetune(loop, task)
    assert seen == [True] * 6
    assert result.steps == 6
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_function_may_ask_for(task: Any) -> None:
    got: dict[str, Any] = {}

    def loop(model, loader, masks, loss, epochs, steps, spec, seed, device, teacher, task, lr, decay=0.5):  # type: ignore[no-untyped-def]
        got.update(locals())

    teacher = task.build_model()
    model, _ = finetune(loop, task, options={"lr": 0.25}, teacher=teacher)
    assert got["model"] is model
    assert got["teacher"] is teacher
    assert got["task"] is task
    assert torch.equal(got["masks"]["7"], MASK)
    assert (got["epochs"], got["steps"], got["spec"], got["seed"]) == (3.0, 18, SPEC, 2)
    assert (got["device"], got["lr"], got["decay"]) == (torch.device("cpu"), 0.25, 0.5)
    assert len(got["loader"]) == 6
    x, y = next(iter(got["loader"]))
    with torch.no_grad():
        assert float(got["loss"](model(x), y)) == float(functional.cross_entropy(model(x), y))


def test_passes_over_the_loader_are_shuffled_anew_as_the_built_in_training_s_are(task: Any) -> None:
    def loop(model: nn.Module, loader: Any) -> None:
        for _ in range(3):
            list(loader)

    finetune(loop, task)
    mine = task.seeds.copy()
    task.seeds.clear()
    Train().finetune(task.build_model(), None, task, SPEC, seed=2)
    assert mine[:3] == task.seeds[:3]
    assert len(set(mine[:3])) == 3


def test_several_inputs_come_as_a_tuple(task: Any) -> None:
    class Two(type(task)):  # type: ignore[misc]
        def batches(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for batch in super().batches(*args, **kwargs):
                yield type(batch)((batch.inputs[0], batch.inputs[0]), batch.targets)

        def build_model(self) -> nn.Module:
            model = super().build_model()
            model.forward = lambda a, b: nn.Sequential.forward(model, (a + b) / 2)
            return model

    def loop(model: nn.Module, loader: Any) -> None:
        for inputs, _ in loader:
            assert isinstance(inputs, tuple | list)
            assert len(model(*inputs)) == 16

    finetune(loop, Two())


def test_the_number_a_function_returns_is_the_last_loss(task: Any) -> None:
    assert finetune(lambda model: 0.25, task)[1].last_loss == 0.25
    assert finetune(lambda model: torch.tensor(0.5), task)[1].last_loss == 0.5
    model, result = finetune(lambda model: model, task)
    (batch, *_) = task.batches("train", 16, 2 * 100_003)
    with torch.no_grad():
        assert result.last_loss == pytest.approx(float(functional.cross_entropy(model(*batch.inputs), batch.targets)))


def test_a_loop_without_an_optimizer_of_pytorch_holds_the_masks_at_its_end(task: Any, caplog: Any) -> None:
    def loop(model: nn.Module, loader: Any, loss: Any) -> None:
        for x, y in loader:
            gradients = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient

    with caplog.at_level(logging.WARNING):
        model, result = finetune(loop, task)
    assert torch.equal(model[7].weight != 0, MASK)
    assert "removed weights back" in caplog.text
    assert (result.steps, result.epochs) == (0, 1.0)


def test_parameters_that_were_replaced_are_masked_too(task: Any) -> None:
    def loop(model: nn.Module) -> None:
        model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()}, assign=True)

    model, _ = finetune(loop, task)
    assert not model[7].weight[~MASK].any()


def test_masks_that_change_while_training_reach_their_end(task: Any) -> None:
    progress: list[float] = []
    watched: list[float] = []

    def revise(model: nn.Module, at: float) -> Masks:
        progress.append(at)
        return {"7": torch.arange(256).reshape(2, 128) >= 200 * at}

    def observe(model: nn.Module) -> None:
        watched.append(float(model[7].weight.grad.abs().sum()))  # type: ignore[index]

    pruned = Pruned({"7": torch.ones(2, 128, dtype=torch.bool)}, revise, observe)
    model, result = finetune(plain, task, pruned=pruned)
    assert progress == pytest.approx([step / 17 for step in range(18)])
    assert len(watched) == 18
    assert all(value > 0 for value in watched)
    assert int((model[7].weight == 0).sum()) == 200
    assert torch.equal(result.masks["7"], model[7].weight != 0)
    progress.clear()
    model, _ = finetune(plain, task, TrainSpec(epochs=4, batch_size=16), pruned=pruned, options={})
    assert progress[-1] == 1.0

    def short(model: nn.Module, loader: Any) -> None:
        plain(model, loader, 1, torch.device("cpu"))

    progress.clear()
    model, _ = finetune(short, task, pruned=pruned)
    assert progress[-1] == 1.0
    assert int((model[7].weight == 0).sum()) == 200


@pytest.mark.parametrize("epochs", [1, 5])
def test_progress_ends_with_the_last_step_however_many_there_are(task: Any, epochs: int) -> None:
    calls: list[tuple[int, int]] = []

    def loop(model: nn.Module, loader: Any, device: torch.device) -> None:
        plain(model, loader, epochs, device)

    finetune(loop, task, progress=lambda step, total, loss: calls.append((step, total)))
    assert [step for step, _ in calls] == list(range(1, 6 * epochs + 1))
    assert calls[-1] == (6 * epochs, 6 * epochs)
    assert all(step < total for step, total in calls[:-1])


def test_a_distillation_is_refused_unless_the_function_asks_for_the_teacher(task: Any) -> None:
    spec = TrainSpec(distillation=0.5)
    with pytest.raises(SpecError, match="give it a parameter `teacher`"):
        finetune(plain, task, spec, teacher=task.build_model())
    finetune(lambda model, teacher: None, task, spec, teacher=task.build_model())


def test_a_function_must_leave_the_network_as_it_was_but_for_its_weights(task: Any) -> None:
    with pytest.raises(PluginError, match="in place, but returned another"):
        finetune(lambda model: nn.Linear(2, 2), task)
    with pytest.raises(PluginError, match=r"changed .*weight_mask"):
        finetune(lambda model: torch.nn.utils.prune.l1_unstructured(model[7], "weight", 0.5) and None, task)
    with pytest.raises(TrainingError, match=r"'7\.bias' is not"):
        finetune(lambda model: (model[7].bias.data.fill_(float("inf")), None)[1], task)


def test_an_error_in_the_function_is_the_user_s_to_read_and_no_watch_stays_behind(task: Any) -> None:
    from torch.optim import optimizer

    before = len(optimizer._global_optimizer_post_hooks), len(optimizer._global_optimizer_pre_hooks)
    with pytest.raises(ZeroDivisionError):
        finetune(lambda model: 1 / 0, task)
    assert (len(optimizer._global_optimizer_post_hooks), len(optimizer._global_optimizer_pre_hooks)) == before


def test_random_numbers_of_the_caller_are_left_alone(task: Any) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    finetune(plain, task)
    assert torch.equal(torch.rand(2), wanted)


def test_a_function_is_found_by_its_name_with_its_options_checked_before_any_training(module: Any, task: Any) -> None:
    def mine(model: nn.Module, loader: Any, lr: float, decay: float = 0.0) -> None: ...

    module.mine = mine
    module.partial = functools.partial(mine, lr=0.5)
    assert isinstance(FINETUNERS.create("my_training:mine", {"lr": 0.1}), Function)
    assert isinstance(FINETUNERS.create("my_training:partial", {}), Function)
    with pytest.raises(PluginError, match=r"no option 'rate'"):
        FINETUNERS.create("my_training:mine", {"lr": 0.1, "rate": 1})
    with pytest.raises(PluginError, match="needs the option 'lr'"):
        FINETUNERS.create("my_training:mine", {})
    with pytest.raises(PluginError, match="loader comes from pruneaug"):
        FINETUNERS.create("my_training:mine", {"lr": 0.1, "loader": 3})


def test_a_function_that_makes_a_fine_tuner_and_a_class_are_no_training_loops(module: Any) -> None:
    class Mine(Train):
        def __init__(self, model: str = "") -> None: ...

    module.make = lambda: Train()
    module.Mine = Mine
    assert type(FINETUNERS.create("my_training:make", {})) is Train
    assert type(FINETUNERS.create("my_training:Mine", {"model": "x"})) is Mine
