"""Samples of which no search can be made, or hardly: a result, or one line that says why. Warnings are errors."""

from __future__ import annotations

import jsonschema
import numpy as np
import pytest

from drapes_hep.bumphunt import SelectedCounts, hunt_window
from drapes_hep.config import Config
from drapes_hep.cwola.classifiers import balanced_weights
from drapes_hep.cwola.perceptron import Mlp
from drapes_hep.cwola.scores import Sample, out_of_fold_scores
from drapes_hep.cwola.trees import SklearnTrees, Trees
from drapes_hep.errors import DrapesError, FitError
from drapes_hep.events.skims import write_skim, write_truth
from drapes_hep.files import read_json, write_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.regions import Window
from drapes_hep.results import results_schema
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.stages import classify, generate, hunt, train

pytestmark = pytest.mark.usefixtures("few_trees")

N = 1500
WINDOW = Window(3300, 3700, 2700, 6000)
SEARCH = {
    "name": "degenerate",
    "data": {"path": "none"},
    "features": ["m_j1", "tau21_j1"],
    "windows": {"width": 400, "step": 400, "first": 3300, "last": 3300},
    "template": {"oversample": 2, "steps": 2, "scaling": "standard"},
    "training": {"epochs": 1, "width": 8, "depth": 1, "batch": 512, "pseudo_window": "none"},
    "cwola": {"folds": 2, "ensemble": 1, "classifier": "mlp", "options": {"epochs": 1}},
    "hunt": {"toys": 3, "background_efficiencies": [1, 0.1]},
    "blind": False,
}


def background() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    # a fall by a factor e in 600 GeV, over the range
    mjj = 2700 - 600 * np.log(1 - rng.uniform(size=N) * (1 - np.exp(-3300 / 600)))
    return {
        "event_id": np.arange(N),
        "weight": np.ones(N),
        "mjj": mjj,
        "m_j1": rng.gamma(2, 90, N),
        "tau21_j1": rng.uniform(0.05, 0.95, N),
    }


DATA = background()
INSIDE = WINDOW.in_signal_region(DATA["mjj"])
LOW, HIGH = DATA["mjj"] < 3300, DATA["mjj"] >= 3700
ROW = np.arange(N)
ONE_MODEL = {"training.scheme": "hold_out"}
QUANTILE = {"template.scaling": "quantile"}


def few(mask: np.ndarray, number: int) -> np.ndarray:
    """The first events of a mask."""
    return mask & (np.cumsum(mask) <= number)


def some(mask: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[mask] for name, values in DATA.items()}


def repeated(values: np.ndarray) -> np.ndarray:
    """Masses on a few values, the nearest below each event's."""
    return values[np.clip(np.searchsorted(values, DATA["mjj"], side="right") - 1, 0, None)]


EDGES = np.array([2700.0, 3300.0, np.nextafter(3700, 0), 3700.0, 5000.0, np.nextafter(6000, 0)])

