"""Skims and truth sidecars: parquet files whose bytes depend on their content alone.

A skim holds the selected events in the schema's spelling, jets as a ragged list of records, and never a truth label:
labels lie in a sidecar keyed by event id. Files are written beside their place and renamed, so that a reader never
meets half a file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from drapes_hep.errors import InputError, counted
from drapes_hep.events.checks import Columns, missing_columns
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, file_key
from drapes_hep.events.delphes import delphes_layouts
from drapes_hep.events.fields import Field, check_field, spell, zip_jets
from drapes_hep.events.opened import shared
from drapes_hep.events.readers import check_kept, columns_of, lacks, match_layout, plain_column
from drapes_hep.events.schema import offsets_of
from drapes_hep.events.types import Column
from drapes_hep.files import atomic_path, parse_json
from drapes_hep.remote import is_url, one_line, open_url

__all__ = [
    "SKIM_VERSION",
    "ParquetReader",
    "Skim",
    "Truth",
    "read_skim",
    "read_truth",
    "skim_metadata",
    "write_skim",
    "write_truth",
]

SKIM_VERSION = 1
"""Version of the skim's columns; a reader refuses newer ones."""

_KEY = b"drapes_hep"
_ROW_GROUP, _GROUP_BYTES = 1 << 16, 16 << 20
_LAYOUTS = (
    *("skim", "features", "pfnano", "pfnano_old", "nanoaod_pf", "nanoaod"),
    *(one.name for one in delphes_layouts()),
)
_TRUTH = {"event_id", "label"}


def _arrow(values: Column) -> pa.Array:
    """One column: flat, a list of records (jets), or records with such lists inside (jets with constituents)."""
    if isinstance(values, ak.Array) and ak.fields(values) and values.ndim == 1:
        parts = {name: _arrow(values[name]) for name in values.fields}
        return pa.StructArray.from_arrays(
            list(parts.values()), fields=[pa.field(name, part.type, nullable=False) for name, part in parts.items()]
        )
    if isinstance(values, ak.Array) and values.ndim > 1:
        packed = ak.to_packed(ak.without_parameters(values))
        offsets = offsets_of(ak.to_numpy(ak.num(packed)))
        content = _arrow(ak.flatten(packed))
        kind = pa.large_list(pa.field("element", content.type, nullable=False))
        return pa.LargeListArray.from_arrays(pa.array(offsets), content, type=kind)
    return pa.array(np.ascontiguousarray(values))


