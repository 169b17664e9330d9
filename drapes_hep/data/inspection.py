"""Summary and problems of an event file, through the readers: every layout that they support.

Of a long file, only some events are read, in blocks spread over it; the record lists them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import InputError, counted
from drapes_hep.events.chunks import EventChunk, FileInfo, Reading, split
from drapes_hep.events.features import invariant_mass
from drapes_hep.events.formats.columns import BadValuesError, row_ids
from drapes_hep.events.formats.layouts import LAYOUTS
from drapes_hep.events.readers import present, read, scan
from drapes_hep.events.types import AwkwardArray, Events
from drapes_hep.remote import is_url

__all__ = [
    "INSPECTION_VERSION",
    "Constituents",
    "Identity",
    "Inspection",
    "Jets",
    "Labels",
    "Mass",
    "Problem",
    "Spread",
    "Weights",
    "inspect_file",
    "inspection_schema",
]

INSPECTION_VERSION = 1
"""Version of the record's fields."""

FloatArray = npt.NDArray[np.float64]
Severity = Literal["error", "warning", "note"]

_RUNS = 10
_CHUNK = 20_000
_FEW, _MANY = 2_000, 200_000
_RETRIES = 64
"""Extra reads that may be spent on finding the good events among bad ones."""
_BINS = 80
_ENERGY = 14_000.0
"""GeV: no collision has given a mass above it."""


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some values.

    Parameters
    ----------
    low, median, high : float
        In the unit that the holder states.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Spread | None:
        """Summarise values; None where there is none."""
        array = np.asarray(values, dtype=np.float64)
        return cls(float(array.min()), float(np.median(array)), float(array.max())) if len(array) else None


@dataclass(frozen=True)
class Problem:
    """A problem to report before a search.

    Parameters
    ----------
    severity : {"error", "warning", "note"}
        An error stops a run; a warning costs events or means that something is probably not as intended; a note is
        dealt with.
    what : str
        In words.
    events : int
        Number of affected events; 0 for a problem of the file itself.
    first_row : int or None
        The first of them, counted from 0 in the file.
    """

    severity: Severity
    what: str
    events: int
    first_row: int | None


@dataclass(frozen=True)
class Jets:
    """Jets of the events looked at.

    Parameters
    ----------
    per_event : dict
        Number of jets, as text, to number of events.
    leading_pt, subleading_pt : Spread or None
        GeV.
    mass : Spread or None
        Of the two leading jets, GeV.
    """

    per_event: dict[str, int]
    leading_pt: Spread | None
    subleading_pt: Spread | None
    mass: Spread | None


@dataclass(frozen=True)
class Constituents:
    """Constituents of the two leading jets.

    Parameters
    ----------
    per_jet : Spread or None
        Their number.
    momentum_fraction : Spread or None
        Transverse momentum of their sum, over the jet's.
    """

    per_jet: Spread | None
    momentum_fraction: Spread | None


@dataclass(frozen=True)
class Mass:
    """m_JJ of the two leading jets.

    Parameters
    ----------
    events : int
        Events that have two jets.
    range : Spread or None
        GeV.
    edges : list of float
        Of a histogram over the whole range, GeV; empty without events.
    counts, variances : list of float
        Sums of weights and of their squares.
    signal : list of float or None
        The part of ``counts`` that is labelled signal.
    """

    events: int
    range: Spread | None
    edges: list[float]
    counts: list[float]
    variances: list[float]
    signal: list[float] | None


@dataclass(frozen=True)
class Labels:
    """Truth labels of the events looked at.

    Parameters
    ----------
    signal, background : int
        Events.
    """

    signal: int
    background: int


@dataclass(frozen=True)
class Weights:
    """Weights of the events looked at.

    Parameters
    ----------
    all_one : bool
        Whether they say nothing, as for data.
    range : Spread or None
        Smallest, middle, largest.
    sum : float
        Of all.
    """

    all_one: bool
    range: Spread | None
    sum: float


