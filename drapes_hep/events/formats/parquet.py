"""Tables of events in Parquet, in any of the spellings that files use; the reader of skims and templates too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, file_key
from drapes_hep.events.formats.arrow import column_of, is_list, is_number, metadata_of, open_parquet, storage_of
from drapes_hep.events.formats.base import check_kept, columns_of, layout_error, match_layout, plain_column
from drapes_hep.events.formats.columns import Columns
from drapes_hep.events.formats.delphes import delphes_layouts
from drapes_hep.events.formats.fields import Field, check_field, spell, zip_jets
from drapes_hep.events.formats.open_files import shared
from drapes_hep.events.skims import TRUTH_COLUMNS, check_version
from drapes_hep.events.types import Column

__all__ = ["ParquetReader"]

_LAYOUTS = (
    *("skim", "features", "pfnano", "pfnano_old", "nanoaod_pf", "nanoaod"),
    *(layout.name for layout in delphes_layouts()),
)


def _numbers_of(kind: pa.DataType, path: tuple[str, ...], lists: int) -> Iterator[Field]:
    """Yield the numbers of a column, however deep in lists and records."""
    kind = storage_of(kind)
    if pa.types.is_struct(kind):
        for item in kind:
            yield from _numbers_of(item.type, (*path, item.name), lists)
    elif is_list(kind):
        yield from _numbers_of(kind.value_type, path, lists + 1)
    elif pa.types.is_fixed_size_list(kind) and is_number(kind.value_type):
        # of one number a list, an event's own numbers; inside of a list, those of an object
        yield Field(path, lists or 1, str(kind), path, kind.list_size if lists else 0)
    else:
        number = is_number(kind) or pa.types.is_decimal(kind)
        yield Field(path, lists if number else None, str(kind), path)


def _spelled(path: str, schema: pa.Schema, keep: tuple[str, ...] = ()) -> dict[str, Field]:
    """Return the columns that a table spells; ``jets`` of a skim as it stands, where it is a list of records."""
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise InputError(path, f"has several columns '{twice[0]}'", "keep one of them")
    fields = [field for item in schema for field in _numbers_of(item.type, (item.name,), 0)]
    out = spell(path, fields, _LAYOUTS, keep)
    if "jets" in schema.names and is_list(schema.field("jets").type):
        out["jets"] = Field(("jets",), 1, str(schema.field("jets").type), ("jets",))
    return out


_LIST_NAMES = {"list", "element", "item", "array", "bag", "array_element"}
"""What writers of Parquet call a list and what it holds."""


def _leaves(file: pq.ParquetFile, paths: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the file's own names of what shall be read; whole columns where they cannot be told apart."""
    stored: dict[tuple[str, ...], str] = {}
    for i in range(file.metadata.num_columns):
        path = file.metadata.schema.column(i).path
        stored.setdefault(tuple(part for part in path.split(".") if part not in _LIST_NAMES), path)
    return list(dict.fromkeys(stored.get(path, path[0]) if len(path) > 1 else path[0] for path in paths))


def _nested(path: str, name: str, table: pa.Table, field: Field) -> Column:
    """One column of a table by the path to its numbers."""
    values = column_of(path, name, table[field.handle[0]])
    for part in field.handle[1:]:
        values = values[part]
    return plain_column(values, path, name) if isinstance(values, ak.Array) else values


class ParquetReader:
    """Reads skims, templates and feature tables; see :class:`~drapes_hep.events.formats.base.EventReader`."""

    container = "parquet"

    def sniff(self, head: bytes) -> bool:
        """Parquet's signature."""
        return head.startswith(b"PAR1")

    def scan(self, path: str, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
        """Read the schema and the number of rows."""
        if object_path:
            raise InputError(path, f"a Parquet file has no object '{object_path}'", "name only the file")
        with open_parquet(path) as file:
            check_version(path, file)
            names = list(file.schema_arrow.names)
            spelled = _spelled(path, file.schema_arrow, reading.keep)
            layout = match_layout(spelled, _LAYOUTS, reading.layout)
            if layout is None:
                if set(names) == TRUTH_COLUMNS:
                    raise InputError(path, "is a truth sidecar, not events", "set it as data.truth")
                raise layout_error(path, "the table", spelled, _LAYOUTS, reading.layout)
            entries = int(file.metadata.num_rows)
        columns = columns_of(layout, spelled, reading)
        for name in columns:
            check_field(path, name, spelled[name], layout)
        columns = (*columns, *check_kept(path, layout, spelled, reading))
        return FileInfo(path, self.container, layout, "", entries, file_key(path), "label" in columns, columns)

    def simulation(self, path: str) -> Mapping[str, Any]:
        """Part of the file's metadata."""
        with open_parquet(path) as file:
            record = metadata_of(path, file).get("simulation")
        return record if isinstance(record, dict) else {}

    def present(self, info: FileInfo) -> tuple[str, ...]:
        """Top-level columns."""
        with open_parquet(info.path) as file:
            return tuple(file.schema_arrow.names)

    def columns(self, chunk: EventChunk) -> Columns:
        """Read the row groups that hold the chunk, and cut."""
        with shared(open_parquet, chunk.path) as file:
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)])
            starts = ends - [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            groups = np.flatnonzero((ends > chunk.start) & (starts < chunk.stop))
            spelled = _spelled(chunk.path, file.schema_arrow, chunk.reading.keep)
            sources = {name: spelled[name] for name in chunk.columns}
            fields = [
                part
                for field in sources.values()
                for part in (field.handle.values() if isinstance(field.handle, dict) else [field])
            ]
            leaves = _leaves(file, [leaf.handle for leaf in fields])
            table = file.read_row_groups(groups.tolist(), columns=leaves)
            table = table.slice(chunk.start - int(starts[groups[0]]), len(chunk))
            out = {
                name: _nested(chunk.path, name, table, field)
                for name, field in sources.items()
                if isinstance(field.handle, tuple)
            }
            for name, field in sources.items():
                if not isinstance(field.handle, tuple):
                    parts = {part: _nested(chunk.path, part, table, leaf) for part, leaf in field.handle.items()}
                    out[name] = zip_jets(chunk.path, parts)
            return out
