"""GraSP: gradient signal preservation (Wang et al., 2020, arXiv:2002.07376)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.calibration import calibration_batches, check_batches, check_finite, looked_at, required
from pruneaug.pruners.choosing import Scope, check_scope, choose, pruned_layers
from pruneaug.pruners.gradients import check_reached
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.patterns import Assignment


class Grasp:
    """Removes the weights whose removal lowers the norm of the gradient least, or raises it most.

    With g and H the gradient and the Hessian of the mean loss with respect to all trainable parameters, a weight
    matters by weight * (H g): half of what its removal takes from |g| ** 2, to first order. That may be negative. Made
    for networks before training; at a minimum g is close to zero and says little. `batches`: of calibration data.
    """

    def __init__(self, scope: Scope = "layer", batches: int = 4) -> None:
        self.scope = check_scope(scope, "grasp")
        self.batches = check_batches(batches)

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        """What each weight matters, moved by one constant so that the least of all weights scores 0."""
        signed = self._importance(model, network, data)
        least = min(float(importance.min()) for importance in signed.values())
        return {name: (importance - least).clamp_min(0.0) for name, importance in signed.items()}

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        layers = pruned_layers(network, assignment)
        if not layers:
            return Pruned({})
        return Pruned(choose(self._importance(model, Network(layers), data), layers, assignment, self.scope))

    def _importance(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        """Layer name -> weight * (H g), of any sign."""
        products = hessian_gradient(model, network, required(data, "grasp"), self.batches)
        return {
            name: check_finite(name, (get_weight(model, name).detach() * product).float())
            for name, product in products.items()
        }


def hessian_gradient(model: nn.Module, network: Network, data: CalibrationData, count: int) -> dict[str, Tensor]:
    """Layer name -> the layer's part of H g, for the mean loss over all samples of at most `count` batches.

    Two passes: g over all batches, then the derivative of sum(g.detach() * gradient of each batch).
    """
    with looked_at(model, network) as weights, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # others: once only
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        places = {id(parameter): index for index, parameter in enumerate(parameters)}
        wanted = [places[id(weight)] for weight in weights.values()]
        gradient: list[Tensor | None] = [None] * len(parameters)
        for batch in calibration_batches(data, count):
            loss = data.loss(model, batch) * len(batch)
            if not loss.requires_grad:
                check_reached(weights, [None] * len(weights))
            gradient = _add(gradient, torch.autograd.grad(loss, parameters, allow_unused=True))
        check_reached(weights, [gradient[place] for place in wanted])
        product: list[Tensor | None] = [None] * len(parameters)
        seen = 0
        for batch in calibration_batches(data, count):
            seen += len(batch)
            loss = data.loss(model, batch) * len(batch)
            found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            aligned = sum((a * b).sum() for a, b in zip(gradient, found) if a is not None and b is not None)
            if isinstance(aligned, Tensor) and aligned.requires_grad:
                product = _add(product, torch.autograd.grad(aligned, parameters, allow_unused=True))
    products = zip(weights.items(), (product[place] for place in wanted))
    # A loss that is linear in a weight, and in all that it meets, has no second derivative there.
    return {name: torch.zeros_like(weight) if part is None else part / seen**2 for (name, weight), part in products}


def _add(totals: list[Tensor | None], parts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [part if total is None else total if part is None else total + part for total, part in zip(totals, parts)]
