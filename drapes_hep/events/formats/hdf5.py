"""HDF5: tables as pandas writes them (fixed format, in blocks of one type each), and plain arrays of jets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, file_key, label_file
from drapes_hep.events.formats.base import check_kept, columns_of, layout_error, match_layout, nearest
from drapes_hep.events.formats.columns import Columns
from drapes_hep.events.formats.hdf5_files import check_stored, open_hdf5, unwritten
from drapes_hep.events.formats.layouts import LAYOUTS
from drapes_hep.events.formats.open_files import shared
from drapes_hep.events.formats.raw import raw_columns, read_label_file, read_last_column, read_particles
from drapes_hep.events.formats.simulated import CONSTITUENT_DATASETS, read_simulated, scan_simulated
from drapes_hep.events.formats.writers import raw_metadata

__all__ = ["Hdf5Reader"]

_LAYOUTS = ("features", "lhco_raw")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@contextmanager
def _open(path: str) -> Iterator[Any]:
    with open_hdf5(path) as (file, _):
        yield file


def _has_numbers(values: Any) -> bool:
    """Whether a block of a frame holds numbers: text is kept as one pickled row, and pickles are not read."""
    dated = _text(values.attrs.get("value_type", "")).startswith(("datetime", "timedelta"))
    return values.dtype.kind in "fiub" and values.ndim == 2 and not dated


def _all_blocks(group: Any) -> Iterator[tuple[Any, list[str]]]:
    for i in range(int(group.attrs.get("nblocks", 0))):
        items, values = group.get(f"block{i}_items"), group.get(f"block{i}_values")
        if items is None or values is None:
            raise InputError(group.file.filename, f"block {i} of '{group.name}' is missing", "write it again")
        yield values, [_text(name) for name in items[:]]


def _blocks(group: Any) -> Iterator[tuple[Any, list[str]]]:
    return ((values, names) for values, names in _all_blocks(group) if _has_numbers(values))


def _rows(group: Any) -> int:
    # a frame whose rows have several names keeps the place of each row in each of them
    axis = group["axis1"] if "axis1" in group else group["axis1_label0"]
    # pandas writes an empty axis as one dummy value, with its type and its (pickled) shape as attributes
    return 0 if "value_type" in axis.attrs else int(axis.shape[0])


_KINDS = {
    "series": ("is a pandas Series, one column", "write the whole table with DataFrame.to_hdf(..., format='fixed')"),
    "series_table": (
        "is a pandas Series, one column",
        "write the whole table with DataFrame.to_hdf(..., format='fixed')",
    ),
    "frame_table": ("was written by pandas with format='table'", "write it with DataFrame.to_hdf(..., format='fixed')"),
}


def _frame_problem(kind: str, group: Any) -> tuple[str, str] | None:
    """Return why what pandas wrote cannot be read, and what to do; None where it can."""
    if kind != "frame":
        return _KINDS.get(
            kind, (f"is a pandas '{kind}', not a table", "write it with DataFrame.to_hdf(..., format='fixed')")
        )
    if "axis0_label0" in group:
        return (
            "has columns of several names each (a MultiIndex)",
            "give each one name, as in df.columns = ['_'.join(map(str, one)) for one in df.columns]",
        )
    if any(group[name].dtype.kind == "O" for name in group if name == "axis0" or name.endswith("_items")):
        return (
            "has column names of several types, which pandas keeps as Python objects",
            "make them text, with df.columns = df.columns.astype(str)",
        )
    return None


def _check_types(path: str, name: str, group: Any, layout: str) -> None:
    """Refuse a column that a layout reads, and that is not a number in this file: it would be taken for absent."""
    columns = {*LAYOUTS[layout].required, *LAYOUTS[layout].optional}
    for values, names in _all_blocks(group):
        wrong = columns.intersection(names) if not _has_numbers(values) and _rows(group) else set()
        if wrong:
            raise InputError(
                path,
                f"column '{min(wrong)}' of '{name}' holds Python objects, text or dates, not numbers",
                "convert it, as in df[column] = df[column].astype(float)",
            )


def _column_names(path: str, group: Any) -> list[str]:
    """Names of a table's columns, or what a table of numbered columns stands for."""
    blocks = list(_blocks(group))
    return raw_columns(path, blocks) or [name for _, names in blocks for name in names]


def _may_have_label_file(group: Any) -> bool:
    """Whether a raw table has no column for the label (it may still have a file of labels next to it)."""
    return sum(len(names) for _, names in _blocks(group)) % 3 == 0


def _check_datasets(path: str, datasets: Mapping[str, Any]) -> tuple[str, ...]:
    """Check that what will be read is stored; a label alone may be left at its fill value, and is remarked on."""
    remarks = []
    for name, dataset in datasets.items():
        if name == "label" and unwritten(dataset):
            remarks.append("some of its labels were never written, and are read as 0")
            continue
        check_stored(path, dataset)
    return tuple(remarks)


def _no_frame(path: str, file: Any) -> InputError:
    """Return the error for a file with neither a frame of pandas nor all arrays of jets."""
    if set(file) & {"jets", "tau"}:
        return layout_error(path, "the file", list(file), ("simulated",))
    return InputError(
        path,
        f"is HDF5, but not a table written by pandas (it holds {', '.join(list(file)[:5]) or 'nothing'})",
        "write the feature columns with DataFrame.to_hdf(..., key='df', format='fixed')",
    )


