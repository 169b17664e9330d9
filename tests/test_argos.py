"""ARGOS against what it is for samples whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest

from drapes_hep.cwola.argos import LEAST_TEMPLATE, argos


def grid(n):
    """Scores spread evenly over the unit interval."""
    return (np.arange(n) + 0.5) / n


def test_samples_that_are_alike_have_nothing():
    score = np.concatenate([grid(500), grid(500)])

    assert argos(score, np.repeat([True, False], 500), np.ones(1000)) == pytest.approx(0.0, abs=1e-12)


def test_a_signal_above_all_background_counts_at_the_tightest_threshold():
    n, fraction = 2000, 0.01
    background, signal = grid(n), np.full(int(fraction * n / (1 - fraction)), 2.0)
    data = np.concatenate([background, signal])
    score, is_data = np.concatenate([data, grid(n)]), np.repeat([True, False], [len(data), n])
    share, eps = len(signal) / len(data), LEAST_TEMPLATE / n

    expected = (share + (1 - share) * eps) / np.sqrt(eps) - np.sqrt(eps)

    assert argos(score, is_data, np.ones(len(score))) == pytest.approx(expected)


def test_only_the_order_of_the_scores_counts():
    rng = np.random.default_rng(1)
    score, is_data, weight = rng.normal(size=800), rng.random(800) < 0.5, rng.uniform(0.5, 2, 800)

    assert argos(np.exp(score), is_data, weight) == argos(score, is_data, weight)


def test_an_event_of_weight_two_counts_as_two():
    rng = np.random.default_rng(2)
    score, is_data = rng.normal(size=300), rng.random(300) < 0.5
    # of the data alone: a threshold needs its number of template events
    weight = np.where(is_data, rng.integers(1, 4, 300), 1)
    repeated = (np.repeat(values, weight) for values in (score, is_data))

    assert argos(score, is_data, weight) == pytest.approx(argos(*repeated, np.ones(weight.sum())))


def test_events_of_one_score_pass_together():
    is_data = np.repeat([True, False], [30, 20])

    assert argos(np.zeros(50), is_data, np.ones(50)) == pytest.approx(0.0, abs=1e-12)


def test_few_template_events_say_nothing():
    assert argos([3.0, 2.0, 1.0], [True, False, False], [1.0, 1.0, 1.0]) == 0.0
