"""Events that are a table in memory: a dict of arrays, a DataFrame, an awkward or arrow table, a structured array.

Only flat columns of numbers are taken. What is wrong with a column is one line that names it; nothing is guessed.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drapes_hep.errors import InputError, counted, reason_of
from drapes_hep.events.features import Feature, check_features
from drapes_hep.events.formats.arrow import column_of
from drapes_hep.events.types import Column

__all__ = ["PLACE", "Table", "read_events"]

PLACE = "<table>"
"""What ``data.path`` of a configuration says where the events are a table: no file has this name."""

_WHERE = "events"


@dataclass(frozen=True, eq=False)
class Table:
    """Events in memory, checked.

    Attributes
    ----------
    columns : mapping of str to array, shape (n,)
        ``event_id`` (int64), ``mjj`` (float64, GeV), the features (float64, NaN where undefined) and, where the events
        are labelled, ``label`` (int64, 1 for signal).
    hash : str
        SHA-256 of the columns.
    """

    columns: Mapping[str, npt.NDArray[Any]]
    hash: str

    def __len__(self) -> int:
        return len(self.columns["mjj"])


def read_events(
    events: Any,
    features: Sequence[str],
    define: Mapping[str, Mapping[str, Any]] | None = None,
    keep: Sequence[str] = (),
) -> Table:
    """Read the columns of a search from a table in memory.

    Parameters
    ----------
    events : mapping, DataFrame, awkward.Array, pyarrow.Table or structured array
        Columns ``mjj`` (GeV), the features, and optionally ``event_id`` (the row number by default), ``label`` (0 or 1)
        and ``weight`` (1). Others are ignored.
    features : sequence of str
        Names of the features.
    define : mapping, optional
        Features that the configuration defines: one that is not a column is computed, where the table has all columns
        that its expression names.
    keep : sequence of str, optional
        As :func:`drapes_hep.events.features.check_features`.

    Returns
    -------
    Table

    Raises
    ------
    InputError
        A missing column, one that is not a flat column of numbers, columns of different lengths, m_JJ that is not
        finite, a weight that is not 1, a repeated or impossible identity, a value outside the bounds of a defined
        feature, or no row.
    """
    names, column = _columns(events)
    texts = {name: str(item["expression"]) for name, item in (define or {}).items() if item.get("expression")}
    used = {name: _rests_on(name, texts, names) for name in features}
    needed = tuple(dict.fromkeys(column for columns in used.values() for column in columns))
    _check_names(names, ("mjj", *needed), {name: columns for name, columns in used.items() if columns != (name,)})
    optional = [name for name in ("event_id", "label", "weight") if name in names]
    raw = {name: _flat(name, column(name)) for name in ("mjj", *needed, *optional)}
    size = _common_length(raw)
    columns: dict[str, npt.NDArray[Any]] = {"event_id": _identities(raw.get("event_id"), size)}
    columns["mjj"] = _floats("mjj", raw["mjj"])
    _refuse("mjj", raw["mjj"], ~np.isfinite(columns["mjj"]), "not finite", "drop such rows")
    numbers = {name: _floats(name, raw[name]) for name in needed}

    def value(name: str) -> npt.NDArray[np.float64]:
        if name in numbers:
            return numbers[name]
        # the parser takes a third of a second, and few searches define an expression
        from drapes_hep.events.expressions import evaluate

        return evaluate(texts[name], value, size)

    columns |= {name: value(name) for name in features}
    for feature in check_features(features, define, keep):
        if feature.name in (define or {}):
            _check_bounds(feature, columns[feature.name])
    if "weight" in raw:
        bad = _floats("weight", raw["weight"]) != 1.0
        _refuse("weight", raw["weight"], bad, "not 1", "the hunt needs unweighted events: use weights of 1")
    if "label" in raw:
        _refuse("label", raw["label"], ~np.isin(raw["label"], (0, 1)), "neither 0 nor 1", "label signal 1")
        columns["label"] = raw["label"].astype(np.int64)
    return Table(columns, _hash(columns))


def _common_length(raw: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the number of rows that all columns have; raises InputError where they differ, or there is none."""
    size = len(raw["mjj"])
    for name, values in raw.items():
        if len(values) != size:
            rows = counted(len(values), "row")
            raise InputError(_WHERE, f"column '{name}' has {rows}, 'mjj' has {size}", "give one value per event")
    if not size:
        raise InputError(_WHERE, "the table has no rows", "include at least the events of one window and its sidebands")
    return size


def _check_bounds(feature: Feature, values: npt.NDArray[np.float64]) -> None:
    """Refuse values outside the bounds of a feature that the configuration defines; raises InputError."""
    low, high = feature.domain
    outside = (values < low) | (values > high)
    _refuse(feature.name, values, outside, f"outside {low:g} to {high:g}", f"see define.{feature.name}.bounds")


