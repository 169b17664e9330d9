r"""The falling m_JJ spectrum: fit, expectation with its uncertainty, and masses drawn from it. Masses in GeV.

With :math:`z = m / \sqrt{s}`, the density (events per GeV) of the dijet searches is

.. math:: f(z) = p_1 (1 - z)^{p_2} z^{p_3 + p_4 \ln z + p_5 \ln^2 z},

``dijet3`` with :math:`p_4 = p_5 = 0`, ``dijet4`` with :math:`p_5 = 0` (CDF, Phys. Rev. D 79 (2009) 112002, and every
CMS and ATLAS dijet search since), ``dijet5`` in full. Its logarithm is linear in :math:`(\ln p_1, p_2, ...)`:

.. math:: \ln f = \sum_k p_k g_k(z), \quad g = (1, \ln(1 - z), \ln z, \ln^2 z, \ln^3 z),

so the extended binned likelihood is a Poisson regression with a logarithmic link, convex up to the finite width of the
bins. Bins hold the integral of f, by Gauss-Legendre quadrature: the mid-point is wrong by percents in CMS's wide bins.
The g_k are nearly collinear over any real range; fits run in the basis that makes the information matrix the identity
at a first guess (QR of the weighted design) and are turned back at the end.

``chi2`` is Baker and Cousins' likelihood ratio, 2NLLR (:mod:`drapes_hep.spectrum.poisson`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import uproot
from iminuit import Minuit
from scipy.special import ndtri

from drapes_hep.config import MassConfig
from drapes_hep.errors import ConfigError, FitError, InputError, UsersCode, counted, told
from drapes_hep.plugins import Kind, class_with, is_users, load_class, source_hashes
from drapes_hep.regions import Window
from drapes_hep.spectrum.poisson import deviance_p_value, fit_poisson, poisson_deviance

__all__ = [
    "GOOD_FIT_P_VALUE",
    "SHAPES",
    "Density",
    "SpectrumFit",
    "SpectrumShape",
    "bin_model",
    "draw",
    "draw_kernels",
    "expected",
    "find_shape",
    "fit_spectrum",
    "fit_spectrum_newton",
    "shape_sources",
    "spectrum_edges",
    "spectrum_from_root",
    "trim_spectrum",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

GOOD_FIT_P_VALUE = 1e-3
"""A fit less likely than this describes no spectrum: its window carries no significance.

One good window in a thousand is lost. R&D background from 2700 GeV (2NLLR 69 for 62) passes, from 2500 (111 for 66) and
from 2300 (1996 for 70) it does not.
"""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_FEW_NODES, _FEW_WEIGHTS = np.polynomial.legendre.leggauss(4)
"""For pieces of a 256th of a window: 1e-14 of the integral."""
_BLOCK = 1 << 16
"""Masses drawn at once: four quadrature nodes and up to five basis functions each, some 10 MiB an array."""


@dataclass(frozen=True)
class SpectrumShape:
    """A density whose logarithm is linear in its parameters.

    Attributes
    ----------
    name : str
        As ``mass.fit`` spells it.
    title : str
        What figures and tables call it.
    parameter_names : tuple of str
        The first is ln p1, p1 in events per GeV.
    basis : callable
        z (any shape) to the g_k, shape (..., k).
    """

    name: str
    title: str
    parameter_names: tuple[str, ...]
    basis: Callable[[FloatArray], FloatArray]


def _dijet(parameters: int) -> SpectrumShape:
    def basis(z: FloatArray) -> FloatArray:
        columns = [np.ones_like(z), np.log1p(-z), np.log(z)]
        for _ in range(3, parameters):
            columns.append(columns[-1] * columns[2])
        return np.stack(columns, axis=-1)

    names = ("ln_p1", *(f"p{i}" for i in range(2, parameters + 1)))
    return SpectrumShape(f"dijet{parameters}", f"dijet function of {parameters} parameters", names, basis)


SHAPES: Mapping[str, SpectrumShape] = {shape.name: shape for shape in (_dijet(3), _dijet(4), _dijet(5))}
"""The package's shapes, by the names that ``mass.fit`` of a configuration takes."""

_KIND = Kind("shape", "mass.fit", "a mass shape", class_with("basis"))


