"""HDF5: tables as pandas writes them (fixed format, in blocks of one type each), and plain arrays of jets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  importing it registers the compression filters: the official raw file is blosc-compressed
import numpy as np

from drapes_hep.errors import InputError
from drapes_hep.events.checks import Columns
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, file_key, label_file
from drapes_hep.events.opened import shared
from drapes_hep.events.raw import raw_columns, read_label_file, read_last_column, read_particles
from drapes_hep.events.readers import columns_of, lacks, match_layout
from drapes_hep.events.simulated import CONSTITUENT_DATASETS, read_simulated, scan_simulated
from drapes_hep.events.types import Foreign
from drapes_hep.events.writers import raw_metadata
from drapes_hep.remote import is_url, one_line, open_url

__all__ = ["Hdf5Reader"]

_LAYOUTS = ("features", "lhco_raw")


def _text(value: Foreign) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """Open for reading; whatever HDF5 finds wrong with the file is one line."""
    try:
        with open_url(path) if is_url(path) else nullcontext(path) as source, h5py.File(source, "r") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError or ValueError for a damaged file
        told = one_line(path, error)
        if told is not None:
            raise told from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        cut = "truncated" in reason
        problem = "is truncated" if cut else f"cannot be read as HDF5 ({reason})"
        raise InputError(path, problem, "copy or download it again") from error


def _blocks(group: Foreign) -> Iterator[tuple[Any, list[str]]]:
    for i in range(int(group.attrs.get("nblocks", 0))):
        items, values = group.get(f"block{i}_items"), group.get(f"block{i}_values")
        if items is None or values is None:
            raise InputError(group.file.filename, f"block {i} of '{group.name}' is missing", "write it again")
        # an object-typed block (text columns) has one pickled row: it holds no numbers, and pickles are not read
        if values.dtype.kind in "fiub" and values.ndim == 2 and items.dtype.kind != "O":
            yield values, [_text(name) for name in items[:]]


def _rows(group: Foreign) -> int:
    axis = group["axis1"]
    # pandas writes an empty axis as one dummy value, with its type and its (pickled) shape as attributes
    return 0 if "value_type" in axis.attrs else int(axis.shape[0])


def _column_names(path: str, group: Foreign) -> list[str]:
    """Names of a table's columns, or what a table of numbered columns stands for."""
    blocks = list(_blocks(group))
    return raw_columns(path, blocks) or [name for _, names in blocks for name in names]


def _labels_beside(group: Foreign) -> bool:
    """Whether a raw table has no column for the label (it may still have a file of labels beside it)."""
    return sum(len(names) for _, names in _blocks(group)) % 3 == 0


