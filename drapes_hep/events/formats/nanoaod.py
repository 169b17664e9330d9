"""CMS NanoAOD and PFNano: AK8 jets as stored, and their particle-flow candidates where the file has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.events.chunks import EventChunk
from drapes_hep.events.clustering import no_jets
from drapes_hep.events.formats.columns import Checks, Columns, Converted, collision_ids, row_ids
from drapes_hep.events.schema import CONSTITUENT_FIELDS, IDENTITY_FIELDS, JET_FIELDS, nested, offsets_of, ragged

__all__ = ["NanoAODLayout", "NanoAODPFLayout", "OldPFNanoLayout", "PFNanoLayout"]

IntArray = npt.NDArray[np.int64]

_JETS = tuple(f"FatJet_{field}" for field in JET_FIELDS)
_EVENT = (*IDENTITY_FIELDS, "genWeight", "nFatJet")


def _candidates(table: str) -> tuple[str, ...]:
    return tuple(f"{table}_{field}" for field in CONSTITUENT_FIELDS)


@dataclass(frozen=True)
class _Links:
    """Columns of the candidates of jets.

    Parameters
    ----------
    links : str
        The table of links.
    index : str or None
        Its column that points into the table of candidates; None where the links hold the momenta themselves.
    candidates : str
        The table of candidates.
    """

    links: str
    index: str | None
    candidates: str


class NanoAODLayout:
    """CMS NanoAOD: AK8 jets (`FatJet`) as stored, with N-subjettiness as stored; no constituents.

    `run`, `luminosityBlock` and `event` determine the event id, in simulation (with `genWeight`) together with the
    file name. `genWeight` is the weight. A negative N-subjettiness means
    that it was not computed: all values of this jet are set to zero, and derived features are undefined.
    """

    name = "nanoaod"
    required: tuple[str, ...] = _JETS
    optional: tuple[str, ...] = _EVENT
    constituents = False
    lists: frozenset[str] = frozenset(_JETS)
    constituent_columns: frozenset[str] = frozenset()
    linked: _Links | None = None

    def columns_of_field(self, field: str) -> tuple[str, ...]:
        """See :class:`~drapes_hep.events.formats.columns.Layout`."""
        return (f"FatJet_{field}",)

    def convert(self, columns: Columns, chunk: EventChunk) -> Converted:
        """See :class:`~drapes_hep.events.formats.columns.Layout`."""
        checks = Checks(self, chunk)
        out: dict[str, Any] = dict(checks.numbering(columns))
        weight = columns.get("genWeight")
        out["weight"] = np.ones(len(chunk)) if weight is None else checks.weight("genWeight", weight)
        if IDENTITY_FIELDS[0] in out:
            # simulated samples number their events alike (run 1): there the numbers tell them apart in a file only
            sample = None if weight is None else chunk.file_id
            run, lumi, event = (out[name] for name in IDENTITY_FIELDS)
            out["event_id"] = collision_ids(run, lumi, event, sample)
        else:
            out["event_id"] = row_ids(chunk.file_id, chunk.start, chunk.stop)
        if not chunk.reading.jets:
            checks.finish()
            return Converted({**out, **no_jets(len(chunk), chunk.reading)}, 0)
        kept_columns = {field: self.columns_of_field(field)[0] for field in chunk.reading.keep}
        flat, offsets = checks.collection(columns, (*_JETS, *kept_columns.values()), "nFatJet")
        jets, clipped = checks.vectors(flat, _JETS[:4], offsets)
        tau = np.stack([checks.tau(name, flat[name], offsets, missing=True) for name in _JETS[4:]])
        tau[:, (tau < 0).any(axis=0)] = 0.0
        jets.update(tau1=tau[0], tau2=tau[1], tau3=tau[2])
        out.update({f"jets_{field}": ragged(jets[field], offsets) for field in JET_FIELDS})
        out.update({f"jets_{field}": ragged(flat[name], offsets) for field, name in kept_columns.items()})
        if chunk.reading.constituents and self.linked is not None:
            constituents, more = _constituents(columns, checks, offsets, self.linked)
            out.update(constituents)
            clipped += more
        checks.finish()
        return Converted(out, clipped)


def _index(
    checks: Checks, column: str, values: npt.NDArray[Any], offsets: IntArray, sizes: IntArray, of: str
) -> IntArray:
    """Check the indices of a table of links against the size of what they point to."""
    row = np.repeat(np.arange(len(sizes)), np.diff(offsets))
    wrong = ~((values >= 0) & (values < sizes[row])) | (values != np.floor(values))
    checks.flag_flat(column, wrong, offsets, f"an index outside the {of} of its event")
    return np.where(wrong, 0, values).astype(np.int64)


def _constituents(columns: Columns, checks: Checks, jet_offsets: IntArray, by: _Links) -> tuple[dict[str, Any], int]:
    """Return the constituents of the jets, and how many had a mass that was a rounding error below zero."""
    names, puppi, jet_name = _candidates(by.candidates), f"{by.candidates}_puppiWeight", f"{by.links}_jetIdx"
    sizes = np.diff(jet_offsets)
    table, offsets = checks.collection(columns, (*names, puppi), f"n{by.candidates}")
    if by.index is None:
        links, link_offsets = checks.collection(columns, (names[0], jet_name))
        jet = _index(checks, jet_name, links[jet_name], link_offsets, sizes, "jets")
        checks.finish()
    else:
        index_name = f"{by.links}_{by.index}"
        links, link_offsets = checks.collection(columns, (jet_name, index_name), f"n{by.links}")
        jet = _index(checks, jet_name, links[jet_name], link_offsets, sizes, "jets")
        place = _index(checks, index_name, links[index_name], link_offsets, np.diff(offsets), "candidates")
        checks.finish()
        place += np.repeat(offsets[:-1], np.diff(link_offsets))
        table = {name: values[place] for name, values in table.items()}
    jet += np.repeat(jet_offsets[:-1], np.diff(link_offsets))
    vectors, clipped = checks.vectors(table, names, link_offsets)
    if puppi in table:
        weight = checks.real_flat(puppi, table[puppi], link_offsets)
        wrong = ~((weight >= 0) & (weight <= 1)) & np.isfinite(weight)
        checks.flag_flat(puppi, wrong, link_offsets, "a weight outside 0 to 1")
        checks.finish()
        # the whole four-momentum is scaled, so the direction stays
        vectors["pt"], vectors["mass"] = vectors["pt"] * weight, vectors["mass"] * weight
        positive = weight > 0
        clipped = int(np.count_nonzero(table[names[3]][positive] < 0))
        jet, vectors = jet[positive], {name: values[positive] for name, values in vectors.items()}
    checks.finish()
    # candidates in the order of their jets, then by falling pt; those of equal pt stay in the file's order
    order = np.lexsort((-vectors["pt"], jet))
    inner = offsets_of(np.bincount(jet, minlength=int(jet_offsets[-1])))
    out = {f"constituents_{field}": nested(vectors[field][order], inner, jet_offsets) for field in CONSTITUENT_FIELDS}
    return out, clipped


class PFNanoLayout(NanoAODLayout):
    """CMS PFNano: like `nanoaod`, with the particle-flow candidates of the AK8 jets as constituents.

    Candidates' four-momenta are multiplied by `PFCands_puppiWeight` if the file has it; those with weight 0 are
    excluded. Their sum is the jet without energy corrections.
    """

    name = "pfnano"
    linked = _Links("FatJetPFCands", "pFCandsIdx", "PFCands")
    constituents = True
    _own = (*_candidates("PFCands"), "FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx")
    _more = ("PFCands_puppiWeight", "nPFCands", "nFatJetPFCands")
    required = (*_JETS, *_own)
    optional = (*_EVENT, *_more)
    lists = frozenset((*_JETS, *_own, "PFCands_puppiWeight"))
    constituent_columns = frozenset((*_own, *_more))


class OldPFNanoLayout(NanoAODLayout):
    """Older CMS PFNano: momenta of the candidates are stored with the index of their jet.

    `FatJetPFCands_puppiWeight` is applied if the file has it.
    """

    name = "pfnano_old"
    linked = _Links("FatJetPFCands", None, "FatJetPFCands")
    constituents = True
    _own = (*_candidates("FatJetPFCands"), "FatJetPFCands_jetIdx")
    _more = ("FatJetPFCands_puppiWeight", "nFatJetPFCands")
    required = (*_JETS, *_own)
    optional = (*_EVENT, *_more)
    lists = frozenset((*_JETS, *_own, "FatJetPFCands_puppiWeight"))
    constituent_columns = frozenset((*_own, *_more))


class NanoAODPFLayout(NanoAODLayout):
    """CMS NanoAOD from version 15: as `nanoaod`, with the candidates that it stores for AK8 jets.

    They are stored with their PUPPI weight applied, and only for jets above a threshold: other jets have none.
    """

    name = "nanoaod_pf"
    linked = _Links("FatJetPFCand", "pfCandIdx", "PFCand")
    constituents = True
    _own = (*_candidates("PFCand"), "FatJetPFCand_jetIdx", "FatJetPFCand_pfCandIdx")
    _more = ("nPFCand", "nFatJetPFCand")
    required = (*_JETS, *_own)
    optional = (*_EVENT, *_more)
    lists = frozenset((*_JETS, *_own))
    constituent_columns = frozenset((*_own, *_more))