REFUSED = {
    "no event": (some(ROW < 0), {}, "lower sideband, 2700-3300 GeV, has no events"),
    "one event": (some(few(INSIDE, 1)), {}, "lower sideband"),
    "no lower sideband": (some(~LOW), {}, "lower sideband, 2700-3300 GeV, has no events"),
    "no upper sideband": (some(~HIGH), {}, "upper sideband, 3700-6000 GeV, has no events"),
    "no sideband": (some(INSIDE), {}, "lower sideband"),
    "two sideband events": (some(INSIDE | few(LOW, 1) | few(HIGH, 1)), {}, "each needs some"),
    "five sideband events": (
        some(INSIDE | few(LOW, 3) | few(HIGH, 2)),
        {**QUANTILE, **ONE_MODEL},
        "needs at least 300",
    ),
    "empty window": (some(~INSIDE), {}, "window 3300-3700: has no events"),
    "one event in the window": (some(~INSIDE | few(INSIDE, 1)), {}, "data: 1 event does not fill 2 folds"),
    "fewer events than folds": (some(~INSIDE | few(INSIDE, 4)), {"cwola.folds": 5}, "4 events do not fill 5 folds"),
    "a fold without template": (DATA, {"template.oversample": 0.002, **ONE_MODEL}, "template: 1 event"),
    "no template to learn from": (DATA, {"template.oversample": 0.01}, "part holds no template|do not fill"),
    "no validation": (DATA, {"training.validation": 1e-6}, "0 to validate it"),
    "a rate too high": (DATA, {"training.rate": 1e30}, "^window 3300-3700: .*diverged in epoch 1"),
    "one mass": ({**DATA, "mjj": np.full(N, 3000.0)}, {}, "upper sideband"),
    "one mass in a sideband": ({**DATA, "mjj": repeated(np.array([2900.0, 3500.0, 4000.0]))}, {}, "2 filled bins"),
    "masses on edges": ({**DATA, "mjj": EDGES[ROW % 6]}, QUANTILE, "filled bins outside the window"),
    "constant feature": ({**DATA, "m_j1": np.full(N, 80.0)}, {}, "feature 'm_j1' does not vary: it is 80"),
    "feature of zeros": ({**DATA, "tau21_j1": np.zeros(N)}, {}, "feature 'tau21_j1' does not vary: it is 0"),
    "one event repeated": ({**DATA, "m_j1": np.full(N, 80.0), "tau21_j1": np.full(N, 0.3)}, QUANTILE, "does not vary"),
    "a rare second value": (
        {**DATA, "m_j1": 1.0 * (ROW % 500 == 3)},
        QUANTILE,
        "'m_j1' has the same value in nearly all",
    ),
    "NaN beside the window": ({**DATA, "m_j1": np.where(few(LOW, 1), np.nan, 1)}, {}, "1 event has NaN.* 'm_j1'"),
    "NaN in the window": ({**DATA, "m_j1": np.where(few(INSIDE, 2), np.nan, 1)}, {}, "2 events have NaN.* 'm_j1'"),
    "infinity": ({**DATA, "m_j1": np.where(ROW == 7, -np.inf, 1.0)}, {}, r"the first in row 7 \(-inf\)"),
    "an overflow": ({**DATA, "m_j1": np.where(ROW == 7, 1e300, DATA["m_j1"])}, {}, "value beyond 1e.30"),
    "NaN mass": ({**DATA, "mjj": np.where(ROW == 7, np.nan, DATA["mjj"])}, {}, "1 event has a mass that is not pos"),
    "negative mass": ({**DATA, "mjj": np.where(ROW == 7, -1, DATA["mjj"])}, {}, "a mass that is not positive"),
    "weights of zero": ({**DATA, "weight": np.zeros(N)}, {}, "the hunt needs unweighted events"),
    "NaN weight": ({**DATA, "weight": np.where(ROW == 7, np.nan, 1.0)}, {}, "a weight that is not finite"),
}
SEARCHED = {
    "50 masses": ({**DATA, "mjj": repeated(np.linspace(2710, 5990, 50))}, {**QUANTILE, "training.closure": 0.1}),
    "five sideband events": (some(INSIDE | few(LOW, 3) | few(HIGH, 2)), ONE_MODEL),
    "a feature of two values": ({**DATA, "m_j1": 1.0 * (DATA["m_j1"] > 150)}, QUANTILE),
    "outliers": ({**DATA, "m_j1": np.where(ROW % 100 == 7, 1e12, DATA["m_j1"])}, {}),
    "features that are one": ({**DATA, "tau21_j1": DATA["m_j1"] / 1e4}, {}),
    "every event twice": ({**{k: np.tile(v, 2) for k, v in DATA.items()}, "event_id": np.arange(2 * N)}, {}),
    "no closure": (DATA, {"training.closure": 1e-6}),
    "all but a few in the window": (some(INSIDE | few(LOW, 20) | few(HIGH, 20)), {}),
    "an empty pseudo-window": (
        some(~((DATA["mjj"] >= 3900) & (DATA["mjj"] < 4300))),
        {"training.pseudo_window": "one"},
    ),
    "background alone": (DATA, {"labels": np.zeros(N, dtype=int)}),
    "signal alone": (DATA, {"labels": np.ones(N, dtype=int)}),
    "one signal event": (DATA, {"labels": 1 * few(INSIDE, 1)}),
}


