r"""Quantiles of a feature as smooth curves in mass, fitted beside a window and read inside it.

A curve that follows the sidebands too closely swings in the window, more so where a signal leaks into the sidebands
beside it; one that is too stiff misses a feature that bends. The curves are therefore penalised: to the mean squared
distance from the quantiles of mass bins, a stiffness times the integral of the squared second derivative is added. The
stiffness is chosen feature by feature, without any event of the window:

1. *Pseudo-windows*, as wide as the window, are placed all over the sidebands. Each is hidden too, and the curves are
   fitted to the rest. The events in it, mapped to units, would be normal if the curves were right: their distance is
   the mean of :math:`(F - p)^2 / (p (1 - p))` over the levels p, with F the fraction below.
2. The response of the curves inside the window to a signal beside it, one per cent of the events within half a width of
   its edges and above all quantiles (a high mass), is added as the same distance.
3. Of all candidates that are no worse than the best within one standard error of the difference, the stiffest is taken.

Masses are :math:`u`, scaled :math:`\ln m`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from drapes_hep.errors import FitError
from drapes_hep.events.scaling_loops import REACH, Maps, to_units

__all__ = ["DEGREE", "LEAST_EVENTS", "LEVELS", "UNITS", "fit_curves", "mass_bins", "weighted_quantiles"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Interval = tuple[float, float]

DEGREE = 4
"""Order of the Legendre polynomials that a curve is made of."""
UNITS = np.linspace(-2.5, 2.5, 31)
LEVELS = norm.cdf(UNITS)
LEAST_EVENTS = 100
"""Events per mass bin below which its outer quantiles are the extremes of a handful of events."""

_MEDIAN = len(UNITS) // 2
_MASS_BINS = 40
_STIFFNESS = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)
"""From a straight line to a polynomial of fourth order."""
_SIGNAL = 0.01
"""Fraction of the events beside the window that a signal may be."""
_ABOVE = float(np.mean(LEVELS / (1.0 - LEVELS)))
"""Mean of the squared shift of F, by events above all levels, over p (1 - p), per squared fraction."""
_TESTED_EVENTS = 5000
"""Most events of a pseudo-window that are mapped."""


@dataclass(frozen=True)
class _Bins:
    """Bins of mass, with what the curves are fitted to.

    Attributes
    ----------
    rows : list of array of int
        The events of each.
    centre : array, shape (bins,)
        Mean u.
    values : array, shape (d, bins, 31)
        Median and logarithms of the distances between neighbouring quantiles.
    """

    rows: list[npt.NDArray[np.intp]]
    centre: FloatArray
    values: FloatArray


def fit_curves(
    y: FloatArray,
    mjj: FloatArray,
    weight: FloatArray,
    log_mass: tuple[float, float],
    hidden: Sequence[Interval],
    labels: Sequence[str],
) -> FloatArray:
    """Fit the quantiles of features against mass.

    Parameters
    ----------
    y : array, shape (n, d)
        Features after the first map of the scaling.
    mjj, weight : array, shape (n,)
        Masses in GeV, and event weights.
    log_mass : (float, float)
        Mean and standard deviation of ln(m_JJ / GeV), which scale it to u.
    hidden : sequence of (float, float)
        Mass intervals without events, GeV: where the curves are to be right.
    labels : sequence of str
        The features' names, for messages.

    Returns
    -------
    array, shape (d, 5, 31)
        Coefficients of the Legendre polynomials of u / 3: of the median, then of the logarithms of the 30 distances.

    Raises
    ------
    FitError
        If a feature has one value in nearly all events of some masses.
    """
    u = _scaled(mjj, log_mass)
    bins = _quantiles_of(y, u, weight, labels)
    gaps = [(float(low), float(high)) for low, high in (_scaled(np.array(edges), log_mass) for edges in hidden)]
    distances, events = _pseudo_window_distances(y, mjj, weight, log_mass, bins, gaps)
    signal = np.array([_signal_distance(bins.centre, gaps, stiffness) for stiffness in _STIFFNESS])
    smoothers = [_smoother(bins.centre, stiffness) for stiffness in _STIFFNESS]
    curves = np.empty((y.shape[1], DEGREE + 1, len(UNITS)))
    for j in range(y.shape[1]):
        curves[j] = smoothers[_stiffest(distances[:, :, j], events, signal)] @ bins.values[j]
    return curves


def _scaled(mjj: FloatArray, log_mass: tuple[float, float]) -> FloatArray:
    return np.asarray((np.log(mjj) - log_mass[0]) / log_mass[1], dtype=np.float64)


def mass_bins(u: FloatArray) -> list[BoolArray]:
    """Divide events into bins of about as many each; fewer and larger ones where many have the same mass."""
    bins = min(_MASS_BINS, len(u) // LEAST_EVENTS)
    edges = np.quantile(u, np.linspace(0, 1, bins + 1))
    index = np.clip(np.searchsorted(edges, u, side="right") - 1, 0, bins - 1)
    # equal masses leave bins empty, or nearly: those join the bin below
    heads: list[int] = []
    total = LEAST_EVENTS
    for i, number in enumerate(np.bincount(index, minlength=bins)):
        if total >= LEAST_EVENTS // 2:
            heads.append(i)
            total = 0
        total += int(number)
    if total < LEAST_EVENTS // 2 and len(heads) > 1:
        heads.pop()
    group = np.searchsorted(heads, index, side="right") - 1
    return [group == i for i in range(len(heads))]


def _quantiles_of(y: FloatArray, u: FloatArray, weight: FloatArray, labels: Sequence[str]) -> _Bins:
    rows = [np.flatnonzero(mask) for mask in mass_bins(u)]
    values = np.empty((y.shape[1], len(rows), len(LEVELS)))
    for j, label in enumerate(labels):
        quantiles = np.stack([weighted_quantiles(y[events, j], weight[events], LEVELS) for events in rows])
        if not bool((quantiles[:, -1] > quantiles[:, 0]).all()):
            raise FitError(
                f"scaling: feature {label} has the same value in nearly all sideband events of some masses, and no"
                " quantiles: remove it, or set template.scaling: standard"
            )
        # a feature that repeats values has distances of 0, which have no logarithm
        steps = np.maximum(np.diff(quantiles, axis=1), 1e-4 * (quantiles[:, -1:] - quantiles[:, :1]) + 1e-300)
        values[j] = np.concatenate([quantiles[:, _MEDIAN, None], np.log(steps)], axis=1)
    centre = np.array([np.average(u[events], weights=weight[events]) for events in rows])
    return _Bins(rows, centre, values)


def weighted_quantiles(values: FloatArray, weight: FloatArray, levels: FloatArray) -> FloatArray:
    """Compute quantiles of weighted values (n,), interpolated between neighbours."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weight[order]) - 0.5 * weight[order]
    return np.asarray(np.interp(levels, cumulative / weight.sum(), values[order]), dtype=np.float64)


