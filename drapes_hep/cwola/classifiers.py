"""Classifiers between data and template, and the protocol that anybody else's meets."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier

from drapes_hep.caller import either
from drapes_hep.errors import ConfigError, FitError, UsersCode, counted, describe_error, reason_of
from drapes_hep.plugins import Kind, class_with, is_users, load_class
from drapes_hep.rng import event_uniforms, stage_seed

__all__ = [
    "Classifier",
    "Trees",
    "balanced_weights",
    "find_classifier",
    "group_holdout",
    "load_classifier",
    "reads_of",
    "training_parts",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@runtime_checkable
class Classifier(Protocol):
    """What the search asks of a classifier: made with ``(seed)``, trained once, then asked for scores.

    A class attribute ``reads = "constituents"`` makes ``x`` events with constituents, an awkward array, in the place of
    features (:func:`reads_of`); it is no member here, as a class may go without.
    """

    def fit(self, x: FloatArray, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        """Train on features (n, d), classes (n,), weights (n,) and groups (n,) that no split may divide."""

    def score(self, x: FloatArray) -> FloatArray:
        """Score features (n, d): larger is more data-like; shape (n,)."""


def balanced_weights(y: IntArray, weight: FloatArray) -> FloatArray:
    """Scale weights so that both classes sum to the same, half the number of events each.

    Parameters
    ----------
    y : array of int, shape (n,)
        Classes, 0 or 1.
    weight : array, shape (n,)
        Event weights.

    Returns
    -------
    array, shape (n,)

    Raises
    ------
    FitError
        If a class has no events, or weights that do not add up to more than 0.
    """
    total = np.array([weight[y == 0].sum(), weight[y == 1].sum()])
    if not bool((total > 0).all()):
        names = " and ".join(name for name, value in zip(("template", "data"), total, strict=True) if not value > 0)
        raise FitError(f"the classifier has no weight to learn from in {names}")
    return np.asarray(weight * (0.5 * len(y) / total)[y], dtype=np.float64)


def group_holdout(group: IntArray, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose whole groups that make up about ``fraction`` of the events; True where held out."""
    return np.asarray(event_uniforms(seed, group)[:, 0] < fraction, dtype=np.bool_)


def training_parts(
    y: IntArray, weight: FloatArray, group: IntArray, fraction: float, seed: int
) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Choose what is held out to stop a training, and balance the classes' weights.

    Whole groups are held out, so that no copy of a parent is on both sides.

    Parameters
    ----------
    y : array of int, shape (n,)
        Classes, 0 or 1.
    weight : array, shape (n,)
    group : array of int, shape (n,)
    fraction : float
        Held out.
    seed : int

    Returns
    -------
    held : array of bool, shape (n,)
    weight : array, shape (n,)
        Balanced.

    Raises
    ------
    FitError
        If either part lacks a class.
    """
    held_out, balanced = group_holdout(group, fraction, seed), balanced_weights(y, weight)
    for part, name in ((~held_out, "training"), (held_out, "held-out")):
        for value, kind in ((0, "template"), (1, "data")):
            if not balanced[part & (y == value)].sum() > 0:
                raise FitError(
                    f"the classifier's {name} part holds no {kind}: {counted(len(y), 'event')} are too few; use fewer"
                    " folds, a wider window or a larger template"
                )
    return held_out, balanced


_BINS = 255
"""Bins of a column; all that scikit-learn has room for."""


def _bin_edges(values: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the inner edges of bins of equal weight, shape (at most 254,); between the values where these are few."""
    keep = (weight > 0) & ~np.isnan(values)
    order = np.argsort(values[keep], kind="stable")
    values, below = values[keep][order], np.cumsum(weight[keep][order])
    distinct = np.unique(values)
    if len(distinct) <= _BINS:
        return np.asarray((distinct[1:] + distinct[:-1]) / 2)
    targets = np.linspace(0, 100, _BINS + 1)[1:-1] / 100 * below[-1]
    place = np.minimum(np.searchsorted(below, targets), len(values) - 1)
    # an edge that falls between two events is their middle
    after = np.minimum(place + 1, len(values) - 1)
    between = below[place] - targets <= np.finfo(np.float64).eps
    return np.unique(np.where(between, (values[place] + values[after]) / 2, values[place]))


