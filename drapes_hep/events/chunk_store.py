"""Results of chunks on disk, so that a run with failures is taken up where it failed.

One file per chunk: a NumPy archive of plain arrays and the tree that they hang in, as JSON. Nothing in it is a pickle,
and what cannot be written without one is not stored: such a chunk is processed again. A result is read back only if
everything that decides it is the same.
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import awkward as ak
import hist
import numpy as np
import uhi.io.json

from drapes_hep.errors import DrapesError
from drapes_hep.events.accumulate import ColumnParts
from drapes_hep.events.chunks import EventChunk
from drapes_hep.files import atomic_path, content_hash, parse_json
from drapes_hep.user_files import FileHashes, all_unchanged

__all__ = ["ChunkStore", "UnstorableError", "pack", "unpack"]

_TREE = "tree"
_HASHES = "grounds"
_VERSION = 2

Arrays = dict[str, Any]


class UnstorableError(Exception):
    """A value that cannot be written without a pickle, or would come back as another."""


def _add(arrays: Arrays, array: Any) -> str:
    if array.dtype.hasobject:
        raise UnstorableError(f"array of {array.dtype}")
    name = f"a{len(arrays)}"
    arrays[name] = array
    return name


def pack(value: Any, arrays: Arrays) -> list[Any]:
    """Turn an accumulator into JSON values and arrays.

    Parameters
    ----------
    value : object
        Mappings, lists, sets and tuples of numbers, text, NumPy and awkward arrays, histograms,
        :class:`~drapes_hep.events.accumulate.ColumnParts`.
    arrays : dict of str to array
        Gets the arrays.

    Returns
    -------
    list
        Kind and content, JSON values.

    Raises
    ------
    UnstorableError
        Anything else: also a subclass, which would come back as its base.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return ["plain", value]
    if kind is int:
        return ["int", str(value)]  # of any size
    if kind is float:
        return ["float", value.hex() if math.isfinite(value) else repr(value)]
    if kind is dict:
        return ["dict", [[pack(key, arrays), pack(item, arrays)] for key, item in value.items()]]
    if kind in (list, tuple):
        return [kind.__name__, [pack(item, arrays) for item in value]]
    if kind is set:
        return ["set", [pack(item, arrays) for item in sorted(value, key=repr)]]
    if kind is ColumnParts:
        return ["columns", pack(value.parts, arrays)]
    if kind is np.ndarray:
        return ["array", _add(arrays, value)]
    if isinstance(value, np.generic):
        return ["scalar", _add(arrays, np.asarray(value))]
    if kind is ak.Array:
        return _pack_awkward(value, arrays)
    if kind is hist.Hist:
        return _pack_hist(value)
    raise UnstorableError(kind.__name__)


def _pack_awkward(value: Any, arrays: Arrays) -> list[Any]:
    if value.behavior is not None or value.attrs:
        raise UnstorableError("awkward array with behavior or attributes")
    form, length, buffers = ak.to_buffers(ak.to_packed(value))
    names = {key: _add(arrays, np.asarray(buffer)) for key, buffer in buffers.items()}
    return ["awkward", [json.loads(form.to_json()), length, names]]


def _pack_hist(value: Any) -> list[Any]:
    try:
        text = json.dumps(value, default=uhi.io.json.default)
        same = _read_hist(text) == value
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnstorableError(f"histogram ({type(error).__name__})") from error
    if not same:
        raise UnstorableError("histogram that would come back as another")
    return ["hist", text]


def _read_hist(text: str) -> Any:
    return hist.Hist(json.loads(text, object_hook=uhi.io.json.object_hook))


def unpack(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """Turn what :func:`pack` returned into an accumulator.

    Parameters
    ----------
    tree : list
        Kind and content.
    arrays : mapping of str to array

    Returns
    -------
    object
    """
    kind, content = tree
    if kind == "plain":
        return content
    if kind == "int":
        return int(content)
    if kind == "float":
        return float.fromhex(content)
    if kind == "dict":
        return {unpack(key, arrays): unpack(item, arrays) for key, item in content}
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](unpack(item, arrays) for item in content)
    if kind == "columns":
        return ColumnParts(unpack(content, arrays))
    if kind == "array":
        return arrays[content]
    if kind == "scalar":
        return arrays[content][()]
    if kind == "awkward":
        form, length, names = content
        return ak.from_buffers(ak.forms.from_dict(form), length, {key: arrays[name] for key, name in names.items()})
    if kind == "hist":
        return _read_hist(content)
    raise ValueError(f"unknown kind '{kind}'")


@dataclass(frozen=True)
class ChunkStore:
    """A folder of results of chunks.

    Parameters
    ----------
    folder : Path
        Made with the first result.
    decides : mapping
        JSON values: what decides all results besides the files, such as the configuration and the code.
    fingerprints : mapping of str to str
        Of each file's content, by path.
    """

    folder: Path
    decides: Mapping[str, Any]
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def path(self, chunk: EventChunk) -> Path | None:
        """Return the place of a chunk's result; None for a file without a fingerprint."""
        print_ = self.fingerprints.get(chunk.path)
        if print_ is None:
            return None
        whose = (chunk.dataset, chunk.path, chunk.object_path, chunk.layout, chunk.file_id, chunk.start, chunk.stop)
        how = (sorted(chunk.columns), vars(chunk.reading), dict(chunk.metadata))
        return self.folder / f"{content_hash([_VERSION, self.decides, print_, whose, how])[:40]}.npz"

    def has(self, chunk: EventChunk) -> bool:
        """Whether there is a file for a chunk."""
        path = self.path(chunk)
        return path is not None and path.is_file()

    def save(self, chunk: EventChunk, fields: Mapping[str, Any], hashes: FileHashes) -> bool:
        """Write a chunk's result, atomically.

        Parameters
        ----------
        chunk : EventChunk
        fields : mapping of str to object
            What to read back.
        hashes : mapping of str to str
            SHA-256 of the files that the processor has read, by absolute path; None for one that was not there.

        Returns
        -------
        bool
            Whether it could be written, and without a pickle.
        """
        path = self.path(chunk)
        if path is None:
            return False
        arrays: Arrays = {}
        try:
            tree = pack(dict(fields), arrays)
        except UnstorableError:
            return False
        texts = {
            name: np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
            for name, value in ((_TREE, tree), (_HASHES, dict(hashes)))
        }
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays, **texts)
        except DrapesError:
            return False  # a full disk stops nothing yet: what is not stored is processed again
        return True

    def load(self, chunk: EventChunk) -> dict[str, Any] | None:
        """Read a chunk's result; None where there is none that is whole, or where a file that it rests on changed."""
        path = self.path(chunk)
        if path is None or not path.is_file():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if not all_unchanged(parse_json(bytes(arrays.pop(_HASHES)))):
                return None
            fields: dict[str, Any] = unpack(parse_json(bytes(arrays.pop(_TREE))), arrays)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError):
            return None
        return fields

    def clear(self) -> None:
        """Remove all results."""
        shutil.rmtree(self.folder, ignore_errors=True)
