"""Float32 functions as TIR expressions of vectors: activations that a kernel computes in its registers.

LLVM has no vector code for exp, erf or tanh and would call libm for every lane. So they are a polynomial or a quotient
of two here, a few dozen instructions a vector. NaN in gives NaN out. An expression is a tree: `_let` names a value that
is used twice, lest it be computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

_Function = Callable[[Any, int], Any]


def apply(name: str, x: Any, lanes: int) -> Any:
    """The activation `name` of x, a TIR expression of `lanes` float32 values. Raises KeyError for an unknown one.

    They are PyTorch's functions of these names with its default parameters; "gelu_tanh" is gelu(approximate="tanh").
    Those that fall to 0 at minus infinity by a product (silu, gelu_tanh, mish, hardswish) are NaN there, as PyTorch's;
    gelu has its limits, where PyTorch's is NaN. exp is 0 below -87, where its values would soon be subnormal, and
    infinity where it overflows.

    Use the result once: store it in a buffer, even one of a single vector, to use it twice. TVM puts what `T.bind`
    names in its place, and fails where that is in two, for then the variables of `_let` are bound twice.
    """
    return _let(x, lanes, lambda value: _FUNCTIONS[name](value, lanes))


def preserves_zero(name: str) -> bool:
    """Whether the activation of 0 is 0: then it keeps a border of zeros."""
    return name not in {"sigmoid", "hardsigmoid", "exp", "softplus"}


def _dtype(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"{kind}x{lanes}"


def _const(value: float, lanes: int, dtype: str = "float32") -> Any:
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def _let(value: Any, lanes: int, body: Callable[[Any], Any]) -> Any:
    var = tirx.Var("v", _dtype("float32", lanes))
    return tirx.Let(var, value, body(var))


def _clip(x: Any, low: float, high: float, lanes: int) -> Any:
    # The order of the arguments keeps NaN: max(low, NaN) is NaN, max(NaN, low) is low.
    return T.min(_const(high, lanes), T.max(_const(low, lanes), x))


def _polynomial(x: Any, coefficients: Sequence[float], lanes: int) -> Any:
    """Horner's rule; the highest power's coefficient comes first. `x` must be a variable."""
    result = _const(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        result = result * x + _const(coefficient, lanes)
    return result


# The Cephes library's expf: exp(r) = 1 + r + r^2 * P(r) for |r| <= log(2) / 2, and log(2) as two floats of which the
# first has so few bits that its product with an exponent is exact.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG2_HIGH, _LOG2_LOW = 0.693359375, -2.12194440e-4


def _exp(x: Any, lanes: int) -> Any:
    # exp(x) = 2^n * exp(r). Adding 1.5 * 2^23 rounds to the integer n, which then lies in the low bits of the sum. The
    # polynomial is doubled and the power halved, for 2^128 is no float but results with n = 128 are.
    magic = 12582912.0

    def scaled(x: Any, rounded: Any) -> Any:
        bits = T.shift_left(T.reinterpret(_dtype("int32", lanes), rounded), _const(23, lanes, "int32"))
        power = T.reinterpret(_dtype("float32", lanes), bits + _const(126 << 23, lanes, "int32"))

        def mantissa(r: Any) -> Any:
            tail = _polynomial(r, [2 * coefficient for coefficient in _EXP], lanes) * r + _const(2.0, lanes)
            return (tail * r + _const(2.0, lanes)) * power

        return _let(
            rounded - _const(magic, lanes),
            lanes,
            lambda n: _let(
                (x - n * _const(_LOG2_HIGH, lanes)) - n * _const(_LOG2_LOW, lanes),
                lanes,
                mantissa,
            ),
        )

    return _let(
        _clip(x, -87.3, 89.0, lanes),
        lanes,
        lambda x: _let(x * _const(1 / math.log(2), lanes) + _const(magic, lanes), lanes, lambda n: scaled(x, n)),
    )


# erf(x) = x * P(x^2) / Q(x^2) (XLA's ErfF32). Its error is below 3e-8 for |x| < 3.85. Behind, where erf is 1 in
# float32, it grows beyond 1, so that the bounded quotient clipped to 1 is exact.
_ERF_BOUND = 4.0
_ERF_P = (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084)
_ERF_Q = (
    -1.1791602954361697e-7,
    0.000023547966471313185,
    0.0010179625278914885,
    0.014070470171167667,
    0.11098505178285362,
    0.49746925110067538,
    1.0,
)  # fmt: skip


def _quotient(x: Any, p: Sequence[float], q: Sequence[float], lanes: int) -> Any:
    """x * P(x^2) / Q(x^2) of a variable x."""
    return _let(x * x, lanes, lambda s: x * _polynomial(s, p, lanes) / _polynomial(s, q, lanes))


def _erf(x: Any, lanes: int) -> Any:
    bounded = _clip(x, -_ERF_BOUND, _ERF_BOUND, lanes)
    return _clip(_let(bounded, lanes, lambda x: _quotient(x, _ERF_P, _ERF_Q, lanes)), -1.0, 1.0, lanes)


def _gelu(x: Any, lanes: int) -> Any:
    # relu(x) - a * (1 - erf(a / sqrt(2))) / 2 with a = |x|: unlike x * (1 + erf(x / sqrt(2))) / 2 it is exact far out.
    p = [0.5 * math.sqrt(0.5) * c * 0.5 ** (len(_ERF_P) - 1 - i) for i, c in enumerate(_ERF_P)]
    q = [c * 0.5 ** (len(_ERF_Q) - 1 - i) for i, c in enumerate(_ERF_Q)]

    def tail(a: Any) -> Any:
        near = a < _const(math.sqrt(2) * _ERF_BOUND, lanes)
        half = T.max(_const(0.0, lanes), _const(0.5, lanes) - _quotient(a, p, q, lanes))
        return T.Select(near, a * half, _const(0.0, lanes))

    return T.max(_const(0.0, lanes), x) - _let(T.abs(x), lanes, tail)


# tanh(x) = x * P(x^2) / Q(x^2) (Eigen's ptanh); as with erf, the quotient is beyond 1 at the bound.
_TANH_BOUND = 10.0
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _tanh(x: Any, lanes: int) -> Any:
    bounded = _clip(x, -_TANH_BOUND, _TANH_BOUND, lanes)
    return _clip(_let(bounded, lanes, lambda x: _quotient(x, _TANH_P, _TANH_Q, lanes)), -1.0, 1.0, lanes)


def _sigmoid(x: Any, lanes: int) -> Any:
    return _const(1.0, lanes) / (_const(1.0, lanes) + _exp(-x, lanes))


def _silu(x: Any, lanes: int) -> Any:
    return x / (_const(1.0, lanes) + _exp(-x, lanes))


def _gelu_tanh(x: Any, lanes: int) -> Any:
    # x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3)
    scale = -2 * math.sqrt(2 / math.pi)
    exponent = x * (_const(scale * 0.044715, lanes) * (x * x) + _const(scale, lanes))
    return x / (_const(1.0, lanes) + _exp(exponent, lanes))


def _mish(x: Any, lanes: int) -> Any:
    # tanh(log(1 + e)) = n / (n + 2) with n = e * (e + 2); from 20 on it is 1.
    def mish(e: Any) -> Any:
        product = e * (e + _const(2.0, lanes))
        return _let(product, lanes, lambda n: x * (n / (n + _const(2.0, lanes))))

    return _let(_exp(T.min(_const(20.0, lanes), x), lanes), lanes, mish)


def _softplus(x: Any, lanes: int) -> Any:
    # relu(x) + log(1 + e) with e = exp(-|x|); log(1 + e) = 2 atanh(t) with t = e / (2 + e) <= 1/3, by its series.
    def log1p(t: Any) -> Any:
        return _quotient(t, [2 / power for power in (15, 13, 11, 9, 7, 5, 3, 1)], [1.0], lanes)

    tail = _let(_exp(-T.abs(x), lanes), lanes, lambda e: _let(e / (_const(2.0, lanes) + e), lanes, log1p))
    return T.max(_const(0.0, lanes), x) + tail


def _elu(x: Any, lanes: int) -> Any:
    return T.max(_const(0.0, lanes), x) + (_exp(T.min(_const(0.0, lanes), x), lanes) - _const(1.0, lanes))


def _hardsigmoid(x: Any, lanes: int) -> Any:
    return _clip(x + _const(3.0, lanes), 0.0, 6.0, lanes) * _const(1 / 6, lanes)


_FUNCTIONS: Mapping[str, _Function] = {
    "none": lambda x, lanes: x,
    "relu": lambda x, lanes: T.max(_const(0.0, lanes), x),
    "relu6": lambda x, lanes: _clip(x, 0.0, 6.0, lanes),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "mish": _mish,
    "elu": _elu,
    "softplus": _softplus,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "hardswish": lambda x, lanes: x * _hardsigmoid(x, lanes),
    "hardsigmoid": _hardsigmoid,
    "exp": _exp,
    "erf": _erf,
}

ACTIVATIONS = frozenset(_FUNCTIONS)
