"""Without signal the hunt finds nothing: a small version of analysis/null_bootstraps.py."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import null_resonance
from analysis.null_bootstraps import Events, bootstrap, working_points
from drapes_hep.config import Config
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import fit_spectrum

WINDOW = Window(3300, 3700, 2700, 6000)
EDGES = spectrum_edges((2700, 6000), 60, [WINDOW])


@pytest.fixture(scope="module")
def config():
    return Config.model_validate(
        {
            "name": "null",
            "data": {"path": "none"},
            "features": ["m_j1", "m_j2"],
            "cwola": {"folds": 3, "ensemble": 1},
            "hunt": {"background_efficiencies": [1, 0.1]},
        }
    )


@pytest.fixture(scope="module")
def events():
    """Background with features that drift with mass, on a spectrum that the four-parameter shape describes."""
    rng = np.random.default_rng(1)
    centres = 0.5 * (EDGES[1:] + EDGES[:-1])
    fit = fit_spectrum(8e4 * np.exp(-centres / 700), EDGES)
    mjj = draw(fit, 2700, 6000, rng.random(120_000))
    drift = np.log(mjj / 3500)
    x = np.stack([rng.gamma(2, 90, len(mjj)) * (1 + 0.2 * drift), rng.normal(drift, 1)], axis=1)
    return Events(x, mjj, np.arange(len(mjj)))


def test_pulls_of_bootstraps_average_to_zero(config, events):
    pulls = []
    for number in range(10):
        # few of many: a bootstrap as large as its population repeats the population's own fluctuations in what a cut
        # selects, and twice the variance of a Poisson count is not what a fit expects
        data, other = bootstrap(events, EDGES, config, number, size=20_000)
        template = other.where(WINDOW.in_signal_region(other.mjj))
        points = working_points(data, template, WINDOW, EDGES, config, 2)
        pulls.append([(p.observed - p.expected) / np.hypot(np.sqrt(p.expected), p.expected_error) for p in points])
    mean, width = np.mean(pulls, axis=0), np.std(pulls, axis=0, ddof=1)
    assert (np.abs(mean) < 3.5 / np.sqrt(len(pulls))).all()
    assert (width < 2).all()


def test_copies_of_an_event_share_a_fold_and_both_halves_share_none(config, events):
    data, other = bootstrap(events, EDGES, config, 0, size=None)
    assert len(np.unique(data.root)) < len(data.root)
    assert not np.isin(data.root, other.root).any()
    sample = data.sample(config)
    order = np.argsort(sample.group, kind="stable")
    same = np.diff(sample.group[order]) == 0
    assert (np.diff(sample.fold[order])[same] == 0).all()


def test_the_expected_spectrum_of_a_bootstrap_is_the_fit(config, events):
    counts = np.histogram(events.mjj, EDGES)[0].astype(float)
    fit = fit_spectrum(counts, EDGES)
    drawn = [np.histogram(bootstrap(events, EDGES, config, n, None)[0].mjj, EDGES)[0] for n in range(40)]
    pull = (np.mean(drawn, axis=0) - fit.expected / 2) / np.sqrt(fit.expected / 2 / 40)
    filled = counts > 0
    assert np.mean(pull[filled] ** 2) < 1.8


def test_random_scores_have_pulls_and_z_of_width_one():
    rows = null_resonance.count_rows(60) + null_resonance.resonance_rows(150)
    assert [row["statistic"] for row in rows] == ["count"] * 4 + ["resonance"] * 4
    for row in rows:
        assert row["experiments"] >= 150
        assert abs(row["mean"]) < 4 * row["mean error"] + 0.1
        # eight windows share their events
        assert abs(row["width"] - 1) < 4 * row["width error"] + 0.05
        assert row["above 3"] < 0.02


def test_weighted_experiments_of_few_events_are_background_alone():
    rows = null_resonance.few_rows(25, toys=(20, 20))
    assert [row["background"] for row in rows[::2]] == [1, 3, 10]
    for asymptotic, quoted in zip(rows[::2], rows[1::2], strict=True):
        assert quoted["experiments"] == asymptotic["experiments"]
        assert quoted["above 3"] <= quoted["above 2"] < 0.15
