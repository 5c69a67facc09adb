import math
from typing import Any

import pytest
import torch
from torch import nn

from pruneaug.errors import NetworkError, SpecError, TaskError, TrainingError
from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.distillation import distillation_loss
from pruneaug.finetune.schedule import learning_rate
from pruneaug.finetune.train import Train
from pruneaug.network.layers import find_layers
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.pruners.protocol import Masks, Pruned
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.spec.models import TrainSpec

SPEC = TrainSpec(epochs=3, batch_size=16, learning_rate=0.05)


def pruned(model: nn.Module, task: Any, sparsity: float = 0.75) -> Pruned:
    network = find_layers(model, task.example_inputs(1))
    choice = LayerChoice(Block(2, 3), sparsity)
    return Magnitude().prune(model, network, {"3": choice, "7": choice}, None)


def weight_of(model: nn.Module, name: str) -> torch.Tensor:
    return model.state_dict()[f"{name}.weight"]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd"}, {"optimizer": "adamw", "learning_rate": 0.005}])
def test_a_dense_network_learns(task: Any, optimizer: dict[str, Any]) -> None:
    model = task.build_model()
    result = FINETUNERS.create("train", {}).finetune(model, None, task, SPEC.model_copy(update=optimizer), seed=0)
    assert task.evaluate(model, "validation") > 0.95
    assert (result.masks, result.steps, result.epochs) == ({}, 18, 3.0)
    assert 0 < result.last_loss < 0.5


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_removed_weights_are_exact_zeros_and_the_others_are_trained(task: Any, optimizer: Any) -> None:
    model = task.build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = pruned(model, task)
    spec = SPEC.model_copy(update={"optimizer": optimizer})
    result = Train().finetune(model, plan, task, spec, seed=0)
    for name in ("3", "7"):
        assert torch.equal(result.masks[name], plan.masks[name])
        assert torch.equal(weight_of(model, name) != 0, plan.masks[name])
        assert not torch.equal(weight_of(model, name)[plan.masks[name]], before[f"{name}.weight"][plan.masks[name]])
    assert (weight_of(model, "0") != 0).all()


def test_masks_are_held_after_every_step(task: Any) -> None:
    model = task.build_model()
    plan = pruned(model, task)
    seen = []
    Train().finetune(model, plan, task, SPEC, seed=0, progress=lambda *_: seen.append(weight_of(model, "3") != 0))
    assert len(seen) == 18
    assert all(torch.equal(kept, plan.masks["3"]) for kept in seen)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(task: Any) -> None:
    models = [task.build_model() for _ in range(3)]
    for model, seed in zip(models, (4, 4, 5), strict=True):
        torch.rand(3)  # what the caller does with the random state does not matter
        Train().finetune(model, None, task, SPEC.model_copy(update={"epochs": 1.0}), seed=seed)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_training_leaves_the_caller_s_random_state_alone(task: Any) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    Train().finetune(task.build_model(), None, task, SPEC.model_copy(update={"epochs": 0.5}), seed=0)
    assert torch.equal(torch.rand(2), wanted)


def test_each_epoch_is_shuffled_anew_and_differs_between_seeds(task: Any) -> None:
    Train().finetune(task.build_model(), None, task, SPEC, seed=1)
    Train().finetune(task.build_model(), None, task, SPEC, seed=2)
    assert len(set(task.seeds)) == len(task.seeds) == 6
    assert None not in task.seeds


@pytest.mark.parametrize(
    ("epochs", "batch_size", "steps"), [(0.25, 16, 2), (0.001, 16, 1), (1.5, 16, 9), (1, 100, 1), (2, 95, 2)]
)
def test_a_fraction_of_an_epoch_is_a_fraction_of_its_steps(
    task: Any, epochs: float, batch_size: int, steps: int
) -> None:
    spec = SPEC.model_copy(update={"epochs": epochs, "batch_size": batch_size})
    calls: list[tuple[int, int, float]] = []
    result = Train().finetune(task.build_model(), None, task, spec, seed=0, progress=lambda *call: calls.append(call))
    assert result.steps == steps
    assert [(step, total) for step, total, _ in calls] == [(step + 1, steps) for step in range(steps)]
    assert calls[-1][2] == result.last_loss


