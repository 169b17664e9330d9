r"""Bring generated constituents to the four-momentum of their jet.

A jet is the sum of its constituents. What a network makes under a jet's (pT, eta, phi, m) adds up to it only about,
and the difference is the easiest thing for a classifier to find. Distances from the axis within the jet's radius R are
mapped by

.. math:: r \to R \, (r / R)^a

with the exponent that makes the mass right: what is at the rim stays there, while one factor for all distances would
push constituents out of the jets that are to become heavier, and a classifier finds these (an AUC of 0.73 from the
largest distance alone, instead of 0.57). A boost along the beam and a rotation then bring the axis back, and one
factor the transverse momentum. Neither of the last three changes what the jet looks like from its axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drapes_hep.compiled import compiled, inlined

__all__ = ["CLOSE_ENOUGH", "LOG_EXPONENTS", "JetSums", "conserve", "jet_sums"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ROUNDS = 30
"""At most, of the search for the exponent's logarithm; six to nine are usual, and a bisection takes all."""
_CLOSE = 1e-10
"""Of the jet's mass: the search ends this near to it."""
CLOSE_ENOUGH = 1e-3
"""Of the jet's mass and 1 GeV: a search that ends farther away has not reached it."""
LOG_EXPONENTS = math.log(0.2), math.log(5.0)
"""Bounds of the exponent's logarithm: a set that needs another is none of this jet; its distances stay as they are."""


class JetSums(NamedTuple):
    """Sums of constituents, arrays of shape (n,): transverse momentum (GeV), rapidity, azimuth, mass (GeV)."""

    pt: FloatArray
    rapidity: FloatArray
    phi: FloatArray
    mass: FloatArray

    @property
    def eta(self) -> FloatArray:
        """Pseudorapidity."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.arcsinh(np.hypot(self.pt, self.mass) / self.pt * np.sinh(self.rapidity)))


def _segments(values: FloatArray, offsets: IntArray) -> FloatArray:
    """Sum the rows of each set; an empty set gives 0. ``values`` is (total, k)."""
    index = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.stack([np.bincount(index, column, minlength=len(offsets) - 1) for column in values.T], axis=1)


def jet_sums(pt: FloatArray, eta: FloatArray, phi: FloatArray, offsets: IntArray) -> JetSums:
    """Add massless constituents up.

    Parameters
    ----------
    pt, eta, phi : array, shape (total,)
        Of constituents, packed; GeV, rad.
    offsets : array of int, shape (n + 1,)
        Where each jet begins.

    Returns
    -------
    JetSums
        NaN for a jet without constituents.
    """
    momenta = np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)
    energy, px, py, pz = _segments(momenta, offsets).T
    transverse = np.hypot(px, py)
    # (E - pz)(E + pz): no cancellation for jets along the beam
    mass = np.sqrt(np.maximum((energy - pz) * (energy + pz) - transverse**2, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        rapidity = np.arcsinh(pz / np.hypot(transverse, mass))
        rapidity = np.where(energy > 0, rapidity, np.nan)
    return JetSums(transverse, rapidity, np.arctan2(py, px), mass)


def conserve(
    fraction: FloatArray, delta: FloatArray, offsets: IntArray, jets: FloatArray, radius: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Bring constituents to their jets' four-momenta.

    Parameters
    ----------
    fraction : array, shape (total,)
        Transverse momenta as fractions of the jet's.
    delta : array, shape (total, 2)
        Pseudorapidity and azimuth less the jet's.
    offsets : array of int, shape (n + 1,)
        Where each jet begins.
    jets : array, shape (n, 4)
        pt, eta, phi, mass: GeV, rad.
    radius : float
        Of the jets: constituents farther away keep their distance.

    Returns
    -------
    fraction, delta : array
        As they came in, for constituents that add up to the jets. Jets that no exponent between a fifth and five gives
        the mass have only their axis and transverse momentum corrected.
    """
    # one type of arrays, so that the loops are compiled once
    shares, distances, asked = (np.ascontiguousarray(part, dtype=np.float64) for part in (fraction, delta, jets))
    out = np.empty((len(fraction), 3))
    _conserve(shares, distances, asked, np.ascontiguousarray(offsets, dtype=np.int64), radius, out)
    return out[:, 0], out[:, 1:]


