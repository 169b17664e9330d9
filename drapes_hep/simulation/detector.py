r"""A parametrised detector: particles to the energy-flow objects that jets are made of, many events at a time.

The model is that of Delphes with its public CMS card (tag 3.4.1), reimplemented:

1. *Solenoid.* Charged particles follow helices in a field of 3.8 T, neutral ones straight lines, to a cylinder of
   radius 1.29 m and half-length 3 m.
2. *Tracks.* Each charged particle within :math:`|\eta| < 2.5` is found with an efficiency that depends on its kind,
   transverse momentum and pseudorapidity; its momentum is smeared log-normally, with a resolution of
   :math:`\sqrt{a^2 + (b\, p_T)^2}`, its direction is kept.
3. *Calorimeters.* Electrons and photons leave their energy in the electromagnetic cells (0.0174 by one degree),
   hadrons in the hadronic ones (0.087 by 5 degrees, 10 in the endcap), long-lived :math:`K^0_S` and :math:`\Lambda` 30%
   and 70%, muons and neutrinos none. The energy of a cell is smeared log-normally, with
   :math:`\sigma^2 = (c E)^2 + (s \sqrt{E})^2 + n^2`, and set to zero below a threshold in energy and in significance.
4. *Energy flow.* Energy in a cell beyond that of the tracks that point to it becomes a neutral object at a random place
   in the cell, where it is significant. Otherwise the cell's tracks are scaled to the weighted mean of both energies.

Not modelled: calorimeters beyond :math:`|\eta| = 3`, pile-up, material, magnetic field outside the solenoid. Objects
beyond :math:`|\eta| = 2.5` are dropped; all are massless.

References
----------
J. de Favereau et al., arXiv:1307.6346 (Delphes 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.events.schema import offsets_of
from drapes_hep.simulation.pythia import Particles

__all__ = ["DETECTORS", "Detector", "Objects", "Place", "propagate", "respond"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_FIELD, _RADIUS, _LENGTH = 3.8, 1.29, 3.0
"""Tesla; metres; metres (half)."""
_CURVATURE = 0.299792458 * _FIELD
"""GeV/m: transverse momentum over the radius of the helix, for unit charge."""

_ECAL_LOW, _ECAL_STEP, _ECAL_ETA, _ECAL_PHI = -2.958, 0.0174, 340, 360
_OUTER = (1.74, 1.83, 1.93, 2.043, 2.172, 2.322, 2.5, 2.65, 2.868, 2.95)
_HCAL_EDGES = np.array(
    [*(-edge for edge in reversed(_OUTER)), -1.653, *(-1.566 + 0.087 * i for i in range(38)), *_OUTER], dtype=np.float64
)
_HCAL_PHI = np.array([36] * (len(_OUTER) + 1) + [72] * 38 + [36] * len(_OUTER))
"""Cells in azimuth, by the upper edge in pseudorapidity."""

_INVISIBLE = (12, 14, 16)
_NEGATIVE = (11, 13, 3112, 3312, 3334)
_POSITIVE = (211, 321, 2212, 3222)
"""Stable particles of charge -1 and +1; their antiparticles are opposite, everything else is neutral."""


@dataclass(frozen=True)
class Detector:
    """What differs between the two detectors.

    Parameters
    ----------
    hadron_resolution : tuple of three (a, b)
        Tracks of hadrons: constant, and slope in 1/GeV, for |eta| up to 0.5, 1.5 and 2.5.
    hcal_significance : float
        Below this many standard deviations, energy in a hadronic cell counts as none.
    ecal_significance : float
        The same for electromagnetic cells.
    """

    hadron_resolution: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    hcal_significance: float
    ecal_significance: float = 2.0


DETECTORS = {
    "default": Detector(((0.06, 1.3e-3), (0.10, 1.7e-3), (0.25, 3.1e-3)), hcal_significance=1.0),
    "alternative": Detector(((0.01, 1.5e-4), (0.015, 2.5e-4), (0.025, 5.5e-4)), hcal_significance=2.0),
}
"""By the name of the shower: Delphes' CMS card of tag 3.4.1, and tracks and threshold as in later ones."""

