"""ATen operators in terms of simpler ones, where TVM's importer lacks an operator, or takes it for another.

The importer ignores some arguments (`alpha` of a sum, the scale of an ELU, a negative index), and it expects operands
of one dtype. What is written here is what reaches it instead. A decomposition that returns NotImplemented leaves the
operator as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import decomposition_table as _all_decompositions

_aten = torch.ops.aten
Tensor = torch.Tensor
Decomposition = Callable[..., Any]


def decompositions() -> dict[Any, Decomposition]:
    """PyTorch's decompositions to core ATen, with ours in place of some."""
    table: dict[Any, Decomposition] = dict(torch.export.default_decompositions().items())  # type: ignore[no-untyped-call]
    for name in _RESAMPLING:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(_aten, packet), overload)
        table[op] = _all_decompositions[op]
    table.pop(_aten.floor_divide.default)
    promoted: Any
    for promoted, pick in _PROMOTED.items():
        for overload in promoted.overloads():
            op = getattr(promoted, overload)
            if overload in _OVERLOADS and op not in table:
                table[op] = _promote(op, pick)
    unary: Any
    for unary in _FLOAT_UNARY:
        table[unary.default] = _as_float(unary.default)
    return table | _OWN


_OVERLOADS = {"Tensor", "Scalar", "Tensor_Tensor", "Tensor_Scalar", "default", "self"}
# The importer's own resampling is right for some scales only.
_RESAMPLING = (
    "upsample_nearest2d.vec", "upsample_nearest2d.default", "upsample_bilinear2d.vec", "upsample_bilinear2d.default",
    "grid_sampler_2d.default",
)  # fmt: skip
_FLOAT_UNARY = (
    _aten.exp, _aten.expm1, _aten.log, _aten.log1p, _aten.log2, _aten.log10, _aten.sqrt, _aten.rsqrt, _aten.sin,
    _aten.cos, _aten.tan, _aten.tanh, _aten.sinh, _aten.cosh, _aten.atan, _aten.sigmoid, _aten.erf, _aten.reciprocal,
)  # fmt: skip


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return dtype


