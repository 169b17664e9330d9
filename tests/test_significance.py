"""p-values of counts against multiple precision and closed forms; the global p-value beyond the toys."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from drapes_hep import bumphunt as bh
from drapes_hep.bumphunt.expectation import quotable
from drapes_hep.errors import FitError


def exact_log_p(n, mu, s):
    """The tail as the sum of its terms, in 60 digits."""
    with mpmath.workdps(60):
        n, mu, s = (mpmath.mpf(float(a)) for a in (n, mu, s))
        if s == 0:
            return mpmath.log(mpmath.gammainc(n, 0, mu, regularized=True))
        alpha, x = (mu / s) ** 2 + 1, s**2 / (s**2 + mu)
        first = mpmath.loggamma(n + alpha) - mpmath.loggamma(alpha) - mpmath.loggamma(n + 1)
        first += n * mpmath.log(x) + alpha * mpmath.log1p(-x)
        term, total = mpmath.mpf(1), mpmath.mpf(0)
        while term > total * mpmath.mpf(10) ** -20:
            total += term
            term *= (n + alpha) * x / (n + 1)
            n += 1
        return first + mpmath.log(total)


def grid():
    """Counts above the mean, from just above it to far away."""
    for mu in (1e-300, 1e-12, 1e-3, 0.1, 5.0, 100.0, 12_950.0):
        for relative in (0.0, 1e-8, 1e-4, 1e-2, 0.1, 1.0, 10.0):
            s = mu * relative
            width = np.sqrt(mu + s**2)
            for n in sorted({1, 5, *(int(mu + k * width) + 2 for k in (3, 8, 50)), int(1.5 * mu + 300 * width)}):
                # beyond, the oracle's sum takes seconds
                if mu + s**2 / mu < n < 20_000 and (relative < 1 or mu < 50):
                    yield n, mu, s


def test_far_tails_equal_multiple_precision():
    points = list(grid())
    assert len(points) > 150
    log_p = bh.local_significance(*np.transpose(points)).log_p
    for point, value in zip(points, log_p, strict=True):
        # an error of rounding in each of ln p's large terms
        assert value == pytest.approx(float(exact_log_p(*point)), rel=1e-12), point


def test_the_expectation_is_the_off_estimate_of_z_bi():
    # the example of RooStats: 150 on, 100 off, equal sizes
    assert float(bh.local_significance(150, 100, 10).z) == pytest.approx(3.10804, abs=1e-5)
    # off counts 5 and 19 in regions 5 and 14.44 times as large
    for n, off, tau in ((4, 5, 5.0), (6, 19, 14.44)):
        local = bh.local_significance(n, off / tau, np.sqrt(off) / tau)
        assert float(local.p) == pytest.approx(special.betainc(n, off + 1, 1 / (1 + tau)), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "mu", "error"), [(5, 1.0, 0.5), (40, 20.0, 4.0), (12_800, 12_550.0, 90.0), (2, 0.3, 0.4), (3, 1.0, 5.0)]
)
def test_significance_marginalises_a_gamma(n, mu, error):
    density = stats.gamma((mu / error) ** 2 + 1, scale=error**2 / mu)
    assert density.mean() == pytest.approx(mu + error**2 / mu)
    p, _ = integrate.quad(lambda q: special.gammainc(n, density.ppf(q)), 0, 1, limit=500, epsabs=1e-12, epsrel=1e-9)
    assert float(bh.local_significance(n, mu, error).p) == pytest.approx(p, rel=1e-5)


def test_one_event_loses_significance_as_the_error_grows():
    z = bh.local_significance(1, 0.1, 0.1 * np.array([0, 0.1, 0.3, 1, 2, 3])).z
    np.testing.assert_allclose(z, [1.3096, 1.3046, 1.2656, 0.9402, 0.4034, -0.0248], atol=5e-5)


@given(st.floats(-300, 6), st.floats(-300, 2), st.floats(0.01, 3), st.floats(0, 40))
def test_significance_of_an_excess_falls_with_the_error(log_mu, log_relative, step, pull):
    mu = 10**log_mu
    n = np.floor(mu + pull * np.sqrt(mu)) + 1
    log_p = bh.local_significance(n, mu, mu * 10 ** np.array([log_relative, log_relative + step])).log_p
    # where the error does not matter, rounding decides
    assert log_p[1] >= log_p[0] * (1 + 1e-12)


@given(st.floats(-300, 6), st.one_of(st.just(0.0), st.floats(1e-12, 100)), st.integers(0, 10**6), st.integers(1, 1000))
def test_significance_rises_with_the_count(log_mu, relative, n, more):
    mu = 10**log_mu
    log_p = bh.local_significance([n, n + more], mu, mu * relative).log_p
    assert log_p[1] <= log_p[0]
    assert np.isfinite(log_p).all()


@pytest.mark.parametrize("mu", [1e-300, 1e-12, 0.5, 100.0, 1e6])
@pytest.mark.parametrize("relative", [1e-300, 1e-200, 1e-100, 1e-18, 1e-12])
def test_a_small_error_tends_to_the_poisson_tail(mu, relative):
    n = np.array([1, np.floor(mu) + 1, np.floor(mu + 5 * np.sqrt(mu)) + 1, np.floor(2 * mu) + 50])
    near, at = (bh.local_significance(n, mu, s) for s in (mu * relative, 0.0))
    np.testing.assert_allclose(near.log_p, at.log_p, rtol=1e-12)
    np.testing.assert_allclose(near.z, at.z, rtol=1e-9, atol=1e-9)


def test_an_expectation_of_almost_nothing():
    """One event in an off region a million million times as large, and five on: all that is known says z = 16.3."""
    local = bh.local_significance(5, 1e-12, 1e-12)
    # E[b^5] / 5! of a gamma density of shape 2: 6! / 5! 1e-60
    assert float(local.log_p) == pytest.approx(np.log(6e-60), rel=1e-12)
    assert float(local.z) == pytest.approx(16.28805, abs=1e-5)
    # the error alone decides how much is known: at a thousand million times the expectation, five events are nothing
    assert float(bh.local_significance(5, 1e-12, 1e-3).z) < -3


def test_significance_of_an_exact_expectation_is_poisson():
    n, mu = np.array([3, 12, 130, 5000]), np.array([0.5, 4.0, 100.0, 5100.0])
    local = bh.local_significance(n, mu, 0.0)
    np.testing.assert_allclose(local.p, stats.poisson.sf(n - 1, mu), rtol=1e-10)
    np.testing.assert_allclose(local.z, stats.norm.isf(local.p), rtol=1e-8)


def test_significance_keeps_its_shape_and_says_nothing_of_nothing():
    single = bh.local_significance(300, 5.0, 0.5)
    assert single.log_p.shape == single.p.shape == single.z.shape == ()
    low = bh.local_significance([0, 1, 7], [50.0, 50.0, np.nan], [5.0, 5.0, -1.0], [True, True, False])
    assert (low.p[0], low.log_p[0]) == (1, 0)
    assert np.isnan(low.z[0])
    assert -20 < low.z[1] < -3
    assert np.isnan([low.p[2], low.log_p[2], low.z[2]]).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 1, 1), "count -1"),
        ((1.5, 1, 1), "count 1.5"),
        ((np.nan, 1, 1), "count nan"),
        ((np.inf, 1, 1), "count inf"),
        ((1, -1, 1), "expectation -1"),
        ((1, 0, 1), "expectation 0"),
        ((1, np.nan, 1), "expectation nan"),
        ((1, np.inf, 1), "expectation inf"),
        ((1, 1, -1), "error of an expectation -1"),
        ((1, 1, np.nan), "error of an expectation nan"),
        ((1, 1, np.inf), "error of an expectation inf"),
        (([1, 2], [1, 1], [0.5, -0.5]), "error of an expectation -0.5"),
    ],
)
def test_what_is_no_count_or_expectation_is_refused(arguments, named):
    with pytest.raises(FitError, match=f"the {named}") as caught:
        bh.local_significance(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("background", [0.3, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("level", [0.1, stats.norm.sf(2), stats.norm.sf(3)])
def test_a_small_p_value_is_no_more_frequent_than_it_says(tau, background, level):
    """On and off counts that are Poisson: the probability of p <= level, summed exactly, is at most level."""
    on, off = np.meshgrid(np.arange(120), np.arange(1, 300))
    p = bh.local_significance(on, off / tau, np.sqrt(off) / tau).p
    chance = stats.poisson.pmf(on, background) * stats.poisson.pmf(off, tau * background)
    # without an off event nothing is quoted
    assert chance[p <= level].sum() <= level


# ---- the global p-value beyond the toys


@pytest.mark.parametrize("trials", [1, 30, 1000])
def test_independent_trials_are_counted(trials):
    rng = np.random.default_rng(trials)
    smallest = np.log(rng.uniform(size=(2000, trials)).min(axis=1))
    result = bh.extrapolate(smallest, np.log(1e-6))
    assert result.trials == pytest.approx(trials, rel=5 / np.sqrt(2000))
    assert result.trials_interval[0] < result.trials < result.trials_interval[1]
    # the formula itself
    assert result.trials == pytest.approx(-2000 / np.log1p(-np.exp(smallest)).sum(), rel=1e-12)
    # a search is never less than one trial
    assert result.p == pytest.approx(max(1 - (1 - 1e-6) ** result.trials, 1e-6), rel=1e-9)
    assert result.z == pytest.approx(stats.norm.isf(result.p), rel=1e-9)


def test_the_intervals_hold_the_truth_in_68_percent():
    rng, repeats, trials, log_p = np.random.default_rng(4), 2000, 30, np.log(1e-4)
    truth = 1 - (1 - 1e-4) ** trials
    # a beta(1, N) minimum, by inversion; thirty toys, where a normal approximation would show
    result = [bh.extrapolate(np.log(-np.expm1(np.log(u) / trials)), log_p) for u in rng.uniform(size=(repeats, 30))]
    error = np.sqrt(0.6827 * 0.3173 / repeats)
    for intervals, right in (([f.trials_interval for f in result], trials), ([f.p_interval for f in result], truth)):
        low, high = np.transpose(intervals)
        assert np.mean((low < right) & (right < high)) == pytest.approx(0.6827, abs=5 * error)


def test_toys_with_nothing_to_quote_are_a_fraction():
    rng = np.random.default_rng(8)
    smallest = np.log(rng.uniform(size=(4000, 20)).min(axis=1))
    smallest[:1000] = 0.0
    result, without = bh.extrapolate(smallest, np.log(1e-5)), bh.extrapolate(smallest[1000:], np.log(1e-5))
    assert result.trials == without.trials
    assert result.p == pytest.approx(0.75 * without.p, rel=1e-9)
    assert result.p_interval[1] - result.p_interval[0] > 0.75 * (without.p_interval[1] - without.p_interval[0])
    assert bh.extrapolate(np.zeros(10), -3.0) is None
    # data that observe nothing at all are as extreme as every toy
    assert bh.extrapolate(smallest, 0.0).p == 1


def test_a_search_is_never_less_extreme_than_its_own_p_local():
    # deep deficits and toys that quote little would have N_eff below 1
    smallest = np.log(np.full(100, 0.9))
    result = bh.extrapolate(smallest, np.log(1e-3))
    assert result.trials < 1
    assert result.p == pytest.approx(1e-3, rel=1e-12)
    assert result.p_interval[0] >= 1e-3 * (1 - 1e-12)


@pytest.mark.parametrize(("quoting", "some"), [(29, False), (30, True)])
def test_few_toys_are_not_extrapolated(quoting, some):
    smallest = np.concatenate([np.log(np.full(quoting, 0.02)), np.zeros(500)])
    assert (bh.extrapolate(smallest, np.log(1e-5)) is not None) == some


def test_an_expectation_next_to_nothing_is_not_quoted():
    quoted = quotable([1e-12, 9.9e-4, 1e-3, 0.0, np.nan, 5.0], [1e-12, 1e-3, 1e-3, 0.0, 1.0, 1.0])
    assert quoted.tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize("count", [2.0**53 + 2, 1e308])
def test_a_count_that_no_double_can_tell_is_refused(count):
    with pytest.raises(FitError, match="whole number from 0 to 2"):
        bh.local_significance(count, 1.0, 1.0)


def test_the_extrapolation_has_no_last_value():
    smallest = np.log(np.random.default_rng(2).uniform(size=(500, 25)).min(axis=1))
    log_p = -np.concatenate([[0.0, 1e-20], np.logspace(-6, 5, 400)])
    result = [bh.extrapolate(smallest, value) for value in log_p]
    assert result[0].p == result[1].p == 1
    z = np.array([one.z for one in result])[2:]
    assert np.isfinite(z).all()
    assert (np.diff(z) > 0).all()
    assert all(0 < one.p_interval[0] <= one.p <= one.p_interval[1] <= 1 for one in result)
    # far out it is the number of trials times p, in logarithms: z = 200 here
    assert special.log_ndtr(-result[-50].z) == pytest.approx(log_p[-50] + np.log(result[-50].trials), rel=1e-9)
