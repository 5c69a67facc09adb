from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pruneaug.errors import NetworkError
from pruneaug.network.layers import KeptDense, Layer, Network, find_layers, list_layers
from pruneaug.network.ops import Conv2dOp, LinearOp


class Flow(nn.Module):
    """Named layers and what to do with them; `always` keeps the network prunable."""

    def __init__(self, run: Callable[["Flow", torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.always = nn.Linear(4, 4)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, self.always(x))


def reason(network: Network, name: str) -> str:
    assert name not in [layer.name for layer in network.layers]
    return {kept.name: kept.reason for kept in network.kept_dense}[name]


def one_reason(layer: nn.Module, shape: tuple[int, ...]) -> str:
    """Why a layer that gets ones of this shape is kept dense."""
    model = Flow(lambda m, x: m.layer(torch.ones(shape)), layer=layer)
    return reason(find_layers(model, (torch.ones(1, 4),)), "layer")


def test_layers_come_in_the_order_in_which_they_run_each_with_its_op() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 5)
    )
    assert find_layers(model, (torch.zeros(2, 3, 8, 8),)) == Network(
        (
            Layer("0", Conv2dOp(2, 3, 8, 8, 8, (3, 3), (2, 2), (1, 1, 1, 1))),
            Layer("3", LinearOp(2, 128, 5)),
        )
    )
    swapped = Flow(lambda m, x: m.first(m.second(x)), first=nn.Linear(4, 4), second=nn.Linear(4, 4))
    assert [layer.name for layer in find_layers(swapped, (torch.ones(1, 4),)).layers] == ["always", "second", "first"]


@pytest.mark.parametrize(("shape", "tokens"), [((4,), 1), ((3, 4), 3), ((2, 5, 4), 10)])
def test_tokens_are_all_leading_dimensions(shape: tuple[int, ...], tokens: int) -> None:
    assert find_layers(nn.Sequential(nn.Linear(4, 6)), (torch.zeros(shape),)).layers[0].op == LinearOp(tokens, 4, 6)


def test_an_input_by_keyword_counts() -> None:
    model = Flow(lambda m, x: m.fc(input=x), fc=nn.Linear(4, 2))
    assert find_layers(model, (torch.ones(3, 4),)).layers[1] == Layer("fc", LinearOp(3, 4, 2))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 2), (5, 5)])
@pytest.mark.parametrize("dilation", [(1, 1), (3, 2)])
def test_padding_same_is_what_pytorch_pads(kernel: tuple[int, int], dilation: tuple[int, int]) -> None:
    conv = nn.Conv2d(2, 3, kernel, dilation=dilation, padding="same", bias=False)
    image = torch.randn(1, 2, 9, 8)
    op = find_layers(nn.Sequential(conv), (image,)).layers[0].op
    assert isinstance(op, Conv2dOp)
    top, left, bottom, right = op.padding
    padded = nn.functional.pad(image, (left, right, top, bottom))
    assert op.out_size == (9, 8)
    assert torch.allclose(nn.functional.conv2d(padded, conv.weight, dilation=dilation), conv(image), atol=1e-5)


@pytest.mark.parametrize(("padding", "expected"), [("valid", (0, 0, 0, 0)), (2, (2, 2, 2, 2)), ((1, 2), (1, 2, 1, 2))])
def test_padding_is_top_left_bottom_right(padding: object, expected: tuple[int, ...]) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=padding)  # type: ignore[arg-type]
    op = find_layers(nn.Sequential(conv), (torch.zeros(1, 1, 8, 8),)).layers[0].op
    assert isinstance(op, Conv2dOp)
    assert op.padding == expected


def test_an_image_without_a_batch_dimension_is_a_batch_of_one() -> None:
    op = find_layers(nn.Sequential(nn.Conv2d(1, 2, 3)), (torch.zeros(1, 8, 9),)).layers[0].op
    assert op == Conv2dOp(1, 1, 2, 8, 9, (3, 3))


def test_a_layer_that_runs_twice_on_equal_shapes_has_two_calls() -> None:
    model = Flow(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(4, 4))
    assert find_layers(model, (torch.ones(1, 4),)).layers[1] == Layer("fc", LinearOp(1, 4, 4), calls=2)


def test_one_module_under_two_names_is_one_layer_with_two_calls() -> None:
    fc = nn.Linear(4, 4)
    network = find_layers(nn.Sequential(fc, nn.ReLU(), fc), (torch.ones(1, 4),))
    assert network == Network((Layer("0", LinearOp(1, 4, 4), calls=2),))


def test_a_layer_that_runs_on_different_shapes_stays_dense() -> None:
    model = Flow(lambda m, x: m.fc(x) + m.fc(x[:1]), fc=nn.Linear(4, 4))
    assert "linear-t1-i4-o4, linear-t2-i4-o4" in reason(find_layers(model, (torch.ones(2, 4),)), "fc")


def test_a_layer_that_does_not_run_stays_dense() -> None:
    model = Flow(lambda m, x: x, idle=nn.Linear(4, 4))
    assert "does not run" in reason(find_layers(model, (torch.ones(1, 4),)), "idle")


