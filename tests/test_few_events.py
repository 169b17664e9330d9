"""Excesses of few events in the resonance fit: p-values from pseudo-experiments, against exact ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from drapes_hep import bumphunt as bh
from drapes_hep.bumphunt import few_events, resonance
from drapes_hep.bumphunt.few_events import tail_probability
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import bin_model

BINS, PLACE = 8, 5


def counting(b, n):
    """Return a counting experiment: one bin has the signal and a known background, another fixes the parameter."""
    mu = np.full(BINS, 100.0)
    mu[PLACE] = b
    counts, signal = mu.copy(), np.zeros(BINS)
    counts[PLACE], signal[PLACE] = n, 1.0
    background = bh.Background(mu, np.eye(BINS)[:, :1], np.linspace(-1, 1, BINS))
    return background, bh.PassFailCounts(counts[None], None, np.ones((1, BINS)), signal[None])


def tail_of(background, counts, seed=1, toys=(3000, 3000)):
    fits = bh.fit_pass_fail(background, counts)
    return fits, tail_probability(background, counts, fits, np.random.default_rng(seed), toys)


@pytest.mark.parametrize("b", [1.0, 3.0, 10.0])
def test_the_p_value_of_a_count_is_its_poisson_tail(b):
    # down to 1e-8, which no number of unweighted pseudo-experiments of a search reaches
    for exact in (0.1, 2e-3, 1e-5, 1e-8):
        n = int(stats.poisson.isf(exact, b)) + 1
        fits, tail = tail_of(*counting(b, n), seed=n)
        expected = stats.poisson.sf(n - 1, b)
        assert tail.p == pytest.approx(expected, rel=0.2)
        assert tail.z == pytest.approx(stats.norm.isf(tail.p))
        assert fits.z[0] > stats.norm.isf(expected) + 0.04  # what sqrt(q0) would say


@pytest.mark.parametrize(("b", "n"), [(3.0, 0), (10.0, 4), (9.0, 0)])
def test_the_p_value_of_a_deficit_is_the_other_tail(b, n):
    fits, tail = tail_of(*counting(b, n), seed=n)
    expected = stats.poisson.cdf(n, b)
    assert 1 - tail.p == pytest.approx(expected, rel=0.2)
    assert tail.z == pytest.approx(stats.norm.ppf(expected), abs=0.1)
    assert fits.z[0] < tail.z  # the tail is shorter than sqrt(q0) says


@pytest.mark.parametrize("b", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("z", [2.0, 3.0])
def test_false_alarms_of_a_count_are_as_frequent_as_z_says(b, z):
    # the probability of all counts whose z is above; discreteness makes it smaller than nominal, never larger
    first = next(n for n in range(int(b) + 1, 60) if tail_of(*counting(b, n), seed=n, toys=(1000, 1000))[1].z > z)
    frequency = stats.poisson.sf(first - 1, b)
    assert frequency < 1.15 * stats.norm.sf(z)
    # a count less would be too frequent
    assert stats.poisson.sf(first - 2, b) > 0.85 * stats.norm.sf(z)


def test_a_fit_that_does_not_converge_counts_as_extreme(monkeypatch):
    background, counts = counting(3.0, 9)
    fits = bh.fit_pass_fail(background, counts)
    monkeypatch.setattr(few_events, "_z", lambda *arguments: np.full(len(arguments[2]), np.nan))
    tail = tail_probability(background, counts, fits, np.random.default_rng(1), (50, 99))
    assert tail.toys == tail.exceeding
    assert tail.p > 0.5


def test_the_data_count_as_one_of_their_kind(monkeypatch):
    background, counts = counting(3.0, 9)
    fits = bh.fit_pass_fail(background, counts)
    monkeypatch.setattr(few_events, "_z", lambda *arguments: np.where(arguments[2][:, PLACE] == 9, np.inf, 0.0))
    tail = tail_probability(background, counts, fits, np.random.default_rng(1), (50, 99))
    ratio = (9 / 3) ** 9 * np.exp(-6)
    assert tail.exceeding > 0
    assert tail.p == pytest.approx((tail.exceeding + 1) * 2 / (1 + ratio) / (tail.toys + 1))


def test_without_an_extreme_one_p_is_that_of_the_largest_weight(monkeypatch):
    background, counts = counting(3.0, 9)
    fits = bh.fit_pass_fail(background, counts)
    monkeypatch.setattr(few_events, "_z", lambda *arguments: np.zeros(len(arguments[2])))
    tail = tail_probability(background, counts, fits, np.random.default_rng(1), (50, 99))
    assert (tail.toys, tail.exceeding) == (99, 0)
    assert tail.p == pytest.approx(2 / 100)


def test_a_deficit_has_no_positive_z():
    background, counts = counting(0.55, 0)
    fits = bh.fit_pass_fail(background, counts)
    tail = tail_probability(background, counts, fits, np.random.default_rng(1), (100, 400))
    assert fits.z[0] < -1
    assert (tail.z, tail.p) == (0.0, 0.5)


def test_a_large_p_needs_the_first_pseudo_experiments_only():
    background, counts = counting(3.0, 5)
    fits = bh.fit_pass_fail(background, counts)
    assert tail_probability(background, counts, fits, np.random.default_rng(1), (50, 200)).toys == 50
    background, counts = counting(3.0, 9)
    fits = bh.fit_pass_fail(background, counts)
    assert tail_probability(background, counts, fits, np.random.default_rng(1), (50, 200)).toys == 200


# ---- in the scan

WINDOWS = (Window(3300, 3700, 2700, 6000), Window(4300, 4700, 2700, 6000))
EDGES = spectrum_edges((2700, 6000), 60, WINDOWS)
TRUTH = np.array([0.0, 10.0, -5.0, 0.2])
TRUTH[0] += np.log(64_000 / bin_model("dijet4", 13_000, EDGES, TRUTH)[0].sum())
MU, GRADIENT = bin_model("dijet4", 13_000, EDGES, TRUTH)
CENTRE = 0.5 * (EDGES[1:] + EDGES[:-1])


def counts_of(window, rng, signal=()):
    """Count background events with random scores, and signal events that pass every cut."""
    mjj = np.concatenate([np.repeat(CENTRE, rng.poisson(MU)), signal])
    tail = rng.uniform(size=len(mjj))
    tail[len(mjj) - len(signal) :] = 1e-5
    used = window.in_signal_region(mjj) | (rng.uniform(size=len(mjj)) < 0.4)
    return bh.count_selected(mjj, tail, EDGES, (1.0, 0.1, 0.001), (), used, 0.4)


@pytest.fixture(scope="module")
def few():
    """Return a scan with seven signal events where one of background is expected, and its counts."""
    rng = np.random.default_rng(6)
    counts = [counts_of(window, rng, [4370.0] * 7) for window in WINDOWS]
    return counts, bh.scan_resonances(WINDOWS, counts, bh.gaussian(0.033), seed=5)


def test_only_few_events_beyond_one_deviation_are_from_pseudo_experiments(few):
    quoted = [p for p in few[1].points if p.z is not None]
    from_toys = [p for p in quoted if p.toys is not None]
    assert from_toys == [p for p in quoted if p.background < 10 and abs(p.z_asymptotic) >= 1]
    assert any(p.background < 10 for p in quoted if p.toys is None)
    assert {p.method for p in from_toys} == {resonance.FROM_TOYS}
    for p in quoted:
        assert p.z == pytest.approx(stats.norm.isf(p.p_local), abs=1e-9)
        assert (p.method == resonance.ASYMPTOTIC) == (p.z == p.z_asymptotic) == (p.exceeding is None)


def test_few_events_that_are_a_signal_are_significant(few):
    best = max((p for p in few[1].points if p.toys is not None), key=lambda p: p.z)
    assert best.window == WINDOWS[1]
    assert best.background_efficiency == 0.001
    assert abs(best.mass - 4370) < best.resolution
    assert 2.5 < best.z < 5.5
    assert best.exceeding > 50


def test_pseudo_experiments_of_a_point_do_not_depend_on_other_windows(few):
    counts, both = few
    alone = bh.scan_resonances(WINDOWS[1:], counts[1:], bh.gaussian(0.033), seed=5)
    # without a cut too: the inclusive spectrum is that of the first selection
    wanted = [p for p in both.points if p.window == WINDOWS[1]]
    for ours, theirs in zip([p for p in alone.points if p.window], wanted, strict=True):
        assert ours.toys == theirs.toys
        assert ours.exceeding == theirs.exceeding
    other = bh.scan_resonances(WINDOWS[1:], counts[1:], bh.gaussian(0.033), seed=6)
    assert [p.p_local for p in other.points if p.toys] != [p.p_local for p in alone.points if p.toys]


def test_a_deficit_where_no_event_is_ends():
    background = bh.Background(MU, GRADIENT, np.linspace(-1, 1, len(MU)))
    t = bh.signal_templates(bh.gaussian(0.033), [4600], EDGES)[0]
    ones = np.ones_like(MU)
    passed = np.where(np.abs(CENTRE - 4600) < 700, 0.0, np.round(1e-3 * MU))
    fits = bh.fit_pass_fail(background, bh.PassFailCounts(passed[None], (MU - passed)[None], ones[None], t[None]))
    assert fits.converged.all()
    least = -(fits.null_passed[0] / np.maximum(t, 1e-300)).min()
    assert 1.5 * 2 * least < fits.signal[0] < 0
    assert fits.z[0] < 0


# ---- a resonance in the background


@pytest.mark.parametrize("efficiency", [1.0, 0.01])
def test_an_included_signal_leaves_the_other_unbiased(efficiency):
    first, second = (bh.signal_templates(bh.gaussian(0.033), [m], EDGES) for m in (3300, 3700))
    ones = np.ones_like(first)
    strong, weak = 4 * np.sqrt(MU.sum() * efficiency), 0.5 * np.sqrt(MU.sum() * efficiency)
    passed = MU * efficiency + weak * first + strong * second
    failed = None if efficiency == 1 else MU * (1 - efficiency) * ones + 30 * first
    background = bh.Background(MU, GRADIENT, np.linspace(-1, 1, len(MU)))
    counts = bh.PassFailCounts(passed, failed, ones, first, second)
    fits = bh.fit_pass_fail(background, counts)
    assert fits.signal[0] == pytest.approx(weak, rel=0.02)
    np.testing.assert_allclose(fits.background[0], (MU * efficiency + strong * second)[0], rtol=0.02)
    assert fits.p_background[0] > 0.9
    alone = bh.fit_pass_fail(background, replace(counts, included=None))
    assert abs(alone.signal[0] - weak) > 0.5 * weak
