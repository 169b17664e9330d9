"""Limits on a signal in one count: published numbers, closed forms, pyhf, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from drapes_hep.bumphunt.count_limits import background_quantiles, count_cls, count_limit, count_limits
from drapes_hep.errors import FitError

REFERENCE = [
    (12_948, 12_948.2, 99.9, 297.05, 297.7),
    (130, 129.5, 12.8, 33.65, 33.65),
    (13, 12.9, 3.7, 10.57, 10.57),
    (5, 3.0, 0.9, 7.71, 5.5),
    (0, 3.0, 0.9, 3.00, 5.5),
]


@pytest.mark.parametrize(("n", "background", "error", "observed", "median"), REFERENCE)
def test_reference_limits(n, background, error, observed, median):
    limits = count_limits(n, background, error)
    assert limits.observed == pytest.approx(observed, rel=2e-3)
    assert limits.expected[2] == pytest.approx(median, rel=2e-3)


def test_without_events_the_background_does_not_matter():
    for background, error in ((3.0, 0.9), (0.2, 0.0), (40.0, 40.0)):
        assert count_limit(0, background, error) == pytest.approx(-np.log(0.05), rel=1e-8)


def test_a_known_background_has_the_poisson_limit():
    def cls(s, n=7, b=4.2):
        return special.gammaincc(n + 1, b + s) / special.gammaincc(n + 1, b)

    assert cls(count_limit(7, 4.2, 0.0)) == pytest.approx(0.05, rel=1e-8)
    # an error of nearly nothing is no error
    assert count_limit(7, 4.2, 1e-4) == pytest.approx(count_limit(7, 4.2, 0.0), rel=1e-6)


def test_cls_is_the_ratio_of_pseudo_experiments():
    rng, toys, (n, b, s) = np.random.default_rng(1), 400_000, (12, 10.0, 3.0)
    background = rng.gamma(b**2 / s**2 + 1.0, s**2 / b, toys)
    for signal in (2.0, 8.0):
        both = (rng.poisson(background + signal) <= n).mean()
        alone = (rng.poisson(background) <= n).mean()
        assert float(count_cls(n, b, s, [signal])[0]) == pytest.approx(both / alone, abs=4e-3)


def test_signals_of_several_trainings_are_mixed():
    one, other = (float(count_cls(9, 8.0, 2.0, [s])[0]) for s in (0.0, 10.0))
    assert one == 1.0
    assert float(count_cls(9, 8.0, 2.0, [[0.0, 10.0]])[0]) == pytest.approx(0.5 * (one + other), rel=1e-12)


def test_a_signal_that_a_known_background_excludes_is_excluded_too_often_in_at_most_5_percent():
    b = 6.3
    counts = np.arange(60)
    limits = np.array([count_limit(int(n), b, 0.0) for n in counts])
    for signal in np.linspace(0.5, 20.0, 40):
        assert stats.poisson.pmf(counts, b + signal)[limits < signal].sum() <= 0.05


def test_expected_limits_are_those_of_the_quantiles_of_the_background():
    quantiles = background_quantiles(129.5, 12.8)
    assert quantiles[2] == 130
    rng = np.random.default_rng(2)
    counts = rng.poisson(rng.gamma(129.5**2 / 12.8**2 + 1.0, 12.8**2 / 129.5, 200_000))
    np.testing.assert_allclose(quantiles, np.quantile(counts, special.ndtr([-2, -1, 0, 1, 2])), atol=1)
    assert count_limits(None, 129.5, 12.8).observed is None
    assert count_limits(None, 129.5, 12.8).expected == tuple(count_limit(n, 129.5, 12.8) for n in quantiles)


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.parametrize(("n", "background", "error"), [row[:3] for row in REFERENCE[:3]])
def test_pyhf_has_nearly_the_same_limits(n, background, error):
    pyhf = pytest.importorskip("pyhf", reason="needs the extra 'stats'")
    signal = {
        "name": "signal",
        "data": [1.0],
        "modifiers": [{"name": "events", "type": "normfactor", "data": None}],
    }
    expected = {
        "name": "background",
        "data": [background],
        "modifiers": [{"name": "background", "type": "shapesys", "data": [error]}],
    }
    model = pyhf.Model(
        {
            "channels": [{"name": "window", "samples": [signal, expected]}],
            "parameters": [{"name": "events", "bounds": [[0.0, 10.0 * n]], "inits": [1.0]}],
        },
        poi_name="events",
    )
    # its constraint is a Poisson of the same off region; its limits are asymptotic
    observed, _ = pyhf.infer.intervals.upper_limits.toms748_scan([n, *model.config.auxdata], model, 0.1, n, rtol=1e-4)
    assert float(observed) == pytest.approx(count_limit(n, background, error), rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, 3.0, 1.0, [1.0]), "the count 1.5 is not a whole number"),
        ((1, 0.0, 1.0, [1.0]), "the expectation 0 is not positive"),
        ((1, 3.0, -1.0, [1.0]), "the error of an expectation -1 is negative"),
        ((1, 3.0, 1.0, [-1.0]), "a number of signal events is negative"),
        ((0, 1000.0, 1.0, [1.0]), "a background of 1000 .* hardly ever has as few as 0 events"),
    ],
)
def test_no_limit_from_bad_numbers(arguments, message):
    with pytest.raises(FitError, match=message):
        count_cls(*arguments)
