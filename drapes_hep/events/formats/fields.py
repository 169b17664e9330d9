"""Fields of a file, flat or nested, and the columns of a layout that they spell.

A layout names columns, such as ``FatJet_pt`` or ``EFlowTrack.PT``. A file may store the same numbers as a branch of
that name, or as the field ``pt`` of a record ``FatJet``. Columns are matched by the path to the numbers, its parts
joined with underscores. A field that has exactly the column's name is always preferred.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np

from drapes_hep.errors import InputError
from drapes_hep.events.formats.layouts import LAYOUTS
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS
from drapes_hep.events.types import AwkwardArray

__all__ = ["SKIM_PARTS", "Field", "check_field", "spell", "zip_jets"]

SKIM_PARTS: Mapping[str, int] = {
    **{f"jets.{name}": 1 for name in JET_FIELDS},
    **{f"jets.constituents.{name}": 2 for name in CONSTITUENT_FIELDS},
}
"""Columns that make up the ``jets`` of a skim, and how many lists their numbers are in."""


@dataclass(frozen=True)
class Field:
    """Numbers of a file.

    Parameters
    ----------
    path : tuple of str
        Names of the records around the numbers, and their own.
    depth : int or None
        Lists that each number of an event is in; None where they are not numbers.
    kind : str
        Type, as the file has it.
    handle : object
        What the reader needs to read them.
    size : int
        Length of the array of fixed size that is innermost; 0 where there is none.
    """

    path: tuple[str, ...]
    depth: int | None
    kind: str
    handle: Any = None
    size: int = 0

    @property
    def name(self) -> str:
        """The path as a single string."""
        return ".".join(self.path)


def _key(name: str) -> str:
    return name.replace(".", "_").replace("/", "_")


def _keys(field: Field) -> set[str]:
    """Return the keys that a field answers to; ``j1.px`` is also ``pxj1``."""
    key = _key(field.name)
    keys = {key, f"{key}[{field.size}]"} if field.size else {key}
    return keys | {_key("".join(reversed(field.path)))} if len(field.path) == 2 else keys


def _vocabulary(layouts: Iterable[str], keep: Sequence[str] = ()) -> list[str]:
    columns = dict.fromkeys(
        name for layout in layouts for name in (*LAYOUTS[layout].required, *LAYOUTS[layout].optional)
    )
    kept_columns = dict.fromkeys(
        name for layout in layouts for field in keep for name in LAYOUTS[layout].columns_of_field(field)
    )
    return [*columns, *(SKIM_PARTS if "jets" in columns else ()), *kept_columns]


def _match(path: str, fields: Sequence[Field], columns: Iterable[str]) -> dict[str, Field]:
    out = {field.path[0]: field for field in fields if len(field.path) == 1}
    index: defaultdict[str, list[Field]] = defaultdict(list)
    for field in fields:
        for key in _keys(field):
            index[key].append(field)
    for column in columns:
        fits = index.get(_key(column), []) if column not in out else []
        if len(fits) > 1:
            raise InputError(
                path,
                f"column '{column}' matches several fields: {', '.join(field.name for field in fits)}",
                "keep one of them",
            )
        if fits:
            out[column] = fits[0]
    # not treated as missing: without a weight, for example, every event would have weight 1
    records = {field.path[0] for field in fields if len(field.path) > 1} - {"jets"}
    return {name: Field((name,), None, "a record") for name in sorted(records.intersection(columns))} | out


def spell(path: str, fields: Sequence[Field], layouts: Sequence[str], keep: Sequence[str] = ()) -> dict[str, Field]:
    """Return the columns that the fields of a file spell.

    Parameters
    ----------
    path : str
        The file, for errors.
    fields : sequence of Field
        All of one tree or table.
    layouts : sequence of str
        Names in :data:`drapes_hep.events.formats.layouts.LAYOUTS` whose columns are looked for.
    keep : sequence of str
        Further fields of jets that are looked for.

    Returns
    -------
    dict of str to Field
        Columns of the layouts by their names, and every other field at the top under its own. Where the whole event is
        one record, its fields count as fields at the top. ``jets`` stands for the columns of :data:`SKIM_PARTS` where
        those of the jets are all present.

    Raises
    ------
    InputError
        Two fields that spell one column.
    """
    columns = _vocabulary(layouts, keep)
    required = [set(LAYOUTS[name].required) - {"jets"} for name in layouts]
    matches = (_match(path, view, columns) for view in _with_records_opened(fields))
    first = next(matches)
    complete = (
        match for match in itertools.chain([first], matches) if any(names <= match.keys() for names in required)
    )
    best = next(complete, first)
    if "jets" in columns and "jets" not in best and all(f"jets.{name}" in best for name in JET_FIELDS):
        best["jets"] = _joined(best, keep)
    return best


def _with_records_opened(fields: Sequence[Field]) -> Iterator[Sequence[Field]]:
    """Yield the fields as they are, and then with those of one record after the other at the top."""
    yield fields
    top = [field for field in fields if len(field.path) == 1]
    inner = [field for field in fields if len(field.path) > 1]
    for record in dict.fromkeys(field.path[0] for field in inner):
        yield top + [
            Field(field.path[1:], field.depth, field.kind, field.handle, field.size)
            for field in inner
            if field.path[0] == record
        ]


def _joined(columns: Mapping[str, Field], keep: Sequence[str]) -> Field:
    """Return the field that stands for the columns of jets; its depth is None if one of them is not a list."""
    depths = {**SKIM_PARTS, **{f"jets.{field}": 1 for field in keep}}
    parts = {name: columns[name] for name in depths if name in columns}
    wrong = [name for name, field in parts.items() if field.depth != depths[name]]
    return Field(("jets",), None if wrong else 1, columns[wrong[0]].kind if wrong else "records", parts)


def check_field(path: str, column: str, field: Field, layout: str) -> None:
    """Refuse a field that is not what a layout takes for a column.

    Parameters
    ----------
    path, column : str
        File and column.
    field : Field
        What spells the column.
    layout : str
        Name of the layout.

    Raises
    ------
    InputError
        No number, a list where one number is needed, or one number where a list is.
    """
    if field.depth is None and "[" not in field.kind and "<" not in field.kind:
        raise InputError(path, f"column '{column}' is {field.kind}, not numbers", "convert it")
    if column in LAYOUTS[layout].lists:
        if field.depth != 1:
            raise InputError(path, f"column '{column}' is {field.kind}, not a list of numbers", "write it as one")
    elif field.depth != 0:
        raise InputError(path, f"column '{column}' is {field.kind}, not one number per event", "flatten it")


def zip_jets(path: str, parts: Mapping[str, AwkwardArray]) -> AwkwardArray:
    """Return the jets of a skim, made of their columns.

    Parameters
    ----------
    path : str
        The file, for errors.
    parts : mapping of str to awkward.Array
        Columns of :data:`SKIM_PARTS`.

    Returns
    -------
    awkward.Array
        n lists of records.

    Raises
    ------
    InputError
        Lists of different lengths.
    """
    for axis, prefix in ((1, "jets."), (2, "jets.constituents.")):
        lengths = {
            name: ak.to_numpy(ak.flatten(ak.num(values, axis=axis), axis=None))
            for name, values in parts.items()
            if name.startswith(prefix) and values.ndim > axis
        }
        first = next(iter(lengths), "")
        for name, counts in lengths.items():
            if not np.array_equal(counts, lengths[first]):
                raise InputError(
                    path, f"column '{name}' has lists of a different length than column '{first}'", "write it again"
                )
    own = [name.removeprefix("jets.") for name in parts if name.count(".") == 1]
    jets = {name: parts[f"jets.{name}"] for name in own}
    inside = {name.rpartition(".")[2]: parts[name] for name in parts if name.startswith("jets.constituents.")}
    if inside:
        jets["constituents"] = ak.zip(inside, depth_limit=3)
    return ak.zip(jets, depth_limit=2)
