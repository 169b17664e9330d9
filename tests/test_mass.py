"""The spectrum: published numbers, two minimisers, the covariance, the drawn masses, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from references import cms_spectrum, fit_spectrum_newton
from scipy import stats

from drapes_hep.errors import FitError
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import bin_model, expected, fit_spectrum
from drapes_hep.spectrum.poisson import deviance_moments, deviance_p_value, fit_poisson, poisson_deviance
from drapes_hep.spectrum.shapes import SHAPES

SR = (3300.0, 3700.0)
EDGES = spectrum_edges((2700, 6000), 20, [Window(*SR, 2700, 6000)])
TRUTH = np.array([0.0, 10.0, -5.0, 0.2])
TRUTH[0] += np.log(100_000 / bin_model("dijet4", 13_000, EDGES, TRUTH)[0].sum())
MEANS = bin_model("dijet4", 13_000, EDGES, TRUTH)[0]


@pytest.fixture(scope="module")
def toy_fit():
    return fit_spectrum(np.random.default_rng(1).poisson(MEANS), EDGES, SR)


def cms(data_dir, year):
    return cms_spectrum(data_dir / "cms" / f"JetHT_run{year}_red_cert_scan.root")


@pytest.mark.parametrize(("year", "chi2", "ndof"), [(2016, 35.6, 38), (2017, 48.6, 37)])
def test_cms_reference(data_dir, year, chi2, ndof):
    """The quoted 2NLLR take the density at the middle of each bin; the bin integral is 0.05 to 0.07 lower."""
    counts, edges = cms(data_dir, year)
    fit = fit_spectrum(counts, edges)
    assert fit.valid
    assert fit.good
    assert fit.ndof == ndof
    assert fit.chi2 == pytest.approx(chi2, abs=0.1)
    basis = SHAPES["dijet4"].basis(0.5 * (edges[1:] + edges[:-1]) / 13_000)
    log_mu = basis @ fit.parameters + np.log(np.diff(edges))
    turn = np.linalg.inv(np.linalg.qr(np.sqrt(counts + 0.5)[:, None] * basis)[1])
    midpoint = fit_poisson(counts, basis @ turn, log_mu)
    assert midpoint.deviance[0] == pytest.approx(chi2, abs=0.05)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_newton_agrees_with_minuit_on_cms(data_dir, shape):
    for year in (2016, 2017):
        counts, edges = cms(data_dir, year)
        one = fit_spectrum(counts, edges, SR, shape)
        two = fit_spectrum_newton(counts, edges, one.fitted, shape)
        error = np.sqrt(np.diag(one.covariance))
        np.testing.assert_allclose((one.parameters - two.parameters) / error, 0, atol=2e-3)
        # Minuit's numerical second derivatives move by 0.7% from one build of NumPy and SciPy to another
        np.testing.assert_allclose(np.sqrt(np.diag(two.covariance)) / error, 1, rtol=1e-2)
        counts, errors = zip(expected(one, *SR), expected(two, *SR), strict=True)
        assert counts[0] == pytest.approx(counts[1], rel=1e-3)
        assert errors[0] == pytest.approx(errors[1], rel=1e-2)
        assert one.chi2 == pytest.approx(two.chi2, abs=1e-5)


def test_covariance_is_the_spread_of_toys(toy_fit):
    counts = np.random.default_rng(2).poisson(MEANS, (2000, len(MEANS)))
    _, gradient = bin_model("dijet4", 13_000, EDGES, TRUTH)
    outside = toy_fit.fitted
    turn = np.linalg.inv(np.linalg.qr(np.sqrt(MEANS[outside])[:, None] * gradient[outside])[1])
    fit = fit_poisson(counts, gradient @ turn, np.log(MEANS), fitted=outside)
    assert fit.converged.all()
    inside = ~outside
    estimates = fit.expected[:, inside].sum(axis=1)
    value, error = expected(toy_fit, *SR)
    assert np.std(estimates) == pytest.approx(error, rel=0.06)
    assert abs(np.mean(estimates) - MEANS[inside].sum()) < 5 * error / np.sqrt(2000)
    assert value == pytest.approx(toy_fit.expected[inside].sum(), rel=1e-9)
    # the goodness of fit is a p-value even though the highest bins hold less than one event
    p = deviance_p_value(fit.deviance, MEANS[outside], 4)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_deviance_moments():
    mean, variance = deviance_moments([1e-4, 1.0, 3.0, 1e4])
    n = np.random.default_rng(3).poisson([[1.0], [3.0]], (2, 200_000))
    share = poisson_deviance(n, [[1.0], [3.0]])
    np.testing.assert_allclose(mean[1:3], share.mean(axis=1), rtol=0.02)
    np.testing.assert_allclose(variance[1:3], share.var(axis=1), rtol=0.04)
    np.testing.assert_allclose([mean[3], variance[3]], [1, 2], rtol=1e-2)
    assert mean[0] < 0.01


def test_draw_follows_the_fit(toy_fit):
    u = np.random.default_rng(4).uniform(size=50_000)
    m = draw(toy_fit, *SR, u)
    assert m.min() >= SR[0]
    assert m.max() < SR[1]
    total = expected(toy_fit, *SR)[0]
    for i in (0, 17, 4000):
        assert expected(toy_fit, SR[0], m[i])[0] / total == pytest.approx(u[i], rel=1e-6)
    grid = np.linspace(*SR, 2001)
    cdf = np.concatenate([[0], np.cumsum(bin_model("dijet4", 13_000, grid, toy_fit.parameters)[0])]) / total
    assert stats.kstest(m, lambda x: np.interp(x, grid, cdf)).pvalue > 1e-3
    ends = draw(toy_fit, *SR, [[0.0, 1.0]])
    assert ends.shape == (1, 2)
    assert ends[0, 0] == SR[0]
    assert ends[0, 1] < SR[1]
    np.testing.assert_array_equal(draw(toy_fit, *SR, u[:7]), m[:7])


def test_the_window_is_not_looked_at(toy_fit):
    counts = np.random.default_rng(1).poisson(MEANS).astype(float)
    counts[~toy_fit.fitted] = np.nan
    again = fit_spectrum(counts, EDGES, SR)
    np.testing.assert_array_equal(again.parameters, toy_fit.parameters)


def test_a_bump_makes_the_fit_poor():
    counts = np.random.default_rng(5).poisson(MEANS)
    counts[(EDGES[:-1] >= 2900) & (EDGES[:-1] < 3000)] += 600
    fit = fit_spectrum(counts, EDGES, SR)
    assert fit.valid
    assert not fit.good


def test_weighted_spectrum():
    counts = np.random.default_rng(6).poisson(MEANS)
    plain = fit_spectrum(counts, EDGES, SR)
    weighted = fit_spectrum(0.25 * counts, EDGES, SR, variance=0.0625 * counts)
    assert expected(weighted, *SR) == pytest.approx([0.25 * x for x in expected(plain, *SR)], rel=1e-3)
    assert weighted.chi2 == pytest.approx(plain.chi2, abs=1e-3)


def test_edges_contain_every_window():
    windows = [Window(3100, 3450, 2700, 6000), Window(3305, 3655, 2700, 6000)]
    edges = spectrum_edges((2700, 6000), 20, windows)
    for x in (2700, 3100, 3305, 3450, 3655, 6000):
        assert np.abs(edges - x).min() < 1e-9
    assert np.diff(edges).max() <= 20 + 1e-9
    assert np.diff(edges).min() > 10
    np.testing.assert_allclose(np.diff(EDGES), 20)


@pytest.mark.parametrize(
    ("counts", "edges", "words"),
    [
        (np.zeros(len(MEANS)), EDGES, "filled bins"),
        (np.full(len(MEANS), np.nan), EDGES, "not finite"),
        (-MEANS, EDGES, "negative"),
        (MEANS[:-1], EDGES, "do not match"),
        (MEANS, EDGES[::-1], "rise"),
        (MEANS, EDGES + 8000, "sqrt_s"),
    ],
)
def test_bad_spectra(counts, edges, words):
    with pytest.raises(FitError, match=words):
        fit_spectrum(counts, edges, SR)


def test_bad_requests(toy_fit):
    with pytest.raises(FitError, match="shape"):
        fit_spectrum(MEANS, EDGES, shape="cubic")
    with pytest.raises(FitError, match="rise"):
        draw(toy_fit, 3700, 3300, [0.5])
    with pytest.raises(FitError, match="outside"):
        draw(toy_fit, *SR, [1.5])