_ELECTRON_RESOLUTION = ((0.03, 1.3e-3), (0.05, 1.7e-3), (0.15, 3.1e-3))
_MUON_RESOLUTION = ((0.01, 1.0e-4), (0.015, 1.5e-4), (0.025, 3.5e-4))
_ECAL_LEAST, _HCAL_LEAST = 0.5, 1.0
"""GeV."""
_ETA_MAX = 2.5


@dataclass(frozen=True)
class Objects:
    """Massless energy-flow objects of a run of events, those of an event by falling transverse momentum.

    Parameters
    ----------
    offsets : array of int64, shape (n + 1,)
        Where each event's objects start; the last is m.
    pt, eta, phi : array, shape (m,)
        GeV, rad.
    """

    offsets: IntArray
    pt: FloatArray
    eta: FloatArray
    phi: FloatArray

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class _Tracks:
    """Found tracks; ``place`` is that of the particle among those that were propagated."""

    place: IntArray
    pt: FloatArray
    resolution: FloatArray


def respond(particles: Particles, detector: Detector, rng: np.random.Generator) -> Objects:
    """Send particles through the detector.

    Parameters
    ----------
    particles : Particles
        Final states of n events.
    detector : Detector
        One of :data:`DETECTORS`, or another.
    rng : numpy.random.Generator
        Where chance comes from: the same state gives the same objects.

    Returns
    -------
    Objects
        Of n events.
    """
    visible = _visible(particles)
    event = particles.event[visible]
    pdg, px, py, pz, energy, x, y, z = particles.where(visible)
    charge = _charge(pdg)
    place = propagate(charge, px, py, pz, x * 1e-3, y * 1e-3, z * 1e-3)
    reached = place.reached
    event, pdg, px, py, pz, energy, charge = (v[reached] for v in (event, pdg, px, py, pz, energy, charge))
    eta, phi, track_phi = place.eta[reached], place.phi[reached], place.track_phi[reached]
    pt = np.hypot(px, py)
    track_eta = np.arcsinh(pz / pt)
    code = np.abs(pdg)

    tracks = _tracks(code, charge, pt, eta, detector, rng)
    track_energy = tracks.pt * np.cosh(track_eta[tracks.place])
    both = np.isin(code, (310, 3122))
    electromagnetic = np.where(both, 0.3, np.isin(code, (11, 22, 111)))
    hadronic = np.where(both, 0.7, ~np.isin(code, (11, 13, 22, 111)))

    kinds, track_pt = [], tracks.pt
    for calorimeter, cell, fraction, significance in (
        (_ECAL, _ecal_cells(eta, phi), electromagnetic, detector.ecal_significance),
        (_HCAL, _hcal_cells(eta, phi), hadronic, detector.hcal_significance),
    ):
        hit = (fraction > 0) & (cell >= 0)
        tower = np.where(hit, event * calorimeter.size + cell, -1)
        neutrals, factor = _combine(calorimeter, significance, tower, fraction * energy, tracks, track_energy, rng)
        kinds.append(neutrals)
        track_pt = track_pt * factor
    kinds.append((event[tracks.place], track_pt, track_eta[tracks.place], track_phi[tracks.place]))
    return _gather(len(particles), kinds)


