"""Boosted trees between data and template: LightGBM's, or scikit-learn's with the same settings.

Both grow trees leaf by leaf on 255 bins of equal weight, with 31 leaves and a learning rate of 0.05, and stop when 20
trees in a row have not lowered the loss of the events that are held out. A leaf has at least 0.5 % of the events, 20 to
200, and a split chooses among half of the features, at random: both keep a few signal events from being lost among the
fluctuations of the background, which end the boosting early (docs/results.md). LightGBM counts the events of a leaf by
their share of the second derivatives, not one by one, so that weights count.

With ``select="argos"``, the loss stops nothing: of all trees, those are kept with which the held-out events have the
largest ARGOS (:mod:`drapes_hep.cwola.argos`).

LightGBM's library needs the system's ``libgomp.so.1``. Where it cannot be loaded, scikit-learn's trees take its place,
and take half as long again.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from drapes_hep.cwola.argos import argos
from drapes_hep.cwola.bins import BINS, BinnedEvents, Float32Array, bin_edges, bin_numbers
from drapes_hep.cwola.classifiers import training_parts
from drapes_hep.errors import reason_of
from drapes_hep.files import read_json, write_bytes, write_json
from drapes_hep.rng import stage_seed

__all__ = ["SklearnTrees", "Trees", "engine_of", "fallback_line", "lightgbm_problem", "quality_trees"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Select = Literal["loss", "argos"]
"""What decides how many trees there are."""

_LEAST_GAIN = 1e-7
"""By how much a loss must be lower to count; scikit-learn's default."""

_BINNING = {
    # one bin for each number, none merged: the edges are ours
    "max_bin": BINS + 1,
    "min_data_in_bin": 1,
    "feature_pre_filter": False,
    "enable_bundle": False,
    "num_threads": 1,
    "verbosity": -1,
}
"""LightGBM's parameters of a data set."""

_BOOSTING = {
    # the gradients and the loss are ours, see _CrossEntropy
    "objective": "none",
    "metric": "None",
    "min_sum_hessian_in_leaf": 1e-3,
    "lambda_l2": 0.0,
    # classifiers run side by side; within one, sums in one order give the same bits on any number of cores
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}
"""LightGBM's parameters of a training."""

_LEAF_SHARE, _LEAF_EVENTS = 0.005, (20, 200)
"""Events of a leaf: at least this fraction of those that train, within these bounds."""


@functools.cache
def lightgbm_problem() -> str:
    """Return why LightGBM cannot be loaded, in a few words; nothing where it can."""
    spec = find_spec("lightgbm")
    wheels_own = Path(spec.origin).parent / "lib" / "lib_lightgbm.so" if spec is not None and spec.origin else None
    try:
        if wheels_own is not None and wheels_own.is_file():
            # what may be missing is libgomp.so.1, which the library needs; the package around it loads pandas and
            # scikit-learn, which takes two seconds, and who only asks what will run does not need them
            ctypes.CDLL(str(wheels_own))
        else:
            import lightgbm  # noqa: F401
    except (ImportError, OSError) as error:
        return reason_of(error)
    return ""


def fallback_line() -> str:
    """Return one line that says what runs in LightGBM's place, and why; nothing where it can be loaded."""
    problem = lightgbm_problem()
    if not problem:
        return ""
    return (
        f"LightGBM cannot be loaded ({problem}): scikit-learn's trees run in its place and take half as long again;"
        " install the package lightgbm, and libgomp1 if libgomp.so.1 is missing"
    )


@dataclass(frozen=True)
class _Settings:
    """What both libraries are told."""

    iterations: int
    rate: float
    leaves: int
    patience: int
    leaf_events: int | None
    features: float
    select: Select
    seed: int

    def least_events(self, events: int) -> int:
        """Return how many of so many events a leaf has at least."""
        return self.leaf_events or int(np.clip(_LEAF_SHARE * events, *_LEAF_EVENTS))


@dataclass(frozen=True)
class _Training:
    """Events of a training: which train, and which stop it."""

    events: BinnedEvents
    y: IntArray
    weight: FloatArray
    held_out: BoolArray


Scorer = Callable[[Float32Array], Any]
"""From numbers of bins (n, d) to log-odds (n,)."""

_TREES, _CARD = "trees.txt", "trees.json"
"""Files of a trained classifier: LightGBM's text, and all else."""