@dataclass(frozen=True)
class Identity:
    """How events are identified.

    Parameters
    ----------
    source : {"file", "name and row"}
        Whether the file states identities, or its name and the row make them.
    low, high : int or None
        Smallest and largest identity looked at.
    """

    source: Literal["file", "name and row"]
    low: int | None
    high: int | None


@dataclass(frozen=True)
class Inspection:
    """What a file is.

    Parameters
    ----------
    schema_version : int
        :data:`INSPECTION_VERSION`.
    path : str
        The file.
    bytes : int or None
        Its size; None for a URL.
    container, layout, object : str
        As in :class:`~drapes_hep.events.chunks.FileInfo`.
    events : int
        In the file.
    looked_at : int
        Events that were read for what follows.
    runs : list of tuple of int
        Their rows, (first, behind the last).
    unread : int
        Events in these runs that could not be read; see ``problems``.
    columns, other_columns : list of str
        Those that the layout reads, and the others that are there.
    labels : Labels or None
        None where there is no label.
    identity : Identity
    weights : Weights
    jets : Jets
    constituents : Constituents or None
        None where the file has none.
    mjj : Mass
    problems : list of Problem
        Errors first.
    """

    schema_version: int
    path: str
    bytes: int | None
    container: str
    layout: str
    object: str
    events: int
    looked_at: int
    runs: list[tuple[int, int]]
    unread: int
    columns: list[str]
    other_columns: list[str]
    labels: Labels | None
    identity: Identity
    weights: Weights
    jets: Jets
    constituents: Constituents | None
    mjj: Mass
    problems: list[Problem]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :func:`inspection_schema` describes them."""
        return dataclasses.asdict(self)


def inspection_schema() -> dict[str, Any]:
    """Return the JSON schema of :meth:`Inspection.to_json`."""
    from pydantic import TypeAdapter

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(Inspection).json_schema(mode="serialization"),
        "title": "Output of drapes inspect",
        "description": "Masses and momenta in GeV. Values that do not exist are null.",
    }


def spread_runs(entries: int, limit: int) -> list[tuple[int, int]]:
    """Choose rows to look at: all, or ``limit`` of them in ten runs from the first row to the last.

    Parameters
    ----------
    entries, limit : int
        Events there are, and events wanted; both at least 1.

    Returns
    -------
    list of tuple of int
        (first, behind the last), rising, without overlap; none is empty.
    """
    if limit >= entries:
        return [(0, entries)]
    count = min(_RUNS, limit)
    sizes = [limit * (i + 1) // count - limit * i // count for i in range(count)]
    gap = entries - limit
    starts = [limit * i // count + (gap * i // (count - 1) if count > 1 else 0) for i in range(count)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def inspect_file(
    path: str | Path, limit: int | None = None, reading: Reading | None = None, object_path: str | None = None
) -> Inspection:
    """Return what a file of events is.

    Parameters
    ----------
    path : str or Path
        Path or URL of any file that a reader opens.
    limit : int, optional
        Events to look at; 200,000 by default, 2,000 where jets have constituents: those are many, and jets may have to
        be made of them first.
    reading : Reading, optional
        Layout and jets; constituents are read where there are some.
    object_path : str, optional
        Tree or HDF5 key; found by its columns where there is only one.

    Returns
    -------
    Inspection

    Raises
    ------
    InputError
        Not a file of events, or none of the events looked at can be read.
    """
    info, reading = _scan(path, reading or Reading(), object_path)
    remarks = [Problem("warning", remark, 0, None) for remark in info.remarks]
    if not info.entries:
        return _empty(path, info, remarks)
    (whole,) = split(info, chunksize=info.entries, reading=reading)
    reader = _ChunkReader(whole)
    runs = spread_runs(info.entries, limit or (_FEW if reader.constituents else _MANY))
    chunks = [
        dataclasses.replace(whole, start=start, stop=min(start + _CHUNK, last))
        for first, last in runs
        for start in range(first, last, _CHUNK)
    ]
    gathered = _Gathered(info)
    for chunk in chunks:
        for piece, events in reader.good(chunk):
            gathered.add(piece, events)
    n_events = sum(len(chunk) for chunk in chunks)
    if not gathered.events and reader.first_error is not None:
        raise reader.first_error
    problems = [*reader.problems(), *gathered.problems(), *remarks]
    order = ("error", "warning", "note")
    return Inspection(
        **_file_part(path, info),
        looked_at=n_events,
        runs=runs,
        unread=n_events - gathered.events,
        **gathered.summary(),
        problems=sorted(problems, key=lambda problem: order.index(problem.severity)),
    )


def _file_part(path: str | Path, info: FileInfo) -> dict[str, Any]:
    """Return the part of a record on the file itself."""
    return {
        "schema_version": INSPECTION_VERSION,
        "path": str(path),
        "bytes": None if is_url(info.path) else Path(info.path).stat().st_size,
        "container": info.container,
        "layout": info.layout,
        "object": info.object_path,
        "events": info.entries,
        "columns": list(info.columns),
        "other_columns": [name for name in present(info) if name not in set(info.columns)],
    }


def _empty(path: str | Path, info: FileInfo, remarks: Sequence[Problem]) -> Inspection:
    """Return the record of a file without events."""
    note = Problem("note", "holds no events: a run skips it unless data.empty is error", 0, None)
    return Inspection(
        **_file_part(path, info),
        looked_at=0,
        runs=[],
        unread=0,
        labels=None,
        identity=Identity("file" if info.has_event_ids else "name and row", None, None),
        weights=Weights(True, None, 0.0),
        jets=Jets({}, None, None, None),
        constituents=None,
        mjj=Mass(0, None, [], [], [], None),
        problems=[*remarks, note],
    )


def _scan(path: str | Path, reading: Reading, object_path: str | None) -> tuple[FileInfo, Reading]:
    """Scan with constituents where the file has some: a scan may name other columns then."""
    plain = dataclasses.replace(reading, constituents=False, jets=True)
    rich = dataclasses.replace(plain, constituents=True)
    info = scan(path, object_path, plain)
    if not LAYOUTS[info.layout].constituents:
        return info, plain
    try:
        return scan(path, object_path, rich), rich
    except InputError:
        return info, plain


class _ChunkReader:
    """Reads chunks; reports bad values and finds the good events."""

    def __init__(self, whole: EventChunk) -> None:
        self.retries = _RETRIES
        self.first_error: InputError | None = None
        self.bad: dict[tuple[str, str], tuple[int, int]] = {}
        self.broken: list[tuple[str, int, int]] = []
        self.constituents = whole.reading.constituents and self._has_constituents(whole)

    @staticmethod
    def _has_constituents(whole: EventChunk) -> bool:
        """Whether this file has what its layout may have: its first event tells."""
        first = dataclasses.replace(whole, stop=whole.start + 1)
        try:
            read(dataclasses.replace(first, reading=dataclasses.replace(whole.reading, constituents=True)))
        except BadValuesError:
            return True
        except InputError:
            try:
                read(dataclasses.replace(first, reading=dataclasses.replace(whole.reading, constituents=False)))
            except InputError:
                return True  # something else is wrong, and will be found again
            return False
        return True

    def good(self, chunk: EventChunk, reported: frozenset[tuple[str, str]] = frozenset()) -> Iterator[tuple[Any, Any]]:
        try:
            yield chunk, self._read(chunk)
            return
        except BadValuesError as error:
            self.first_error = self.first_error or error
            bad_columns = frozenset((bad.column, bad.kind) for bad in error.bad)
            for bad in error.bad:
                # a part of the chunk repeats what the whole has counted
                if (bad.column, bad.kind) not in reported:
                    first, count = self.bad.get((bad.column, bad.kind), (bad.first, 0))
                    self.bad[bad.column, bad.kind] = (min(first, bad.first), count + bad.count)
        except InputError as error:
            self.first_error = self.first_error or error
            self.broken.append((f"{error.problem}; {error.remedy}", len(chunk), chunk.start))
            return
        if len(chunk) == 1 or self.retries < 2:
            return
        self.retries -= 2
        middle = (chunk.start + chunk.stop) // 2
        for part in (dataclasses.replace(chunk, stop=middle), dataclasses.replace(chunk, start=middle)):
            yield from self.good(part, reported | bad_columns)

    def _read(self, chunk: EventChunk) -> Events:
        reading = dataclasses.replace(chunk.reading, constituents=self.constituents, jets=True)
        return read(dataclasses.replace(chunk, reading=reading))

    def problems(self) -> Iterator[Problem]:
        for (column, kind), (first, count) in self.bad.items():
            yield Problem("error", f"column '{column}' holds {kind}", count, first)
        for what, count, first in self.broken:
            yield Problem("error", what, count, first)


@dataclass
class _Gathered:
    """Sums and columns of the events looked at."""

    info: FileInfo
    events: int = 0
    per_event: Counter[int] = field(default_factory=Counter)
    flags: dict[tuple[Severity, str], list[int]] = field(default_factory=dict)
    parts: dict[str, list[Any]] = field(default_factory=dict)
    clipped: int = 0
    stated_ids: bool = False

    def add(self, chunk: EventChunk, events: Events) -> None:
        self.events += len(events)
        jets = events.jets
        counts = ak.to_numpy(ak.num(jets))
        self.per_event.update(dict(zip(*(x.tolist() for x in np.unique(counts, return_counts=True)), strict=True)))
        rows = np.arange(chunk.start, chunk.stop)
        ids = ak.to_numpy(events.event_id)
        self.stated_ids |= bool(np.any(ids != row_ids(chunk.file_id, chunk.start, chunk.stop)))
        weight = ak.to_numpy(events.weight)
        label = ak.to_numpy(events.label) if "label" in events.fields else None
        self._keep(row=rows, event_id=ids, weight=weight)
        if label is not None:
            self._keep(label=label)

        falling = ak.to_numpy(ak.all(jets.pt[:, 1:] <= jets.pt[:, :-1], axis=1))
        self._flag("warning", "fewer than two jets: such events are dropped", rows[counts < 2])
        self._flag("note", "jets not ordered by pT: processors sort them", rows[~falling])
        self.clipped += int(events.metadata.get("clipped_masses", 0))

        index = np.flatnonzero(counts >= 2)
        order = ak.argsort(jets.pt, axis=1, ascending=False, stable=True)
        pair = jets[order][index][:, :2]
        rows = rows[index]
        flat = {
            name: np.asarray(ak.to_numpy(pair[name]), dtype=np.float64).reshape(-1, 2)
            for name in ("pt", "eta", "phi", "mass", "tau1", "tau2", "tau3")
        }
        mjj = np.asarray(invariant_mass(ak.to_packed(pair)), dtype=np.float64) if len(index) else np.empty(0)
        self._keep(pair_row=rows, mjj=mjj, mjj_weight=weight[index], pt=flat["pt"], mass=flat["mass"])
        self._keep(direction=np.stack([flat["eta"][:, 0], flat["phi"][:, 0]], axis=1))
        if label is not None:
            self._keep(mjj_label=label[index])
        self._flag(
            "warning",
            "tau1 is 0 or missing in a leading jet: tau21 is undefined, see 'selection.undefined'",
            rows[(~(flat["tau1"] > 0)).any(axis=1)],
        )
        rising = (flat["tau2"] > flat["tau1"]) | (flat["tau3"] > flat["tau2"])
        self._flag("note", "tau that grows with the number of axes (ratio above 1)", rows[rising.any(axis=1)])
        self._flag("warning", f"m_JJ above {_ENERGY:.0f} GeV: is the unit MeV?", rows[mjj > _ENERGY])
        if "constituents" in ak.fields(pair):
            self._add_constituents(pair, flat["pt"], rows)

    def _add_constituents(self, pair: AwkwardArray, pt: FloatArray, rows: npt.NDArray[np.int64]) -> None:
        inside = pair.constituents
        number = np.asarray(ak.to_numpy(ak.num(inside, axis=2)), dtype=np.int64).reshape(-1, 2)
        # plain arrays: sums need neither behaviours nor masses
        inside_pt, inside_phi = (ak.values_astype(ak.Array(inside[name]), np.float64) for name in ("pt", "phi"))
        sums = [
            np.asarray(ak.to_numpy(ak.sum(inside_pt * turn(inside_phi), axis=2)), dtype=np.float64).reshape(-1, 2)
            for turn in (np.cos, np.sin)
        ]
        fraction = np.divide(np.hypot(*sums), pt, out=np.zeros_like(pt), where=pt > 0)
        self._keep(constituents=number, fraction=fraction)
        self._flag("warning", "a leading jet without constituents", rows[(number == 0).any(axis=1)])

    def _keep(self, **columns: Any) -> None:
        for name, values in columns.items():
            self.parts.setdefault(name, []).append(np.asarray(values))

    def _flag(self, severity: Severity, what: str, rows: npt.NDArray[np.int64]) -> None:
        if len(rows):
            self.flags.setdefault((severity, what), []).extend(rows.tolist())

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate(self.parts[name]) if name in self.parts else np.empty(0)

    def problems(self) -> Iterator[Problem]:
        for (severity, what), flagged in self.flags.items():
            yield Problem(severity, what, len(flagged), flagged[0])
        if self.clipped:
            what = "masses just below 0 by rounding: set to 0; counted in jets and constituents"
            yield Problem("note", what, self.clipped, None)
        ids, rows = self._column("event_id"), self._column("row")
        yield from _repeats(ids[:, None], rows, "error", "repeated event_id")
        pairs = [self._column(name) for name in ("mjj", "pt", "direction")]
        if len(pairs[0]):
            content = np.column_stack(pairs)
            yield from _repeats(content, self._column("pair_row"), "warning", "the same jets as an earlier event")
        weight = self._column("weight")
        if np.any(weight < 0):
            yield Problem("warning", "negative weight", int((weight < 0).sum()), int(rows[weight < 0][0]))
        if np.any(weight != 1):
            other = weight != 1
            what = "weight other than 1: the hunt needs unweighted events"
            yield Problem("warning", what, int(other.sum()), int(rows[other][0]))
        if len(self._column("mjj")) == 0:
            yield Problem("error", "none of the events read has two jets", self.events, int(rows[0]))

    def summary(self) -> dict[str, Any]:
        weight, ids = self._column("weight"), self._column("event_id")
        pt, mass = self._column("pt"), self._column("mass")
        label = self._column("label") if "label" in self.parts else None
        number = self._column("constituents") if "constituents" in self.parts else None
        stated = self.stated_ids or self.info.has_event_ids
        return {
            "labels": None if label is None else Labels(int((label == 1).sum()), int((label == 0).sum())),
            "identity": Identity("file" if stated else "name and row", int(ids.min()), int(ids.max())),
            "weights": Weights(bool(np.all(weight == 1)), Spread.of(weight), float(weight.sum())),
            "jets": Jets(
                {str(n): self.per_event[n] for n in sorted(self.per_event)},
                Spread.of(pt[:, 0]),
                Spread.of(pt[:, 1]),
                Spread.of(mass.ravel()),
            ),
            "constituents": None
            if number is None
            else Constituents(Spread.of(number.ravel()), Spread.of(self._column("fraction").ravel())),
            "mjj": self._mass(),
        }

    def _mass(self) -> Mass:
        mjj, weight = self._column("mjj"), self._column("mjj_weight")
        label = self._column("mjj_label") if "mjj_label" in self.parts else None
        if not len(mjj):
            return Mass(0, None, [], [], [], None if label is None else [])
        edges = _edges(float(mjj.min()), float(mjj.max()), len(mjj))

        def histogram(mask: npt.NDArray[np.bool_], power: int) -> list[float]:
            return [float(x) for x in np.histogram(mjj[mask], edges, weights=weight[mask] ** power)[0]]

        every = np.ones(len(mjj), dtype=bool)
        signal = None if label is None else histogram(label == 1, 1)
        return Mass(
            len(mjj),
            Spread.of(mjj),
            [float(x) for x in edges],
            histogram(every, 1),
            histogram(every, 2),
            signal,
        )


def _repeats(values: npt.NDArray[Any], rows: npt.NDArray[Any], severity: Severity, what: str) -> Iterator[Problem]:
    """Compare rows of values exactly; the first of equals is not a repeat."""
    order = np.lexsort((*values.T[::-1],))
    ordered = values[order]
    same = order[1:][np.all(ordered[1:] == ordered[:-1], axis=1)]
    if len(same):
        yield Problem(severity, what, len(same), int(rows[same].min()))


def _edges(low: float, high: float, events: int) -> FloatArray:
    """Round edges that cover the values; at most :data:`_BINS` bins, and fewer for few events."""
    bins = int(np.clip(4 * events**0.4, 10, _BINS))
    raw = max((high - low) / (bins - 2), 1e-3)
    power = 10.0 ** np.floor(np.log10(raw))
    width = next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= raw)
    first = np.floor(low / width)
    count = int(np.floor(high / width) - first) + 1
    return np.asarray((first + np.arange(count + 1)) * width, dtype=np.float64)


def text_lines(inspection: Inspection) -> Sequence[tuple[str, str]]:
    """Put a record into words.

    Parameters
    ----------
    inspection : Inspection
        From :func:`inspect_file`.

    Returns
    -------
    sequence of tuple of str
        (name, value); names repeat where there are several values, such as problems.
    """

    def spread(values: Spread | None, unit: str = "", digits: str = ".0f") -> str:
        if values is None:
            return "none"
        low, median, high = (format(x, digits) for x in (values.low, values.median, values.high))
        return f"{low} to {high}{unit}, median {median}"

    def listed(names: Sequence[str]) -> str:
        shortened = list(names) if len(names) <= 24 else [*names[:20], f"... and {len(names) - 20} more"]
        return ", ".join(shortened) or "none"

    every = inspection.looked_at == inspection.events
    runs = f"in {len(inspection.runs)} runs spread over the file" if len(inspection.runs) > 1 else "at its beginning"
    out = [
        ("path", inspection.path + ("" if inspection.bytes is None else f" ({inspection.bytes / 1e6:.3g} MB)")),
        (
            "layout",
            f"{inspection.layout} ({inspection.container}"
            + (f", '{inspection.object}')" if inspection.object else ")"),
        ),
        ("events", str(inspection.events)),
        ("looked at", "all events" if every else f"{counted(inspection.looked_at, 'event')} {runs}"),
    ]
    if inspection.unread:
        out.append(("unread", f"{counted(inspection.unread, 'event')}, for the errors below"))
    jets = ", ".join(f"{n} in {counted(count, 'event')}" for n, count in inspection.jets.per_event.items()) or "none"
    out += [
        ("jets", jets),
        (
            "jet pT",
            f"leading {spread(inspection.jets.leading_pt, ' GeV')};"
            f" second {spread(inspection.jets.subleading_pt, ' GeV')}",
        ),
        ("jet mass", f"{spread(inspection.jets.mass, ' GeV')} (two leading jets)"),
        ("m_JJ", f"{spread(inspection.mjj.range, ' GeV')} ({counted(inspection.mjj.events, 'event')})"),
    ]
    if inspection.constituents is not None:
        share = spread(inspection.constituents.momentum_fraction, "", ".3f")
        out.append(("constituents", f"{spread(inspection.constituents.per_jet)} per jet; fraction of its pT {share}"))
    else:
        out.append(("constituents", "none"))
    labels, weights = inspection.labels, inspection.weights
    out += [
        ("labels", "no" if labels is None else f"yes: {labels.signal} signal, {labels.background} background"),
        ("event ids", "from the file" if inspection.identity.source == "file" else "from the file's name and the row"),
        ("weights", "all 1" if weights.all_one else f"{spread(weights.range, '', '.3g')}, sum {weights.sum:.6g}"),
        ("columns", listed(inspection.columns)),
        ("not read", listed(inspection.other_columns)),
    ]
    for problem in inspection.problems:
        first = "" if problem.first_row is None else f", first in row {problem.first_row}"
        where = f" ({counted(problem.events, 'event')}{first})" if problem.events else ""
        out.append((problem.severity, problem.what + where))
    if not inspection.problems:
        out.append(("problems", "none"))
    return out
