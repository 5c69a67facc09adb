"""SNIP, Taylor, Fisher and GraSP against their papers' formulas, computed by finite differences or full Hessians."""

import pytest
import torch
from pruner_cases import Data, blend
from torch import nn
from torch.func import functional_call

from pruneaug.errors import InputError, NetworkError, SpecError
from pruneaug.network.layers import find_layers, get_weight
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.gradients import mean_gradients
from pruneaug.pruners.grasp import hessian_gradient
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.tasks.protocol import Batch

ALL = Data().everything()
NAMES = ("first", "grouped", "last")
SOME = {name: [0, 7, -1] for name in NAMES}  # weights, as flat indices, whose derivatives are differenced


def loss_with(model: nn.Module, name: str, index: int, change: float, batch: Batch = ALL) -> float:
    """The mean loss with one weight changed."""
    weight = get_weight(model, name)
    changed = weight.detach().clone().flatten()
    changed[index] += change
    parameters = {f"{name}.weight": changed.view(weight.shape)}
    output = functional_call(model, parameters, batch.inputs)
    return float(nn.functional.cross_entropy(output, batch.targets).detach())


def slope(model: nn.Module, name: str, index: int, batch: Batch = ALL) -> float:
    """The derivative of the mean loss by one weight, from central differences."""
    step = 1e-5
    return (loss_with(model, name, index, step, batch) - loss_with(model, name, index, -step, batch)) / (2 * step)


def at(tensor: torch.Tensor, index: int) -> float:
    return float(tensor.detach().flatten()[index])


def scores(name: str, **options: object) -> dict[str, torch.Tensor]:
    model, network = blend()
    return dict(PRUNERS.create(name, options).scores(model, network, Data()))


def single(index: int) -> Batch:
    return Batch((ALL.inputs[0][index : index + 1],), ALL.targets[index : index + 1])


def test_the_mean_gradient_is_that_of_the_loss_over_all_samples() -> None:
    model, network = blend()
    gradients = mean_gradients(model, network, Data(), 2)
    for name, indices in SOME.items():
        for index in indices:
            assert at(gradients[name], index) == pytest.approx(slope(model, name, index), rel=1e-5, abs=1e-9)


def test_snip_is_the_normalised_size_of_weight_times_gradient() -> None:
    model, _ = blend()
    found = scores("snip")
    assert sum(float(score.double().sum()) for score in found.values()) == pytest.approx(1.0, abs=1e-6)
    products = {
        (name, index): abs(at(get_weight(model, name), index) * slope(model, name, index))
        for name, indices in SOME.items()
        for index in indices
    }
    (first, reference), *others = products.items()
    for (name, index), product in others:  # ratios: the sum over all weights cancels
        ratio = at(found[name], index) / at(found[first[0]], first[1])
        assert ratio == pytest.approx(product / reference, rel=1e-4)


@pytest.mark.parametrize("power", [1, 2])
def test_taylor_is_the_mean_over_batches_of_weight_times_gradient(power: int) -> None:
    model, _ = blend()
    found = scores("taylor", power=power)
    for name, indices in SOME.items():
        for index in indices:
            weight = at(get_weight(model, name), index)
            changes = [abs(weight * slope(model, name, index, batch)) ** power for batch in Data().batches(2)]
            assert at(found[name], index) == pytest.approx((5 * changes[0] + 3 * changes[1]) / 8, rel=1e-4)


@pytest.mark.parametrize("samples", [8, 6])
def test_fisher_is_half_the_squared_weight_times_the_mean_squared_gradient_of_single_samples(samples: int) -> None:
    model, _ = blend()
    found = scores("fisher", samples=samples)
    for name, indices in SOME.items():
        for index in indices:
            information = sum(slope(model, name, index, single(sample)) ** 2 for sample in range(samples)) / samples
            assert at(found[name], index) == pytest.approx(
                0.5 * at(get_weight(model, name), index) ** 2 * information, rel=1e-4
            )


