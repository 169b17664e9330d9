"""ROOT files: TTree and RNTuple, by uproot."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import uproot

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import EventChunk, FileInfo, file_key
from drapes_hep.events.layouts import LAYOUTS, Columns
from drapes_hep.events.readers import columns_of, lacks, match_layout, read_with
from drapes_hep.events.types import Events, Foreign

__all__ = ["RootReader"]

_LAYOUTS = ("features",)


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """Open for reading; whatever uproot finds wrong with the file is one line."""
    try:
        with uproot.open({path: None}) as file:
            size = Path(path).stat().st_size if "://" not in path else file.file.fEND
            if file.file.fEND > size:
                raise InputError(path, f"is truncated ({size} of {file.file.fEND} bytes)", "copy or download it again")
            yield file
    except InputError:
        raise
    except Exception as error:  # uproot raises OSError, ValueError, KeyError, struct.error, ... for a damaged file
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # a file cut short cannot be told from a corrupt one before its header is read
        reason = lines[0][:120] if lines else type(error).__name__
        raise InputError(
            path, f"cannot be read as ROOT: truncated or corrupt ({reason})", "copy or download it again"
        ) from error


def _is_flat_number(branch: Foreign) -> bool:
    """One number an entry: a jagged or class-typed branch cannot be a column of the layout."""
    return str(getattr(branch, "typename", "")).removeprefix("std::") in _NUMBERS


_NUMBERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_NUMBERS = {
    *("float", "double", "bool", "char", "short", "int", "long", "long long", "Long64_t", "ULong64_t"),
    *("int8_t", "int16_t", "int32_t", "int64_t", "uint8_t", "uint16_t", "uint32_t", "uint64_t"),
    *("unsigned char", "unsigned short", "unsigned int", "unsigned long", "unsigned long long", "Double32_t"),
}


class RootReader:
    """Reads TTrees and RNTuples; see :class:`~drapes_hep.events.readers.EventReader`."""

    container = "root"
    remote = True

    def sniff(self, head: bytes) -> bool:
        """ROOT's signature."""
        return head.startswith(b"root")

    def scan(self, path: str, object_path: str | None = None) -> FileInfo:
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
            found = {name: {key: file[name][key] for key in file[name].keys(recursive=False)} for name in trees}
            fits = {name: layout for name, have in found.items() if (layout := match_layout(have, _LAYOUTS))}
            if not fits:
                wanted_columns = set(LAYOUTS[_LAYOUTS[0]].required)
                best = max(trees, key=lambda name: len(set(found[name]) & wanted_columns))
                raise lacks(path, f"tree '{best}'", found[best])
            if len(fits) > 1:
                name = PurePath(path).name
                raise InputError(
                    path,
                    f"several trees fit: {', '.join(fits)}",
                    f"say which, as data.path: {{{name}: {next(iter(fits))}}}, or with inspect --tree",
                )
            ((name, layout),) = fits.items()
            columns = columns_of(layout, found[name])
            for column in columns:
                if not _is_flat_number(found[name][column]):
                    kind = found[name][column].typename
                    raise InputError(path, f"column '{column}' is {kind}, not one number an event", "flatten it")
            entries = int(file[name].num_entries)
        return FileInfo(path, self.container, layout, name, entries, file_key(path), "label" in columns, columns)

    def columns(self, chunk: EventChunk) -> Columns:
        """Read with uproot."""
        with _open(chunk.path) as file:
            arrays = file[chunk.object_path].arrays(
                list(chunk.columns), entry_start=chunk.start, entry_stop=chunk.stop, library="ak"
            )
            return {name: np.asarray(arrays[name]) for name in chunk.columns}

    def read(self, chunk: EventChunk) -> Events:
        """Read events."""
        return read_with(self, chunk)
