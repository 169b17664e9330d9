"""Parts common to all layouts: the protocol, the checks of values, and the errors for bad values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import InputError, counted
from drapes_hep.events.chunks import EventChunk
from drapes_hep.events.schema import CONSTITUENT_FIELDS, IDENTITY_FIELDS, offsets_of
from drapes_hep.events.types import AwkwardArray, Column
from drapes_hep.rng import philox4x32

__all__ = [
    "COMMON",
    "MASS_TOLERANCE",
    "MASS_TOLERANCE_OF_ENERGY",
    "MAX_ABS_ETA",
    "MAX_ABS_PHI",
    "MAX_ENERGY",
    "MAX_TAU",
    "MAX_WEIGHT",
    "MIN_PT",
    "BadValues",
    "BadValuesError",
    "Checks",
    "Columns",
    "Converted",
    "Layout",
    "check_particles",
    "collision_ids",
    "impossible",
    "impossible_taus",
    "impossible_weights",
    "missing_columns",
    "negative_masses",
    "row_ids",
]

COMMON = ("event_id", "weight", "label", "parent_id")
"""Optional columns of our tables in addition to jets."""

Columns = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_ABS_ETA = 20.0
"""No collider's particle is more forward: 9.5 is the most that a proton's mass leaves at 13 TeV."""

MAX_ENERGY = 1e6
"""GeV. A particle of more is not an event of any collider, but a wrong column or unit, or a flipped bit."""

MIN_PT = 1e-6
"""GeV. A transverse momentum that is not zero and below it is not a measurement, but a wrong column or byte order."""

MAX_TAU = MAX_ENERGY
"""An N-subjettiness is at most a fraction of the jet's momentum, or that momentum where it is not normalised."""

MAX_WEIGHT = 1e60
"""A weight is zero or between this and its inverse, as every single-precision number is: its square is a number."""

MASS_TOLERANCE = 1e-3
"""GeV. A mass this little below zero is rounding (E**2 - p**2 in single precision) and is set to zero."""

MASS_TOLERANCE_OF_ENERGY = 5e-4
"""The same as a fraction of the energy E, whichever is more.

Rounding E**2 in single precision moves it by up to E**2 * 2**-24, and so a mass of zero to -2.4e-4 E; four such
roundings, as a sum of four squares has, to -4.9e-4 E.
"""

