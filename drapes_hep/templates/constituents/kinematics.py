r"""Both jets' (pT, eta, phi, m, N) as the coordinates that a network makes, and back.

Two charts of the same ten numbers:

``solved``
    (pT2 / pT1, pi - |dphi|, u, b, m1, m2, N1, N2), eight numbers that leave exactly one pair of jets for a given m_JJ,
    up to a rotation in azimuth and two reflections. What a detector is symmetric under is not learnt but kept aside
    (:class:`Orientation`): the leading jet's azimuth, the sign of eta1 - eta2 and that of phi1 - phi2. In the
    orientation where eta1 >= eta2, b = (eta1 + eta2) / 2 and

    .. math:: u = |\Delta\eta| / \Delta\eta_{max}(m_{JJ}, \ldots)

    where the largest distance is the one at which the leading jet has just the smallest pT of the training. Both ends
    of every coordinate are then at one place for all masses: the sharp edges that a threshold in pT draws into the
    spectrum of eta1 - eta2, and that move with m_JJ, are no longer the network's to learn. On the way back
    |eta1 - eta2| and then pT1 are solved for, so m_JJ is what was asked for.
``free``
    (ln pT, eta, a, m, N) of either jet, a the angle in azimuth by which it turns away from the back-to-back axis. This
    is what the papers do: m_JJ is then only as right as the network, and events migrate.

N is whole: it is spread evenly over [N, N + 1) for the network and cut down to the whole number after, within the
smallest and largest of the training.

Jets are arrays (n, 2, 5) with columns :data:`COLUMNS`, GeV and rad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from drapes_hep.events.features import wrapped

__all__ = ["COLUMNS", "QUANTITIES", "Bounds", "Chart", "Orientation", "coordinates", "domain", "jets_from", "pair_mass"]

FloatArray = npt.NDArray[np.float64]
Chart = Literal["solved", "free"]

COLUMNS = ("pt", "eta", "phi", "mass", "n")
"""Columns of jets: transverse momentum (GeV), pseudorapidity, azimuth (rad), mass (GeV), number of constituents."""

QUANTITIES = ("pt", "eta", "mass", "n", "mjj", "delta_phi_jj")
"""What of :mod:`drapes_hep.templates.comparison` follows from the jets' kinematics and numbers of constituents."""

PT, ETA, PHI, MASS, N = range(5)
_HALVINGS = 60
"""Of a bisection: the last bit of a float64."""


