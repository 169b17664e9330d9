"""ROOT files: TTree and RNTuple, by uproot."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import uproot
import uproot.source.fsspec
from fsspec.implementations.cached import CachingFileSystem

from drapes_hep.errors import InputError
from drapes_hep.events.checks import Columns
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, file_key
from drapes_hep.events.delphes import delphes_layouts
from drapes_hep.events.layouts import LAYOUTS
from drapes_hep.events.opened import shared
from drapes_hep.events.readers import columns_of, lacks, match_layout, plain_column
from drapes_hep.events.types import Foreign
from drapes_hep.remote import filesystem_options, is_url, one_line

__all__ = ["RootReader"]

_LAYOUTS = ("features", "pfnano", "pfnano_old", "nanoaod_pf", "nanoaod", *(one.name for one in delphes_layouts()))
"""The preferred first: with constituents before without."""


class _Raising:
    """A file system whose failures are raised: fsspec returns them in the place of bytes, where uproot slices them."""

    def __init__(self, filesystem: Foreign) -> None:
        self._filesystem = filesystem

    def __getattr__(self, name: str) -> Foreign:
        return getattr(self._filesystem, name)

    async def _cat_ranges(self, paths: Foreign, starts: Foreign, ends: Foreign) -> Foreign:
        return await self._filesystem._cat_ranges(paths, starts, ends, on_error="raise")

    def cat_ranges(self, paths: Foreign, starts: Foreign, ends: Foreign) -> Foreign:
        return self._filesystem.cat_ranges(paths, starts, ends, on_error="raise")


class _Source(uproot.source.fsspec.FSSpecSource):  # type: ignore[misc, unused-ignore]
    """uproot's source for URLs, which fails where the network does."""

    _fs: Foreign

    def _open(self) -> None:
        super()._open()
        if not isinstance(self._fs, CachingFileSystem):  # uproot asks for its type; it reads whole files
            self._fs = _Raising(self._fs)


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """Open for reading; whatever uproot finds wrong with the file is one line."""
    try:
        with uproot.open({path: None}, **_options(path)) as file:
            size = file.file.source.num_bytes
            if file.file.fEND > size:
                raise InputError(path, f"is truncated ({size} of {file.file.fEND} bytes)", "copy or download it again")
            yield file
    except InputError:
        raise
    except Exception as error:  # uproot raises OSError, ValueError, KeyError, struct.error, ... for a damaged file
        told = one_line(path, error)
        if told is not None:
            raise told from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # a file cut short cannot be told from a corrupt one before its header is read
        reason = lines[0][:120] if lines else type(error).__name__
        raise InputError(
            path, f"cannot be read as ROOT: truncated or corrupt ({reason})", "copy or download it again"
        ) from error


def _options(path: str) -> dict[str, Any]:
    return {"handler": _Source, **filesystem_options(path)} if is_url(path) else {}


def _depth(branch: Foreign) -> int | None:
    """How many lists a number lies in: 0 for one number an entry, None for what is no number."""
    kind = str(getattr(branch, "typename", "")).replace("std::", "")
    kind = re.sub(r"^ROOT::RNTupleCardinality<(.*)>$", r"\1", kind)
    listed = re.fullmatch(r"(?:vector|ROOT::VecOps::RVec)<(.*)>|(.*?)\[\](?:\[\d+\])?", kind)
    if listed is not None:
        return 1 if (listed[1] or listed[2]) in _NUMBERS else None
    return 0 if kind in _NUMBERS else None


_NUMBERS = {
    *("float", "double", "bool", "char", "short", "int", "long", "long long", "Long64_t", "ULong64_t"),
    *("int8_t", "int16_t", "int32_t", "int64_t", "uint8_t", "uint16_t", "uint32_t", "uint64_t"),
    *("unsigned char", "unsigned short", "unsigned int", "unsigned long", "unsigned long long", "Double32_t"),
}


