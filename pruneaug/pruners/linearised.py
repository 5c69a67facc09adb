"""A network turned into sums of products of positive numbers: what SynFlow sends its flow through.

SynFlow is defined for layers with ReLU between them, whose flow is conserved from layer to layer. What other networks
hold is replaced while the flow is computed, so that it stays positive, finite and conserved:

- An activation passes its input on: it is positive, where ReLU is the identity, and GELU and SiLU nearly.
- A batch norm multiplies by |its weight| / sqrt(running variance + eps); other norms by |their weight|, after dividing
  by the mean of their input.
- What keeps values in bounds (softmax, sigmoid, tanh) divides by the mean of its input, a softmax by the sum. So
  queries, keys and values all get flow.
- Where flow meets flow in a product (queries and keys, gates), each factor gets an equal share of the gradient: the
  product's flow is counted once.
- An embedding gives ones: the flow of a network that reads integers begins there.

What is divided by counts as a constant in the gradient. Biases are zero, and other parameters their absolute values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruneaug.tasks.protocol import Batch

_TINY = 1e-300  # float64: only an input of zeros is below


class Linearised(TorchFunctionMode):
    """While it is active, torch's functions do what this module says, wherever the network calls them."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            args = _shared(args)
        return _REPLACEMENTS.get(name.rstrip("_"), func)(*args, **(kwargs or {}))


def positive_copy(model: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode: weights |w|, biases zero."""
    positive = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for path, parameter in positive.named_parameters():
            if not parameter.is_floating_point():
                continue
            parameter.requires_grad_(True)  # all: what meets in a product must not depend on what is scored
            if path.endswith("bias"):
                parameter.zero_()
            else:
                parameter.abs_()
    return positive


def ones_like_inputs(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs of one sample: ones, but integers (token ids, attention masks) as they are, for they only choose."""
    return tuple(
        torch.ones_like(tensor[:1], dtype=torch.float64, device=device)
        if tensor.is_floating_point()
        else tensor[:1].to(device)
        for tensor in batch.inputs
    )


def total_of(output: Any) -> Tensor | float:
    """The sum of all floating-point values that a network returned."""
    if isinstance(output, Tensor):
        return output.sum() if output.is_floating_point() else 0.0
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, list | tuple):
        return 0.0
    return sum((total_of(part) for part in output), 0.0)


def _same(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _over_mean(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input / input.detach().mean().clamp_min(_TINY)


def _over_sum(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> Tensor:
    """Of a softmax; what an attention mask has pushed far below zero has no part in it."""
    allowed = input.clamp_min(0.0)
    return allowed / allowed.detach().sum(-1 if dim is None else dim, keepdim=True).clamp_min(_TINY)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    scaled = input if running_var is None else input * _channels((running_var + eps).rsqrt(), input)
    return scaled if weight is None else scaled * _channels(weight.abs(), input)


def _group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    scaled = _over_mean(input)
    return scaled if weight is None else scaled * _channels(weight.abs(), input)


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    return _group_norm(input, 1, weight)


def _layer_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    scaled = _over_mean(input)
    return scaled if weight is None else scaled * weight.abs()


def _embedding(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return weight.new_ones(*input.shape, weight.shape[1])


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    query, key = _shared((query, key))
    scores = query @ key.transpose(-2, -1)
    if is_causal:
        scores = scores.tril()
    if attn_mask is not None:
        scores = scores * (attn_mask if attn_mask.dtype == torch.bool else attn_mask >= 0)
    attention, value = _shared((_over_sum(scores, -1), value))
    mixed: Tensor = attention @ value
    return mixed


def _shared(factors: tuple[Any, ...]) -> tuple[Any, ...]:
    """The factors of a product as they are, but the gradient of those that carry flow divided by their number."""
    carrying = [isinstance(factor, Tensor) and factor.requires_grad and not factor.is_leaf for factor in factors]
    if sum(carrying) < 2:
        return factors
    share = 1.0 / sum(carrying)
    return tuple(
        share * factor + (1.0 - share) * factor.detach() if carries else factor
        for factor, carries in zip(factors, carrying)
    )


def _channels(values: Tensor, input: Tensor) -> Tensor:
    """[channels] in a shape that broadcasts over [batch, channels, ...]."""
    return values.view(1, -1, *[1] * (input.dim() - 2))


_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "mul", "__mul__", "__rmul__", "multiply", "einsum"}

_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu"), _same),
    **dict.fromkeys(("mish", "hardswish", "hardtanh", "softplus", "threshold", "log_softmax", "dropout"), _same),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "tanh", "softsign"), _over_mean),
    "softmax": _over_sum,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
}
