"""Boosted trees: LightGBM's and scikit-learn's are the same, bins are shared without a leak, and what replaces what."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from drapes_hep.config import HuntConfig
from drapes_hep.cwola import trees
from drapes_hep.cwola.argos import argos
from drapes_hep.cwola.bins import BINS, BinnedEvents, bin_edges, bin_numbers
from drapes_hep.cwola.classifiers import group_holdout, load_classifier, training_parts
from drapes_hep.cwola.scores import Sample, out_of_fold_scores
from drapes_hep.cwola.trees import SklearnTrees, Trees, engine_of, fallback_line, lightgbm_problem
from drapes_hep.errors import ConfigError, FitError
from drapes_hep.folds import assign_folds
from drapes_hep.pipeline.provenance import makers
from drapes_hep.rng import stage_seed
from drapes_hep.stages import sequence

BOTH = pytest.mark.parametrize("kind", [Trees, SklearnTrees])
PLAIN = {"patience": 10, "leaf_events": 20, "features": 1.0}
"""Options without anything random, and leaves of a few events."""


def few_values(n=2000, seed=1, values=6):
    """Two classes in columns of few values, in which no leaf is so small that a rule on its size counts."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, values, (2 * n, 3)) / 7, np.repeat([0, 1], n)
    x[y == 1, 0] = np.maximum(x[y == 1, 0], rng.integers(0, values, n) / 7)
    x[::50, 1] = np.nan
    return x, y, rng.uniform(0.5, 2, 2 * n), np.arange(2 * n)


def samples(n=900, folds=3, weights=False):
    """Data that are shifted against a template, and as many sideband events."""
    rng = np.random.default_rng(3)
    out = []
    for number, shift in enumerate((0.4, 0.0, 0.1)):
        ids = np.arange(n) + 10_000 * number
        weight = rng.uniform(0.5, 2, n) if weights else np.ones(n)
        out.append(Sample(rng.normal(shift, 1, (n, 3)), weight, assign_folds(ids, folds, 1), ids))
    return out


# ---- the same trees --------------------------------------------------------------------------------------------------


def test_the_trees_of_both_libraries_are_the_same():
    """Where no leaf is small: LightGBM counts its events by their weights. It keeps weights in single precision."""
    ours, theirs = Trees(4, leaves=8, **PLAIN), SklearnTrees(4, leaves=8, **PLAIN)
    ours.fit(*few_values())
    theirs.fit(*few_values())
    x = few_values(seed=2)[0]
    assert np.ptp(theirs.score(x)) > 1
    np.testing.assert_allclose(ours.score(x), theirs.score(x), atol=1e-5)


@BOTH
def test_trees_that_never_help_end_after_ten(kind):
    """The loss of no tree at all counts as well, and the ten are kept, as scikit-learn does."""
    x, y, weight, group = few_values()
    held = group_holdout(group, 0.25, stage_seed(1, "holdout"))
    # what is learnt is wrong for the events that stop it
    x[:, 0] = np.where(held, 1 - y, y)
    scores = []
    for iterations in (9, 10, 200):
        model = kind(1, iterations=iterations, leaves=8, **PLAIN)
        model.fit(x, y, weight, group)
        scores.append(model.score(x))
    np.testing.assert_array_equal(scores[2], scores[1])
    assert np.abs(scores[1] - scores[0]).min() > 1e-3


def test_trees_of_scikit_learn_are_what_it_grows_itself():
    """In columns of few values, whose edges lie between them in every release."""
    x, y, weight, group = few_values(400, values=60)
    ours = SklearnTrees(4, iterations=20, **PLAIN)
    ours.fit(x, y, weight, group)
    held, balanced = training_parts(y, weight, group, 0.25, stage_seed(4, "holdout"))
    theirs = HistGradientBoostingClassifier(
        max_iter=20, learning_rate=0.05, max_leaf_nodes=31, early_stopping=True, n_iter_no_change=10, random_state=4
    ).fit(
        x[~held],
        y[~held],
        sample_weight=balanced[~held],
        X_val=x[held],
        y_val=y[held],
        sample_weight_val=balanced[held],
    )
    np.testing.assert_array_equal(ours.score(x), theirs.decision_function(x))


