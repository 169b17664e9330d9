"""Bring generated constituents to the four-momentum of their jet.

A jet is the sum of its constituents. What a network makes under a jet's (pT, eta, phi, m) adds up to it only about,
and the difference is the easiest thing for a classifier to find. Distances from the axis are stretched until the mass
is right; a boost along the beam and a rotation bring the axis back, and one factor the transverse momentum. Neither of
the last three changes what the jet looks like from its axis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["JetSums", "conserve", "jet_sums"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ROUNDS = 12
_STRETCH = (0.2, 5.0)
"""Bounds of the factor on distances: a set that needs more is none of this jet, and stays as it is."""


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
    fraction: FloatArray, delta: FloatArray, offsets: IntArray, jets: FloatArray
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

    Returns
    -------
    fraction, delta : array
        As they came in, for constituents that add up to the jets. Jets that no stretch between a fifth and five gives
        the mass have only their axis and transverse momentum mended.
    """
    index = np.repeat(np.arange(len(jets)), np.diff(offsets))
    pt, eta, _, mass = jets.T
    fraction = fraction / _segments(fraction[:, None], offsets)[index, 0]
    centre = _segments(fraction[:, None] * delta, offsets)
    start = delta - centre[index]
    zero = np.zeros(len(jets))

    def at(stretch: FloatArray) -> tuple[FloatArray, FloatArray, JetSums]:
        moved = start * stretch[index, None]
        # about an axis at eta = phi = 0 and a transverse momentum of 1
        sums = jet_sums(fraction, moved[:, 0], moved[:, 1], offsets)
        return moved, pt / sums.pt, sums

    # the mass is nearly proportional to the stretch: each round leaves a small part of what was missing
    stretch = np.ones(len(jets))
    for _ in range(_ROUNDS):
        _, factor, sums = at(stretch)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = mass / (sums.mass * factor)
        stretch *= np.where(np.isfinite(step), np.clip(step, *_STRETCH), 1.0)
    beyond = (stretch < _STRETCH[0]) | (stretch > _STRETCH[1])
    stretch[beyond] = 1.0
    moved, factor, sums = at(stretch)
    own = sums.mass * factor
    target = np.arcsinh(pt * np.sinh(eta) / np.hypot(pt, own))
    # massless constituents: a boost shifts every pseudorapidity by as much as the jet's rapidity
    shift = np.stack([target - sums.rapidity - eta, zero - sums.phi], axis=1)
    return fraction * factor[index] / pt[index], moved + shift[index]
