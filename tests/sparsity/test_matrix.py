import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix

sizes = st.integers(1, 5)


@given(st.one_of(st.tuples(sizes, sizes), st.tuples(sizes, sizes, sizes, sizes)))
def test_a_weight_comes_back_from_its_matrix(shape: tuple[int, ...]) -> None:
    weight = torch.arange(torch.Size(shape).numel()).reshape(shape)
    back = weight_from_matrix(weight_matrix(weight), shape)
    assert torch.equal(back, weight)
    assert back.is_contiguous()


def test_the_columns_of_a_convolution_are_ky_kx_and_then_the_input_channel() -> None:
    weight = torch.randn(3, 5, 2, 4)
    matrix = weight_matrix(weight)
    for out, channel, ky, kx in [(0, 0, 0, 0), (1, 3, 1, 2), (2, 4, 0, 3)]:
        assert matrix[out, (ky * 4 + kx) * 5 + channel] == weight[out, channel, ky, kx]


def test_the_matrix_times_unfolded_inputs_is_the_convolution() -> None:
    weight, image = torch.randn(4, 3, 3, 2), torch.randn(1, 3, 6, 7)
    patches = image.unfold(2, 3, 1).unfold(3, 2, 1)[0]  # [C, H, W, kh, kw]
    inputs = patches.permute(3, 4, 0, 1, 2).reshape(18, -1)  # [kh*kw*C, H*W]
    expected = torch.nn.functional.conv2d(image, weight)[0].reshape(4, -1)
    assert torch.allclose(weight_matrix(weight) @ inputs, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (1, 2, 3, 4, 5)])
def test_a_weight_of_another_rank_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must have shape \[O, I\] or \[O, C, kh, kw\]"):
        weight_matrix(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (3, 1, 2, 2), (3, 4, 1)])
def test_a_matrix_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="must be"):
        weight_from_matrix(torch.zeros(3, 6), shape)