def _basis(u: FloatArray) -> FloatArray:
    return np.asarray(np.polynomial.legendre.legvander(u / REACH, DEGREE), dtype=np.float64)


def _bending(low: float, high: float) -> FloatArray:
    """Integrate the products of the second derivatives of the polynomials; shape (5, 5)."""
    nodes, weights = np.polynomial.legendre.leggauss(DEGREE)
    u = low + 0.5 * (high - low) * (nodes + 1.0)
    second = np.polynomial.legendre.legder(np.eye(DEGREE + 1), 2, axis=0)
    derivative = np.polynomial.legendre.legvander(u / REACH, DEGREE - 2) @ second / REACH**2
    return np.asarray(0.5 * (high - low) * (derivative.T * weights) @ derivative)


def _smoother(centre: FloatArray, stiffness: float) -> FloatArray:
    """Return what turns the values of bins into coefficients; shape (5, bins)."""
    basis = _basis(centre)
    penalty = stiffness * _bending(float(centre.min()), float(centre.max()))
    # one bin has no slope
    penalty[1:, 1:] += 1e-9 * np.eye(DEGREE)
    return np.asarray(np.linalg.solve(basis.T @ basis / len(centre) + penalty, basis.T / len(centre)))


def _width(centre: FloatArray, gaps: Sequence[Interval]) -> float:
    """Return the width of pseudo-windows: of the widest gap, a tenth of the masses where there is none."""
    return max((high - low for low, high in gaps), default=float(np.ptp(centre)) / 10)