MAX_ABS_PHI = 2 * np.pi + 1e-4
"""rad. Files count from -pi or from 0; what is beyond both is in degrees, or no azimuth."""


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
        for values in bad:
            key = (values.position, values.column, values.kind)
            earlier = merged.get(key)
            first = values.first if earlier is None else min(values.first, earlier.first)
            merged[key] = BadValues(*key, first, values.count + (0 if earlier is None else earlier.count))
        self.bad = tuple(sorted(merged.values()))
        worst = self.bad[0]
        others = sorted({values.column for values in self.bad[1:]} - {worst.column})
        more = f" (and so do {', '.join(others[:3])}{' and others' if len(others) > 3 else ''})" if others else ""
        super().__init__(
            path,
            f"column '{worst.column}' holds {worst.kind} in {counted(worst.count, 'row')},"
            f" first in row {worst.first} (counted from 0){more}",
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
        For :func:`drapes_hep.events.nano_events.build_events`.
    clipped_masses : int
        Jets and constituents whose mass was a rounding error below zero and is now zero.
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

    @property
    def lists(self) -> frozenset[str]:
        """Columns of lists, one list per event; the others hold one value per event."""
        ...

    def columns_of_field(self, field: str) -> tuple[str, ...]:
        """Return the columns of a file that hold a further field of jets; none where the layout has no such columns."""
        ...

    @property
    def constituent_columns(self) -> frozenset[str]:
        """Columns that are read only where constituents are asked for."""
        ...

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """Turn the chunk's columns into the schema's; :class:`BadValuesError` where a value is impossible."""
        ...


def row_ids(file_id: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Return the identities of rows: the file's key in the upper half, the row in the lower.

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


def collision_ids(run: IntArray, lumi: IntArray, event: IntArray, sample: int | None = None) -> IntArray:
    """Return the identities of collisions that an experiment has numbered, or its simulation.

    Parameters
    ----------
    run, lumi, event : array of int64, shape (n,)
        Non-negative; run and luminosity section below 2**32.
    sample : int, optional
        Of simulation, whose samples number their events alike: what tells them apart, below 2**32. None for data, whose
        numbers are unique.

    Returns
    -------
    array of int64, shape (n,)
        The upper 63 bits of Philox4x32-10 with the key (0, 0), of simulation (sample, 1), and the counter (event's low
        word, event's high word, luminosity section, run). Of data it does not depend on the file. Two of n different
        events share one with probability n**2 / 2**64 (5e-4 for 10**8 events); a run refuses such events, it does not
        mix them up.
    """
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    words = event.astype(np.uint64)
    counter = np.stack([words & low, words >> shift, lumi.astype(np.uint64), run.astype(np.uint64)])
    first, second, *_ = philox4x32(counter, (0, 0) if sample is None else (sample, 1))
    ids: IntArray = ((first << shift | second) >> np.uint64(1)).astype(np.int64)
    return ids


class Checks:
    """Gathers what is wrong with a chunk's columns, so that one error can name all of it."""

    def __init__(self, layout: Layout, chunk: EventChunk) -> None:
        self.order = {name: i for i, name in enumerate((*layout.required, *layout.optional))}
        self.chunk, self.bad = chunk, list[BadValues]()

    def flag(self, column: str, wrong: npt.NDArray[np.bool_], kind: str) -> None:
        """Note which events (n,) of a column are wrong, and how."""
        count = int(np.count_nonzero(wrong))
        if count:
            first = self.chunk.start + int(np.argmax(wrong))
            self.bad.append(BadValues(self.order.get(column, len(self.order)), column, kind, first, count))

    def finish(self) -> None:
        """Raise :class:`BadValuesError` if anything was wrong."""
        if self.bad:
            raise BadValuesError(self.chunk.path, self.bad)

    def real(self, column: str, values: Column) -> FloatArray:
        """Finite float64. Contiguous: numpy's vector loops may round differently on strided input."""
        array = np.ascontiguousarray(values, dtype=np.float64)
        self.flag(column, ~np.isfinite(array), "NaN or infinity")
        return array

    def weight(self, column: str, values: Column) -> FloatArray:
        """As :meth:`real`, for the weights of events."""
        array = self.real(column, values)
        for wrong, kind in impossible_weights(array):
            self.flag(column, wrong, kind)
        return array

    def tau(self, column: str, values: Column, offsets: IntArray, *, missing: bool = False) -> FloatArray:
        """As :meth:`real_flat`, for an N-subjettiness; negative where it is ``missing``, if the layout says so."""
        array = self.real_flat(column, values, offsets)
        for wrong, kind in impossible_taus(array, missing=missing):
            self.flag_flat(column, wrong, offsets, kind)
        return array

    def whole(self, column: str, values: Column, kind: str, largest: int) -> npt.NDArray[np.int64]:
        """Integers from 0 to ``largest``, also where a file stores them as floating point."""
        array = np.asarray(values)
        with np.errstate(invalid="ignore"):
            wrong = ~((array >= 0) & (array <= largest))
            blurred = np.zeros(array.shape, dtype=bool)
            if array.dtype.kind == "f":
                wrong |= array != np.floor(array)
                # beyond 2**53 neighbouring integers share one double, beyond 2**24 one float32: identities would
                # collide silently
                blurred = ~wrong & (array >= 2.0 ** (np.finfo(array.dtype).nmant + 1))
            self.flag(column, wrong, kind)
            self.flag(column, blurred, f"a number that {array.dtype} cannot tell from its neighbours")
            wrong |= blurred
            return np.where(wrong, 0, array).astype(np.int64)

    def common(self, columns: Columns) -> dict[str, Any]:
        """Identity, weight, label and parent, which every layout spells alike."""
        chunk, identity = self.chunk, "an identity that is not an integer from 0 to 2**63 - 1"
        out: dict[str, Any] = {}
        if "event_id" in columns:
            out["event_id"] = self.whole("event_id", columns["event_id"], identity, 2**63 - 1)
        else:
            out["event_id"] = row_ids(chunk.file_id, chunk.start, chunk.stop)
        out["weight"] = self.weight("weight", columns["weight"]) if "weight" in columns else np.ones(len(chunk))
        if "label" in columns:
            out["label"] = self.whole("label", columns["label"], "a label that is neither 0 nor 1", 1)
        if "parent_id" in columns:
            out["parent_id"] = self.whole("parent_id", columns["parent_id"], identity, 2**63 - 1)
        out.update(self.numbering(columns))
        return out

    def numbering(self, columns: Columns) -> dict[str, IntArray]:
        """Run, luminosity section and event number, where all three are there."""
        if not set(IDENTITY_FIELDS) <= columns.keys():
            return {}
        kind = "a number that is not an integer from 0 to {}"
        return {
            name: self.whole(name, columns[name], kind.format(f"2**{bits} - 1"), 2**bits - 1)
            for name, bits in zip(IDENTITY_FIELDS, (32, 32, 63), strict=True)
        }

    def collection(
        self, columns: Columns, names: Sequence[str], counter: str | None = None
    ) -> tuple[dict[str, Any], IntArray]:
        """Take the columns of one collection apart.

        Parameters
        ----------
        columns : mapping
            Of the chunk.
        names : sequence of str
            Columns of lists; those that are absent are left out.
        counter : str, optional
            The column that says how many there are, compared where it is present.

        Returns
        -------
        flat : dict of str to array, shape (m,) or (m, k)
            Values of all events, one after the other.
        offsets : array of int64, shape (n + 1,)
            Where each event starts.

        Raises
        ------
        BadValuesError
            Lists of different lengths: nothing else can be checked for such a collection.
        """
        present = [name for name in names if name in columns]
        counts = {name: ak.to_numpy(ak.num(columns[name], axis=1)).astype(np.int64) for name in present}
        first = counts[present[0]]
        for name in present[1:]:
            self.flag(name, counts[name] != first, f"lists of a different length than column '{present[0]}'")
        if counter is not None and counter in columns:
            self.flag(counter, np.asarray(columns[counter]) != first, f"a number other than column '{present[0]}' has")
        self.finish()
        flat = {name: ak.to_numpy(ak.flatten(columns[name], axis=1)) for name in present}
        return flat, offsets_of(first)

    def flag_flat(self, column: str, wrong: npt.NDArray[np.bool_], offsets: IntArray, kind: str) -> None:
        """Flag the events that hold a wrong value, given one flag a value."""
        if wrong.any():
            rows = np.zeros(len(offsets) - 1, dtype=bool)
            rows[np.searchsorted(offsets, np.flatnonzero(wrong), side="right") - 1] = True
            self.flag(column, rows, kind)

    def real_flat(self, column: str, values: Column, offsets: IntArray) -> FloatArray:
        """As :meth:`real`, for the flat values of lists."""
        array = np.ascontiguousarray(values, dtype=np.float64)
        self.flag_flat(column, ~np.isfinite(array), offsets, "NaN or infinity")
        return array

    def vectors(
        self, flat: Mapping[str, Any], names: Sequence[str], offsets: IntArray, column: str | None = None
    ) -> tuple[dict[str, FloatArray], int]:
        """Check the pt, eta, phi and mass of jets or of particles.

        Parameters
        ----------
        flat : mapping
            From :meth:`collection`.
        names : sequence of str
            The columns of pt, eta, phi and mass.
        offsets : array of int64, shape (n + 1,)
            From :meth:`collection`.
        column : str, optional
            Name in errors if all four are in one column of the file.

        Returns
        -------
        vectors : dict of str to array, shape (m,)
            ``pt``, ``eta``, ``phi``, ``mass``.
        clipped : int
            Masses that were rounding errors below zero.
        """
        columns = tuple(column or name for name in names)
        pt, eta, phi, mass = (
            self.real_flat(column, flat[name], offsets) for column, name in zip(columns, names, strict=True)
        )
        with np.errstate(invalid="ignore"):
            self.flag_flat(columns[0], pt <= 0, offsets, "a transverse momentum that is not positive")
            negative = mass < 0
        by_field = dict(zip(CONSTITUENT_FIELDS, columns, strict=True))
        for field, wrong, kind in impossible(pt, eta, phi, mass):
            self.flag_flat(by_field[field], wrong, offsets, kind)
        vectors = {"pt": pt, "eta": eta, "phi": phi, "mass": np.where(negative, 0.0, mass)}
        return vectors, int(np.count_nonzero(negative))


def impossible_weights(weight: FloatArray) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
    """Return which weights no event can have.

    Parameters
    ----------
    weight : array, shape (n,)
        Those that are not finite are another check's.

    Yields
    ------
    wrong : array of bool, shape (n,)
    kind : str
        What is wrong.
    """
    size = np.abs(weight)
    yield (size > MAX_WEIGHT) & np.isfinite(size), f"a weight beyond {MAX_WEIGHT:g}"
    yield (size > 0) & (size < 1 / MAX_WEIGHT), f"a weight that is not 0 and within {1 / MAX_WEIGHT:g} of it"


def impossible_taus(tau: FloatArray, *, missing: bool = False) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
    """Return which N-subjettinesses no jet can have.

    Parameters
    ----------
    tau : array
        Those that are not finite are another check's.
    missing : bool
        Whether a negative value means a missing one.

    Yields
    ------
    wrong : array of bool, of the same shape
    kind : str
        What is wrong.
    """
    with np.errstate(invalid="ignore"):
        if not missing:
            yield tau < 0, "a negative value"
        yield (np.abs(tau) > MAX_TAU) & np.isfinite(tau), f"a value of more than {MAX_TAU:g}"


def negative_masses(mass: FloatArray, energy: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which masses are below zero by more than rounding.

    Parameters
    ----------
    mass, energy : array, shape (m,)
        GeV; the energy of a massless particle of the same momentum will do.

    Returns
    -------
    array of bool, shape (m,)
        False for NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return mass <= -np.maximum(MASS_TOLERANCE, MASS_TOLERANCE_OF_ENERGY * energy)


def impossible(
    pt: FloatArray, eta: FloatArray, phi: FloatArray, mass: FloatArray
) -> Iterator[tuple[str, npt.NDArray[np.bool_], str]]:
    """Return what no jet and no particle can have, whatever its transverse momentum must be.

    Parameters
    ----------
    pt, eta, phi, mass : array, shape (m,)
        GeV, rad; values that are not finite are another check's, and so is a transverse momentum of zero or less.

    Yields
    ------
    field : str
        ``eta``, ``phi``, ``pt`` or ``mass``.
    wrong : array of bool, shape (m,)
        Where.
    kind : str
        What is wrong.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        # no detector reaches there, and cosh of it overflows: a corrupt value
        forward = np.abs(eta) > MAX_ABS_ETA
        yield "eta", forward & np.isfinite(eta), f"a pseudorapidity beyond {MAX_ABS_ETA:g}"
        yield "phi", (np.abs(phi) > MAX_ABS_PHI) & np.isfinite(phi), "an azimuth beyond 2 pi (degrees?)"
        momentum = np.abs(pt) * np.cosh(np.where(forward, 0, eta))
        finite = np.isfinite(pt) & np.isfinite(eta) & np.isfinite(mass)
        yield (
            "pt",
            finite & (np.hypot(momentum, mass) > MAX_ENERGY),
            f"an energy of more than {MAX_ENERGY:g} GeV (MeV?)",
        )
        yield "pt", (pt > 0) & (pt < MIN_PT) & ~forward, f"a transverse momentum below {MIN_PT:g} GeV"
        yield "mass", finite & negative_masses(mass, momentum), "a negative mass"


def check_particles(checks: Checks, particles: AwkwardArray, column: str = "particles") -> None:
    """Flag what no particle can have, before it reaches fastjet, which would accept it silently.

    Parameters
    ----------
    checks : Checks
        Where complaints are gathered.
    particles : awkward.Array
        n lists of records with ``pt, eta, phi, mass``.
    column : str
        What complaints call it.
    """
    offsets = offsets_of(ak.to_numpy(ak.num(particles)))

    def flag(field: str, wrong: npt.NDArray[np.bool_], kind: str) -> None:
        checks.flag_flat(f"{column}.{field}", wrong, offsets, kind)

    pt, eta, phi, mass = (
        np.asarray(ak.to_numpy(ak.flatten(particles[field])), dtype=np.float64) for field in CONSTITUENT_FIELDS
    )
    for field, values in zip(CONSTITUENT_FIELDS, (pt, eta, phi, mass), strict=True):
        flag(field, ~np.isfinite(values), "NaN or infinity")
    with np.errstate(invalid="ignore"):
        flag("pt", pt < 0, "a negative transverse momentum")
        flag("pt", pt == 0, "no transverse momentum between particles that have some")
    for field, wrong, kind in impossible(pt, eta, phi, mass):
        flag(field, wrong, kind)


def missing_columns(required: Iterable[str], present: Iterable[str]) -> str:
    """Return which columns are missing and what comes closest, or nothing.

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
