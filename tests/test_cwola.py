"""Weak supervision: folds, out-of-fold scores, no leak, equal efficiencies in the window and outside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import awkward as ak
import numpy as np
import pytest

from drapes_hep.cwola.classifiers import Classifier, balanced_weights, load_classifier
from drapes_hep.cwola.perceptron import Mlp
from drapes_hep.cwola.scores import Sample, out_of_fold_scores, tail_probability
from drapes_hep.cwola.trees import SklearnTrees, Trees
from drapes_hep.errors import ConfigError, FitError, LeakError
from drapes_hep.folds import NO_PARENT, assign_folds
from drapes_hep.metrics import auc


def sample(n, seed, shift=0.0, first_id=0, folds=5):
    rng = np.random.default_rng(seed)
    ids = np.arange(first_id, first_id + n)
    return Sample(rng.normal(shift, 1, (n, 3)), np.ones(n), assign_folds(ids, folds, 1), ids)


class Memory:
    """Remembers what it was trained on and scores events by whether it saw them."""

    def __init__(self, seed):
        self.seed = seed

    def fit(self, x, *_):
        self.seen = {row.tobytes() for row in x}

    def score(self, x):
        return np.array([float(row.tobytes() in self.seen) for row in x])


def test_folds_belong_to_the_identity_and_are_balanced():
    ids = np.arange(50_000)
    folds = assign_folds(ids, 5, 1)
    assert np.array_equal(assign_folds(ids[::-1], 5, 1), folds[::-1])
    assert np.abs(np.bincount(folds) / 10_000 - 1).max() < 0.05
    assert not np.array_equal(folds, assign_folds(ids, 5, 2))


def test_a_template_event_takes_its_parents_fold():
    parents = np.arange(1000)
    children = assign_folds(np.arange(10**6, 10**6 + 1000), 5, 1, parents)
    assert np.array_equal(children, assign_folds(parents, 5, 1))
    orphans = assign_folds(np.arange(1000), 5, 1, np.full(1000, NO_PARENT))
    assert np.array_equal(orphans, assign_folds(np.arange(1000), 5, 1))


def test_no_event_is_scored_by_a_model_that_saw_it():
    data, template = sample(400, 1), sample(400, 2, first_id=1000)
    scores = out_of_fold_scores(
        Memory, data, template, {"sidebands": sample(300, 3, first_id=2000)}, folds=5, ensemble=1, seed=1
    )
    assert all(one.score.max() == 0 for one in scores.values())


def test_a_copy_of_a_scored_event_in_the_training_is_refused():
    data = sample(400, 1)
    parents = np.arange(400)
    copies = Sample(data.x, data.weight, assign_folds(parents, 5, 99), parents)
    with pytest.raises(LeakError, match="a model that saw it"):
        out_of_fold_scores(Memory, data, copies, {}, folds=5, ensemble=1, seed=1)


def crossed(n: int, seed: int, first_id: int, folds: int = 5) -> Sample:
    """Events of models, as many of each; the fold is that of the model, whatever the identities say."""
    events = sample(n, seed, first_id=first_id, folds=folds)
    return replace(events, fold=np.arange(n) % folds)


def test_with_a_calibration_a_classifier_sees_the_template_of_its_model_alone():
    seen = {}

    class Spy:
        def __init__(self, seed):
            self.seed = seed

        def fit(self, x, y, *_):
            self.x, self.y = x, y

        def score(self, x):
            seen[self.seed] = set(self.x[self.y == 0, 0].tolist())
            return x[:, 0]

    data, template = sample(400, 1), crossed(500, 2, 1000)
    out_of_fold_scores(Spy, data, template, {}, folds=5, ensemble=1, seed=1, calibration=crossed(1000, 3, 5000))
    assert sorted(map(sorted, seen.values())) == sorted(sorted(template.x[template.fold == f, 0]) for f in range(5))


def test_with_a_calibration_no_event_is_scored_by_a_model_that_saw_it():
    data, template, calibration = sample(400, 1), crossed(500, 2, 1000), crossed(1000, 3, 5000)
    others = {"sidebands": sample(300, 4, first_id=9000)}
    scores = out_of_fold_scores(Memory, data, template, others, folds=5, ensemble=1, seed=1, calibration=calibration)
    assert len(scores["template"].score) == 1000
    assert all(one.score.max() == 0 for one in scores.values())


def test_tails_are_those_of_the_calibration_sample():
    data, template, calibration = sample(2000, 1, 0.3), crossed(2500, 2, 10_000), crossed(5000, 3, 20_000)
    tail = out_of_fold_scores(Trees, data, template, {}, folds=5, ensemble=1, seed=1, calibration=calibration)
    for fold in range(5):
        tails = tail["template"].tail[calibration.fold == fold]
        assert (tails <= 0.1).mean() == pytest.approx(0.1, abs=2 / len(tails))


@pytest.mark.parametrize("planted", ["calibration", "sidebands", "data"])
def test_an_event_that_trained_the_classifier_of_its_fold_is_refused(planted):
    """One template event of model 0 is a copy of an event that classifier 0 scores."""
    data, template, calibration = sample(400, 1), crossed(500, 2, 1000), crossed(1000, 3, 5000)
    sidebands = sample(300, 4, first_id=9000)
    target = {"calibration": calibration, "sidebands": sidebands, "data": data}[planted]
    group = template.group.copy()
    group[np.flatnonzero(template.fold == 0)[0]] = target.group[np.flatnonzero(target.fold == 0)[0]]
    copied = replace(template, group=group)
    with pytest.raises(LeakError, match="fold 0: an event would be scored by a model that saw it"):
        out_of_fold_scores(
            Memory, data, copied, {"sidebands": sidebands}, folds=5, ensemble=1, seed=1, calibration=calibration
        )


def test_scores_do_not_depend_on_the_number_of_workers():
    data, template = sample(600, 1, 0.3, folds=3), sample(900, 2, first_id=10_000, folds=3)
    one, three = (
        out_of_fold_scores(Trees, data, template, {}, folds=3, ensemble=2, seed=1, workers=n)["data"] for n in (1, 3)
    )
    assert np.array_equal(one.score, three.score)


def test_the_cut_of_efficiency_e_passes_that_part_of_each_folds_template():
    data, template = sample(2000, 1, 0.3), sample(5000, 2, first_id=10_000)
    tail = out_of_fold_scores(Trees, data, template, {}, folds=5, ensemble=1, seed=1)["template"].tail
    for fold in range(5):
        here = tail[template.fold == fold]
        assert (here <= 0.1).mean() == pytest.approx(0.1, abs=2 / len(here))


def test_a_fold_is_calibrated_by_its_own_template_alone():
    """Calibration: a tail counts the template of the event's own fold, whatever the scale of the folds' scores."""

    class Shifted:
        def __init__(self, seed):
            self.shift = 100.0 * (seed % 97)

        def fit(self, *_):
            pass

        def score(self, x):
            return x[:, 0] + self.shift

    data, template = sample(300, 1), sample(700, 2, first_id=1000)
    template = replace(template, weight=np.random.default_rng(5).uniform(0.1, 2, 700))
    scores = out_of_fold_scores(Shifted, data, template, {}, folds=5, ensemble=1, seed=1)
    for one, found in ((data, scores["data"]), (template, scores["template"])):
        for fold in range(5):
            reference, weight = template.x[template.fold == fold, 0], template.weight[template.fold == fold]
            expected = (reference >= one.x[one.fold == fold][:, :1]) @ weight / weight.sum()
            np.testing.assert_allclose(found.tail[one.fold == fold], expected, rtol=1e-12)


def test_tail_probability_counts_weights_at_or_above():
    reference, weight = np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert tail_probability(np.array([0.0, 2.0, 3.0, 5.0]), reference, weight) == pytest.approx([1.0, 0.9, 0.4, 0.0])


def test_a_perfect_template_passes_window_and_sidebands_alike():
    """Averaged over folds instead, sideband scores would differ by an order of magnitude."""
    data, template = sample(8000, 1), sample(8000, 2, first_id=10_000)
    sidebands = sample(16_000, 3, first_id=100_000)
    scores = out_of_fold_scores(Trees, data, template, {"sidebands": sidebands}, folds=5, ensemble=3, seed=1, workers=2)
    for cut in (0.1, 0.01):
        inside, outside = (scores[name].tail <= cut for name in ("data", "sidebands"))
        error = np.sqrt(cut * (1 - cut) * (1 / len(inside) + 1 / len(outside) + 1 / len(template.x)))
        assert abs(inside.mean() - outside.mean()) < 3.5 * error
        assert abs(outside.mean() - cut) < 3.5 * error


def test_a_perfect_template_cannot_be_told_apart():
    data, template = sample(5000, 1), sample(5000, 2, first_id=10_000)
    scores = out_of_fold_scores(Trees, data, template, {}, folds=5, ensemble=2, seed=1, workers=2)
    pooled = np.concatenate([scores["data"].score, scores["template"].score])
    found = auc(pooled, np.repeat([1, 0], 5000))
    assert abs(found.value - 0.5) < 4 * found.error


@pytest.mark.parametrize("make", [Trees, SklearnTrees, Mlp])
def test_classifiers_find_a_difference_and_repeat(make):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (1500, 3)), rng.normal(1, 1, (1500, 3))])
    y = np.repeat([0, 1], 1500)
    found = []
    for _ in range(2):
        model = make(7)
        assert isinstance(model, Classifier)
        model.fit(x, y, np.ones(3000), np.arange(3000))
        found.append(model.score(x))
    assert np.array_equal(*found)
    # two unit Gaussians at distance sqrt(3): AUC = Phi(sqrt(3 / 2)) = 0.890
    assert auc(found[0], y == 1).value > 0.87


@pytest.mark.parametrize(
    "make", [Trees, SklearnTrees, partial(Mlp, epochs=8, rate=1e-2)], ids=["trees", "sklearn_trees", "mlp"]
)
def test_classifiers_learn_the_ratio_of_weights_not_of_events(make):
    """Classifiers: weights count, in what is learnt and in what stops it; without them this ratio is turned about."""
    x = np.repeat([-1.0, 1.0, -1.0, 1.0], [3000, 1000, 1000, 3000])[:, None]
    y = np.repeat([0, 1], [4000, 4000])
    weight = np.repeat([0.1, 1.0, 1.0, 0.1], [3000, 1000, 1000, 3000])
    model = make(1)
    model.fit(x, y, weight, np.arange(len(x)))
    # the part that is trained on has the ratio of 1000 to 300 within 5 %, and 1000 to 3000 by events
    assert model.score(np.array([[-1.0], [1.0]])) == pytest.approx([np.log(1000 / 300), np.log(300 / 1000)], abs=0.25)


@pytest.mark.parametrize("make", [Trees, SklearnTrees, Mlp])
def test_copies_of_a_parent_cannot_keep_a_training_going(make):
    """Classifiers: early stopping never judges by a copy of an event that was trained on."""
    rng = np.random.default_rng(3)
    parent = np.repeat(np.arange(300), 40)
    x = rng.normal(size=(300, 2))[parent]
    # nothing tells the classes apart but remembering which parent is of which
    y = rng.integers(0, 2, 300)[parent]
    model = make(2)
    model.fit(x, y, np.ones(len(x)), parent)
    truth = y == 1
    score = model.score(x)
    assert score[truth].mean() - score[~truth].mean() < 1.5


def test_a_classifier_is_given_the_weight_and_the_group_of_each_event():
    """Out-of-fold scores: a classifier is trained with the weights and the groups of the sample."""
    given = []

    class Recorder(Memory):
        def fit(self, x, _, weight, group):
            super().fit(x)
            given.append({row.tobytes(): both for row, *both in zip(x, weight, group, strict=True)})

    data, template = sample(400, 1), sample(400, 2, first_id=1000)
    template = replace(template, weight=np.random.default_rng(5).uniform(0.1, 2, 400))
    out_of_fold_scores(Recorder, data, template, {}, folds=5, ensemble=1, seed=1)
    every = {}
    for one in (data, template):
        every |= {row.tobytes(): both for row, *both in zip(one.x, one.weight, one.group, strict=True)}
    assert len(given) == 5
    for events in given:
        assert events == {key: every[key] for key in events}


def test_no_two_classifiers_have_the_same_seed():
    """Out-of-fold scores: the members of an ensemble, and those of other folds, are trainings of their own."""
    seeds = []

    class Recorder(Memory):
        def __init__(self, seed):
            seeds.append(seed)

    data, template = sample(400, 1), sample(400, 2, first_id=1000)
    out_of_fold_scores(Recorder, data, template, {}, folds=5, ensemble=3, seed=1)
    assert len(set(seeds)) == 15


@pytest.mark.parametrize("workers", [1, 4])
def test_a_classifier_may_change_what_it_is_given(workers):
    """Out-of-fold scores: the others of its fold, some of them at work meanwhile, are given the events as they are."""

    class Centred:
        def __init__(self, _, careful=False):
            self.careful = careful

        def fit(self, x, y, weight, _):
            if self.careful:
                x, weight = x.copy(), weight.copy()
            weight *= 0.5 + y
            weight /= weight.sum()
            self.mean = weight @ x
            x -= self.mean

        def score(self, x):
            if self.careful:
                x = x.copy()
            x -= self.mean
            x *= 3
            return x.sum(axis=1)

    data, template = sample(400, 1), sample(400, 2, first_id=1000)
    careless, careful = (
        out_of_fold_scores(make, data, template, {}, folds=5, ensemble=3, seed=1, workers=workers)["data"].score
        for make in (Centred, partial(Centred, careful=True))
    )
    np.testing.assert_array_equal(careless, careful)


def test_networks_on_constituents_are_trained_at_most_one_a_fold(monkeypatch):
    """Each takes a copy of the events."""
    threads = []

    def pool(max_workers):
        threads.append(max_workers)
        return ThreadPoolExecutor(max_workers)

    monkeypatch.setattr("drapes_hep.cwola.scores.ThreadPoolExecutor", pool)
    samples = [sample(400, 1), sample(400, 2, first_id=1000)]
    records = [replace(one, x=ak.Array({"x": one.x[:, 0]})) for one in samples]

    class Reader:
        def __init__(self, seed):
            pass

        def fit(self, x, y, weight, group):
            pass

        def score(self, x):
            return np.asarray(x["x"] if isinstance(x, ak.Array) else x[:, 0])

    for data, template in (samples, records):
        out_of_fold_scores(Reader, data, template, {}, folds=5, ensemble=3, seed=1, workers=8)
    assert threads == [8, 5]


def test_class_weights_are_equal_whatever_the_sizes():
    y, weight = np.array([0, 0, 0, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    balanced = balanced_weights(y, weight)
    assert balanced[y == 0].sum() == pytest.approx(balanced[y == 1].sum())
    assert balanced.sum() == pytest.approx(len(y))


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere.at_all:X", "No module"), ("math:tau9", "no class 'tau9'"), ("math:sqrt", "it is not a class")],
)
def test_a_classifier_that_cannot_be_used_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        load_classifier(name)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("trees", {"iterations": 2.5}, "iterations of trees is like 200, not 2.5"),
        ("trees", {"iterations": True}, "iterations of trees is like 200, not True"),
        ("trees", {"iterations": "many"}, "iterations of trees is like 200, not 'many'"),
        ("sklearn_trees", {"leaves": 1}, "trees refuses them: .*leaves at least 2"),
        ("trees", {"leaves": 1}, "trees refuses them: .*leaves at least 2"),
        ("trees", {"depth": 3}, "trees has no option 'depth'; it has iterations, rate, leaves"),
        ("trees", {"seed": 3}, "trees has no option 'seed'"),
        ("mlp", {"batch": 0}, "mlp refuses them: .*at least 1"),
        ("mlp", {"rate": -1}, "mlp refuses them: .*rate above 0"),
        ("constituents", {"epochs": 2.5}, "epochs of constituents is like 10, not 2.5"),
        ("constituents", {"rate": 0}, "constituents refuses them: .*rate must be above 0"),
        ("trees", {"rate": float("nan")}, "trees refuses them: .*finite"),
        ("mlp", {"rate": float("inf")}, "mlp refuses them: .*finite"),
        ("constituents", {"rate": float("nan")}, "constituents refuses them: .*finite"),
        ("full_phase_space", {"kinematics": 1}, "kinematics of full_phase_space is like False, not 1"),
    ],
)
def test_options_that_a_classifier_cannot_take_are_refused(name, options, words):
    with pytest.raises(ConfigError, match=words):
        load_classifier(name, options)


def test_a_class_of_the_users_says_itself_what_its_options_may_be(tmp_path, monkeypatch):
    source = "class Own:\n    def __init__(self, seed, *, alpha=1, depth='auto'):\n        self.given = alpha, depth\n"
    (tmp_path / "own_classifier.py").write_text(source + "    fit = score = lambda self, *_: None\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_classifier("own_classifier:Own", {"alpha": 0.5, "depth": 3})(0)._inner.given == (0.5, 3)


def test_options_reach_the_classifier():
    assert load_classifier("mlp", {"epochs": 3, "rate": 1})(0)._epochs == 3


def test_too_few_events_for_the_folds_are_refused():
    with pytest.raises(FitError, match="do not fill 5 folds"):
        out_of_fold_scores(Trees, sample(3, 1), sample(50, 2, first_id=100), {}, folds=5, ensemble=1, seed=1)
