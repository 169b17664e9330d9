"""Limits on a simulated signal: injected searches, what they say of it, the limits of each cut, `drapes limits`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml
from test_null_searches import WINDOW, background, config, generator  # noqa: F401 - fixtures
from test_resonance import EDGES, MU, U, template
from test_stages import SEARCH, cut_sample

from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_limits import LimitSettings, QuotedCount, SignalAtCut, cut_limits, limit_budget
from drapes_hep.bumphunt.tied_likelihood import varied_template
from drapes_hep.bumphunt.trained_efficiency import trained_efficiency
from drapes_hep.config import LimitsConfig
from drapes_hep.errors import ConfigError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.files import read_json
from drapes_hep.studies import injected_searches, null_folder
from drapes_hep.studies.injected_searches import SignalSample, check_sample, halves, inject, search_injected
from drapes_hep.studies.limits import signals_of

SIGNAL = template(3500)
INSIDE = WINDOW.in_signal_region(0.5 * (EDGES[1:] + EDGES[:-1]))
INJECTED = np.array([30.0, 60.0, 120.0, 240.0, 480.0, 960.0])
SETTINGS = LimitSettings("dijet4", 13_000.0)


# ---- limits of each cut ----------------------------------------------------------------------------------------------


def selected(signal=0.0, efficiency=0.3):
    """Counts that are expected, without a fluctuation, with a signal of which a part passes the cut."""
    every = np.round(MU + signal * SIGNAL)
    passed = np.round(0.01 * (1 + 0.2 * U) * MU + efficiency * signal * SIGNAL)
    return SelectedCounts(EDGES, (1.0, 0.01), np.stack([every - passed, passed]), np.zeros(len(MU), dtype=np.bool_))


def quoted(counts, **more):
    every, passed = (row[INSIDE].sum() for row in counts.nested)
    expected = MU[INSIDE].sum(), (0.01 * (1 + 0.2 * U) * MU)[INSIDE].sum()
    return [QuotedCount(every, expected[0], 100.0), QuotedCount(passed, expected[1], 8.0, **more)]


def signals(*values, inside=0.9):
    shape = varied_template(SIGNAL, EDGES, 0.0, 0.0)
    of = [np.asarray(values)] * len(INJECTED)
    efficiency = trained_efficiency(INJECTED, of), trained_efficiency(INJECTED, [inside * each for each in of])
    return SignalAtCut(shape, shape, None, None), SignalAtCut(shape, shape, *efficiency)


@pytest.fixture(scope="module")
def without():
    counts = selected()
    return cut_limits(counts, WINDOW, signals(0.3), quoted(counts), INJECTED, SETTINGS)


def test_a_cut_that_keeps_the_signal_lowers_the_limit(without):
    inclusive, cut = without
    assert cut.fitted.expected[2] < 0.5 * inclusive.fitted.expected[2]
    assert cut.counted.expected[2] < 0.5 * inclusive.counted.expected[2]


def test_spectra_say_more_than_the_count(without):
    for cut in without:
        assert 0.7 < cut.fitted.expected[2] / cut.counted.expected[2] < 1.0


def test_without_a_signal_the_median_is_observed(without):
    for cut in without:
        assert cut.fitted.observed == pytest.approx(cut.fitted.expected[2], rel=0.05)
        assert list(cut.fitted.expected) == sorted(cut.fitted.expected)


def test_a_signal_that_is_there_is_not_excluded():
    counts = selected(signal=240.0)
    limits = cut_limits(counts, WINDOW, signals(0.3), quoted(counts), INJECTED, SETTINGS)
    for cut in limits:
        assert cut.fitted.observed > 1.15 * 240
        assert cut.counted.observed > 240


def test_trainings_that_find_nothing_weaken_the_limit(without):
    counts = selected()
    uncertain = cut_limits(counts, WINDOW, signals(0.3, 0.3, 0.3, 0.0), quoted(counts), INJECTED, SETTINGS)
    assert uncertain[0].fitted == without[0].fitted
    assert uncertain[1].fitted.expected[2] > 1.3 * without[1].fitted.expected[2]
    # a count says nothing of what fails: with a quarter of them CLs never falls to 5 %
    assert uncertain[1].counted.expected[2] == np.inf
    assert uncertain[1].fitted_error > 0
    assert without[1].fitted_error is None


def test_what_the_hunt_is_not_sure_of_weakens_the_limit(without):
    counts = selected()
    calibrated = cut_limits(counts, WINDOW, signals(0.3), quoted(counts, added=15.0), INJECTED, SETTINGS)
    assert calibrated[1].fitted.expected[2] > 1.2 * without[1].fitted.expected[2]
    inclusive, cut = quoted(counts)
    unsure = [dataclasses.replace(inclusive, spurious=100.0), dataclasses.replace(cut, spurious=1.0)]
    wrong_shape = cut_limits(counts, WINDOW, signals(0.3), unsure, INJECTED, SETTINGS)
    assert wrong_shape[0].fitted.expected[2] > 1.2 * without[0].fitted.expected[2]


def test_signal_outside_the_window_takes_from_the_count():
    counts = selected()
    wide = varied_template(template(3650), EDGES, 0.0, 0.0)
    all_in, half_out = signals(0.3), signals(0.3)
    half_out = tuple(dataclasses.replace(at, every=wide, passing=wide) for at in half_out)
    # the same number of events inside, but some more of them outside
    near, far = (cut_limits(counts, WINDOW, each, quoted(counts), INJECTED, SETTINGS)[1] for each in (all_in, half_out))
    assert far.counted.expected[2] > near.counted.expected[2]


def test_no_limit_where_nothing_is_quoted():
    counts = selected()
    silent = [quoted(counts)[0], QuotedCount(130, None, None)]
    assert cut_limits(counts, WINDOW, signals(0.3), silent, INJECTED, SETTINGS)[1].counted is None
    few = dataclasses.replace(SETTINGS, min_events=10_000)
    cut = cut_limits(counts, WINDOW, signals(0.3), quoted(counts), INJECTED, few)[1]
    assert cut.fitted is None
    assert cut.reason is not None


# ---- injected searches -----------------------------------------------------------------------------------------------


def sample(events=2000, seed=5):
    rng = np.random.default_rng(seed)
    features = {"m_j1": rng.normal(500, 20, events), "tau21_j1": rng.beta(2, 8, events)}
    return SignalSample(rng.normal(3500, 100, events), np.ones(events), features)


def test_each_event_is_injected_at_most_once():
    rows = [inject(sample(), 100.0, np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(np.unique(each)) == len(each) for each in rows)
    sizes = np.array([len(each) for each in rows])
    assert sizes.mean() == pytest.approx(100, abs=4 * np.sqrt(100 / 200))
    assert 0.7 < sizes.var() / 100 < 1.4
    assert len(inject(sample(), 0.0, np.random.default_rng(1))) == 0


def test_events_are_injected_by_weight():
    weighted = dataclasses.replace(sample(), weight=np.repeat([0.0, 1.0, 3.0], [1000, 500, 500]))
    assert np.isin(np.arange(2000), np.concatenate(halves(weighted))).all()
    rows = np.concatenate([inject(weighted, 20.0, np.random.default_rng(seed)) for seed in range(200)])
    assert (rows >= 1000).all()
    assert (rows >= 1500).mean() == pytest.approx(0.75, abs=0.03)


def test_a_sample_that_is_too_small_is_refused():
    check_sample(sample(2000), 650.0, "signal.h5")
    with pytest.raises(ConfigError, match=r"signal.h5: 2000 events of the signal selected, too few to inject 900"):
        check_sample(sample(2000), 900.0, "signal.h5")
    # a few heavy events are no sample, however many light ones there are
    heavy = dataclasses.replace(sample(2000), weight=np.concatenate([np.full(10, 1e3), np.ones(1990)]))
    with pytest.raises(ConfigError, match="too few"):
        check_sample(heavy, 100.0, "signal.h5")


def test_injected_events_judge_no_classifier(config, generator, few_trees, monkeypatch):  # noqa: F811
    judged = []
    windows = injected_searches._windows
    monkeypatch.setattr(
        injected_searches,
        "_windows",
        lambda context, signal, rows: judged.append(rows) or windows(context, signal, rows),
    )
    drawn = []
    monkeypatch.setattr(injected_searches, "inject", lambda *args: drawn.append(inject(*args)) or drawn[-1])
    search_injected(config, 1, generator.events(1, 6000.0), sample(), 300.0)
    assert len(drawn[0]) > 200
    assert not np.isin(judged[0], drawn[0]).any()
    assert len(judged[0]) == 1000


def test_a_strong_signal_passes(config, generator, few_trees):  # noqa: F811
    events, signal = generator.events(1, 6000.0), sample()
    record = search_injected(config, 1, events, signal, 300.0)
    [window] = record["windows"]
    inclusive, loose, _ = window["points"]
    edges = np.asarray(record["edges"])
    inside = WINDOW.in_signal_region(0.5 * (edges[1:] + edges[:-1]))
    mjj = events["mjj"]
    assert sum(inclusive["passed"]) == np.sum((mjj >= edges[0]) & (mjj < edges[-1])) + record["injected"]
    assert sum(inclusive["signal"]) == pytest.approx(1.0, abs=1e-4)
    assert 0.9 < np.array(inclusive["signal"])[inside].sum() <= 1.0
    assert loose["observed"] == np.array(loose["passed"])[inside].sum()
    # it is nowhere else in the features
    assert sum(loose["signal"]) > 0.5
    assert record == search_injected(config, 1, events, signal, 300.0)


def test_records_are_summed_up_on_the_bins_of_the_search():
    old = np.linspace(2700, 6000, 34)
    shape = np.histogram(np.random.default_rng(1).normal(3500, 100, 10_000), old)[0] / 10_000

    def record(mean, efficiency):
        points = [{"cut": 1.0, "signal": shape.tolist()}, {"cut": 0.1, "signal": (efficiency * shape).tolist()}]
        return {"mean": mean, "edges": old.tolist(), "windows": [{"points": points}]}

    groups = [[record(50.0, 0.1), record(50.0, 0.3)], [record(100.0, 0.4), record(100.0, 0.5)]]
    window = dataclasses.replace(WINDOW, lo=3300.0, hi=3700.0)
    inclusive, cut = signals_of(groups, EDGES, window, sample(), LimitsConfig())
    assert inclusive.passes is None
    np.testing.assert_allclose(cut.passes.values, [[0.1, 0.3], [0.4, 0.5]], atol=1e-9)
    inside = shape[window.in_signal_region(0.5 * (old[1:] + old[:-1]))].sum()
    np.testing.assert_allclose(cut.inside.values, np.array([[0.1, 0.3], [0.4, 0.5]]) * inside, atol=1e-9)
    assert cut.passing.nominal.sum() == pytest.approx(1.0)
    centre = 0.5 * (EDGES[1:] + EDGES[:-1])
    assert cut.passing.nominal @ centre == pytest.approx(shape @ (0.5 * (old[1:] + old[:-1])), rel=1e-3)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A search in one window, and a signal."""
    tree = {
        **SEARCH,
        "windows": {**SEARCH["windows"], "last": 3300},
        "study": {"null_models": 1},
        "limits": {"injected": [1, 3], "searches": 2, "reference": 60},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    write_feature_root(tmp_path / "events.root", cut_sample(4000))
    events = cut_sample(10, 900)
    write_feature_root(tmp_path / "signal.root", {name: v[events["label"] == 1] for name, v in events.items()})
    monkeypatch.chdir(tmp_path)
    return tmp_path


LIMITS = ("limits", "tiny.yaml", "--signal", "signal.root", "-o", "run", "--quiet", "--workers", 1)


@pytest.fixture
def quick(monkeypatch):
    """Searches that find more of a larger signal, and say which were made."""
    searches: list[tuple[float, int]] = []

    def search(config, number, background, signal, mean, device):  # noqa: F811
        searches.append((mean, number))
        edges = np.linspace(2700, 6000, 34)
        shape = np.histogram(signal.mjj, edges)[0] / len(signal)
        points = [
            {"cut": cut, "signal": (shape if cut == 1 else shape * (0.3 + 0.001 * mean)).tolist()}
            for cut in (1.0, 0.1, 0.01)
        ]
        return {"mean": mean, "edges": edges.tolist(), "windows": [{"points": points}]}

    monkeypatch.setattr(injected_searches, "search_injected", search)
    monkeypatch.setattr(null_folder, "train_model", lambda *_: None)
    monkeypatch.setattr(injected_searches, "load_generator", lambda _: type("Nulls", (), {"events": lambda *_: {}})())
    return searches


def test_limits_of_a_signal(project, drapes, quick, few_trees):
    status, out, said = drapes(*LIMITS, "--luminosity", 10)
    assert status == 0, said
    assert sorted(quick) == [(60.0, 0), (60.0, 1), (180.0, 1000), (180.0, 1001)]
    record = read_json(project / "run" / "limits" / "signal" / "limits.json")
    assert record["window"] == [3300.0, 3700.0]
    assert record["injected"] == [60.0, 180.0]
    assert [cut["background_efficiency"] for cut in record["cuts"]] == [1.0, 0.1, 0.01]
    loose = record["cuts"][1]
    events, section = (loose[unit]["spectra"]["expected"][2] for unit in ("events", "cross_section"))
    assert section == pytest.approx(events / (10 * record["acceptance"]["value"]))
    assert loose["efficiency"] == [[pytest.approx(0.36, abs=0.01)] * 2, [pytest.approx(0.48, abs=0.01)] * 2]
    assert "upper limits at 95% CL, fb" in out
    for name in ("limits.png", "limits.pdf", "efficiency.png"):
        assert (project / "run" / "limits" / "signal" / name).stat().st_size > 5000

    # finished searches are kept; more of them are made
    quick.clear()
    status, out, _ = drapes(*LIMITS, "--set", "limits.searches=3")
    assert status == 0
    assert sorted(quick) == [(60.0, 2), (180.0, 1002)]
    assert "upper limits at 95% CL, signal events" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "blind=true"), "blind: limits need the counts in the windows"),
        (("--luminosity", "0"), "--luminosity 0: must be a number above 0"),
        (("--set", "limits.injected=[2,1]"), "'limits.injected': must rise"),
        (("--set", "limits.reference=500"), "too few to inject 1500"),
        (("--set", "windows.first=5000", "--set", "windows.last=5000"), "has most of the signal, 0%"),
    ],
)
def test_what_no_limit_can_be_set_on(project, drapes, quick, few_trees, words, message):
    status, _, said = drapes(*LIMITS, *words)
    assert status == 2
    assert message in said
    assert not quick