def search(folder, columns, changes) -> dict:
    """Every stage after the skim, on a table of events; returns the results."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in SEARCH.items()}
    changes = dict(changes)
    labels = changes.pop("labels", None)
    tree["data"]["labels"] = labels is not None
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    run = RunDirectory(folder / "run")
    write_skim(run.events, columns)
    if labels is not None:
        write_truth(run.truth, columns["event_id"], labels)
    events = len(columns["mjj"])
    write_json(run.skim_info, {"accounting": {"requested": events, "processed": events, "lost": 0}})
    write_json(run.skim_hists, {})
    context = Context.of(Config.model_validate(tree), run, device="cpu", workers=1)
    train._train(context, train._fits(context, [WINDOW]))
    generate._generate(context, WINDOW)
    classify._classify(context, WINDOW)
    classify._quality(context, WINDOW)
    hunt._hunt(context, context.windows)
    return read_json(run.results)


@pytest.mark.parametrize("name", REFUSED)
def test_a_sample_is_refused_in_one_line(tmp_path, name):
    columns, changes, said = REFUSED[name]
    with pytest.raises(DrapesError, match=said) as caught:
        search(tmp_path, columns, changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_sample_is_searched(tmp_path, name):
    columns, changes = SEARCHED[name]
    results = search(tmp_path, columns, changes)
    jsonschema.validate(results, results_schema())
    (window,) = results["windows"]
    assert window["n_observed"] == WINDOW.in_signal_region(columns["mjj"]).sum()
    # what a handful of events, or a spectrum of spikes, says of the window is nothing
    if name in ("five sideband events", "50 masses", "every event twice"):
        assert [point["expected"] for point in window["working_points"]] == [None, None]


# ---- classifiers


def classes(y, weight=1.0, x=None) -> tuple[np.ndarray, ...]:
    n = len(y)
    x = np.random.default_rng(1).normal(size=(n, 2)) if x is None else x
    return x, np.asarray(y), np.broadcast_to(np.asarray(weight, dtype=float), n), np.arange(n)


@pytest.mark.parametrize("kind", [Trees, SklearnTrees, Mlp])
@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (classes([1] * 40), "no weight to learn from in template"),
        (classes([0] * 40), "no weight to learn from in data"),
        (classes([0, 1] * 20, 0.0), "no weight to learn from in template and data"),
        (classes([0, 1] * 20, [1.0, 0.0] * 20), "no weight to learn from in data"),
        (classes([0, 1]), "part holds no"),
        ((*classes([0, 1] * 20)[:3], np.zeros(40, dtype=int)), "part holds no template: 40 events are too few"),
    ],
)
def test_a_class_that_is_missing_is_named(kind, sample, said):
    with pytest.raises(FitError, match=said):
        kind(1).fit(*sample)


@pytest.mark.parametrize("kind", [Trees, SklearnTrees, Mlp])
def test_constant_features_tell_nothing_apart(kind):
    sample = classes([0, 1] * 100, x=np.full((200, 2), 3.0))
    classifier = kind(1)
    classifier.fit(*sample)
    score = classifier.score(sample[0])
    assert np.isfinite(score).all()
    assert np.ptp(score) == 0


class Odd:
    """A classifier that returns what it is made with."""

    def __init__(self, answer):
        self.answer = answer

    def fit(self, x, y, weight, group):
        pass

    def score(self, x):
        return self.answer(len(x))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda n: np.where(np.arange(n) == 0, np.nan, 0.0), "1 score that is NaN or infinite"),
        (lambda n: np.full(n, np.inf), "scores that are NaN or infinite"),
        (lambda n: np.zeros((n, 2)), r"scores of shape \(\d+, 2\)"),
        (lambda n: np.zeros(n + 1), "scores of shape"),
    ],
)
def test_what_is_no_score_is_refused(answer, said):
    """A NaN would otherwise pass every cut."""
    n = 60
    data, template = (
        Sample(np.zeros((n, 2)), np.ones(n), np.arange(n) % 2, first + np.arange(n)) for first in (0, 1000)
    )
    with pytest.raises(FitError, match=f"the classifier Odd returned .*{said}"):
        out_of_fold_scores(lambda _: Odd(answer), data, template, {}, folds=2, ensemble=1, seed=1)


def test_weights_are_balanced_or_refused():
    np.testing.assert_allclose(balanced_weights(np.array([0, 0, 1]), np.array([1.0, 1.0, 2.0])), [0.75, 0.75, 1.5])
    with pytest.raises(FitError, match="in data"):
        balanced_weights(np.zeros(3, dtype=int), np.ones(3))


# ---- spectra


def counts_of(values: np.ndarray, edges: np.ndarray) -> SelectedCounts:
    rows = np.stack([values, np.zeros_like(values)])
    return SelectedCounts(edges, (1.0, 0.1), rows, np.zeros(len(values), dtype=bool))


def test_a_spectrum_of_few_events_quotes_nothing():
    edges = spectrum_edges((2700, 6000), 20, [WINDOW])
    values = np.zeros(len(edges) - 1)
    values[[1, 5, 12, 60, 80]] = 1
    inside = (edges[:-1] >= 3300) & (edges[:-1] < 3700)
    values[inside] = 50
    point = hunt_window(counts_of(values, edges), WINDOW).working_points[0]
    assert (point.observed, point.fitted_events, point.expected, point.z_local) == (1000, 5, None, None)
    values[60:65] = 2
    assert hunt_window(counts_of(values, edges), WINDOW).working_points[0].fitted_events >= 10


@pytest.mark.parametrize("filled", [[], [3], [3, 4, 60, 61]])
def test_a_spectrum_of_few_filled_bins_is_refused(filled):
    edges = spectrum_edges((2700, 6000), 20, [WINDOW])
    values = np.zeros(len(edges) - 1)
    values[filled] = 1000
    number = f"{len(filled)} filled bin{'' if len(filled) == 1 else 's'} outside"
    with pytest.raises(FitError, match=number):
        hunt_window(counts_of(values, edges), WINDOW)


def test_whatever_spectrum_is_fitted_gives_masses_in_the_window():
    """Handfuls of events anywhere: shapes that rise, fall or end, far beyond what a spectrum does."""
    rng = np.random.default_rng(7)
    edges = spectrum_edges((2700, 6000), 60, [WINDOW])
    bins = len(edges) - 1
    outside = (edges[1:] <= 3300) | (edges[:-1] >= 3700)
    drawn = 0
    for _ in range(60):
        values = np.zeros(bins)
        some = rng.choice(np.flatnonzero(outside), size=rng.integers(5, 12), replace=False)
        values[np.sort(some)[: rng.integers(5, 12)]] = rng.choice([1, 2, 1000], size=1)
        try:
            fit = fit_spectrum(values, edges, (3300, 3700))
            masses = draw(fit, 3300, 3700, np.linspace(0, 1, 50))
        except FitError:
            continue
        drawn += 1
        assert ((masses >= 3300) & (masses < 3700)).all()
        assert (np.diff(masses) >= 0).all()
    assert drawn > 30