@BOTH
def test_an_event_of_weight_two_counts_as_two_events(kind):
    x, y, _, group = few_values(values=3)
    # so few that leaves of them are small
    x[np.isnan(x)] = 0
    copies = np.random.default_rng(6).integers(1, 4, len(x))
    weighted, repeated = kind(3, leaves=8, **PLAIN), kind(3, leaves=8, **PLAIN)
    weighted.fit(x, y, copies.astype(float), group)
    repeated.fit(*(np.repeat(column, copies, axis=0) for column in (x, y, np.ones(len(x)), group)))
    # single precision, over as many trees
    np.testing.assert_allclose(weighted.score(x), repeated.score(x), atol=1e-4)


@BOTH
def test_that_a_value_is_missing_is_learnt(kind):
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(3000, 2)), np.repeat([0, 1], 1500)
    x[(y == 1) & (rng.random(3000) < 0.5), 1] = np.nan
    model = kind(1, **PLAIN)
    model.fit(x, y, np.ones(3000), np.arange(3000))
    missing, present = model.score(np.array([[0.0, np.nan], [0.0, 0.0]]))
    # every missing value is of the data; of the others a third are
    assert missing > 3
    assert present == pytest.approx(np.log(1 / 2), abs=0.5)


@BOTH
def test_no_events_have_no_scores(kind):
    model = kind(1, iterations=2)
    model.fit(*few_values(200))
    assert model.score(np.empty((0, 3))).shape == (0,)


@BOTH
def test_a_split_chooses_among_random_features_that_belong_to_the_seed(kind):
    """Another seed draws others; the same one the same, also where the held-out events are those of another."""
    scores = []
    for seed in (1, 1, 2):
        model = kind(seed, iterations=3, features=0.4)
        model.fit(*few_values())
        scores.append(model.score(few_values(seed=2)[0]))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize(("events", "least"), [(1000, 20), (20_000, 100), (10**6, 200)])
def test_a_leaf_has_its_share_of_the_events(events, least):
    assert Trees(1)._settings.least_events(events) == least
    assert Trees(1, leaf_events=7)._settings.least_events(events) == 7


@BOTH
def test_trees_are_kept_up_to_the_largest_argos(kind):
    x, y, weight, group = few_values(600, values=50)
    held = group_holdout(group, 0.25, stage_seed(4, "holdout"))
    balanced = training_parts(y, weight, group, 0.25, stage_seed(4, "holdout"))[1]
    judged, scores = [], []
    for iterations in range(1, 15):
        # the loss stops none of so few
        model = kind(4, iterations=iterations, leaves=4, patience=100)
        model.fit(x, y, weight, group)
        judged.append(argos(model.score(x[held]), y[held] == 1, balanced[held]))
        scores.append(model.score(x))
    chosen = kind(4, iterations=14, leaves=4, select="argos")
    chosen.fit(x, y, weight, group)

    assert 0 < np.argmax(judged) < 13
    np.testing.assert_allclose(chosen.score(x), scores[np.argmax(judged)], atol=1e-12)


@BOTH
def test_events_that_cannot_be_told_apart_by_any_tree_have_equal_scores(kind):
    model = kind(1, select="argos")
    model.fit(np.zeros((400, 2)), np.repeat([0, 1], 200), np.ones(400), np.arange(400))

    assert np.ptp(model.score(np.zeros((5, 2)))) == 0


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="select must be loss or argos, got 'best'"):
        Trees(1, select="best")


