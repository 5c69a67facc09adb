"""A small Gaussian process: what few noisy observations say about a smooth function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before any observation of a function of x [dims].

    mean, slopes [dims], bends [dims]: of a quadratic trend mean + slopes @ x + bends @ x**2. mean_std, slope_stds
    [dims]: how sure mean and slopes are. scale, lengths [dims]: of the smooth rest. noise: the standard deviation of an
    observation.
    """

    mean: float
    slopes: Array
    bends: Array
    mean_std: float
    slope_stds: Array
    scale: float
    lengths: Array
    noise: float

    def trend(self, x: Array) -> Array:
        """[points, dims] -> [points]."""
        return self.mean + x @ self.slopes + (x**2) @ self.bends

    def covariance(self, a: Array, b: Array) -> Array:
        """[points, dims], [others, dims] -> [points, others]."""
        squares = ((a[:, None] - b[None]) ** 2 / self.lengths**2).sum(axis=2)
        smooth: Array = self.scale**2 * np.exp(-squares / 2)
        return self.mean_std**2 + (a * self.slope_stds**2) @ b.T + smooth

    def posterior(self, x: Array, y: Array, at: Array, noises: Array | None = None) -> tuple[Array, Array]:
        """(mean, standard deviation) [at] of the function after observing `y` [points] at `x` [points, dims]."""
        variances = np.full(len(x), self.noise**2) if noises is None else noises**2
        inner = self.covariance(x, x) + np.diag(variances) + 1e-9 * np.eye(len(x))
        factor = np.linalg.cholesky(inner)
        cross = np.linalg.solve(factor, self.covariance(x, at))  # [points, at]
        mean = self.trend(at) + cross.T @ np.linalg.solve(factor, y - self.trend(x))
        itself = self.mean_std**2 + (at**2) @ self.slope_stds**2 + self.scale**2
        return mean, np.sqrt(np.maximum(itself - (cross**2).sum(axis=0), 1e-12))

    def evidence(self, x: Array, y: Array, noises: Array | None = None) -> float:
        """Logarithm of the probability density of the observations."""
        variances = np.full(len(x), self.noise**2) if noises is None else noises**2
        factor = np.linalg.cholesky(self.covariance(x, x) + np.diag(variances) + 1e-9 * np.eye(len(x)))
        whitened = np.linalg.solve(factor, y - self.trend(x))
        return float(-0.5 * whitened @ whitened - np.log(np.diag(factor)).sum() - 0.5 * len(x) * np.log(2 * np.pi))
