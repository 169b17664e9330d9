"""Skims and truth sidecars: parquet files whose bytes depend on their content alone.

A skim holds the selected events in the schema's spelling, jets as a ragged list of records, and never a truth label:
labels are in a sidecar keyed by event id. Files are written next to their place and renamed, so that a reader never
sees an incomplete file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from drapes_hep.errors import InputError, counted
from drapes_hep.events.formats.arrow import column_of, is_plain, metadata_of, open_parquet, to_arrow, write_parquet
from drapes_hep.events.formats.columns import Columns, missing_columns
from drapes_hep.events.types import Column

__all__ = [
    "SKIM_VERSION",
    "TRUTH_COLUMNS",
    "Skim",
    "Truth",
    "check_version",
    "read_skim",
    "read_truth",
    "skim_metadata",
    "write_skim",
    "write_truth",
]

SKIM_VERSION = 1
"""Version of the skim's columns; a reader refuses newer ones."""

TRUTH_COLUMNS = {"event_id", "label"}
"""Of a truth sidecar."""


@dataclass(frozen=True)
class Skim:
    """A skim in memory.

    Parameters
    ----------
    columns : mapping
        ``event_id``, ``weight``, ``mjj``, the features (n,) and ragged ``jets``.
    metadata : mapping
        The metadata: ``schema_version``, input hashes and so on.
    """

    columns: Columns
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["event_id"])

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]


