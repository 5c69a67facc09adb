"""The prunable layers of a PyTorch network, each with its op."""

from __future__ import annotations

import difflib
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruneaug.errors import NetworkError
from pruneaug.network.ops import Conv2dOp, LinearOp, Op


@dataclass(frozen=True, slots=True)
class Layer:
    """A prunable Linear or Conv2d: its module path, its op for the example input, and its calls in one forward."""

    name: str
    op: Op
    calls: int = 1


@dataclass(frozen=True, slots=True)
class KeptDense:
    """A layer with weights that pruneaug leaves alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Network:
    """The prunable layers in the order in which they first run, and the layers that stay dense."""

    layers: tuple[Layer, ...]
    kept_dense: tuple[KeptDense, ...] = ()


def find_layers(model: nn.Module, example_inputs: tuple[Any, ...]) -> Network:
    """`list_layers` of a network that is to be pruned.

    Raises:
        NetworkError: the model does not run on the example inputs, or has no prunable layer.
    """
    network = list_layers(model, example_inputs)
    if not network.layers:
        kept_dense = network.kept_dense[:5]
        why = "; ".join(f"{kept.name!r}: {kept.reason}" for kept in kept_dense) or "it has no layer with weights"
        raise NetworkError(
            f"a network must have at least one prunable Linear or Conv2d layer, but this one has none: {why}; "
            "`pruneaug.compile` compiles it dense"
        )
    return network


def list_layers(model: nn.Module, example_inputs: tuple[Any, ...]) -> Network:
    """Run `model(*example_inputs)` once and list its layers; there may be no prunable one.

    Prunable are nn.Linear and nn.Conv2d, zero-padded and not depthwise, each with a weight of its own. The model is
    left as found.

    Raises:
        NetworkError: the model does not run on the example inputs.
    """
    if not isinstance(example_inputs, tuple):
        raise NetworkError(
            "example inputs must be a tuple, so that `model(*example_inputs)` runs, but got "
            f"{type(example_inputs).__name__}; for one input write `(input,)`"
        )
    modules = dict(model.named_modules())
    with _quiet(model):
        inputs = _record_inputs(model, modules, example_inputs)
        layers, kept_dense = _sort_out(modules, inputs)
    order = {name: position for position, name in enumerate(inputs)}
    return Network(tuple(sorted(layers, key=lambda layer: order[layer.name])), tuple(kept_dense))


def get_weight(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of a layer by its module path. Raises NetworkError if there is none."""
    try:
        weight = getattr(model.get_submodule(name), "weight", None)
    except AttributeError:
        weight = None
    if isinstance(weight, nn.Parameter):
        return weight
    names = [path for path, module in model.named_modules() if isinstance(_weight(module), nn.Parameter)]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names[:20]) or 'none'}"
    raise NetworkError(f"a layer must be the path of a module with a weight, but got {name!r}; {hint}")


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the weights that `masks` (layer name -> bool, in the weight's own layout) remove to zero, in place."""
    for name, mask in masks.items():
        weight = get_weight(model, name)
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise NetworkError(
                f"a mask must be bool and have its weight's shape, but layer {name!r} has weight {list(weight.shape)} "
                f"and mask {mask.dtype} {list(mask.shape)}"
            )
        weight.masked_fill_(~mask.to(weight.device), 0.0)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and no use of the random state; every module's mode is as before afterwards.

    Even reading a weight may change a model in train mode: spectral norm takes a step.
    """
    training = {module: module.training for module in model.modules()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, flag in training.items():
                module.training = flag


def _sort_out(
    modules: Mapping[str, nn.Module], inputs: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[list[Layer], list[KeptDense]]:
    """The prunable layers and the others, in the order of `modules`."""
    owners = _weight_owners(modules)
    layers, kept_dense = [], []
    for name, module in modules.items():
        weight = _weight(module)
        if weight is None or weight.dim() < 2 or weight.numel() == 0:
            continue
        shapes = inputs.get(name, [])
        ops = {_op(module, shape) for shape in shapes} if _is_candidate(module) else set()
        if reason := _reason_to_keep(name, module, weight, owners, ops):
            kept_dense.append(KeptDense(name, reason))
        else:
            layers.append(Layer(name, ops.pop(), calls=len(shapes)))
    return layers, kept_dense


def _record_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: tuple[Any, ...]
) -> dict[str, list[tuple[int, ...]]]:
    """Name of each module that ran -> the shape of its first input in each call; in the order of the first calls."""
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    with ExitStack() as undo:
        for name, module in modules.items():

            def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                value = args[0] if args else kwargs.get("input")
                shapes[name].append(tuple(value.shape) if isinstance(value, torch.Tensor) else ())

            undo.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
        try:
            model(*example_inputs)
        except Exception as error:
            given = ", ".join(_described(x) for x in example_inputs)
            raise NetworkError(
                f"the model must run on the example inputs, but with ({given}) it raised {type(error).__name__}: "
                f"{error}; {_remedy(model, example_inputs)}"
            ) from error
    return dict(shapes)


def _described(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return reprlib.repr(x)


def _remedy(model: nn.Module, example_inputs: tuple[Any, ...]) -> str:
    """What to do about a model that does not run: of inputs in another precision than its weights, to convert them."""
    weights = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    given = {x.dtype for x in example_inputs if isinstance(x, torch.Tensor) and x.is_floating_point()}
    if weights == {torch.float32} and given - weights:
        return "its weights are float32, so give inputs in float32, by `x.float()`"
    return "give inputs that `model(*example_inputs)` accepts, or mend its `forward`"


def _weight_owners(modules: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """Identity of each parameter's memory -> the paths of the parameters that are this memory."""
    owners = defaultdict(list)
    for path, module in modules.items():
        for parameter_name, parameter in module._parameters.items():
            if parameter is not None:
                owners[_memory(parameter)].append(f"{path}.{parameter_name}" if path else parameter_name)
    return owners


def _memory(weight: torch.Tensor) -> int:
    return weight.data_ptr() or id(weight)  # a tensor on the meta device has no memory


def _weight(module: nn.Module) -> torch.Tensor | None:
    """A module's weight; of an attention with a joint projection, that projection's."""
    name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
    weight = getattr(module, name, None)
    return weight if isinstance(weight, torch.Tensor) else None


def _is_candidate(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _op(module: nn.Module, shape: tuple[int, ...]) -> Op:
    """The op of a Linear or Conv2d for an input of this shape."""
    if isinstance(module, nn.Linear):
        tokens = torch.Size(shape[:-1]).numel()
        return LinearOp(tokens, module.in_features, module.out_features)
    assert isinstance(module, nn.Conv2d)
    batch = shape[0] if len(shape) == 4 else 1
    return Conv2dOp(
        batch=batch,
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        height=shape[-2],
        width=shape[-1],
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=_padding(module),
        dilation=_pair(module.dilation),
        groups=module.groups,
    )


def _padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zero rows and columns around the input: (top, left, bottom, right)."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":  # PyTorch puts the odd one at the bottom and at the right
        totals = [dilation * (size - 1) for dilation, size in zip(_pair(conv.dilation), _pair(conv.kernel_size))]
        return totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2
    assert not isinstance(conv.padding, str)
    rows, cols = _pair(conv.padding)
    return rows, cols, rows, cols


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _reason_to_keep(
    name: str, module: nn.Module, weight: torch.Tensor, owners: Mapping[int, Sequence[str]], ops: set[Op]
) -> str | None:
    """Why a layer is not prunable; None if it is."""
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return "the joint projection of nn.MultiheadAttention is not an nn.Linear; use an attention with separate ones"
    if kind == "Conv1D" and hasattr(module, "nf"):
        return "transformers' Conv1D stores its weight transposed; replace it by an nn.Linear"
    if not _is_candidate(module):
        return f"{kind} layers are not prunable; only nn.Linear and nn.Conv2d are"
    forward = nn.Linear.forward if isinstance(module, nn.Linear) else nn.Conv2d.forward
    if getattr(module.forward, "__func__", None) is not forward:
        return f"{kind} computes its result in its own way: its forward is not that of nn.{_base(module)}"
    if module._parameters.get("weight") is not weight:
        return "its weight is computed (by a parametrization, weight norm or torch's pruning); remove that first"
    if others := [path for path in owners[_memory(weight)] if path != (f"{name}.weight" if name else "weight")]:
        return f"its weight is shared with {', '.join(others)}"
    if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
        return "it is a depthwise convolution"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"it pads with {module.padding_mode!r}; only zero padding is prunable"
    if not ops:
        return "it does not run as a module on the example inputs"
    if len(ops) > 1:
        return f"it runs with different inputs: {', '.join(sorted(op.key for op in ops))}"
    return None


def _base(module: nn.Module) -> str:
    return "Linear" if isinstance(module, nn.Linear) else "Conv2d"
