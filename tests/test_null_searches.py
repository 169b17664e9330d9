"""Null events, and what whole searches of them are summed up to (analysis/null_searches.py)."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pytest
import yaml
from scipy import stats
from test_stages import SEARCH, cut_sample

from analysis import null_searches
from drapes_hep.config import make_config
from drapes_hep.errors import ConfigError
from drapes_hep.events.formats.writers import write_feature_root
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
    return NullGenerator(config, fit_null_masses(config, background[1], (WINDOW,)), np.empty(0), (WINDOW,), (models,))


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


def test_events_beside_the_fit_are_drawn_from_the_background(generator):
    low = np.array([2400.0, 2500.0, 2600.0])
    wide = dataclasses.replace(generator, unfitted=np.repeat(low, 1000))
    share = 500.0 / generator.fit.expected.sum()
    numbers = [np.isin(wide.events(number, 500.0)["mjj"], low).sum() for number in range(20)]

    assert np.mean(numbers) == pytest.approx(3000 * share, abs=4 * (3000 * share / 20) ** 0.5)


def test_nulls_start_from_noise_whatever_templates_start_from(generator):
    template = generator.config.template.model_copy(update={"method": "from_sidebands", "strength": 0.3})
    partial = dataclasses.replace(generator, config=generator.config.model_copy(update={"template": template}))

    assert np.array_equal(partial.events(1, 300.0)["m_j1"], generator.events(1, 300.0)["m_j1"])


def test_a_null_model_does_not_see_the_window(config, background, generator):
    x, mjj = background
    hidden = x.copy()
    hidden[WINDOW.in_signal_region(mjj)] = np.nan
    again = train_null_model(config, hidden, mjj, WINDOW, 0)

    assert again.scaling.to_dict() == generator.models[0][0].scaling.to_dict()


def test_models_differ_by_their_bootstrap(generator):
    first, second = (model.scaling.curves for model in generator.models[0])

    assert not np.array_equal(first, second)


def test_a_null_is_searched_in_both_schemes(config, generator, few_trees):
    events = generator.events(0, 6000.0)
    by_scheme = {
        scheme: list(null_searches.search_scheme(config, WINDOW, 0, events, scheme)) for scheme in null_searches.SCHEMES
    }

    inside = WINDOW.in_signal_region(events["mjj"]).sum()
    assert [rows[0]["observed"] for rows in by_scheme.values()] == [inside, inside]
    # all of the sidebands after a cut say more than a part of them
    assert by_scheme["cross_fit"][1]["error"] < by_scheme["hold_out"][1]["error"]


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
        new = [*rows_of(wide, 10.0, "cross_fit"), *rows_of(narrow, 20.0, "hold_out")]
        rows += [{"null": number, "model": number % 4, **row} for row in new]
    # two processes shared the work
    for part in range(2):
        write_json(tmp_path / f"nulls_{part}.json", [row for row in rows if row["null"] % 2 == part])
    return tmp_path


def test_pulls_are_read_back(folder):
    cuts, model, nulls = null_searches.nulls_of(null_searches.read_nulls(folder))

    assert tuple(cuts) == CUTS
    assert (model == np.arange(400) % 4).all()
    assert np.allclose(nulls["hold_out"].error, 20.0)
    assert abs(nulls["cross_fit"].pulls.std() - 1.5) < 0.15


def test_an_error_is_worth_less_where_pulls_are_wide_and_no_more_where_they_are_narrow(folder):
    _, _, nulls = null_searches.nulls_of(null_searches.read_nulls(folder))

    assert nulls["cross_fit"].worth() == pytest.approx([15.0, 15.0], rel=0.1)
    assert nulls["hold_out"].worth() == pytest.approx([20.0, 20.0])
    assert nulls["hold_out"].deviation() == pytest.approx([0.5 * 500**0.5] * 2, rel=0.1)


def test_a_bias_makes_an_error_worth_less():
    pulls = np.full((50, 1), 2.0)
    biased = null_searches.Nulls(100 + pulls * 200**0.5, np.full((50, 1), 100.0), np.full((50, 1), 10.0), pulls)

    assert biased.worth() == pytest.approx([20.0])


def test_the_p_value_of_mean_pulls_is_uniform_without_a_bias():
    rng = np.random.default_rng(7)
    mix = np.array([[1.0, 0.0], [0.8, 0.6]])
    p = [null_searches.mean_p_value(rng.normal(size=(40, 2)) @ mix.T) for _ in range(400)]

    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_truth_of_one_model_is_noticed():
    rng = np.random.default_rng(8)
    pulls, model = rng.normal(size=(200, 2)), np.arange(200) % 4
    alike = null_searches.models_p_value(pulls, model)
    pulls[model == 2, 1] += 1.0

    assert alike > 0.05
    assert null_searches.models_p_value(pulls, model) < 1e-3


def test_a_cut_that_is_silent_in_one_scheme_counts_in_none(tmp_path):
    rng = np.random.default_rng(9)
    rows = [
        {"null": number, "model": 0, **row}
        for number in range(12)
        for scheme in null_searches.SCHEMES
        for row in rows_of(rng.normal(size=2), 10.0, scheme)
    ]
    rows[1] |= {"expected": None, "error": None}
    write_json(tmp_path / "nulls_0.json", rows)

    assert null_searches.summary(tmp_path).count("0.1    quoted 11 ") == 2


def test_a_summary_of_nothing_says_so(tmp_path):
    assert null_searches.summary(tmp_path / "nowhere") == "0 nulls: too few for a summary"


OPTIONS = {"models": 8, "parts": 1, "part": 0, "nulls": 5, "events": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": 0}, "must be at least 1"),
        ({"parts": 2, "part": 2}, "--part at least 0 and less than --parts"),
        ({"events": -3.0}, "--events must be positive, got -3"),
    ],
)
def test_bad_options_are_one_line(config, change, words):
    with pytest.raises(ConfigError, match=words):
        null_searches.check(config, argparse.Namespace(**{**OPTIONS, **change}))


def test_a_template_from_a_file_cannot_be_searched_without_a_signal(config):
    template = config.template.model_copy(update={"method": "file"})
    with pytest.raises(ConfigError, match="neither 'file' nor 'from_simulation'"):
        null_searches.check(config.model_copy(update={"template": template}), argparse.Namespace(**OPTIONS))


def test_a_run_goes_on_where_it_was_and_refuses_other_settings(tmp_path, few_trees):
    write_feature_root(tmp_path / "events.root", cut_sample(6000))
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump({**SEARCH, "features": ["m_j1", "tau21_j1"], "hunt": {"background_efficiencies": [1, 0.1]}})
    )

    def run(**change):
        arguments = {**OPTIONS, "config": str(tmp_path / "tiny.yaml"), "assignments": [], "output": tmp_path / "out"}
        null_searches.run(argparse.Namespace(**{**arguments, "window": "3300-3700", "models": 1, **change}))
        return null_searches.read_nulls(tmp_path / "out")

    first = run(nulls=1)
    assert [(row["null"], row["scheme"], row["cut"]) for row in first] == [
        (0, scheme, cut) for scheme in null_searches.SCHEMES for cut in (1.0, 0.1)
    ]
    assert run(nulls=2)[:4] == first
    with pytest.raises(ConfigError, match="other events or another configuration"):
        run(models=2)
