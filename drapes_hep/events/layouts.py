"""How the columns of a file spell an event, and the checks that every value passes.

A layout knows column names, not files: the same one serves HDF5 and ROOT. What a layout makes are the flat columns of
:func:`drapes_hep.events.schema.build_events`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import EventChunk
from drapes_hep.events.clustering import cluster_events, falling_pt, no_jets
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS, nested, ragged
from drapes_hep.events.types import AwkwardArray, Column

__all__ = [
    "LAYOUTS",
    "BadValues",
    "BadValuesError",
    "Converted",
    "FeatureLayout",
    "Layout",
    "RawLayout",
    "SimulatedLayout",
    "SkimLayout",
    "check_particles",
    "missing_columns",
    "row_ids",
]

Columns = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]

MASS_TOLERANCE = 1e-3
"""GeV. A mass this little below zero is rounding (E**2 - p**2 in single precision) and is set to zero."""


@dataclass(frozen=True, order=True)
class BadValues:
    """Rows of one column that no event can have.

    Parameters
    ----------
    position : int
        Place of the column in its layout, for a stable order of complaints.
    column : str
        Its name.
    kind : str
        What is wrong.
    first : int
        First such row of the file, from 0.
    count : int
        Such rows.
    """

    position: int
    column: str
    kind: str
    first: int
    count: int


class BadValuesError(InputError):
    """Values that no event can have; those of several chunks of a file can be merged.

    Parameters
    ----------
    path : str or Path
        The file.
    bad : sequence of BadValues
        At least one.
    """

    def __init__(self, path: str | Path, bad: Sequence[BadValues]) -> None:
        merged: dict[tuple[int, str, str], BadValues] = {}
        for one in bad:
            key = (one.position, one.column, one.kind)
            seen = merged.get(key)
            first = one.first if seen is None else min(one.first, seen.first)
            merged[key] = BadValues(*key, first, one.count + (0 if seen is None else seen.count))
        self.bad = tuple(sorted(merged.values()))
        worst = self.bad[0]
        others = sorted({one.column for one in self.bad[1:]} - {worst.column})
        more = f" (and so do {', '.join(others[:3])}{' and others' if len(others) > 3 else ''})" if others else ""
        rows = "1 row" if worst.count == 1 else f"{worst.count} rows"
        super().__init__(
            path,
            f"column '{worst.column}' holds {worst.kind} in {rows}, first in row {worst.first} (counted from 0){more}",
            "correct or remove these events",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.bad)


@dataclass(frozen=True)
class Converted:
    """Columns in the schema's spelling.

    Parameters
    ----------
    columns : mapping
        For :func:`drapes_hep.events.schema.build_events`.
    clipped_masses : int
        Jets whose mass was a rounding error below zero and is now zero.
    """

    columns: Columns
    clipped_masses: int


class Layout(Protocol):
    """How columns spell an event."""

    @property
    def name(self) -> str:
        """What files and chunks call it."""
        ...

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that a file must have."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that are read where a file has them."""
        ...

    @property
    def constituents(self) -> bool:
        """Whether its files can hold the constituents of jets."""
        ...

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """Turn the chunk's columns into the schema's; :class:`BadValuesError` where a value is impossible."""
        ...


