from typing import Any

import pytest
import torch
from torch import nn

from pruneaug.errors import SpecError
from pruneaug.finetune.features import feature_layers, feature_loss, recorded_features
from pruneaug.finetune.train import Train
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks import MODELS


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_loss_is_the_mean_squared_error_relative_to_the_teacher() -> None:
    student = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0, 30.0]])}
    teacher = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([[10.0, 30.0]])}
    assert float(feature_loss(student, teacher)) == pytest.approx((1 / 2 + 100 / 1000) / 2)
    assert float(feature_loss(teacher, teacher)) == 0
    nothing = {name: torch.zeros_like(value) for name, value in teacher.items()}
    assert float(feature_loss(nothing, teacher)) == pytest.approx(1)


def test_a_layer_whose_teacher_gives_zeros_does_not_divide_by_zero() -> None:
    zeros = {"a": torch.zeros(3)}
    assert float(feature_loss(zeros, zeros)) == 0


def test_features_are_what_the_modules_gave_and_the_hooks_go_again() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    with recorded_features(model, ["0", "1"]) as features:
        model(x)
        assert torch.equal(features["0"], model[0](x))
        assert torch.equal(features["1"], model[1](model[0](x)))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "options", "shape", "expected"),
    [
        ("resnet20", {}, (3, 32, 32), None),
        ("vgg16", {}, (3, 32, 32), ("features.5", "features.12", "features.22", "features.32", "features.42")),
        ("digits_cnn", {}, (1, 32, 32), None),
        ("resnet50", {"num_classes": 10}, (3, 64, 64), ("layer1.2", "layer2.3", "layer3.5", "layer4.2")),
    ],
)
def test_stages_of_the_built_in_networks_are_found(
    name: str, options: dict[str, Any], shape: tuple[int, ...], expected: tuple[str, ...] | None
) -> None:
    model = MODELS.create(name, options)
    training = [module.training for module in model.modules()]
    names = feature_layers(model, (torch.randn(1, *shape),), None)
    assert names == (expected or names)
    assert len(names) >= 2
    with recorded_features(model, names) as features:
        model(torch.randn(2, *shape))
    assert all(features[name].dim() == 4 for name in names)
    assert hooks(model) == 0
    assert [module.training for module in model.modules()] == training


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        (
            "BertForSequenceClassification",
            {
                "hidden_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "intermediate_size": 8,
                "vocab_size": 9,
            },
            tuple(f"bert.encoder.layer.{i}" for i in range(3)),
        ),
        (
            "ResNetForImageClassification",
            {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [2, 2], "layer_type": "basic"},
            ("resnet.encoder.stages.0", "resnet.encoder.stages.1"),
        ),
    ],
)
def test_stages_and_blocks_of_transformers_are_found(architecture: str, config: Any, expected: Any) -> None:
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**config)).eval()
    inputs = torch.ones(2, 5, dtype=torch.int64) if "Bert" in architecture else torch.randn(2, 3, 32, 32)
    names = feature_layers(model, (inputs,), None)
    assert names == expected
    with recorded_features(model, names) as features:
        model(inputs)
    assert set(features) == set(names)


def test_layers_can_be_named_with_wildcards() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert feature_layers(model, (), ["[01]"]) == ("0", "1")
    with pytest.raises(SpecError, match="'7' matches none"):
        feature_layers(model, (), ["0", "7"])


def test_a_network_without_stages_needs_names() -> None:
    with pytest.raises(SpecError, match="`feature_layers`"):
        feature_layers(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.randn(1, 3),), None)


def test_a_module_that_gives_no_tensor_of_numbers_is_refused(task: Any) -> None:
    class Indices(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    model = nn.Sequential(nn.Linear(3, 4), Indices())
    with pytest.raises(SpecError, match="'1' gives Tensor"), recorded_features(model, ["1"]):
        model(torch.randn(2, 3))
    assert hooks(model) == 0


def test_a_student_comes_nearer_to_the_teacher_s_features_and_both_are_left_without_hooks(task: Any) -> None:
    teacher, student = task.build_model(), task.build_model()
    Train().finetune(teacher, None, task, TrainSpec(epochs=3, batch_size=16, learning_rate=0.05), seed=0)
    task.targets = 1 - task.targets  # wrong labels: only the teacher knows

    def distance() -> float:
        with (
            torch.no_grad(),
            recorded_features(teacher, ["4"]) as wanted,
            recorded_features(student.eval(), ["4"]) as found,
        ):
            student(task.images)
            teacher(task.images)
        return feature_loss(found, wanted).item()

    before = distance()
    spec = TrainSpec(epochs=4, batch_size=16, learning_rate=0.02, distillation=1.0, feature_distillation=5.0)
    Train().finetune(student, None, task, spec, seed=1, teacher=teacher)
    assert distance() < 0.3 * before
    assert task.evaluate(student, "validation") < 0.2
    assert hooks(student) == hooks(teacher) == 0


def test_hooks_go_when_the_training_fails(task: Any) -> None:
    teacher, student = task.build_model(), task.build_model()
    task.images[:] = float("nan")
    with pytest.raises(Exception, match="finite"):
        Train().finetune(student, None, task, TrainSpec(feature_distillation=1.0), seed=1, teacher=teacher)
    assert hooks(student) == hooks(teacher) == 0
