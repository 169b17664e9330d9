"""How the columns of a file spell an event.

A layout knows column names, not files: the same one serves HDF5 and ROOT. What a layout makes are the flat columns of
:func:`drapes_hep.events.nano_events.build_events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import EventChunk
from drapes_hep.events.clustering import cluster_events, falling_pt, no_jets
from drapes_hep.events.features import wrapped
from drapes_hep.events.formats.columns import (
    COMMON,
    Checks,
    Columns,
    Converted,
    Layout,
    check_particles,
    impossible,
    impossible_taus,
    missing_columns,
)
from drapes_hep.events.formats.delphes import delphes_layouts
from drapes_hep.events.formats.nanoaod import NanoAODLayout, NanoAODPFLayout, OldPFNanoLayout, PFNanoLayout
from drapes_hep.events.schema import CONSTITUENT_FIELDS, IDENTITY_FIELDS, JET_FIELDS, nested, offsets_of, ragged
from drapes_hep.events.types import AwkwardArray, Column

__all__ = ["LAYOUTS", "FeatureLayout", "RawLayout", "SimulatedLayout", "SkimLayout"]

FloatArray = npt.NDArray[np.float64]


_LARGEST = np.finfo(np.float64).max
_SPELLED = {"pt": "px", "eta": "pz", "phi": "py", "mass": "m"}
"""Columns of the feature layout by what is computed of them."""


class FeatureLayout:
    """The LHC Olympics feature layout: px, py, pz, m (GeV) and tau1-3 of two jets, one column each.

    A jet whose momentum and mass are exactly zero is padding: the event has fewer jets.
    """

    name = "features"
    required = tuple(f"{q}j{jet}" for jet in (1, 2) for q in ("px", "py", "pz", "m", "tau1", "tau2", "tau3"))
    optional = COMMON
    constituents = False
    lists: frozenset[str] = frozenset()
    constituent_columns: frozenset[str] = frozenset()

    def columns_of_field(self, field: str) -> tuple[str, ...]:
        """See :class:`Layout`."""
        return f"{field}j1", f"{field}j2"

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = Checks(self, chunk)
        out = checks.common(columns)
        values = {name: checks.real(name, columns[name]) for name in self.required}
        jets: dict[str, list[FloatArray]] = {field: [] for field in JET_FIELDS}
        present, clipped = [], 0
        for jet in ("j1", "j2"):
            px, py, pz = (values[q + jet] for q in ("px", "py", "pz"))
            mass = values["m" + jet]
            with np.errstate(invalid="ignore", over="ignore"):  # bad values are flagged, and raised below
                pt = np.hypot(px, py)
                # arcsinh keeps every digit at any rapidity, unlike the logarithm of (p + pz) / (p - pz)
                eta = np.arcsinh(np.divide(pz, pt, out=np.zeros_like(pz), where=pt > 0))
                phi = np.arctan2(py, px)
                # what overflowed on the way is as impossible as the largest number that did not
                finite = np.isfinite(px) & np.isfinite(py) & np.isfinite(pz)
                clipped_pt, clipped_eta = (
                    np.where(finite, np.clip(values, -_LARGEST, _LARGEST), values) for values in (pt, eta)
                )
                for field, wrong, kind in impossible(clipped_pt, clipped_eta, phi, mass):
                    checks.flag(_SPELLED[field] + jet, wrong, kind)
                clipped += int(np.count_nonzero(mass < 0))
                mass = np.where(mass < 0, 0.0, mass)
                for name in (f"tau{n}{jet}" for n in (1, 2, 3)):
                    for wrong, kind in impossible_taus(values[name]):
                        checks.flag(name, wrong, kind)
            real = (pt != 0) | (pz != 0) | (mass != 0)
            checks.flag("px" + jet, real & (pt == 0), "no transverse momentum")
            taus = (values[f"tau{n}{jet}"] for n in (1, 2, 3))
            for field, array in zip(JET_FIELDS, (pt, eta, phi, mass, *taus), strict=True):
                jets[field].append(array)
            present.append(real)
        checks.finish()
        keep = np.stack(present, axis=1)
        offsets = offsets_of(keep.sum(axis=1))
        for field in chunk.reading.keep if chunk.reading.jets else ():
            jets[field] = [np.asarray(columns[name]) for name in self.columns_of_field(field)]
        for field, pair in jets.items():
            out[f"jets_{field}"] = ragged(np.stack(pair, axis=1)[keep], offsets)
        return Converted(out, clipped)


class SkimLayout:
    """Skims and templates of drapes-hep: event ids, weights and ragged jets."""

    name = "skim"
    required = ("event_id", "jets")
    optional = ("weight", "label", "parent_id", *IDENTITY_FIELDS)
    constituents = True
    lists = frozenset({"jets"})
    constituent_columns: frozenset[str] = frozenset()

    def columns_of_field(self, field: str) -> tuple[str, ...]:
        """See :class:`Layout`."""
        return (f"jets.{field}",)

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = Checks(self, chunk)
        out = checks.common(columns)
        if not chunk.reading.jets:
            checks.finish()
            return Converted(out | no_jets(len(chunk), chunk.reading), 0)
        jets = columns["jets"]
        absent = missing_columns(JET_FIELDS, ak.fields(jets))
        if absent:
            raise InputError(chunk.path, f"its jets have no {absent}", "write skims with `drapes skim`")
        nested = next((field for field in JET_FIELDS if jets[field].ndim != 2 or ak.fields(jets[field])), None)
        if nested is not None:
            raise InputError(chunk.path, f"'{nested}' of its jets is not one number per jet", "write one per jet")
        counts = ak.to_numpy(ak.num(jets))
        offsets = offsets_of(counts)
        names = tuple(f"jets.{field}" for field in JET_FIELDS)
        flat = {name: ak.to_numpy(ak.flatten(jets[field])) for name, field in zip(names, JET_FIELDS, strict=True)}
        vectors, clipped = checks.vectors(flat, names[:4], offsets)
        for name, field in zip(names[4:], JET_FIELDS[4:], strict=True):
            vectors[field] = checks.tau(name, flat[name], offsets)
        out.update({f"jets_{field}": ragged(vectors[field], offsets) for field in JET_FIELDS})
        for field in chunk.reading.keep:
            if field not in ak.fields(jets) or jets[field].ndim != 2 or ak.fields(jets[field]):
                raise InputError(chunk.path, f"its jets have no '{field}', one number per jet", "see selection.keep")
            out[f"jets_{field}"] = ragged(ak.to_numpy(ak.flatten(jets[field])), offsets)
        if chunk.reading.constituents:
            constituents, more = self._constituents(jets, offsets, checks)
            out.update(constituents)
            clipped += more
        checks.finish()
        return Converted(out, clipped)

    def _constituents(self, jets: Column, offsets: npt.NDArray[np.int64], checks: Checks) -> tuple[dict[str, Any], int]:
        path = checks.chunk.path
        if "constituents" not in ak.fields(jets):
            raise InputError(path, "its jets have no constituents", "skim the raw events with constituents")
        inside = ak.flatten(jets["constituents"])
        absent = missing_columns(CONSTITUENT_FIELDS, ak.fields(inside))
        if absent:
            raise InputError(path, f"its constituents have no {absent}", "write skims with `drapes skim`")
        starts = offsets_of(ak.to_numpy(ak.num(inside)))
        names = tuple(f"jets.constituents.{field}" for field in CONSTITUENT_FIELDS)
        flat = {
            name: ak.to_numpy(ak.flatten(inside[field])) for name, field in zip(names, CONSTITUENT_FIELDS, strict=True)
        }
        vectors, clipped = checks.vectors(flat, names, starts[offsets])
        # in the file's precision: a skim of a skim is the same, byte by byte
        out = {
            f"constituents_{field}": nested(vectors[field].astype(flat[name].dtype), starts, offsets)
            for name, field in zip(names, CONSTITUENT_FIELDS, strict=True)
        }
        return out, clipped


class RawLayout:
    """Raw LHC Olympics events: particles in HDF5 as written by pandas, clustered into jets by drapes-hep.

    A table of 3k numbered columns, pT, eta, phi of k massless particles, zeros after the last one. An additional
    column is the label; otherwise labels are read from the file ``<stem>.masterkey`` next to it, if there is one: one
    number per line, 0 for background, 1 or 2 for signal (the third black box has two kinds). Jets are anti-kT of
    ``data.radius``, all above 20 GeV, each with its N-subjettiness about the axes ``data.axes``.
    """

    name = "lhco_raw"
    required = ("particles",)
    optional = ("label",)
    constituents = True
    lists = frozenset({"particles"})
    constituent_columns: frozenset[str] = frozenset()

    def columns_of_field(self, field: str) -> tuple[str, ...]:  # noqa: ARG002
        """See :class:`Layout`."""
        return ()

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = Checks(self, chunk)
        out = checks.common(columns)
        if not chunk.reading.jets:
            checks.finish()
            return Converted(out | no_jets(len(chunk), chunk.reading), 0)
        check_particles(checks, columns["particles"])
        checks.finish()
        return Converted(out | cluster_events(columns["particles"], chunk.reading), 0)


class SimulatedLayout:
    """Plain HDF5 arrays of jets: ``jets`` (n, k, 4: pt, eta, phi, mass) and ``tau`` (n, k, 3).

    With constituents there are ``const_offset`` (n k + 1), where each jet's begin in ``const_pt``, ``const_deta`` and
    ``const_dphi``, the last two relative to the jet; constituents are massless. A jet of zeros only is padding.
    """

    name = "simulated"
    required = ("jets", "tau")
    optional = COMMON
    constituents = True
    lists = frozenset({"jets", "tau"})
    constituent_columns = frozenset({"constituents"})

    def columns_of_field(self, field: str) -> tuple[str, ...]:  # noqa: ARG002
        """See :class:`Layout`."""
        return ()

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`Layout`."""
        checks = Checks(self, chunk)
        out = checks.common(columns)
        if not chunk.reading.jets:
            checks.finish()
            return Converted(out | no_jets(len(chunk), chunk.reading), 0)
        kinematics, taus = (np.asarray(columns[name], dtype=np.float64) for name in self.required)
        present = (kinematics != 0).any(axis=2)
        for name, values in (("jets", kinematics), ("tau", taus)):
            checks.flag(name, np.any(~np.isfinite(values), axis=(1, 2)), "NaN or infinity")
        for wrong, kind in impossible_taus(taus):
            checks.flag("tau", np.any(wrong, axis=(1, 2)), kind)
        # what is not finite can be judged no further, and would be counted a second time
        checks.finish()
        offsets = offsets_of(present.sum(axis=1))
        jets = np.concatenate([kinematics, taus], axis=2)[present]
        flat = {field: jets[:, i] for i, field in enumerate(JET_FIELDS)}
        vectors, clipped = checks.vectors(flat, JET_FIELDS[:4], offsets, column="jets")
        jets[:, 3] = vectors["mass"]
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
        checks: Checks,
    ) -> dict[str, Any]:
        counts = ak.to_numpy(ak.num(inside, axis=2)).reshape(present.shape)
        checks.flag("constituents", (~present & (counts > 0)).any(axis=1), "particles of an absent jet")
        sizes = counts[present]
        inner = offsets_of(sizes)
        flat = {name: ak.to_numpy(ak.flatten(inside[name], axis=None)) for name in ("pt", "eta", "phi")}
        row = np.repeat(np.arange(len(present)), counts.sum(axis=1))
        for name, values in flat.items():
            wrong = np.zeros(len(present), dtype=bool)
            wrong[row[~np.isfinite(values) | ((name == "pt") & (values <= 0))]] = True
            checks.flag("constituents", wrong, "NaN, infinity or no transverse momentum")
        mass = np.zeros_like(flat["pt"])
        for _, particles, kind in impossible(flat["pt"], flat["eta"], flat["phi"], mass):
            checks.flag("constituents", np.bincount(row[particles], minlength=len(present)) > 0, kind)
        if checks.bad:
            return {}
        jet = np.repeat(np.arange(len(jets)), sizes)
        phi = wrapped(flat["phi"] + jets[jet, 2])
        values = (flat["pt"], flat["eta"] + jets[jet, 1], phi, mass)
        order = falling_pt(flat["pt"], inner)
        return {
            f"constituents_{field}": nested(array[order], inner, offsets)
            for field, array in zip(CONSTITUENT_FIELDS, values, strict=True)
        }


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        FeatureLayout(),
        SkimLayout(),
        RawLayout(),
        SimulatedLayout(),
        PFNanoLayout(),
        OldPFNanoLayout(),
        NanoAODPFLayout(),
        NanoAODLayout(),
        *delphes_layouts(),
    )
}
"""Known layouts by name. A new one is a class and a line here."""
