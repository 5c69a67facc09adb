"""Latency as a function of sparsity between measured points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def monotone_curve(sparsities: Sequence[float], latencies_us: Sequence[float]) -> Callable[[float], float]:
    """A curve [us] through strictly increasing `sparsities` that never rises.

    More zeros never cost time on a fixed kernel, so a rise is noise: neighbours that rise are pooled to their mean
    (isotonic regression, exact in least squares), and the points are joined by a monotone cubic
    (Fritsch-Carlson, `PchipInterpolator`). Only values inside the measured range may be asked for.
    """
    # Imported here: it takes a third of a second, and the command line and the measuring process need no curve.
    from scipy.interpolate import PchipInterpolator
    from scipy.optimize import isotonic_regression

    xs = np.asarray(sparsities, dtype=float)  # [points]
    ys = isotonic_regression(np.asarray(latencies_us, dtype=float), increasing=False).x  # [points]
    if len(xs) == 1:
        return lambda sparsity: float(ys[0])
    curve = PchipInterpolator(xs, ys, extrapolate=False)
    return lambda sparsity: float(curve(min(max(sparsity, xs[0]), xs[-1])))
