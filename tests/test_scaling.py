"""Scaling: exact inverse, sidebands only, what it does to a feature that drifts with mass."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

from drapes_hep.errors import FitError
from drapes_hep.events import quantile_curves
from drapes_hep.events import scaling as scaling_module
from drapes_hep.events.quantile_curves import UNITS, fit_curves, mass_bins
from drapes_hep.events.scaling import fit_scaling, scaling_from_dict
from drapes_hep.events.scaling_tensors import condition_tensor, inverse_tensor, scale_tensor

DOMAIN = [(0, np.inf), (0, np.inf)]


def events(n=30_000, seed=0):
    rng = np.random.default_rng(seed)
    mjj = 2700 + rng.exponential(600, n)
    edge = 3.0 + 0.4 * np.log(mjj / 2700)
    x = np.stack([rng.gamma(2.0, 80.0, n), edge * rng.beta(5, 1.2, n)], axis=1)
    return x, mjj


@pytest.mark.parametrize("kind", ["standard", "quantile"])
def test_inverse_undoes_forward(kind):
    x, mjj = events()
    scaling = fit_scaling(kind, x, mjj, np.ones(len(x)), DOMAIN)
    assert np.allclose(scaling.inverse(scaling.forward(x, mjj), mjj), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["standard", "quantile"])
def test_scaled_features_have_zero_mean_and_unit_variance(kind):
    x, mjj = events()
    z = fit_scaling(kind, x, mjj, np.ones(len(x)), DOMAIN).forward(x, mjj)
    assert np.abs(z.mean(axis=0)).max() < 0.01
    assert np.abs(z.std(axis=0) - 1).max() < 0.01


def test_quantile_scaling_takes_out_the_drift_with_mass():
    x, mjj = events()
    fresh, fresh_mjj = events(seed=1)
    low, high = fresh_mjj < 2900, fresh_mjj > 3800
    statistic = {}
    for kind in ("standard", "quantile"):
        z = fit_scaling(kind, x, mjj, np.ones(len(x)), DOMAIN).forward(fresh, fresh_mjj)[:, 1]
        statistic[kind] = stats.ks_2samp(z[low], z[high]).statistic
    assert statistic["quantile"] < 0.03 < 5 * statistic["quantile"] < statistic["standard"]


def test_it_interpolates_into_a_window_that_it_never_saw():
    x, mjj = events(60_000)
    window = (mjj >= 3300) & (mjj < 3700)
    scaling = fit_scaling("quantile", x[~window], mjj[~window], np.ones((~window).sum()), DOMAIN)
    assert stats.kstest(scaling.forward(x[window], mjj[window])[:, 1], "norm").statistic < 0.025


def test_what_comes_back_lies_in_the_domain():
    x, mjj = events()
    scaling = fit_scaling("quantile", x, mjj, np.ones(len(x)), DOMAIN)
    back = scaling.inverse(np.full((4, 2), -30.0), np.full(4, 3000.0))
    assert (back >= 0).all()


def test_weights_count_as_copies():
    x, mjj = events(4000)
    twice = np.concatenate([x, x[:2000]]), np.concatenate([mjj, mjj[:2000]])
    copied = fit_scaling("standard", *twice, np.ones(6000), DOMAIN)
    weighted = fit_scaling("standard", x, mjj, np.where(np.arange(4000) < 2000, 2.0, 1.0), DOMAIN)
    assert np.allclose(copied.forward(x, mjj), weighted.forward(x, mjj))


@pytest.mark.parametrize("kind", ["standard", "quantile"])
def test_a_card_brings_it_back_exactly(kind):
    x, mjj = events(5000)
    scaling = fit_scaling(kind, x, mjj, np.ones(5000), DOMAIN)
    again = scaling_from_dict(json.loads(json.dumps(scaling.to_dict(), allow_nan=False)))
    assert np.array_equal(again.forward(x, mjj), scaling.forward(x, mjj))
    assert np.array_equal(again.domain, scaling.domain)


@pytest.mark.parametrize("n", [400, 2000, 9000])
def test_few_events_give_tame_curves(n):
    x, mjj = events(n)
    scaling = fit_scaling("quantile", x, mjj, np.ones(n), DOMAIN)
    back = scaling.inverse(np.random.default_rng(0).normal(size=(5000, 2)), np.linspace(2700, 6000, 5000))
    assert back[:, 0].max() < 3 * x[:, 0].max()
    assert back[:, 1].max() < 3 * x[:, 1].max()


@pytest.mark.parametrize("n", [400, 2000])
def test_events_beyond_the_quantiles_of_few_are_not_thrown_far(n):
    scaling = fit_scaling("quantile", *events(n), np.ones(n), DOMAIN)
    fresh, mjj = events(20_000, seed=1)
    assert np.abs(scaling.forward(fresh, mjj)).max() < 20


def test_too_few_events_and_flat_features_are_refused():
    x, mjj = events(100)
    with pytest.raises(FitError, match="100 sideband events for training; 'quantile' needs at least 300"):
        fit_scaling("quantile", x, mjj, np.ones(100), DOMAIN)
    flat = np.column_stack([x[:, 0], np.full(100, 3.0)])
    with pytest.raises(FitError, match="feature number 2 does not vary"):
        fit_scaling("standard", flat, mjj, np.ones(100), DOMAIN)


def cusped(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A feature with a cusp at one place, whose sides change their share and whose edge moves with mass, like dR."""
    rng = np.random.default_rng(seed)
    mjj = 2700 * np.exp(rng.exponential(0.18, 2 * n))
    mjj = mjj[mjj < 6000][:n]
    u = np.log(mjj / 2700)
    is_left = rng.random(len(mjj)) < 0.45 - 0.44 * u
    x = np.where(is_left, -rng.exponential(0.08, len(mjj)), (0.25 + 1.2 * u) * rng.beta(0.6, 1.0, len(mjj)))
    return np.pi + x[:, None], mjj