class Hdf5Reader:
    """Reads pandas' fixed format and arrays of jets; see :class:`~drapes_hep.events.readers.EventReader`."""

    container = "hdf5"

    def sniff(self, head: bytes) -> bool:
        """HDF5's signature."""
        return head == b"\x89HDF\r\n\x1a\n"

    def scan(self, path: str, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
        """Find the one frame that holds the columns."""
        with _open(path) as file:
            frames: dict[str, Any] = {}

            def visit(name: str, item: Foreign) -> None:
                kind = item.attrs.get("pandas_type") if isinstance(item, h5py.Group) else None
                if kind is not None:
                    frames[name] = (_text(kind), item)

            file.visititems(visit)
            if object_path is not None:
                if object_path.strip("/") not in frames:
                    raise InputError(path, f"no frame '{object_path}' in it", f"it holds {', '.join(frames) or 'none'}")
                frames = {object_path.strip("/"): frames[object_path.strip("/")]}
            if not frames and (arrays := scan_simulated(path, file, reading.constituents)) is not None:
                if reading.layout not in (None, "simulated"):
                    raise InputError(path, f"is not of layout '{reading.layout}' but 'simulated'", "set data.layout")
                rows, columns = arrays
                return FileInfo(
                    path, self.container, "simulated", "/", rows, file_key(path), "label" in columns, columns
                )
            if not frames:
                raise InputError(
                    path,
                    f"is HDF5, but not a table written by pandas (it holds {', '.join(list(file)[:5]) or 'nothing'})",
                    "write the feature columns with DataFrame.to_hdf(..., key='df', format='fixed')",
                )
            found = {name: _column_names(path, group) for name, (kind, group) in frames.items() if kind == "frame"}
            if not found:
                raise InputError(
                    path,
                    "was written by pandas with format='table'",
                    "write it with DataFrame.to_hdf(..., format='fixed')",
                )
            fits = {
                name: layout for name, have in found.items() if (layout := match_layout(have, _LAYOUTS, reading.layout))
            }
            if not fits:
                name = next(iter(found))
                # an empty frame has no blocks at all, and zero events are the clearer complaint
                if _rows(frames[name][1]) == 0:
                    raise InputError(path, "holds zero events", "take it out of the list of files")
                raise lacks(path, f"table '{name}'", found[name], reading.layout or "features")
            if len(fits) > 1:
                raise InputError(path, f"several tables fit: {', '.join(fits)}", "say which: {path: table}")
            ((name, layout),) = fits.items()
            group = frames[name][1]
            rows = _rows(group)
            for values, names in _blocks(group):
                if rows and values.shape != (rows, len(names)):
                    raise InputError(
                        path,
                        f"a block of '{name}' has shape {values.shape}, not {(rows, len(names))}",
                        "write it again",
                    )
            columns = columns_of(layout, found[name])
            beside: tuple[str, ...] = ()
            if layout == "lhco_raw" and "label" in columns and _labels_beside(group):
                read_label_file(path, rows)
                beside = (label_file(path),)
        return FileInfo(path, self.container, layout, name, rows, file_key(path), "label" in columns, columns, beside)

    def simulation(self, path: str) -> Mapping[str, Any]:
        """Attribute of the file."""
        with _open(path) as file:
            return raw_metadata(file)

    def present(self, info: FileInfo) -> tuple[str, ...]:
        """Columns of a frame, those of text included; datasets of any other group."""
        with _open(info.path) as file:
            group = file[info.object_path or "/"]
            if "pandas_type" in group.attrs:
                if info.layout == "lhco_raw":
                    # numbered columns are what the layout says of them, not two thousand names
                    return tuple(_column_names(info.path, group))
                items = (group.get(f"block{i}_items") for i in range(int(group.attrs.get("nblocks", 0))))
                return tuple(
                    _text(name) for one in items if one is not None and one.dtype.kind != "O" for name in one[:]
                )
            found: list[str] = []
            group.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            # those that are read together under another name are not left over
            together = CONSTITUENT_DATASETS if "constituents" in info.columns else ()
            return tuple(name for name in found if name not in together)

    def columns(self, chunk: EventChunk) -> Columns:
        """Read the rows of every block that holds a wanted column."""
        if chunk.layout == "lhco_raw":
            return self._raw(chunk)
        if chunk.layout == "simulated":
            with shared(_open, chunk.path) as file:
                return read_simulated(file[chunk.object_path], chunk.columns, chunk.start, chunk.stop)
        out: dict[str, Any] = {}
        wanted = set(chunk.columns)
        with shared(_open, chunk.path) as file:
            for values, names in _blocks(file[chunk.object_path]):
                if wanted.intersection(names):
                    part = values[chunk.start : chunk.stop]
                    out.update(
                        {name: np.ascontiguousarray(part[:, i]) for i, name in enumerate(names) if name in wanted}
                    )
        return out

    def _raw(self, chunk: EventChunk) -> Columns:
        """Read particles and labels; only labels where no jets are wanted."""
        out: dict[str, Any] = {}
        with shared(_open, chunk.path) as file:
            group = file[chunk.object_path]
            blocks = list(_blocks(group))
            if chunk.reading.jets:
                out["particles"] = read_particles(blocks, chunk.start, chunk.stop)
            if "label" in chunk.columns:
                if _labels_beside(group):
                    out["label"] = read_label_file(chunk.path, _rows(group))[chunk.start : chunk.stop]
                else:
                    out["label"] = read_last_column(blocks, chunk.start, chunk.stop)
        return out
