"""Parquet files: written so that the same content gives the same bytes, opened with clear errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from drapes_hep.errors import InputError
from drapes_hep.events.schema import offsets_of
from drapes_hep.events.types import Column
from drapes_hep.files import atomic_path, parse_json
from drapes_hep.remote import is_url, network_error, open_url

__all__ = [
    "column_of",
    "is_list",
    "is_number",
    "is_plain",
    "metadata_of",
    "open_parquet",
    "storage_of",
    "to_arrow",
    "to_numpy",
    "write_parquet",
]

_KEY = b"drapes_hep"
_ROW_GROUP, _GROUP_BYTES = 1 << 16, 16 << 20


def to_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Return numbers, shape (n,), as an Arrow array.

    ``pyarrow.array`` does the same, but loads pandas to ask whether the values are its: half a second, and 45 MB.
    """
    if values.dtype.kind not in "iuf" or not values.dtype.isnative or values.ndim != 1:
        return pa.array(values)
    flat = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(flat)])


def to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    """Return an Arrow array of numbers without missing values as numpy; of integers and floats without a copy.

    Its own ``to_numpy`` loads pandas, as in :func:`to_arrow`.
    """
    if pa.types.is_boolean(array.type):
        return to_numpy(array.cast(pa.uint8())).astype(np.bool_)
    return np.from_dlpack(array)


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
        return pa.LargeListArray.from_arrays(to_arrow(offsets), content, type=kind)
    return to_arrow(np.ascontiguousarray(values))


def write_parquet(path: str | Path, columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write columns and metadata, JSON values, atomically."""
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
def open_parquet(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Open a file or URL; raises InputError for whatever is wrong with it, here and while it is read."""
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
        input_error = network_error(str(path), error)
        if input_error is not None:
            raise input_error from error
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            path, f"cannot be read as Parquet: truncated or corrupt ({reason})", "create it again"
        ) from error


_REMOVE = "write the file without this entry"


def metadata_of(path: str | Path, file: pq.ParquetFile) -> dict[str, Any]:
    """Return the metadata stored by :func:`write_parquet`; raises InputError if it is damaged."""
    raw = (file.schema_arrow.metadata or {}).get(_KEY)
    try:
        loaded = parse_json(raw) if raw else {}
    except ValueError as error:
        raise InputError(path, f"its metadata '{_KEY.decode()}' is not valid JSON ({error})", _REMOVE) from error
    if not isinstance(loaded, dict):
        raise InputError(path, f"its metadata '{_KEY.decode()}' is not a mapping of names to values", _REMOVE)
    return loaded


def column_of(path: str | Path, name: str, column: Column) -> Column:
    """Return one column as numpy, or as awkward where it is a list; raises InputError for missing values."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # older pyarrow keeps one chunk of zero or several
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    if array.null_count:
        raise InputError(path, f"column '{name}' has {array.null_count} missing values", "fill or drop them")
    kind = array.type
    if pa.types.is_dictionary(kind):
        return column_of(path, name, array.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):  # awkward's own, by default
        return column_of(path, name, array.storage)
    if pa.types.is_fixed_size_list(kind):
        content = column_of(path, name, array.flatten())
        inner = content.layout if isinstance(content, ak.Array) else ak.contents.NumpyArray(content)
        regular = ak.Array(ak.contents.RegularArray(inner, kind.list_size, zeros_length=len(array)))
        return regular if is_number(kind.value_type) else ak.from_regular(regular)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        array = array.cast(pa.large_list(kind.value_field))
        kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = to_numpy(array.offsets).astype(np.int64)
        content = column_of(path, name, array.values.slice(offsets[0], offsets[-1] - offsets[0]))
        inner = content.layout if isinstance(content, ak.Array) else ak.contents.NumpyArray(content)
        return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets - offsets[0]), inner))
    if pa.types.is_struct(kind):
        # flatten, unlike field, heeds the struct's own offset
        parts = dict(zip((item.name for item in kind), array.flatten(), strict=True))
        return ak.zip({key: column_of(path, f"{name}.{key}", part) for key, part in parts.items()}, depth_limit=1)
    if pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif not is_number(kind):
        raise InputError(path, f"column '{name}' holds {kind}, not numbers", "convert it")
    return to_numpy(array)


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is that of numbers, truth values included."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is that of lists: of any length, or of records."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    records = pa.types.is_fixed_size_list(kind) and not is_number(kind.value_type)
    return records or any(check(kind) for check in checks)


def storage_of(kind: pa.DataType) -> pa.DataType:
    """Return the type that an extension or dictionary type stands for."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column of a type holds one number per event: no list, no record, no text."""
    kind = storage_of(kind)
    if pa.types.is_fixed_size_list(kind):
        return is_number(kind.value_type)
    return is_number(kind) or bool(pa.types.is_decimal(kind))