def _hash(columns: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(columns.items()):
        digest.update(f"{name} {values.dtype.str} {len(values)} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _columns(events: Any) -> tuple[list[Any], Callable[[str], Column]]:
    """Return the names of a table's columns, and what reads one."""
    if isinstance(events, (pa.Table, pa.RecordBatch)):
        names = list(events.column_names)
        return names, lambda name: events.column(names.index(name))
    if isinstance(events, ak.Array) and events.ndim == 1 and events.fields:
        return list(events.fields), lambda name: events[name]
    if isinstance(events, np.ndarray) and events.dtype.names and events.ndim == 1:
        return list(events.dtype.names), lambda name: events[name]
    if isinstance(events, Mapping):
        return list(events), lambda name: events[name]
    # a DataFrame, of pandas or of what behaves like it; pandas itself is not a dependency
    if hasattr(events, "columns") and hasattr(events, "__getitem__") and hasattr(events, "shape"):
        return list(events.columns), lambda name: events[name]
    raise InputError(
        _WHERE,
        f"expected a dict of arrays, a DataFrame, an awkward record array, an arrow table or a structured array, got"
        f" {type(events).__name__}",
        "for files, use data.path in a configuration",
    )


def _rests_on(name: str, texts: Mapping[str, str], names: Sequence[Any]) -> tuple[str, ...]:
    """Return the columns that make a feature: its own, or those that its expression leads to."""
    if name in names or name not in texts:
        return (name,)
    from drapes_hep.events.expressions import variables

    return tuple(dict.fromkeys(leaf for other in variables(texts[name]) for leaf in _rests_on(other, texts, names)))


def _check_names(names: Sequence[Any], required: Sequence[str], defined: Mapping[str, Sequence[str]]) -> None:
    for name in required:
        if name not in names:
            have = ", ".join(map(str, names)) or "none"
            for_what = next(
                (f", which define.{feature} needs" for feature, columns in defined.items() if name in columns), ""
            )
            remedy = f"add it{' or the feature itself' if for_what else ''}, or change 'features'"
            if name == "mjj":
                close = difflib.get_close_matches(
                    "mjj",
                    [other for other in names if isinstance(other, str) and other not in required],
                    n=1,
                    cutoff=0.5,
                )
                remedy = "add it" if not close else f"rename '{close[0]}', if it is that"
                for_what = ": the invariant mass of the two jets in GeV"
            raise InputError(_WHERE, f"no column '{name}'{for_what} (columns: {have})", remedy)
    for name in (*required, "event_id", "label", "weight"):
        if names.count(name) > 1:
            raise InputError(_WHERE, f"column '{name}' occurs {names.count(name)} times", "keep one of them")


def _flat(name: str, values: Column) -> npt.NDArray[Any]:
    """Return a column as a flat numpy array of numbers."""
    if isinstance(values, (pa.ChunkedArray, pa.Array)):
        values = column_of(_WHERE, name, values)
    try:
        array = ak.to_numpy(values) if isinstance(values, ak.Array) else _numpy(values)
    except Exception as error:  # lists of different lengths, records, whatever another library's column refuses with
        problem = f"column '{name}' is nested or not an array ({reason_of(error)})"
        raise InputError(_WHERE, problem, "give one number per event") from error
    if array.ndim == 0:
        raise InputError(_WHERE, f"column '{name}' is one value, not one per event", "give an array")
    if array.ndim > 1 or array.dtype.names:
        raise InputError(_WHERE, f"column '{name}' is nested: its shape is {array.shape}", "give one value per event")
    if isinstance(array, np.ma.MaskedArray):
        missing = int(np.count_nonzero(np.ma.getmaskarray(array)))
        if missing:
            raise InputError(_WHERE, f"column '{name}' has {counted(missing, 'missing value')}", "fill or drop them")
        array = array.data
    if array.dtype.kind not in "biuf":
        kind = "text" if array.dtype.kind in "US" else f"values of type {array.dtype}"
        raise InputError(
            _WHERE, f"column '{name}' holds {kind}, not numbers", "convert it, and fill or drop missing values"
        )
    return array


def _numpy(values: Column) -> npt.NDArray[Any]:
    return values if isinstance(values, np.ndarray) else np.asarray(values)


def _floats(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if values.dtype.kind == "b":
        raise InputError(_WHERE, f"column '{name}' holds true and false, not numbers", "convert it")
    # a copy: the caller may change the array before the selection reads it
    return np.array(values, dtype=np.float64)


def _identities(values: npt.NDArray[Any] | None, size: int) -> npt.NDArray[np.int64]:
    if values is None:
        return np.arange(size, dtype=np.int64)
    if values.dtype.kind not in "iu":
        raise InputError(_WHERE, f"column 'event_id' holds {values.dtype}, not integers", "write it as int64")
    # the largest of uint64 would be a negative int64
    outside = (values < 0) | (values > np.iinfo(np.int64).max)
    _refuse("event_id", values, outside, "outside 0 to 2**63 - 1", "number the events within it")
    ids = values.astype(np.int64)
    order = np.argsort(ids, kind="stable")
    again = np.zeros(size, dtype=bool)
    again[order[1:]] = ids[order[1:]] == ids[order[:-1]]
    _refuse("event_id", ids, again, "repeated", "give each event its own, or remove the column")
    return ids


def _refuse(name: str, values: npt.NDArray[Any], bad: npt.NDArray[np.bool_], problem: str, remedy: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        count = counted(int(bad.sum()), "value is", "values are")
        raise InputError(_WHERE, f"column '{name}': {count} {problem}, the first in row {row} ({values[row]})", remedy)
