"""What pseudo-experiments are made of: exponentials, quantiles, and fits that add a parameter where it is worth it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy import optimize, special, stats

from drapes_hep.bumphunt.quantiles import poisson_quantiles
from drapes_hep.bumphunt.significance import local_log_p, local_significance
from drapes_hep.compiled import exponentials
from drapes_hep.errors import FitError
from drapes_hep.spectrum.poisson import deviance_p_value, expand_poisson, fit_poisson

U = np.linspace(-1, 1, 60)
DESIGN = U[:, None] ** np.arange(4)
FITTED = abs(U - 0.1) > 0.15
PRECISION = np.array([0, 1, 1, 1]) / 1.5**2


def objective(theta, counts, offset):
    """Half the penalised deviance, its gradient and its second derivatives, over the fitted bins."""
    k, x = len(theta), DESIGN[FITTED][:, : len(theta)]
    mu = np.exp(offset[FITTED] + x @ theta)
    value = special.kl_div(counts[FITTED], mu).sum() + 0.5 * theta**2 @ PRECISION[:k]
    gradient = x.T @ (mu - counts[FITTED]) + PRECISION[:k] * theta
    return value, gradient, (x.T * mu) @ x + np.diag(PRECISION[:k])


def minimum(k, counts, offset):
    """The minimum by scipy: parameters, half the penalised deviance, inverse information."""
    result = optimize.minimize(
        lambda t: objective(t, counts, offset)[:2],
        np.zeros(k),
        jac=True,
        hess=lambda t: objective(t, counts, offset)[2],
        method="trust-exact",
        options={"gtol": 1e-10},
    )
    return result.x, result.fun, np.linalg.inv(objective(result.x, counts, offset)[2])


@pytest.mark.parametrize(("events", "gain"), [(12, 0.3), (300, 2.0), (20_000, 3.84)])
def test_a_parameter_is_added_where_it_lowers_the_deviance_enough(events, gain):
    """By scipy's minimiser: which spectra have it, their coefficients, covariance and deviance."""
    rng = np.random.default_rng(events)
    offset = np.log(events * np.exp(-3 * U) / np.exp(-3 * U).sum()) + 0.1 * rng.normal(size=(1, len(U)))
    # cubic terms of about the size that the threshold sees
    true = np.exp(offset + rng.normal(size=(40, 4)) / np.sqrt(events / 60 + 4) @ DESIGN.T)
    counts = rng.poisson(true).astype(float)
    counts[:, ~FITTED] = np.nan
    fit = fit_poisson(counts, DESIGN, offset, fitted=FITTED, precision=PRECISION, least=3, gain=gain)
    assert fit.converged.all()
    for i, n in enumerate(counts):
        few, more = (minimum(k, n, offset[0]) for k in (3, 4))
        theta, _, covariance = more if 2 * (few[1] - more[1]) > gain else few
        assert fit.parameters[i] == len(theta)
        pull = (fit.coefficients[i, : len(theta)] - theta) / np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(pull, 0, atol=1e-5)
        np.testing.assert_allclose(fit.covariance[i, : len(theta), : len(theta)], covariance, rtol=1e-5, atol=1e-12)
        mu = np.exp(offset[0] + DESIGN[:, : len(theta)] @ theta)
        np.testing.assert_allclose(fit.expected[i], mu, rtol=1e-5)
        deviance = 2 * special.kl_div(n, mu)[FITTED].sum()
        assert fit.deviance[i] == pytest.approx(deviance, rel=1e-7)
        assert fit.p_value[i] == pytest.approx(deviance_p_value(deviance, mu[FITTED], len(theta)), rel=1e-5)
    assert set(fit.parameters) == {3, 4}
    np.testing.assert_array_equal(fit.coefficients[fit.parameters == 3, 3], 0)
    np.testing.assert_array_equal(fit.covariance[fit.parameters == 3, 3], 0)


def test_counts_that_are_not_whole_are_fitted():
    """Expectations and scaled counts: their own model describes them exactly, at a deviance of 0."""
    mu = np.exp(2 - U + 0.5 * U**2)
    counts = np.stack([mu, 1e6 * mu])
    fit = fit_poisson(counts, DESIGN[:, :3], fitted=FITTED, start=[[2.0, 0, 0], [16.0, 0, 0]])
    np.testing.assert_allclose(fit.expected, counts, rtol=1e-6)
    np.testing.assert_allclose(fit.deviance, 0, atol=1e-5)


