"""An evaluator that computes accuracy instead of training for it: a search of many trials runs in a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pruneaug.finetune.protocol import Progress
from pruneaug.network.layers import Network, apply_masks
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.pruners.protocol import Masks
from pruneaug.searcher.candidate import Candidate
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.patterns import Assignment
from pruneaug.tasks.protocol import Task


class AnalyticEvaluator:
    """Prunes by magnitude, trains nothing, and lets `accuracy` say what a network with these masks reaches.

    `accuracy` gets the mean sparsity over all prunable layers, each counted alike. `pruned` holds the assignments that
    were tried, in order; `refined` counts the long fine-tunings.
    """

    def __init__(self, task: Task, network: Network, accuracy: Callable[[float], float]) -> None:
        self._task = task
        self._network = network
        self._accuracy = accuracy
        self.pruned: list[Assignment] = []
        self.refined = 0

    def prune(self, assignment: Assignment, *, seed: int, progress: Progress | None = None) -> Candidate:
        self.pruned.append(assignment)
        model = self._task.build_model()
        masks = Magnitude().prune(model, self._network, assignment, None).masks
        apply_masks(model, masks)
        return Candidate(model.state_dict(), masks, self._accuracy(self._mean_sparsity(masks)), 1.0)

    def refine(
        self, weights: Mapping[str, torch.Tensor], masks: Masks, *, seed: int, progress: Progress | None = None
    ) -> Candidate:
        self.refined += 1
        return Candidate(weights, masks, self._accuracy(self._mean_sparsity(masks)), 5.0)

    def _mean_sparsity(self, masks: Masks) -> float:
        return sum(mask_sparsity(mask) for mask in masks.values()) / len(self._network.layers)
