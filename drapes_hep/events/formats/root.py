"""ROOT files: TTree and RNTuple, by uproot."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import awkward as ak
import uproot
import uproot.source.fsspec
from fsspec.implementations.cached import CachingFileSystem

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, file_key
from drapes_hep.events.formats.base import check_kept, columns_of, layout_error, match_layout, nearest, plain_column
from drapes_hep.events.formats.columns import Columns
from drapes_hep.events.formats.delphes import delphes_layouts
from drapes_hep.events.formats.fields import Field, check_field, spell, zip_jets
from drapes_hep.events.formats.open_files import shared
from drapes_hep.events.types import AwkwardArray
from drapes_hep.remote import filesystem_options, is_url, network_error

__all__ = ["RootReader"]

_LAYOUTS = (
    "features",
    "skim",
    "pfnano",
    "pfnano_old",
    "nanoaod_pf",
    "nanoaod",
    *(layout.name for layout in delphes_layouts()),
)
"""The preferred first: with constituents before without."""


class _Raising:
    """A file system whose failures are raised: fsspec returns them instead of bytes, where uproot slices them."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)

    async def _cat_ranges(self, paths: Any, starts: Any, ends: Any) -> Any:
        return await self._filesystem._cat_ranges(paths, starts, ends, on_error="raise")

    def cat_ranges(self, paths: Any, starts: Any, ends: Any) -> Any:
        return self._filesystem.cat_ranges(paths, starts, ends, on_error="raise")


class _Source(uproot.source.fsspec.FSSpecSource):  # type: ignore[misc, unused-ignore]
    """uproot's source for URLs, which fails where the network does."""

    _fs: Any

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
        input_error = network_error(path, error)
        if input_error is not None:
            raise input_error from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # a file cut short cannot be told from a corrupt one before its header is read
        reason = lines[0][:120] if lines else type(error).__name__
        raise InputError(
            path, f"cannot be read as ROOT: truncated or corrupt ({reason})", "copy or download it again"
        ) from error


def _options(path: str) -> dict[str, Any]:
    return {"handler": _Source, **filesystem_options(path)} if is_url(path) else {}


def _depth(kind: str) -> tuple[int | None, int]:
    """Return the list depth of a number of this type, None if it is not a number, and the size of fixed arrays."""
    kind = kind.replace("std::", "")
    wrapped = re.fullmatch(r"(?:vector|ROOT::VecOps::RVec)<(.*)>|(.*?)\[\]((?:\[\d+\])?)", kind)
    if wrapped is not None:
        depth, size = _depth(wrapped[1] or f"{wrapped[2]}{wrapped[3]}")
        if wrapped[3]:
            return (1, size) if depth is None and size else (None, 0)
        return (None, 0) if depth is None else (depth + 1, size)
    plain = re.sub(r"^(?:ROOT::RNTupleCardinality|optional)<(.*)>$", r"\1", kind)
    sized = re.fullmatch(r"array<(.*),(\d+)>|(.*)\[(\d+)\]", plain)
    if sized is not None:
        return None, int(sized[2] or sized[4]) if (sized[1] or sized[3]) in _NUMBERS else 0
    return (0 if plain in _NUMBERS else None), 0


_NUMBERS = {
    *("float", "double", "bool", "char", "short", "int", "long", "long long", "Long64_t", "ULong64_t"),
    *("int8_t", "int16_t", "int32_t", "int64_t", "uint8_t", "uint16_t", "uint32_t", "uint64_t"),
    *("unsigned char", "unsigned short", "unsigned int", "unsigned long", "unsigned long long", "Double32_t"),
}


def _fields(tree: Any) -> list[Field]:
    """Return every field of an RNTuple, or every branch of a TTree by its name alone.

    An RNTuple that was made of a tree holds each list twice: as ``FatJet_pt``, and inside a nameless collection.
    """
    if "RNTuple" in type(tree).__name__:
        # by the records themselves: RField.fields looks through all of them each time, a minute for 2451 fields
        children: dict[int, list[int]] = {}
        top = []
        for i, record in enumerate(tree.field_records):
            if record.parent_field_id == i:
                top.append(i)
            else:
                children.setdefault(record.parent_field_id, []).append(i)
        return [field for i in top for field in _inside(tree, children, i, (), 0)]
    branches = dict(tree.items(recursive=True, full_paths=False)) | dict(tree.items(recursive=False))
    return [field for name, branch in branches.items() for field in _of_branch(name, branch)]


