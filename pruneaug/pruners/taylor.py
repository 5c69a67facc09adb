"""First-order Taylor pruning (Molchanov et al., 2017, arXiv:1611.06440; 2019, arXiv:1906.10771)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pruneaug.errors import SpecError
from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.calibration import check_batches, check_finite, required
from pruneaug.pruners.choosing import Scope, check_scope, prune_by_scores
from pruneaug.pruners.gradients import at_least_float32, batch_gradients
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.patterns import Assignment


class Taylor:
    """Removes the weights whose loss matters least to first order: the mean over batches of |weight * gradient|.

    Unlike SNIP's, gradients of different batches do not cancel. `power` 2 squares what each batch says, as in the
    paper of 2019; with 1 scores are in units of the loss. `batches`: of calibration data.
    """

    def __init__(self, scope: Scope = "layer", power: Literal[1, 2] = 1, batches: int = 8) -> None:
        if power not in (1, 2):
            raise SpecError(f"the power of taylor pruning must be 1 or 2, but got {power!r}")
        self.scope = check_scope(scope, "taylor")
        self.power = power
        self.batches = check_batches(batches)

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        seen = 0
        for samples, gradients in batch_gradients(model, network, required(data, "taylor"), self.batches):
            seen += samples
            for name, gradient in gradients.items():
                change = (at_least_float32(get_weight(model, name).detach()) * gradient).abs() ** self.power * samples
                total[name] = total[name].add_(change) if name in total else change
        return {name: check_finite(name, (score / seen).float()) for name, score in total.items()}

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        return prune_by_scores(self, model, network, assignment, data, self.scope)