@dataclass(frozen=True)
class Bounds:
    """What was seen in training, and bounds what is generated.

    Attributes
    ----------
    leading_pt : float
        Smallest transverse momentum of a leading jet, GeV.
    abs_eta : float
        Largest ``|eta|`` of a jet.
    least_n, most_n : int
        Fewest and most constituents of a jet.
    """

    leading_pt: float
    abs_eta: float
    least_n: int
    most_n: int

    @classmethod
    def of(cls, jets: FloatArray) -> Bounds:
        """Take them from jets (n, 2, 5)."""
        return cls(
            float(jets[:, :, PT].max(axis=1).min()),
            float(np.abs(jets[:, :, ETA]).max()),
            int(jets[:, :, N].min()),
            int(jets[:, :, N].max()),
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Bounds:
        """Read back what a model checkpoint stores (:func:`dataclasses.asdict`)."""
        return cls(float(record["leading_pt"]), float(record["abs_eta"]), int(record["least_n"]), int(record["most_n"]))


@dataclass(frozen=True)
class Orientation:
    """What physics does not depend on; arrays of shape (n,).

    Attributes
    ----------
    phi : array
        Azimuth of the leading jet (``solved``), or of the back-to-back axis at the leading jet's side (``free``).
    eta_sign, phi_sign : array
        Signs of eta1 - eta2 and of phi1 - phi2; not used by ``free``.
    """

    phi: FloatArray
    eta_sign: FloatArray
    phi_sign: FloatArray

    @classmethod
    def drawn(cls, uniform: FloatArray) -> Orientation:
        """Make orientations from uniform numbers, shape (n, 3)."""
        signs = np.where(uniform[:, 1:] < 0.5, -1.0, 1.0)
        return cls(math.pi * (2 * uniform[:, 0] - 1), signs[:, 0], signs[:, 1])


def pair_mass(pt: FloatArray, eta: FloatArray, mass: FloatArray, dphi: FloatArray) -> FloatArray:
    """Return the mass of pairs of jets.

    Parameters
    ----------
    pt, eta, mass : array, shape (n, 2)
        GeV.
    dphi : array, shape (n,)
        Angle between the two in azimuth.

    Returns
    -------
    array, shape (n,)
        GeV.
    """
    transverse = np.hypot(pt, mass)
    # with rapidities: no cancellation between energies and momenta
    rapidity = np.arcsinh(pt * np.sinh(eta) / transverse)
    cosine = np.cosh(rapidity[:, 0] - rapidity[:, 1])
    squared = (mass**2).sum(axis=1) + 2 * (transverse.prod(axis=1) * cosine - pt.prod(axis=1) * np.cos(dphi))
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def domain(chart: Chart, bounds: Bounds) -> FloatArray:
    """Return the bounds of the coordinates, shape (8, 2) of ``solved``, (5, 2) for a jet of ``free``."""
    number = (float(bounds.least_n), bounds.most_n + 1 - 1e-9)
    mass = (0.0, math.inf)
    if chart == "free":
        everywhere = (-math.inf, math.inf)
        return np.array([everywhere, everywhere, (-math.pi / 2, math.pi / 2), mass, number])
    return np.array([(1e-3, 1.0), (0.0, math.pi), (0.0, 1.0), (-math.inf, math.inf), mass, mass, number, number])


def coordinates(
    chart: Chart, jets: FloatArray, mjj: FloatArray, bounds: Bounds, uniform: FloatArray
) -> tuple[FloatArray, Orientation]:
    """Return the coordinates of events.

    Parameters
    ----------
    chart : {"solved", "free"}
    jets : array, shape (n, 2, 5)
        The jet of larger pT is taken as the leading one, wherever it stands.
    mjj : array, shape (n,)
        Mass of the pair, GeV.
    bounds : Bounds
        Of the training.
    uniform : array, shape (n, 2)
        Uniform numbers in [0, 1) that spread N.

    Returns
    -------
    array, shape (n, 8) for ``solved``, (n, 2, 5) for ``free``
    Orientation
    """
    swap = jets[:, 1, PT] > jets[:, 0, PT]
    jets = np.where(swap[:, None, None], jets[:, ::-1], jets)
    pt, eta, mass = jets[:, :, PT], jets[:, :, ETA], jets[:, :, MASS]
    dphi = wrapped(jets[:, 0, PHI] - jets[:, 1, PHI])
    number = jets[:, :, N] + uniform
    if chart == "free":
        # what is left of the angle when half a turn is taken away, shared by the two
        turn = wrapped(dphi - math.pi) / 2
        angle = np.stack([turn, -turn], axis=1)
        phi = wrapped(jets[:, 0, PHI] - turn)
        ones = np.ones(len(jets))
        return np.stack([np.log(pt), eta, angle, mass, number], axis=2), Orientation(phi, ones, ones)
    signs = [np.where(d < 0, -1.0, 1.0) for d in (eta[:, 0] - eta[:, 1], dphi)]
    ratio, opening = pt[:, 1] / pt[:, 0], math.pi - np.abs(dphi)
    boost = signs[0] * eta.mean(axis=1)
    widest = _widest(ratio, opening, boost, mass, mjj, bounds)
    distance = np.abs(eta[:, 0] - eta[:, 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        u = np.where(widest > 0, np.clip(distance / widest, 0.0, 1.0), 0.0)
    x = np.stack([ratio, opening, u, boost, *mass.T, *number.T], axis=1)
    return x, Orientation(jets[:, 0, PHI], *signs)


def jets_from(chart: Chart, x: FloatArray, mjj: FloatArray, bounds: Bounds, orientation: Orientation) -> FloatArray:
    """Return the jets that have such coordinates: the inverse of :func:`coordinates`.

    Parameters
    ----------
    chart, x, mjj, bounds, orientation
        As :func:`coordinates` takes and gives them.

    Returns
    -------
    array, shape (n, 2, 5)
        The leading jet first, N whole. NaN where no pair of jets has the mass with a leading jet above the smallest pT.
    """
    out = np.empty((len(x), 2, 5))
    if chart == "free":
        turn = (x[:, 0, 2] - x[:, 1, 2]) / 2
        out[:, :, PT], out[:, :, ETA], out[:, :, MASS] = np.exp(x[:, :, 0]), x[:, :, 1], x[:, :, 3]
        out[:, 0, PHI], out[:, 1, PHI] = wrapped(orientation.phi + turn), wrapped(orientation.phi + math.pi - turn)
        out[:, :, N] = _whole(x[:, :, 4], bounds)
        swap = out[:, 1, PT] > out[:, 0, PT]
        return np.where(swap[:, None, None], out[:, ::-1], out)
    ratio, opening, u, boost = x[:, :4].T
    far = np.abs(boost) > bounds.abs_eta + 1
    boost = np.where(far, 0.0, boost)
    mass = x[:, 4:6]
    distance = u * _widest(ratio, opening, boost, mass, mjj, bounds)
    eta = boost[:, None] + distance[:, None] * np.array([0.5, -0.5])
    # of either jet in the leading one's
    share = np.stack([np.ones_like(ratio), ratio], axis=1)

    def at(leading: FloatArray) -> FloatArray:
        return pair_mass(leading[:, None] * share, eta, mass, math.pi - opening)

    # an upper end: without masses the pair has at least sqrt(pT1 pT2) times what the angles leave
    high = np.full(len(x), bounds.leading_pt)
    for _ in range(_HALVINGS):
        short = at(high) < mjj
        if not short.any():
            break
        high[short] *= 2
    leading = _solve(at, mjj, np.full(len(x), bounds.leading_pt), high)
    out[:, :, PT] = leading[:, None] * share
    out[:, :, ETA] = orientation.eta_sign[:, None] * eta
    out[:, 0, PHI] = wrapped(orientation.phi)
    out[:, 1, PHI] = wrapped(orientation.phi - orientation.phi_sign * (math.pi - opening))
    out[:, :, MASS] = mass
    out[:, :, N] = _whole(x[:, 6:8], bounds)
    # directions that no detector has: the hyperbolic functions of the wildest overflow
    out[~np.isfinite(distance) | far] = np.nan
    return out


def _whole(number: FloatArray, bounds: Bounds) -> FloatArray:
    return np.clip(np.floor(number), bounds.least_n, bounds.most_n)


def _widest(
    ratio: FloatArray, opening: FloatArray, boost: FloatArray, mass: FloatArray, mjj: FloatArray, bounds: Bounds
) -> FloatArray:
    """Return the distance in eta at which the leading jet has the smallest pT; NaN where even 0 asks for less."""
    pt = bounds.leading_pt * np.stack([np.ones_like(ratio), ratio], axis=1)

    def at(distance: FloatArray) -> FloatArray:
        return pair_mass(pt, boost[:, None] + distance[:, None] * np.array([0.5, -0.5]), mass, math.pi - opening)

    # rounding: an event at the threshold itself has a solution
    nothing = np.zeros(len(ratio))
    out = _solve(at, mjj, nothing, np.full(len(ratio), 2 * bounds.abs_eta + 4.0))
    out[at(nothing) > mjj * (1 + 1e-9)] = np.nan
    return out


def _solve(
    function: Callable[[FloatArray], FloatArray], value: FloatArray, low: FloatArray, high: FloatArray
) -> FloatArray:
    """Find where a rising function has a value, by bisection, all events at once; an end where it is outside."""
    low, high = low.copy(), high.copy()
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = function(middle) < value
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)
