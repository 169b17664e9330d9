"""Delphes ROOT files: jets clustered here from particle-flow objects or towers, or Delphes's own jets.

Delphes numbers no events that two files could share (its ``Event.Number`` starts again in each): an event is its file
and row.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.events.chunks import EventChunk
from drapes_hep.events.clustering import cluster_events, make_particles, no_jets
from drapes_hep.events.formats.columns import Checks, Columns, Converted, check_particles, row_ids
from drapes_hep.events.schema import JET_FIELDS, offsets_of, ragged

__all__ = ["DelphesJetLayout", "DelphesLayout", "DelphesTowerLayout", "delphes_layouts"]

_WEIGHT = "Event.Weight"
_RADII = ("02", "04", "08", "10", "12", "15")


def _event(checks: Checks, columns: Columns) -> dict[str, Any]:
    """Identity and weight; the weight is a list of one."""
    chunk = checks.chunk
    out: dict[str, Any] = {"event_id": row_ids(chunk.file_id, chunk.start, chunk.stop)}
    out["weight"] = np.ones(len(chunk))
    if _WEIGHT in columns:
        checks.flag(_WEIGHT, ak.to_numpy(ak.num(columns[_WEIGHT], axis=1)) != 1, "none or several weights")
        checks.finish()
        out["weight"] = checks.weight(_WEIGHT, ak.to_numpy(ak.flatten(columns[_WEIGHT], axis=1)))
    return out


class _ClusteredLayout:
    """What is common to the layouts whose jets are clustered here: collections of particles, one after the other."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    lists: frozenset[str]
    constituents = True
    constituent_columns: frozenset[str] = frozenset()
    collections: tuple[tuple[str, str], ...]
    """Each collection and what it calls the transverse momentum."""

    def columns_of_field(self, field: str) -> tuple[str, ...]:  # noqa: ARG002
        """See :class:`~drapes_hep.events.formats.columns.Layout`."""
        return ()

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`~drapes_hep.events.formats.columns.Layout`."""
        checks = Checks(self, chunk)
        out = _event(checks, columns)
        if not chunk.reading.jets:
            checks.finish()
            return Converted(out | no_jets(len(chunk), chunk.reading), 0)
        fields: list[tuple[npt.NDArray[Any], ...]] = []
        events, clipped = [], 0
        for collection, momentum in self.collections:
            names = tuple(f"{collection}.{field}" for field in (momentum, "Eta", "Phi", "Mass"))
            flat, offsets = checks.collection(columns, names, f"{collection}_size")
            # a track whose smeared momentum was negative is kept by Delphes without any, at an eta of 999.9
            real = flat[names[0]] != 0
            offsets = offsets_of(real)[offsets]
            pt, eta, phi = (flat[name][real] for name in names[:3])
            mass = flat[names[3]][real] if names[3] in flat else np.zeros_like(pt)
            check_particles(checks, make_particles(offsets, pt, eta, phi, mass), collection)
            clipped += int(np.count_nonzero(mass < 0))
            fields.append((pt, eta, phi, np.maximum(mass, 0)))
            events.append(np.repeat(np.arange(len(chunk)), np.diff(offsets)))
        checks.finish()
        event = np.concatenate(events)
        # stable: within an event, the collections one after the other
        order = np.argsort(event, kind="stable")
        offsets = offsets_of(np.bincount(event, minlength=len(chunk)))
        merged = (np.concatenate(parts).astype(np.float64)[order] for parts in zip(*fields, strict=True))
        return Converted(out | cluster_events(make_particles(offsets, *merged), chunk.reading), clipped)


def _columns(collection: str, *fields: str) -> tuple[str, ...]:
    return tuple(f"{collection}.{field}" for field in fields)


class DelphesLayout(_ClusteredLayout):
    """Delphes: anti-kT jets of `data.radius`, clustered from `EFlowTrack`, `EFlowPhoton` and `EFlowNeutralHadron`.

    Tracks have the mass in the file (`EFlowTrack.Mass`) or none; photons and neutral hadrons are massless,
    with `ET` as transverse momentum. Tracks smeared to zero momentum are excluded; Delphes's own jets include
    their rest energy. `Event.Weight` is the weight.
    """

    name = "delphes"
    collections = (("EFlowTrack", "PT"), ("EFlowPhoton", "ET"), ("EFlowNeutralHadron", "ET"))
    required = tuple(column for name, pt in collections for column in _columns(name, pt, "Eta", "Phi"))
    optional = ("EFlowTrack.Mass", _WEIGHT, *(f"{name}_size" for name, _ in collections))
    lists = frozenset((*required, "EFlowTrack.Mass", _WEIGHT))


class DelphesTowerLayout(_ClusteredLayout):
    """Delphes: jets clustered only from the calorimeter, massless `Tower`s.

    Tracks are not added, since charged particles deposit their energy in towers.
    """

    name = "delphes_towers"
    collections = (("Tower", "ET"),)
    required = _columns("Tower", "ET", "Eta", "Phi")
    optional = (_WEIGHT, "Tower_size")
    lists = frozenset((*required, _WEIGHT))


class DelphesJetLayout:
    """Delphes's own jets as stored: `FatJet` for `delphes_jets`, `ParticleFlowJet08` for `delphes_jets08` and so on.

    `Tau` gives the N-subjettiness. Their radius is that of the file; `data.radius` is not used. They have no
    constituents, which Delphes stores as references to other branches.

    Parameters
    ----------
    suffix : str
        Ten times the radius in two digits, as Delphes names its jets; empty for `FatJet`.
    """

    constituents = False
    constituent_columns: frozenset[str] = frozenset()

    def __init__(self, suffix: str = "") -> None:
        self.name = f"delphes_jets{suffix}"
        self._collection = f"ParticleFlowJet{suffix}" if suffix else "FatJet"
        self.required = _columns(self._collection, "PT", "Eta", "Phi", "Mass", "Tau[5]")
        self.optional = (_WEIGHT, f"{self._collection}_size")
        self.lists = frozenset((*self.required, _WEIGHT))

    def columns_of_field(self, field: str) -> tuple[str, ...]:  # noqa: ARG002
        """See :class:`~drapes_hep.events.formats.columns.Layout`."""
        return ()

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`~drapes_hep.events.formats.columns.Layout`."""
        checks = Checks(self, chunk)
        out = _event(checks, columns)
        if not chunk.reading.jets:
            checks.finish()
            return Converted(out | no_jets(len(chunk), chunk.reading), 0)
        flat, offsets = checks.collection(columns, self.required, f"{self._collection}_size")
        jets, clipped = checks.vectors(flat, self.required[:4], offsets)
        tau = flat[self.required[4]]
        if tau.ndim != 2:
            checks.flag(self.required[4], np.ones(len(chunk), dtype=bool), "not five numbers per jet")
            checks.finish()
        for i in range(3):
            jets[f"tau{i + 1}"] = checks.tau(self.required[4], tau[:, i], offsets)
        checks.finish()
        return Converted(out | {f"jets_{field}": ragged(jets[field], offsets) for field in JET_FIELDS}, clipped)


def delphes_layouts() -> tuple[_ClusteredLayout | DelphesJetLayout, ...]:
    """Return every layout of Delphes files, the preferred first."""
    return DelphesLayout(), DelphesTowerLayout(), DelphesJetLayout(), *(DelphesJetLayout(radius) for radius in _RADII)