def row_ids(file_id: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Give the identities of rows: the file's key in the upper half, the row in the lower.

    Parameters
    ----------
    file_id : int
        31 bits.
    start, stop : int
        Rows.

    Returns
    -------
    array of int64, shape (stop - start,)
        Non-negative.
    """
    return (np.int64(file_id) << np.int64(32)) | np.arange(start, stop, dtype=np.int64)


class _Checks:
    """Gathers what is wrong with a chunk's columns, so that one error can name all of it."""

    def __init__(self, layout: Layout, chunk: EventChunk) -> None:
        self.order = {name: i for i, name in enumerate((*layout.required, *layout.optional))}
        self.chunk, self.bad = chunk, list[BadValues]()

    def flag(self, column: str, wrong: npt.NDArray[np.bool_], kind: str) -> None:
        count = int(np.count_nonzero(wrong))
        if count:
            first = self.chunk.start + int(np.argmax(wrong))
            self.bad.append(BadValues(self.order.get(column, len(self.order)), column, kind, first, count))

    def finish(self) -> None:
        if self.bad:
            raise BadValuesError(self.chunk.path, self.bad)

    def real(self, column: str, values: Column) -> FloatArray:
        """Finite float64. Contiguous: numpy's vector loops may round differently on strided input."""
        array = np.ascontiguousarray(values, dtype=np.float64)
        self.flag(column, ~np.isfinite(array), "NaN or infinity")
        return array

    def whole(self, column: str, values: Column, kind: str, largest: int) -> npt.NDArray[np.int64]:
        """Integers from 0 to ``largest``, also where a file stores them as floating point."""
        array = np.asarray(values)
        with np.errstate(invalid="ignore"):
            wrong = ~((array >= 0) & (array <= largest))
            if array.dtype.kind == "f":
                # beyond 2**53 neighbouring integers share one double: identities would collide silently
                wrong |= (array != np.floor(array)) | (array >= 2.0**53)
            self.flag(column, wrong, kind)
            return np.where(wrong, 0, array).astype(np.int64)

    def common(self, columns: Columns) -> dict[str, Any]:
        """Identity, weight, label and parent, which every layout spells alike."""
        chunk, identity = self.chunk, "an identity that is not an integer from 0 to 2**63 - 1"
        out: dict[str, Any] = {}
        if "event_id" in columns:
            out["event_id"] = self.whole("event_id", columns["event_id"], identity, 2**63 - 1)
        else:
            out["event_id"] = row_ids(chunk.file_id, chunk.start, chunk.stop)
        out["weight"] = self.real("weight", columns["weight"]) if "weight" in columns else np.ones(len(chunk))
        if "label" in columns:
            out["label"] = self.whole("label", columns["label"], "a label that is neither 0 nor 1", 1)
        if "parent_id" in columns:
            out["parent_id"] = self.whole("parent_id", columns["parent_id"], identity, 2**63 - 1)
        return out

    def masses(self, column: str, mass: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        with np.errstate(invalid="ignore"):
            self.flag(column, mass <= -MASS_TOLERANCE, "a negative mass")
            negative = mass < 0
        return np.where(negative, 0.0, mass), negative


_COMMON = ("event_id", "weight", "label", "parent_id")


class FeatureLayout:
    """The LHC Olympics feature layout: px, py, pz, m (GeV) and tau1-3 of two jets, one column each.

    A jet whose momentum and mass are exactly zero is padding: the event has fewer jets.
    """

    name = "features"
    required = tuple(f"{q}j{jet}" for jet in (1, 2) for q in ("px", "py", "pz", "m", "tau1", "tau2", "tau3"))
    optional = _COMMON
    constituents = False

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = _Checks(self, chunk)
        out = checks.common(columns)
        values = {name: checks.real(name, columns[name]) for name in self.required}
        jets: dict[str, list[FloatArray]] = {field: [] for field in JET_FIELDS}
        present, clipped = [], 0
        for jet in ("j1", "j2"):
            px, py, pz = (values[q + jet] for q in ("px", "py", "pz"))
            mass, negative = checks.masses("m" + jet, values["m" + jet])
            clipped += int(np.count_nonzero(negative))
            with np.errstate(invalid="ignore", over="ignore"):  # bad values are flagged, and raised below
                pt = np.hypot(px, py)
                # arcsinh keeps every digit at any rapidity, unlike the logarithm of (p + pz) / (p - pz)
                eta = np.arcsinh(np.divide(pz, pt, out=np.zeros_like(pz), where=pt > 0))
            real = (pt != 0) | (pz != 0) | (mass != 0)
            checks.flag("px" + jet, real & (pt == 0), "no transverse momentum")
            taus = (values[f"tau{n}{jet}"] for n in (1, 2, 3))
            for field, array in zip(JET_FIELDS, (pt, eta, np.arctan2(py, px), mass, *taus), strict=True):
                jets[field].append(array)
            present.append(real)
        checks.finish()
        keep = np.stack(present, axis=1)
        offsets = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
        for field, pair in jets.items():
            out[f"jets_{field}"] = ragged(np.stack(pair, axis=1)[keep], offsets)
        return Converted(out, clipped)


class SkimLayout:
    """Skims and templates of this project: identities, weights and ragged jets, as the schema has them."""

    name = "skim"
    required = ("event_id", "jets")
    optional = ("weight", "label", "parent_id")
    constituents = True

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = _Checks(self, chunk)
        out = checks.common(columns)
        jets = columns["jets"]
        absent = missing_columns(JET_FIELDS, ak.fields(jets))
        if absent:
            raise InputError(chunk.path, f"its jets have no {absent}", "write skims with `drapes skim`")
        counts = ak.to_numpy(ak.num(jets))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        clipped = 0
        for field in JET_FIELDS:
            flat = np.ascontiguousarray(ak.to_numpy(ak.flatten(jets[field])), dtype=np.float64)
            wrong = ragged(~np.isfinite(flat), offsets)
            checks.flag(f"jets.{field}", ak.to_numpy(ak.any(wrong, axis=1)), "NaN or infinity")
            if field == "mass":
                low = ragged(flat <= -MASS_TOLERANCE, offsets)
                checks.flag("jets.mass", ak.to_numpy(ak.any(low, axis=1)), "a negative mass")
                clipped = int(np.count_nonzero(flat < 0))
                flat = np.where(flat < 0, 0.0, flat)
            out[f"jets_{field}"] = ragged(flat, offsets)
        if chunk.reading.constituents:
            out.update(self._constituents(jets, offsets, checks))
        checks.finish()
        return Converted(out, clipped)

    def _constituents(self, jets: Column, offsets: npt.NDArray[np.int64], checks: _Checks) -> dict[str, Any]:
        path = checks.chunk.path
        if "constituents" not in ak.fields(jets):
            raise InputError(path, "its jets have no constituents", "skim the raw events with them")
        inside = ak.flatten(jets["constituents"])
        absent = missing_columns(CONSTITUENT_FIELDS, ak.fields(inside))
        if absent:
            raise InputError(path, f"its constituents have no {absent}", "write skims with `drapes skim`")
        starts = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(inside)))]).astype(np.int64)
        out = {}
        for field in CONSTITUENT_FIELDS:
            flat = np.ascontiguousarray(ak.to_numpy(ak.flatten(inside[field])))
            wrong = nested(~np.isfinite(flat), starts, offsets)
            flags = ak.to_numpy(ak.any(ak.any(wrong, axis=2), axis=1))
            checks.flag(f"jets.constituents.{field}", flags, "NaN or infinity")
            out[f"constituents_{field}"] = nested(flat, starts, offsets)
        return out


