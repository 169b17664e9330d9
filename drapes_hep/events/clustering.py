r"""Jets from particles, for whole chunks at a time: anti-kT clustering and N-subjettiness, both by fastjet.

Jets are anti-kT of the radius that is asked for, with four-momenta added (E scheme). Every jet of at least
:data:`MIN_JET_PT` is kept, by falling transverse momentum, and **every kept jet has its substructure**: a processor may
reject the leading jet and take the third, and must not find a placeholder there. Beyond the two leading jets there is
little left to compute (a fifth to a quarter of the time of the substructure on the LHC Olympics events).

N-subjettiness is fastjet-contrib's, normalised, with beta = 1:

.. math:: \tau_N = \frac{1}{R_0 \sum_i p_{T,i}} \sum_i p_{T,i} \min_k \Delta R(i, k),

with R0 the jet radius, the sum over the jet's constituents, and distances in rapidity and (wrapped) azimuth. The axes k
are those of exclusive kT clustering into N subjets, either moved to a local minimum of tau_N by one pass of
minimisation (``"onepass_kt"``) or taken as they are (``"kt"``). A jet of N constituents or fewer has tau_N = 0.

References
----------
M. Cacciari, G. P. Salam, G. Soyez, arXiv:1111.6097 (FastJet) and arXiv:0802.1189 (anti-kT); J. Thaler,
K. Van Tilburg, arXiv:1011.2268 and arXiv:1108.2701 (N-subjettiness).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.events.chunks import Reading
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS, nested, offsets_of, ragged
from drapes_hep.events.types import AwkwardArray

__all__ = ["AXES", "MIN_JET_PT", "cluster_events", "falling_pt", "make_particles", "no_jets", "subjettiness"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MIN_JET_PT = 20.0
"""GeV. Softer jets are not kept."""

AXES = {"onepass_kt": "OnePass_KT_Axes", "kt": "KT_Axes"}
"""Names of the axes of N-subjettiness, and fastjet's names for them."""

_BLOCK = 200_000
"""Particles that fastjet holds at a time: it needs a few hundred bytes for each, whatever the chunk's size."""


@functools.cache
def _fastjet() -> Any:
    """Import fastjet, and keep its banner out of the user's output (the documentation names the papers to cite)."""
    import fastjet
    import fastjet._swig  # the public ClusterSequence wraps this one and does not pass its static methods on

    fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)
    return fastjet


def make_particles(
    offsets: IntArray,
    pt: npt.NDArray[Any],
    eta: npt.NDArray[Any],
    phi: npt.NDArray[Any],
    mass: npt.NDArray[Any] | None = None,
) -> AwkwardArray:
    """Make what :func:`cluster_events` takes from flat columns, without a copy.

    Parameters
    ----------
    offsets : array of int64, shape (n + 1,)
        Where each event's particles start; the last is m.
    pt, eta, phi : array, shape (m,)
        GeV, rad.
    mass : array, shape (m,), optional
        GeV; massless by default.

    Returns
    -------
    awkward.Array
        n lists of records.
    """
    columns = (pt, eta, phi, np.zeros_like(pt) if mass is None else mass)
    record = ak.contents.RecordArray([ak.contents.NumpyArray(column) for column in columns], list(CONSTITUENT_FIELDS))
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), record))


def no_jets(events: int, reading: Reading) -> dict[str, Any]:
    """Return the columns of events without jets, if jets are not needed (``reading.jets`` is False).

    Parameters
    ----------
    events : int
        How many.
    reading : Reading
        Tells whether there are columns of constituents, too.

    Returns
    -------
    dict of str to awkward.Array
        As :func:`cluster_events`.
    """
    nothing, none = np.zeros(0), np.zeros(events + 1, dtype=np.int64)
    columns = {f"jets_{field}": ragged(nothing, none) for field in JET_FIELDS}
    if reading.constituents:
        inner = np.zeros(1, dtype=np.int64)
        columns |= {f"constituents_{field}": nested(nothing, inner, none) for field in CONSTITUENT_FIELDS}
    return columns