def test_a_cusp_that_stays_is_followed_into_the_window(monkeypatch):
    x, mjj = cusped(150_000, 1)
    apart = (mjj < 3300) | (mjj >= 3700)
    other, mass = cusped(300_000, 2)
    inside = (mass >= 3300) & (mass < 3700)
    uneven = []
    for straight in (1.0, scaling_module._STRAIGHT):
        monkeypatch.setattr(scaling_module, "_STRAIGHT", straight)
        fitted = fit_scaling("quantile", x[apart], mjj[apart], np.ones(apart.sum()), [(-np.inf, np.inf)])
        counts = np.histogram(stats.norm.cdf(fitted.forward(other[inside], mass[inside])[:, 0]), 40, (0, 1))[0]
        uneven.append(((counts - counts.mean()) ** 2 / counts.mean()).sum() / 39)
    without, with_map = uneven
    assert with_map < 0.5 * without


def drifting(n: int, seed: int, bend: float) -> tuple[np.ndarray, np.ndarray]:
    """A feature whose mean is a parabola in ln m."""
    rng = np.random.default_rng(seed)
    mjj = 2700 * np.exp(0.8 * rng.power(0.5, n))
    u = np.log(mjj / 2700) / 0.8
    return (rng.normal(size=n) + u + bend * u**2)[:, None], mjj


def in_window(mjj):
    return (mjj >= 3300) & (mjj < 3700)


def curves_beside_the_window(x, mjj):
    outside = ~in_window(mjj)
    log_mass = (np.log(mjj[outside]).mean(), np.log(mjj[outside]).std())
    return fit_curves(
        x[outside], mjj[outside], np.ones(outside.sum()), log_mass, [(3300.0, 3700.0)], "ab"[: x.shape[1]]
    )


def test_curves_bend_where_the_sidebands_do_and_are_straight_elsewhere():
    flat, mjj = drifting(40_000, 3, 0.0)
    bent, _ = drifting(40_000, 3, 4.0)
    straight, curved = curves_beside_the_window(np.hstack([flat, bent]), mjj)[:, 2:, 0]
    assert np.abs(straight).max() < 0.1 < 1 < np.abs(curved).max()


