"""Products of one op, run as kernel calls on memory that a test lays out."""

import math

from planes_tensors import assert_near, assert_planes, to_planes
from targets import run, target_of

from pruneaug.kernels.layers import layer_calls
from pruneaug.kernels.weights import NO_CLAMP, Epilogue, Weights
from pruneaug.network.ops import LinearOp


def check_product(op, layer, want, variant, lanes, *, clamp=NO_CLAMP, activation="none", residual=None):
    """Run the op on (x, matrix, mask, bias) and compare with `want` float64, borders included.

    What lies beside the values of tokens is NaN, and every call writes into NaN.
    """
    x, *weights = layer
    epilogue = Epilogue(activation, clamp, residual is not None)
    x_planes, y_planes, calls = layer_calls(op, Weights(*weights), variant, target_of(lanes), epilogue)
    if x_planes is None:
        more = [] if residual is None else [residual.reshape(-1)]
        (call,) = calls
        assert_near(run(lanes, call, x.reshape(-1), *more)[None], want)
        return
    border = math.nan if isinstance(op, LinearOp) else 0.0
    memory = to_planes(_images(x), x_planes, border)
    more = [] if residual is None else [to_planes(_images(residual), y_planes, border)]
    for call in calls[:-1]:
        memory = run(lanes, call, memory)
    assert_planes(run(lanes, calls[-1], memory, *more)[: y_planes.size], y_planes, _images(want))


def _images(x):
    """Tokens [tokens, channels] are one image of them."""
    return x[None] if x.dim() == 2 else x