MAX_ABS_ETA = 20.0
"""No collider's particle is more forward: 9.5 is the most that a proton's mass leaves at 13 TeV."""

MAX_ENERGY = 1e6
"""GeV. A particle of more is no event of any collider, but a wrong column or unit, or a flipped bit."""


def check_particles(checks: _Checks, particles: AwkwardArray, column: str = "particles") -> None:
    """Flag what no particle can have, before it reaches fastjet, which would take it without a word.

    Parameters
    ----------
    checks : _Checks
        Where complaints are gathered.
    particles : awkward.Array
        n lists of records with ``pt, eta, phi, mass``.
    column : str
        What complaints call it.
    """
    counts = ak.to_numpy(ak.num(particles))
    event = np.repeat(np.arange(len(counts)), counts)

    def flag(field: str, wrong: npt.NDArray[np.bool_], kind: str) -> None:
        if wrong.any():
            rows = np.zeros(len(counts), dtype=bool)
            rows[event[wrong]] = True
            checks.flag(f"{column}.{field}", rows, kind)

    pt, eta, phi, mass = (
        np.asarray(ak.to_numpy(ak.flatten(particles[field])), dtype=np.float64) for field in CONSTITUENT_FIELDS
    )
    for field, values in zip(CONSTITUENT_FIELDS, (pt, eta, phi, mass), strict=True):
        flag(field, ~np.isfinite(values), "NaN or infinity")
    with np.errstate(invalid="ignore", over="ignore"):
        flag("pt", pt < 0, "a negative transverse momentum")
        flag("pt", pt == 0, "no transverse momentum between particles that have some")
        forward = np.abs(eta) > MAX_ABS_ETA
        flag("eta", forward & np.isfinite(eta), f"a pseudorapidity beyond {MAX_ABS_ETA:g}")
        flag("phi", (np.abs(phi) > 2 * np.pi + 1e-4) & np.isfinite(phi), "an azimuth beyond 2 pi (degrees?)")
        energy = np.hypot(pt * np.cosh(np.where(forward, 0, eta)), mass)
        flag("pt", (energy > MAX_ENERGY) & np.isfinite(energy), f"a particle of more than {MAX_ENERGY:g} GeV")
        flag("mass", mass <= -MASS_TOLERANCE, "a negative mass")


class RawLayout:
    """Raw LHC Olympics events: massless particles, clustered here; see :mod:`drapes_hep.events.raw`."""

    name = "lhco_raw"
    required = ("particles",)
    optional = ("label",)
    constituents = True

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = _Checks(self, chunk)
        out = checks.common(columns)
        if not chunk.reading.jets:
            checks.finish()
            return Converted(out | no_jets(len(chunk), chunk.reading), 0)
        check_particles(checks, columns["particles"])
        checks.finish()
        return Converted(out | cluster_events(columns["particles"], chunk.reading), 0)