def test_the_generator_does_not_see_the_window(project, drapes, few_trees, monkeypatch):
    """Its masses are fitted outside, its labels are not read, and the search itself is made."""
    fitted = []
    null_generator = null_folder.null_generator

    def spy(*args, **words):
        nulls = null_generator(*args, **words)
        fitted.append((nulls.fit.fitted, nulls.fit.edges))
        return nulls

    monkeypatch.setattr(null_folder, "null_generator", spy)
    monkeypatch.setattr(null_folder, "read_truth", lambda _: pytest.fail("labels were read"))
    status, out, said = drapes(*LIMITS, "--set", "limits.searches=1")
    assert status == 0, said
    used, edges = fitted[0]
    inside = WINDOW.in_signal_region(0.5 * (edges[1:] + edges[:-1]))
    assert not used[inside].any()
    assert used[~inside].all()
    assert "cut" in out


# ---- what the limit is made of ---------------------------------------------------------------------------------------


def test_each_source_of_uncertainty_raises_the_limit():
    counts = selected()
    shape = varied_template(SIGNAL, EDGES, 0.02, 0.2)
    at_cut = signals(0.3, 0.1)
    unsure = tuple(dataclasses.replace(at, every=shape, passing=shape) for at in at_cut)
    count = [*quoted(counts)[:1], dataclasses.replace(quoted(counts)[1], spurious=1.0, added=8.0)]
    settings = dataclasses.replace(SETTINGS, normalisation=0.2)
    whole = cut_limits(counts, WINDOW, unsure, count, INJECTED, settings)[1].fitted.expected[2]
    budget = dict(limit_budget(counts, WINDOW, unsure, count, INJECTED, settings, 1))
    assert all(limit < whole for limit in budget.values())
    assert budget["all of these"] == min(budget.values())
    alone = signals(0.2)
    plain = cut_limits(counts, WINDOW, alone, quoted(counts), INJECTED, SETTINGS)[1].fitted.expected[2]
    assert budget["all of these"] == pytest.approx(plain, rel=1e-3)


