"""Readers: what opens a file and hands out events. The content of a file decides which one, never its name."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import EventChunk, FileInfo
from drapes_hep.events.layouts import LAYOUTS, Columns, missing_columns
from drapes_hep.events.schema import build_events
from drapes_hep.events.types import Events

__all__ = ["EventReader", "expand", "expand_trees", "read", "reader_for", "scan"]

_HEAD = 8


class EventReader(Protocol):
    """What opens one kind of file.

    A new container (or a new layout in an old one) is a class with these members and a line in :func:`_readers`.
    """

    container: str
    remote: bool
    """Whether it opens URLs."""

    def sniff(self, head: bytes) -> bool:
        """Tell from a file's first bytes whether it is of this kind."""
        ...

    def scan(self, path: str, object_path: str | None = None) -> FileInfo:
        """Describe the file from its metadata; every defect is an :class:`~drapes_hep.errors.InputError`."""
        ...

    def columns(self, chunk: EventChunk) -> Columns:
        """Read the chunk's columns as the file spells them."""
        ...

    def read(self, chunk: EventChunk) -> Events:
        """Read the chunk as NanoEvents in :class:`~drapes_hep.events.schema.DijetSchema`."""
        ...


def _readers() -> tuple[EventReader, ...]:
    from drapes_hep.events.hdf5 import Hdf5Reader
    from drapes_hep.events.root import RootReader
    from drapes_hep.events.skims import ParquetReader

    return (RootReader(), Hdf5Reader(), ParquetReader())


def read_with(reader: EventReader, chunk: EventChunk) -> Events:
    """Read, convert and build: the common part of every reader's ``read``.

    Parameters
    ----------
    reader : EventReader
        Delivers the columns.
    chunk : EventChunk
        What to read.

    Returns
    -------
    NanoEvents
        ``len(chunk)`` events; ``events.metadata["clipped_masses"]`` counts masses that were rounding errors below 0.
    """
    return convert(reader.columns(chunk), chunk)


def convert(columns: Columns, chunk: EventChunk) -> Events:
    """Check a chunk's columns and make NanoEvents of them.

    Parameters
    ----------
    columns : mapping of str to array
        As the file spells them.
    chunk : EventChunk
        Where they come from.

    Returns
    -------
    NanoEvents

    Raises
    ------
    BadValuesError
        Values that no event can have.
    """
    short = [name for name, values in columns.items() if len(values) != len(chunk)]
    if short:
        raise InputError(
            chunk.path,
            f"column '{short[0]}' gave {len(columns[short[0]])} rows where {len(chunk)} were asked for",
            "the file changed while it was read, or is corrupt",
        )
    converted = LAYOUTS[chunk.layout].convert(columns, chunk)
    return build_events(converted.columns, {**chunk.event_metadata, "clipped_masses": converted.clipped_masses})


def match_layout(present: Iterable[str], layouts: Iterable[str]) -> str | None:
    """Name the first of the layouts whose required columns are all present.

    Parameters
    ----------
    present : iterable of str
        Columns of the file.
    layouts : iterable of str
        Names in :data:`drapes_hep.events.layouts.LAYOUTS`.

    Returns
    -------
    str or None
    """
    have = set(present)
    return next((name for name in layouts if have.issuperset(LAYOUTS[name].required)), None)


def columns_of(layout: str, present: Iterable[str]) -> tuple[str, ...]:
    """List the columns that a layout reads from a file that has these.

    Parameters
    ----------
    layout : str
        Name of the layout.
    present : iterable of str
        Columns of the file.

    Returns
    -------
    tuple of str
    """
    have = set(present)
    return tuple(name for name in (*LAYOUTS[layout].required, *LAYOUTS[layout].optional) if name in have)


def lacks(path: str, where: str, present: Iterable[str], layout: str = "features") -> InputError:
    """Say that no layout fits, by what the likeliest one misses.

    Parameters
    ----------
    path : str
        The file.
    where : str
        The object inside it, as the message shall call it.
    present : iterable of str
        Its columns.
    layout : str
        The layout to compare with.

    Returns
    -------
    InputError
        To raise.
    """
    have = list(present)
    if not set(have) & set(LAYOUTS[layout].required):
        shown = ", ".join(have[:5]) + (" and others" if len(have) > 5 else "")
        return InputError(
            path,
            f"{where} has none of the dijet columns (it has {shown or 'no columns'})",
            f"expected {', '.join(LAYOUTS[layout].required[:3])} and so on",
        )
    return InputError(
        path,
        f"{where} lacks {missing_columns(LAYOUTS[layout].required, have)}",
        "add the column or name the right file",
    )