def _combine(
    calorimeter: _Calorimeter,
    significance: float,
    tower: IntArray,
    energy: FloatArray,
    tracks: _Tracks,
    track_energy: FloatArray,
    rng: np.random.Generator,
) -> tuple[tuple[IntArray, FloatArray, FloatArray, FloatArray], FloatArray]:
    """Measure the towers of one calorimeter and compare them with the tracks that point to them.

    ``tower`` (m,) numbers the tower that a particle hits, through all events, or is -1; ``energy`` (m,) is what it
    leaves there. Gives the neutral objects (event, pt, eta, phi), and the factor of each track's momentum.
    """
    hit = tower >= 0
    keys, index = np.unique(tower[hit], return_inverse=True)
    number = np.full(len(tower), -1)
    number[hit] = index
    deposit = _sums(index, energy[hit], len(keys))
    pointing = number[tracks.place]
    on = pointing >= 0
    track_sum = _sums(pointing[on], track_energy[on], len(keys))
    variance = _sums(pointing[on], (tracks.resolution[on] * track_energy[on]) ** 2, len(keys))

    low, high, first_phi, width = calorimeter.bounds(keys % calorimeter.size)
    centre = np.abs(0.5 * (low + high))
    measured = _lognormal(deposit, calorimeter.resolution(centre, deposit), rng)
    sigma = calorimeter.resolution(centre, measured)
    measured[(measured < calorimeter.least) | (measured < significance * sigma)] = 0.0
    excess = np.maximum(measured - track_sum, 0.0)
    neutral = (excess > calorimeter.least) & (excess > significance * np.sqrt(variance + sigma**2))
    eta = low + rng.random(len(keys)) * (high - low)
    phi = first_phi + rng.random(len(keys)) * width
    objects = (keys // calorimeter.size, excess / np.cosh(eta), eta, phi)

    # where nothing is left for a neutral, tracks and tower measure the same energy: their mean, by 1 / sigma^2.
    # In a tower set to zero, sigma is the noise, or zero where the calorimeter has none: then the tracks stand alone
    by_track = np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0)
    by_tower = np.divide(1.0, sigma**2, out=np.zeros_like(sigma), where=sigma > 0)
    factor = np.divide(
        by_track * track_sum + by_tower * measured,
        (by_track + by_tower) * track_sum,
        out=np.ones_like(track_sum),
        where=~neutral & (track_sum > 0),
    )
    of_tracks = np.ones(len(tracks.place))
    of_tracks[on] = factor[pointing[on]]
    return (objects[0][neutral], objects[1][neutral], objects[2][neutral], objects[3][neutral]), of_tracks


def _sums(index: IntArray, values: FloatArray, length: int) -> FloatArray:
    # of nothing at all, bincount makes integers
    return np.bincount(index, values, minlength=length).astype(np.float64)


def _visible(particles: Particles) -> BoolArray:
    """Mask of particles that start inside and can be seen: no neutrinos, none along the beam."""
    pt2 = particles.px**2 + particles.py**2
    inside = (np.hypot(particles.x, particles.y) <= 1e3 * _RADIUS) & (np.abs(particles.z) <= 1e3 * _LENGTH)
    visible = inside & (pt2 > 1e-9) & ~np.isin(np.abs(particles.pdg), _INVISIBLE)
    # sinh(4): what starts out beyond |eta| = 4 reaches no cell
    return visible & (np.abs(particles.pz) <= math.sinh(4.0) * np.sqrt(pt2))


def _charge(pdg: IntArray) -> IntArray:
    code = np.abs(pdg)
    charge = np.isin(code, _POSITIVE).astype(np.int64) - np.isin(code, _NEGATIVE)
    return np.where(pdg < 0, -charge, charge)


@dataclass(frozen=True)
class Place:
    """Where particles reach the calorimeters.

    Parameters
    ----------
    reached : array of bool, shape (m,)
        False for what leaves through no surface.
    eta, phi : array, shape (m,)
        As seen from the origin, rad.
    track_phi : array, shape (m,)
        Azimuth of the momentum at the point closest to the beam.
    """

    reached: BoolArray
    eta: FloatArray
    phi: FloatArray
    track_phi: FloatArray


