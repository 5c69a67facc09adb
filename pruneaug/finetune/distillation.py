"""Learning from the dense network: from its outputs, and from what its layers compute on the way."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pruneaug.errors import SpecError
from pruneaug.finetune.features import feature_layers, feature_loss, recorded_features
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Batch, Task


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """temperature^2 * KL(teacher || student) of the softened classes, mean over the batch (Hinton et al., 2015).

    student, teacher: logits [batch, classes].
    """
    wanted = functional.log_softmax(teacher.float() / temperature, dim=-1)
    found = functional.log_softmax(student.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


class Distillation:
    """The part of the loss that comes from the teacher; none where the spec asks for none.

    Used as a context: it listens to the layers of both networks, and leaves them as found.
    Raises SpecError if the spec asks for it and there is no teacher, or no such layer.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, task: Task, spec: TrainSpec, device: torch.device
    ) -> None:
        if spec.needs_teacher and teacher is None:
            raise SpecError(
                "distillation learns from the dense network, but there is none here (distillation="
                f"{spec.distillation:g}, feature_distillation={spec.feature_distillation:g}); set both to 0 for the "
                "dense training"
            )
        self._model, self._task, self._spec, self._device = model, task, spec, device
        self._teacher = teacher if spec.needs_teacher else None
        self._found: Mapping[str, torch.Tensor] = {}
        self._wanted: Mapping[str, torch.Tensor] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Distillation:
        if self._teacher is not None and self._spec.feature_distillation > 0:
            inputs = tuple(value.to(self._device) for value in self._task.example_inputs(1))
            names = feature_layers(self._teacher, inputs, self._spec.feature_layers)
            self._found = self._undo.enter_context(recorded_features(self._model, names))
            self._wanted = self._undo.enter_context(recorded_features(self._teacher, names))
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def add(self, loss: torch.Tensor, output: Any, batch: Batch) -> torch.Tensor:
        """The whole loss, after the student's forward pass gave `output`."""
        if self._teacher is None:
            return loss
        spec = self._spec
        with torch.no_grad():
            teacher_output = self._teacher(*batch.inputs)
        if spec.distillation > 0:
            student, teacher = self._task.logits(output), self._task.logits(teacher_output)
            softened = distillation_loss(student, teacher, spec.distillation_temperature)
            loss = (1 - spec.distillation) * loss + spec.distillation * softened
        if spec.feature_distillation > 0:
            loss = loss + spec.feature_distillation * feature_loss(self._found, self._wanted)
        return loss