class Trees:
    """Histogram gradient boosting, the default (stronger than networks on few features: arXiv:2309.13111).

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

    Raises
    ------
    ValueError
        An option out of range.
    """

    reads: ClassVar[str] = "features"

    def __init__(self, seed: int, *, iterations: int = 200, rate: float = 0.05, leaves: int = 31) -> None:
        if min(iterations, leaves - 1) < 1 or not 0 < rate < math.inf:
            raise ValueError("iterations must be at least 1, leaves at least 2, rate above 0 and finite")
        self._seed = seed
        self._edges: list[FloatArray] = []
        self._model = HistGradientBoostingClassifier(
            max_iter=iterations,
            learning_rate=rate,
            max_bins=_BINS,
            max_leaf_nodes=leaves,
            early_stopping=True,
            n_iter_no_change=10,
            random_state=seed % 2**32,
        )

    def fit(self, x: FloatArray, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        """Train; see :class:`Classifier`."""
        # the members of an ensemble differ by what they hold out
        held_out, w = training_parts(y, weight, group, 0.25, stage_seed(self._seed, "holdout"))
        # scikit-learn 1.8 and later sort a column of weighted events once for each of its 254 edges: longer than the
        # trees take. Numbers of bins are so few that it does not look for edges
        self._edges = [_bin_edges(column, w[~held_out]) for column in x[~held_out].T]
        x = self._binned(x)
        self._model.fit(
            x[~held_out],
            y[~held_out],
            sample_weight=w[~held_out],
            X_val=x[held_out],
            y_val=y[held_out],
            sample_weight_val=w[held_out],
        )

    def _binned(self, x: FloatArray) -> FloatArray:
        """Return the number of the bin that each value falls in, shape (n, d); NaN stays."""
        number = [np.searchsorted(edges, column) for edges, column in zip(self._edges, x.T, strict=True)]
        return np.where(np.isnan(x), np.nan, np.stack(number, axis=1))

    def score(self, x: FloatArray) -> FloatArray:
        """Log-odds of data against template, shape (n,)."""
        return np.asarray(self._model.decision_function(self._binned(x)), dtype=np.float64)


def reads_of(classifier: Any) -> Literal["features", "constituents"]:
    """Return what a classifier takes as ``x``.

    Parameters
    ----------
    classifier : type
        As :func:`load_classifier` gives it.

    Returns
    -------
    {"features", "constituents"}
        Its attribute ``reads``; features without one.

    Raises
    ------
    ConfigError
        If the attribute is neither.
    """
    reads = getattr(classifier, "reads", "features")
    if reads not in ("features", "constituents"):
        name = getattr(classifier, "__name__", classifier)
        raise ConfigError(f"cwola.classifier {name}: reads {reads!r}, which is neither 'features' nor 'constituents'")
    return cast(Literal["features", "constituents"], reads)


_LIKE = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
"""Types of an option, by that of its default."""


def load_classifier(
    name: str, options: Mapping[str, Any] | None = None, device: str = "cpu", folder: Path | None = None
) -> Callable[[int], Classifier]:
    """Find a classifier by its name in the configuration, and set its options.

    Parameters
    ----------
    name : str
        As :func:`find_classifier` takes it.
    options : mapping, optional
        ``cwola.options``: further arguments of the class.
    device : str
        Given to a class that has an argument of this name.
    folder : Path, optional
        Where the configuration lies.

    Returns
    -------
    callable
        Called with a seed, it gives a :class:`Classifier`. It has the class's ``reads``.

    Raises
    ------
    ConfigError
        If there is no such class, it lacks ``fit`` or ``score``, or it refuses the options.
    """
    classifier: Callable[..., Classifier] = find_classifier(name, folder)
    parameters = inspect.signature(classifier).parameters
    settings = _settings(name, parameters, options or {})
    if "device" in parameters and device != "cpu":
        settings.setdefault("device", device)
    if not settings:
        return _guarded(name, classifier, classifier)
    with UsersCode(lambda error: ConfigError(f"cwola.options: {name} refuses them: {reason_of(error)}")):
        classifier(0, **settings)
    make = functools.partial(classifier, **settings)
    return _guarded(name, classifier, make)


def _settings(name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as arguments of a classifier's class, each like the argument's default."""
    settings = dict(options)
    free = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    strange = [key for key in settings if key not in parameters and not free]
    if strange or "seed" in settings:
        raise ConfigError(
            f"cwola.options: {name} has no option '{(strange or ['seed'])[0]}'; it has"
            f" {', '.join(key for key in parameters if key != 'seed')}"
            + either(
                shell=" (--set cwola.options={} clears those of another classifier)",
                python=" (cwola={'options': {}} clears those of another classifier)",
            )
        )
    if _KIND.is_own(name):
        # a class of the user's may mean more than the type of its default says
        settings = {key: _like(parameters[key].default, value, f"{key} of {name}") for key, value in settings.items()}
    return settings


def _like(default: object, value: object, option: str) -> object:
    """Return an option's value with the type of its default; raises ConfigError if it has another."""
    if type(default) is int and type(value) is float and value.is_integer():
        return int(value)  # 1e4
    # 2.5 epochs would fail an hour later; a bool is an int to Python
    types = _LIKE.get(type(default), ())
    if types and type(value) not in types:
        raise ConfigError(f"cwola.options: {option} is like {default!r}, not {value!r}")
    return value


class _Guarded:
    """A user's classifier: what it raises is one line, and so is a score that is no finite number per event."""

    def __init__(self, name: str, make: Callable[[int], Classifier], seed: int) -> None:
        self._name = name
        with UsersCode(self._failed):
            self._inner = make(seed)

    def fit(self, x: FloatArray, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        """Train as the user's class does."""
        with UsersCode(self._failed):
            self._inner.fit(x, y, weight, group)

    def score(self, x: FloatArray) -> FloatArray:
        """Score as the user's class does."""
        with UsersCode(self._failed):
            score = np.asarray(self._inner.score(x))
        if score.shape != (len(x),) or score.dtype.kind not in "iuf":
            kind = f"{score.dtype} of shape {score.shape}"
            raise ConfigError(f"cwola.classifier {self._name}: score(x) returned {kind}, not {len(x)} numbers")
        bad = ~np.isfinite(score)
        if bad.any():
            count = int(np.count_nonzero(bad))
            raise ConfigError(f"cwola.classifier {self._name}: score(x) is NaN or infinity for {count} events")
        return score.astype(np.float64)

    def _failed(self, error: BaseException) -> ConfigError:
        return ConfigError(f"cwola.classifier {self._name}: {describe_error(error, is_users)}")


def _guarded(
    name: str, classifier: Callable[..., Classifier], make: Callable[[int], Classifier]
) -> Callable[[int], Classifier]:
    if not _KIND.is_own(name):
        make = functools.partial(_Guarded, name, make)
    elif make is classifier:
        return make
    make.reads = reads_of(classifier)  # type: ignore[attr-defined]
    return make


_ON_CONSTITUENTS = {
    "constituents": "drapes_hep.cwola.set_classifiers:ConstituentTransformer",
    "full_phase_space": "drapes_hep.cwola.set_classifiers:DijetTransformer",
}
"""By name, as they import torch, which takes seconds."""

_KIND = Kind(
    "classifier",
    "cwola.classifier",
    "a classifier",
    class_with("fit", "score"),
    {"trees": f"{__name__}:Trees", "mlp": "drapes_hep.cwola.perceptron:Mlp", **_ON_CONSTITUENTS},
)


def find_classifier(name: str, folder: Path | None = None) -> type[Any]:
    """Find a classifier's class by its name in the configuration.

    Parameters
    ----------
    name : str
        ``trees``, ``mlp``, ``constituents``, ``full_phase_space``, an installed package's name, ``file.py:Class`` or
        ``package.module:Class``.
    folder : Path, optional
        Where the configuration lies.

    Returns
    -------
    type

    Raises
    ------
    ConfigError
        If there is no such class, or it lacks ``fit`` or ``score``.
    """
    return cast(type[Any], load_class(_KIND, name, folder))
