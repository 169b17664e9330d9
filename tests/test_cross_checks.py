"""Cross-checks of expectations that fit no masses."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from scipy import stats
from test_stages import SEARCH, cut_sample, search

from drapes_hep.bumphunt.cross_checks import ScoredEvents, compare_counts
from drapes_hep.cwola.density_ratios import density_ratios
from drapes_hep.cwola.scores import Sample
from drapes_hep.errors import LeakError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.outcome import read_results
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.stages.report import report
from drapes_hep.templates.parts import met_no_training

CUTS = (1.0, 0.1, 0.01)


def events(tail, fold=0, weight=1.0, group=None) -> ScoredEvents:
    tail = np.asarray(tail, dtype=np.float64)
    n = len(tail)
    group = np.arange(n) if group is None else np.asarray(group)
    return ScoredEvents(tail, np.broadcast_to(fold, n), np.broadcast_to(np.float64(weight), n), group)


def test_the_count_below_an_order_statistic_is_beta_binomial():
    """k of M reference events pass; the exact law of N new ones is the binomial with a Beta(k + 1, M - k) share."""
    m, k, n, observed = 200_000, 40, 3000, 5
    inside = events(np.concatenate([np.zeros(observed), np.ones(n - observed)]))
    check = compare_counts(inside, events((np.arange(m) + 1) / m), (k / m,), 1)[0]
    assert check.expected == pytest.approx(n * k / m)
    assert check.error == pytest.approx(n * k**0.5 / m, rel=1e-3)
    assert check.p_local == pytest.approx(stats.betabinom(n, k + 1, m - k).sf(observed - 1), rel=5e-3)


def test_nothing_is_said_without_a_cut_or_where_no_reference_event_passes():
    inside = events(np.linspace(0, 1, 100))
    assert compare_counts(inside, events(np.full(50, 0.5)), CUTS, 1) == (None, None, None)


def test_a_fold_with_data_needs_reference_events():
    inside = events([0.005, 0.5], fold=[0, 1])
    assert compare_counts(inside, events([0.001, 0.2], fold=0), CUTS, 2) == (None, None, None)


def test_each_fold_is_expected_from_its_own_reference_events():
    inside = events(np.ones(3000), fold=np.repeat([0, 1], [1000, 2000]))
    reference = events(np.repeat([0.05, 0.5, 0.05, 0.5], [10, 90, 40, 60]), fold=np.repeat([0, 1], 100))
    check = compare_counts(inside, reference, (0.1,), 2)[0]
    assert check.expected == pytest.approx(1000 * 0.1 + 2000 * 0.4)
    assert check.error == pytest.approx(np.hypot(1000 * np.sqrt(0.1 * 0.9 / 100), 2000 * np.sqrt(0.4 * 0.6 / 100)))
    # nothing passes: no significance, but a probability
    assert (check.p_local, check.z_local) == (1.0, None)


def test_weights_count_and_their_scale_does_not():
    inside = events(np.ones(1000))
    tail, weight = np.repeat([0.05, 0.5], [100, 100]), np.repeat([3.0, 1.0], 100)
    first, second = (compare_counts(inside, events(tail, weight=scale * weight), (0.1,), 1)[0] for scale in (1.0, 1e-6))
    assert first.expected == pytest.approx(750.0)
    assert first.error == pytest.approx(1000 * np.sqrt(100 * 9 * 0.25**2 + 100 * 0.75**2) / 400)
    assert second.expected == pytest.approx(first.expected)


def test_copies_of_a_parent_are_one_event():
    inside = events(np.ones(1000))
    tail = np.repeat([0.05, 0.5], [10, 90])
    single = compare_counts(inside, events(tail), (0.1,), 1)[0]
    copied = compare_counts(inside, events(np.tile(tail, 4), group=np.tile(np.arange(100), 4)), (0.1,), 1)[0]
    assert (copied.expected, copied.error) == pytest.approx((single.expected, single.error))


def test_the_order_of_events_does_not_matter():
    rng = np.random.default_rng(1)
    tail, fold, weight = rng.random(500), rng.integers(0, 3, 500), rng.random(500)
    group, order = rng.integers(0, 200, 500), rng.permutation(500)
    inside = events(rng.random(300), fold=rng.integers(0, 3, 300))
    straight, shuffled = (
        compare_counts(inside, ScoredEvents(tail[o], fold[o], weight[o], group[o]), CUTS, 3)
        for o in (np.arange(500), order)
    )
    assert straight[1].expected == pytest.approx(shuffled[1].expected)
    assert straight[1].error == pytest.approx(shuffled[1].error)


def test_p_values_of_counts_that_follow_the_reference_are_uniform():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(400):
        reference = events(rng.random(4000), fold=np.arange(4000) % 2)
        inside = events(rng.random(2000), fold=np.arange(2000) % 2)
        check = compare_counts(inside, reference, (0.02,), 2)[0]
        n = int((inside.tail <= 0.02).sum())
        more = compare_counts(events(np.concatenate([np.zeros(n + 1), np.ones(1999 - n)])), reference, (0.02,), 2)[0]
        p.append(0.5 * (check.p_local + more.p_local))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def sample(x, weight=1.0, folds=2) -> Sample:
    n = len(x)
    return Sample(x, np.broadcast_to(np.float64(weight), n), np.arange(n) % folds, np.arange(n))


def test_weighted_sidebands_have_the_features_of_the_template():
    """Gaussians of means 0 and 0.5: the ratio is exp(x / 2 - 1 / 8), up to a factor."""
    rng = np.random.default_rng(3)
    sidebands, template = sample(rng.normal(size=(20_000, 1))), sample(rng.normal(0.5, 1.0, (20_000, 1)))
    template = Sample(template.x, template.weight, template.fold, template.group + 20_000)
    ratio = density_ratios(sidebands, template, None, folds=2, seed=1)
    x = sidebands.x[:, 0]
    middle = np.abs(x) < 1.5
    slope = np.polyfit(x[middle], np.log(ratio[middle]), 1)[0]
    assert slope == pytest.approx(0.5, abs=0.06)
    mean = np.average(x, weights=ratio)
    assert mean == pytest.approx(0.5, abs=0.05)


def test_copies_across_folds_are_refused():
    x = np.random.default_rng(5).random((200, 1))
    template = Sample(x, np.ones(200), np.arange(200) % 2, np.arange(200) + 1)
    with pytest.raises(LeakError, match="saw it"):
        density_ratios(sample(x), template, None, folds=2, seed=1)


# ---- in a run


@pytest.fixture(scope="module")
def searched_run(tmp_path_factory, few_trees):
    """A search whose sideband events are weighed."""
    folder = tmp_path_factory.mktemp("checked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_feature_root(folder / "events.root", cut_sample())
        (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
        search(folder, folder / "run", "cwola.sideband_weights=true")
    return folder / "run"


def test_the_cut_of_the_template_lets_its_own_share_pass(searched_run):
    for window in read_results(searched_run).windows:
        assert window.working_points[0].direct is window.working_points[0].conformal is None
        for point in window.working_points[1:]:
            if point.direct is not None:
                share = point.direct.expected / window.n_observed
                assert share == pytest.approx(point.background_efficiency, rel=0.1)
                assert point.direct.expected_error > 0


def test_sideband_events_that_no_training_met_are_weighed(searched_run):
    for folder in sorted((searched_run / "windows").iterdir()):
        scores = read_skim(folder / "scores.parquet")
        ratio, region, part = (np.asarray(scores[name]) for name in ("density_ratio", "region", "part"))
        assert ((ratio > 0) == ((region == 0) & met_no_training(part))).all()


def test_the_conformal_check_is_that_of_the_weighed_events(searched_run):
    [window, *_] = read_results(searched_run).windows
    scores = read_skim(searched_run / "windows" / "{:g}-{:g}".format(*window.sr) / "scores.parquet")
    ratio, fold, tail, region = (np.asarray(scores[name]) for name in ("density_ratio", "fold", "tail", "region"))
    point = window.working_points[1]
    expected = 0.0
    for number in np.unique(fold):
        own = fold == number
        share = ratio[own & (tail <= point.background_efficiency)].sum() / ratio[own].sum()
        expected += share * (own & (region == 1)).sum()
    assert point.conformal.expected == pytest.approx(expected)


def test_the_report_has_both(searched_run, unrendered):
    page = report(open_run(searched_run)).read_text()
    assert "<th>direct count</th><th>conformal</th>" in page