@dataclass(frozen=True)
class _UsersBasis:
    """The basis of a user's shape: what it raises, and what is no finite number for each mass, is one line."""

    name: str
    shape: Any
    parameters: int

    def __call__(self, z: FloatArray) -> FloatArray:
        flat = np.ravel(np.asarray(z, dtype=np.float64))
        said = f"mass.fit {self.name}"
        failed = UsersCode(lambda error: ConfigError(f"{said}: {told(error, is_users)}"))
        with failed, np.errstate(all="ignore"):  # what is not finite is refused below
            columns = np.asarray(self.shape.basis(flat.copy()))
        if columns.shape != (len(flat), self.parameters) or columns.dtype.kind not in "iuf":
            raise ConfigError(
                f"{said}: basis(z) returned {columns.dtype} of shape {columns.shape} for {len(flat)} masses,"
                f" not numbers of shape ({len(flat)}, {self.parameters}), a column for each of parameter_names"
            )
        if not np.isfinite(columns).all():
            bad = flat[~np.isfinite(columns).all(axis=1)][0]
            raise ConfigError(f"{said}: basis(z) is NaN or infinity at z = {bad:.4g}")
        return columns.astype(np.float64).reshape(*np.shape(z), self.parameters)


def find_shape(config: MassConfig) -> SpectrumShape:
    """Find the mass shape that a configuration names.

    Parameters
    ----------
    config : MassConfig
        Its ``fit`` is a key of :data:`SHAPES`, an installed package's name, ``file.py:Class`` or
        ``package.module:Class``.

    Returns
    -------
    SpectrumShape

    Raises
    ------
    ConfigError
        If there is no such class, or it is no density whose logarithm is linear in its parameters, over the range.
    """
    if config.fit in SHAPES:
        return SHAPES[config.fit]
    found, said = load_class(_KIND, config.fit, config.folder), f"mass.fit {config.fit}"
    with UsersCode(lambda error: ConfigError(f"{said}: {told(error, is_users)}")):
        made = found()
        names: Any = getattr(made, "parameter_names", None)
        title: Any = getattr(made, "title", found.__name__)
    if not isinstance(title, str) or not title.strip() or "\n" in title:
        raise ConfigError(f"{said}: title is {title!r}, not a line of text")
    whole = isinstance(names, (tuple, list)) and all(isinstance(name, str) and name for name in names)
    if not whole or len(names) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"{said}: parameter_names is {names!r}, not two or more different names")
    shape = SpectrumShape(config.fit, title, tuple(names), _UsersBasis(config.fit, made, len(names)))
    _check_basis(shape, np.linspace(config.range[0], config.range[1], 257) / config.sqrt_s)
    return shape


def _check_basis(shape: SpectrumShape, z: FloatArray) -> None:
    """Refuse functions that no fit can tell apart, that leave the number of events fixed, or that see other masses."""
    said, g = f"mass.fit {shape.name}", shape.basis(z)
    if not np.allclose(g[:1], shape.basis(z[:1]), rtol=1e-12, atol=0):
        raise ConfigError(
            f"{said}: basis(z) of one mass depends on the other masses: compute each row from its z alone"
        )
    size = np.linalg.norm(g, axis=0)
    zero = [name for name, norm in zip(shape.parameter_names, size, strict=True) if norm == 0]
    if zero:
        raise ConfigError(f"{said}: the basis function of {zero[0]} is zero over mass.range")
    values = np.linalg.svd(g / size, compute_uv=False)
    if values[-1] < 1e-12 * values[0]:
        raise ConfigError(f"{said}: the basis functions are not independent over mass.range: leave one out")
    solved = (g / size) @ np.linalg.lstsq(g / size, np.ones(len(z)))[0]
    if np.abs(solved - 1).max() > 1e-6:
        raise ConfigError(
            f"{said}: no combination of the basis functions is constant, so the number of events could not be fitted:"
            " begin with a column of ones"
        )


def shape_sources(config: MassConfig) -> list[str]:
    """Return the hashes of the files of a user's mass shape; none for the package's own. Raises ConfigError."""
    return [] if config.fit in SHAPES else list(source_hashes(load_class(_KIND, config.fit, config.folder)))


def _resolved(shape: str | SpectrumShape) -> SpectrumShape:
    """Return a shape itself, or the package's own of a name; raises FitError."""
    if isinstance(shape, SpectrumShape):
        return shape
    if shape not in SHAPES:
        raise FitError(f"unknown spectrum shape {shape!r}; there are {', '.join(SHAPES)}")
    return SHAPES[shape]


