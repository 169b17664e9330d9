"""What a reader of one kind of file offers, and what the readers share: columns, and the layout that they fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import awkward as ak

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading
from drapes_hep.events.formats.columns import Columns, missing_columns
from drapes_hep.events.formats.layouts import LAYOUTS
from drapes_hep.events.types import AwkwardArray, Column

__all__ = ["EventReader", "check_kept", "columns_of", "layout_error", "match_layout", "nearest", "plain_column"]


class EventReader(Protocol):
    """What opens one kind of file.

    A new container (or a new layout in an old one) is a class with these members and its place in
    :data:`drapes_hep.events.readers.READERS`.
    """

    container: str

    def sniff(self, head: bytes) -> bool:
        """Tell from a file's first bytes whether it is of this kind."""
        ...

    def scan(self, path: str, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
        """Describe the file from its metadata; every defect is an :class:`~drapes_hep.errors.InputError`."""
        ...

    def simulation(self, path: str) -> Mapping[str, Any]:
        """Return the record that ``drapes simulate`` left in the file; empty for a file of other origin."""
        ...

    def present(self, info: FileInfo) -> tuple[str, ...]:
        """List all columns of the scanned object, also those that the layout does not read."""
        ...

    def columns(self, chunk: EventChunk) -> Columns:
        """Read the chunk's columns as the file spells them."""
        ...


def plain_column(values: AwkwardArray, path: str = "", name: str = "") -> Column:
    """Return a column as layouts take it: numpy where it is flat, packed awkward where it is ragged.

    Parameters
    ----------
    values : awkward.Array
        As a file delivers it.
    path, name : str
        File and column, for errors.

    Returns
    -------
    array

    Raises
    ------
    InputError
        Missing values, which would be read as numbers.
    """
    values = ak.materialize(values)
    if "?" in str(values.type) or "option[" in str(values.type):
        missing = int(ak.sum(ak.is_none(values, axis=-1), axis=None)) + (values.ndim > 1) * int(
            ak.sum(ak.is_none(values))
        )
        if missing:
            raise InputError(path, f"column '{name}' has {missing} missing values", "fill or drop them")
        values = ak.drop_none(values, axis=-1)
    if values.ndim == 1 and not ak.fields(values):
        return ak.to_numpy(values)
    return ak.to_packed(ak.without_parameters(values))


def match_layout(present: Iterable[str], layouts: Iterable[str], only: str | None = None) -> str | None:
    """Name the first of the layouts whose required columns are all present.

    Parameters
    ----------
    present : iterable of str
        Columns of the file.
    layouts : iterable of str
        Names in :data:`drapes_hep.events.formats.layouts.LAYOUTS`, the preferred first.
    only : str, optional
        Only this one.

    Returns
    -------
    str or None
    """
    have = set(present)
    fits = (name for name in layouts if have.issuperset(LAYOUTS[name].required))
    return next((name for name in fits if only in (None, name)), None)


def columns_of(layout: str, present: Iterable[str], reading: Reading = DEFAULT_READING) -> tuple[str, ...]:
    """List the columns that a layout reads from a file that has these.

    Parameters
    ----------
    layout : str
        Name of the layout.
    present : iterable of str
        Columns of the file.
    reading : Reading
        Choices of the reader: what it does not ask for is not read.

    Returns
    -------
    tuple of str
    """
    have, spelling = set(present), LAYOUTS[layout]
    if not reading.jets:
        have -= spelling.lists
    if not reading.constituents:
        have -= spelling.constituent_columns
    return tuple(name for name in (*spelling.required, *spelling.optional) if name in have)


def check_kept(path: str, layout: str, spelled: Mapping[str, Any], reading: Reading) -> tuple[str, ...]:
    """Return the columns of a file that hold further fields of jets.

    Parameters
    ----------
    path : str
        The file, for errors.
    layout : str
        Its layout.
    spelled : mapping of str to Field
        Its columns; anything else than a :class:`~drapes_hep.events.formats.fields.Field` is one number per event.
    reading : Reading
        Its ``keep``.

    Returns
    -------
    tuple of str

    Raises
    ------
    InputError
        The layout has no such columns, the file lacks one, or it is not one number per jet.
    """
    if not reading.jets:
        return ()
    spelling = LAYOUTS[layout]
    out: list[str] = []
    for field in reading.keep:
        columns = spelling.columns_of_field(field)
        if not columns:
            raise InputError(
                path, f"files of layout '{layout}' hold no further fields of jets", "leave selection.keep empty"
            )
        absent = missing_columns(columns, spelled)
        if absent:
            raise InputError(path, f"has no {absent} for selection.keep: {field}", "correct the name")
        lists = int(bool(spelling.lists))
        for name in columns:
            column = spelled[name]
            if getattr(column, "depth", lists) != lists or getattr(column, "size", 0):
                raise InputError(
                    path, f"column '{name}' is {column.kind}, not one number per jet", "keep another field"
                )
        # the jets of a skim are one column
        out += [] if "jets" in spelling.required else columns
    return tuple(out)


def nearest(present: Iterable[str], layouts: Iterable[str]) -> tuple[float, str]:
    """Return the layout that columns come nearest to, and the fraction of its required columns that they have.

    Parameters
    ----------
    present : iterable of str
        Columns of the file.
    layouts : iterable of str
        To choose from; of equals, the first.

    Returns
    -------
    fraction : float
        Names that differ in upper and lower case or in punctuation alone count half.
    layout : str
    """
    have = set(present)
    plain = {_plain(name) for name in have}

    def fraction(layout: str) -> float:
        required = LAYOUTS[layout].required
        return sum(1.0 if name in have else 0.5 * (_plain(name) in plain) for name in required) / len(required)

    return max(((fraction(layout), layout) for layout in layouts), key=lambda pair: pair[0])


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def layout_error(
    path: str, where: str, present: Iterable[str], layouts: Sequence[str], only: str | None = None
) -> InputError:
    """Return the error that no layout fits, by what the nearest one lacks.

    Parameters
    ----------
    path : str
        The file.
    where : str
        The object inside it, as the message shall call it.
    present : iterable of str
        Its columns.
    layouts : sequence of str
        Those of this kind of file.
    only : str, optional
        The only one that was asked for.

    Returns
    -------
    InputError
        To raise.
    """
    have = list(present)
    fits = ", ".join(name for name in layouts if match_layout(have, (name,)))
    if only is not None and only not in layouts:
        remedy = f"data.layout can be {fits or ', '.join(layouts)}"
        return InputError(path, f"{where} cannot be of layout '{only}'", remedy)
    if fits:
        absent = missing_columns(LAYOUTS[str(only)].required, have)
        problem = f"{where} does not fit layout '{only}': it lacks {absent}"
        return InputError(path, problem, f"data.layout can be {fits}")
    fraction, layout = nearest(have, layouts if only is None else (only,))
    if not fraction:
        listed = ", ".join(have[:5]) + (" and others" if len(have) > 5 else "")
        first = {LAYOUTS[name].required[0]: name for name in reversed(layouts)}
        examples = [f"{name} ({column}, ...)" for column, name in reversed(first.items())]
        return InputError(
            path,
            f"{where} has none of the dijet columns (it has {listed or 'no columns'})",
            f"expected the columns of a layout: {', '.join(examples[:6])}",
        )
    return InputError(
        path,
        f"{where} lacks {missing_columns(LAYOUTS[layout].required, have)} of layout '{layout}', the nearest",
        "add the column or name the right file",
    )
