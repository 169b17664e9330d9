r"""From features to what a network sees, and back.

Diffusion wants inputs of zero mean and unit variance. Two scalings are offered, both fitted on
sidebands only:

``standard``
    :math:`z = (x - \mu) / s`, the papers'.
``quantile``
    Every feature is mapped to a normal variable by its own quantiles *at its mass*, in three monotone steps, so that
    nothing is lost. First a map independent of mass, :math:`y = 0.7\,(x - a) / (b - a) + 0.3\,F(x)` with F the
    distribution of all masses together and a, b its outer quantiles: it smooths what stays at one place while the mass
    changes, such as the cusp of :math:`\Delta R_{JJ}` at :math:`\pi`, and leaves what moves with the mass about as
    straight as it was. Then, feature by feature, the median and the logarithms of the distances between neighbouring
    quantiles of y, at 31 levels, are polynomials of fourth order in :math:`\ln m`, fitted to their values in bins of
    mass and as stiff as the sidebands allow (:mod:`drapes_hep.events.quantile_curves`). Distances stay positive, so the
    curves cannot cross: where they did, the map would pile events up in spikes that a classifier finds. Piecewise
    linear interpolation between the curves takes out the drift with mass, such as that of the sharp upper edge of
    :math:`\Delta R_{JJ}` that the jets' pT threshold moves with m_JJ. A last, finer map that no longer depends on mass
    makes the result normal. The network is left with the correlations.

Shapes: features (n, d), masses (n,) in GeV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from drapes_hep.errors import FitError, counted
from drapes_hep.events.quantile_curves import LEAST_EVENTS, UNITS, fit_curves, weighted_quantiles
from drapes_hep.events.scaling_loops import Maps, interpolate, map_back, map_forward, to_units

__all__ = ["Scaling", "fit_scaling", "scaling_from_dict"]

FloatArray = npt.NDArray[np.float64]

_EVEN = np.linspace(0.0, 1.0, 401)
_STRAIGHT = 0.7
"""Share of the straight line in the first map: less bends the edge that moves, more leaves the cusp that stays."""
_OUTER = (0.001, 0.999)
_FINE = np.linspace(-3.6, 3.6, 200)
_TAIL_EVENTS = 5
"""Events beyond a quantile of the last map, at least."""


@dataclass(frozen=True)
class Scaling:
    """A fitted scaling of features and of the condition.

    Attributes
    ----------
    kind : {"standard", "quantile"}
    log_mass : tuple of float
        Mean and standard deviation of ln(m_JJ / GeV) on the sidebands.
    domain : array, shape (d, 2)
        Natural bounds of the features; what is mapped back is clipped to them.
    mean, scale : array, shape (d,)
        Of ``standard``.
    even : array, shape (d, 2, 401)
        Knots of the first map, of ``quantile``: values of the feature, and what they are mapped to.
    curves : array, shape (d, 5, 31)
        Polynomial coefficients in scaled ln m, of ``quantile``: of the median, then of the logarithms of the 30
        distances between neighbouring quantiles.
    levels : array, shape (d, 200)
        The last map's quantiles, of ``quantile``.
    """

    kind: Literal["standard", "quantile"]
    log_mass: tuple[float, float]
    domain: FloatArray
    mean: FloatArray
    scale: FloatArray
    even: FloatArray
    curves: FloatArray
    levels: FloatArray

    def condition(self, mjj: npt.ArrayLike) -> FloatArray:
        """Scale masses (n,) to the network's condition (n, 1)."""
        mean, scale = self.log_mass
        return np.asarray((np.log(np.asarray(mjj, dtype=np.float64)) - mean) / scale)[:, None]

    @property
    def maps(self) -> Maps:
        """What the loops of :mod:`drapes_hep.events.scaling_loops` need, of ``quantile``."""
        curves = np.ascontiguousarray(self.curves.transpose(0, 2, 1))
        return Maps(*self.log_mass, self.domain, self.even, curves, self.levels, UNITS, _FINE)

    def forward(self, x: FloatArray, mjj: npt.ArrayLike) -> FloatArray:
        """Scale features; the result, 8 bytes a number, is all that it takes."""
        if self.kind == "standard":
            z = x - self.mean
            z /= self.scale
            return z
        out = np.empty(x.shape)
        map_forward(*_prepared(x, mjj), self.maps, out)
        return out

    def inverse(self, z: FloatArray, mjj: npt.ArrayLike) -> FloatArray:
        """Map scaled features back, inside their domain; the result, 8 bytes a number, is all that it takes."""
        if self.kind == "standard":
            x = z * self.scale
            x += self.mean
            return np.clip(x, self.domain[:, 0], self.domain[:, 1], out=x)
        out = np.empty(z.shape)
        map_back(*_prepared(z, mjj), self.maps, out)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return what a model checkpoint stores; floats survive exactly."""
        return {
            "kind": self.kind,
            "log_mass": list(self.log_mass),
            "domain": [[None if np.isinf(v) else float(v) for v in row] for row in self.domain],
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "even": self.even.tolist(),
            "curves": self.curves.tolist(),
            "levels": self.levels.tolist(),
        }


_ARRAYS = ("mean", "scale", "even", "curves", "levels")


def scaling_from_dict(record: Mapping[str, Any]) -> Scaling:
    """Read back what :meth:`Scaling.to_dict` wrote."""
    domain = [[-np.inf if low is None else low, np.inf if high is None else high] for low, high in record["domain"]]
    mean, scale = record["log_mass"]
    arrays = {name: np.asarray(record[name], dtype=np.float64) for name in _ARRAYS}
    return Scaling(record["kind"], (mean, scale), np.asarray(domain, dtype=np.float64), **arrays)


def fit_scaling(
    kind: Literal["standard", "quantile"],
    x: FloatArray,
    mjj: FloatArray,
    weight: FloatArray,
    domain: npt.ArrayLike,
    names: Sequence[str] | None = None,
    hidden: Sequence[tuple[float, float]] = (),
) -> Scaling:
    """Fit a scaling on sideband events.

    Parameters
    ----------
    kind : {"standard", "quantile"}
    x : array, shape (n, d)
        Features.
    mjj : array, shape (n,)
        GeV.
    weight : array, shape (n,)
        Event weights, positive.
    domain : array_like, shape (d, 2)
        Natural bounds of each feature, infinite where it has none.
    names : sequence of str, optional
        The features' names, for messages.
    hidden : sequence of (float, float)
        Mass intervals without events, GeV, that the scaling is to be read in.

    Returns
    -------
    Scaling

    Raises
    ------
    FitError
        If there are too few events, their masses or a feature do not vary, or a feature has one value in nearly all
        events of some masses ('quantile').
    """
    least = 2 if kind == "standard" else 3 * LEAST_EVENTS
    if len(x) < least:
        raise FitError(f"scaling: {counted(len(x), 'sideband event')} for training; '{kind}' needs at least {least}")
    labels = [f"'{name}'" for name in names] if names else [f"number {j + 1}" for j in range(x.shape[1])]
    share = weight / weight.sum()
    mean = share @ x
    scale = np.sqrt(share @ (x - mean) ** 2)
    flat = np.flatnonzero(scale <= 1e-12 * np.abs(mean))
    if len(flat):
        raise FitError(
            f"scaling: feature {labels[flat[0]]} does not vary: it is {mean[flat[0]]:g} in every sideband event"
        )
    log = np.log(mjj)
    centre = float(share @ log)
    log_mass = (centre, float(np.sqrt(share @ (log - centre) ** 2)))
    if log_mass[1] <= 1e-9:
        raise FitError(f"scaling: every sideband event has the mass {np.exp(centre):g} GeV: nothing to interpolate in")
    d = x.shape[1]
    bounds = np.asarray(domain, dtype=np.float64).reshape(d, 2)
    nothing = np.zeros((d, 0))
    empty = Scaling(kind, log_mass, bounds, mean, scale, nothing[:, None], nothing[:, None], nothing)
    if kind == "standard":
        return empty
    even = np.stack([_fit_even(x[:, j], weight) for j in range(d)])
    y = np.stack([_interpolated(x[:, j], *even[j]) for j in range(d)], axis=1)
    coarse = replace(empty, even=even, curves=fit_curves(y, mjj, weight, log_mass, hidden, labels))
    levels = np.empty((d, len(_FINE)))
    for j in range(d):
        unit = np.empty(len(x))
        to_units(*_prepared(y[:, j], mjj), coarse.maps, j, unit)
        levels[j] = _fit_levels(unit, weight)
    return replace(coarse, levels=levels)


def _rising(values: FloatArray, slope: float) -> FloatArray:
    # repeated values give equal quantiles; a small slope keeps the map invertible
    return np.asarray(np.maximum.accumulate(values) + np.arange(len(values)) * slope)


def _fit_levels(unit: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the quantiles of the last map; beyond those that a few events support it leaves units as they are."""
    levels = _rising(weighted_quantiles(unit, weight, norm.cdf(_FINE)), 1e-9)
    # the outer quantiles of few events are all the largest one: an event beyond it would be mapped to thousands
    events = weight.sum() ** 2 / (weight**2).sum()
    inner = np.flatnonzero(norm.sf(np.abs(_FINE)) * events >= _TAIL_EVENTS)
    first, last = inner[0], inner[-1]
    levels[:first] = levels[first] + _FINE[:first] - _FINE[first]
    levels[last + 1 :] = levels[last] + _FINE[last + 1 :] - _FINE[last]
    return levels


def _fit_even(x: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the knots of the first map: part straight line, part distribution; both rise."""
    low, high = weighted_quantiles(x, weight, np.array(_OUTER))
    width = high - low if high > low else float(np.ptp(x))
    knots = _rising(weighted_quantiles(x, weight, _EVEN), 1e-9 * width)
    return np.stack([knots, _STRAIGHT * (knots - low) / width + (1.0 - _STRAIGHT) * _EVEN])


def _interpolated(values: FloatArray, xp: FloatArray, fp: FloatArray) -> FloatArray:
    out = np.empty(len(values))
    interpolate(np.ascontiguousarray(values, dtype=np.float64), xp, fp, out)
    return out


def _prepared(x: FloatArray, mjj: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    # one type of arrays, so that the loops are compiled once
    masses = np.broadcast_to(np.asarray(mjj, dtype=np.float64), len(x))
    return np.ascontiguousarray(x, dtype=np.float64), np.ascontiguousarray(masses)
