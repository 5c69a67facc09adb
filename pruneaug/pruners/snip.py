"""SNIP: connection sensitivity (Lee et al., 2019, arXiv:1810.02340)."""

from __future__ import annotations

from torch import Tensor, nn

from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.calibration import check_batches, check_finite, required
from pruneaug.pruners.choosing import Scope, check_scope, prune_by_scores
from pruneaug.pruners.gradients import mean_gradients
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.patterns import Assignment


class Snip:
    """Removes the weights of smallest |weight * gradient|, the gradient of the mean loss over all samples.

    The scores are normalised to the sum 1 over the layers that are scored. One threshold over all layers, as in the
    paper, is scope `global`. `batches`: of calibration data.
    """

    def __init__(self, scope: Scope = "layer", batches: int = 8) -> None:
        self.scope = check_scope(scope, "snip")
        self.batches = check_batches(batches)

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        gradients = mean_gradients(model, network, required(data, "snip"), self.batches)
        sensitivities = {
            name: check_finite(name, (get_weight(model, name).detach() * gradient).float().abs())
            for name, gradient in gradients.items()
        }
        total = sum(float(sensitivity.double().sum()) for sensitivity in sensitivities.values())
        return {name: sensitivity / (total or 1.0) for name, sensitivity in sensitivities.items()}

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        return prune_by_scores(self, model, network, assignment, data, self.scope)