def _write(path: str | Path, columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    arrays = {name: _arrow(values) for name, values in columns.items()}
    schema = pa.schema(
        [pa.field(name, array.type, nullable=False) for name, array in arrays.items()],
        metadata={_KEY: json.dumps(metadata, sort_keys=True).encode()},
    )
    table = pa.Table.from_arrays(list(arrays.values()), schema=schema)
    # a reader decodes whole row groups: events with constituents are large, and go into smaller ones
    rows = max(1, min(_ROW_GROUP, _GROUP_BYTES * len(table) // max(table.nbytes, 1)))
    with atomic_path(path) as temporary:
        # every choice is stated: the bytes must not follow a library's changing defaults
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=9,
            row_group_size=rows,
            version="2.6",
            data_page_version="1.0",
            use_dictionary=False,
            write_statistics=True,
            write_page_checksum=True,
        )


@contextmanager
def _open(path: str | Path) -> Iterator[pq.ParquetFile]:
    try:
        with (
            open_url(str(path)) if is_url(path) else nullcontext(path) as source,
            # a flipped bit in a page is another value, unless the checksum is compared that its writer stored
            pq.ParquetFile(source, page_checksum_verification=True) as file,
        ):
            yield file
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(path, "no such file", "check the path") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        told = one_line(str(path), error)
        if told is not None:
            raise told from error
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            path, f"cannot be read as Parquet: truncated or corrupt ({reason})", "make it again"
        ) from error


_REMOVE = "write the file without this entry"


def _metadata(path: str | Path, file: pq.ParquetFile) -> dict[str, Any]:
    raw = (file.schema_arrow.metadata or {}).get(_KEY)
    try:
        loaded = parse_json(raw) if raw else {}
    except ValueError as error:
        raise InputError(path, f"its metadata '{_KEY.decode()}' are no JSON ({error})", _REMOVE) from error
    if not isinstance(loaded, dict):
        raise InputError(path, f"its metadata '{_KEY.decode()}' are no record of names and values", _REMOVE)
    return loaded


def _column(path: str | Path, name: str, column: Column) -> Column:
    """One column as numpy, or as awkward records where it is a list; missing values are an error."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # older pyarrow keeps one chunk of zero or several
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    if array.null_count:
        raise InputError(path, f"column '{name}' has {array.null_count} missing values", "fill or drop them")
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _column(path, name, array.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):  # awkward's own, by default
        return _column(path, name, array.storage)
    if pa.types.is_fixed_size_list(kind):
        content = _column(path, name, array.flatten())
        inner = content.layout if isinstance(content, ak.Array) else ak.contents.NumpyArray(content)
        regular = ak.Array(ak.contents.RegularArray(inner, kind.list_size, zeros_length=len(array)))
        return regular if _is_number(kind.value_type) else ak.from_regular(regular)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        array = array.cast(pa.large_list(kind.value_field))
        kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = np.asarray(array.offsets).astype(np.int64)
        content = _column(path, name, array.values.slice(offsets[0], offsets[-1] - offsets[0]))
        inner = content.layout if isinstance(content, ak.Array) else ak.contents.NumpyArray(content)
        return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets - offsets[0]), inner))
    if pa.types.is_struct(kind):
        # flatten, unlike field, heeds the struct's own offset
        parts = dict(zip((item.name for item in kind), array.flatten(), strict=True))
        return ak.zip({key: _column(path, f"{name}.{key}", part) for key, part in parts.items()}, depth_limit=1)
    if pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif not _is_number(kind):
        raise InputError(path, f"column '{name}' holds {kind}, not numbers", "convert it")
    return array.to_numpy(zero_copy_only=False)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    records = pa.types.is_fixed_size_list(kind) and not _is_number(kind.value_type)
    return records or any(check(kind) for check in checks)


def _numbers_of(kind: pa.DataType, path: tuple[str, ...], lists: int) -> Iterator[Field]:
    """Yield the numbers of a column, however deep in lists and records."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    if pa.types.is_struct(kind):
        for item in kind:
            yield from _numbers_of(item.type, (*path, item.name), lists)
    elif _is_list(kind):
        yield from _numbers_of(kind.value_type, path, lists + 1)
    elif pa.types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        # of one number a list, an event's own numbers; inside of a list, those of an object
        yield Field(path, lists or 1, str(kind), path, kind.list_size if lists else 0)
    else:
        number = _is_number(kind) or pa.types.is_decimal(kind)
        yield Field(path, lists if number else None, str(kind), path)


def _spelled(path: str, schema: pa.Schema, keep: tuple[str, ...] = ()) -> dict[str, Field]:
    """Return the columns that a table spells; ``jets`` of a skim as it stands, where it is a list of records."""
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise InputError(path, f"has several columns '{twice[0]}'", "keep one of them")
    fields = [field for item in schema for field in _numbers_of(item.type, (item.name,), 0)]
    out = spell(path, fields, _LAYOUTS, keep)
    if "jets" in schema.names and _is_list(schema.field("jets").type):
        out["jets"] = Field(("jets",), 1, str(schema.field("jets").type), ("jets",))
    return out


_LIST_NAMES = {"list", "element", "item", "array", "bag", "array_element"}
"""What writers of Parquet call a list and what it holds."""


def _leaves(file: pq.ParquetFile, wanted: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the file's own names of what shall be read; whole columns where they cannot be told apart."""
    stored: dict[tuple[str, ...], str] = {}
    for i in range(file.metadata.num_columns):
        path = file.metadata.schema.column(i).path
        stored.setdefault(tuple(part for part in path.split(".") if part not in _LIST_NAMES), path)
    return list(dict.fromkeys(stored.get(path, path[0]) if len(path) > 1 else path[0] for path in wanted))


def _nested(path: str, name: str, table: pa.Table, field: Field) -> Column:
    """One column of a table by the path to its numbers."""
    values = _column(path, name, table[field.handle[0]])
    for part in field.handle[1:]:
        values = values[part]
    return plain_column(values, path, name) if isinstance(values, ak.Array) else values


@dataclass(frozen=True)
class Skim:
    """A skim in memory.

    Parameters
    ----------
    columns : mapping
        ``event_id``, ``weight``, ``mjj``, the features (n,) and ragged ``jets``.
    metadata : mapping
        What was written beside them: ``schema_version``, input hashes and so on.
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
        raise ValueError("a skim never carries truth labels: write them with write_truth")
    _write(path, columns, {**(metadata or {}), "schema_version": SKIM_VERSION, "kind": "skim"})


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
    with _open(path) as file:
        metadata = _check_version(path, file)
        names = list(file.schema_arrow.names)
        absent = missing_columns(columns or ("event_id",), names)
        if absent:
            raise InputError(path, f"lacks {absent}", "make the skim again with this feature")
        wanted = list(columns) if columns else names
        table = file.read(columns=wanted) if rows is None else _rows(file, wanted, rows)
        return Skim({name: _column(path, name, table[name]) for name in wanted}, metadata)


def skim_metadata(path: str | Path) -> dict[str, Any]:
    """Return what was written with a skim beside its columns; raises InputError as :func:`read_skim`."""
    with _open(path) as file:
        return _check_version(path, file)


def _rows(file: pq.ParquetFile, columns: list[str], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Read some rows of each row group."""
    begin, parts = 0, [file.schema_arrow.empty_table().select(columns)]
    for group in range(file.metadata.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        wanted = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, end)] - begin
        if len(wanted):
            parts.append(file.read_row_group(group, columns=columns).take(wanted))
        begin = end
    return pa.concat_tables(parts)


def _check_version(path: str | Path, file: pq.ParquetFile) -> dict[str, Any]:
    metadata = _metadata(path, file)
    version = metadata.get("schema_version", SKIM_VERSION)
    if not isinstance(version, int) or version > SKIM_VERSION:
        raise InputError(
            path, f"is a skim of version {version}, this release reads {SKIM_VERSION}", "upgrade drapes-hep"
        )
    return metadata


class ParquetReader:
    """Reads skims, templates, and feature tables in Parquet; see :class:`~drapes_hep.events.readers.EventReader`."""

    container = "parquet"

    def sniff(self, head: bytes) -> bool:
        """Parquet's signature."""
        return head.startswith(b"PAR1")

    def scan(self, path: str, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
        """Read the schema and the number of rows."""
        if object_path:
            raise InputError(path, f"a Parquet file has no object '{object_path}'", "name the file alone")
        with _open(path) as file:
            _check_version(path, file)
            names = list(file.schema_arrow.names)
            spelled = _spelled(path, file.schema_arrow, reading.keep)
            layout = match_layout(spelled, _LAYOUTS, reading.layout)
            if layout is None:
                if set(names) == _TRUTH:
                    raise InputError(path, "is a truth sidecar, not events", "give it as data.truth")
                raise lacks(path, "the table", spelled, _LAYOUTS, reading.layout)
            entries = int(file.metadata.num_rows)
        columns = columns_of(layout, spelled, reading)
        for name in columns:
            check_field(path, name, spelled[name], layout)
        columns = (*columns, *check_kept(path, layout, spelled, reading))
        return FileInfo(path, self.container, layout, "", entries, file_key(path), "label" in columns, columns)

    def simulation(self, path: str) -> Mapping[str, Any]:
        """Part of the file's metadata."""
        with _open(path) as file:
            record = _metadata(path, file).get("simulation")
        return record if isinstance(record, dict) else {}

    def present(self, info: FileInfo) -> tuple[str, ...]:
        """Top-level columns."""
        with _open(info.path) as file:
            return tuple(file.schema_arrow.names)

    def columns(self, chunk: EventChunk) -> Columns:
        """Read the row groups that hold the chunk, and cut."""
        with shared(_open, chunk.path) as file:
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)])
            starts = ends - [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            groups = np.flatnonzero((ends > chunk.start) & (starts < chunk.stop))
            spelled = _spelled(chunk.path, file.schema_arrow, chunk.reading.keep)
            sources = {name: spelled[name] for name in chunk.columns}
            fields = [
                one
                for field in sources.values()
                for one in (field.handle.values() if isinstance(field.handle, dict) else [field])
            ]
            leaves = _leaves(file, [one.handle for one in fields])
            table = file.read_row_groups(groups.tolist(), columns=leaves)
            table = table.slice(chunk.start - int(starts[groups[0]]), len(chunk))
            out = {
                name: _nested(chunk.path, name, table, field)
                for name, field in sources.items()
                if isinstance(field.handle, tuple)
            }
            for name, field in sources.items():
                if not isinstance(field.handle, tuple):
                    parts = {part: _nested(chunk.path, part, table, one) for part, one in field.handle.items()}
                    out[name] = zip_jets(chunk.path, parts)
            return out


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
        found = np.zeros(len(ids), dtype=bool)
        inside = place < len(self.event_id)
        found[inside] = self.event_id[place[inside]] == ids[inside]
        if not found.all():
            raise InputError(
                self.path,
                f"has no label for {np.count_nonzero(~found)} of {counted(len(ids), 'event')},"
                f" e.g. event_id {ids[~found][0]}",
                "give the sidecar that belongs to these events",
            )
        return self.label[place]


def write_truth(path: str | Path, event_id: npt.ArrayLike, label: npt.ArrayLike) -> None:
    """Write a truth sidecar, sorted by event id so that its order says nothing.

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
    _write(
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
    with _open(path) as file:
        absent = missing_columns(("event_id", "label"), file.schema_arrow.names)
        if absent:
            raise InputError(path, f"is no truth sidecar: it lacks {absent}", "write event_id and label")
        for item in (file.schema_arrow.field(name) for name in ("event_id", "label")):
            if [(one.path, one.depth) for one in _numbers_of(item.type, (item.name,), 0)] != [((item.name,), 0)]:
                raise InputError(path, f"column '{item.name}' is {item.type}, not one number an event", "convert it")
        table = file.read(columns=["event_id", "label"])
        raw_ids, raw_labels = (_column(path, name, table[name]) for name in ("event_id", "label"))
    if not np.isin(raw_labels, (0, 1)).all():
        raise InputError(path, "column 'label' holds values other than 0 and 1", "label signal 1 and background 0")
    if np.asarray(raw_ids).dtype.kind not in "iu":
        raise InputError(path, "column 'event_id' does not hold integers", "write it as int64")
    # the largest of uint64 would be a negative int64
    if not ((raw_ids >= 0) & (raw_ids <= np.iinfo(np.int64).max)).all():
        raise InputError(path, "column 'event_id' holds an integer outside 0 to 2**63 - 1", "write the events' own")
    ids, labels = raw_ids.astype(np.int64), raw_labels.astype(np.int64)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    repeats = int(np.count_nonzero(ids[1:] == ids[:-1]))
    if repeats:
        raise InputError(path, f"holds {repeats} repeated event ids", "one label an event")
    return Truth(str(path), ids, labels[order])
