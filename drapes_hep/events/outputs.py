"""What a search needs of a processor, whoever wrote it: checked chunk by chunk, before anything long."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from itertools import pairwise
from types import CodeType
from typing import Any, NoReturn

import awkward as ak
import boost_histogram
import cloudpickle  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt
import uhi.io.json
from coffea import processor
from coffea.processor import accumulate

from drapes_hep.errors import ConfigError, DrapesError, UsersCode, describe_error, reason_of
from drapes_hep.events.accumulate import ColumnParts, chunk_key
from drapes_hep.events.features import invariant_mass
from drapes_hep.events.hooks import first_of, flat_jets, name_event, protect
from drapes_hep.events.schema import JET_FIELDS
from drapes_hep.events.types import Column, Events
from drapes_hep.plugins import NEEDS, STRIPPED, class_sources, is_users, names_defined

__all__ = ["CheckedProcessor", "RequiredOutput", "accumulators", "json_form"]

BoolArray = npt.NDArray[np.bool_]

_KNOWN = ("hists", "cutflow", "skim", "truth", "not_applied")
"""Keys of the output whose meaning is fixed; others are the processor's own."""

_FLOW = ("read", "golden_json", "trigger", "two_jets", "leading_pt", "abs_eta", "mass_range", "defined")
"""Steps of the cut flow whose meaning is fixed: none has more events than the one before."""

_MASS_TOLERANCE = 1e-5
"""By which m_JJ may differ from that of the jets, as a fraction: some roundings of jets in single precision."""


