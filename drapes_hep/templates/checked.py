"""A method of the user's, whose every result is checked: what it raises or gives wrongly is one line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, DrapesError, UsersCode, describe_error
from drapes_hep.fixed import LARGEST
from drapes_hep.plugins import is_users
from drapes_hep.templates.drapes_family import Source
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.tables import EventTable, Plan, Template
from drapes_hep.training.curves import TrainingCurve

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
        raise ConfigError(f"{where}: needs the attribute title, what legends call it, such as title = 'CATHODE'")
    if source not in get_args(Source):
        raise ConfigError(f"{where}: source is {source!r}, which is none of {', '.join(get_args(Source))}")
    for flag in ("own_mass", "partial"):
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
    if not isinstance(columns, tuple) or not set(columns) <= {"jets"}:
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
        self.columns = getattr(inner, "columns", ())

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
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise self._wrong("fit", f"{type(result).__name__}, not (model, {{name: TrainingCurve}})")
        model, curves = result
        strange = [key for key, curve in curves.items() if not isinstance(curve, TrainingCurve) or not curve.history]
        if strange:
            raise self._wrong("fit", f"no TrainingCurve with a history as {strange[0]!r}; {{}} stands for no training")
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
        self._check(template, plan, task)
        missing = len(plan) - len(template.event_id) - sum(template.lost.values())
        if missing < 0:
            raise self._wrong("sample", "more lost events than the plan has left")
        return replace(template, lost={**template.lost, "left_out": missing}) if missing else template

    def _check(self, template: Template, plan: Plan, task: SampleTask) -> None:
        count, names = len(template.event_id), ("parent_id", "mjj", "weight")
        x = np.asarray(template.x)
        if x.shape != (count, len(self._features)):
            raise self._wrong("sample", f"features of shape {x.shape}, not {(count, len(self._features))}")
        for name in names:
            if np.shape(getattr(template, name)) != (count,):
                raise self._wrong("sample", f"{name} of shape {np.shape(getattr(template, name))}, not {(count,)}")
        order = np.argsort(plan.event_id, kind="stable")
        place = np.minimum(np.searchsorted(plan.event_id[order], template.event_id), max(len(order) - 1, 0))
        rows = order[place] if len(order) else np.empty(0, dtype=np.int64)
        if count and (not np.array_equal(plan.event_id[rows], template.event_id) or not (np.diff(rows) > 0).all()):
            raise self._wrong(
                "sample", "events that are not those of the plan, in its order; plan.take(rows) leaves some out"
            )
        if not np.array_equal(plan.parent_id[rows], template.parent_id):
            raise self._wrong("sample", "other parents than those of the plan, whose folds they decide")
        weight, mjj = np.asarray(template.weight), np.asarray(template.mjj)
        with np.errstate(invalid="ignore"):
            checks = [
                (~(np.abs(x[:, j]) <= LARGEST), f"NaN or infinity as '{name}'") for j, name in enumerate(self._features)
            ]
            checks += [
                (~(np.isfinite(weight) & (weight >= 0)), "a weight that is negative or not finite"),
                (~(np.isfinite(mjj) & task.region(mjj)), "a mass outside the region that is asked for"),
            ]
        for bad, what in checks:
            if bad.any():
                # without their number, which may follow that of a hidden window
                raise self._wrong("sample", f"{what}, the first in row {int(np.flatnonzero(bad)[0])}")
        if count and not weight.sum() > 0:
            raise self._wrong("sample", "weights that add up to 0")
        if template.jets is not None and len(template.jets) != count:
            raise self._wrong("sample", f"jets of {len(template.jets)} events, not of {count}")
        if template.jets is None and "jets" in self.columns:
            raise self._wrong("sample", "no jets, though its columns name them")

    def check(self) -> None:
        """Check as the user's class does."""
        self._call_optional("check")

    def settings(self) -> Mapping[str, Any]:
        """Return what decides the user's model."""
        return self._mapping("settings")

    def trainings(self) -> Mapping[str, Training]:
        """Return what the user's trainings are."""
        trainings = self._mapping("trainings")
        if not all(isinstance(training, Training) for training in trainings.values()):
            raise self._wrong("trainings", "what is no Training; an example is {'flow': Training(epochs=50)}")
        return trainings

    def summary(self) -> str:
        """Return the user's sentence."""
        return str(self._call_optional("summary"))

    def describe(self, model: Any) -> Mapping[str, Any]:
        """Return what the user's class records."""
        return self._mapping("describe", model)

    def kept(self, model: Any) -> tuple[str, ...]:
        """Return what the user's templates take over."""
        return tuple(self._call_optional("kept", model))

    def reach(self, region: tuple[float, float]) -> tuple[float, float]:
        """Return where the user's class draws masses."""
        interval = self._call_optional("reach", region)
        if not (
            isinstance(interval, tuple) and len(interval) == 2 and interval[0] <= region[0] and interval[1] >= region[1]
        ):
            raise self._wrong("reach", f"{interval!r}, not an interval (low, high) around {region}")
        return interval

    def _mapping(self, method: str, *arguments: Any) -> Mapping[str, Any]:
        mapping = self._call_optional(method, *arguments)
        if not isinstance(mapping, Mapping):
            raise self._wrong(method, f"{type(mapping).__name__}, not a mapping")
        return mapping