def falling_pt(pt: npt.NDArray[Any], offsets: IntArray, *ties: npt.NDArray[Any]) -> IntArray:
    """Return the order that sorts every list by falling transverse momentum, equal ones by ``ties``, or as they stand.

    Parameters
    ----------
    pt : array, shape (m,)
        Of all lists, one after the other.
    offsets : array of int64, shape (n + 1,)
        Where each list starts.
    *ties : array, shape (m,)
        What orders equal momenta, the first before the second.

    Returns
    -------
    array of int64, shape (m,)
        Places in ``pt``.
    """
    lists = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.lexsort((*reversed(ties), -pt, lists))


def cluster_events(particles: AwkwardArray, reading: Reading) -> dict[str, Any]:
    """Cluster the particles of each event into jets with substructure.

    Parameters
    ----------
    particles : awkward.Array
        n lists of records with ``pt, eta, phi, mass`` (GeV, rad): finite, in any order. Particles without transverse
        momentum (zero padding) belong to no jet.
    reading : Reading
        ``radius`` of the jets, also R0 of N-subjettiness; ``axes``; whether ``constituents`` are wanted; ``jets``,
        without which nothing is clustered.

    Returns
    -------
    dict of str to awkward.Array
        For :func:`drapes_hep.events.nano_events.build_events`: n lists ``jets_*`` of jets by falling pt (eta is the
        pseudorapidity, phi in (-pi, pi]), and ``constituents_*`` if they were asked for, with the particles' own
        values by falling pt.

    Raises
    ------
    ValueError
        Unknown axes, a radius that is not positive.
    """
    if reading.axes not in AXES:
        raise ValueError(f"unknown axes '{reading.axes}'; available: {', '.join(AXES)}")
    if not reading.radius > 0:
        raise ValueError(f"the jet radius must be positive, got {reading.radius}")
    if not reading.jets:
        return no_jets(len(particles), reading)
    counts = ak.to_numpy(ak.num(particles, axis=1))
    offsets = offsets_of(counts)
    flat = {field: np.ascontiguousarray(ak.to_numpy(ak.flatten(particles[field]))) for field in CONSTITUENT_FIELDS}
    real = flat["pt"] > 0
    if not real.all():
        # what is left of each list, from the running number of particles kept
        offsets = offsets_of(real)[offsets]
        flat = {field: values[real] for field, values in flat.items()}
    parts = [_cluster(offsets[first : last + 1], flat, reading) for first, last in _blocks(offsets)]
    return _columns(parts, flat, reading)


def _blocks(offsets: IntArray) -> Iterator[tuple[int, int]]:
    """Cut events into runs of about as many particles, none of them empty."""
    edges = np.searchsorted(offsets, np.arange(0, offsets[-1], _BLOCK), side="left")
    edges = np.unique(np.concatenate([[0], edges, [len(offsets) - 1]]))
    yield from ((int(a), int(b)) for a, b in itertools.pairwise(edges))


def _vectors(offsets: IntArray, momenta: FloatArray) -> AwkwardArray:
    """Lists of four-momenta as fastjet reads them; ``momenta`` are px, py, pz, E, shape (4, m)."""
    record = ak.contents.RecordArray(
        [ak.contents.NumpyArray(component) for component in momenta], ["px", "py", "pz", "E"]
    )
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), record))


def _cluster(
    offsets: IntArray, flat: dict[str, npt.NDArray[Any]], reading: Reading
) -> tuple[IntArray, FloatArray, IntArray, IntArray]:
    """Cluster a run of events.

    Returns jets per event (n,), the jets' fields (7, j), constituents per jet (j,), and the constituents' places in
    ``flat`` (m,).
    """
    fastjet = _fastjet()
    begin, end = int(offsets[0]), int(offsets[-1])
    pt, eta, phi, mass = (flat[field][begin:end].astype(np.float64) for field in CONSTITUENT_FIELDS)
    pz = pt * np.sinh(eta)
    energy = np.hypot(pt * np.cosh(eta), mass) if mass.any() else pt * np.cosh(eta)
    momenta = np.stack([pt * np.cos(phi), pt * np.sin(phi), pz, energy])
    starts = offsets - begin
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, reading.radius)
    sequence = fastjet.ClusterSequence(_vectors(starts, momenta), definition)
    clustered = sequence.inclusive_jets(MIN_JET_PT)
    members = sequence.constituent_index(MIN_JET_PT)
    counts = ak.to_numpy(ak.num(clustered, axis=1)).astype(np.int64)
    px, py, pz, energy = (ak.to_numpy(ak.flatten(clustered[name])) for name in ("px", "py", "pz", "E"))
    jet_pt = np.hypot(px, py)
    jet_offsets = offsets_of(counts)
    order = falling_pt(jet_pt, jet_offsets)
    px, py, pz, energy, jet_pt = (values[order] for values in (px, py, pz, energy, jet_pt))

    inside = ak.flatten(members, axis=1)[order]
    sizes = ak.to_numpy(ak.num(inside, axis=1)).astype(np.int64)
    # fastjet counts particles from the start of their event
    event = np.repeat(np.arange(len(counts)), counts)
    place = ak.to_numpy(ak.flatten(inside)) + np.repeat(starts[event], sizes)

    # (E - pz)(E + pz) instead of E**2 - pz**2: no cancellation for forward jets. A lone massless particle still comes
    # out a rounding error to either side of zero
    mass = np.sqrt(np.maximum((energy - pz) * (energy + pz) - jet_pt**2, 0.0))
    tau = _tau(offsets_of(sizes), momenta[:, place], reading)
    jets = np.stack([jet_pt, np.arcsinh(pz / jet_pt), np.arctan2(py, px), mass, *tau])
    return counts, jets, sizes, place + begin