def _pseudo_windows(centre: FloatArray, u: FloatArray, gaps: Sequence[Interval]) -> list[BoolArray]:
    """Return the bins of each pseudo-window: in steps of half a width, at least a quarter of it beside the gaps."""
    width = _width(centre, gaps)
    if width <= 0:
        return []
    windows: list[BoolArray] = []
    for low in np.arange(u.min(), u.max() - width, width / 2):
        apart = all(low + width <= gap[0] - width / 4 or low >= gap[1] + width / 4 for gap in gaps)
        inside = (centre >= low) & (centre < low + width)
        # two bins say how a curve rises
        new = not any(np.array_equal(inside, other) for other in windows)
        if apart and new and inside.any() and (~inside).sum() >= 2:
            windows.append(inside)
    return windows


def _pseudo_window_distances(
    y: FloatArray,
    mjj: FloatArray,
    weight: FloatArray,
    log_mass: tuple[float, float],
    bins: _Bins,
    gaps: Sequence[Interval],
) -> tuple[FloatArray, FloatArray]:
    """Return the distances, shape (candidates, pseudo-windows, d), and the events of each pseudo-window."""
    windows = _pseudo_windows(bins.centre, _scaled(mjj, log_mass), gaps)
    distances = np.empty((len(_STIFFNESS), len(windows), y.shape[1]))
    events = np.empty(len(windows))
    for k, inside in enumerate(windows):
        rows = np.concatenate([bins.rows[i] for i in np.flatnonzero(inside)])
        events[k] = len(rows)
        rows = rows[:: -(-len(rows) // _TESTED_EVENTS)]
        tested, masses, weights = np.ascontiguousarray(y[rows].T), mjj[rows], weight[rows]
        for i, stiffness in enumerate(_STIFFNESS):
            fitted = _smoother(bins.centre[~inside], stiffness) @ bins.values[:, ~inside]
            maps = _maps(log_mass, fitted)
            for j in range(y.shape[1]):
                distances[i, k, j] = _distance(tested[j], masses, weights, maps, j)
    return distances, events


def _maps(log_mass: tuple[float, float], curves: FloatArray) -> Maps:
    nothing = np.zeros((0, 0))
    by_level = np.ascontiguousarray(curves.transpose(0, 2, 1))
    return Maps(*log_mass, nothing, nothing[:, :, None], by_level, nothing, UNITS, np.zeros(0))


def _distance(y: FloatArray, mjj: FloatArray, weight: FloatArray, maps: Maps, feature: int) -> float:
    """Return the mean over the levels of the squared distance to them, over its variance for one event."""
    units = np.empty(len(y))
    to_units(y, mjj, maps, feature, units)
    # levels are evenly spaced in units
    place = np.clip(np.ceil((np.nan_to_num(units) - UNITS[0]) / (UNITS[1] - UNITS[0])), 0, len(UNITS)).astype(np.int64)
    below = np.cumsum(np.bincount(place, weight, minlength=len(UNITS) + 1))[:-1] / weight.sum()
    return float(np.mean((below - LEVELS) ** 2 / (LEVELS * (1.0 - LEVELS))))


def _signal_distance(centre: FloatArray, gaps: Sequence[Interval], stiffness: float) -> float:
    """Return the distance inside the gaps that a signal beside them makes."""
    if not gaps:
        return 0.0
    smoother = _smoother(centre, stiffness)
    total = 0.0
    for low, high in gaps:
        response = _basis(np.linspace(low, high, 11)) @ smoother
        half = 0.5 * (high - low)
        for side in ((centre >= low - half) & (centre < low), (centre >= high) & (centre < high + half)):
            total += float(np.mean(response[:, side].sum(axis=1) ** 2))
    return _SIGNAL**2 * _ABOVE * total / len(gaps)


def _stiffest(distances: FloatArray, events: FloatArray, signal: FloatArray) -> int:
    """Return the stiffest candidate that is no worse than the best one within a standard error.

    Parameters
    ----------
    distances : array, shape (candidates, pseudo-windows)
    events : array, shape (pseudo-windows,)
    signal : array, shape (candidates,)

    Returns
    -------
    int
        The middle one where there is no pseudo-window.
    """
    if not len(events):
        return len(signal) // 2
    # the distances' noise falls with the events, what they have to say does not
    share = np.sqrt(events) / np.sqrt(events).sum()
    total = distances @ share + signal
    best = int(np.argmin(total))
    difference = distances - distances[best]
    error = np.sqrt(((share * (difference - (difference @ share)[:, None])) ** 2).sum(axis=1))
    return int(np.argmax(total - total[best] <= error))