def _of_branch(name: str, branch: Any) -> list[Field]:
    kind = str(getattr(branch, "typename", ""))
    parts = getattr(getattr(branch.interpretation, "to_dtype", None), "names", None)
    if parts:  # a branch of several leaves, which uproot reads as one record
        dtype = branch.interpretation.to_dtype
        return [
            Field((name, part), 0 if dtype[part].kind in "fiub" and not dtype[part].shape else None, kind, branch)
            for part in parts
        ]
    depth, size = _depth(kind)
    return [Field((name,), depth, kind, branch, size if depth else 0)]


def _inside(
    tree: Any, children: Mapping[int, Sequence[int]], i: int, path: tuple[str, ...], lists: int
) -> Iterator[Field]:
    """Yield the numbers of field ``i`` of an RNTuple, however deep in collections and records."""
    field = tree.all_fields[i]
    record = field.record
    if not field.is_anonymous:
        path = (*path, field.name)
    depth, size = _depth(record.type_name)
    if depth is not None or size:
        if depth is None and lists:
            # an array of fixed size, an event having a list of them
            yield Field(path, lists, record.type_name, field, size)
        else:
            yield Field(path, None if depth is None else lists + depth, record.type_name, field)
        return
    role = uproot.const.RNTupleFieldRole
    if i not in children or record.struct_role == role.VARIANT:
        yield Field(path, None, record.type_name, field)
        return
    lists += record.struct_role == role.COLLECTION
    for child in children[i]:
        yield from _inside(tree, children, child, path, lists)


def _read_fields(tree: Any, fields: Mapping[str, Field], start: int, stop: int) -> dict[str, Any]:
    """Read the columns that fields spell."""
    out = {}
    for name, field in fields.items():
        values = _read_field(tree, field, start, stop)
        out[name] = values[field.path[-1]] if ak.fields(values) else values
    return out


def _read_field(tree: Any, field: Field, start: int, stop: int) -> AwkwardArray:
    if "RNTuple" not in type(tree).__name__ or not any("." in name for name in field.path):
        return field.handle.array(entry_start=start, entry_stop=stop, library="ak")
    # uproot looks a field up by its path, whose parts it takes to be separated by the dots
    field_id = field.handle.field_id
    values = tree.arrays(
        filter_field=lambda stored: stored.field_id == field_id, entry_start=start, entry_stop=stop, library="ak"
    )
    while ak.fields(values):
        (name,) = ak.fields(values)
        values = values[name]
    return values