def _tau(offsets: IntArray, momenta: FloatArray, reading: Reading) -> FloatArray:
    """tau1-3 of jets given by their constituents, shape (3, j)."""
    if len(offsets) == 1:
        return np.zeros((3, 0))
    fastjet = _fastjet()
    # fastjet's N-subjettiness takes all particles of a list and heeds no clustering of them, yet wants one: the
    # cheapest, which merges nothing
    lists = fastjet.ClusterSequence(
        _vectors(offsets, momenta), fastjet.JetDefinition(fastjet.cambridge_algorithm, 1e-3)
    )
    tau = lists.njettiness(
        measure_definition="NormalizedMeasure",
        axes_definition=AXES[reading.axes],
        njets=[1, 2, 3],
        beta=1.0,
        R0=reading.radius,
    )
    return np.ascontiguousarray(ak.to_numpy(tau).T)


def subjettiness(
    pt: npt.NDArray[Any], eta: npt.NDArray[Any], phi: npt.NDArray[Any], offsets: IntArray, reading: Reading
) -> FloatArray:
    """Compute N-subjettiness of jets that are given by their massless constituents; nothing is clustered.

    Parameters
    ----------
    pt, eta, phi : array, shape (m,)
        Of all jets, one after the other; GeV, rad. All finite, pt above 0.
    offsets : array of int64, shape (j + 1,)
        Where each jet begins.
    reading : Reading
        ``radius`` is R0, and ``axes``.

    Returns
    -------
    array, shape (j, 3)
        tau1, tau2, tau3; 0 for a jet without constituents.
    """
    momenta = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)]).astype(np.float64)
    out = np.zeros((len(offsets) - 1, 3))
    full = np.flatnonzero(np.diff(offsets) > 0)
    # empty jets take no rows, so that what is left of the offsets are those of the others
    bounds = np.append(offsets[full], offsets[-1:])
    parts = [
        _tau(bounds[a : b + 1] - bounds[a], momenta[:, bounds[a] : bounds[b]], reading).T for a, b in _blocks(bounds)
    ]
    if parts:
        out[full] = np.concatenate(parts)
    return out


def _columns(
    parts: list[tuple[IntArray, FloatArray, IntArray, IntArray]],
    flat: dict[str, npt.NDArray[Any]],
    reading: Reading,
) -> dict[str, Any]:
    nothing = np.zeros(0, dtype=np.int64)
    parts = parts or [(nothing, np.zeros((len(JET_FIELDS), 0)), nothing, nothing)]
    counts, jets, sizes, place = (np.concatenate([part[i] for part in parts], axis=-1) for i in range(4))
    outer = offsets_of(counts)
    columns = {
        f"jets_{field}": ragged(np.ascontiguousarray(values), outer)
        for field, values in zip(JET_FIELDS, jets, strict=True)
    }
    if reading.constituents:
        inner = offsets_of(sizes)
        place = place[falling_pt(flat["pt"][place], inner)]
        columns |= {f"constituents_{field}": nested(flat[field][place], inner, outer) for field in CONSTITUENT_FIELDS}
    return columns
