"""A method of the user's, whose every result is checked: what it raises or gives wrongly is one line."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, DrapesError, UsersCode, counted, describe_error, reason_of
from drapes_hep.fixed import LARGEST
from drapes_hep.plugins import is_users
from drapes_hep.regions import Window
from drapes_hep.templates.drapes_family import Source
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.quantities import QUANTITIES
from drapes_hep.templates.tables import EventTable, Plan, Template
from drapes_hep.training.curves import Epoch, TrainingCurve

__all__ = ["CheckedMethod", "check_declared"]

_ARGUMENTS = {
    "fit": ("task",),
    "save": ("folder", "model"),
    "load": ("folder", "device"),
    "sample": ("model", "plan", "parents", "task"),
}
"""Of the methods that a class must have."""


def check_declared(name: str, method_class: Any) -> None:
    """Check what a method says of itself.

    Raises
    ------
    ConfigError
        If an attribute is missing or none that it can be.
    """
    where = f"template.method {name}"
    title, source = getattr(method_class, "title", None), getattr(method_class, "source", "noise")
    if not isinstance(title, str) or not title.strip():
        raise ConfigError(f"{where}: needs the attribute title, its name in legends, such as title = 'CATHODE'")
    if source not in get_args(Source):
        raise ConfigError(f"{where}: source is {source!r}, which is none of {', '.join(get_args(Source))}")
    for flag in ("own_mass", "partial", "cross_fits"):
        if not isinstance(getattr(method_class, flag, False), bool):
            raise ConfigError(f"{where}: {flag} is {getattr(method_class, flag)!r}, neither True nor False")
    if getattr(method_class, "own_mass", False) and source not in ("window", "simulation"):
        raise ConfigError(
            f"{where}: own_mass needs parents in the window: source 'window' or 'simulation', not {source!r}"
        )
    kind = method_class if isinstance(method_class, type) else type(method_class)
    for name_of, arguments in _ARGUMENTS.items():
        if getattr(kind, name_of, None) is getattr(BackgroundMethod, name_of):
            own = [attribute for attribute in vars(kind) if callable(getattr(kind, attribute, None))]
            close = difflib.get_close_matches(name_of, own, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ConfigError(f"{where}: needs the method {name_of}({', '.join(arguments)}){hint}")
        try:
            inspect.signature(getattr(kind, name_of)).bind(None, *arguments)
        except TypeError:
            raise ConfigError(f"{where}: {name_of} must take ({', '.join(('self', *arguments))})") from None
    columns = getattr(method_class, "columns", ())
    if not isinstance(columns, tuple) or not all(column == "jets" for column in columns):
        raise ConfigError(f"{where}: columns is {columns!r}, neither () nor ('jets',)")


class CheckedMethod(BackgroundMethod):
    """A user's method behind checks.

    Parameters
    ----------
    inner : object
        An instance of the user's class.
    config : Config
    """

    def __init__(self, inner: Any, config: Config) -> None:
        name = config.template.method
        check_declared(name, inner)
        self._inner, self._name, self._features = inner, name, config.features
        self.title = inner.title
        self.source = getattr(inner, "source", "noise")
        self.own_mass, self.partial = getattr(inner, "own_mass", False), getattr(inner, "partial", False)
        self.cross_fits = getattr(inner, "cross_fits", True)
        self.columns = getattr(inner, "columns", ())
        reach = getattr(type(inner), "reach", BackgroundMethod.reach)
        # a method without it draws masses in the region alone, and none of its events can migrate
        self._migrates = reach is not BackgroundMethod.reach

    def _method_error(self, error: BaseException) -> DrapesError:
        return ConfigError(f"template.method {self._name}: {describe_error(error, is_users)}")

    def _wrong(self, method: str, what: str) -> ConfigError:
        return ConfigError(f"template.method {self._name}: {method}() returned {what}")

    def _call_optional(self, method: str, *arguments: Any) -> Any:
        """Call a method that need not be there."""
        call: Callable[..., Any] = getattr(self._inner, method, getattr(super(), method))
        with UsersCode(self._method_error):
            return call(*arguments)

    def fit(self, task: FitTask) -> tuple[Any, Mapping[str, TrainingCurve]]:
        """Fit as the user's class does."""
        with UsersCode(self._method_error):
            result = self._inner.fit(task)
        return self._fitted("fit", result)

    def fit_many(self, tasks: Sequence[FitTask]) -> list[tuple[Any, Mapping[str, TrainingCurve]]]:
        """Fit as the user's class does, or one after the other."""
        own = getattr(type(self._inner), "fit_many", BackgroundMethod.fit_many)
        if own is BackgroundMethod.fit_many:
            return super().fit_many(tasks)
        with UsersCode(self._method_error):
            results = self._inner.fit_many(tasks)
        if not isinstance(results, Sequence) or len(results) != len(tasks):
            raise self._wrong("fit_many", f"{type(results).__name__}, not a list of {counted(len(tasks), 'result')}")
        return [self._fitted("fit_many", result) for result in results]

    def together(self, device: str, models: int) -> int:
        """Return what the user's class says."""
        number = self._call_optional("together", device, models)
        if not _is_whole(number) or number < 1:
            raise self._wrong("together", f"{number!r}, not a whole number above 0")
        return int(number)

    def _fitted(self, method: str, result: Any) -> tuple[Any, Mapping[str, TrainingCurve]]:
        """Return a model with its curves."""
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise self._wrong(method, f"{type(result).__name__}, not (model, {{name: TrainingCurve}})")
        model, curves = result
        for key, curve in curves.items():
            if not isinstance(curve, TrainingCurve) or not curve.history:
                raise self._wrong(method, f"no TrainingCurve with a history as {key!r}; {{}} means no training")
            if problem := _curve_problem(key, curve):
                raise self._wrong(method, problem)
        return model, curves

    def save(self, folder: Path, model: Any) -> Sequence[Path]:
        """Write as the user's class does."""
        with UsersCode(self._method_error):
            paths = self._inner.save(folder, model)
        if not isinstance(paths, Sequence) or not all(isinstance(path, Path) for path in paths):
            raise self._wrong("save", f"{type(paths).__name__}, not the list of the paths that it wrote")
        return paths

    def load(self, folder: Path, device: str) -> Any:
        """Read as the user's class does."""
        with UsersCode(self._method_error):
            return self._inner.load(folder, device)

    def sample(self, model: Any, plan: Plan, parents: EventTable | None, task: SampleTask) -> Template:
        """Make template events as the user's class does, and check them.

        Raises
        ------
        ConfigError
            If they are none of the plan, lie outside the region, or hold what no later stage can use.
        """
        with UsersCode(self._method_error):
            template = self._inner.sample(model, plan, parents, task)
        if not isinstance(template, Template):
            raise self._wrong("sample", f"{type(template).__name__}, not a Template; plan.template(x) makes one")
        template = self._checked(template, plan, task)
        missing = len(plan) - len(template.event_id) - sum(template.lost.values())
        if missing < 0:
            raise self._wrong("sample", "more lost events than the plan has left")
        return replace(template, lost={**template.lost, "left_out": missing}) if missing else template

    def _checked(self, template: Template, plan: Plan, task: SampleTask) -> Template:
        """Return a template as arrays of numbers, with the plan's identities, parents and masses."""
        ids = self._array("event_id", template.event_id, None, "iu")
        count = len(ids)
        x = self._array("features", template.x, (count, len(self._features))).astype(np.float64)
        parent = self._array("parent_id", template.parent_id, (count,), "iu")
        mjj, weight = (
            self._array(name, getattr(template, name), (count,)).astype(np.float64) for name in ("mjj", "weight")
        )
        rows = _rows_in(plan.event_id, ids)
        if rows is None:
            raise self._wrong(
                "sample", "events that are not those of the plan, in its order; plan.take(rows) leaves some out"
            )
        if not np.array_equal(plan.parent_id[rows], parent):
            raise self._wrong("sample", "other parents than those of the plan, whose folds they decide")
        with np.errstate(invalid="ignore"):
            checks = [
                (~(np.abs(x[:, j]) <= LARGEST), f"NaN or infinity as '{name}'") for j, name in enumerate(self._features)
            ]
            checks += [
                (~(np.isfinite(weight) & (weight >= 0)), "a weight that is negative or not finite"),
                (~(np.isfinite(mjj) & task.region(mjj)), "a mass outside the region that is asked for"),
            ]
        if not self._migrates:
            checks.append(
                (
                    mjj != plan.mjj[rows],
                    "another mass than the plan's; plan.template(x) keeps them, and a method whose events migrate in"
                    " mass has the method reach(region)",
                )
            )
        for bad, what in checks:
            if bad.any():
                # without their number, which may follow that of a hidden window
                first = f", the first in row {int(np.flatnonzero(bad)[0])}"
                head, _, remedy = what.partition("; ")
                raise self._wrong("sample", f"{head}{first}{f'; {remedy}' if remedy else ''}")
        if count and not weight.sum() > 0:
            raise self._wrong("sample", "weights that add up to 0")
        if template.jets is not None and len(template.jets) != count:
            raise self._wrong("sample", f"jets of {len(template.jets)} events, not of {count}")
        if template.jets is None and "jets" in self.columns:
            raise self._wrong("sample", "no jets, though its columns name them")
        return Template(
            plan.event_id[rows], plan.parent_id[rows], x, mjj, weight, template.jets, self._lost(template.lost)
        )

    def _array(self, name: str, value: Any, shape: tuple[int, ...] | None, kinds: str = "iuf") -> npt.NDArray[Any]:
        """Return a part of a template as an array of numbers: of this shape, or of one axis."""
        try:
            array = np.asarray(value)
        except Exception as error:  # lists of different lengths, a tensor of another device
            raise self._wrong("sample", f"{name} that are not an array ({reason_of(error)})") from error
        if array.ndim != 1 if shape is None else array.shape != shape:
            raise self._wrong("sample", f"{name} of shape {array.shape}, not {shape or '(n,)'}")
        if array.dtype.kind not in kinds and array.size:
            what = "whole numbers" if kinds == "iu" else "numbers"
            raise self._wrong("sample", f"{name} of type {array.dtype}, not {what}")
        return array

    def _lost(self, lost: Any) -> dict[str, int]:
        """Return how many events are lost, by reason."""
        if not isinstance(lost, Mapping) or not all(
            isinstance(reason, str) and _is_whole(count) and count >= 0 for reason, count in lost.items()
        ):
            raise self._wrong("sample", f"lost = {lost!r}, not the number of events by reason")
        return {reason: int(count) for reason, count in lost.items()}

    def check(self) -> None:
        """Check as the user's class does."""
        self._call_optional("check")

    def settings(self) -> Mapping[str, Any]:
        """Return what decides the user's model."""
        return self._record("settings")

    def trainings(self) -> Mapping[str, Training]:
        """Return what the user's trainings are."""
        trainings = self._mapping("trainings")
        example = "an example is {'flow': Training(epochs=50)}"
        for name, training in trainings.items():
            if not isinstance(training, Training):
                raise self._wrong("trainings", f"a value that is not a Training as {name!r}; {example}")
            if not (_is_whole(training.epochs) and training.epochs > 0):
                raise self._wrong("trainings", f"epochs of {training.epochs!r} as {name!r}; {example}")
            texts = (name, training.title, training.caption, training.unit)
            if not all(isinstance(text, str) for text in texts):
                raise self._wrong(
                    "trainings", f"a name, title, caption or unit that is not text as {name!r}; {example}"
                )
        return trainings

    def summary(self) -> str:
        """Return the user's sentence."""
        sentence = self._call_optional("summary")
        if not isinstance(sentence, str):
            raise self._wrong("summary", f"{type(sentence).__name__}, not a sentence")
        return sentence

    def describe(self, model: Any) -> Mapping[str, Any]:
        """Return what the user's class records."""
        record = self._record("describe", model)
        fits: dict[str, Callable[[Any], bool]] = {
            "strength": _is_positive, "steps": _is_whole, "evaluations": _is_whole
        }  # fmt: skip
        for key, fit in fits.items():
            needed = self.partial and key != "evaluations"
            value = record.get(key)
            if (needed or value is not None) and not fit(value):
                kind = "a number above 0" if key == "strength" else "a whole number"
                why = ", which a partial method needs" if needed else ""
                what = f"{value!r} as" if key in record else "no"
                raise self._wrong("describe", f"{what} '{key}', {kind}{why}")
        return record

    def kept(self, model: Any) -> tuple[str, ...]:
        """Return what the user's templates take over."""
        quantities = self._call_optional("kept", model)
        if isinstance(quantities, str) or not isinstance(quantities, Iterable):
            raise self._wrong("kept", f"{type(quantities).__name__}, not a tuple of names")
        names = tuple(quantities)
        strange = [name for name in names if not isinstance(name, str) or name not in QUANTITIES]
        if strange:
            raise self._wrong("kept", f"{strange[0]!r}, which is none of {', '.join(QUANTITIES)}")
        return names

    def remarks(self, model: Any) -> tuple[str, ...]:
        """Return what the user's class points out."""
        remarks = self._call_optional("remarks", model)
        if not isinstance(remarks, (tuple, list)) or not all(isinstance(remark, str) for remark in remarks):
            raise self._wrong("remarks", f"{type(remarks).__name__}, not a tuple of sentences")
        return tuple(remarks)

    def reach(self, region: tuple[float, float]) -> tuple[float, float]:
        """Return where the user's class draws masses."""
        interval = self._call_optional("reach", region)
        numbers = isinstance(interval, (tuple, list)) and len(interval) == 2 and all(map(_is_positive, interval))
        if not numbers or not (interval[0] <= region[0] and interval[1] >= region[1]):
            raise self._wrong("reach", f"{interval!r}, not an interval (low, high) around {region}")
        return float(interval[0]), float(interval[1])

    def check_windows(self, windows: Sequence[Window]) -> None:
        """Check as the user's class does."""
        self._call_optional("check_windows", windows)

    def _mapping(self, method: str, *arguments: Any) -> Mapping[str, Any]:
        mapping = self._call_optional(method, *arguments)
        if not isinstance(mapping, Mapping):
            raise self._wrong(method, f"{type(mapping).__name__}, not a mapping")
        return mapping

    def _record(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Return a mapping as the JSON values that are written and compared."""
        record = self._mapping(method, *arguments)
        strange = [key for key in record if not isinstance(key, str)]
        if strange:
            raise self._wrong(method, f"the key {strange[0]!r}, which is not text")
        out = {}
        for key, value in record.items():
            try:
                # as it is read back: a tuple is a list, a number of numpy's a plain one
                out[key] = json.loads(json.dumps(value, allow_nan=False, default=_plain))
            except (TypeError, ValueError, RecursionError) as error:
                raise self._wrong(method, f"what JSON cannot hold as '{key}' ({reason_of(error)})") from error
        return out


def _plain(value: Any) -> Any:
    """Turn a number of numpy's into one of Python's; raises TypeError for all else."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _curve_problem(key: Any, curve: TrainingCurve) -> str | None:
    """Return what of a training's curve the report could not show; None where it is one."""
    if not isinstance(key, str):
        return f"a TrainingCurve as {key!r}, which is not text"
    for epoch in curve.history:
        if not isinstance(epoch, Epoch):
            return f"a history of {type(epoch).__name__} as '{key}', not of Epoch"
        strange = [name for name, value in epoch._asdict().items() if not _is_number(value)]
        if strange:
            return (
                f"{strange[0]} {getattr(epoch, strange[0])!r} in the history of '{key}', which is not a finite number"
            )
    if curve.best_epoch not in [epoch.epoch for epoch in curve.history]:
        return f"best_epoch {curve.best_epoch!r} of '{key}', which is not an epoch of its history"
    return None if _is_number(curve.seconds) else f"seconds {curve.seconds!r} of '{key}', which is not a finite number"


def _rows_in(plan: npt.NDArray[np.int64], ids: npt.NDArray[Any]) -> npt.NDArray[np.int64] | None:
    """Return the rows of a plan's events; None where some are not in it, or not in its order."""
    order = np.argsort(plan, kind="stable")
    place = np.minimum(np.searchsorted(plan[order], ids), max(len(order) - 1, 0))
    rows = order[place] if len(order) else np.empty(0, dtype=np.int64)
    same = len(rows) == len(ids) and np.array_equal(plan[rows], ids) and bool((np.diff(rows) > 0).all())
    return rows if same else None