class Density(NamedTuple):
    """A fitted shape without its fit: all that masses are drawn from.

    Attributes
    ----------
    shape : SpectrumShape
    sqrt_s : float
        GeV.
    parameters : sequence of float
        As :class:`SpectrumFit` has them.
    """

    shape: SpectrumShape
    sqrt_s: float
    parameters: Sequence[float]


@dataclass(frozen=True)
class SpectrumFit:
    """A fitted spectrum.

    Attributes
    ----------
    shape : SpectrumShape
    sqrt_s : float
        GeV.
    parameters : array, shape (k,)
        ln p1 (p1 in events per GeV), p2, p3, ...
    covariance : array, shape (k, k)
    edges : array, shape (bins + 1,)
        GeV.
    fitted : array of bool, shape (bins,)
        Bins that entered the likelihood.
    expected : array, shape (bins,)
        Fitted counts in all bins, those left out included.
    chi2 : float
        2NLLR over the fitted bins.
    ndof : int
        Fitted bins less parameters.
    p_value : float
        Of ``chi2``, sparse bins allowed for.
    good : bool
        Valid, and ``p_value`` at least :data:`GOOD_FIT_P_VALUE`.
    valid : bool
        The minimiser converged, with an accurate covariance.
    """

    shape: SpectrumShape
    sqrt_s: float
    parameters: FloatArray
    covariance: FloatArray
    edges: FloatArray
    fitted: BoolArray
    expected: FloatArray
    chi2: float
    ndof: int
    p_value: float
    good: bool
    valid: bool

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.shape.parameter_names


