"""The global p-value of the resonance fit."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from scipy import special, stats
from test_resonance import EDGES, MU, U, template
from test_stages import SEARCH, cut_sample, search

from drapes_hep.bumphunt.exceedance import exceedance
from drapes_hep.bumphunt.resonance import scan_resonances
from drapes_hep.bumphunt.resonance_toys import resonance_significance, scan_toys, toy_counts
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_shapes import find_signal
from drapes_hep.bumphunt.toys import background_model
from drapes_hep.config import SignalShapeConfig
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.outcome import read_results
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.regions import Window
from drapes_hep.stages.report import report

WINDOWS = (Window(3300.0, 3700.0, 2700.0, 6000.0),)
SHAPE = find_signal(SignalShapeConfig())


def counts(signal=0.0):
    every = np.round(MU + signal * template(3500))
    passed = np.round(0.1 * (1 + 0.2 * U) * MU + 0.8 * signal * template(3500))
    return (SelectedCounts(EDGES, (1.0, 0.1), np.stack([every - passed, passed]), np.zeros(len(MU), dtype=np.bool_)),)


@pytest.fixture(scope="module")
def model():
    return background_model(WINDOWS, counts(), np.array([[1.0, 0.3], [0.3, 1.0]]))


@pytest.fixture(scope="module")
def log_p(model):
    return scan_toys(model, SHAPE, 60, 3)


def test_pseudo_experiments_have_the_means_of_the_model(model):
    toys = list(toy_counts(model, 200, np.random.default_rng(1)))
    nested = np.mean([of_window.nested for [of_window] in toys], axis=0)
    np.testing.assert_allclose(nested[0].sum(), MU.sum(), rtol=0.002)
    assert nested[1].sum() == pytest.approx(counts()[0].nested[1].sum(), rel=0.02)
    assert all((of_window.counts >= 0).all() for [of_window] in toys)


def test_a_scan_of_background_is_one_of_many(model, log_p):
    """Other pseudo-experiments have global p-values that are uniform."""
    others = scan_toys(model, SHAPE, 40, 4)
    p = [exceedance(log_p, observed).p for observed in others]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_the_trials_are_more_than_one_and_fewer_than_the_fits(log_p):
    scan = scan_resonances(WINDOWS, counts(), SHAPE)
    whole = resonance_significance(scan, log_p)
    assert 2 < whole.extrapolated.trials < len(scan.points)


def test_a_strong_signal_is_beyond_all_pseudo_experiments(log_p):
    scan = scan_resonances(WINDOWS, counts(600.0), SHAPE)
    whole = resonance_significance(scan, log_p)
    assert (whole.of_toys.exceeding, whole.of_toys.bound) == (0, True)
    assert whole.of_toys.p == pytest.approx(1 / 61)
    assert abs(whole.best.mass - 3500) < 60
    local = special.ndtr(-whole.best.z)
    assert local < whole.extrapolated.p < 100 * local


def test_nothing_is_compared_without_a_fit():
    hidden = np.ones(len(MU), dtype=np.bool_)
    blinded = (SelectedCounts(EDGES, (1.0,), np.full((1, len(MU)), np.nan), hidden),)
    assert resonance_significance(scan_resonances(WINDOWS, blinded, SHAPE), np.zeros(10)) is None


@pytest.mark.parametrize(("exceeding", "bound"), [(0, True), (3, False)])
def test_the_pseudo_experiments_that_are_as_extreme_are_counted(exceeding, bound):
    toys = np.concatenate([np.full(exceeding, -9.0), np.full(99 - exceeding, -1.0)])
    share = exceedance(toys, -5.0)
    assert (share.exceeding, share.p, share.bound) == (exceeding, (exceeding + 1) / 100, bound)
    assert share.interval[0] <= exceeding / 99 <= share.interval[1]
    assert share.z == pytest.approx(-special.ndtri(share.p))


def test_results_and_report_quote_it(tmp_path, monkeypatch, few_trees, unrendered):
    monkeypatch.chdir(tmp_path)
    write_feature_root(tmp_path / "events.root", cut_sample())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    search(tmp_path, tmp_path / "run", "hunt.resonance_toys=41")
    whole = read_results(tmp_path / "run").resonance.global_significance
    assert whole.toys == 41
    assert whole.p_global == pytest.approx((whole.exceeding + 1) / 42)
    page = report(open_run(tmp_path / "run")).read_text()
    assert "of 41 pseudo-experiments as extreme" in page


def test_the_reason_why_there_is_none_is_said(tmp_path, monkeypatch, few_trees, unrendered):
    monkeypatch.chdir(tmp_path)
    write_feature_root(tmp_path / "events.root", cut_sample())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    search(tmp_path, tmp_path / "run")
    resonance = read_results(tmp_path / "run").resonance
    assert resonance.global_significance is None
    assert resonance.global_reason == "hunt.resonance_toys is 0: no pseudo-experiments"
    page = report(open_run(tmp_path / "run")).read_text()
    assert "it has no global p-value (hunt.resonance_toys is 0: no pseudo-experiments)" in page