def _cycles(classes: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the cycles of each tree, the highest first."""
    out: dict[str, list[int]] = {}
    for key, kind in classes.items():
        if kind in {"TTree", "TNtuple", "TNtupleD"} or "RNTuple" in kind:
            name, _, cycle = key.rpartition(";")
            out.setdefault(name, []).append(int(cycle))
    return {name: sorted(cycles, reverse=True) for name, cycles in out.items()}


def _chosen(path: str, object_path: str, trees: Mapping[str, Sequence[int]]) -> str:
    """Return the name of the tree that was asked for, with its cycle where one was named."""
    requested = object_path.strip("/")
    match = re.fullmatch(r"(.*);(\d+)", requested)
    name, cycle = (match[1], int(match[2])) if match else (requested, None)
    if name not in trees:
        close = difflib.get_close_matches(name, trees, n=1, cutoff=0.3)
        hint = f"did you mean '{close[0]}'?" if close else f"it holds {', '.join(list(trees)[:5]) or 'no tree'}"
        raise InputError(path, f"no tree '{name}' in it", hint)
    if cycle is None:
        return name
    if cycle not in trees[name]:
        cycles_text = ", ".join(f"{name};{stored_cycle}" for stored_cycle in trees[name][:8])
        raise InputError(path, f"no cycle {cycle} of tree '{name}' in it", f"it holds {cycles_text}")
    return f"{name};{cycle}"


def _remarks(file: Any, name: str, cycles: Sequence[int]) -> tuple[str, ...]:
    """Return which cycle is read, where others hold another number of events."""
    if len(cycles) < 2:
        return ()
    base, _, chosen = name.partition(";")
    counts = {cycle: int(file[f"{base};{cycle}"].num_entries) for cycle in cycles}
    if len(set(counts.values())) < 2:
        return ()
    read = int(chosen) if chosen else cycles[0]
    listed = ", ".join(f"{base};{cycle} has {count} events" for cycle, count in counts.items())
    return (f"several cycles of one tree: {listed}; {base};{read} is read",)


class RootReader:
    """Reads TTrees and RNTuples; see :class:`~drapes_hep.events.formats.base.EventReader`."""

    container = "root"

    def sniff(self, head: bytes) -> bool:
        """ROOT's signature."""
        return head.startswith(b"root")

    def scan(self, path: str, object_path: str | None = None, reading: Reading = DEFAULT_READING) -> FileInfo:
        """Find the one tree that holds the columns."""
        with _open(path) as file:
            classes = file.classnames(recursive=True)
            cycles = _cycles(classes)
            trees = list(cycles) if object_path is None else [_chosen(path, object_path, cycles)]
            if not trees:
                listed = ", ".join(dict.fromkeys(key.partition(";")[0] for key in list(classes)[:5])) or "nothing"
                raise InputError(
                    path,
                    f"holds no TTree or RNTuple (it holds {listed})",
                    "name a file of events; a job that selected none may have written no tree",
                )
            opened = {name: file[name] for name in trees}  # once: a tree of 2000 branches takes uproot seconds
            fields_of = {name: spell(path, _fields(tree), _LAYOUTS, reading.keep) for name, tree in opened.items()}
            fits = {
                name: layout
                for name, have in fields_of.items()
                if (layout := match_layout(have, _LAYOUTS, reading.layout))
            }
            if not fits:
                candidates = [
                    known_layout for known_layout in _LAYOUTS if reading.layout in (None, known_layout)
                ] or list(_LAYOUTS)
                best = max(trees, key=lambda name: nearest(fields_of[name], candidates)[0])
                raise layout_error(path, f"tree '{best}'", fields_of[best], _LAYOUTS, reading.layout)
            if len(fits) > 1:
                name = PurePath(path).name
                raise InputError(
                    path,
                    f"several trees fit: {', '.join(fits)}",
                    f"choose one with data.path: {{{name}: {next(iter(fits))}}}, or with inspect --tree",
                )
            ((name, layout),) = fits.items()
            columns, tree = columns_of(layout, fields_of[name], reading), opened[name]
            entries = int(tree.num_entries)
            for column in columns:
                check_field(path, column, fields_of[name][column], layout)
            columns = (*columns, *check_kept(path, layout, fields_of[name], reading))
            for column in columns:
                _check_entries(path, column, fields_of[name][column], entries)
            return FileInfo(
                path,
                self.container,
                layout,
                name,
                entries,
                file_key(path),
                "label" in columns,
                columns,
                remarks=_remarks(file, name, cycles[name.partition(";")[0]]),
            )

    def simulation(self, path: str) -> Mapping[str, Any]:  # noqa: ARG002  as the protocol has it
        """Nothing: the project's own simulation writes no ROOT files."""
        return {}

    def present(self, info: FileInfo) -> tuple[str, ...]:
        """Top-level branches or fields, without those that hold what is read."""
        with _open(info.path) as file:
            tree = file[info.object_path]
            spelled = spell(info.path, _fields(tree), _LAYOUTS)
            read = {name for column in info.columns for name in _sources(spelled[column])}
            # a branch that holds read ones, such as Delphes' collections, is not left over
            holders = {name.rpartition(".")[0] for name in read} | {name.partition(".")[0] for name in read}
            others = (name for name in tree.keys(recursive=False) if name not in holders and name not in read)
            return (*info.columns, *others)

    def columns(self, chunk: EventChunk) -> Columns:
        """Read with uproot."""
        with shared(_open, chunk.path) as file:
            tree = file[chunk.object_path]
            spelled = spell(chunk.path, _fields(tree), _LAYOUTS, chunk.reading.keep)
            columns = {name: spelled[name] for name in chunk.columns if name != "jets"}
            parts = spelled["jets"].handle if "jets" in chunk.columns else {}
            raw = _read_fields(tree, {**columns, **parts}, chunk.start, chunk.stop)
        read = {name: plain_column(values, chunk.path, name) for name, values in raw.items()}
        out = {name: read[name] for name in columns}
        return {**out, "jets": zip_jets(chunk.path, {name: read[name] for name in parts})} if parts else out


def _sources(field: Field) -> list[str]:
    """Return the names in the file of what spells a column."""
    return [branch.name for branch in field.handle.values()] if isinstance(field.handle, dict) else [field.name]


def _check_entries(path: str, column: str, field: Field, entries: int) -> None:
    """Refuse a branch that is shorter or longer than its tree."""
    for branch in field.handle.values() if isinstance(field.handle, dict) else [field]:
        stated = getattr(branch.handle, "num_entries", entries)
        if stated != entries:
            raise InputError(
                path, f"column '{column}' has {stated} entries where its tree has {entries}", "write the tree again"
            )