@inlined
def _prepare(fraction: FloatArray, delta: FloatArray, radius: float, own: FloatArray) -> None:
    """Write what is needed of a jet's constituents: shares, distances from their axis, and ln(r / R).

    The logarithm is 0 for what no exponent moves: on the axis, and outside the radius.
    """
    total, eta, phi = 0.0, 0.0, 0.0
    for i in range(len(fraction)):
        total += fraction[i]
    for i in range(len(fraction)):
        own[i, 0] = fraction[i] / total
        eta += own[i, 0] * delta[i, 0]
        phi += own[i, 0] * delta[i, 1]
    for i in range(len(fraction)):
        own[i, 1], own[i, 2] = delta[i, 0] - eta, delta[i, 1] - phi
        length = math.sqrt(own[i, 1] ** 2 + own[i, 2] ** 2) / radius
        own[i, 3] = math.log(length) if 0.0 < length < 1.0 else 0.0


@inlined
def _at(own: FloatArray, log_exponent: float) -> tuple[float, float, float, float]:
    """Add a jet's constituents up: (transverse momentum, rapidity, azimuth, mass), about its axis, of shares."""
    # the factor on a distance is (r / R)^(a - 1)
    power = math.expm1(log_exponent)
    px, py, plus, minus = 0.0, 0.0, 0.0, 0.0
    for i in range(len(own)):
        factor = math.exp(power * own[i, 3])
        stretch, angle = math.exp(own[i, 1] * factor), own[i, 2] * factor
        px += own[i, 0] * math.cos(angle)
        py += own[i, 0] * math.sin(angle)
        # E + pz and E - pz: no cancellation for jets along the beam
        plus += own[i, 0] * stretch
        minus += own[i, 0] / stretch
    square = px**2 + py**2
    mass = math.sqrt(max(plus * minus - square, 0.0))
    rapidity = math.asinh(0.5 * (plus - minus) / math.sqrt(square + mass**2))
    return math.sqrt(square), rapidity, math.atan2(py, px), mass


@inlined
def _excess(own: FloatArray, log_exponent: float, pt: float, mass: float) -> float:
    """Compute by how much a jet of transverse momentum ``pt`` is too heavy."""
    transverse, _, _, heavy = _at(own, log_exponent)
    return heavy * (pt / transverse if transverse > 0.0 else 1.0) - mass


@inlined
def _exponent(own: FloatArray, pt: float, mass: float) -> float:
    """Find the exponent's logarithm: secants where both ends are bracketed, else bisection."""
    # a larger exponent brings constituents nearer to the axis: the mass falls
    (low, high), too_heavy, too_light, side = LOG_EXPONENTS, 0.0, 0.0, 0
    middle = 0.0
    for _ in range(_ROUNDS):
        bracketed = too_heavy > 0.0 > too_light
        middle = low + (high - low) * (too_heavy / (too_heavy - too_light) if bracketed else 0.5)
        excess = _excess(own, middle, pt, mass)
        if abs(excess) <= _CLOSE * mass:
            break
        # an end that stays counts half (Illinois), or it would stay for good
        if excess > 0.0:
            low, too_heavy = middle, excess
            too_light *= 0.5 if side == 1 else 1.0
            side = 1
        else:
            high, too_light = middle, excess
            too_heavy *= 0.5 if side == -1 else 1.0
            side = -1
    return middle if abs(_excess(own, middle, pt, mass)) <= CLOSE_ENOUGH * (mass + 1.0) else 0.0


@compiled
def _conserve(
    fraction: FloatArray, delta: FloatArray, jets: FloatArray, offsets: IntArray, radius: float, out: FloatArray
) -> None:
    """Write shares and distances of all jets, one after the other."""
    room = np.empty((np.max(np.append(np.diff(offsets), 0)), 4))
    for jet in range(len(jets)):
        first, last = offsets[jet], offsets[jet + 1]
        pt, eta, mass = jets[jet, 0], jets[jet, 1], jets[jet, 3]
        own = room[: last - first]
        _prepare(fraction[first:last], delta[first:last], radius, own)
        log_exponent = _exponent(own, pt, mass)
        power = math.expm1(log_exponent)
        transverse, rapidity, azimuth, heavy = _at(own, log_exponent)
        factor = pt / transverse if transverse > 0.0 else 1.0
        # massless constituents: a boost shifts every pseudorapidity by as much as the jet's rapidity
        shift = math.asinh(pt * math.sinh(eta) / math.hypot(pt, heavy * factor)) - rapidity - eta
        for i in range(last - first):
            stretch = math.exp(power * own[i, 3])
            out[first + i, 0] = own[i, 0] * factor / pt
            out[first + i, 1] = own[i, 1] * stretch + shift
            out[first + i, 2] = own[i, 2] * stretch - azimuth
