"""Classifiers between data and template, and the protocol that anybody else's meets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from drapes_hep.caller import either
from drapes_hep.errors import ConfigError, FitError, UsersCode, counted, describe_error, reason_of
from drapes_hep.plugins import Kind, class_with, is_users, load_class
from drapes_hep.rng import event_uniforms

__all__ = [
    "Classifier",
    "Prepares",
    "Saves",
    "balanced_weights",
    "find_classifier",
    "group_holdout",
    "is_saved",
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


@runtime_checkable
class Prepares(Protocol):
    """What a classifier may offer in addition: work on the events' features that all trainings share."""

    def prepare_table(self, x: FloatArray, weight: FloatArray) -> Any:
        """Return a table of the events, made once for all folds and members.

        It is given the features (n, d) and weights (n,) of all events of both classes, those that a fold scores
        included, but no classes: what it learns from them must not tell data from template.

        ``len(table)`` is n, and :meth:`Classifier.fit` gets ``table[rows]``, for an array of increasing rows, in place
        of their features. :meth:`Classifier.score` always gets features.
        """


@runtime_checkable
class Saves(Protocol):
    """What a classifier may offer in addition: files from which another of the same options scores again.

    A class that cannot always do so has a class method ``can_save()``, which says whether.
    """

    def save(self, folder: Path) -> Sequence[Path]:
        """Write what was trained into an empty folder, never as a pickle; return the files."""

    def load(self, folder: Path) -> None:
        """Read it back, in place of a training."""


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


def is_saved(classifier: Any) -> bool:
    """Return whether trained classifiers are written to files (:class:`Saves`).

    Parameters
    ----------
    classifier : type
        As :func:`find_classifier` gives it.

    Returns
    -------
    bool
    """
    able = all(callable(getattr(classifier, name, None)) for name in ("save", "load"))
    return able and bool(getattr(classifier, "can_save", lambda: True)())


_LIKE = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
"""Types of an option, by that of its default."""


def load_classifier(
    name: str,
    options: Mapping[str, Any] | None = None,
    device: Callable[[], str] | None = None,
    folder: Path | None = None,
) -> Callable[[int], Classifier]:
    """Find a classifier by its name in the configuration, and set its options.

    Parameters
    ----------
    name : str
        As :func:`find_classifier` takes it.
    options : mapping, optional
        ``cwola.options``: further arguments of the class.
    device : callable, optional
        Returns the device of a class that has an argument of this name ("cpu" without). Other classes do not ask:
        whether there is a GPU is a question to torch, which takes seconds to load.
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
    if "device" in parameters and device is not None and (place := device()) != "cpu":
        settings.setdefault("device", place)
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

    def save(self, folder: Path) -> Sequence[Path]:
        """Write the files that the user's class writes."""
        with UsersCode(self._failed):
            files = [Path(path) for path in self._inner.save(folder)]  # type: ignore[attr-defined]
        inside = folder.resolve()
        if not files or any(not (path.is_file() and path.resolve().is_relative_to(inside)) for path in files):
            raise ConfigError(
                f"cwola.classifier {self._name}: save(folder) returns the files that it wrote in the folder, not"
                f" {', '.join(map(str, files)) or 'nothing'}"
            )
        return files

    def load(self, folder: Path) -> None:
        """Read back what the user's class has written."""
        with UsersCode(self._failed):
            self._inner.load(folder)  # type: ignore[attr-defined]

    def _failed(self, error: BaseException) -> ConfigError:
        return ConfigError(f"cwola.classifier {self._name}: {describe_error(error, is_users)}")


class _GuardedWithTable(_Guarded):
    """A user's classifier that prepares its events."""

    def prepare_table(self, x: FloatArray, weight: FloatArray) -> Any:
        """Prepare as the user's class does."""
        with UsersCode(self._failed):
            table = _GuardedTable(self._inner.prepare_table(x, weight), self._failed)  # type: ignore[attr-defined]
        if len(table) != len(x):
            raise ConfigError(
                f"cwola.classifier {self._name}: prepare_table(x, weight) returned {counted(len(table), 'row')} for"
                f" {counted(len(x), 'event')}"
            )
        return table


class _GuardedTable:
    """A table that a user's classifier has made."""

    def __init__(self, table: Any, failed: Callable[[BaseException], ConfigError]) -> None:
        self._table, self._failed, self._events = table, failed, len(table)

    def __len__(self) -> int:
        return self._events

    def __getitem__(self, rows: IntArray) -> Any:
        with UsersCode(self._failed):
            return self._table[rows]


def _guarded(
    name: str, classifier: Callable[..., Classifier], make: Callable[[int], Classifier]
) -> Callable[[int], Classifier]:
    if not _KIND.is_own(name):
        make = functools.partial(_GuardedWithTable if hasattr(classifier, "prepare_table") else _Guarded, name, make)
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
    {
        "trees": "drapes_hep.cwola.trees:Trees",
        "sklearn_trees": "drapes_hep.cwola.trees:SklearnTrees",
        "mlp": "drapes_hep.cwola.perceptron:Mlp",
        **_ON_CONSTITUENTS,
    },
)


def find_classifier(name: str, folder: Path | None = None) -> type[Any]:
    """Find a classifier's class by its name in the configuration.

    Parameters
    ----------
    name : str
        ``trees``, ``sklearn_trees``, ``mlp``, ``constituents``, ``full_phase_space``, an installed package's name,
        ``file.py:Class`` or ``package.module:Class``.
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
