"""Cross-checks of expectations that fit no masses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml
from scipy import stats
from test_stages import SEARCH, cut_sample, search

from drapes_hep.bumphunt.cross_checks import ScoredEvents, conformal_counts, direct_counts
from drapes_hep.cwola.scores import tail_probability
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.outcome import read_results
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.regions import Window
from drapes_hep.stages.report import report
from drapes_hep.templates.parts import met_no_training

WINDOW = Window(3300.0, 3700.0, 2700.0, 6000.0)
CUTS = (1.0, 0.1, 0.01)


def events(tail, *, mjj=3500.0, fold=0, weight=1.0, group=None) -> ScoredEvents:
    tail = np.asarray(tail, dtype=np.float64)
    n = len(tail)
    group = np.arange(n) if group is None else np.asarray(group)
    every = (np.broadcast_to(np.asarray(values, dtype=np.float64), n) for values in (mjj, weight))
    mass, w = every
    return ScoredEvents(mass, tail, np.broadcast_to(np.asarray(fold), n), w, group)


def other(sample: ScoredEvents) -> ScoredEvents:
    """The same events under other names."""
    return dataclasses.replace(sample, group=sample.group + 10**6)


def by_folds(n: int, folds: int) -> np.ndarray:
    return np.arange(n) % folds


# ---- the template's own count ----------------------------------------------------------------------------------------


def test_the_count_below_an_order_statistic_is_beta_binomial():
    """k of M template events pass; the exact law of N new ones is the binomial with a Beta(k + 1, M - k) share."""
    m, k, n, observed = 200_000, 40, 3000, 5
    inside = events(np.concatenate([np.zeros(observed), np.ones(n - observed)]))
    [check] = direct_counts(inside, other(events((np.arange(m) + 1) / m)), (k / m,), 1)
    share = stats.beta(k + 1, m - k)
    assert check.observed == observed
    assert check.expected == pytest.approx(n * share.mean())
    assert check.error == pytest.approx(n * share.std(), rel=1e-3)
    assert check.p_local == pytest.approx(stats.betabinom(n, k + 1, m - k).sf(observed - 1), rel=5e-3)


@pytest.mark.parametrize("size", [200, 800])
def test_p_values_are_uniform_where_data_follow_the_template_and_it_sets_the_cuts(size):
    """Five folds, of which each cut is set by 2 or 8 events of its own."""
    rng, folds, p = np.random.default_rng(2), 5, []
    for _ in range(400):
        fold = by_folds(folds * size, folds)
        scores, data = rng.normal(size=folds * size), rng.normal(size=2000)
        tail, data_tail, data_fold = np.empty(folds * size), np.empty(2000), by_folds(2000, folds)
        for number in range(folds):
            own = scores[fold == number]
            tail[fold == number] = tail_probability(own, own, np.ones(size))
            data_tail[data_fold == number] = tail_probability(data[data_fold == number], own, np.ones(size))
        template = other(events(tail, fold=fold))
        [check] = direct_counts(events(data_tail, fold=data_fold), template, (0.01,), folds)
        more = np.concatenate([np.zeros(check.observed + 1), np.ones(1999 - check.observed)])
        [above] = direct_counts(events(more, fold=data_fold), template, (0.01,), folds)
        p.append(0.5 * (check.p_local + above.p_local))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_nothing_is_said_without_a_cut_or_where_no_template_event_of_a_fold_passes():
    inside = events(np.linspace(0, 1, 100), fold=by_folds(100, 2))
    template = other(events(np.repeat([0.05, 0.5], 50), fold=np.repeat([0, 1], 50)))
    assert direct_counts(inside, template, CUTS, 2) == (None, None, None)


def test_a_template_of_events_in_the_window_is_no_check():
    inside = events(np.linspace(0, 1, 100))
    template = events(np.linspace(0, 1, 1000), group=np.arange(1000) + 50)
    assert direct_counts(inside, template, CUTS, 1) == (None, None, None)
    assert direct_counts(inside, other(template), CUTS, 1)[1] is not None


def test_each_fold_is_expected_from_its_own_template_events():
    inside = events(np.ones(3000), fold=np.repeat([0, 1], [1000, 2000]))
    template = other(events(np.repeat([0.05, 0.5, 0.05, 0.5], [10, 90, 40, 60]), fold=np.repeat([0, 1], 100)))
    [check] = direct_counts(inside, template, (0.1,), 2)
    shares = stats.beta(11, 90), stats.beta(41, 60)
    assert check.expected == pytest.approx(1000 * shares[0].mean() + 2000 * shares[1].mean())
    assert check.error == pytest.approx(np.hypot(1000 * shares[0].std(), 2000 * shares[1].std()))
    # nothing passes: no significance, but a probability
    assert (check.p_local, check.z_local) == (1.0, None)


def test_copies_and_light_events_are_worth_no_more_than_they_are():
    inside = events(np.ones(1000))
    tail = np.repeat([0.05, 0.5], [10, 90])
    [single] = direct_counts(inside, other(events(tail)), (0.1,), 1)
    copied = other(events(np.tile(tail, 4), group=np.tile(np.arange(100), 4)))
    heavy = other(events(np.concatenate([tail, tail]), weight=np.repeat([1.0, 1e-9], 100)))
    for sample in (copied, heavy):
        [check] = direct_counts(inside, sample, (0.1,), 1)
        assert (check.expected, check.error) == pytest.approx((single.expected, single.error))


# ---- conformal p-values ----------------------------------------------------------------------------------------------


def spectrum(n: int, rng: np.random.Generator) -> np.ndarray:
    """Masses of a falling spectrum."""
    return 2700 + rng.exponential(600, n)


def scored(n: int, slope: float, rng: np.random.Generator, folds: int = 3) -> tuple[ScoredEvents, ScoredEvents]:
    """Background in the window and outside, of which the tails shrink with mass: more of it passes at high mass."""
    mjj = spectrum(n, rng)
    # P(tail <= t) = t (1 + slope u): a straight line in mass at every score
    u = (mjj - 3500) / 400
    tail = rng.random(n) / np.clip(1 + slope * u, 0.2, None)
    inside = WINDOW.in_signal_region(mjj)
    fold, group = by_folds(n, folds), np.arange(n)
    return tuple(
        ScoredEvents(mjj[rows], tail[rows], fold[rows], np.ones(rows.sum()), group[rows]) for rows in (inside, ~inside)
    )


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_p_values_are_uniform_where_the_efficiency_is_a_line_in_mass(slope):
    rng, p = np.random.default_rng(3), []
    for _ in range(300):
        inside, sidebands = scored(20_000, slope, rng)
        check = conformal_counts(inside, sidebands, WINDOW, (0.05,), 3)[0]
        # z is that of a Poisson count, wider by the part that passes
        p.append((check.observed - check.expected) / np.sqrt(check.expected * 0.95 + check.error**2))
    assert np.mean(p) == pytest.approx(0.0, abs=0.2)
    assert np.std(p) == pytest.approx(1.0, abs=0.15)


def test_a_signal_is_not_in_its_own_reference():
    rng = np.random.default_rng(4)
    inside, sidebands = scored(20_000, 0.2, rng)
    signal = events(np.zeros(60), mjj=3500.0, fold=by_folds(60, 3), group=np.arange(60) + 10**6)
    both = ScoredEvents(
        *(np.concatenate([a, b]) for a, b in zip(vars(inside).values(), vars(signal).values(), strict=True))
    )
    without, found_out = (conformal_counts(each, sidebands, WINDOW, (0.01,), 3)[0] for each in (inside, both))
    assert found_out.observed - without.observed >= 58
    assert found_out.expected - without.expected == pytest.approx(0.01 * 60)
    assert found_out.z_local > without.z_local + 5


def test_one_sideband_is_no_interpolation():
    inside, sidebands = scored(5000, 0.0, np.random.default_rng(5))
    below = sidebands.mjj < WINDOW.lo
    low = ScoredEvents(*(values[below] for values in vars(sidebands).values()))
    assert conformal_counts(inside, low, WINDOW, CUTS, 3) == (None, None, None)


def test_few_sideband_events_say_nothing_of_tight_cuts():
    inside, sidebands = scored(1500, 0.0, np.random.default_rng(6))
    _, loose, tight = conformal_counts(inside, sidebands, WINDOW, (1.0, 0.1, 0.0001), 3)
    assert loose is not None
    assert tight is None


@pytest.mark.parametrize("which", ["inside", "sidebands"])
def test_the_order_of_events_does_not_matter(which):
    rng = np.random.default_rng(7)
    inside, sidebands = scored(5000, 0.1, rng)
    samples = {"inside": inside, "sidebands": sidebands}
    order = rng.permutation(len(samples[which].mjj))
    shuffled = {**samples, which: ScoredEvents(*(values[order] for values in vars(samples[which]).values()))}
    checks = [conformal_counts(each["inside"], each["sidebands"], WINDOW, (0.1,), 3)[0] for each in (samples, shuffled)]
    assert checks[0].observed == checks[1].observed
    assert checks[0].error == pytest.approx(checks[1].error)


# ---- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cross_fit", "hold_out"])
def searched_run(request, tmp_path_factory, few_trees):
    folder = tmp_path_factory.mktemp("checked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_feature_root(folder / "events.root", cut_sample())
        (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
        search(folder, folder / "run", f"training.scheme={request.param}")
    return folder / "run"


def test_both_are_quoted_beside_each_cut(searched_run):
    for window in read_results(searched_run).windows:
        inclusive, loose, *_ = window.working_points
        assert inclusive.direct is inclusive.conformal is None
        assert loose.direct.observed == loose.observed
        assert loose.direct.expected == pytest.approx(0.1 * window.n_observed, rel=0.2)
        assert loose.conformal.expected == pytest.approx(0.1 * window.n_observed)


def test_the_sidebands_are_those_that_no_training_met(searched_run):
    [window, *_] = read_results(searched_run).windows
    scores = read_skim(searched_run / "windows" / "{:g}-{:g}".format(*window.sr) / "scores.parquet")
    mjj, fold, part, region = (np.asarray(scores[name]) for name in ("mjj", "fold", "part", "region"))
    low, high = window.sr
    near = (mjj > 2 * low - high) & (mjj < 2 * high - low) & (region == 0) & met_no_training(part)
    error = window.working_points[1].conformal.expected_error
    events = np.bincount(fold[region == 1])
    # weights differ little so near
    unweighted = np.sqrt((events**2 * 0.09 / np.bincount(fold[near])).sum())
    assert unweighted < error < 1.5 * unweighted


def test_the_report_has_both(searched_run, unrendered):
    page = report(open_run(searched_run)).read_text()
    assert "<th>direct count</th><th>conformal</th>" in page