class SimulatedLayout:
    """Arrays of jets with their constituents relative to them; see :mod:`drapes_hep.events.simulated`."""

    name = "simulated"
    required = ("jets", "tau")
    optional = _COMMON
    constituents = True

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = _Checks(self, chunk)
        out = checks.common(columns)
        kinematics, taus = (np.asarray(columns[name], dtype=np.float64) for name in self.required)
        present = (kinematics != 0).any(axis=2)
        for name, values in (("jets", kinematics), ("tau", taus)):
            checks.flag(name, np.any(~np.isfinite(values), axis=(1, 2)), "NaN or infinity")
        with np.errstate(invalid="ignore"):
            pt, mass = kinematics[..., 0], kinematics[..., 3]
            checks.flag("jets", np.any(present & (pt <= 0), axis=1), "a jet without transverse momentum")
            checks.flag("jets", np.any(np.abs(kinematics[..., 1]) > MAX_ABS_ETA, axis=1), "an absurd pseudorapidity")
            checks.flag("jets", np.any(pt > MAX_ENERGY, axis=1), f"a jet of more than {MAX_ENERGY:g} GeV")
            checks.flag("jets", np.any(mass <= -MASS_TOLERANCE, axis=1), "a negative mass")
            checks.flag("tau", np.any(taus < 0, axis=(1, 2)), "a negative value")
        clipped = int(np.count_nonzero(mass < 0))
        offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int64)
        jets = np.concatenate([kinematics, taus], axis=2)[present]
        jets[:, 3] = np.maximum(jets[:, 3], 0)
        for i, field in enumerate(JET_FIELDS):
            out[f"jets_{field}"] = ragged(np.ascontiguousarray(jets[:, i]), offsets)
        if chunk.reading.constituents:
            out |= self._constituents(columns["constituents"], present, jets, offsets, checks)
        checks.finish()
        return Converted(out, clipped)

    def _constituents(
        self,
        inside: AwkwardArray,
        present: npt.NDArray[np.bool_],
        jets: FloatArray,
        offsets: npt.NDArray[np.int64],
        checks: _Checks,
    ) -> dict[str, Any]:
        counts = ak.to_numpy(ak.num(inside, axis=2)).reshape(present.shape)
        checks.flag("constituents", (~present & (counts > 0)).any(axis=1), "particles of an absent jet")
        sizes = counts[present]
        inner = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flat = {name: ak.to_numpy(ak.flatten(inside[name], axis=None)) for name in ("pt", "eta", "phi")}
        row = np.repeat(np.arange(len(present)), counts.sum(axis=1))
        for name, values in flat.items():
            wrong = np.zeros(len(present), dtype=bool)
            wrong[row[~np.isfinite(values) | ((name == "pt") & (values <= 0))]] = True
            checks.flag("constituents", wrong, "NaN, infinity or no transverse momentum")
        if checks.bad:
            return {}
        jet = np.repeat(np.arange(len(jets)), sizes)
        phi = np.remainder(flat["phi"] + jets[jet, 2] + np.pi, 2 * np.pi) - np.pi
        values = (flat["pt"], flat["eta"] + jets[jet, 1], phi, np.zeros_like(phi))
        order = falling_pt(flat["pt"], inner)
        return {
            f"constituents_{field}": nested(array[order], inner, offsets)
            for field, array in zip(CONSTITUENT_FIELDS, values, strict=True)
        }


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for layout in (FeatureLayout(), SkimLayout(), RawLayout(), SimulatedLayout())
}
"""Known layouts by name. A new one is a class and a line here."""


def missing_columns(required: Iterable[str], present: Iterable[str]) -> str:
    """Say which columns are missing and what comes closest, or nothing.

    Parameters
    ----------
    required, present : iterables of str
        Names.

    Returns
    -------
    str
        Empty where nothing is missing.
    """
    have = list(present)
    absent = [name for name in required if name not in have]
    if not absent:
        return ""
    text = f"column '{absent[0]}'" if len(absent) == 1 else f"columns {', '.join(repr(a) for a in absent[:4])}"
    if len(absent) > 4:
        text += f" and {len(absent) - 4} more"
    close = difflib.get_close_matches(absent[0], [name for name in have if name not in set(required)], n=1, cutoff=0.4)
    return text + (f" (closest present: '{close[0]}')" if close else "")
