"""Writers of the feature layout (ROOT as TTree or RNTuple, pandas' HDF5) and of the raw LHC Olympics layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import uproot

from drapes_hep.files import atomic_path, parse_json

__all__ = ["raw_metadata", "write_feature_hdf5", "write_feature_root", "write_raw_hdf5"]

_METADATA = "drapes_hep"
"""Attribute of the file that carries what a writer was told, as JSON."""


def _arrays(columns: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: np.ascontiguousarray(values) for name, values in columns.items()}
    if len({array.shape for array in arrays.values()}) != 1 or next(iter(arrays.values())).ndim != 1:
        raise ValueError("columns must be flat and of one length")
    return arrays


def write_feature_root(
    path: str | Path,
    columns: Mapping[str, npt.ArrayLike],
    kind: Literal["ttree", "rntuple"] = "ttree",
    tree: str = "events",
    step: int = 50_000,
    compression: Any = None,
) -> None:
    """Write flat columns as a tree, atomically.

    Parameters
    ----------
    path : str or Path
        The file.
    columns : mapping of str to array_like, shape (n,)
        Kept in their own types.
    kind : {"ttree", "rntuple"}
        What to write: uproot's own default changed with its version 5.7.
    tree : str
        Name of the tree.
    step : int
        Rows a basket or cluster.
    compression : uproot.compression.Compression, optional
        ZSTD by default.
    """
    arrays = _arrays(columns)
    entries = len(next(iter(arrays.values())))
    chosen = compression or uproot.ZSTD(5)
    with atomic_path(path) as temporary, uproot.recreate(temporary, compression=chosen) as file:
        types = {name: array.dtype for name, array in arrays.items()}
        out = file.mktree(tree, types) if kind == "ttree" else file.mkrntuple(tree, types)
        for start in range(0, entries, step):
            out.extend({name: array[start : start + step] for name, array in arrays.items()})


def write_feature_hdf5(path: str | Path, columns: Mapping[str, npt.ArrayLike], key: str = "df") -> None:
    """Write flat columns as ``pandas.DataFrame.to_hdf(..., format="fixed")`` does, without pandas, atomically.

    Parameters
    ----------
    path : str or Path
        The file.
    columns : mapping of str to array_like, shape (n,)
        One block a type, as pandas groups them.
    key : str
        Name of the frame.
    """
    arrays = _arrays(columns)
    names, entries = list(arrays), len(next(iter(arrays.values())))
    blocks: dict[np.dtype[Any], list[str]] = {}
    for name, array in arrays.items():
        blocks.setdefault(array.dtype, []).append(name)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        frame = _frame(file, key, len(blocks))
        _index(frame, "axis0", np.array(names, dtype="S"), "string")
        _index(frame, "axis1", np.arange(entries), "integer")
        for i, members in enumerate(blocks.values()):
            _index(frame, f"block{i}_items", np.array(members, dtype="S"), "string")
            values = np.stack([arrays[name] for name in members], axis=1)
            _array(frame, f"block{i}_values", values)


def write_raw_hdf5(
    path: str | Path,
    parts: Iterable[npt.NDArray[np.float64]],
    entries: int,
    columns: int,
    metadata: Mapping[str, Any] | None = None,
    key: str = "df",
) -> None:
    """Write a wide table of numbered columns, such as raw LHC Olympics events, part after part and atomically.

    The layout is that of ``pandas.DataFrame.to_hdf(..., format="fixed")``, written without pandas: never more than one
    part is in memory.

    Parameters
    ----------
    path : str or Path
        The file.
    parts : iterable of array of float64, shape (k, columns)
        Rows, in order.
    entries : int
        Rows of all parts together, at least 1.
    columns : int
        2101 for events of 700 particles (pt, eta, phi, zero padded) and a label.
    metadata : mapping, optional
        JSON values, kept as an attribute of the file; see :func:`raw_metadata`.
    key : str
        Name of the frame.

    Raises
    ------
    ValueError
        Parts of another width, or more or fewer rows than promised.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        frame = _frame(file, key, 1)
        file.attrs[_METADATA] = json.dumps(metadata or {}, sort_keys=True)
        for place, length in (("axis0", columns), ("axis1", entries), ("block0_items", columns)):
            _index(frame, place, np.arange(length), "integer")
        # rows an HDF5 chunk: as in the official files, about 128 kB before compression
        data = frame.create_dataset(
            "block0_values",
            (entries, columns),
            "<f8",
            chunks=(min(entries, 7), columns),
            compression="gzip",
            compression_opts=4,
            shuffle=True,
        )
        _mark(data, "CARRAY", "1.1", transposed=np.uint8(1))
        row = 0
        for part in parts:
            if part.ndim != 2 or part.shape[1] != columns or row + len(part) > entries:
                raise ValueError(f"a part of shape {part.shape} at row {row} does not fit {(entries, columns)}")
            data[row : row + len(part)] = part
            row += len(part)
        if row != entries:
            raise ValueError(f"{row} rows instead of {entries}")