def _branches(tree: Foreign) -> dict[str, Any]:
    """Give what can be a column by its name alone: branches and their parts, or the fields of an RNTuple.

    An RNTuple that was made of a tree holds each list twice: as ``FatJet_pt``, and inside a nameless collection.
    """
    if "RNTuple" in type(tree).__name__:
        return {name: tree[name] for name in tree.keys(recursive=False)}
    branches = dict(tree.items(recursive=True, full_paths=False))
    return {**branches, **dict(tree.items(recursive=False))}


def _part(present: Iterable[str], layout: str) -> float:
    """Say which part of a layout's columns is there."""
    required = set(LAYOUTS[layout].required)
    return len(required & set(present)) / len(required)


class RootReader:
    """Reads TTrees and RNTuples; see :class:`~drapes_hep.events.readers.EventReader`."""

    container = "root"

    def sniff(self, head: bytes) -> bool:
        """ROOT's signature."""
        return head.startswith(b"root")

    def scan(self, path: str, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
        """Find the one tree that holds the columns."""
        with _open(path) as file:
            classes = file.classnames(recursive=True, cycle=False)
            trees = [
                name for name, kind in classes.items() if kind in {"TTree", "TNtuple", "TNtupleD"} or "RNTuple" in kind
            ]
            if object_path is not None:
                wanted = object_path.split(";")[0].strip("/")
                if wanted not in trees:
                    close = difflib.get_close_matches(wanted, trees, n=1, cutoff=0.3)
                    hint = f"did you mean '{close[0]}'?" if close else f"it holds {', '.join(trees[:5]) or 'no tree'}"
                    raise InputError(path, f"no tree '{wanted}' in it", hint)
                trees = [wanted]
            if not trees:
                held = ", ".join(list(classes)[:5]) or "nothing"
                raise InputError(path, f"holds no TTree or RNTuple (it holds {held})", "name a file of events")
            found = {name: _branches(file[name]) for name in trees}
            fits = {
                name: layout for name, have in found.items() if (layout := match_layout(have, _LAYOUTS, reading.layout))
            }
            if not fits:
                candidates = _LAYOUTS if reading.layout is None else (reading.layout,)
                best, likely = max(
                    ((tree, layout) for tree in trees for layout in candidates),
                    key=lambda pair: _part(found[pair[0]], pair[1]),
                )
                others = [one for one in _LAYOUTS if match_layout(found[best], (one,))]
                raise lacks(path, f"tree '{best}'", found[best], likely, others)
            if len(fits) > 1:
                name = PurePath(path).name
                raise InputError(
                    path,
                    f"several trees fit: {', '.join(fits)}",
                    f"say which, as data.path: {{{name}: {next(iter(fits))}}}, or with inspect --tree",
                )
            ((name, layout),) = fits.items()
            columns = columns_of(layout, found[name], reading)
            for column in columns:
                kind, depth = found[name][column].typename, _depth(found[name][column])
                if column in LAYOUTS[layout].lists and depth != 1:
                    raise InputError(path, f"column '{column}' is {kind}, not a list of numbers", "write it as one")
                if column not in LAYOUTS[layout].lists and depth != 0:
                    raise InputError(path, f"column '{column}' is {kind}, not one number an event", "flatten it")
            entries = int(file[name].num_entries)
        labelled = "label" in columns
        return FileInfo(path, self.container, layout, name, entries, file_key(path), labelled, columns)

    def simulation(self, path: str) -> Mapping[str, Any]:  # noqa: ARG002  as the protocol has it
        """Nothing: the project's own simulation writes no ROOT files."""
        return {}

    def present(self, info: FileInfo) -> tuple[str, ...]:
        """Top-level branches or fields."""
        with _open(info.path) as file:
            # a branch that holds read ones, such as Delphes' collections, is not left over
            holders = {name.rpartition(".")[0] for name in info.columns}
            return tuple(name for name in file[info.object_path].keys(recursive=False) if name not in holders)

    def columns(self, chunk: EventChunk) -> Columns:
        """Read with uproot."""
        with shared(_open, chunk.path) as file:
            branches = _branches(file[chunk.object_path])
            return {
                name: plain_column(branches[name].array(entry_start=chunk.start, entry_stop=chunk.stop, library="ak"))
                for name in chunk.columns
            }
