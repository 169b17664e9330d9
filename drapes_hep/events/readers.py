"""Files of events, of any kind: found, described, read. The content of a file decides its reader, never its name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from drapes_hep.errors import ConfigError, InputError, counted
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, label_file
from drapes_hep.events.formats.base import EventReader, columns_of
from drapes_hep.events.formats.columns import Columns
from drapes_hep.events.formats.hdf5 import Hdf5Reader
from drapes_hep.events.formats.layouts import LAYOUTS
from drapes_hep.events.formats.open_files import close_shared
from drapes_hep.events.formats.parquet import ParquetReader
from drapes_hep.events.formats.root import RootReader
from drapes_hep.events.nano_events import build_events
from drapes_hep.events.types import Events
from drapes_hep.remote import Alternatives, file_version, first_of, is_url, open_url, retried, sampled_hash

__all__ = [
    "READERS",
    "is_current",
    "narrowed",
    "no_events",
    "present",
    "read",
    "read_columns",
    "reader_for",
    "scan",
    "shared_identities",
    "simulation_order",
]

READERS: tuple[EventReader, ...] = (RootReader(), Hdf5Reader(), ParquetReader())
"""One for each kind of file; the first whose :meth:`~EventReader.sniff` takes a file reads it."""

_HEAD = 8


def _named(container: str) -> EventReader:
    return next(reader for reader in READERS if reader.container == container)


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
            f"column '{short[0]}' returned {counted(len(columns[short[0]]), 'row')}, not the {len(chunk)} requested",
            "the file changed while it was read, or is corrupt",
        )
    converted = LAYOUTS[chunk.layout].convert(columns, chunk)
    return build_events(converted.columns, {**chunk.event_metadata, "clipped_masses": converted.clipped_masses})


def checked(info: FileInfo, reading: Reading = DEFAULT_READING) -> FileInfo:
    """Refuse a file without events where the reading says so.

    Parameters
    ----------
    info : FileInfo
        From a scan.
    reading : Reading
        Its ``empty`` decides.

    Returns
    -------
    FileInfo
        The same.
    """
    if info.entries == 0 and reading.empty == "error":
        raise InputError(info.path, "holds no events", "remove it from the list, or set data.empty to skip")
    return info


def no_events(infos: Sequence[FileInfo]) -> InputError:
    """Return the error that a data set holds no events at all.

    Parameters
    ----------
    infos : sequence of FileInfo
        All of its files, at least one.

    Returns
    -------
    InputError
        To raise.
    """
    more = ", and neither does any other file of its data set" if len(infos) > 1 else ""
    return InputError(infos[0].path, f"holds no events{more}", "name files that hold some")


def shared_identities(infos: Sequence[FileInfo]) -> list[InputError]:
    """Return an error for each file whose events would have the identities of another file's.

    Parameters
    ----------
    infos : sequence of FileInfo
        Of all data sets of a run. Files without events share nothing.

    Returns
    -------
    list of InputError
        In the order of the files.
    """
    by_id: dict[int, FileInfo] = {}
    errors = []
    for info in infos:
        if not info.entries:
            continue
        other = by_id.setdefault(info.id, info)
        if other is info or (other.has_event_ids and info.has_event_ids):
            continue
        if other.path != info.path:
            problem = f"has the same name as {other.path}"
        elif other.object_path != info.object_path:
            problem = f"is listed with '{other.object_path}' and with '{info.object_path}'"
        else:
            problem = "is listed twice"
        errors.append(
            InputError(
                info.path,
                f"{problem}, and events without an 'event_id' column are identified by file name and row",
                "rename one of them, or add the column",
            )
        )
    return errors


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


def _remote_head(url: str) -> bytes:
    with open_url(url, 512) as stream:
        head = bytes(stream.read(_HEAD))
        if head and not _is_page(head):
            # a server that ignores what part is asked for would pass for one whose file is corrupt
            stream.seek(max(0, (stream.size or 0) - 1))
            stream.read(1)
        return head


def _is_page(head: bytes) -> bool:
    return head.lstrip().startswith(b"<")


def reader_for(path: str | Path) -> EventReader:
    """Find the reader of a file, by its first bytes.

    Parameters
    ----------
    path : str or Path
        Path or URL.

    Returns
    -------
    EventReader

    Raises
    ------
    InputError
        Missing, unreadable, empty, a folder, or of no known kind.
    """
    text = str(path)
    head = _remote_head(text) if is_url(text) else _head(text)
    if not head:
        raise InputError(text, "is empty", "copy or make it again")
    for reader in READERS:
        if reader.sniff(head):
            return reader
    if is_url(text) and _is_page(head):
        raise InputError(text, "is a web page, not a file of events", "give the address of the file itself")
    raise InputError(text, "is not a ROOT, HDF5 or Parquet file", "the content decides, whatever the name says")


def _scan_place(text: str, object_path: str | None, reading: Reading) -> FileInfo:
    reader = reader_for(text)
    place = text if is_url(text) else str(Path(text).absolute())
    # asked first: whoever reads a chunk compares with what was there before anything was read
    version = file_version(place)
    states = () if is_url(place) else ((place, _state(place)),)
    return dataclasses.replace(reader.scan(place, object_path, reading), places=((place, version),), states=states)


def _state(place: str) -> str:
    """Return size and time of change of a file on disk; empty where it is gone."""
    try:
        status = Path(place).stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def is_current(info: FileInfo) -> bool:
    """Whether a file on disk is still as it was scanned; what is behind a URL is compared when it is read.

    Parameters
    ----------
    info : FileInfo
        From :func:`scan`.

    Returns
    -------
    bool
    """
    return all(_state(place) == state for place, state in info.states)


def narrowed(info: FileInfo, reading: Reading) -> FileInfo:
    """Describe a file that was scanned for more than is wanted now, without opening it.

    Parameters
    ----------
    info : FileInfo
        From :func:`scan`.
    reading : Reading
        That of the scan, or one without constituents or without jets.

    Returns
    -------
    FileInfo
        As :func:`scan` gives it for this reading.
    """
    layout = LAYOUTS[info.layout]
    own = {*layout.required, *layout.optional}
    if not reading.constituents:
        own |= layout.constituent_columns
    further = [name for name in info.columns if name not in own] if reading.jets else []
    return dataclasses.replace(info, columns=(*columns_of(info.layout, info.columns, reading), *further))


def _with_others(path: Alternatives, info: FileInfo, object_path: str | None, reading: Reading) -> FileInfo:
    """Add the other places that answer, which must hold the same; those that do not answer are left out."""
    (first,) = info.places
    content = sampled_hash(Alternatives([first[0]]))
    places, states = {first[0]: first}, dict(info.states)
    for place in path.places:
        absolute = place if is_url(place) else str(Path(place).absolute())
        if absolute == first[0]:
            continue
        try:
            other = retried(partial(_scan_place, place, object_path, reading), attempts=1)
            same = sampled_hash(Alternatives([place])) == content
        except InputError:
            continue
        if not same or (other.entries, other.columns) != (info.entries, info.columns):
            raise InputError(
                place,
                f"holds other content than {first[0]} ({other.entries} and {info.entries} events)",
                "name places of one file",
            )
        places[absolute] = other.places[0]
        states |= dict(other.states)
    named = [place if is_url(place) else str(Path(place).absolute()) for place in path.places]
    label_files = (Alternatives([label_file(place) for place in named]),) if info.companions else ()
    return dataclasses.replace(
        info,
        path=named[0],
        places=tuple(places[place] for place in named if place in places),
        states=tuple(states.items()),
        companions=label_files,
    )


def scan(path: str | Path, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
    """Describe a file of events of any known kind.

    Parameters
    ----------
    path : str or Path
        Path or URL.
    object_path : str, optional
        Tree or HDF5 key; found by its columns where there is only one.
    reading : Reading
        Choices of the reader.

    Returns
    -------
    FileInfo
        With an absolute path.

    Raises
    ------
    InputError
        With the one line that says what is wrong.
    """
    if reading.layout is not None and reading.layout not in LAYOUTS:
        close = difflib.get_close_matches(reading.layout, LAYOUTS, n=1, cutoff=0.4)
        hint = f"did you mean '{close[0]}'?" if close else f"available: {', '.join(LAYOUTS)}"
        raise ConfigError(f"data.layout: unknown layout '{reading.layout}'; {hint}")
    text = path if isinstance(path, Alternatives) else str(path)
    info = checked(first_of(text, lambda place: _scan_place(place, object_path, reading)), reading)
    if isinstance(text, Alternatives):
        info = _with_others(text, info, object_path, reading)
    if info.entries and reading.constituents and not LAYOUTS[info.layout].constituents:
        raise InputError(
            text,
            f"holds no constituents of jets (layout '{info.layout}')",
            "name a file of raw events or PF candidates",
        )
    return info


def _places(info: FileInfo) -> Alternatives:
    return Alternatives([place for place, _ in info.places] or [info.path])


def present(info: FileInfo) -> tuple[str, ...]:
    """List all columns of a scanned object, also those that its layout does not read.

    Parameters
    ----------
    info : FileInfo
        From :func:`scan`.

    Returns
    -------
    tuple of str
        In the file's order.
    """
    return first_of(_places(info), lambda place: _named(info.container).present(dataclasses.replace(info, path=place)))


def simulation_order(info: FileInfo) -> dict[str, Any] | None:
    """Return what a simulated file was ordered as.

    Parameters
    ----------
    info : FileInfo
        From :func:`scan`.

    Returns
    -------
    dict or None
        The process with its settings, ``seed``, ``events``, ``block``, ``format``, ``versions``; None for a file that
        ``drapes simulate`` did not write.
    """
    record = first_of(_places(info), _named(info.container).simulation)
    order = record.get("order") if isinstance(record, dict) else None
    return order if isinstance(order, dict) else None


def read(chunk: EventChunk, *, attempts: int | None = None) -> Events:
    """Read a chunk with the reader that its container names.

    Parameters
    ----------
    chunk : EventChunk
        From :func:`drapes_hep.events.chunks.split`.
    attempts : int, optional
        As for :func:`read_columns`.

    Returns
    -------
    NanoEvents
        ``len(chunk)`` events; ``events.metadata["clipped_masses"]`` counts masses that were rounding errors below 0.
    """
    return convert(read_columns(chunk, attempts=attempts), chunk)


def read_columns(chunk: EventChunk, *, attempts: int | None = None) -> Columns:
    """Read a chunk's columns as the file spells them.

    Parameters
    ----------
    chunk : EventChunk
        Its ``columns`` are what is read.
    attempts : int, optional
        At most, where the file is behind a URL and a failure may pass; see :func:`drapes_hep.remote.retried`.

    Returns
    -------
    mapping of str to array

    Raises
    ------
    InputError
        The file cannot be read, or is not the one that was scanned.
    """
    versions = dict(chunk.places) or {chunk.path: ""}

    def at(place: str) -> Columns:
        columns = _named(chunk.container).columns(dataclasses.replace(chunk, path=place))
        # afterwards: what was the same before and after was the same in between
        if versions[place] and file_version(place) != versions[place]:
            close_shared()
            raise InputError(place, "changed on the server while it was read", "run the same command again")
        return columns

    return first_of(Alternatives(list(versions)), at, attempts)