def test_a_signal_beside_the_window_moves_the_curves_in_it_little(monkeypatch):
    # one per cent of the events within half a width of its edges, all of them at high values
    x, mjj = drifting(40_000, 8, 0.5)
    rng = np.random.default_rng(5)
    number = ((mjj >= 3100) & (mjj < 3900) & ~in_window(mjj)).sum() // 100
    where = rng.choice(mjj[(mjj >= 3100) & (mjj < 3900) & ~in_window(mjj)], number)
    polluted = np.concatenate([x, np.full((number, 1), 6.0)]), np.concatenate([mjj, where])
    log = np.log(mjj[~in_window(mjj)])
    basis = np.polynomial.legendre.legvander((np.log([3500.0]) - log.mean()) / log.std() / 3, 4)
    moved = []
    for stiffness in (quantile_curves._STIFFNESS, (0.0,)):
        monkeypatch.setattr(quantile_curves, "_STIFFNESS", stiffness)
        clean, dirty = curves_beside_the_window(x, mjj)[0], curves_beside_the_window(*polluted)[0]
        moved.append(((basis @ (dirty - clean)) ** 2).sum())
    assert moved[0] < 0.5 * moved[1]


def test_no_pseudo_window_touches_the_window():
    centre = np.linspace(-1.5, 1.5, 40)
    windows = quantile_curves._pseudo_windows(centre, centre, [(-0.2, 0.2)])
    assert len(windows) > 4
    assert not any(inside[(centre > -0.3) & (centre < 0.3)].any() for inside in windows)


def test_few_bins_of_mass_give_straight_lines():
    x, mjj = drifting(400, 6, 4.0)
    assert np.abs(curves_beside_the_window(x, mjj)[0, 2:, 0]).max() < 0.1


def test_bins_of_mass_hold_events_however_the_masses_repeat():
    rng = np.random.default_rng(0)
    for masses in (rng.integers(0, 50, 5000), rng.integers(0, 2, 5000), np.minimum(rng.geometric(0.5, 5000), 12)):
        bins = mass_bins(masses.astype(float))
        assert (np.sum(bins, axis=0) == 1).all()
        assert min(mask.sum() for mask in bins) >= 50
        assert len(bins) >= 2
    # without repetition they are the quantiles
    masses = rng.uniform(size=5000)
    edges = np.quantile(masses, np.linspace(0, 1, 41))
    for mask, low, high in zip(mass_bins(masses), edges[:-1], edges[1:], strict=True):
        assert low <= masses[mask].min() <= masses[mask].max() <= high


@pytest.mark.parametrize("distinct", [2, 3, 50])
def test_few_distinct_masses_are_scaled(distinct):
    x, mjj = events(6000)
    mjj = np.linspace(2800, 5000, distinct)[np.random.default_rng(1).integers(0, distinct, 6000)]
    scaling = fit_scaling("quantile", x, mjj, np.ones(6000), DOMAIN)
    z = scaling.forward(x, mjj)
    assert np.abs(z[:, 0].mean()) < 0.05
    assert np.allclose(scaling.inverse(z, mjj), x, rtol=0, atol=1e-9)


def test_equal_masses_and_a_value_of_nearly_all_are_refused_by_name():
    x, mjj = events(1000)
    with pytest.raises(FitError, match="every sideband event has the mass 3000 GeV"):
        fit_scaling("standard", x, np.full(1000, 3000.0), np.ones(1000), DOMAIN)
    x[:, 1] = np.arange(1000) % 500 == 3
    with pytest.raises(FitError, match="feature 'tau' has the same value in nearly all"):
        fit_scaling("quantile", x, mjj, np.ones(1000), DOMAIN, ("m", "tau"))


# ---- one map, computed in loops and on a device ----------------------------------------------------------------------


def beyond(x, xp, fp):
    """Interpolate; the mean slope of the outer ten knots goes on."""
    y = np.interp(x, xp, fp)
    y = np.where(x < xp[0], fp[0] + (x - xp[0]) * (fp[9] - fp[0]) / (xp[9] - xp[0]), y)
    return np.where(x > xp[-1], fp[-1] + (x - xp[-1]) * (fp[-1] - fp[-10]) / (xp[-1] - xp[-10]), y)