@pytest.mark.parametrize("option", [{"patience": 0}, {"leaf_events": -1}, {"features": 0.0}, {"features": 1.5}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match="must be at least"):
        Trees(1, **option)


# ---- bins ------------------------------------------------------------------------------------------------------------


def test_the_bins_of_trees_are_of_equal_weight():
    rng = np.random.default_rng(2)
    values, weight = rng.normal(size=5000), rng.uniform(0, 3, 5000)
    values[:100], weight[100:300] = np.nan, 0
    edges = bin_edges(values, weight)
    assert len(edges) == BINS - 1
    rest, weight = values[100:], weight[100:]
    for i, edge in enumerate(edges, 1):
        assert weight[rest < edge].sum() <= i / BINS * weight.sum() <= weight[rest <= edge].sum()


@pytest.mark.parametrize("missing", [False, True])
def test_lightgbm_keeps_every_bin(missing):
    """255 bins and one of missing values are as many as a byte holds."""
    x = np.random.default_rng(8).normal(size=(5000, 1))
    x[:20] = np.nan if missing else 0.0
    table = Trees(1).prepare_table(x, np.ones(5000))
    assert table.shared.feature_num_bin(0) == BINS + missing


def test_bins_do_not_rest_on_the_classes():
    """Features and weights alone: no class is passed, and the class of an event that a fold scores changes nothing."""
    data, template, _ = samples(weights=True)
    swapped = np.flatnonzero(data.fold == 0)[:50], np.flatnonzero(template.fold == 0)[:50]
    other_data, other_template = (
        Sample(*(_with(getattr(one, n), mine, getattr(two, n)[theirs]) for n in ("x", "weight", "fold", "group")))
        for one, mine, two, theirs in (
            (data, swapped[0], template, swapped[1]),
            (template, swapped[1], data, swapped[0]),
        )
    )
    options = {"folds": 3, "ensemble": 2, "seed": 1}
    before = out_of_fold_scores(Trees, data, template, {}, **options)
    after = out_of_fold_scores(Trees, other_data, other_template, {}, **options)
    scored = [_by_event(data, template, before), _by_event(other_data, other_template, after)]
    assert len(scored[0]) == ((data.fold == 0).sum() + (template.fold == 0).sum())
    assert scored[0] == scored[1]


def _with(values, rows, others):
    out = values.copy()
    out[rows] = others
    return out


def _by_event(data, template, scores):
    """Scores of fold 0 by event, whichever sample it is in."""
    pairs = ((data, scores["data"]), (template, scores["template"]))
    return {
        event: score
        for sample, found in pairs
        for event, score, fold in zip(sample.group, found.score, sample.fold, strict=True)
        if fold == 0
    }


def test_scored_sidebands_move_no_bin():
    data, template, sidebands = samples()
    with_sidebands, without = (
        out_of_fold_scores(Trees, data, template, others, folds=3, ensemble=1, seed=1)["data"].score
        for others in ({"sidebands": sidebands}, {})
    )
    np.testing.assert_array_equal(with_sidebands, without)


# ---- one table for all trainings -------------------------------------------------------------------------------------


@BOTH
def test_rows_of_a_shared_table_are_as_good_as_a_table_of_their_own(kind):
    x, y, weight, group = few_values()
    model = kind(5)
    table = model.prepare_table(x, weight)
    rows = np.flatnonzero(group % 3 > 0)
    own = kind(5)
    shared = bin_numbers(x[rows], table.edges)
    fresh = BinnedEvents(table.edges, trees._data_set(shared) if kind is Trees else shared, np.arange(len(rows)))
    model.fit(table[rows], y[rows], weight[rows], group[rows])
    own.fit(fresh, y[rows], weight[rows], group[rows])
    np.testing.assert_array_equal(model.score(x), own.score(x))


@BOTH
def test_rows_may_come_in_any_order(kind):
    """LightGBM takes sorted rows alone; sums in another order round otherwise."""
    x, y, weight, group = few_values()
    order = np.random.default_rng(9).permutation(len(x))
    model, other = kind(5, leaves=8), kind(5, leaves=8)
    table = model.prepare_table(x, weight)
    model.fit(table, y, weight, group)
    other.fit(table[order], y[order], weight[order], group[order])
    np.testing.assert_allclose(model.score(x), other.score(x), atol=1e-5)


def test_trainings_on_a_shared_table_do_not_depend_on_their_order():
    x, y, weight, group = few_values(values=200)
    table = Trees(0).prepare_table(x, weight)

    def scores(seeds):
        found = {}
        for seed in seeds:
            rows = np.flatnonzero(group % 3 != seed % 3)
            model = Trees(seed)
            model.fit(table[rows], y[rows], weight[rows], group[rows])
            found[seed] = model.score(x)
        return found

    first, second = scores((1, 2, 3)), scores((3, 2, 1))
    for seed, score in first.items():
        np.testing.assert_array_equal(score, second[seed])


def test_no_training_is_given_an_event_of_the_fold_that_it_scores():
    """Early stopping included: what stops a training is chosen from what it is given."""
    folds, given = {}, []

    class Spied(Trees):
        def fit(self, x, y, weight, group):
            given.append((x.rows, group))
            super().fit(x, y, weight, group)

    data, template, _ = samples()
    out_of_fold_scores(Spied, data, template, {}, folds=3, ensemble=1, seed=1)
    fold, group = (np.concatenate([getattr(one, name) for one in (template, data)]) for name in ("fold", "group"))
    for rows, groups in given:
        (missing,) = {0, 1, 2} - set(fold[rows])
        folds[missing] = len(rows)
        np.testing.assert_array_equal(group[rows], groups)
        assert len(rows) == (fold != missing).sum()
    assert set(folds) == {0, 1, 2}


class Own:
    """A user's classifier that prepares its events."""

    tables = ()

    def __init__(self, seed):
        pass

    def prepare_table(self, x, weight):
        Own.tables = (*Own.tables, (x, weight))
        return x * 2

    def fit(self, x, *_):
        Own.trained = x

    def score(self, x):
        return x[:, 0]


def test_a_table_is_made_once_and_its_rows_take_the_place_of_features():
    data, template, _ = samples(weights=True)
    Own.tables = ()
    scores = out_of_fold_scores(Own, data, template, {}, folds=3, ensemble=2, seed=1)
    ((x, weight),) = Own.tables
    np.testing.assert_array_equal(x, np.concatenate([template.x, data.x]))
    np.testing.assert_array_equal(weight, np.concatenate([template.weight, data.weight]))
    last = np.concatenate([one.x[one.fold != 2] for one in (template, data)])
    np.testing.assert_array_equal(Own.trained, 2 * last)
    # score has features as they are
    np.testing.assert_allclose(scores["data"].score, data.x[:, 0])


USERS = """
class Own:
    def __init__(self, seed): pass
    def prepare_table(self, x, weight): return {table}
    def fit(self, x, y, weight, group): pass
    def score(self, x): return x[:, 0]

class Closed:
    def __len__(self): return 1800
    def __getitem__(self, rows): raise KeyError("no rows")
"""


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("x[:3]", r"prepare_table\(x, weight\) returned 3 rows for 1800 events"),
        ("5", "TypeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("Closed()", "KeyError"),
    ],
)
def test_what_a_users_table_does_wrong_is_one_line(tmp_path, table, said):
    (tmp_path / "own.py").write_text(USERS.replace("{table}", table))
    data, template, _ = samples()
    make = load_classifier("own.py:Own", folder=tmp_path)
    with pytest.raises(ConfigError, match=f"cwola.classifier own.py:Own: .*{said}"):
        out_of_fold_scores(make, data, template, {}, folds=3, ensemble=1, seed=1)


