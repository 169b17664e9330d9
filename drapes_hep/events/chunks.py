"""What a file holds and which part of it one task reads: plain frozen records that travel to workers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from drapes_hep.events.schema import IDENTITY_FIELDS
from drapes_hep.remote import is_url, sibling, url_stem

__all__ = ["DEFAULT_READING", "EventChunk", "FileInfo", "Reading", "file_key", "label_file", "split", "states_ids"]


@dataclass(frozen=True)
class Reading:
    """How a file is read where it leaves a choice.

    Parameters
    ----------
    layout : str, optional
        A name of :data:`drapes_hep.events.formats.layouts.LAYOUTS`; by default the first that fits the file.
    radius : float
        Of the anti-kT jets, where jets are clustered here.
    axes : {"onepass_kt", "kt"}
        Of N-subjettiness, where it is computed here.
    constituents : bool
        Whether jets carry their constituents.
    jets : bool
        False where identities and labels are all that is wanted: layouts that cluster leave it.
    empty : {"skip", "error"}
        What to do with a file without events.
    keep : tuple of str
        Further fields of jets.
    """

    layout: str | None = None
    radius: float = 1.0
    axes: str = "onepass_kt"
    constituents: bool = False
    jets: bool = True
    empty: str = "skip"
    keep: tuple[str, ...] = ()


DEFAULT_READING = Reading()
"""No choice made."""


@dataclass(frozen=True)
class FileInfo:
    """What a reader found in a file, from its metadata alone.

    Parameters
    ----------
    path : str
        Absolute path, or a URL.
    container : str
        The reader that opens it: ``hdf5``, ``root`` or ``parquet``.
    layout : str
        How its columns spell an event: a name of :data:`drapes_hep.events.formats.layouts.LAYOUTS`.
    object_path : str
        The object inside the file (tree, HDF5 group); empty where the file is the object.
    entries : int
        Events.
    id : int
        31-bit key of the file's stem, see :func:`file_key`.
    has_labels : bool
        Whether a truth label is among the columns.
    columns : tuple of str
        The columns that the layout reads from this file, in the layout's order.
    companions : tuple of str
        Other files that are read with it, such as labels.
    remarks : tuple of str
        What a user should know of how the file is read, such as a choice between two cycles of a tree.
    places : tuple of (str, str)
        Where it is read, in the order in which they are tried, each with what tells its content from a later one, see
        :func:`drapes_hep.remote.file_version`.
    states : tuple of (str, str)
        Those of these places that are on disk, each with its size and time of change before it was opened.
    """

    path: str
    container: str
    layout: str
    object_path: str
    entries: int
    id: int
    has_labels: bool
    columns: tuple[str, ...]
    companions: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    states: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def has_event_ids(self) -> bool:
        """Whether the file states its events' identities."""
        return states_ids(self.columns)


def states_ids(columns: Collection[str]) -> bool:
    """Whether the columns of a file identify its events: by ``event_id``, or as an experiment numbers them.

    Parameters
    ----------
    columns : collection of str
        What is read.

    Returns
    -------
    bool
    """
    return "event_id" in columns or set(IDENTITY_FIELDS) <= set(columns)


@dataclass(frozen=True)
class EventChunk:
    """A run of events of one file: the unit of work.

    Parameters
    ----------
    dataset : str
        Name in the fileset.
    path, container, layout, object_path, file_id, columns, places
        As in :class:`FileInfo` (``file_id`` is its ``id``).
    start, stop : int
        Rows, ``start`` inclusive and ``stop`` exclusive.
    metadata : mapping
        What the user attached to the dataset; a processor finds it in ``events.metadata``.
    reading : Reading
        Choices of the reader.
    """

    dataset: str
    path: str
    container: str
    layout: str
    object_path: str
    start: int
    stop: int
    file_id: int
    columns: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    reading: Reading = DEFAULT_READING
    places: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What results are ordered by: neither the order of files nor the workers' speed."""
        return (self.dataset, self.file_id, self.path, self.start)

    @property
    def event_metadata(self) -> dict[str, Any]:
        """The ``events.metadata`` of this chunk, with the names that coffea's Runner uses."""
        return {
            **self.metadata,
            "dataset": self.dataset,
            "filename": self.path,
            "treename": self.object_path,
            "entrystart": self.start,
            "entrystop": self.stop,
            "file_id": self.file_id,
        }


def file_key(path: str) -> int:
    """Return the 31-bit key of a file: a hash of its name without folder and last suffix.

    The same events as ``x.h5`` and ``x.root`` therefore get the same identities.

    Parameters
    ----------
    path : str
        Path or URL.

    Returns
    -------
    int
        In [0, 2**31).
    """
    stem = url_stem(path) if is_url(path) else PurePath(path).stem
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:4], "big") >> 1


def label_file(path: str) -> str:
    """Return the place of a raw file's labels where they are not a column of it: ``<stem>.masterkey``, as published.

    Parameters
    ----------
    path : str
        Path or URL of the raw file.

    Returns
    -------
    str
        Path or URL. It need not exist.
    """
    return sibling(path, ".masterkey") if is_url(path) else str(Path(path).with_suffix(".masterkey"))


def split(
    info: FileInfo,
    dataset: str = "",
    chunksize: int = 50_000,
    metadata: Mapping[str, Any] | None = None,
    reading: Reading = DEFAULT_READING,
) -> list[EventChunk]:
    """Cut a file into chunks of at most ``chunksize`` events.

    Parameters
    ----------
    info : FileInfo
        From a reader's ``scan``.
    dataset : str
        Name in the fileset.
    chunksize : int
        Events, at least 1.
    metadata : mapping, optional
        Attached to each chunk.
    reading : Reading
        Choices of the reader, attached to each chunk.

    Returns
    -------
    list of EventChunk
        They cover every row once, in order.
    """
    if chunksize < 1:
        raise ValueError(f"chunksize must be at least 1, got {chunksize}")
    return [
        EventChunk(
            dataset=dataset,
            path=info.path,
            container=info.container,
            layout=info.layout,
            object_path=info.object_path,
            start=start,
            stop=min(start + chunksize, info.entries),
            file_id=info.id,
            columns=info.columns,
            metadata=dict(metadata or {}),
            reading=reading,
            places=info.places,
        )
        for start in range(0, info.entries, chunksize)
    ]
