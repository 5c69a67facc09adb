"""Masks held in a network that trains."""

from __future__ import annotations

import math

import torch
from torch import nn

from pruneaug.finetune.protocol import FineTuneResult
from pruneaug.network.layers import apply_masks, get_weight
from pruneaug.pruners.protocol import Masks, Pruned

_REVISIONS = 100  # how often masks are revised in one training, if the pruner asks for it


class HeldMasks:
    """The masks of one training, and the zeros that they mean.

    masks: those to hold now, on whatever device they were given. `pruned` None holds nothing.
    """

    def __init__(self, model: nn.Module, pruned: Pruned | None) -> None:
        self._model, self._pruned = model, pruned
        self.set({} if pruned is None else dict(pruned.masks))

    def set(self, masks: Masks) -> None:
        """Hold these from now on. Raises NetworkError if one does not fit its layer."""
        apply_masks(self._model, masks)
        self.masks = masks
        # In the weight's own memory order: mixed orders make the fill several times slower.
        self._removed = [
            (weight, torch.empty_like(weight, dtype=torch.bool).copy_(~mask))
            for weight, mask in ((get_weight(self._model, name), mask) for name, mask in masks.items())
        ]

    def revise(self, step: int, total: int) -> None:
        """Before a step, counted from 0: let the pruner change the masks, where it wants to and its time has come."""
        if self._pruned is not None and self._pruned.revise is not None and _is_revision(step, total):
            self.set(self._pruned.revise(self._model, step / (total - 1) if total > 1 else 1.0))

    def observe(self) -> None:
        """After a backward pass: let the pruner see the gradients."""
        if self._pruned is not None and self._pruned.observe is not None:
            self._pruned.observe(self._model)

    @torch.no_grad()
    def apply(self) -> None:
        """After an optimizer's step: removed weights are zero again."""
        for weight, removed in self._removed:
            weight.masked_fill_(removed, 0.0)

    def on_cpu(self) -> Masks:
        return {name: mask.cpu() for name, mask in self.masks.items()}


def hold_untrained(model: nn.Module, pruned: Pruned) -> FineTuneResult:
    """What stands for a fine-tuning of no epochs: the masks are put on, and the model is left in eval mode.

    A pruner that raises sparsity while the network trains does all of it at once; one that learns from the gradients of
    the training raises InputError.
    """
    held = HeldMasks(model.eval(), pruned)
    if pruned.revise is not None:
        held.set(pruned.revise(model, 1.0))
    return FineTuneResult(held.on_cpu(), steps=0, epochs=0.0, last_loss=math.nan)


def _is_revision(step: int, total: int) -> bool:
    return step % max(1, total // _REVISIONS) == 0 or step == total - 1
