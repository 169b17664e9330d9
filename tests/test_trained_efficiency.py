"""Efficiencies of trainings, sorted into curves."""

from __future__ import annotations

import numpy as np
import pytest

from drapes_hep.bumphunt.trained_efficiency import trained_efficiency
from drapes_hep.errors import FitError


def test_all_or_nothing_stays_all_or_nothing():
    # at 100 events half of the trainings find the signal, at 200 all
    curves = trained_efficiency([50, 100, 200], [np.zeros(4), np.array([0.3, 0, 0.3, 0]), np.full(4, 0.3)])
    np.testing.assert_allclose(curves.at(np.array([100.0])), [[0, 0, 0.3, 0.3]])


def test_a_larger_signal_is_not_found_worse():
    rng = np.random.default_rng(2)
    curves = trained_efficiency([10, 20, 40, 80], [rng.uniform(size=7) for _ in range(4)])
    assert (np.diff(curves.values, axis=0) >= 0).all()
    assert (np.diff(curves.values, axis=1) >= 0).all()


def test_values_in_order_are_left_alone():
    values = [np.array([0.1, 0.2]), np.array([0.15, 0.4])]
    curves = trained_efficiency([10, 1000], values)
    np.testing.assert_allclose(curves.values, values)
    # linear in the logarithm
    np.testing.assert_allclose(curves.at(np.array([100.0])), [[0.125, 0.3]])


def test_numbers_of_trainings_may_differ():
    curves = trained_efficiency([10, 20], [np.array([0.2]), np.array([0.1, 0.2, 0.3])])
    np.testing.assert_allclose(curves.values[0], 0.2 * np.ones(3), atol=0.051)


def test_drawn_again_the_mean_has_its_statistical_error():
    values = np.linspace(0, 0.5, 9)
    rng = np.random.default_rng(3)
    curves = trained_efficiency([1, 2], [values, values + 0.4])
    means = [curves.drawn_again(rng).values[0].mean() for _ in range(2000)]
    assert np.mean(means) == pytest.approx(values.mean(), abs=0.005)
    assert np.std(means) == pytest.approx(values.std() / 3, rel=0.1)


@pytest.mark.parametrize("signal", [9.0, 21.0])
def test_nothing_is_said_beyond_the_injections(signal):
    with pytest.raises(FitError, match="10 to 20 events only"):
        trained_efficiency([10, 20], [np.array([0.2]), np.array([0.3])]).at(np.array([signal]))


@pytest.mark.parametrize(
    ("injected", "values"),
    [([10], [[0.1]]), ([20, 10], [[0.1], [0.2]]), ([10, 20], [[0.1], []]), ([10, 20], [[0.1], [1.2]])],
)
def test_bad_injections_are_refused(injected, values):
    with pytest.raises(FitError):
        trained_efficiency(injected, [np.array(each) for each in values])