@dataclass(frozen=True)
class RequiredOutput:
    """What the configuration asks of the selected events.

    Parameters
    ----------
    features : tuple of str
        Columns of the skim.
    mass_range : tuple of float
        m_JJ in GeV, lower edge inclusive and upper edge exclusive.
    kept_columns : tuple of str
        Further columns of the skim.
    bounds : mapping of str to (float, float)
        Values that a feature can take.
    """

    features: tuple[str, ...]
    mass_range: tuple[float, float]
    kept_columns: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class CheckedProcessor(processor.ProcessorABC):  # type: ignore[misc]
    """A processor whose mistakes are one line that names its file.

    Parameters
    ----------
    inner : processor
        The user's.
    required : RequiredOutput

    Raises
    ------
    ConfigError
        It cannot be pickled, and so not be sent to a worker process.
    """

    def __init__(self, inner: Any, required: RequiredOutput) -> None:
        self._inner, self._required = inner, required
        sources = class_sources(type(inner))
        self._name = f"processor {type(inner).__name__}" + (f" ({sources[0]})" if sources else "")
        self._defined = names_defined(type(inner))
        with UsersCode(
            lambda error: ConfigError(f"{self._name}: cannot be sent to a worker ({self._error_text(error)})")
        ):
            pickle.loads(cloudpickle.dumps(inner))

    @property
    def described(self) -> str:
        """Class and file of the processor."""
        return self._name

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that define the processor and the classes it is made of."""
        return tuple(dict.fromkeys(kind.__module__ for kind in type(self._inner).__mro__ if kind is not object))

    def process(self, events: Events) -> dict[str, Any]:
        """Process one chunk, and check what comes out."""
        protect(events)
        events_copy = copy.copy(events)
        with UsersCode(self._failed):
            out: Any = self._inner.process(events_copy)
        with UsersCode(self._failed):  # iterating over a user's containers is user's code, too
            self._check(out, events)
        return dict(out)

    def postprocess(self, accumulator: Any) -> Any:
        """Postprocess as the inner processor does, and check the result once more."""
        datasets, before = set(accumulator["cutflow"]), _sorted_ids(accumulator["skim"])
        with UsersCode(self._failed):
            replaced = self._inner.postprocess(accumulator) if hasattr(self._inner, "postprocess") else None
        out = accumulator if replaced is None else replaced
        with UsersCode(self._failed):
            self._check_keys(out)
            self._check_parts(out["hists"], out["cutflow"], datasets)
            self._check_columns(out["skim"].columns(), lambda row, ids: f"event_id {ids[row]}")
            after = _sorted_ids(out["skim"])
            if not np.array_equal(before, after):
                self._refuse(f"postprocess(accumulator) changes which events are selected ({len(before)} before,"
                             f" {len(after)} after); it may change columns, select in process(events)")  # fmt: skip
            self._check_extras(out)
        return out

    def _failed(self, error: BaseException) -> ConfigError:
        return ConfigError(f"processor {type(self._inner).__name__}: {self._error_text(error)}")

    def _error_text(self, error: BaseException) -> str:
        hint = "; events are read-only: change a copy" if "read-only" in str(error) else ""
        return describe_error(error, is_users, self._file_of) + hint

    def _file_of(self, code: CodeType) -> str:
        path = self._defined.get(code.co_qualname.partition(".")[0]) if code.co_filename == STRIPPED else None
        return path or code.co_filename

    def _refuse(self, problem: str) -> NoReturn:
        raise ConfigError(f"{self._name}: {problem}")

    def _check(self, out: Any, events: Events) -> None:
        self._check_keys(out)
        self._check_parts(out["hists"], out["cutflow"], {str(events.metadata["dataset"])})
        key = chunk_key(events.metadata)
        ids = ak.to_numpy(events.event_id)
        for name in ("skim", "truth"):
            if name in out and list(out[name].parts) != [key]:
                self._refuse(f"'{name}' holds other parts than chunk_key(events.metadata)")

        def event(row: int, rows: npt.NDArray[Any]) -> str:
            return name_event(events, int(np.flatnonzero(ids == rows[row])[0]))

        columns = out["skim"].parts[key]
        self._check_ids(columns, ids)
        self._check_columns(columns, event)
        (flow,) = out["cutflow"].values()
        self._check_flow(flow, len(events), len(columns["event_id"]))
        if "truth" in out:
            truth = out["truth"].parts[key]
            self._check_ids(truth, ids)
            if set(truth) != {"event_id", "label"} or not np.isin(np.asarray(truth["label"]), (0, 1)).all():
                self._refuse("'truth' must hold event_id and label, which is 0 or 1")
        self._check_extras(out)

    def _check_keys(self, out: Any) -> None:
        if not isinstance(out, Mapping):
            kind = "nothing" if out is None else f"a {type(out).__name__}"
            self._refuse(f"process(events) returned {kind}: {NEEDS}")
        absent = [key for key in ("hists", "cutflow", "skim") if key not in out]
        if absent:
            self._refuse(f"process(events) returned no '{absent[0]}': {NEEDS}")
        strange = [key for key in out if not isinstance(key, str)]
        if strange:
            self._refuse(f"the output has the key {strange[0]!r}, which is not text")
        for key in ("skim", "truth"):
            if key in out and not isinstance(out[key], ColumnParts):
                self._refuse(f"'{key}' is a {type(out[key]).__name__}, not drapes_hep.events.accumulate.ColumnParts")
        for key in ("hists", "cutflow"):
            if not isinstance(out[key], Mapping):
                self._refuse(f"'{key}' is a {type(out[key]).__name__}, not a dict")

    def _check_parts(self, hists: Mapping[str, Any], cutflow: Mapping[str, Any], datasets: set[str]) -> None:
        for name, histogram in hists.items():
            if not isinstance(name, str) or not isinstance(histogram, boost_histogram.Histogram):
                self._refuse(f"hists[{name!r}] is a {type(histogram).__name__}, not a hist.Hist under a name")
            view = np.asarray(histogram.view(flow=True))
            for part in view.dtype.names or (None,):
                if not np.isfinite(np.asarray(view if part is None else view[part], dtype=np.float64)).all():
                    self._refuse(f"hists[{name!r}] holds NaN or infinity: was it filled with such weights?")
            self._check_json(histogram, f"hists[{name!r}]")
        form = "expected {dataset: {step: {'events': N, 'weight': W}}}"
        if set(cutflow) != datasets:
            self._refuse(f"'cutflow' has the keys {sorted(map(str, cutflow))}, not {sorted(datasets)}; {form}")
        for dataset, flow in cutflow.items():
            if not isinstance(flow, Mapping):
                self._refuse(f"cutflow[{dataset!r}] is a {type(flow).__name__}; {form}")
            for step, numbers in flow.items():
                fits = isinstance(step, str) and isinstance(numbers, Mapping) and set(numbers) == {"events", "weight"}
                if not fits or not all(_is_number(value) for value in numbers.values()):
                    self._refuse(f"cutflow[{dataset!r}][{step!r}] is {str(numbers)[:60]}; {form}, finite numbers")

    def _check_flow(self, flow: Mapping[str, Mapping[str, float]], read: int, selected: int) -> None:
        """Check the events of the known steps against those of the chunk, the skim, and each other."""
        steps = [(step, numbers["events"]) for step, numbers in flow.items() if step in _FLOW]
        for (before, more), (step, count) in pairwise(steps):
            if count > more:
                self._refuse(f"the cut flow's step '{step}' has {count} events, more than '{before}' ({more})")
        if "read" in flow and flow["read"]["events"] != read:
            self._refuse(f"the cut flow's step 'read' has {flow['read']['events']} events, but the chunk has {read};"
                         " cut events in a step, never before process")  # fmt: skip
        if "defined" in flow and flow["defined"]["events"] != selected:
            self._refuse(f"the cut flow's step 'defined' has {flow['defined']['events']} events, but the skim has"
                         f" {selected}; change both or neither")  # fmt: skip

    def _check_ids(self, columns: Mapping[str, Column], ids: npt.NDArray[np.int64]) -> None:
        """Check the identities of selected events against those of the chunk."""
        mine = np.asarray(columns.get("event_id"))
        if mine.ndim != 1 or (len(mine) and mine.dtype.kind not in "iu"):
            self._refuse("the skim's 'event_id' is not a column of integers; take it from events.event_id")
        strange = ~np.isin(mine, ids)
        if strange.any():
            self._refuse(
                f"{np.count_nonzero(strange)} selected events are not in the chunk, e.g. event_id"
                f" {mine[first_of(strange)]}; take event_id from events.event_id"
            )
        ordered = np.sort(mine)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            self._refuse(f"{len(twice)} events are selected twice, e.g. event_id {twice[0]}")

    def _check_columns(self, columns: Mapping[str, Column], event: Callable[[int, npt.NDArray[Any]], str]) -> None:
        """Check the columns of selected events, of one chunk or of all."""
        required = ("event_id", "weight", "mjj", *self._required.features)
        absent = [name for name in (*required, *self._required.kept_columns) if name not in columns]
        if absent:
            self._refuse(
                f"the skim has no column '{absent[0]}'; it needs {', '.join((*required, *self._required.kept_columns))}"
            )
        if "label" in columns:
            self._refuse("the skim has a column 'label': labels go into 'truth'")
        ids = np.asarray(columns["event_id"])

        def flag(name: str, wrong: BoolArray, kind: str) -> None:
            if wrong.any():
                count, first = np.count_nonzero(wrong), event(first_of(wrong), ids)
                self._refuse(f"the skim's '{name}' holds {kind} in {count} events, first {first}")

        for name, values in columns.items():
            self._check_column(str(name), values, len(ids))
            if name in required[1:]:
                array = np.asarray(values)
                if len(array) and array.dtype.kind not in "iuf":
                    self._refuse(f"the skim's '{name}' holds {array.dtype}, not numbers")
                flag(name, ~np.isfinite(array.astype(np.float64)), "NaN or infinity")
            if name in self._required.bounds:
                low, high = self._required.bounds[name]
                outside = (np.asarray(values) < low) | (np.asarray(values) > high)
                flag(name, outside, f"values outside its bounds ({low:g} to {high:g})")
        mjj, (low, high) = np.asarray(columns["mjj"], dtype=np.float64), self._required.mass_range
        flag("mjj", (mjj < low) | (mjj >= high), f"values outside mass.range ({low:g} to {high:g} GeV)")
        if "jets" in columns:
            self._check_jets(columns["jets"], mjj, flag)

    def _check_column(self, name: str, values: Column, length: int) -> None:
        if not isinstance(values, np.ndarray | ak.Array):
            self._refuse(f"the skim's '{name}' is a {type(values).__name__}, not an array")
        if len(values) != length:
            self._refuse(f"the skim's '{name}' has {len(values)} rows for {length} events")
        if isinstance(values, np.ndarray):
            if values.ndim != 1 or values.dtype.kind not in "biufU" or isinstance(values, np.ma.MaskedArray):
                self._refuse(f"the skim's '{name}' is not a plain column (shape {values.shape}, {values.dtype})")
        elif length and any(word in str(values.type) for word in ("?", "option[", "union[")):
            self._refuse(f"the skim's '{name}' has missing values or mixed types ({values.type})")

    def _check_jets(self, jets: Column, mjj: npt.NDArray[np.float64], flag: Callable[..., None]) -> None:
        if not len(mjj):
            return
        if not isinstance(jets, ak.Array) or jets.ndim != 2 or not set(JET_FIELDS) <= set(jets.fields):
            self._refuse(f"the skim's 'jets' must be lists of jets with {', '.join(JET_FIELDS)}")
        flag("jets", ak.to_numpy(ak.num(jets)) != 2, "a number of jets other than two")

        def refuse(problem: str, remedy: str, bad: BoolArray | None = None) -> NoReturn:
            flag("jets", np.ones(len(mjj), dtype=bool) if bad is None else bad, problem.removeprefix("returned "))
            raise AssertionError(remedy)

        flat_jets(jets, refuse)
        theirs = invariant_mass(jets)
        flag("mjj", np.abs(theirs - mjj) > _MASS_TOLERANCE * mjj, "a mass different from that of the two jets")

    def _check_extras(self, out: Mapping[str, Any]) -> None:
        """Check that additional output of the processor can be sent, merged and written."""
        for key, value in out.items():
            if key in _KNOWN:
                continue
            if value is None or isinstance(value, str | bytes):
                self._refuse(f"'{key}' is a {type(value).__name__}, which cannot be merged: put it into a set")
            try:
                pickle.dumps(value)
                accumulate([{key: value}, {key: value}])
            except Exception as error:  # whatever a type makes of it
                self._refuse(f"'{key}' ({type(value).__name__}) cannot be sent and merged ({reason_of(error)})")
            self._check_json(value, f"'{key}'")

    def _check_json(self, value: Any, where: str) -> None:
        try:
            json_form(value, where)
        except DrapesError as error:
            self._refuse(str(error))


def _sorted_ids(skim: ColumnParts) -> npt.NDArray[Any]:
    """Return the identities of all selected events in rising order, without joining the other columns."""
    return np.sort(np.concatenate([np.asarray(columns["event_id"]) for columns in skim.parts.values()]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, complex) and bool(np.isfinite(value))


def accumulators(out: Mapping[str, Any]) -> dict[str, Any]:
    """Return the additional accumulators of a processor in JSON form.

    Parameters
    ----------
    out : mapping
        The merged output of a processor.

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
        One has no JSON form.
    """
    return {key: json_form(value, f"'{key}'") for key, value in out.items() if key not in _KNOWN}


def json_form(value: Any, where: str) -> Any:
    """Return a value as JSON can hold it.

    Parameters
    ----------
    value : object
        Numbers, text, mappings, sets (become sorted lists), sequences, arrays, histograms, coffea's accumulators.
    where : str
        What to call it.

    Returns
    -------
    object

    Raises
    ------
    ConfigError
        It has no such form.
    """
    value = getattr(value, "value", value) if isinstance(value, processor.AccumulatorABC) else value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}, which JSON cannot represent")
        return value
    if isinstance(value, boost_histogram.Histogram):
        return _histogram(value, where)
    if isinstance(value, ColumnParts):
        value = value.columns()
    if isinstance(value, Mapping):
        keys = [_key(key, where) for key in value]
        if len(set(keys)) != len(keys):
            raise ConfigError(f"{where} has keys that are the same in JSON")
        return {
            name: json_form(item, f"{where}[{key!r}]") for name, (key, item) in zip(keys, value.items(), strict=True)
        }
    if isinstance(value, Set):
        forms = [json_form(item, where) for item in value]
        # numbers by their value, whatever else by its text: the order of a set is not part of it
        return sorted(
            forms, key=lambda form: (0, form, "") if isinstance(form, int | float) else (1, 0, json.dumps(form))
        )
    if isinstance(value, ak.Array):
        return json_form(ak.to_list(value), where)
    if isinstance(value, np.ndarray):
        return json_form(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [json_form(item, where) for item in value]
    raise ConfigError(f"{where} holds a {type(value).__name__}, which cannot be written as JSON")


def _key(key: Any, where: str) -> str:
    if isinstance(key, tuple):
        return ":".join(_key(part, where) for part in key)
    if isinstance(key, str | int | float | np.number):
        return str(key)
    raise ConfigError(f"{where} has the key {key!r}, which cannot be written as JSON")


def _histogram(value: Any, where: str) -> Any:
    try:
        return json.loads(json.dumps(value, default=uhi.io.json.default))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{where} is a histogram that cannot be written as JSON ({reason_of(error)})") from error
