"""Null searches of whole configurations, and what they say of p-values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml
from scipy import stats
from test_null_searches import WINDOW, background, config, generator  # noqa: F401 - fixtures
from test_stages import SEARCH, cut_sample

from drapes_hep.errors import ConfigError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.files import read_json
from drapes_hep.regions import Window
from drapes_hep.studies import calibration as calibration_module
from drapes_hep.studies.calibration import calibrate, mid_p, nulls_of
from drapes_hep.studies.null_searches import check_nulls, search_null

POINTS = (("3300-3700", 1.0), ("3300-3700", 0.1), ("3600-4000", 1.0))


def records(nulls: int, kappa: float, bias: float = 0.0, seed: int = 1) -> list[list[dict]]:
    """Nulls whose expectations scatter more than their errors say."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(nulls):
        rows = []
        for window, cut in POINTS:
            mu, error = 400.0, 15.0
            width = np.sqrt(kappa**2 * (mu + error**2) - mu)
            expected = mu + width * rng.normal() - bias * np.sqrt(mu + error**2)
            row = {"window": window, "cut": cut, "observed": int(rng.poisson(mu)), "expected": expected, "error": error}
            rows.append({"null": number, **row})
        out.append(rows)
    return out


def test_widths_and_means_of_pulls_are_measured():
    calibration = calibrate(nulls_of(records(4000, 1.5, 0.3)))
    assert calibration.points == POINTS
    np.testing.assert_allclose(calibration.kappa, 1.5, rtol=0.05)
    np.testing.assert_allclose(calibration.mean, 0.3, atol=0.15)
    np.testing.assert_allclose(calibration.kappa_error, calibration.kappa / np.sqrt(4000))
    # points are independent
    assert np.abs(calibration.correlation - np.eye(3)).max() < 0.1


def test_calibrated_p_values_are_uniform_where_the_local_ones_are_not():
    calibration = calibrate(nulls_of(records(2000, 1.4)))
    assert (calibration.local_ks < 1e-4).all()
    assert (calibration.calibrated_ks > 0.01).all()
    assert calibration.whole_ks < 1e-4
    assert calibration.calibrated_whole_ks > 0.01


def test_honest_p_values_are_left_alone():
    calibration = calibrate(nulls_of(records(2000, 1.0)))
    assert (calibration.local_ks > 0.01).all()
    # three points that share nothing
    assert calibration.trials == pytest.approx(3.0, rel=0.1)


def test_mid_p_is_less_half_of_the_counts_own_probability():
    n, mu = np.array([0.0, 3.0, 9.0]), np.full(3, 4.0)
    p = mid_p(n, mu, np.full(3, 1e-9))
    np.testing.assert_allclose(p, stats.poisson.sf(n, mu) + 0.5 * stats.poisson.pmf(n, mu), rtol=1e-6)
    assert np.isnan(mid_p(np.array([np.nan]), np.array([4.0]), np.array([1.0]))).all()


def test_a_silent_point_is_in_no_number():
    rows = records(100, 1.0)
    for record in rows[::7]:
        record[1] |= {"expected": None, "error": None}
    calibration = calibrate(nulls_of(rows))
    assert list(calibration.quoted) == [100, 85, 100]
    assert np.isfinite(calibration.kappa).all()


def test_a_search_that_quotes_nothing_has_found_nothing():
    rows = records(100, 1.0)
    for row in rows[3] + [record[1] for record in rows]:
        row |= {"expected": None, "error": None}
    calibration = calibrate(nulls_of(rows))
    assert np.isnan(calibration.kappa[1])
    assert np.isfinite(calibration.calibrated_trials)
    assert np.isfinite(calibration.whole).all()


def test_each_half_has_nulls_of_every_model():
    rows = records(80, 1.0)
    for record in rows:
        # what one of the generator's models does
        if record[0]["null"] % 2:
            record[0]["observed"] += 400
    calibration = calibrate(nulls_of(rows), models=2)
    assert calibration.kappa[0] == pytest.approx(calibration.test_kappa[0], rel=0.3)
    assert calibrate(nulls_of(rows), models=1).mean[0] < 1 < calibration.mean[0]