def _frames(path: str, file: Any, requested: str | None) -> dict[str, tuple[str, Any]]:
    """Return kind and group of each frame by its name: all in the file, or the one that is wanted."""
    frames: dict[str, tuple[str, Any]] = {}

    def visit(name: str, item: Any) -> None:
        kind = item.attrs.get("pandas_type") if isinstance(item, h5py.Group) else None
        if kind is not None:
            frames[name] = (_text(kind), item)

    file.visititems(visit)
    if requested is None:
        return frames
    name = requested.strip("/")
    if name not in frames:
        raise InputError(path, f"contains no frame '{requested}'", f"it holds {', '.join(frames) or 'none'}")
    return {name: frames[name]}


def _fitting(path: str, frames: Mapping[str, tuple[str, Any]], reading: Reading) -> tuple[str, str, list[str]]:
    """Return the name of the one frame that fits a layout, the layout, and the frame's columns."""
    problems = {name: _frame_problem(kind, group) for name, (kind, group) in frames.items()}
    readable = {name: _column_names(path, group) for name, (_, group) in frames.items() if problems[name] is None}
    if not readable:
        name, problem = next((name, problem) for name, problem in problems.items() if problem is not None)
        raise InputError(path, f"table '{name}' {problem[0]}", problem[1])
    fits = {name: layout for name, have in readable.items() if (layout := match_layout(have, _LAYOUTS, reading.layout))}
    if not fits:
        name = max(readable, key=lambda table: nearest(readable[table], _LAYOUTS)[0])
        for likely in _LAYOUTS:
            _check_types(path, name, frames[name][1], likely)
        raise layout_error(path, f"table '{name}'", readable[name], _LAYOUTS, reading.layout)
    if len(fits) > 1:
        raise InputError(path, f"several tables fit: {', '.join(fits)}", "choose one: {path: table}")
    ((name, layout),) = fits.items()
    return name, layout, readable[name]


def _check_shapes(path: str, name: str, group: Any, rows: int) -> None:
    for values, names in _blocks(group):
        if rows and values.shape != (rows, len(names)):
            raise InputError(
                path, f"a block of '{name}' has shape {values.shape}, not {(rows, len(names))}", "write it again"
            )


class Hdf5Reader:
    """Reads pandas' fixed format and arrays of jets; see :class:`~drapes_hep.events.formats.base.EventReader`."""

    container = "hdf5"

    def sniff(self, head: bytes) -> bool:
        """HDF5's signature."""
        return head == b"\x89HDF\r\n\x1a\n"

    def scan(self, path: str, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
        """Find the one frame that holds the columns."""
        with open_hdf5(path) as (file, remarks):
            frames = _frames(path, file, object_path)
            if not frames:
                return self._scan_arrays(path, file, reading, remarks)
            name, layout, names = _fitting(path, frames, reading)
            group = frames[name][1]
            rows = _rows(group)
            _check_types(path, name, group, layout)
            _check_shapes(path, name, group, rows)
            columns = columns_of(layout, names)
            columns = (*columns, *check_kept(path, layout, dict.fromkeys(names), reading))
            read = {
                values.name: values
                for values, stored in _blocks(group)
                if rows and (layout == "lhco_raw" or set(columns).intersection(stored))
            }
            remarks += _check_datasets(path, read)
            label_files: tuple[str, ...] = ()
            if layout == "lhco_raw" and "label" in columns and _may_have_label_file(group):
                read_label_file(path, rows)
                label_files = (label_file(path),)
        return FileInfo(
            path, self.container, layout, name, rows, file_key(path), "label" in columns, columns, label_files,
            remarks=remarks,
        )  # fmt: skip

    def _scan_arrays(self, path: str, file: Any, reading: Reading, remarks: tuple[str, ...]) -> FileInfo:
        """Describe a file without frames: arrays of jets."""
        arrays = scan_simulated(path, file, reading.constituents)
        if arrays is None:
            raise _no_frame(path, file)
        check_kept(path, "simulated", {}, reading)
        if reading.layout not in (None, "simulated"):
            raise InputError(path, f"is not of layout '{reading.layout}' but 'simulated'", "set data.layout")
        rows, names = arrays
        columns = columns_of("simulated", names, reading)
        datasets = [*columns]
        if reading.jets and reading.constituents:
            columns, datasets = (*columns, "constituents"), [*columns, *CONSTITUENT_DATASETS]
        remarks += _check_datasets(path, {dataset: file[dataset] for dataset in datasets if dataset in file})
        return FileInfo(
            path, self.container, "simulated", "/", rows, file_key(path), "label" in columns, columns, remarks=remarks
        )

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
                    _text(name)
                    for dataset in items
                    if dataset is not None and dataset.dtype.kind != "O"
                    for name in dataset[:]
                )
            datasets: list[str] = []
            group.visititems(lambda name, item: datasets.append(name) if isinstance(item, h5py.Dataset) else None)
            # those that are read together under another name are not left over
            together = CONSTITUENT_DATASETS if "constituents" in info.columns else ()
            return tuple(name for name in datasets if name not in together)

    def columns(self, chunk: EventChunk) -> Columns:
        """Read the rows of every block that holds a wanted column."""
        if chunk.layout == "lhco_raw":
            return self._raw(chunk)
        if chunk.layout == "simulated":
            with shared(_open, chunk.path) as file:
                return read_simulated(file[chunk.object_path], chunk.columns, chunk.start, chunk.stop)
        out: dict[str, Any] = {}
        requested = set(chunk.columns)
        with shared(_open, chunk.path) as file:
            for values, names in _blocks(file[chunk.object_path]):
                if requested.intersection(names):
                    part = values[chunk.start : chunk.stop]
                    out.update(
                        {name: np.ascontiguousarray(part[:, i]) for i, name in enumerate(names) if name in requested}
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
                if _may_have_label_file(group):
                    out["label"] = read_label_file(chunk.path, _rows(group))[chunk.start : chunk.stop]
                else:
                    out["label"] = read_last_column(blocks, chunk.start, chunk.stop)
        return out
