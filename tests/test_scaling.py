"""Scaling: exact inverse, sidebands only, what it does to a feature that drifts with mass."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from drapes_hep.errors import FitError
from drapes_hep.events import scaling as scaling_module
from drapes_hep.events.scaling import fit_scaling, scaling_from_dict

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


def test_bins_of_mass_hold_events_however_the_masses_repeat():
    rng = np.random.default_rng(0)
    for masses in (rng.integers(0, 50, 5000), rng.integers(0, 2, 5000), np.minimum(rng.geometric(0.5, 5000), 12)):
        bins = scaling_module._mass_bins(masses.astype(float))
        assert (np.sum(bins, axis=0) == 1).all()
        assert min(mask.sum() for mask in bins) >= 50
        assert len(bins) >= 2
    # without repetition they are the quantiles
    masses = rng.uniform(size=5000)
    edges = np.quantile(masses, np.linspace(0, 1, 41))
    for mask, low, high in zip(scaling_module._mass_bins(masses), edges[:-1], edges[1:], strict=True):
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
