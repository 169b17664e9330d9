"""Null events, and what whole searches of them are summed up to (analysis/null_searches.py)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from test_stages import SEARCH

from analysis import null_searches
from drapes_hep.config import make_config
from drapes_hep.files import write_json
from drapes_hep.regions import Window
from drapes_hep.studies.null_events import NullGenerator, fit_null_masses, train_null_model

WINDOW = Window(3300.0, 3700.0, 2700.0, 6000.0)
CUTS = (1.0, 0.1)


@pytest.fixture(scope="module")
def config():
    return make_config(
        {
            **{key: value for key, value in SEARCH.items() if key not in {"data", "signal"}},
            "data": {"path": "events.root"},
            "features": ["m_j1", "tau21_j1"],
            "windows": {"width": 400, "step": 400, "first": 3300, "last": 3300},
        }
    )


@pytest.fixture(scope="module")
def background():
    """Features that drift with mass, on a falling spectrum."""
    rng = np.random.default_rng(3)
    mjj = 2700 + rng.exponential(500, 12_000)
    mjj = mjj[mjj < 6000]
    x = np.stack([rng.gamma(4, 40, len(mjj)) * mjj / 3500, rng.beta(4, 3, len(mjj))], axis=1)
    return x, mjj


@pytest.fixture(scope="module")
def generator(config, background):
    models = tuple(train_null_model(config, *background, WINDOW, number) for number in range(2))
    return NullGenerator(config, fit_null_masses(config, background[1], (WINDOW,)), models)


def test_a_null_is_generated_again_by_its_number(generator):
    first, second = generator.events(3, 500.0), generator.events(3, 500.0)

    assert all(np.array_equal(first[name], second[name]) for name in ("mjj", "m_j1", "tau21_j1"))


def test_nulls_share_no_event(generator):
    assert not np.isin(generator.events(0, 500.0)["m_j1"], generator.events(2, 500.0)["m_j1"]).any()


def test_numbers_of_events_fluctuate(generator):
    numbers = np.array([len(generator.events(number, 200.0)["mjj"]) for number in range(60)])

    assert abs(numbers.mean() - 200) < 4 * (200 / 60) ** 0.5
    assert 0.5 < numbers.var(ddof=1) / 200 < 1.7


def test_masses_follow_the_fit(generator):
    mjj = generator.events(1, 20_000.0)["mjj"]
    counts = np.histogram(mjj, generator.fit.edges)[0]
    expected = generator.fit.expected / generator.fit.expected.sum() * len(mjj)

    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1) > 1e-3


def test_models_differ_by_their_bootstrap(generator):
    first, second = (model.scaling.curves for model in generator.models)

    assert not np.array_equal(first, second)


def test_a_null_is_searched_in_both_schemes(config, generator, few_trees):
    events = generator.events(0, 6000.0)
    found = {
        scheme: list(null_searches.search_null(config, WINDOW, 0, events, scheme)) for scheme in null_searches.SCHEMES
    }

    inside = WINDOW.in_signal_region(events["mjj"]).sum()
    assert [rows[0]["observed"] for rows in found.values()] == [inside, inside]
    # all of the sidebands after a cut say more than a part of them
    assert found["cross_fit"][1]["error"] < found["hold_out"][1]["error"]


def rows_of(pulls, error, scheme):
    """Rows of a null whose pulls are given: 100 expected events, of an error of its own."""
    width = (100 + error**2) ** 0.5
    return [
        {
            "scheme": scheme,
            "cut": cut,
            "observed": 100 + pull * width,
            "expected": 100.0,
            "error": error,
            "z_local": pull,
        }
        for cut, pull in zip(CUTS, pulls, strict=True)
    ]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(5)
    rows = []
    for number in range(400):
        wide, narrow = 1.5 * rng.normal(size=2), 0.5 * rng.normal(size=2)
        found = [*rows_of(wide, 10.0, "cross_fit"), *rows_of(narrow, 20.0, "hold_out")]
        rows += [{"null": number, **row} for row in found]
    # two processes shared the work
    for part in range(2):
        write_json(tmp_path / f"nulls_{part}.json", [row for row in rows if row["null"] % 2 == part])
    return tmp_path


def test_pulls_are_read_back(folder):
    cuts, pulls, errors = null_searches.pulls_of(null_searches.read_nulls(folder))

    assert tuple(cuts) == CUTS
    assert pulls["cross_fit"].shape == (400, 2)
    assert np.allclose(errors["hold_out"], 20.0)
    assert abs(pulls["cross_fit"].std() - 1.5) < 0.15


def test_an_error_is_worth_less_where_pulls_are_wide_and_no_more_where_they_are_narrow(folder):
    _, pulls, errors = null_searches.pulls_of(null_searches.read_nulls(folder))

    assert null_searches.worth(pulls["cross_fit"], errors["cross_fit"]) == pytest.approx([15.0, 15.0], rel=0.1)
    assert null_searches.worth(pulls["hold_out"], errors["hold_out"]) == pytest.approx([20.0, 20.0])


def test_the_p_value_of_mean_pulls_is_uniform_without_a_bias():
    rng = np.random.default_rng(7)
    mix = np.array([[1.0, 0.0], [0.8, 0.6]])
    p = [null_searches.mean_p_value(rng.normal(size=(40, 2)) @ mix.T) for _ in range(400)]

    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_silent_cut_is_no_pull(tmp_path):
    rng = np.random.default_rng(9)
    rows = [
        {"null": number, **row}
        for number in range(12)
        for scheme in null_searches.SCHEMES
        for row in rows_of(rng.normal(size=2), 10.0, scheme)
    ]
    rows[1] |= {"expected": None, "error": None}
    write_json(tmp_path / "nulls_0.json", rows)

    assert "0.1     quoted 11 " in null_searches.summary(tmp_path)
