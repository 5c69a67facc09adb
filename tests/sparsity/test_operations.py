import pytest
import torch

from pruneaug.errors import InputError
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.sparsity.operations import operation_sparsity

NETWORK = Network(
    (
        Layer("conv", Conv2dOp(1, 2, 3, 4, 4, (1, 1))),  # 96 multiplications
        Layer("fc", LinearOp(1, 4, 4), calls=2),  # 32
    )
)


def test_each_weight_counts_by_its_multiplications_in_all_calls() -> None:
    conv = torch.tensor([[[[1]], [[0]]], [[[1]], [[1]]], [[[0]], [[1]]]], dtype=torch.bool)  # a third removed
    fc = torch.eye(4, dtype=torch.bool)  # three quarters removed
    assert operation_sparsity(NETWORK, {"conv": conv}) == pytest.approx(32 / 128)
    assert operation_sparsity(NETWORK, {"fc": fc}) == pytest.approx(24 / 128)
    assert operation_sparsity(NETWORK, {"conv": conv, "fc": fc}) == pytest.approx(56 / 128)


def test_no_mask_is_no_sparsity() -> None:
    assert operation_sparsity(NETWORK, {}) == 0.0


def test_a_mask_of_an_unknown_layer_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="conf"):
        operation_sparsity(NETWORK, {"conf": torch.ones(1, dtype=torch.bool)})