# ---- what a review found ---------------------------------------------------------------------------------------------


def test_no_observed_count_in_the_window_moves_what_is_expected(without):
    counts = selected()
    excess = dataclasses.replace(counts, counts=counts.counts + np.array([[0.0], [1.0]]) * np.where(INSIDE, 3.0, 0.0))
    lively = cut_limits(excess, WINDOW, signals(0.3), quoted(excess), INJECTED, SETTINGS)
    assert lively[1].fitted.observed > 1.3 * without[1].fitted.observed
    for mine, theirs in zip(lively, without, strict=True):
        assert mine.fitted.expected[2] == pytest.approx(theirs.fitted.expected[2], rel=0.02)


def test_a_cut_that_the_hunt_refuses_has_no_limit():
    counts = selected()
    silent = [quoted(counts)[0], QuotedCount(130, None, None)]
    cut = cut_limits(counts, WINDOW, signals(0.3), silent, INJECTED, SETTINGS)[1]
    assert cut.fitted is None
    assert cut.reason == "the hunt expects no count"


def test_a_training_that_finds_nothing_adds_nothing():
    """A cut that passes no small signal: what the signal hides is not divided by what passes."""
    counts, shape = selected(), varied_template(SIGNAL, EDGES, 0.0, 0.0)
    values = [np.zeros(1), *[np.array([0.3])] * (len(INJECTED) - 1)]
    passes = trained_efficiency(INJECTED, values)
    at_cut = SignalAtCut(shape, shape, None, None), SignalAtCut(shape, shape, passes, passes)
    counted = cut_limits(counts, WINDOW, at_cut, quoted(counts), INJECTED, SETTINGS)[1].counted
    full = cut_limits(counts, WINDOW, signals(0.3, inside=1.0), quoted(counts), INJECTED, SETTINGS)[1].counted
    assert counted.expected[2] == pytest.approx(full.expected[2], rel=0.02)


