"""One choice per layer under linear constraints, exactly: a mixed-integer programme over a growing core of choices.

The linear relaxation gives a lower bound L and each choice's reduced cost r: a solution that uses the choice costs at
least L + r. So a solution of cost U over the choices with r <= t (the core) is optimal as soon as U - L <= t. With few
constraints U is near L, and a few choices per layer are enough (E. Balas, E. Zemel, 1980, for knapsacks).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array = npt.NDArray[np.float64]

_CORE_PER_LAYER = 3
_MARGIN = 1e-7
"""Of what is decided: reduced costs are known to about this."""


def solve_choices(
    cost: Array, counts: Sequence[int], matrix: csr_array, most: Array, indicators: int
) -> list[int] | None:
    """The index of one choice per layer, of least cost, so that `matrix @ x <= most`; None if there is none.

    cost: [choices], layer by layer; counts: number of choices of each layer; x: a binary for each choice and then
    `indicators` more, which cost nothing.
    """
    layers = np.repeat(np.arange(len(counts)), counts)  # [choices]
    relaxed = _relaxation(np.concatenate([cost, np.zeros(indicators)]), layers, matrix, most)
    if relaxed is None:
        return None
    bound, reduced = relaxed
    reduced = reduced[: len(cost)]
    scale = max(float(np.ptp(cost)), 1e-300)
    per_layer = min(_CORE_PER_LAYER * len(counts), len(cost)) - 1
    width = max(float(np.partition(reduced, per_layer)[per_layer]), _MARGIN * scale)
    while True:
        core = np.flatnonzero(reduced <= width)
        chosen = _solve_core(core, cost, layers, matrix, most, indicators, width)
        gap = np.inf if chosen is None else float(cost[chosen].sum()) - bound
        if gap <= width or len(core) == len(cost):
            break
        # With the gap of a solution as width the next core holds the optimum; without a solution it must grow.
        width = (gap * (1 + _MARGIN) if chosen is not None else 8 * width) + _MARGIN * scale
    if chosen is None:
        return None
    starts = np.cumsum(counts) - np.asarray(counts)
    return [int(at - start) for at, start in zip(chosen, starts)]


def _relaxation(
    cost: Array, layers: npt.NDArray[np.int64], matrix: csr_array, most: Array
) -> tuple[float, Array] | None:
    """(least cost with fractions allowed, reduced costs [variables]); None if even so the constraints cannot hold."""
    from scipy.optimize import linprog

    ones = _one_each(layers, matrix.shape[1])
    bounds = np.tile([0.0, 1.0], (matrix.shape[1], 1))
    bounds[: len(layers), 1] = np.inf  # each layer's sum of 1 bounds them; a bound would take a share of reduced costs
    result = linprog(cost, A_ub=matrix, b_ub=most, A_eq=ones, b_eq=np.ones(ones.shape[0]), bounds=bounds)
    if result.x is None:
        return None
    reduced = cost - matrix.T @ result.ineqlin.marginals - ones.T @ result.eqlin.marginals
    return float(result.fun), np.maximum(reduced, 0.0)


def _solve_core(
    core: npt.NDArray[np.int64],
    cost: Array,
    layers: npt.NDArray[np.int64],
    matrix: csr_array,
    most: Array,
    indicators: int,
    width: float,
) -> npt.NDArray[np.int64] | None:
    """The best choice of each layer among `core`, as indices into all choices; None if there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    if len(np.unique(layers[core])) < layers[-1] + 1:
        return None
    columns = np.concatenate([core, len(cost) + np.arange(indicators)])
    ones = _one_each(layers[core], len(columns))
    with _quiet_stdout():
        result = milp(
            np.concatenate([cost[core] / width, np.zeros(indicators)]),
            integrality=np.ones(len(columns)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(ones, 1.0, 1.0), LinearConstraint(matrix[:, columns], -np.inf, most)],
            options={"mip_rel_gap": 0.0},
        )
    if result.x is None:
        return None
    on = result.x[: len(core)]
    return np.array([core[at[on[at].argmax()]] for at in np.split(np.arange(len(core)), _starts(layers[core])[1:])])


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """What C code prints to standard output is lost: HiGHS has debugging lines that no option silences."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no standard output
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
            libc.fflush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _starts(layers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.concatenate([[True], layers[1:] != layers[:-1]]))


def _one_each(layers: npt.NDArray[np.int64], variables: int) -> csr_array:
    """The rows that sum each layer's choices, [layers, variables]."""
    from scipy.sparse import csr_array

    places = np.searchsorted(np.unique(layers), layers)
    shape = (int(places[-1]) + 1, variables)
    return csr_array((np.ones(len(layers)), (places, np.arange(len(layers)))), shape=shape)
