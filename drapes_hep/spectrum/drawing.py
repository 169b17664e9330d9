"""Masses that follow a fitted spectrum, or the masses of the data, drawn from uniform numbers. Masses in GeV."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from drapes_hep.errors import FitError
from drapes_hep.spectrum.fit import Density, SpectrumFit, check_range, panels, quadrature

__all__ = ["draw", "draw_kernels"]

FloatArray = npt.NDArray[np.float64]
_FEW_NODES, _FEW_WEIGHTS = np.polynomial.legendre.leggauss(4)
"""For pieces of a 256th of a window: 1e-14 of the integral."""
_BLOCK = 1 << 16
"""Masses drawn at once: four quadrature nodes and up to five basis functions each, some 10 MiB an array."""


def draw(fit: SpectrumFit | Density, lo: float, hi: float, uniforms: npt.ArrayLike) -> FloatArray:
    """Turn uniform numbers into masses that follow the fitted density inside a window.

    The distribution function is inverted: exactly integrated panels find the place, then Newton steps on the quadrature
    from the panel's edge settle it (to better than 1e-9 of the mass).

    Parameters
    ----------
    fit : SpectrumFit
    lo, hi : float
        Window, GeV.
    uniforms : array_like, any shape
        In [0, 1].

    Returns
    -------
    array, shaped as ``uniforms``
        Masses in [lo, hi), GeV.
    """
    check_range(fit, lo, hi)
    u = np.asarray(uniforms, dtype=np.float64)
    if not bool(np.all((u >= 0) & (u <= 1))):
        raise FitError("uniform numbers outside [0, 1] were given to draw masses from")
    basis = fit.shape.basis
    cuts = panels(lo, hi, (hi - lo) / 256.0)
    # the density relative to its value at lo: no overflow, whatever the parameters
    reference = basis(np.array(lo / fit.sqrt_s)) @ fit.parameters

    def density(m: FloatArray) -> FloatArray:
        return np.asarray(np.exp(basis(m / fit.sqrt_s) @ fit.parameters - reference))

    nodes, weights = quadrature(cuts)
    content = (weights * density(nodes)).sum(axis=1)
    total = np.concatenate([[0.0], np.cumsum(content)])
    flat = u.ravel()
    out = np.empty_like(flat)
    for low in range(0, len(flat), _BLOCK):
        target = flat[low : low + _BLOCK] * total[-1]
        i = np.clip(np.searchsorted(total, target, side="right") - 1, 0, len(content) - 1)
        left, right, rest = cuts[i], cuts[i + 1], target - total[i]
        m = left + (right - left) * rest / content[i]
        for _ in range(2):
            half = 0.5 * (m - left)
            inside = half * (density(left[:, None] + half[:, None] * (1.0 + _FEW_NODES)) @ _FEW_WEIGHTS)
            m = np.clip(m - (inside - rest) / density(m), left, right)
        out[low : low + _BLOCK] = m
    return np.minimum(out, np.nextafter(hi, lo)).reshape(u.shape)


def draw_kernels(masses: npt.ArrayLike, bandwidth: float, lo: float, hi: float, uniforms: npt.ArrayLike) -> FloatArray:
    """Turn uniform numbers into masses that follow a Gaussian kernel density of observed masses, inside a window.

    The full-phase-space generators draw m_JJ so (arXiv:2310.06897, section III). Whatever peak the data have, these
    masses have too.

    Parameters
    ----------
    masses : array_like, shape (n,)
        Observed, GeV; those outside the window are left out.
    bandwidth : float
        Standard deviation of the kernels, GeV.
    lo, hi : float
        Window, GeV: what a kernel carries beyond an edge is reflected at it.
    uniforms : array_like, shape (m,)
        In [0, 1]: the first digits choose a mass, the others the place in its kernel.

    Returns
    -------
    array, shape (m,)
        GeV.

    Raises
    ------
    FitError
        If no mass is in the window.
    """
    in_range = np.sort(np.asarray(masses, dtype=np.float64))
    in_range = in_range[(in_range >= lo) & (in_range < hi)]
    if not len(in_range):
        raise FitError(f"no event is between {lo:g} and {hi:g} GeV to draw masses after")
    place = np.asarray(uniforms, dtype=np.float64) * len(in_range)
    which = np.minimum(place.astype(np.int64), len(in_range) - 1)
    inside = np.clip(place - which, 1e-12, 1 - 1e-12)
    m = in_range[which] + bandwidth * ndtri(inside)
    # a kernel wider than the window is reflected more than once
    width = hi - lo
    folded = np.abs(np.remainder(m - lo + width, 2 * width) - width)
    return np.asarray(np.clip(lo + folded, lo, np.nextafter(hi, lo)))