def propagate(
    charge: IntArray, px: FloatArray, py: FloatArray, pz: FloatArray, x: FloatArray, y: FloatArray, z: FloatArray
) -> Place:
    """Follow particles from their vertices to the cylinder.

    Parameters
    ----------
    charge : array of int64, shape (m,)
        -1, 0 or 1.
    px, py, pz : array, shape (m,)
        GeV.
    x, y, z : array, shape (m,)
        Vertex inside the cylinder, metres.

    Returns
    -------
    Place
    """
    pt, phi = np.hypot(px, py), np.arctan2(py, px)
    end = np.where(pz > 0, _LENGTH, -_LENGTH)
    straight = charge == 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # straight lines, by the path in the transverse plane over pt
        cross = px * y - py * x
        inside = (pt * _RADIUS) ** 2 - cross**2
        path = (-(px * x + py * y) + np.sqrt(np.maximum(inside, 0.0))) / pt**2
        path = np.where(np.abs(z + pz * path) > _LENGTH, (end - z) / pz, path)
        # helices: around a centre, by the angle that is turned
        turn = np.where(charge < 0, -1.0, 1.0)
        radius = pt / _CURVATURE
        centre_x, centre_y = x + turn * radius * np.sin(phi), y - turn * radius * np.cos(phi)
        distance = np.hypot(centre_x, centre_y)
        start = np.arctan2(y - centre_y, x - centre_x)
        to_end = np.where(pz != 0, (end - z) / (pz / pt * radius), np.inf)
        cosine = (_RADIUS**2 - distance**2 - radius**2) / (2 * radius * distance)
        crosses = (distance + radius > _RADIUS) & (np.abs(cosine) < 1)
        half = np.arccos(np.clip(np.where(crosses, cosine, 0.0), -1, 1))
        towards = np.arctan2(centre_y, centre_x)
        first = np.mod(turn * (start - towards - half), 2 * np.pi)
        second = np.mod(turn * (start - towards + half), 2 * np.pi)
        angle = np.minimum(to_end, np.where(crosses, np.minimum(first, second), np.inf))
        reached = np.where(straight, inside >= 0, np.isfinite(angle))
        angle = np.where(np.isfinite(angle), angle, 0.0)
        at_x = np.where(straight, x + px * path, centre_x + radius * np.cos(start - turn * angle))
        at_y = np.where(straight, y + py * path, centre_y + radius * np.sin(start - turn * angle))
        at_z = np.where(straight, z + pz * path, z + pz / pt * radius * angle)
        across = np.hypot(at_x, at_y)
        reached &= across > 0
        eta = np.arcsinh(at_z / np.where(reached, across, 1.0))
    track_phi = np.where(straight, phi, np.arctan2(turn * centre_x, -turn * centre_y))
    return Place(reached, eta, np.arctan2(at_y, at_x), track_phi)


def _resolution(table: tuple[tuple[float, float], ...], aeta: FloatArray, pt: FloatArray) -> FloatArray:
    region = np.searchsorted([0.5, 1.5], aeta)
    constant, slope = np.array(table).T
    resolution: FloatArray = np.hypot(constant[region], slope[region] * pt)
    return resolution


def _tracks(
    code: IntArray, charge: IntArray, pt: FloatArray, eta: FloatArray, detector: Detector, rng: np.random.Generator
) -> _Tracks:
    place = np.flatnonzero((charge != 0) & (np.abs(eta) <= _ETA_MAX) & (pt > 0.1))
    code, pt, aeta = code[place], pt[place], np.abs(eta[place])
    electron, muon, soft, central = code == 11, code == 13, pt <= 1.0, aeta <= 1.5
    hard_muon = np.where(central, 0.99, 0.98) * np.where(pt > 1000, np.exp(np.minimum(0.5 - 5e-4 * pt, 0.0)), 1.0)
    hard_electron = np.where(pt <= 100, np.where(central, 0.95, 0.83), np.where(central, 0.99, 0.90))
    efficiency = np.select(
        [electron & soft, electron, muon & soft, muon, soft],
        [
            np.where(central, 0.73, 0.50),
            hard_electron,
            np.where(central, 0.75, 0.70),
            hard_muon,
            np.where(central, 0.70, 0.60),
        ],
        np.where(central, 0.95, 0.85),
    )
    reconstructed = rng.random(len(place)) < efficiency
    resolution = np.select(
        [electron, muon],
        [_resolution(_ELECTRON_RESOLUTION, aeta, pt), _resolution(_MUON_RESOLUTION, aeta, pt)],
        _resolution(detector.hadron_resolution, aeta, pt),
    )
    place, pt, resolution = place[reconstructed], pt[reconstructed], np.minimum(resolution, 1.0)[reconstructed]
    return _Tracks(place, _lognormal(pt, resolution * pt, rng), resolution)