def _quadrature(edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return nodes and weights, each (bins, 8), of the integral over every bin."""
    half = 0.5 * np.diff(edges)[:, None]
    return edges[:-1, None] + half * (1.0 + _NODES), half * _WEIGHTS


def bin_model(
    shape: str | SpectrumShape, sqrt_s: float, edges: npt.ArrayLike, parameters: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Return the expected counts and how their logarithms answer to the parameters.

    Parameters
    ----------
    shape : SpectrumShape or str
        A key of :data:`SHAPES` names the package's own.
    sqrt_s : float
        GeV.
    edges : array_like, shape (bins + 1,)
        GeV.
    parameters : array_like, shape (k,)

    Returns
    -------
    expected : array, shape (bins,)
    log_gradient : array, shape (bins, k)
        d ln mu_i / d p_k: the mean of g_k over the bin under the density.
    """
    nodes, weights = _quadrature(np.asarray(edges, dtype=np.float64))
    g = _resolved(shape).basis(nodes / sqrt_s)
    mass = weights * np.exp(np.minimum(g @ np.asarray(parameters, dtype=np.float64), 700.0))
    mu = mass.sum(axis=1)
    return mu, np.einsum("bq,bqk->bk", mass, g) / np.maximum(mu, 1e-300)[:, None]


@dataclass(frozen=True)
class _Problem:
    """A spectrum ready to be fitted, in the basis ``raw = basis @ internal``."""

    shape: SpectrumShape
    sqrt_s: float
    edges: FloatArray
    fitted: BoolArray
    counts: FloatArray
    scale: FloatArray
    start: FloatArray
    basis: FloatArray


def _prepare(
    counts: npt.ArrayLike,
    edges: npt.ArrayLike,
    exclude: tuple[float, float] | None,
    shape: str | SpectrumShape,
    sqrt_s: float,
    variance: npt.ArrayLike | None,
    use: npt.ArrayLike | None,
) -> _Problem:
    n, e = np.array(counts, dtype=np.float64), np.array(edges, dtype=np.float64)
    shape = _resolved(shape)
    if n.ndim != 1 or e.shape != (len(n) + 1,):
        raise FitError(f"{n.shape} counts do not match {e.shape} edges")
    if not bool(np.all(np.diff(e) > 0)) or e[0] <= 0 or e[-1] >= sqrt_s:
        raise FitError(f"edges must rise between 0 and sqrt_s = {sqrt_s:g} GeV, got {e[0]:g} to {e[-1]:g} GeV")
    fitted = np.ones(len(n), dtype=np.bool_) if use is None else np.array(use, dtype=np.bool_)
    if exclude is not None:
        # a bin that only touches the window would still show its events to the fit
        slack = 1e-9 * sqrt_s
        fitted &= (e[1:] <= exclude[0] + slack) | (e[:-1] >= exclude[1] - slack)
    if not bool(np.all(np.isfinite(n[fitted]) & (n[fitted] >= 0))):
        raise FitError("a fitted bin of the mass spectrum has a count that is negative or not finite")
    k = len(shape.parameter_names)
    filled = int((n[fitted] > 0).sum())
    if filled <= k:
        raise FitError(
            f"{counted(filled, 'filled bin')} outside the window cannot constrain the {k} parameters of {shape.name}"
        )
    scale = np.ones(len(n))
    if variance is not None:
        v = np.asarray(variance, dtype=np.float64)
        # scaled Poisson (Bohm and Zech, NIM A 748 (2014) 1): a bin counts as the unweighted events that would have its
        # relative error; an empty bin takes the mean event's weight
        usable = fitted & (v > 0) & (n > 0)
        scale[:] = n[usable].sum() / v[usable].sum()
        scale[usable] = n[usable] / v[usable]
    n = np.where(fitted, n * scale, 0.0)

    # first guess: weighted least squares on the logarithm of the density at the middle of each bin
    g = shape.basis(0.5 * (e[1:] + e[:-1])[fitted] / sqrt_s)
    weight = np.sqrt(n[fitted] + 0.5)
    _, r = np.linalg.qr(weight[:, None] * g)
    basis = np.linalg.inv(r)
    log_density = np.log((n[fitted] + 0.5) / scale[fitted] / np.diff(e)[fitted])
    start = basis @ ((weight[:, None] * (g @ basis)).T @ (weight * log_density))
    return _Problem(shape, sqrt_s, e, fitted, n, scale, start, basis)


def _finish(p: _Problem, parameters: FloatArray, covariance: FloatArray, valid: bool) -> SpectrumFit:
    mu, _ = bin_model(p.shape, p.sqrt_s, p.edges, parameters)
    scaled = (mu * p.scale)[p.fitted]
    chi2 = float(poisson_deviance(p.counts[p.fitted], scaled).sum())
    k = len(parameters)
    p_value = float(deviance_p_value(chi2, scaled, k))
    valid = bool(valid and np.all(np.isfinite(covariance)) and np.isfinite(chi2))
    return SpectrumFit(
        shape=p.shape, sqrt_s=p.sqrt_s, parameters=parameters, covariance=covariance, edges=p.edges, fitted=p.fitted,
        expected=mu, chi2=chi2, ndof=int(p.fitted.sum()) - k, p_value=p_value,
        good=valid and p_value >= GOOD_FIT_P_VALUE, valid=valid,
    )  # fmt: skip


def fit_spectrum(
    counts: npt.ArrayLike,
    edges: npt.ArrayLike,
    exclude: tuple[float, float] | None = None,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    variance: npt.ArrayLike | None = None,
    fitted: npt.ArrayLike | None = None,
) -> SpectrumFit:
    """Fit the spectrum with a window left out: extended binned likelihood, MIGRAD with the exact gradient, then HESSE.

    Parameters
    ----------
    counts : array_like, shape (bins,)
        Events a bin (not a density). Bins left out may hold anything, NaN included.
    edges : array_like, shape (bins + 1,)
        GeV, rising, below ``sqrt_s``.
    exclude : tuple of two floats, optional
        Window to leave out, GeV; every bin that overlaps it is.
    shape : SpectrumShape or str
        A key of :data:`SHAPES` names the package's own.
    sqrt_s : float
        Centre-of-mass energy, GeV.
    variance : array_like, shape (bins,), optional
        Sum of squared weights, for weighted events: the likelihood is then the scaled Poisson's.
    fitted : array_like of bool, shape (bins,), optional
        Bins that may enter (blinding hides others); all by default.

    Returns
    -------
    SpectrumFit

    Raises
    ------
    FitError
        If the input is malformed or has too few filled bins. A fit that is merely poor is returned, and says so.
    """
    p = _prepare(counts, edges, exclude, shape, sqrt_s, variance, fitted)
    nodes, weights = _quadrature(p.edges)
    g = p.shape.basis(nodes / sqrt_s)[p.fitted] @ p.basis
    w, n = (weights * p.scale[:, None])[p.fitted], p.counts[p.fitted]

    def masses(c: FloatArray) -> tuple[FloatArray, FloatArray]:
        mass = w * np.exp(np.minimum(g @ np.asarray(c), 100.0))
        return mass, np.maximum(mass.sum(axis=1), 1e-300)

    def half_deviance(c: FloatArray) -> float:
        return 0.5 * float(poisson_deviance(n, masses(c)[1]).sum())

    def gradient(c: FloatArray) -> FloatArray:
        mass, mu = masses(c)
        return np.asarray(np.einsum("b,bq,bqk->k", 1.0 - n / mu, mass, g))

    minuit = Minuit(half_deviance, np.linalg.solve(p.basis, p.start), grad=gradient)
    minuit.errordef = Minuit.LIKELIHOOD
    minuit.errors = np.ones(len(p.start))  # the basis makes every standard deviation about 1
    minuit.tol = 1e-3
    minuit.strategy = 1
    minuit.migrad(ncall=5000)
    minuit.hesse()
    k = len(p.start)
    raw = np.full((k, k), np.nan) if minuit.covariance is None else np.asarray(minuit.covariance)
    valid = bool(minuit.valid and minuit.accurate)
    return _finish(p, p.basis @ np.asarray(minuit.values), p.basis @ raw @ p.basis.T, valid)


def fit_spectrum_newton(
    counts: npt.ArrayLike,
    edges: npt.ArrayLike,
    exclude: tuple[float, float] | None = None,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    variance: npt.ArrayLike | None = None,
    fitted: npt.ArrayLike | None = None,
) -> SpectrumFit:
    """Fit as :func:`fit_spectrum` does, by the Newton solver of the pseudo-experiments.

    The width of the bins is met by repeating the regression with each bin's logarithm linearised at the last estimate.
    """
    p = _prepare(counts, edges, exclude, shape, sqrt_s, variance, fitted)
    parameters, covariance, valid = p.start, np.empty((0, 0)), False
    for _ in range(20):
        mu, log_gradient = bin_model(shape, sqrt_s, p.edges, parameters)
        fit = fit_poisson(p.counts, log_gradient @ p.basis, np.log(np.maximum(mu, 1e-300) * p.scale), fitted=p.fitted)
        step = fit.coefficients[0]
        parameters = parameters + p.basis @ step
        covariance = p.basis @ fit.covariance[0] @ p.basis.T
        valid = bool(fit.converged[0])
        if float(np.abs(step).max()) < 1e-7:
            break
    return _finish(p, parameters, covariance, valid)


def _panels(lo: float, hi: float, width: float) -> FloatArray:
    return np.linspace(lo, hi, max(2, int(np.ceil((hi - lo) / width)) + 1))


def _check_range(fit: SpectrumFit | Density, lo: float, hi: float) -> None:
    if not 0 < lo < hi < fit.sqrt_s:
        raise FitError(f"the mass range {lo:g}-{hi:g} GeV must rise between 0 and sqrt_s = {fit.sqrt_s:g} GeV")


def expected(fit: SpectrumFit, lo: float, hi: float) -> tuple[float, float]:
    """Integrate the fitted density over a mass range.

    Parameters
    ----------
    fit : SpectrumFit
    lo, hi : float
        GeV.

    Returns
    -------
    value, error : float
        Events, and their standard deviation from the fit's covariance (linear propagation).
    """
    _check_range(fit, lo, hi)
    mu, log_gradient = bin_model(fit.shape, fit.sqrt_s, _panels(lo, hi, 50.0), fit.parameters)
    gradient = mu @ log_gradient
    variance = float(gradient @ fit.covariance @ gradient)
    return float(mu.sum()), max(variance, 0.0) ** 0.5


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
    _check_range(fit, lo, hi)
    u = np.asarray(uniforms, dtype=np.float64)
    if not bool(np.all((u >= 0) & (u <= 1))):
        raise FitError("uniform numbers outside [0, 1] were given to draw masses from")
    basis = fit.shape.basis
    panels = _panels(lo, hi, (hi - lo) / 256.0)
    # the density relative to its value at lo: no overflow, whatever the parameters
    reference = basis(np.array(lo / fit.sqrt_s)) @ fit.parameters

    def density(m: FloatArray) -> FloatArray:
        return np.asarray(np.exp(basis(m / fit.sqrt_s) @ fit.parameters - reference))

    nodes, weights = _quadrature(panels)
    content = (weights * density(nodes)).sum(axis=1)
    total = np.concatenate([[0.0], np.cumsum(content)])
    flat = u.ravel()
    out = np.empty_like(flat)
    for low in range(0, len(flat), _BLOCK):
        target = flat[low : low + _BLOCK] * total[-1]
        i = np.clip(np.searchsorted(total, target, side="right") - 1, 0, len(content) - 1)
        left, right, rest = panels[i], panels[i + 1], target - total[i]
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
        If no mass lies in the window.
    """
    seen = np.sort(np.asarray(masses, dtype=np.float64))
    seen = seen[(seen >= lo) & (seen < hi)]
    if not len(seen):
        raise FitError(f"no event is between {lo:g} and {hi:g} GeV to draw masses after")
    place = np.asarray(uniforms, dtype=np.float64) * len(seen)
    which = np.minimum(place.astype(np.int64), len(seen) - 1)
    inside = np.clip(place - which, 1e-12, 1 - 1e-12)
    m = seen[which] + bandwidth * ndtri(inside)
    # a kernel wider than the window is reflected more than once
    width = hi - lo
    folded = np.abs(np.remainder(m - lo + width, 2 * width) - width)
    return np.asarray(np.clip(lo + folded, lo, np.nextafter(hi, lo)))


def spectrum_edges(mass_range: tuple[float, float], width: float, windows: Sequence[Window] = ()) -> FloatArray:
    """Return fine bins whose edges include every window's.

    Parameters
    ----------
    mass_range : tuple of two floats
        GeV.
    width : float
        Largest width of a bin, GeV.
    windows : sequence of Window
        Their edges inside the range divide it; each piece is cut into equal bins.

    Returns
    -------
    array, shape (bins + 1,)
        GeV, rising.
    """
    low, high = (float(x) for x in mass_range)
    if not low < high or width <= 0:
        raise FitError(f"cannot divide {low:g}-{high:g} GeV into bins of {width:g} GeV")
    inner = sorted(x for window in windows for x in (window.lo, window.hi) if low < x < high)
    marks = [low]
    # edges that differ by rounding alone (3100 + 3 * 0.1 steps) are one edge
    for x in (*inner, high):
        if x - marks[-1] > 1e-6 * width:
            marks.append(x)
    marks[-1] = high
    pieces = [np.linspace(a, b, max(1, int(np.ceil((b - a) / width - 1e-9))) + 1)[:-1] for a, b in pairwise(marks)]
    return np.concatenate([*pieces, [high]])


def trim_spectrum(
    counts: npt.ArrayLike, edges: npt.ArrayLike, lo: float, hi: float | None = None
) -> tuple[FloatArray, FloatArray]:
    """Cut a spectrum to ``lo`` and above, and to its last filled bin or ``hi``.

    Parameters
    ----------
    counts : array_like, shape (bins,)
    edges : array_like, shape (bins + 1,)
        GeV.
    lo : float
        First edge that is kept, GeV.
    hi : float, optional
        Last edge that is kept, GeV; by default the last filled bin's upper edge. Empty bins between stay.

    Returns
    -------
    counts, edges : arrays, shapes (n,) and (n + 1,)
    """
    n, e = np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    keep = np.flatnonzero((e[:-1] >= lo) & ((n > 0) if hi is None else (e[1:] <= hi)))
    first = np.flatnonzero(e[:-1] >= lo)
    if len(keep) == 0:
        raise FitError(f"the spectrum has no filled bin above {lo:g} GeV")
    part = slice(int(first[0]), int(keep[-1]) + 1)
    return n[part], e[part.start : part.stop + 1]


def spectrum_from_root(path: str | Path, name: str) -> tuple[FloatArray, FloatArray]:
    """Read a TH1 as counts a bin.

    Parameters
    ----------
    path : str or Path
        ROOT file.
    name : str
        The histogram, e.g. ``Mjj``.

    Returns
    -------
    counts, edges : arrays, shapes (bins,) and (bins + 1,)
        Without under- and overflow; edges in the histogram's own unit.

    Raises
    ------
    InputError
        If the file is missing or truncated, or the histogram is missing or not one-dimensional.
    """
    if not Path(path).is_file():
        raise InputError(path, "no such file", "check the path")
    try:
        with uproot.open(path) as file:
            if name not in file:
                there = sorted({key.split(";")[0] for key, kind in file.classnames().items() if kind.startswith("TH1")})
                shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
                raise InputError(
                    path, f"has no histogram {name!r}", f"choose one of its TH1s: {shown or 'it has none'}"
                )
            histogram = file[name]
            if not histogram.classname.startswith("TH1"):
                raise InputError(path, f"{name!r} is a {histogram.classname}, not a TH1", "name a TH1 histogram")
            counts, edges = histogram.to_numpy(flow=False)
    except InputError:
        raise
    except Exception as error:  # uproot raises whatever the first bad byte leads to
        raise InputError(
            path, f"cannot be read as ROOT ({type(error).__name__})", "it may be truncated: copy it again"
        ) from error
    return np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