def raw_metadata(file: Any) -> dict[str, Any]:
    """Return the metadata that :func:`write_raw_hdf5` stored with the events.

    Parameters
    ----------
    file : h5py.File
        Opened.

    Returns
    -------
    dict
        Empty for a file of other origin.
    """
    try:
        loaded = parse_json(file.attrs.get(_METADATA, "{}"))
    except (TypeError, ValueError):  # an attribute of this name, but not ours
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _frame(file: Any, key: str, blocks: int) -> Any:
    """Begin a pandas frame of so many blocks."""
    _mark(file, "GROUP", "1.0", PYTABLES_FORMAT_VERSION="2.1")
    frame = file.create_group(key)
    _mark(
        frame,
        "GROUP",
        "1.0",
        pandas_type="frame",
        pandas_version="0.15.2",
        encoding="UTF-8",
        errors="strict",
        ndim=np.int64(2),
        nblocks=np.int64(blocks),
        axis0_variety="regular",
        axis1_variety="regular",
        **{f"block{i}_items_variety": "regular" for i in range(blocks)},
    )
    return frame


def _mark(item: Any, class_: str, version: str, /, **attributes: Any) -> None:
    """Set the attributes by which PyTables recognises its objects."""
    for name, value in {"CLASS": class_, "VERSION": version, "TITLE": "", **attributes}.items():
        if isinstance(value, str):
            # fixed length and UTF-8: pandas compares with str, and PyTables gives bytes for ASCII
            kind = h5py.string_dtype("utf-8", max(1, len(value)))
            item.attrs.create(name, value if value else h5py.Empty(kind), dtype=kind)
        else:
            item.attrs[name] = value


def _array(group: Any, place: str, values: npt.NDArray[Any], attributes: Mapping[str, Any] | None = None) -> None:
    attributes = attributes or {}
    if values.shape[0]:
        rows = max(1, min(len(values), (1 << 17) // max(1, values[:1].nbytes)))
        data = group.create_dataset(
            place, data=values, chunks=(rows, *values.shape[1:]), compression="gzip", shuffle=True
        )
        _mark(data, "CARRAY", "1.1", transposed=np.uint8(1), **attributes)
    else:
        # pandas notes the shape of an empty array beside one dummy value
        data = group.create_dataset(place, data=np.zeros((1,) * values.ndim, dtype=values.dtype))
        shape = np.array(values.shape[::-1], dtype=np.int64)
        _mark(data, "ARRAY", "2.4", value_type=values.dtype.name, shape=shape, **attributes)


def _index(group: Any, place: str, values: npt.NDArray[Any], kind: str) -> None:
    marks = {"kind": kind, "name": np.bytes_(b"N."), "nan_rep": ""}
    _array(group, place, values, marks)