def _lognormal(mean: FloatArray, sigma: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw from log-normal distributions of given mean and standard deviation; of mean zero, zero."""
    safe = np.where(mean > 0, mean, 1.0)
    variance = np.log1p((sigma / safe) ** 2)
    drawn = np.exp(np.log(safe) - 0.5 * variance + np.sqrt(variance) * rng.standard_normal(len(mean)))
    return np.where(mean > 0, drawn, 0.0)


@dataclass(frozen=True)
class _Calorimeter:
    """A calorimeter.

    Numbers of cells below ``size``; the least energy (GeV) that counts; a cell's edges in eta, first azimuth and width;
    the resolution (GeV) at an |eta| and an energy.
    """

    size: int
    least: float
    bounds: Callable[[IntArray], tuple[FloatArray, ...]]
    resolution: Callable[[FloatArray, FloatArray], FloatArray]


def _azimuth(phi: FloatArray, cells: Any) -> IntArray:
    cell: IntArray = np.minimum(((phi + np.pi) / (2 * np.pi) * cells).astype(np.int64), cells - 1)
    return cell


def _ecal_cells(eta: FloatArray, phi: FloatArray) -> IntArray:
    ring = np.floor((eta - _ECAL_LOW) / _ECAL_STEP)
    outside = (ring < 0) | (ring >= _ECAL_ETA)
    return np.where(outside, -1, np.where(outside, 0, ring).astype(np.int64) * _ECAL_PHI + _azimuth(phi, _ECAL_PHI))


def _hcal_cells(eta: FloatArray, phi: FloatArray) -> IntArray:
    outside = (eta <= _HCAL_EDGES[0]) | (eta >= _HCAL_EDGES[-1])
    ring = np.where(outside, 1, np.searchsorted(_HCAL_EDGES, eta))
    return np.where(outside, -1, ring * 72 + _azimuth(phi, _HCAL_PHI[np.minimum(ring, len(_HCAL_PHI) - 1)]))


def _ecal_bounds(cell: IntArray) -> tuple[FloatArray, ...]:
    low = np.asarray(_ECAL_LOW + (cell // _ECAL_PHI) * _ECAL_STEP, dtype=np.float64)
    width: FloatArray = np.full(len(cell), 2 * np.pi / _ECAL_PHI)
    first = -np.pi + (cell % _ECAL_PHI) * width
    return low, low + _ECAL_STEP, first, width


def _hcal_bounds(cell: IntArray) -> tuple[FloatArray, ...]:
    ring = cell // 72
    width: FloatArray = 2 * np.pi / _HCAL_PHI[ring]
    return _HCAL_EDGES[ring - 1], _HCAL_EDGES[ring], -np.pi + (cell % 72) * width, width


def _ecal_resolution(aeta: FloatArray, energy: FloatArray) -> FloatArray:
    inner = np.sqrt((0.008 * energy) ** 2 + 0.11**2 * energy + 0.40**2)
    outer = np.sqrt((0.107 * energy) ** 2 + 2.08**2 * energy)
    scale = np.where(aeta <= 1.5, 1 + 0.64 * aeta**2, 2.16 + 5.6 * (aeta - 2) ** 2)
    return np.where(aeta <= 2.5, scale * inner, outer)


def _hcal_resolution(aeta: FloatArray, energy: FloatArray) -> FloatArray:  # noqa: ARG001  the same everywhere
    return np.sqrt((0.05 * energy) ** 2 + 1.5**2 * energy)


_ECAL = _Calorimeter(_ECAL_ETA * _ECAL_PHI, _ECAL_LEAST, _ecal_bounds, _ecal_resolution)
_HCAL = _Calorimeter((len(_HCAL_EDGES)) * 72, _HCAL_LEAST, _hcal_bounds, _hcal_resolution)


def _gather(events: int, parts: list[tuple[IntArray, FloatArray, FloatArray, FloatArray]]) -> Objects:
    """Put objects of all kinds together, by event and falling transverse momentum."""
    event, pt, eta, phi = (np.concatenate([part[i] for part in parts]) for i in range(4))
    keep = (pt > 0) & (np.abs(eta) < _ETA_MAX)
    event, pt, eta, phi = event[keep], pt[keep], eta[keep], phi[keep]
    order = np.lexsort((-pt, event))
    offsets = offsets_of(np.bincount(event, minlength=events))
    return Objects(offsets, pt[order], eta[order], phi[order])