def test_weights_tied_between_layers_stay_dense() -> None:
    model = Flow(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight = model.a.weight
    network = find_layers(model, (torch.ones(1, 4),))
    assert reason(network, "a") == "its weight is shared with b.weight"
    assert reason(network, "b") == "its weight is shared with a.weight"


def test_a_head_tied_to_its_embedding_stays_dense() -> None:
    model = Flow(lambda m, x: m.head(m.words(torch.tensor([1]))), words=nn.Embedding(7, 4), head=nn.Linear(4, 7))
    model.head.weight = model.words.weight
    network = find_layers(model, (torch.ones(1, 4),))
    assert reason(network, "head") == "its weight is shared with words.weight"
    assert "Embedding" in reason(network, "words")


def test_weights_tied_by_their_memory_stay_dense() -> None:
    model = Flow(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight.data = model.a.weight.data
    assert "shared" in reason(find_layers(model, (torch.ones(1, 4),)), "b")


@pytest.mark.parametrize("groups", [2, 3])
def test_grouped_convolutions_are_prunable(groups: int) -> None:
    conv = nn.Conv2d(12, 6, (3, 1), groups=groups)
    (layer,) = find_layers(nn.Sequential(conv), (torch.ones(2, 12, 8, 8),)).layers
    assert layer.op == Conv2dOp(2, 12, 6, 8, 8, (3, 1), groups=groups)
    assert layer.op.matrix_shape == (6, conv.weight[0].numel())


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 8, 8), "depthwise"),
        (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 8, 8), "depthwise"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (1, 4, 8, 8), "'reflect'"),
        (nn.Conv1d(4, 4, 3), (1, 4, 8), "Conv1d"),
        (nn.Conv3d(1, 4, 1), (1, 1, 2, 2, 2), "Conv3d"),
        (nn.ConvTranspose2d(4, 4, 3), (1, 4, 8, 8), "ConvTranspose2d"),
        (parametrizations.weight_norm(nn.Linear(4, 4)), (1, 4), "is computed"),
        (parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), (1, 4, 8, 8), "is computed"),
        (prune.random_unstructured(nn.Linear(4, 4), "weight", amount=0.5), (1, 4), "is computed"),
    ],
)
def test_other_layers_stay_dense_and_say_why(layer: nn.Module, shape: tuple[int, ...], words: str) -> None:
    assert words in one_reason(layer, shape)


def test_a_parametrized_weight_stays_dense_and_stays_parametrized() -> None:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    assert "is computed" in one_reason(layer, (1, 4))
    assert parametrize.is_parametrized(layer, "weight")


def test_a_spectral_norm_in_training_takes_no_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 4)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_layers(model, (torch.ones(1, 4),))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_linear_layer_with_a_forward_of_its_own_stays_dense() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert "Doubled computes its result in its own way" in one_reason(Doubled(4, 4), (1, 4))


def test_a_forward_set_on_the_layer_itself_keeps_it_dense() -> None:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert "in its own way" in one_reason(layer, (1, 4))


def test_a_transformers_conv1d_stays_dense_and_is_named() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    assert "replace it by an nn.Linear" in one_reason(pytorch_utils.Conv1D(8, 4), (1, 4))


def test_the_joint_projection_of_an_attention_stays_dense() -> None:
    model = Flow(lambda m, x: m.mix(x, x, x)[0], mix=nn.MultiheadAttention(4, 2))
    network = find_layers(model, (torch.ones(3, 1, 4),))
    assert "nn.MultiheadAttention" in reason(network, "mix")
    assert "does not run as a module" in reason(network, "mix.out_proj")


def test_the_linear_layers_of_a_transformer_layer_are_found() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    names = [layer.name for layer in find_layers(model, (torch.ones(1, 3, 8),)).layers]
    assert names == ["layers.0.linear1", "layers.0.linear2", "layers.1.linear1", "layers.1.linear2"]


def test_a_model_that_is_itself_a_layer_has_the_empty_name() -> None:
    assert find_layers(nn.Linear(4, 2), (torch.ones(1, 4),)).layers == (Layer("", LinearOp(1, 4, 2)),)


def test_the_model_is_left_as_found() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    find_layers(model, (torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)),))
    assert torch.equal(torch.rand(3), wanted)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_forward_that_fails_is_explained_with_its_cause_and_leaves_the_model_as_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(NetworkError, match=r"\[2, 5\].*RuntimeError.*give inputs") as caught:
        find_layers(model, (torch.ones(2, 5),))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert model.training
    assert not model[0]._forward_pre_hooks


def test_inputs_that_are_no_tuple_are_refused() -> None:
    with pytest.raises(NetworkError, match="a tuple"):
        find_layers(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4))  # type: ignore[arg-type]


def test_a_network_without_a_prunable_layer_is_refused_with_the_reasons() -> None:
    with pytest.raises(NetworkError, match="'0': it is a depthwise convolution"):
        find_layers(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), (torch.ones(1, 2, 3, 3),))
    with pytest.raises(NetworkError, match="no layer with weights"):
        find_layers(nn.ReLU(), (torch.ones(1),))


def test_a_network_without_a_prunable_layer_is_listed_with_the_reasons() -> None:
    network = list_layers(nn.Sequential(nn.Conv1d(2, 2, 1)), (torch.ones(1, 2, 3),))
    assert network == Network((), (KeptDense("0", "Conv1d layers are not prunable; only nn.Linear and nn.Conv2d are"),))


def test_inputs_in_another_precision_than_the_weights_are_told() -> None:
    with pytest.raises(
        NetworkError, match=r"\(float64 \[2, 4\]\) .*; its weights are float32, so give inputs in float32"
    ):
        find_layers(nn.Sequential(nn.Linear(4, 4)), (torch.ones(2, 4).double(),))
