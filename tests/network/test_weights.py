import pytest
import torch
from torch import nn

from pruneaug.errors import NetworkError
from pruneaug.network.layers import apply_masks, get_weight


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Sequential(nn.Linear(4, 5)))


def test_a_weight_is_found_by_its_path() -> None:
    model = small_model()
    assert get_weight(model, "2.0") is model[2][0].weight  # type: ignore[index]


@pytest.mark.parametrize("name", ["2.1", "1", "", "weight", "2.0.weight"])
def test_a_path_without_a_weight_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(NetworkError, match=r"did you mean '2.0'|choose from 0, 2.0"):
        get_weight(small_model(), name)


def test_masks_zero_what_they_remove_and_nothing_else() -> None:
    model = small_model()
    weight = get_weight(model, "0")
    before = weight.detach().clone()
    mask = torch.rand(weight.shape) < 0.5
    apply_masks(model, {"0": mask})
    assert get_weight(model, "0") is weight
    assert torch.equal(weight, torch.where(mask, before, 0))


def test_masks_zero_even_what_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    model[0].weight.data[:] = torch.tensor([[float("nan"), 1.0]])
    apply_masks(model, {"0": torch.tensor([[False, True]])})
    assert model[0].weight.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    "mask", [torch.ones(5, 4), torch.ones(4, 5, dtype=torch.bool), torch.ones(1, dtype=torch.bool)]
)
def test_a_mask_of_another_shape_or_type_is_refused_by_layer(mask: torch.Tensor) -> None:
    with pytest.raises(NetworkError, match=r"layer '2\.0' has weight \[5, 4\]"):
        apply_masks(small_model(), {"2.0": mask})
