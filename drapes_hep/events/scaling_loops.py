"""The maps of the quantile scaling for one event after the other, compiled: an event stays near the processor.

Of an event's 31 curves only those between the median and its own place are computed, some six of them on average. The
distances add up from the median outwards, in the order that the two directions share, so that each undoes the other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drapes_hep.compiled import compiled, inlined

__all__ = ["REACH", "Maps", "interpolate", "legendre", "map_back", "map_forward", "to_units"]

FloatArray = npt.NDArray[np.float64]
Basis = tuple[float, float, float, float]

REACH = 3.0
"""Scaled ln m rarely leaves [-3, 3], where Legendre polynomials of a third of it are well conditioned."""


class Maps(NamedTuple):
    """What the loops need of a scaling.

    Attributes
    ----------
    centre, width : float
        From ln m to the condition.
    domain : array, shape (d, 2)
    even : array, shape (d, 2, 401)
    curves : array, shape (d, 31, 5)
        Coefficients of a curve side by side; 0 above the degree.
    levels : array, shape (d, 200)
    units : array, shape (31,)
        What the quantiles are mapped to.
    fine : array, shape (200,)
        What the levels are mapped to.
    """

    centre: float
    width: float
    domain: FloatArray
    even: FloatArray
    curves: FloatArray
    levels: FloatArray
    units: FloatArray
    fine: FloatArray


@inlined
def _interval(value: float, knots: FloatArray) -> int:
    """Return the interval of rising knots that a value is in; the outer ones go on. NaN is in the first."""
    first, size = 0, len(knots) - 1
    while size > 1:
        half = size // 2
        first = first + half if value >= knots[first + half] else first
        size -= half
    return first


@inlined
def _straight(value: float, xp: FloatArray, fp: FloatArray) -> float:
    """Interpolate; beyond the ends the mean slope of the outer ten knots goes on."""
    first, last = 0, len(xp) - 1
    if value < xp[0]:
        last = 9
    elif value > xp[last]:
        first = last - 9
    else:
        first = _interval(value, xp)
        last = first + 1
    start = last if value > xp[last] else first
    result: float = fp[start] + (value - xp[start]) * (fp[last] - fp[first]) / (xp[last] - xp[first])
    return result


def legendre(t: Any) -> tuple[Any, Any, Any, Any]:
    """Compute Legendre's polynomials of first to fourth order, of a number or a tensor."""
    s = t * t
    return t, 1.5 * s - 0.5, (2.5 * s - 1.5) * t, (4.375 * s - 3.75) * s + 0.375


_legendre = inlined(legendre)


@inlined
def _basis(mass: float, centre: float, width: float) -> Basis:
    basis: Basis = _legendre((math.log(mass) - centre) / width / REACH)
    return basis


@inlined
def _curve(basis: Basis, curves: FloatArray, k: int) -> float:
    b1, b2, b3, b4 = basis
    value: float = curves[k, 0] + b1 * curves[k, 1] + b2 * curves[k, 2] + b3 * curves[k, 3] + b4 * curves[k, 4]
    return value


@inlined
def _unit(y: float, basis: Basis, curves: FloatArray, units: FloatArray) -> float:
    """Map a value by the quantiles of a mass; the outer intervals go on."""
    middle, last = len(units) // 2, len(units) - 2
    low = _curve(basis, curves, 0)
    if y >= low:
        k = middle
        step = math.exp(_curve(basis, curves, k + 1))
        while k < last and y >= low + step:
            low += step
            k += 1
            step = math.exp(_curve(basis, curves, k + 1))
    else:
        k = middle - 1
        step = math.exp(_curve(basis, curves, k + 1))
        low -= step
        while k > 0 and y < low:
            k -= 1
            step = math.exp(_curve(basis, curves, k + 1))
            low -= step
    unit: float = units[k] + (y - low) / step * (units[k + 1] - units[k])
    return unit


@inlined
def _quantile(unit: float, basis: Basis, curves: FloatArray, units: FloatArray) -> float:
    """Undo :func:`_unit`."""
    middle = len(units) // 2
    k = _interval(unit, units)
    low = _curve(basis, curves, 0)
    for i in range(middle, k):
        low += math.exp(_curve(basis, curves, i + 1))
    step = math.exp(_curve(basis, curves, k + 1))
    for i in range(middle - 1, k, -1):
        low -= math.exp(_curve(basis, curves, i + 1))
    if k < middle:
        low -= step
    y: float = low + (unit - units[k]) / (units[k + 1] - units[k]) * step
    return y


@compiled
def interpolate(values: FloatArray, xp: FloatArray, fp: FloatArray, out: FloatArray) -> None:
    """Write piecewise linear functions of values (n,); beyond the ends the mean slope of the outer ten knots goes on.

    NaN stays NaN.
    """
    for i in range(len(values)):
        out[i] = _straight(values[i], xp, fp)


@compiled
def to_units(y: FloatArray, mjj: FloatArray, maps: Maps, feature: int, out: FloatArray) -> None:
    """Write the second map alone, of one feature, of what the first has given (n,)."""
    curves = maps.curves[feature]
    for i in range(len(y)):
        basis = _basis(mjj[i], maps.centre, maps.width)
        out[i] = _unit(y[i], basis, curves, maps.units)


@compiled
def map_forward(x: FloatArray, mjj: FloatArray, maps: Maps, out: FloatArray) -> None:
    """Write scaled features (n, d)."""
    for i in range(len(x)):
        basis = _basis(mjj[i], maps.centre, maps.width)
        for j in range(x.shape[1]):
            y = _straight(x[i, j], maps.even[j, 0], maps.even[j, 1])
            unit = _unit(y, basis, maps.curves[j], maps.units)
            out[i, j] = _straight(unit, maps.levels[j], maps.fine)


@compiled
def map_back(z: FloatArray, mjj: FloatArray, maps: Maps, out: FloatArray) -> None:
    """Write features (n, d) inside their domain."""
    for i in range(len(z)):
        basis = _basis(mjj[i], maps.centre, maps.width)
        for j in range(z.shape[1]):
            unit = _straight(z[i, j], maps.fine, maps.levels[j])
            y = _quantile(unit, basis, maps.curves[j], maps.units)
            x = _straight(y, maps.even[j, 1], maps.even[j, 0])
            # in this order NaN stays NaN
            if x < maps.domain[j, 0]:
                x = maps.domain[j, 0]
            if x > maps.domain[j, 1]:
                x = maps.domain[j, 1]
            out[i, j] = x