class Trees:
    """Histogram gradient boosting, the default (stronger than networks on few features: arXiv:2309.13111).

    A missing value (NaN) goes to the side of a split where it lowers the loss. In a column without missing values among
    the events that define the bins, LightGBM treats it as the lowest value.

    Parameters
    ----------
    seed : int
        Of the held-out part that stops the boosting.
    iterations : int
        Most trees.
    rate : float
        Learning rate.
    leaves : int
        Leaves a tree.
    patience : int
        Trees in a row that do not lower the loss end the boosting, where the loss selects.
    leaf_events : int
        Events of a leaf, at least; 0 for 0.5 % of those that train, from 20 to 200.
    features : float
        Fraction of the features that a split chooses from, at random.
    select : {"loss", "argos"}
        What of the held-out events decides how many trees are kept.

    Raises
    ------
    ValueError
        An option out of range.
    """

    reads: ClassVar[str] = "features"

    def __init__(
        self,
        seed: int,
        *,
        iterations: int = 200,
        rate: float = 0.05,
        leaves: int = 31,
        patience: int = 20,
        leaf_events: int = 0,
        features: float = 0.5,
        select: Select = "loss",
    ) -> None:
        if min(iterations, leaves - 1, patience) < 1 or not 0 < rate < math.inf:
            raise ValueError("iterations and patience must be at least 1, leaves at least 2, rate above 0 and finite")
        if leaf_events < 0 or not 0 < features <= 1:
            raise ValueError("leaf_events must be at least 0, features above 0 and at most 1")
        if select not in get_args(Select):
            raise ValueError(f"select must be {' or '.join(get_args(Select))}, got {select!r}")
        self._settings = _Settings(iterations, rate, leaves, patience, leaf_events or None, features, select, seed)
        self._edges: tuple[FloatArray, ...] = ()
        self._scorer: Scorer | None = None

    @classmethod
    def engine(cls) -> str:
        """Return the library that grows the trees."""
        return "scikit-learn" if lightgbm_problem() else "LightGBM"

    def prepare_table(self, x: FloatArray, weight: FloatArray) -> BinnedEvents:
        """Divide features into bins once, for all trainings; see :class:`~drapes_hep.cwola.classifiers.Prepares`."""
        edges = tuple(bin_edges(column, weight) for column in x.T)
        numbers = bin_numbers(x, edges)
        shared = _data_set(numbers) if self.engine() == "LightGBM" else numbers
        return BinnedEvents(edges, shared, np.arange(len(x)))

    def fit(self, x: FloatArray | BinnedEvents, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        """Train; see :class:`~drapes_hep.cwola.classifiers.Classifier`."""
        events = x if isinstance(x, BinnedEvents) else self.prepare_table(x, weight)
        # the members of an ensemble differ by what they hold out
        held_out, w = training_parts(y, weight, group, 0.25, stage_seed(self._settings.seed, "holdout"))
        grow = _grow_lightgbm if self.engine() == "LightGBM" else _grow_sklearn
        self._edges = events.edges
        self._scorer = grow(_Training(events, y, w, held_out), self._settings)

    def score(self, x: FloatArray) -> FloatArray:
        """Log-odds of data against template, shape (n,)."""
        if self._scorer is None:
            raise RuntimeError("score needs a trained classifier: call fit first")
        if not len(x):
            return np.empty(0)
        return np.asarray(self._scorer(bin_numbers(x, self._edges)), dtype=np.float64)

    @classmethod
    def can_save(cls) -> bool:
        """Return whether the trees have a form as text: scikit-learn's have none."""
        return cls.engine() == "LightGBM"

    def save(self, folder: Path) -> list[Path]:
        """Write the trees as text; see :class:`~drapes_hep.cwola.classifiers.Saves`."""
        if not isinstance(self._scorer, _Boosted):
            raise RuntimeError("save needs trees that LightGBM has grown: call fit first")
        files = [folder / _CARD]
        edges = [column.tolist() for column in self._edges]
        write_json(files[0], {"start": self._scorer.start, "edges": edges, "trees": self._scorer.booster is not None})
        if self._scorer.booster is not None:
            files.append(folder / _TREES)
            write_bytes(files[1], self._scorer.booster.model_to_string(num_iteration=self._scorer.count).encode())
        return files

    def load(self, folder: Path) -> None:
        """Read trees back; see :class:`~drapes_hep.cwola.classifiers.Saves`."""
        import lightgbm

        card = read_json(folder / _CARD)
        self._edges = tuple(np.asarray(column, dtype=np.float64) for column in card["edges"])
        booster = None
        if card["trees"]:
            booster = lightgbm.Booster(model_str=(folder / _TREES).read_text(encoding="utf-8"))
        self._scorer = _Boosted(booster, card["start"], -1)


def quality_trees(seed: int) -> Trees:
    """Return the trees that measure the quality of templates, with the settings of all quoted AUCs.

    Parameters
    ----------
    seed : int

    Returns
    -------
    Trees
    """
    return Trees(seed, patience=10, leaf_events=20, features=1.0)


class SklearnTrees(Trees):
    """The same trees, grown by scikit-learn."""

    @classmethod
    def engine(cls) -> str:
        """Return the library that grows the trees."""
        return "scikit-learn"


def engine_of(classifier: type[Any]) -> str | None:
    """Return the library that grows a classifier's trees: it may differ between machines; None for no trees of ours."""
    return classifier.engine() if issubclass(classifier, Trees) else None


# ---- LightGBM --------------------------------------------------------------------------------------------------------


def _data_set(numbers: Float32Array) -> Any:
    """Return numbers of bins as LightGBM's data set, of which trainings take rows."""
    import lightgbm

    # every event counts where bins are looked for; by default a random choice of 200,000. It reads column by column
    settings = {**_BINNING, "bin_construct_sample_cnt": max(len(numbers), 1)}
    columns = np.asfortranarray(numbers)
    return lightgbm.Dataset(columns, label=np.zeros(len(numbers)), params=settings).construct()


class _CrossEntropy:
    """Weighted cross-entropy of events, as a function of their trees' sum, in single precision as LightGBM's gradients.

    LightGBM's own takes an exponential and a logarithm per event that are not vectorised: a quarter of a training.
    """

    def __init__(self, y: IntArray, weight: FloatArray, start: float) -> None:
        self._sign = np.where(y == 1, -1, 1).astype(np.float32)
        self._weight = weight.astype(np.float32)
        self._sum = float(self._weight.sum(dtype=np.float64))
        self._start = np.float32(start)

    def _exponential(self, trees: FloatArray) -> Float32Array:
        """Return exp(-z) for the log-odds z of each event's own class."""
        odds = trees.astype(np.float32)
        odds += self._start
        odds *= self._sign
        # the loss of an event of no odds is 80, its gradient its weight
        return np.exp(np.minimum(odds, np.float32(80), out=odds), out=odds)

    def gradients(self, trees: FloatArray, _: Any = None) -> tuple[Float32Array, Float32Array]:
        """Return first and second derivatives of the summed loss, each of shape (n,)."""
        odds = self._exponential(trees)
        wrong = odds / (1 + odds)
        first = self._weight * wrong
        return first * self._sign, first * (1 - wrong)

    def mean(self, trees: FloatArray, _: Any = None) -> tuple[str, float, bool]:
        """Return the mean loss, as LightGBM asks for it: name, value, whether larger is better."""
        odds = self._exponential(trees)
        odds += 1
        losses = np.log(odds, out=odds)
        losses *= self._weight
        # no dot product, whose threads would wait for each other, and add in an order of their own
        return "cross-entropy", float(losses.sum(dtype=np.float64)) / self._sum, False

    def argos(self, trees: FloatArray, _: Any = None) -> tuple[str, float, bool]:
        """Return ARGOS of the events, likewise."""
        return "ARGOS", argos(trees, self._sign < 0, self._weight), True


def _grow_lightgbm(training: _Training, settings: _Settings) -> Scorer:
    import lightgbm

    y, weight, held_out = training.y, training.weight, training.held_out
    share = np.average(y[~held_out], weights=weight[~held_out])
    start = math.log(share / (1 - share))
    shared = training.events.shared
    if all(shared.feature_num_bin(column) <= 1 for column in range(shared.num_feature())):
        # no leaf can be split: LightGBM refuses to begin
        return _Boosted(None, start, -1)
    boosting = {
        **_BOOSTING,
        "learning_rate": settings.rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.least_events(int((~held_out).sum())),
        "feature_fraction_bynode": settings.features,
        "seed": settings.seed % 2**31,
    }
    fitted, train_loss = _subset(training, ~held_out, start)
    booster = lightgbm.Booster(boosting, fitted)
    stopping, held_out_loss = _subset(training, held_out, start)
    booster.add_valid(stopping, "held out")
    if settings.select == "argos":
        values: list[float] = []
        while len(values) < settings.iterations and not booster.update(fobj=train_loss.gradients):
            values.append(booster.eval_valid(feval=held_out_loss.argos)[0][2])
        return _Boosted(booster, start, best) if (best := _best(values)) else _Boosted(None, start, -1)
    # of no tree at all
    losses = [held_out_loss.mean(np.zeros(stopping.num_data()))[1]]
    while len(losses) <= settings.iterations and not _stalled(losses, settings.patience):
        if booster.update(fobj=train_loss.gradients):
            break  # no leaf can be split
        losses.append(booster.eval_valid(feval=held_out_loss.mean)[0][2])
    # the trees that did not help are kept, as scikit-learn's are
    return _Boosted(booster, start, -1)


def _subset(training: _Training, part: BoolArray, start: float) -> tuple[Any, _CrossEntropy]:
    """Return events of a training as LightGBM's data set, whose bins are shared, and their loss."""
    rows = training.events.rows[part]
    # it takes sorted rows alone
    order = np.argsort(rows, kind="stable")
    data_set = training.events.shared.subset(rows[order].tolist()).construct()
    return data_set, _CrossEntropy(training.y[part][order], training.weight[part][order], start)


def _best(values: Sequence[float]) -> int:
    """Return how many trees have the largest of the values, which begin with those of one tree."""
    return int(np.argmax(values)) + 1 if values else 0


@dataclass(frozen=True)
class _Boosted:
    """The log-odds of LightGBM's trees: the sum of the first ``count``, -1 for all; without a booster, of none."""

    booster: Any
    start: float
    count: int

    def __call__(self, numbers: Float32Array) -> FloatArray:
        """Return the log-odds of events, shape (n,)."""
        if self.booster is None:
            return np.full(len(numbers), self.start)
        # neighbours take the same turns in a tree, which processors foresee: a third less time
        order = np.argsort(_along_a_curve(numbers), kind="stable")
        scores = np.empty(len(numbers))
        scores[order] = self.booster.predict(
            numbers[order], num_iteration=self.count, raw_score=True, num_threads=1, verbosity=-1
        )
        return scores + self.start


def _along_a_curve(numbers: Float32Array) -> npt.NDArray[np.uint64]:
    """Return where events lie on a curve through all bins, along which neighbours differ little (Morton's)."""
    columns = np.nan_to_num(numbers[:, :8]).astype(np.uint64).T
    place = np.zeros(len(numbers), dtype=np.uint64)
    for bit in range(BINS.bit_length()):
        for column, values in enumerate(columns):
            place |= (values >> np.uint64(bit) & np.uint64(1)) << np.uint64(bit * len(columns) + column)
    return place


def _stalled(losses: Sequence[float], patience: int) -> bool:
    """Whether none of the last trees has lowered the loss."""
    before, after = losses[:-patience], losses[-patience:]
    return bool(before) and min(after) >= before[-1] - _LEAST_GAIN


# ---- scikit-learn ----------------------------------------------------------------------------------------------------


def _grow_sklearn(training: _Training, settings: _Settings) -> Scorer:
    from sklearn.ensemble import HistGradientBoostingClassifier

    y, w, held_out = training.y, training.weight, training.held_out
    # scikit-learn 1.8 and later sort a column of weighted events once for each of its 254 edges: longer than the trees
    # take. Numbers of bins are so few that it does not look for edges
    x = training.events.shared[training.events.rows]
    options = {
        "learning_rate": settings.rate,
        "max_bins": BINS,
        "max_leaf_nodes": settings.leaves,
        "min_samples_leaf": settings.least_events(int((~held_out).sum())),
        "max_features": settings.features,
        "random_state": settings.seed % 2**32,
    }
    trained = {"X": x[~held_out], "y": y[~held_out], "sample_weight": w[~held_out]}
    if settings.select == "argos":
        every = HistGradientBoostingClassifier(max_iter=settings.iterations, early_stopping=False, **options)
        stages = every.fit(**trained).staged_decision_function(x[held_out])
        count = _best([argos(scores.ravel(), y[held_out] == 1, w[held_out]) for scores in stages])
        # the same trees once more, as far as they are kept
        model = HistGradientBoostingClassifier(max_iter=count, early_stopping=False, **options)
        return model.fit(**trained).decision_function  # type: ignore[no-any-return]
    model = HistGradientBoostingClassifier(
        max_iter=settings.iterations,
        early_stopping=True,
        n_iter_no_change=settings.patience,
        tol=_LEAST_GAIN,
        **options,
    )
    model.fit(**trained, X_val=x[held_out], y_val=y[held_out], sample_weight_val=w[held_out])
    return model.decision_function  # type: ignore[no-any-return]