def test_fisher_predicts_the_loss_of_removing_a_weight_at_a_minimum() -> None:
    """Logistic regression whose labels are drawn from its own outputs: there F is the Hessian, in expectation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    x = torch.randn(4000, 3, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(0.3)
        labels = torch.multinomial(model(x).softmax(1), 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    for _ in range(30):  # Newton's method to the minimum on these labels
        weight = model[0].weight.detach().flatten()

        def loss(flat: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(x @ flat.view(2, 3).T, labels)

        gradient = torch.autograd.functional.jacobian(loss, weight)
        hessian = torch.autograd.functional.hessian(loss, weight)
        model[0].weight.data = (weight - torch.linalg.pinv(hessian) @ gradient).view(2, 3)

    class Drawn(Data):
        def batches(self, count: int):
            yield Batch((x,), labels)

    network = find_layers(model, (x[:1],))
    score = PRUNERS.create("fisher", {"samples": 4000}).scores(model, network, Drawn())["0"]
    for index in range(6):
        flat = model[0].weight.detach().flatten().clone()
        before = float(loss(flat))
        flat[index] = 0.0
        assert at(score, index) == pytest.approx(float(loss(flat)) - before, rel=0.15)


def flat_loss(model: nn.Module, batch: Batch):
    """The loss as a function of all parameters in one vector, and the vector."""
    parameters = dict(model.named_parameters())

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([parameter.numel() for parameter in parameters.values()])
        named = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts)}
        return nn.functional.cross_entropy(functional_call(model, named, batch.inputs), batch.targets)

    return loss, torch.cat([parameter.detach().flatten() for parameter in parameters.values()])


def test_the_product_of_hessian_and_gradient_is_that_of_the_full_hessian() -> None:
    model, network = blend()
    loss, flat = flat_loss(model, ALL)
    gradient = torch.autograd.functional.jacobian(loss, flat)
    product = torch.autograd.functional.hessian(loss, flat) @ gradient
    parts = dict(zip(dict(model.named_parameters()), product.split([p.numel() for p in model.parameters()])))
    found = hessian_gradient(model, network, Data(), 2)
    for name in NAMES:
        assert torch.allclose(found[name].flatten(), parts[f"{name}.weight"], rtol=1e-8, atol=1e-12)


def test_grasp_tells_what_the_removal_of_a_weight_takes_from_the_gradients_norm() -> None:
    """Half the derivative of |g|^2 along a weight's removal; the constant that moves the scores cancels."""
    model, _ = blend()
    loss, flat = flat_loss(model, ALL)
    offsets = {}
    offset = 0
    for name, parameter in model.named_parameters():
        offsets[name] = offset
        offset += parameter.numel()

    def norm(index: int, shrink: float) -> float:
        changed = flat.clone()
        changed[index] *= 1 - shrink
        return float(torch.autograd.functional.jacobian(loss, changed).square().sum())

    found = scores("grasp")
    importance = {}
    for name, indices in SOME.items():
        for index in indices:
            place = offsets[f"{name}.weight"] + index % found[name].numel()
            importance[name, index] = (norm(place, -1e-5) - norm(place, 1e-5)) / 4e-5
    (first, reference), *others = importance.items()
    for (name, index), value in others:
        difference = at(found[name], index) - at(found[first[0]], first[1])
        assert difference == pytest.approx(value - reference, rel=1e-3, abs=1e-7)


def test_grasp_runs_through_attention_that_has_no_fast_second_derivative() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8)
            self.out = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed = self.mix(x).unsqueeze(1)
            return self.out(nn.functional.scaled_dot_product_attention(mixed, mixed, mixed).squeeze(1).mean(1))

    torch.manual_seed(0)
    model = Attends()

    class Sequences(Data):
        def batches(self, count: int):
            yield Batch((torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)),), torch.arange(4))

    network = find_layers(model, (torch.zeros(1, 6, 8),))
    found = PRUNERS.create("grasp", {}).scores(model, network, Sequences())
    assert all(bool(score.any()) for score in found.values())


