"""What processors return: columns that merge in one order, and histograms that cannot lose entries unseen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import awkward as ak
import hist
import numpy as np

from drapes_hep.errors import ConfigError, LostEventsError
from drapes_hep.events.features import check_features
from drapes_hep.events.types import Column

__all__ = ["ColumnParts", "chunk_key", "feature_axis", "fill_checked"]

Key = tuple[str, int, str, int]


def chunk_key(metadata: Mapping[str, Any]) -> Key:
    """Return the key that orders the results of chunks: dataset, file, first row.

    Parameters
    ----------
    metadata : mapping
        ``events.metadata``.

    Returns
    -------
    tuple
    """
    return (
        str(metadata.get("dataset", "")),
        int(metadata.get("file_id", 0)),
        str(metadata.get("filename", "")),
        int(metadata.get("entrystart", 0)),
    )


class ColumnParts:
    """Columns of several chunks, kept apart by chunk until they are asked for.

    Adding two merges their parts, whatever the order in which workers finish; :meth:`columns` puts them in the order
    of their keys. Arrays are never copied before that, so the memory is that of the selected events, and twice that
    while they are joined.

    Parameters
    ----------
    parts : mapping of key to columns
        Each chunk's columns; all chunks have the same.
    """

    def __init__(self, parts: Mapping[Key, Mapping[str, Any]] | None = None) -> None:
        self.parts = dict(parts or {})
        self._joined: set[Key] = set()

    def __add__(self, other: ColumnParts) -> ColumnParts:
        merged = self.__deepcopy__({})
        merged += other
        return merged

    def __iadd__(self, other: ColumnParts) -> ColumnParts:
        twice = self.parts.keys() & other.parts.keys()
        if twice:
            raise LostEventsError(f"a chunk was counted twice: {min(twice)}")
        self.parts.update(other.parts)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ColumnParts:
        # coffea's accumulate deep-copies what it meets for the first time; the arrays are never changed
        copy = ColumnParts(self.parts)
        copy._joined = set(self._joined)
        return copy

    def __len__(self) -> int:
        return sum(len(next(iter(columns.values()))) for columns in self.parts.values() if columns)

    def join(self) -> None:
        """Join the small parts into one, in the order of their keys; for parts that come in that order.

        A part of many chunks stays as it is: joined again and again, it would be copied each time.
        """
        small = sorted(key for key in self.parts if key not in self._joined)
        if len(small) > 1:
            columns = ColumnParts({key: self.parts.pop(key) for key in small}).columns()
            self.parts[small[0]] = columns
            self._joined.add(small[0])

    def columns(self) -> dict[str, Any]:
        """Join the parts in the order of their keys.

        Returns
        -------
        dict of str to array
            numpy for flat columns, awkward for ragged ones; empty without parts.

        Raises
        ------
        ConfigError
            The columns of two parts differ, in their names or in their kind.
        """
        keys = sorted(self.parts)
        if not keys:
            return {}
        first = self.parts[keys[0]]
        for key in keys:
            if self.parts[key].keys() != first.keys():
                odd = min(map(str, self.parts[key].keys() ^ first.keys()))
                raise ConfigError(f"column '{odd}' is not in all chunks: {_chunk(keys[0])} and {_chunk(key)} differ")
        return {name: _joined(name, [(key, self.parts[key][name]) for key in keys]) for name in first}


def _chunk(key: Key) -> str:
    return f"that from row {key[3]} of {key[2] or key[0]}"


def _joined(name: str, parts: Sequence[tuple[Key, Column]]) -> Column:
    # a chunk without a selected event may have columns of any type
    parts = [part for part in parts if len(part[1])] or parts[:1]
    kinds = [_kind(values) for _, values in parts]
    for (key, _), kind in zip(parts, kinds, strict=True):
        if kind != kinds[0]:
            raise ConfigError(
                f"column '{name}' is {kinds[0]} in one chunk ({_chunk(parts[0][0])}) and {kind} in another"
                f" ({_chunk(key)})"
            )
    arrays = [values for _, values in parts]
    return ak.concatenate(arrays) if isinstance(arrays[0], ak.Array) else np.concatenate(arrays)


def _kind(values: Column) -> str:
    """Return what columns of two chunks must have in common: integers and floats would be joined as floats."""
    if isinstance(values, ak.Array):
        return f"records ({', '.join(sorted(values.fields))})" if values.fields else f"{values.ndim}-d lists"
    return {"b": "bool", "i": "int", "u": "int", "f": "float"}.get(values.dtype.kind, str(values.dtype.kind))


def feature_axis(name: str, define: Mapping[str, Mapping[str, Any]] | None = None, keep: Sequence[str] = ()) -> Any:
    """Return the axis of a feature's histograms, or of ``mjj``.

    Parameters
    ----------
    name : str
    define : mapping, optional
    keep : sequence of str, optional
        As :func:`drapes_hep.events.features.check_features`.

    Raises
    ------
    ConfigError
        If there is no such feature.
    """
    if name == "mjj":
        return hist.axis.Regular(160, 0, 8000, name="mjj", label=r"$m_{JJ}$ [GeV]")
    (feature,) = check_features([name], define, keep)
    return hist.axis.Regular(feature.bins, *feature.range, name=name, label=feature.axis_label)


def fill_checked(histogram: Any, *, weight: Column = None, **values: Column) -> None:
    """Fill a histogram and make sure that every entry arrived, flow bins included.

    boost-histogram 1.8.1 can drop all entries of a call when an axis without flow bins stands before a scalar-filled
    category axis (boost-histogram issue 960): put categories first, keep flow bins, and fill through here.

    Parameters
    ----------
    histogram : hist.Hist
        Is changed.
    weight : array, shape (n,), optional
        One each without.
    **values : array, shape (n,), or str
        By axis.

    Raises
    ------
    LostEventsError
        Some entries are missing.
    """
    sizes = [np.size(value) for value in values.values() if not isinstance(value, str)]
    entries = max(sizes) if sizes else 1
    weights = np.ones(entries) if weight is None else np.asarray(weight, dtype=np.float64)
    if entries == 0:
        return
    before = _total(histogram)
    histogram.fill(**values, weight=weight) if weight is not None else histogram.fill(**values)
    after, expected = _total(histogram), float(weights.sum())
    # sums of weights round; whole numbers do not
    tolerance = 1e-9 * (float(np.abs(weights).sum()) + abs(before))
    # written so that NaN fails, too
    if not abs(after - before - expected) <= tolerance:
        raise LostEventsError(f"a histogram took {after - before:g} of {expected:g} (sum of weights)")


def _total(histogram: Any) -> float:
    total = histogram.sum(flow=True)
    return float(getattr(total, "value", total))