def knots(scaling, mjj, j):
    """Quantiles of one mass and feature after the first map, as the module's documentation states them."""
    curves = scaling.curves[j]
    t = (np.log(mjj) - scaling.log_mass[0]) / scaling.log_mass[1] / 3.0
    median, *logarithms = np.polynomial.legendre.legval(t, curves)
    steps = np.exp(logarithms)
    # from the median outwards: far from the fitted masses a distance may be so large that others vanish in sums with it
    return np.concatenate([median - np.cumsum(steps[14::-1])[::-1], [median], median + np.cumsum(steps[15:])])


def extended(value, xp, fp):
    """Interpolate; the outer intervals go on."""
    k = np.clip(np.searchsorted(xp, value, side="right") - 1, 0, len(xp) - 2)
    return fp[k] + (value - xp[k]) / (xp[k + 1] - xp[k]) * (fp[k + 1] - fp[k])


@pytest.fixture(scope="module", params=[30_000, 3000])
def quantile(request):
    x, mjj = events(request.param)
    return fit_scaling("quantile", x, mjj, np.ones(len(x)), DOMAIN)


def spread_events():
    """Events inside the quantiles and far beyond them, at masses inside and outside the fitted ones."""
    x, mjj = events(200, seed=4)
    x[:20] *= 3
    x[20:40] -= 50
    mjj[::7] *= 1.5
    return x, mjj


def test_features_are_scaled_by_the_documented_maps(quantile):
    x, mjj = spread_events()
    expected = np.empty_like(x)
    for i, j in np.ndindex(x.shape):
        unit = extended(beyond(x[i, j], *quantile.even[j]), knots(quantile, mjj[i], j), UNITS)
        expected[i, j] = beyond(unit, quantile.levels[j], scaling_module._FINE)
    np.testing.assert_allclose(quantile.forward(x, mjj), expected, rtol=1e-10, atol=1e-10)


def test_features_are_mapped_back_by_the_documented_maps(quantile):
    mjj = spread_events()[1]
    z = np.random.default_rng(5).normal(0, 2.5, (len(mjj), 2))
    expected = np.empty_like(z)
    for i, j in np.ndindex(z.shape):
        unit = beyond(z[i, j], scaling_module._FINE, quantile.levels[j])
        y = extended(unit, UNITS, knots(quantile, mjj[i], j))
        expected[i, j] = max(beyond(y, *quantile.even[j, ::-1]), 0.0)
    np.testing.assert_allclose(quantile.inverse(z, mjj), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["standard", "quantile"])
def test_a_device_scales_as_the_cpu_does(kind, quantile):
    x, mjj = events(3000)
    scaling = quantile if kind == "quantile" else fit_scaling(kind, x, mjj, np.ones(3000), DOMAIN)
    x, mjj = spread_events()
    z = scaling.forward(x, mjj)
    masses = torch.as_tensor(mjj)
    np.testing.assert_allclose(condition_tensor(scaling, masses), scaling.condition(mjj), rtol=1e-12)
    np.testing.assert_allclose(scale_tensor(scaling, torch.as_tensor(x), masses), z, rtol=1e-10, atol=1e-10)
    back = inverse_tensor(scaling, torch.as_tensor(1.5 * z), masses)
    np.testing.assert_allclose(back, scaling.inverse(1.5 * z, mjj), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_what_is_undefined_stays_so(direction, quantile):
    values, mjj = np.full((3, 2), 1.0), np.full(3, 3000.0)
    values[1, 0] = np.nan
    mapped = getattr(quantile, direction)(values, mjj)
    assert np.array_equal(np.isnan(mapped), np.isnan(values))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_an_event_is_scaled_alone(direction, quantile):
    values, mjj = spread_events()
    whole = getattr(quantile, direction)(values, mjj)
    parts = [getattr(quantile, direction)(values[i : i + 7], mjj[i : i + 7]) for i in range(0, len(mjj), 7)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("kind", ["standard", "quantile"])
def test_scaling_takes_the_memory_of_its_result(kind, direction):
    x, mjj = events(50_000)
    scaling = fit_scaling(kind, x, mjj, np.ones(len(x)), DOMAIN)
    getattr(scaling, direction)(x[:10], mjj[:10])
    tracemalloc.start()
    getattr(scaling, direction)(x, mjj)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * x.nbytes