def test_few_nulls_calibrate_nothing():
    with pytest.raises(ConfigError, match="30 nulls calibrate nothing; at least 40"):
        calibrate(nulls_of(records(30, 1.0)))


def test_further_events_pass_the_trained_cuts(config, generator, few_trees):  # noqa: F811
    events, further = generator.events(0, 6000.0), generator.events(2, 20_000.0)
    rows = search_null(config, 0, events, further)
    inside = WINDOW.in_signal_region(further["mjj"]).sum()
    assert [row["cut"] for row in rows] == [1.0, 0.1, 0.01]
    assert rows[0]["further"] == inside
    assert rows[0]["efficiency"] == rows[0]["curve"] == 1.0
    for row in rows[1:]:
        assert row["efficiency"] == row["further"] / inside
        # what the template lets pass, and not the null's own events
        assert 0.3 < row["efficiency"] / row["cut"] < 3


def test_one_model_generates_all_of_a_null(config, generator):  # noqa: F811
    low, high = Window(2900.0, 3300.0, 2700.0, 6000.0), Window(4000.0, 4400.0, 2700.0, 6000.0)
    first, second = generator.models[0]
    both = dataclasses.replace(generator, windows=(low, high), models=((first,), (second,)))
    for number, model in ((0, first), (1, first), (2, second), (3, second), (4, first)):
        alone = dataclasses.replace(generator, models=((model,),))
        assert np.array_equal(both.events(number, 500.0)["m_j1"], alone.events(number, 500.0)["m_j1"])


@pytest.mark.parametrize(("windows", "models"), [(1, 5), (4, 5), (5, 3)])
def test_each_half_has_all_models_of_all_windows(generator, windows, models):  # noqa: F811
    many = dataclasses.replace(generator, windows=(WINDOW,) * windows, models=((None,) * models,) * windows)
    numbers = range(many.period)
    for half in (0, 1):
        truths = {many.model(number) for number in numbers if number // models % 2 == half}
        assert len(truths) == windows * models


@pytest.fixture
def study(tmp_path, drapes, monkeypatch):
    """Run the study on a few events, with searches that say what they were asked for."""
    write_feature_root(tmp_path / "events.root", cut_sample())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    monkeypatch.chdir(tmp_path)
    asked: list[int] = []

    def quick(config, number, events, further, device):  # noqa: F811
        asked.append(number)
        return [{key: value for key, value in row.items() if key != "null"} for row in records(number + 1, 1.2)[-1]]

    monkeypatch.setattr(calibration_module, "search_null", quick)

    def run(*words: str) -> list[int]:
        asked.clear()
        options = ["--workers", 1, "--quiet", "--set", "study.null_models=1", "--set", "study.null_events=300"]
        for word in words:
            options += ["--set", word]
        status, _, said = drapes("study", "calibration", "tiny.yaml", "-o", "out", *options)
        assert status == 0, said
        return list(asked)

    return run


def test_a_killed_study_goes_on_where_it_was(study, tmp_path):
    assert study("study.nulls=40") == list(range(40))
    assert study("study.nulls=44") == [40, 41, 42, 43]
    record = read_json(tmp_path / "out" / "calibration" / "calibration.json")
    assert [(point["window"], point["cut"]) for point in record["points"]] == list(POINTS)
    # another search is another calibration
    assert len(study("study.nulls=40", "cwola.folds=3")) == 40


@pytest.mark.parametrize(
    ("change", "words"),
    [({"blind": True}, "blind: null searches"), ({"template": {"method": "file"}}, "neither 'file' nor")],
)
def test_what_cannot_be_searched_without_a_signal(config, change, words):  # noqa: F811
    template = config.template.model_copy(update=change.get("template", {}))
    wrong = config.model_copy(update={**change, "template": template})
    with pytest.raises(ConfigError, match=words):
        check_nulls(wrong)