def test_the_network_is_left_in_eval_mode_and_contiguous(task: Any) -> None:
    model = task.build_model()
    Train().finetune(model, None, task, SPEC.model_copy(update={"epochs": 0.2}), seed=0)
    assert not any(module.training for module in model.modules())
    assert all(value.is_contiguous() for value in model.state_dict().values())


def test_a_network_with_three_dimensional_convolutions_trains(task: Any) -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, 1), nn.Flatten(), nn.Linear(128, 2))
    Train().finetune(model, None, task, SPEC.model_copy(update={"epochs": 0.2}), seed=0)
    assert not model.training


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "groups", "is_channels_last"),
    [(12, 1, 2, 1, False), (32, 1, 2, 4, False), (16, 1, 2, 1, True), (12, 1, 1, 1, True), (12, 3, 2, 1, True)],
)
def test_layers_whose_gradients_would_leave_their_memory_are_not_trained_channels_last(
    task: Any, channels: int, kernel: int, stride: int, groups: int, is_channels_last: bool
) -> None:
    last = nn.Conv2d(channels, 16, kernel, stride, kernel // 2, groups=groups)
    model = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), last, nn.Flatten())
    model.append(nn.Linear(16 * (8 // stride) ** 2, 2))
    seen = set()

    def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            seen.add(inputs[0].is_contiguous(memory_format=torch.channels_last))

    last.register_forward_pre_hook(look)
    Train().finetune(model, None, task, SPEC.model_copy(update={"epochs": 0.2}), seed=0)
    assert seen == {is_channels_last}


def test_frozen_parameters_stay_as_they_are(task: Any) -> None:
    model = task.build_model()
    model[0].weight.requires_grad_(False)
    before = weight_of(model, "0").clone()
    Train().finetune(model, None, task, SPEC.model_copy(update={"epochs": 0.5}), seed=0)
    assert torch.equal(weight_of(model, "0"), before)


def test_label_smoothing_reaches_the_loss_of_the_task(task: Any) -> None:
    Train().finetune(task.build_model(), None, task, TrainSpec(epochs=0.1, label_smoothing=0.3), seed=0)
    assert set(task.smoothing) == {0.3}


def test_mixed_precision_trains_float32_weights(task: Any) -> None:
    models = [task.build_model(), task.build_model()]
    for model, mixed in zip(models, (True, False), strict=True):
        Train().finetune(model, None, task, SPEC.model_copy(update={"mixed_precision": mixed}), seed=0)
        assert task.evaluate(model, "validation") > 0.9
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not same_weights(*models)


def test_a_pure_distillation_learns_from_the_teacher_and_not_from_the_labels(task: Any) -> None:
    teacher = task.build_model()
    Train().finetune(teacher, None, task, SPEC, seed=0)
    task.targets = 1 - task.targets  # wrong labels: only the teacher knows
    student = task.build_model()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    Train().finetune(student, None, task, SPEC.model_copy(update={"distillation": 1.0}), seed=1, teacher=teacher)
    assert task.evaluate(student, "validation") < 0.1
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_distillation_loss_is_the_softened_divergence() -> None:
    student, teacher = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[4.0, 0.0], [1.0, 1.0]])
    p, q = torch.softmax(teacher / 2, 1), torch.softmax(student / 2, 1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(distillation_loss(student, teacher, 2.0), expected)
    assert distillation_loss(teacher, teacher, 2.0) == 0


def test_distillation_without_a_teacher_is_refused(task: Any) -> None:
    with pytest.raises(SpecError, match="set both to 0"):
        Train().finetune(task.build_model(), None, task, TrainSpec(distillation=0.5), seed=0)


def test_masks_are_revised_while_training_and_the_last_ones_hold(task: Any) -> None:
    model = task.build_model()
    network = find_layers(model, task.example_inputs(1))
    progress: list[float] = []

    def revise(model: nn.Module, at: float) -> Masks:
        progress.append(at)
        return Magnitude().prune(model, network, {"7": LayerChoice(Block(1, 1), 0.9 * at)}, None).masks

    start = Pruned({"7": torch.ones(2, 128, dtype=torch.bool)}, revise)
    result = Train().finetune(model, start, task, SPEC, seed=0)
    assert progress == pytest.approx([step / 17 for step in range(18)])
    assert int((~result.masks["7"]).sum()) == round(0.9 * 256)
    assert torch.equal(weight_of(model, "7") != 0, result.masks["7"])


def test_a_long_training_revises_its_masks_about_a_hundred_times(task: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    progress: list[float] = []

    def revise(model: nn.Module, at: float) -> Masks:
        progress.append(at)
        return {}

    Train().finetune(model, Pruned({}, revise), task, TrainSpec(epochs=60, batch_size=16), seed=0)
    assert 100 <= len(progress) <= 130
    assert progress[-1] == 1.0


def test_a_training_of_one_step_holds_the_final_masks(task: Any) -> None:
    progress: list[float] = []

    def revise(model: nn.Module, at: float) -> Masks:
        progress.append(at)
        return {}

    Train().finetune(task.build_model(), Pruned({}, revise), task, TrainSpec(epochs=0.01), seed=0)
    assert progress == [1.0]


def test_a_loss_that_is_not_finite_ends_training_with_the_step_and_the_way_out(task: Any) -> None:
    task.images[:] = float("inf")
    with pytest.raises(TrainingError, match=r"by step 1 of 18 .*try 0\.005"):
        Train().finetune(task.build_model(), None, task, SPEC, seed=0)


def test_a_diverging_training_ends_with_an_error(task: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model[1].weight.data.fill_(1e30)
    with pytest.raises(TrainingError, match="lower `learning_rate`"):
        Train().finetune(model, None, task, TrainSpec(epochs=4, learning_rate=1e38, warmup=0), seed=0)


def test_a_left_over_batch_of_one_sample_is_dropped(task: Any) -> None:
    task.samples = 33
    result = Train().finetune(task.build_model(), None, task, SPEC, seed=0)
    assert result.steps == 6


def test_a_training_split_of_one_sample_is_refused(task: Any) -> None:
    task.samples = 1
    with pytest.raises(TaskError, match="at least one batch of two samples"):
        Train().finetune(task.build_model(), None, task, SPEC, seed=0)


def test_batches_of_one_sample_train_where_they_are_asked_for(task: Any) -> None:
    result = Train().finetune(task.build_model(), None, task, TrainSpec(epochs=0.1, batch_size=1), seed=0)
    assert result.steps == 10


def test_a_mask_for_an_unknown_layer_is_refused(task: Any) -> None:
    with pytest.raises(NetworkError, match="9"):
        Train().finetune(task.build_model(), Pruned({"9": torch.ones(1) > 0}), task, SPEC, seed=0)


def test_the_learning_rate_warms_up_and_falls_to_zero_along_a_cosine() -> None:
    spec = TrainSpec(learning_rate=0.4, warmup=0.2)
    rates = [learning_rate(step, 20, spec) for step in range(21)]
    assert rates[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert rates[12] == pytest.approx(0.2)
    assert rates[20] == pytest.approx(0, abs=1e-12)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_learning_rate_may_be_constant_and_a_warm_up_may_last_all_along() -> None:
    constant = TrainSpec(learning_rate=0.4, warmup=0, schedule="constant")
    assert {learning_rate(step, 7, constant) for step in range(7)} == {0.4}
    assert all(0 < learning_rate(step, 5, TrainSpec(warmup=1.0)) <= 0.1 for step in range(5))
    assert math.isfinite(learning_rate(0, 1, TrainSpec(warmup=0.5)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_trains_under_masks(task: Any) -> None:
    model = task.build_model()
    plan = pruned(model, task)
    result = Train().finetune(model, plan, task, SPEC, seed=0, device="cuda")
    assert next(model.parameters()).is_cuda
    assert all(not mask.is_cuda for mask in result.masks.values())
    assert torch.equal((weight_of(model, "3") != 0).cpu(), plan.masks["3"])
    assert task.evaluate(model.cpu(), "validation") > 0.9