def test_a_part_of_the_sidebands_that_is_counted_gives_nearly_the_same_limit(without):
    share = 0.4
    # not rounded: a few tenths of an event in each bin would be none
    passed = np.where(INSIDE, 1.0, share) * 0.01 * (1 + 0.2 * U) * MU
    counts = SelectedCounts(
        EDGES, (1.0, 0.01), np.stack([MU - passed, passed]), np.zeros(len(MU), dtype=np.bool_), share
    )
    count = quoted(selected())
    count[1] = dataclasses.replace(count[1], spurious=1.0, spurious_inclusive=100.0)
    held_out = cut_limits(counts, WINDOW, signals(0.3), count, INJECTED, SETTINGS)
    # fewer events outside the window tell how many pass inside
    assert 1.0 < held_out[1].fitted.expected[2] / without[1].fitted.expected[2] < 1.4
    assert held_out[1].fitted.observed == pytest.approx(held_out[1].fitted.expected[2], rel=0.1)


def test_heavy_events_are_not_missing_where_the_efficiency_is_measured():
    heavy = dataclasses.replace(sample(), weight=np.repeat([1.0, 3.0], [1500, 500]))
    passes = np.arange(2000) >= 1500
    _, judged = halves(heavy)
    measured = heavy.weight[judged] @ passes[judged] / heavy.weight[judged].sum()
    drawn = np.concatenate([inject(heavy, 200.0, np.random.default_rng(seed)) for seed in range(50)])
    assert measured == pytest.approx(0.5, abs=0.05)
    assert passes[drawn].mean() == pytest.approx(0.5, abs=0.05)
    assert not np.isin(drawn, judged).any()