def checked(info: FileInfo) -> FileInfo:
    """Refuse a file without events: a search that silently runs on nothing helps nobody.

    Parameters
    ----------
    info : FileInfo
        From a scan.

    Returns
    -------
    FileInfo
        The same.
    """
    if info.entries == 0:
        raise InputError(info.path, "holds zero events", "take it out of the list of files")
    return info


def _head(path: str) -> bytes:
    file = Path(path)
    if file.is_dir():
        raise InputError(path, "is a folder", "name files, or a pattern such as 'folder/*.root'")
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
            if head and not head.startswith((b"root", b"PAR1", b"\x89HDF")):
                # HDF5 allows a user block: the signature then stands at 512, 1024, 2048, ...
                position = 512
                while stream.seek(position) < os.fstat(stream.fileno()).st_size:
                    later = stream.read(_HEAD)
                    if later == b"\x89HDF\r\n\x1a\n":
                        return later
                    position *= 2
            return head
    except FileNotFoundError:
        names = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        close = difflib.get_close_matches(file.name, names, n=1, cutoff=0.6)
        remedy = f"did you mean '{close[0]}'?" if close else "check the path"
        raise InputError(path, "no such file", remedy) from None
    except PermissionError:
        raise InputError(path, "no permission to read it", "ask its owner, or chmod u+r") from None
    except OSError as error:
        raise InputError(path, f"cannot be opened ({error.strerror or error})", "check the path and the disk") from None


def reader_for(path: str | Path) -> EventReader:
    """Find the reader of a file, by its first bytes.

    Parameters
    ----------
    path : str or Path
        Path, or a URL (ROOT only).

    Returns
    -------
    EventReader

    Raises
    ------
    InputError
        Missing, unreadable, empty, a folder, or of no known kind.
    """
    text = str(path)
    if "://" in text:
        return next(reader for reader in _readers() if reader.remote)
    head = _head(text)
    if not head:
        raise InputError(text, "is empty", "copy or make it again")
    for reader in _readers():
        if reader.sniff(head):
            return reader
    raise InputError(text, "is not a ROOT, HDF5 or Parquet file", "the content decides, whatever the name says")


def scan(path: str | Path, object_path: str | None = None) -> FileInfo:
    """Describe a file of events of any known kind.

    Parameters
    ----------
    path : str or Path
        Path, or a URL (ROOT only).
    object_path : str, optional
        Tree or HDF5 key; found by its columns where there is only one.

    Returns
    -------
    FileInfo
        With an absolute path, at least one event.

    Raises
    ------
    InputError
        With the one line that says what is wrong.
    """
    text = str(path)
    reader = reader_for(text)
    return checked(reader.scan(text if "://" in text else str(Path(text).absolute()), object_path))


def expand(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """Turn paths and patterns into the sorted list of files that they name.

    Parameters
    ----------
    paths : str, Path or iterable of them
        ``*``, ``?`` and ``[...]`` are patterns where no file has literally that name; URLs are taken as they are.

    Returns
    -------
    list of str
        Each once; a plain path need not exist, its reader will say so.

    Raises
    ------
    InputError
        A pattern that matches nothing.
    """
    found: set[str] = set()
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        text = str(path)
        if "://" in text or not glob.has_magic(text) or Path(text).exists():
            found.add(text)
            continue
        matches = glob.glob(text, recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
        if not matches:
            raise InputError(text, "no file matches this pattern", "check the folder and the suffix")
        found.update(matches)
    return sorted(found)


def expand_trees(paths: str | Path | Iterable[str | Path] | Mapping[str, str]) -> dict[str, str | None]:
    """Turn paths and patterns into the files that they name, each with the tree to read.

    Parameters
    ----------
    paths : str, Path, iterable of them, or mapping of str to str
        As for :func:`expand`; a mapping names the tree or HDF5 key of each.

    Returns
    -------
    dict of str to str or None
        Sorted; None where the columns shall tell the tree.

    Raises
    ------
    InputError
        A pattern that matches nothing, or a file that two patterns give two trees.
    """
    if not isinstance(paths, Mapping):
        return dict.fromkeys(expand(paths))
    found: dict[str, str | None] = {}
    for pattern, tree in paths.items():
        for path in expand(pattern):
            if found.setdefault(path, tree) != tree:
                raise InputError(path, f"is given two trees, {found[path]} and {tree}", "name one")
    return dict(sorted(found.items()))


def read(chunk: EventChunk) -> Events:
    """Read a chunk with the reader that its container names.

    Parameters
    ----------
    chunk : EventChunk
        From :func:`drapes_hep.events.chunks.split`.

    Returns
    -------
    NanoEvents
    """
    return next(r for r in _readers() if r.container == chunk.container).read(chunk)