def _floating(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _comparable(dtype: torch.dtype) -> torch.dtype:
    return torch.int8 if dtype == torch.bool else dtype  # TVM compares bools as if they were floats


# Of operators on several operands: the dtype that they are computed in, from the operands' common dtype.
_PROMOTED = {
    **dict.fromkeys(
        (_aten.mul, _aten.maximum, _aten.minimum, _aten.pow, _aten.remainder, _aten.fmod, _aten.floor_divide),
        _arithmetic,
    ),
    **dict.fromkeys((_aten.bitwise_and, _aten.bitwise_or, _aten.bitwise_xor, _aten.where), _arithmetic),
    **dict.fromkeys((_aten.div, _aten.atan2), _floating),
    **dict.fromkeys((_aten.eq, _aten.ne, _aten.lt, _aten.le, _aten.gt, _aten.ge), _comparable),
}
_BOOL = {
    _aten.mul.Tensor: torch.logical_and,
    _aten.minimum.default: torch.logical_and,
    _aten.maximum.default: torch.logical_or,
}


def _promote(op: Any, pick: Callable[[torch.dtype], torch.dtype]) -> Decomposition:
    """`op` with its last two arguments in one dtype."""

    def decomposition(*args: Any) -> Any:
        *first, a, b = args
        common = torch.result_type(a, b)
        dtype = pick(common)
        if common == torch.bool and op in _BOOL:
            return _BOOL[op](a, b)
        if all(x.dtype == dtype for x in (a, b) if isinstance(x, Tensor)):
            return NotImplemented
        return op(*first, *(x.to(dtype) if isinstance(x, Tensor) else x for x in (a, b)))

    return decomposition


def _as_float(op: Any) -> Decomposition:
    def decomposition(x: Tensor) -> Any:
        return NotImplemented if x.is_floating_point() else op(x.to(torch.get_default_dtype()))

    return decomposition


def _sum_of(op: Any, sign: int) -> Decomposition:
    def decomposition(a: Any, b: Any, *, alpha: Any = 1) -> Any:
        dtype = torch.result_type(a, b)
        if dtype == torch.bool and sign > 0:
            return torch.logical_or(a, b)
        if alpha != 1:
            return op(a, b * alpha)
        if all(x.dtype == dtype for x in (a, b) if isinstance(x, Tensor)):
            return NotImplemented
        return op(*(x.to(dtype) if isinstance(x, Tensor) else x for x in (a, b)))

    return decomposition


def _divide_rounded(a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return torch.true_divide(a, b)
    if rounding_mode == "floor":
        return torch.floor_divide(a, b)
    if torch.result_type(a, b).is_floating_point:
        return torch.trunc(torch.true_divide(a, b))
    b = b if isinstance(b, Tensor) else torch.full((), b)
    return torch.floor_divide(a.abs(), b.abs()) * torch.sign(a) * torch.sign(b)


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """NaN stays NaN: of two values one of which is NaN, the larger and the smaller one are the second for TVM."""
    for bound, limit in ((low, torch.maximum), (high, torch.minimum)):
        if isinstance(bound, Tensor):
            x = limit(bound, x)
        elif bound is not None:
            x = limit(torch.full((), bound, dtype=torch.result_type(x, bound)), x)
    return x


def _hardtanh(x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return _clamp(x, low, high)


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return torch.where(x > 0, x, (torch.exp(x * input_scale) - 1) * alpha) * scale


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    distance = torch.abs(a - b).masked_fill(a == b, 0.0)  # infinities have none
    return torch.maximum(a, b) + torch.log1p(torch.exp(-distance))


def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    dtype = dtype or (x.dtype if x.is_floating_point() else torch.int64)
    return NotImplemented if x.dtype == dtype else torch.cumsum(x.to(dtype), dim)


def _cat(tensors: list[Tensor], dim: int = 0) -> Any:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    if all(tensor.dtype == dtype for tensor in tensors):
        return NotImplemented
    return torch.cat([tensor.to(dtype) for tensor in tensors], dim)


def _any(op: Any) -> Decomposition:
    def decomposition(x: Tensor, *args: Any) -> Any:
        return NotImplemented if x.dtype == torch.bool and args else op(x != 0, *(args or (list(range(x.dim())),)))

    return decomposition


def _min(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return torch.amin(x, dim, keepdim), torch.argmin(x, dim, keepdim)


def _max(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return torch.amax(x, dim, keepdim), torch.argmax(x, dim, keepdim)


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hw: int, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Two passes for the variance: TVM's own sums the squares, and loses what a large mean has in common with them."""
    grouped = x.reshape(n, group, -1)
    mean = grouped.mean(-1, keepdim=True)
    centered = grouped - mean
    factor = torch.rsqrt((centered * centered).mean(-1, keepdim=True) + eps)
    y = (centered * factor).reshape(n, c, -1)
    if weight is not None:
        y = y * weight.reshape(c, 1)
    if bias is not None:
        y = y + bias.reshape(c, 1)
    return y.reshape(x.shape), mean.reshape(n, group), factor.reshape(n, group)


def _avg_pool2d(
    x: Tensor, kernel: list[int], stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    if divisor_override is None or ceil_mode:
        return NotImplemented
    mean = _aten.avg_pool2d.default(x, kernel, stride, padding, False, True)
    return mean * (kernel[0] * kernel[-1] / divisor_override)


def _adaptive_max_pool2d(x: Tensor, size: list[int]) -> Any:
    if x.shape[-2] % size[0] or x.shape[-1] % size[1]:
        return NotImplemented
    return _aten.max_pool2d_with_indices.default(x, [x.shape[-2] // size[0], x.shape[-1] // size[1]])


def _index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != torch.bool or values.numel() != 1 or accumulate:
        return NotImplemented
    return torch.where(mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())), values.reshape(()), x)


def _addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """Also `addmv` and `baddbmm`."""
    return torch.add(x * beta if beta != 1 else x, torch.matmul(a, b), alpha=alpha)


def _unfold(x: Any, dim: int, size: int, step: int) -> Any:
    windows: Any = (x.shape[dim] - size) // step + 1
    index = (torch.arange(windows)[:, None] * step + torch.arange(size)).reshape(-1)
    gathered: Any = torch.index_select(x, dim, index)
    return gathered.unflatten(dim, (windows, size)).movedim(dim + 1 if dim >= 0 else dim, -1)


def _cdist(a: Tensor, b: Tensor, p: float, compute_mode: int | None = None) -> Any:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


_OWN: dict[Any, Decomposition] = {
    _aten.add.Tensor: _sum_of(_aten.add.Tensor, 1),
    _aten.sub.Tensor: _sum_of(_aten.sub.Tensor, -1),
    _aten.div.Tensor_mode: _divide_rounded,
    _aten.clamp.default: _clamp,
    _aten.clamp.Tensor: _clamp,
    _aten.relu.default: lambda x: _clamp(x, 0),
    _aten.hardtanh.default: _hardtanh,
    _aten.elu.default: _elu,
    _aten.cumsum.default: _cumsum,
    _aten.cat.default: _cat,
    _aten.any.default: _any(_aten.any.dims),
    _aten.any.dim: _any(_aten.any.dim),
    _aten.any.dims: _any(_aten.any.dims),
    _aten.min.dim: _min,
    _aten.max.dim: _max,
    _aten.native_group_norm.default: _group_norm,
    _aten.avg_pool2d.default: _avg_pool2d,
    _aten.adaptive_max_pool2d.default: _adaptive_max_pool2d,
    _aten.index_put.default: _index_put,
    _aten.addmm.default: _addmm,
    _aten.addmv.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten.unfold.default: _unfold,
    _aten._cdist_forward.default: _cdist,
    _aten.var_mean.correction: lambda x, dim=None, *, correction=None, keepdim=False: (
        torch.var(x, dim, correction=1 if correction is None else correction, keepdim=keepdim),
        torch.mean(x, dim, keepdim),
    ),
    _aten.sort.stable: lambda x, *, stable, dim=-1, descending=False: torch.sort(x, dim, descending),
    _aten.isfinite.default: lambda x: torch.abs(x) < float("inf"),
    _aten.logaddexp.default: _logaddexp,
    _aten.__lshift__.Scalar: lambda x, bits: x * 2**bits,
    _aten.__rshift__.Scalar: lambda x, bits: torch.floor_divide(x, 2**bits),
    _aten.erfc.default: lambda x: 1 - torch.erf(x),
    _aten.exp2.default: lambda x: torch.pow(2.0, x),
    _aten.hypot.default: lambda a, b: torch.sqrt(a * a + b * b),
}