def test_snip_lets_opposite_batches_cancel_and_taylor_does_not() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()

    class Opposite(Data):
        def batches(self, count: int):
            x = torch.ones(1, 2, dtype=torch.float64)
            yield from (Batch((x,), torch.ones(1)), Batch((-x,), torch.ones(1)))

        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return model(*batch.inputs).mean()

    network = find_layers(model, (torch.ones(1, 2, dtype=torch.float64),))
    assert not PRUNERS.create("snip", {}).scores(model, network, Opposite())["0"].any()
    expected = model[0].weight.detach().abs().float()
    assert torch.allclose(PRUNERS.create("taylor", {}).scores(model, network, Opposite())["0"], expected)


GRADIENT_PRUNERS = ["snip", "grasp", "taylor", "fisher"]


@pytest.mark.parametrize("name", GRADIENT_PRUNERS)
def test_a_frozen_weight_is_scored_like_any_other(name: str) -> None:
    model, network = blend()
    expected = PRUNERS.create(name, {}).scores(model, network, Data())
    model.first.weight.requires_grad_(False)
    found = PRUNERS.create(name, {}).scores(model, network, Data())
    assert torch.equal(found["first"], expected["first"])
    assert not model.first.weight.requires_grad


@pytest.mark.parametrize("name", GRADIENT_PRUNERS)
def test_a_layer_that_the_loss_does_not_reach_is_named_unless_it_stays_dense(name: str) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 5).double()
            self.idle = nn.Linear(4, 5).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.idle(x)
            return self.used(x).tanh()

    model, data = Idle(), Data(shape=(4,))
    network = find_layers(model, (torch.zeros(1, 4, dtype=torch.float64),))
    choice = LayerChoice(Block(1, 1), 0.5)
    with pytest.raises(NetworkError, match="'idle' got no gradient"):
        PRUNERS.create(name, {}).prune(model, network, {"idle": choice}, data)
    assert set(PRUNERS.create(name, {}).prune(model, network, {"used": choice}, data).masks) == {"used"}


@pytest.mark.parametrize("name", GRADIENT_PRUNERS)
def test_a_loss_without_gradient_or_that_is_no_number_is_an_error_that_names_a_layer(name: str) -> None:
    class Broken(Data):
        factor = float("nan")

        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            loss = super().loss(model, batch)
            return loss.detach() if self.factor == 0 else loss * self.factor

    model, network = blend()
    choice = {"first": LayerChoice(Block(1, 1), 0.5)}
    with pytest.raises(NetworkError, match=r"layer 'first': scores must be finite"):
        PRUNERS.create(name, {}).prune(model, network, choice, Broken())
    Broken.factor = 0.0
    with pytest.raises(NetworkError, match="'first' got no gradient"):
        PRUNERS.create(name, {}).prune(model, network, choice, Broken())


@pytest.mark.parametrize("name", [*GRADIENT_PRUNERS, "wanda", "sparsegpt", "synflow"])
def test_a_pruner_that_needs_data_says_so(name: str) -> None:
    model, network = blend()
    choice = {"first": LayerChoice(Block(1, 1), 0.5)}
    with pytest.raises(InputError, match=f"{name} pruning needs calibration data"):
        PRUNERS.create(name, {}).prune(model, network, choice, None)
    with pytest.raises(InputError, match="at least one batch"):
        PRUNERS.create(name, {}).prune(model, network, choice, Data(sizes=()))
    assert PRUNERS.create(name, {}).prune(model, network, {}, None).masks == {}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("taylor", {"power": 3}),
        ("taylor", {"batches": 0}),
        ("snip", {"scope": "row"}),
        ("fisher", {"samples": 0}),
        ("synflow", {"iterations": 0}),
        ("wanda", {"scope": "global"}),
        ("sparsegpt", {"damping": 0.0}),
        ("sparsegpt", {"columns": 0}),
        ("gradual", {"begin": 0.5, "end": 0.2}),
        ("gradual", {"initial": 1.0}),
        ("gradual", {"steps": 0}),
        ("movement", {"begin": -0.1}),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=r"must be|must lie|must hold"):
        PRUNERS.create(name, options)