@pytest.mark.parametrize("counts", ["none", "left", "right", "one bin"])
def test_degenerate_spectra_are_fitted_with_the_prior(counts):
    """Empty, on one side only, in one bin: the minimum by scipy."""
    n = {"none": 0.0 * U, "left": 3.0 * (U < -0.5), "right": 3.0 * (U > 0.5), "one bin": 20.0 * (np.arange(60) == 7)}
    offset = np.log(1.0 + 0.0 * U)
    row = n[counts]
    if counts == "none":  # the norm has no prior: it runs away, and the means with it
        assert fit_poisson(row, DESIGN, offset, fitted=FITTED, precision=PRECISION).expected.max() < 1e-5
        return
    fit = fit_poisson(row, DESIGN, offset, fitted=FITTED, precision=PRECISION, least=3, gain=3.84)
    few, more = (minimum(k, row, offset) for k in (3, 4))
    theta = more[0] if 2 * (few[1] - more[1]) > 3.84 else few[0]
    assert fit.converged[0]
    np.testing.assert_allclose(fit.coefficients[0, : fit.parameters[0]], theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_bad_count_is_refused_where_it_is_fitted_only(bad):
    counts = np.ones((3, len(U)))
    counts[1, ~FITTED] = bad
    fit_poisson(counts, DESIGN, fitted=FITTED)
    counts[1, 0] = bad
    with pytest.raises(FitError, match="negative or not finite"):
        fit_poisson(counts, DESIGN, fitted=FITTED)


@pytest.mark.parametrize("where", ["offset", "start"])
def test_an_offset_or_a_start_that_is_no_number_is_refused(where):
    values = {"offset": np.full(len(U), np.nan), "start": np.full((1, 4), np.nan)}
    with pytest.raises(FitError, match="offset or start is not finite"):
        fit_poisson(np.ones((1, len(U))), DESIGN, fitted=FITTED, **{where: values[where]})


def test_offsets_are_those_of_the_first_spectra_again():
    rng = np.random.default_rng(1)
    offset = 1 + rng.normal(size=(2, len(U)))
    counts = rng.poisson(5, (6, len(U))).astype(float)
    several = fit_poisson(counts, DESIGN, offset)
    for i, row in enumerate(counts):
        np.testing.assert_allclose(several.expected[i], fit_poisson(row, DESIGN, offset[i % 2]).expected[0])


def test_an_expansion_is_near_the_fit():
    """Closer than the fit of the expectation by two orders in the fluctuation."""
    rng = np.random.default_rng(2)
    mu = np.exp(5 - U)
    counts = rng.poisson(mu, (50, len(U))).astype(float)
    fit = fit_poisson(counts, DESIGN, np.log(mu))
    at = fit_poisson(mu, DESIGN, np.log(mu))
    start = expand_poisson(DESIGN, mu[None], np.zeros((1, 4)), at.covariance).start(((counts - mu) @ DESIGN)[None])[0]
    far, near = (np.linalg.norm(fit.coefficients - x, axis=1).mean() for x in (0.0, start))
    assert near < 1e-3 * far


def test_quantiles_are_the_inverse_distribution_function():
    """Of means from 0 to 10^4, all z at once; what is left of ndtr at z = 6 is too coarse for more."""
    means = np.concatenate([[0.0, 1e-9], np.logspace(-3, 4, 58)]).reshape(3, 20)
    rng = np.random.default_rng(3)
    z = np.concatenate([rng.normal(size=(3, 300, 20)), rng.uniform(-6, 6, (3, 100, 20))], axis=1)
    counts = poisson_quantiles(means).counts(z)
    below, at = (stats.poisson.cdf(counts + i, means[:, None]) for i in (-1, 0))
    u = special.ndtr(z)
    assert np.all(below < u * (1 + 1e-12))
    assert np.all(at >= u * (1 - 1e-12))
    # the far ends of the normal, either side: as far as thresholds go
    ends = poisson_quantiles(np.array([[0.5, 100.0]])).counts(np.array([[[-40.0, -40.0], [8.0, 8.0]]]))[0]
    np.testing.assert_array_equal(ends[0], [0, 8])
    np.testing.assert_array_equal(ends[1], stats.poisson.isf(special.ndtr(-8.0), [0.5, 100.0]))


def test_exponentials():
    x = np.concatenate([np.linspace(-690, 90, 5001), np.linspace(-20, 20, 5001)])
    out = np.empty_like(x)
    exponentials(x, 80.0, out)
    expected = np.exp(np.minimum(x, 80.0))
    np.testing.assert_allclose(out, expected, rtol=5e-14, atol=0)
    np.testing.assert_allclose(out[5001:], expected[5001:], rtol=2e-15, atol=0)


FIRST_AND_LATER = """
import hashlib, numpy as np
from drapes_hep.spectrum.poisson import fit_poisson
rng = np.random.default_rng(1)
u = np.linspace(-1, 1, 60)
mu = 300 * np.exp(-3 * u)
fit = fit_poisson(rng.poisson(mu, (50, 60)).astype(float), u[:, None] ** np.arange(4), np.log(mu))
print(hashlib.sha256(fit.coefficients.tobytes() + fit.deviance.tobytes()).hexdigest())
"""


def test_the_first_run_of_an_installation_has_the_numbers_of_later_ones(tmp_path):
    """The first compiles, the second reads what the first has compiled."""
    places = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", FIRST_AND_LATER]
    first, later = (subprocess.run(words, env=places, capture_output=True, text=True, check=True) for _ in range(2))
    assert first.stdout == later.stdout
    assert len(list(tmp_path.rglob("*.nbc"))) == 1


def test_the_tail_is_that_of_the_negative_binomial():
    """scipy's own, on both sides of the mean, for errors small and large against the Poisson spread."""
    mu, v, pull = np.meshgrid([0.3, 4.0, 60.0, 900.0], [0.03, 0.3, 0.9, 3.0, 30.0], [-2, -0.5, 0, 0.7, 2.5])
    s = np.sqrt(v * mu)
    n = np.maximum(np.rint(mu + pull * np.sqrt(mu + s**2)), 0.0)
    log_p = local_log_p(n, mu, s)
    expected = stats.nbinom.logsf(n - 1, 1 + mu / v, 1 / (1 + v))
    np.testing.assert_allclose(log_p, np.where(n == 0, 0.0, expected), rtol=1e-9, atol=1e-13)
    np.testing.assert_array_equal(log_p, local_significance(n, mu, s).log_p)
    assert np.isnan(local_log_p(3, -1.0, 1.0, False))
