"""Figures of merit against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from drapes_hep.errors import FitError
from drapes_hep.metrics import auc, roc, sic_at_rejection, sic_maximum, spread


@pytest.fixture
def shifted():
    rng = np.random.default_rng(1)
    score = np.concatenate([rng.normal(1.0, 1, 4000), rng.normal(0, 1, 6000)])
    return score, np.repeat([True, False], [4000, 6000])


def test_auc_agrees_with_scikit_learn_with_weights_and_ties(shifted):
    score, truth = shifted
    weight = np.random.default_rng(2).uniform(0.5, 2, len(score))
    tied = np.round(score, 1)
    assert auc(tied, truth, weight).value == pytest.approx(roc_auc_score(truth, tied, sample_weight=weight), abs=1e-12)


def test_auc_uncertainty_is_the_spread_over_samples():
    rng = np.random.default_rng(3)
    estimates = [
        auc(np.concatenate([rng.normal(0.5, 1, 300), rng.normal(0, 1, 500)]), np.repeat([1, 0], [300, 500]))
        for _ in range(300)
    ]
    assert np.std([estimate.value for estimate in estimates]) == pytest.approx(
        np.mean([estimate.error for estimate in estimates]), rel=0.15
    )


def test_sic_of_two_gaussians_is_the_closed_form(shifted):
    score, truth = shifted
    curve = roc(score, truth)
    point = sic_at_rejection(curve, 20.0)
    expected = norm.sf(norm.isf(1 / 20) - 1.0) / np.sqrt(1 / 20)
    assert abs(point.sic - expected) < 4 * point.error
    assert point.background_efficiency == pytest.approx(1 / 20, rel=1e-3)


def test_sic_uncertainty_is_the_spread_over_samples():
    rng = np.random.default_rng(4)

    def once():
        score = np.concatenate([rng.normal(1.5, 1, 500), rng.normal(0, 1, 2000)])
        # at a fixed cut, as the quoted uncertainty assumes
        passing = score > norm.isf(0.05)
        eps_s, eps_b = passing[:500].mean(), passing[500:].mean()
        return eps_s / np.sqrt(eps_b)

    curve = roc(np.concatenate([rng.normal(1.5, 1, 500), rng.normal(0, 1, 2000)]), np.repeat([1, 0], [500, 2000]))
    quoted = sic_at_rejection(curve, 20.0).error
    assert np.std([once() for _ in range(400)]) == pytest.approx(quoted, rel=0.25)


def test_rejections_beyond_the_sample_are_none():
    curve = roc([3.0, 2.0, 1.0, 0.0], [1, 0, 1, 0])
    assert sic_at_rejection(curve, 1000.0) is None
    assert sic_at_rejection(curve, 2.0).background_efficiency == 0.5


def test_the_maximum_asks_for_ten_background_events():
    score = np.concatenate([np.full(50, 9.0), np.arange(100) / 100])
    curve = roc(score, np.repeat([1, 0], [50, 100]))
    maximum = sic_maximum(curve)
    assert maximum.background_efficiency == pytest.approx(0.1)
    assert sic_maximum(roc([2.0, 1.0, 0.0], [1, 0, 0])) is None


def test_monotone_maps_change_nothing(shifted):
    score, truth = shifted
    assert auc(np.exp(score), truth).value == auc(score, truth).value


def test_spread_of_a_normal_sample():
    middle, low, high = spread(np.random.default_rng(5).normal(10, 2, 20_000))
    assert (middle, low, high) == pytest.approx((10, 8, 12), abs=0.1)


@pytest.mark.parametrize("truth", [[1, 1], [0, 0]])
def test_a_single_class_is_refused(truth):
    with pytest.raises(FitError, match="both classes"):
        roc([0.1, 0.2], truth)


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(FitError, match="not finite"):
        roc([np.nan, 0.2], [0, 1])


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ([1.0, 1.0, 0.0], "1 signal event, no weight"),
        ([0.0, 0.0, 1.0], "2 background events, no weight"),
        ([1.0, 1.0, -1.0], "negative or not finite"),
        ([1.0, np.nan, 1.0], "negative or not finite"),
        ([1.0, 1.0], "3 scores, 3 labels and 2 weights"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weight, said):
    with pytest.raises(FitError, match=said):
        roc([0.1, 0.2, 0.3], [0, 0, 1], weight)
