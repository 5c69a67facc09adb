"""Second-order pruning by the diagonal of the empirical Fisher information (LeCun et al., 1990, "Optimal Brain Damage";
Theis et al., 2018, arXiv:1801.05787)."""

from __future__ import annotations

from torch import Tensor, nn

from pruneaug.errors import SpecError
from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.calibration import check_finite, required
from pruneaug.pruners.choosing import Scope, check_scope, prune_by_scores
from pruneaug.pruners.gradients import at_least_float32, sample_gradients
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.patterns import Assignment


class Fisher:
    """Removes the weights of smallest weight ** 2 * F / 2, in units of the loss.

    F is the mean of the squared gradient over single samples: at a minimum it stands for the diagonal of the Hessian,
    and the score for the loss that removing the weight adds. `samples`: of calibration data; each is run alone.
    """

    def __init__(self, scope: Scope = "layer", samples: int = 128) -> None:
        if samples < 1:
            raise SpecError(f"`samples` of fisher pruning must be at least 1, but got {samples}")
        self.scope = check_scope(scope, "fisher")
        self.samples = samples

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        squares: dict[str, Tensor] = {}
        seen = 0
        for gradients in sample_gradients(model, network, required(data, "fisher"), self.samples):
            seen += 1
            for name, gradient in gradients.items():
                square = at_least_float32(gradient).square()
                squares[name] = squares[name].add_(square) if name in squares else square
        return {
            name: check_finite(name, (0.5 * get_weight(model, name).detach().square() * square / seen).float())
            for name, square in squares.items()
        }

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        return prune_by_scores(self, model, network, assignment, data, self.scope)