def test_a_table_of_another_length_is_refused():
    class Short(Own):
        def prepare_table(self, x, _):
            return x[1:]

    data, template, _ = samples()
    with pytest.raises(FitError, match="the classifier Short prepared a table of 1799 rows for 1800 events"):
        out_of_fold_scores(Short, data, template, {}, folds=3, ensemble=1, seed=1)


# ---- where LightGBM cannot be loaded ---------------------------------------------------------------------------------

BROKEN = "raise OSError('libgomp.so.1: cannot open shared object file: No such file or directory')"


@pytest.fixture(params=["no package", "no library"])
def without_lightgbm(request, tmp_path, monkeypatch):
    """LightGBM that is not installed, or whose library does not load."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightgbm"]:
        monkeypatch.delitem(sys.modules, name)
    if request.param == "no package":
        monkeypatch.setitem(sys.modules, "lightgbm", None)
    else:
        (tmp_path / "lightgbm.py").write_text(BROKEN)
        monkeypatch.syspath_prepend(tmp_path)
    lightgbm_problem.cache_clear()
    yield request.param
    lightgbm_problem.cache_clear()


def test_scikit_learns_trees_take_the_place_of_lightgbms(without_lightgbm):
    ours, theirs = Trees(2, iterations=5), SklearnTrees(2, iterations=5)
    for model in (ours, theirs):
        model.fit(*few_values(300))
    x = few_values(300, seed=2)[0]
    np.testing.assert_array_equal(ours.score(x), theirs.score(x))


def test_the_reason_is_one_line(without_lightgbm):
    words = {"no package": "ModuleNotFoundError: ", "no library": "OSError: libgomp.so.1: cannot open"}
    assert fallback_line().startswith(f"LightGBM cannot be loaded ({words[without_lightgbm]}")
    assert "scikit-learn's trees run in its place" in fallback_line()
    assert "\n" not in fallback_line()


@pytest.mark.parametrize("verb", ["classify", "run"])
def test_a_search_says_once_what_runs_in_its_place(verb, without_lightgbm, monkeypatch):
    said = []
    monkeypatch.setattr(sequence, "_long_stages", lambda *_: [])
    monkeypatch.setattr(sequence, "_run_window", lambda *_, **__: None)
    monkeypatch.setattr(sequence, "_skim", lambda *_: None)
    monkeypatch.setattr(sequence, "check_plugins", lambda *_, **__: "")
    monkeypatch.setattr("drapes_hep.stages.hunt.hunt", lambda *_: None)
    config = SimpleNamespace(hunt=HuntConfig())
    context = SimpleNamespace(
        reporter=SimpleNamespace(say=said.append), config=config, workers=1, table=None, on_gpu=False
    )
    sequence.run_verb(verb, context, [1, 2])
    assert said == [fallback_line()]


def test_nothing_is_said_where_lightgbm_can_be_loaded():
    assert (lightgbm_problem(), fallback_line()) == ("", "")


def test_an_engine_is_the_library_that_grows_the_trees():
    assert [engine_of(kind) for kind in (Trees, SklearnTrees, Own)] == ["LightGBM", "scikit-learn", None]


def test_the_engine_is_scikit_learn_where_it_replaces_lightgbm(without_lightgbm):
    assert engine_of(Trees) == "scikit-learn"


def test_the_version_of_lightgbm_is_recorded():
    import lightgbm

    assert makers()["versions"]["lightgbm"] == lightgbm.__version__


# ---- threads and processes -------------------------------------------------------------------------------------------

TOGETHER = """
import os, sys
{imports}
import numpy as np, psutil, torch, threadpoolctl
from drapes_hep.cwola.trees import Trees
x = np.random.default_rng(1).normal(size=(20_000, 4))
y = np.arange(20_000) % 2
def train():
    model = Trees(1, iterations=5)
    model.fit(x, y, np.ones(20_000), np.arange(20_000))
    return model.score(x)
torch.set_num_threads(2)
torch.ones(300, 300) @ torch.ones(300, 300)
threads = psutil.Process().num_threads()
first = train()
assert psutil.Process().num_threads() == threads, "more than one thread"
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    assert (train() == first).all()
child = os.fork()
if child == 0:
    os._exit(0 if (train() == first).all() else 3)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("imports", ["import torch, lightgbm", "import lightgbm, torch"])
def test_lightgbm_and_torch_share_a_process(imports):
    """Each brings an OpenMP: trees take one thread, limited or not, and a forked copy trains the same."""
    code = TOGETHER.replace("{imports}", imports)
    environment = {"OMP_NUM_THREADS": "4", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
