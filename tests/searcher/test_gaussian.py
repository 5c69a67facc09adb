"""The Gaussian process against scikit-learn's, and its evidence against scipy's multivariate normal."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct

from pruneaug.searcher.strategies.gaussian import Prior

PRIOR = Prior(
    mean=0.7,
    slopes=np.array([-2.0, 0.5]),
    bends=np.array([0.3, 0.0]),
    mean_std=1.2,
    slope_stds=np.array([0.8, 0.8]),
    scale=0.9,
    lengths=np.array([0.4, 1.5]),
    noise=0.3,
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.random((12, 2)), rng.normal(size=12), rng.random((30, 2))


def test_the_posterior_is_that_of_scikit_learn(data):
    x, y, at = data
    # DotProduct(s) is s**2 + a @ b; its product with 0.8**2 gives the slopes, and 1.2**2 the mean.
    kernel = ConstantKernel(0.8**2, "fixed") * DotProduct(1.2 / 0.8, "fixed")
    kernel += ConstantKernel(0.9**2, "fixed") * RBF([0.4, 1.5], "fixed")
    reference = GaussianProcessRegressor(kernel, alpha=0.3**2 + 1e-9, optimizer=None).fit(x, y - PRIOR.trend(x))
    mean, std = reference.predict(at, return_std=True)
    found_mean, found_std = PRIOR.posterior(x, y, at)
    assert found_mean == pytest.approx(mean + PRIOR.trend(at), abs=1e-8)
    assert found_std == pytest.approx(std, rel=1e-5)


def test_without_observations_the_posterior_is_the_prior():
    at = np.array([[0.0, 0.0], [1.0, -1.0]])
    mean, std = PRIOR.posterior(np.empty((0, 2)), np.empty(0), at)
    assert mean == pytest.approx([0.7, 0.7 - 2.0 - 0.5 + 0.3])
    assert std**2 == pytest.approx([1.2**2 + 0.9**2, 1.2**2 + 0.9**2 + 2 * 0.8**2])


def test_the_evidence_is_the_density_of_the_observations(data):
    x, y, _ = data
    covariance = PRIOR.covariance(x, x) + 0.3**2 * np.eye(len(x))
    expected = multivariate_normal(PRIOR.trend(x), covariance).logpdf(y)
    assert PRIOR.evidence(x, y) == pytest.approx(expected, rel=1e-6)
