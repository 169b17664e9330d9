"""p-values with the pulls of null searches: what they are, and how they reach results and report."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import ROOT
from scipy import stats
from test_stages import SEARCH, WINDOWS, cut_sample, search

from drapes_hep.bumphunt.calibrated import (
    NullPulls,
    PullWidth,
    added_variance,
    calibrated_global,
    calibrated_points,
    read_pulls,
)
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.config import load_config
from drapes_hep.errors import InputError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.outcome import read_results
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.stages import hunt as hunt_module
from drapes_hep.stages.report import report

pytestmark = pytest.mark.usefixtures("few_trees")

WIDTH = PullWidth(1.5, 0.1, 0.3)


def hunted(window="3300-3700", p=1e-3, observed=160, expected=120.0, error=8.0, cut=0.01):
    point = SimpleNamespace(
        background_efficiency=cut, observed=observed, expected=expected, expected_error=error, p_local=p
    )
    return SimpleNamespace(sr=SimpleNamespace(name=window), working_points=(point,))


def pulls_of(points=(("3300-3700", 0.01),), trials=3.0, width=WIDTH) -> NullPulls:
    return NullPulls(200, trials, dict.fromkeys(points, width))


def test_the_error_makes_pulls_of_width_1_and_no_mean():
    rng = np.random.default_rng(1)
    mu, s, kappa, mean = 400.0, 15.0, 1.5, 0.4
    deviation = np.sqrt(mu + s**2) * (mean + kappa * rng.normal(size=200_000))
    calibrated = np.sqrt(mu + s**2 + added_variance(mu, s, kappa, mean))
    assert np.mean((deviation / calibrated) ** 2) == pytest.approx(1.0, rel=0.02)


def test_a_narrow_width_makes_no_error_smaller():
    assert added_variance(100.0, 10.0, 0.8, 0.0) == 0.0


def test_a_calibrated_point_is_the_local_one_with_the_larger_error():
    [point] = calibrated_points(hunted(), pulls_of())
    error = np.sqrt(8.0**2 + (1.5**2 - 1 + 0.3**2) * (120 + 8.0**2))
    assert point.error == pytest.approx(error)
    assert point.p_local == pytest.approx(float(local_significance(160, 120.0, error).p))
    assert point.z_local < float(local_significance(160, 120.0, 8.0).z)


@pytest.mark.parametrize("gone", [{"expected": None}, {"observed": None}, {"p": None}, {"cut": 0.1}])
def test_what_is_not_quoted_or_not_in_the_nulls_is_not_calibrated(gone):
    assert calibrated_points(hunted(**gone), pulls_of()) == (None,)


def test_the_whole_search_pays_for_its_trials():
    pulls = pulls_of((("3300-3700", 0.01), ("3600-4000", 0.01)))
    hunts = [hunted(), hunted("3600-4000", observed=125)]
    points = [calibrated_points(hunt, pulls) for hunt in hunts]
    whole = calibrated_global(hunts, points, pulls)
    assert whole.p_global == pytest.approx(1 - (1 - points[0][0].p_local) ** 3, rel=1e-9)
    assert whole.z_global == pytest.approx(stats.norm.isf(whole.p_global))
    # far away too, where 1 - p is 1
    far = calibrated_global(hunts, [[SimpleNamespace(p_local=1e-30)], [None]], pulls)
    assert far.p_global == pytest.approx(3e-30)


def test_nulls_of_other_windows_give_no_global_p_value():
    whole = calibrated_global([hunted()], [calibrated_points(hunted(), pulls_of())], pulls_of((("1-2", 0.01),)))
    assert whole.p_global is None
    assert "do not calibrate all windows and cuts of this search" in whole.reason


def record(path, places, **changes):
    entries = [{"window": w, "cut": c, "mean_pull": 0.3, "kappa": 1.5, "kappa_error": 0.1} for w, c in places]
    path.write_text(json.dumps({"nulls": 200, "calibrated_trials": 3.0, "points": entries, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": 3}, "is no record of the study calibration"),
        ({"nulls": None}, "is no record of the study calibration"),
        ({"calibrated_trials": 1e999}, "holds a width or mean that is not finite"),
        ({"points": []}, "holds a width or mean that is not finite"),
    ],
)
def test_what_is_no_record_is_refused(changes, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read_pulls(record(tmp_path / "calibration.json", [("3300-3700", 0.1)], **changes))


def test_a_record_is_named_from_the_working_directory_and_read_at_once(tmp_path, monkeypatch, drapes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write_feature_root(tmp_path / "configs" / "events.root", cut_sample())
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    record(tmp_path / "wrong.json", [], points=3)
    status, _, said = drapes("run", "configs/tiny.yaml", "-o", "run", "--set", "hunt.calibration=wrong.json")
    assert status == 2
    assert said.startswith(f"drapes: {tmp_path / 'wrong.json'}: is no record of the study calibration")
    assert not (tmp_path / "run" / "windows").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"training": {"epochs": 3}}, "training.epochs 3, here 14"),
        ({"training": {"pseudo_window": "none"}}, None),
        ({"features": ["m_j1"]}, "features"),
    ],
)
def test_in_what_null_searches_differ_is_said(changes, words):
    config = load_config(ROOT / "configs" / "quickstart.yaml")
    tree = config.model_dump(mode="json")
    for name, value in changes.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    pulls = NullPulls(200, 3.0, {}, 120.0, tree)
    difference = hunt_module._of_other_searches(SimpleNamespace(config=config), [hunted(observed=130)], pulls)
    assert difference is None if words is None else words in difference


def test_a_search_quotes_both_p_values(tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)
    write_feature_root(tmp_path / "events.root", cut_sample())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    record(tmp_path / "calibration.json", [(window, cut) for window in WINDOWS for cut in (1.0, 0.1, 0.01)], events=12)
    search(tmp_path, tmp_path / "run", "hunt.calibration=calibration.json")
    results = read_results(tmp_path / "run")
    quoted = [point for window in results.windows for point in window.working_points if point.p_local is not None]
    assert quoted
    for point in quoted:
        assert point.calibrated.kappa.value == 1.5
        assert point.calibrated.expected_error > point.expected_error
    whole = results.global_significance.calibrated
    assert whole.difference == f"12 events in the window 3300-3700, here {results.windows[0].n_observed}"
    smallest = min(point.calibrated.p_local for point in quoted)
    assert whole.p_global == pytest.approx(1 - (1 - smallest) ** 3)
    page = report(open_run(tmp_path / "run")).read_text()
    assert "calibrated z (κ)" in page
    assert "global p-value, calibrated" in page