def write_skim(path: str | Path, columns: Columns, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a skim, atomically; the same content gives the same bytes.

    Parameters
    ----------
    path : str or Path
        The file.
    columns : mapping of str to array
        As :attr:`Skim.columns`; a truth label is refused.
    metadata : mapping, optional
        JSON values kept in the file, e.g. ``{"inputs": {"a.root": "sha256..."}}``.

    Raises
    ------
    DrapesError
        The disk is full or the folder cannot be written; nothing is left behind.
    """
    if "label" in columns:
        raise ValueError("a skim must not contain truth labels: write them with write_truth")
    write_parquet(path, columns, {**(metadata or {}), "schema_version": SKIM_VERSION, "kind": "skim"})


def read_skim(
    path: str | Path, columns: tuple[str, ...] | None = None, rows: npt.NDArray[np.int64] | None = None
) -> Skim:
    """Read a skim, exactly as it was written.

    Parameters
    ----------
    path : str or Path
        The file.
    columns : tuple of str, optional
        Only these.
    rows : array of int, optional
        Only these events, by their places, which rise; beside them, one row group is held at a time.

    Returns
    -------
    Skim

    Raises
    ------
    InputError
        Not a skim, of a newer version, or without a column that was asked for.
    """
    with open_parquet(path) as file:
        metadata = check_version(path, file)
        names = list(file.schema_arrow.names)
        absent = missing_columns(columns or ("event_id",), names)
        if absent:
            raise InputError(path, f"lacks {absent}", "run the skim again with this feature")
        selected = list(columns) if columns else names
        table = file.read(columns=selected) if rows is None else _rows(file, selected, rows)
        return Skim({name: column_of(path, name, table[name]) for name in selected}, metadata)


def skim_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata of a skim; raises InputError as :func:`read_skim`."""
    with open_parquet(path) as file:
        return check_version(path, file)


def _rows(file: pq.ParquetFile, columns: list[str], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Read some rows of each row group."""
    begin, parts = 0, [pa.Table.from_batches([], file.schema_arrow).select(columns)]
    for group in range(file.metadata.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        in_group = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, end)] - begin
        if len(in_group):
            parts.append(file.read_row_group(group, columns=columns).take(to_arrow(in_group)))
        begin = end
    return pa.concat_tables(parts)


def check_version(path: str | Path, file: pq.ParquetFile) -> dict[str, Any]:
    """Return the metadata of a skim; raises InputError if it is of a newer version."""
    metadata = metadata_of(path, file)
    version = metadata.get("schema_version", SKIM_VERSION)
    if not isinstance(version, int) or version > SKIM_VERSION:
        raise InputError(
            path, f"is a skim of version {version}, this release reads {SKIM_VERSION}", "upgrade drapes-hep"
        )
    return metadata


@dataclass(frozen=True)
class Truth:
    """Truth labels by event id.

    Parameters
    ----------
    path : str
        Where they come from.
    event_id : array of int64, shape (n,)
        Ascending.
    label : array of int64, shape (n,)
        1 for signal, 0 for background.
    """

    path: str
    event_id: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.event_id)

    def truth_for(self, event_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Look the labels of events up.

        Parameters
        ----------
        event_ids : array_like of int, shape (m,)
            In any order, repeats allowed.

        Returns
        -------
        array of int64, shape (m,)

        Raises
        ------
        InputError
            An event without a label.
        """
        ids = np.asarray(event_ids, dtype=np.int64)
        place = np.searchsorted(self.event_id, ids)
        labelled = np.zeros(len(ids), dtype=bool)
        inside = place < len(self.event_id)
        labelled[inside] = self.event_id[place[inside]] == ids[inside]
        if not labelled.all():
            raise InputError(
                self.path,
                f"has no label for {np.count_nonzero(~labelled)} of {counted(len(ids), 'event')},"
                f" e.g. event_id {ids[~labelled][0]}",
                "use the sidecar of these events",
            )
        return self.label[place]


def write_truth(path: str | Path, event_id: npt.ArrayLike, label: npt.ArrayLike) -> None:
    """Write a truth sidecar, sorted by event id so that its order has no information.

    Parameters
    ----------
    path : str or Path
        The file.
    event_id : array_like of int, shape (n,)
        Unique.
    label : array_like of int, shape (n,)
        0 or 1.
    """
    ids, labels = np.asarray(event_id, dtype=np.int64), np.asarray(label, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    write_parquet(
        path, {"event_id": ids[order], "label": labels[order].astype(np.int8)}, {"kind": "truth", "schema_version": 1}
    )


def read_truth(path: str | Path) -> Truth:
    """Read a truth sidecar.

    Parameters
    ----------
    path : str or Path
        Parquet with the columns ``event_id`` and ``label``.

    Returns
    -------
    Truth

    Raises
    ------
    InputError
        Missing columns, repeated ids, labels other than 0 and 1.
    """
    with open_parquet(path) as file:
        absent = missing_columns(("event_id", "label"), file.schema_arrow.names)
        if absent:
            raise InputError(path, f"is not a truth sidecar: it lacks {absent}", "write event_id and label")
        for item in (file.schema_arrow.field(name) for name in ("event_id", "label")):
            if not is_plain(item.type):
                raise InputError(path, f"column '{item.name}' is {item.type}, not one number per event", "convert it")
        table = file.read(columns=["event_id", "label"])
        raw_ids, raw_labels = (column_of(path, name, table[name]) for name in ("event_id", "label"))
    if not np.isin(raw_labels, (0, 1)).all():
        raise InputError(path, "column 'label' holds values other than 0 and 1", "label signal 1 and background 0")
    if np.asarray(raw_ids).dtype.kind not in "iu":
        raise InputError(path, "column 'event_id' does not hold integers", "write it as int64")
    # the largest of uint64 would be a negative int64
    if not ((raw_ids >= 0) & (raw_ids <= np.iinfo(np.int64).max)).all():
        raise InputError(
            path, "column 'event_id' holds an integer outside 0 to 2**63 - 1", "write the event ids of the events"
        )
    ids, labels = raw_ids.astype(np.int64), raw_labels.astype(np.int64)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    repeats = int(np.count_nonzero(ids[1:] == ids[:-1]))
    if repeats:
        raise InputError(path, f"holds {repeats} repeated event ids", "write one label per event")
    return Truth(str(path), ids, labels[order])
