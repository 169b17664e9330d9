r"""What background is expected inside a window at each working point, and how unlikely the data are. GeV.

*Inclusive working point.* The spectrum outside the window is fitted (:mod:`drapes_hep.spectrum.fit`) and integrated
inside.

*Tighter working points.* At 1e-3 a few dozen events meet a four-parameter shape, so the selected spectrum is taken as
the inclusive one times a smooth efficiency,

.. math:: \mu^{sel}_i = \hat\mu_i \exp(a_0 + a_1 u_i + a_2 u_i^2 [+ a_3 u_i^3]), \quad u \in [-1, 1],

(u over the fitted range) fitted outside the window as a Poisson regression with offset :math:`\ln \hat\mu_i`; the
degree (:data:`DEGREES`) is chosen by a likelihood ratio test. All but :math:`a_0` have a wide normal prior
(:data:`EFFICIENCY_PRIOR`), without which a handful of events on one side of the window can send the slope, and the
expectation with it, to zero.

*Uncertainty.* With J the gradient of :math:`\ln\hat\mu` in the parameters of the inclusive fit and C their covariance,
Z the polynomial's design, :math:`A` the inverse information of the efficiency fit, and g, z the means of J and Z over
the expectation inside the window, linear propagation gives, for a selected set that is *part of* the inclusive one,

.. math:: \mathrm{var}(\ln \mu^{sel}_{in}) = z A z + g C g - q C q, \quad q = z A Z^T \mathrm{diag}(\mu^{sel}) J:

what the efficiency fit absorbs of the inclusive fit's error (its normalisation, say) is not counted twice. It is never
negative, since the selected spectrum constrains less than the inclusive one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.errors import FitError
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE, SpectrumFit, bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import deviance_p_value, fit_poisson
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = [
    "DEGREES",
    "LEAST_EXPECTED",
    "WindowHunt",
    "WorkingPoint",
    "eigen_variations",
    "hunt_window",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

DEGREES = (2, 3)
"""Degrees that the efficiency's polynomial may have; the first is the least that is ever used.

Starting lower is biased, since a slope or curvature too small for the test to see still moves the expectation. Toys
of 100,000 events, window 3300-3700: with a true ln efficiency of 0.7 u - 0.4 u^2 at 1e-2 the mean pull is 0.38 and its
width 1.18 if degrees 1 and 2 are tested; with a true slope of 0.5 at 1e-3 they are 0.25 and 1.09 if 0 to 2 are.
With 2 and 3 every case studied has means within 0.15 and widths of 0.97 to 1.09. The price where the efficiency is flat
is 3 to 10 % of the significance (against degrees 1 and 2).
"""
DEGREE_LEVEL = 3.841458820694124
"""Deviance that one more degree must win: the 0.05 level of a chi2 with one degree of freedom."""
EFFICIENCY_PRIOR = 1.5
"""Standard deviation of the normal prior on a_1, a_2, a_3: a factor of exp(1.5) from the middle to an end of the range.

On the same toys a prior of 1 biases a true slope of -1 at 1e-3 by 0.1 to 0.4 standard deviations; one of 3 hardly tames
the slope of ten events.
"""


LEAST_EXPECTED = 1e-3
"""Events. A smaller expectation carries no p-value: no sideband has the events that could tell it from zero, so it is
the fit's extrapolation that speaks. Taken as a number, 1e-12 +- 1e-12 would make five events 16 sigma.
"""


@dataclass(frozen=True)
class WorkingPoint:
    """One cut in one window. What does not exist is None.

    Attributes
    ----------
    background_efficiency : float
        The cut; 1 is the inclusive search.
    observed : int or None
        Data that pass inside the window; None if blind.
    expected, expected_error : float or None
        From the fit outside the window; None with too few events or a poor inclusive fit.
    p_local, z_local : float or None
        ``z_local`` is None where nothing is observed: p is 1.
    expected_template, expected_template_error : float or None
        Cross-check: the template's efficiency times the inclusive expectation.
    degree : int or None
        Of the efficiency's polynomial; None for the inclusive point.
    fitted_events : int
        Events outside the window that pass and that the expectation is fitted to: all for the inclusive point, after a
        cut those of the part that ``counts`` counts.
    spectrum : array, shape (bins,), or None
        The expectation bin by bin over the whole range, window included.
    spectrum_covariance : array, shape (bins, bins), or None
        Its covariance; the sum over the window's bins is the square of ``expected_error``.
    chi2, ndof : float and int, or None
        2NLLR of this point's spectrum outside the window; a poor one gives no expectation.
    """

    background_efficiency: float
    observed: int | None
    expected: float | None
    expected_error: float | None
    p_local: float | None
    z_local: float | None
    expected_template: float | None
    expected_template_error: float | None
    degree: int | None
    fitted_events: int
    spectrum: FloatArray | None = field(default=None, compare=False)
    spectrum_covariance: FloatArray | None = field(default=None, compare=False)
    chi2: float | None = None
    ndof: int | None = None

    @property
    def spectrum_error(self) -> FloatArray | None:
        """Standard deviation of each bin's expectation, shape (bins,); they do not add in quadrature."""
        covariance = self.spectrum_covariance
        return None if covariance is None else np.sqrt(np.maximum(np.diagonal(covariance), 0.0))


@dataclass(frozen=True)
class WindowHunt:
    """One window: its inclusive fit and its working points from loose to tight."""

    sr: Window
    fit: SpectrumFit
    working_points: tuple[WorkingPoint, ...]


def _polynomial(edges: FloatArray) -> FloatArray:
    """Return the design (1, u, u^2, ...) at the bins' centres, u from -1 to 1; shape (bins, degree + 1)."""
    centre = 0.5 * (edges[1:] + edges[:-1])
    u = (2.0 * centre - edges[0] - edges[-1]) / (edges[-1] - edges[0])
    return np.asarray(u[:, None] ** np.arange(DEGREES[-1] + 1), dtype=np.float64)


@dataclass(frozen=True)
class _Expectations:
    """Expectations inside a window, one row a spectrum; NaN where too few events pass."""

    expected: FloatArray
    error: FloatArray
    degree: IntArray
    sideband_events: FloatArray
    spectrum: FloatArray
    deviance: FloatArray
    efficiency_covariance: FloatArray
    absorbed: FloatArray


def _inside(edges: FloatArray, window: Window) -> BoolArray:
    slack = 1e-6 * float(np.diff(edges).min())
    inside = (edges[:-1] >= window.lo - slack) & (edges[1:] <= window.hi + slack)
    touched = (edges[1:] > window.lo + slack) & (edges[:-1] < window.hi - slack)
    if not inside.any() or bool((touched & ~inside).any()):
        raise FitError(f"the bins do not have the edges of window {window.name} GeV")
    return np.asarray(inside)


def _inclusive_expectations(
    mu: FloatArray, gradient: FloatArray, covariance: FloatArray, inside: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """Sum (n, bins) means inside a window; errors from (n, k, k) covariances and the (bins, k) gradient of ln mu."""
    within = mu[:, inside]
    g = within @ gradient[inside]
    variance = np.einsum("nk,nkl,nl->n", g, covariance, g)
    return within.sum(axis=1), np.sqrt(np.maximum(variance, 0.0))


def _selected_expectations(
    selected: FloatArray,
    mu: FloatArray,
    gradient: FloatArray,
    covariance: FloatArray,
    polynomial: FloatArray,
    inside: BoolArray,
    outside: BoolArray,
    min_events: int,
    share: float = 1.0,
) -> _Expectations:
    """Fit the efficiency of each spectrum outside a window, and expect inside.

    Outside, ``selected`` counts only the ``share`` of the events; what is expected is of all of them. Shapes: selected
    and mu (n, bins), gradient (bins, k), covariance (n, k, k), polynomial (bins, terms).
    """
    rows, bins = mu.shape
    mu = share * mu
    total = selected[:, outside].sum(axis=1)
    value, error = np.full(rows, np.nan), np.full(rows, np.nan)
    degree = np.full(rows, -1, dtype=np.int64)
    spectrum, deviance_found = np.full((rows, bins), np.nan), np.full(rows, np.nan)
    k_max = polynomial.shape[1]
    inverse, absorbed = np.zeros((rows, k_max, k_max)), np.zeros((rows, k_max, gradient.shape[1]))
    some = np.flatnonzero(total >= min_events)
    if len(some):
        log_mu = np.log(np.maximum(mu[some], 1e-300))
        n, z = selected[some], polynomial
        terms = z.shape[1]
        prior = np.array([0.0, *[EFFICIENCY_PRIOR**-2] * (terms - 1)])
        theta, a = np.zeros((len(some), terms)), np.zeros((len(some), terms, terms))
        theta[:, 0] = np.log(total[some] / mu[some][:, outside].sum(axis=1))
        mean = np.full((len(some), bins), np.nan)
        converged = np.zeros(len(some), dtype=np.bool_)
        misfit = np.full(len(some), np.nan)
        best = np.full(len(some), np.inf)
        chosen = np.full(len(some), DEGREES[0], dtype=np.int64)
        for order in DEGREES:
            k = order + 1
            fit = fit_poisson(n, z[:, :k], log_mu, fitted=outside, start=theta[:, :k], precision=prior[:k])
            # the penalty belongs to the objective that the degrees are compared by
            deviance = fit.deviance + fit.coefficients**2 @ prior[:k]
            better = fit.converged & (best - deviance > DEGREE_LEVEL)
            converged |= better
            misfit[better] = fit.deviance[better]
            theta[better, :k], mean[better], chosen[better] = fit.coefficients[better], fit.expected[better], order
            a[better] = 0.0
            a[better, :k, :k] = fit.covariance[better]
            best = np.where(better, deviance, best)
        within = mean[:, inside].sum(axis=1)
        inner = mean[:, inside] / np.maximum(within, 1e-300)[:, None]
        z_in, g_in = inner @ z[inside], inner @ gradient[inside]
        k = gradient.shape[1]
        cross = (z[:, :, None] * gradient[:, None, :]).reshape(bins, terms * k)[outside]
        m = (mean[:, outside] @ cross).reshape(-1, terms, k)
        q = np.einsum("ni,nij,njk->nk", z_in, a, m)
        c = covariance[some]
        variance = (
            np.einsum("ni,nij,nj->n", z_in, a, z_in)
            + np.einsum("nk,nkl,nl->n", g_in, c, g_in)
            - np.einsum("nk,nkl,nl->n", q, c, q)
        )
        value[some], error[some] = within / share, within / share * np.sqrt(np.maximum(variance, 0.0))
        # a selected spectrum that its own model does not describe outside the window says nothing inside
        p_fit = deviance_p_value(misfit, np.maximum(np.nan_to_num(mean[:, outside]), 1e-300), chosen + 1)
        poor = ~converged | ~(p_fit >= GOOD_FIT_P_VALUE)
        value[some[poor]], error[some[poor]] = np.nan, np.nan
        degree[some], spectrum[some], deviance_found[some] = chosen, mean / share, misfit
        inverse[some], absorbed[some] = a, m
    return _Expectations(value, error, degree, total, spectrum, deviance_found, inverse, absorbed)


def _bin_covariance(
    mu: FloatArray, gradient: FloatArray, covariance: FloatArray, design: FloatArray, part: _Expectations | None
) -> FloatArray:
    """Compute the covariance of the bins' expectations, shape (bins, bins): the formula of the module head, for pairs.

    The errors of two bins come from the same few parameters, so neighbours are almost fully correlated. The sum over
    the bins of a window is the square of the error that is quoted for it.
    """
    relative = gradient @ covariance @ gradient.T
    if part is not None:
        a = part.efficiency_covariance[0]
        q = design @ a @ part.absorbed[0]
        relative += design @ a @ design.T - q @ covariance @ q.T
    scaled = mu[:, None] * relative * mu
    return np.asarray(0.5 * (scaled + scaled.T), dtype=np.float64)


def eigen_variations(covariance: npt.ArrayLike) -> FloatArray:
    """Turn a covariance of bins into independent variations of one standard deviation each.

    Parameters
    ----------
    covariance : array_like, shape (bins, bins)

    Returns
    -------
    array, shape (variations, bins)
        V with V^T V = covariance, largest first: eigenvectors times the roots of their eigenvalues. There are no more
        than the fit has parameters; eigenvalues below 1e-8 of the largest are left out.
    """
    value, vector = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    large = np.flatnonzero(value > 1e-8 * value[-1])[::-1]
    variations = (vector[:, large] * np.sqrt(value[large])).T
    # an eigenvector has no sign of its own: up is where the sum rises
    return np.asarray(variations * np.where(variations.sum(axis=1) < 0, -1.0, 1.0)[:, None], dtype=np.float64)


def _quotable(expected: npt.ArrayLike, error: npt.ArrayLike) -> BoolArray:
    """Whether there is an expectation: a fit that says nothing leaves NaN, one that ran away next to nothing."""
    return np.asarray(np.isfinite(expected) & np.isfinite(error) & (np.asarray(expected) >= LEAST_EXPECTED))


def _none(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def hunt_window(
    counts: SelectedCounts,
    window: Window,
    *,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    min_events: int = 10,
    template_sizes: Sequence[int] | None = None,
    blind: bool = False,
) -> WindowHunt:
    """Expect, and unless blind observe, one window's counts at every working point.

    Parameters
    ----------
    counts : SelectedCounts
        Of this window's scores. Its hidden bins take part in nothing.
    window : Window
    shape : SpectrumShape or str
        Of the inclusive spectrum; the package's own by a key of :data:`drapes_hep.spectrum.shapes.SHAPES`.
    sqrt_s : float
        GeV.
    min_events : int
        Fewer events outside the window, selected or at all, give no expectation.
    template_sizes : sequence of int, optional
        Template events of each fold, for the cross-check: of n such events, a cut set at the efficiency e lets a new
        event that follows the template pass with the probability (floor(e n) + 1) / (n + 1) on average. It assumes a
        perfect template, and is null where a fold has not one event to set the cut by.
    blind : bool
        Never look inside the window.

    Returns
    -------
    WindowHunt

    Raises
    ------
    FitError
        If the inclusive spectrum cannot be fitted at all, or the bins do not have the window's edges.
    """
    inside = _inside(counts.edges, window)
    outside = ~inside & ~counts.hidden
    nested = np.where(outside, counts.nested, np.nan)
    fit = _fit_outside(nested[0], counts.edges, outside, shape, sqrt_s)
    _, gradient = bin_model(shape, sqrt_s, counts.edges, fit.parameters)
    mu, covariance, design = fit.expected[None], fit.covariance[None], _polynomial(counts.edges)
    inclusive, inclusive_error = (float(x[0]) for x in _inclusive_expectations(mu, gradient, covariance, inside))
    hidden = blind or bool(counts.hidden[inside].any())
    sizes = np.asarray(template_sizes if template_sizes is not None else [], dtype=np.float64)
    points = []
    for i, efficiency in enumerate(counts.efficiencies):
        degree: int | None = None
        part: _Expectations | None = None
        chi2, ndof = _none(fit.chi2), fit.ndof
        if i == 0:
            value, error = inclusive, inclusive_error
        else:
            part = _selected_expectations(
                nested[i][None], mu, gradient, covariance, design, inside, outside, min_events, counts.share
            )
            value, error = float(part.expected[0]), float(part.error[0])
            degree = int(part.degree[0]) if fit.good and part.degree[0] >= 0 else None
            chi2, ndof = _none(float(part.deviance[0])), int(outside.sum()) - int(part.degree[0]) - 1
        # the inclusive shape too: its parameters go through any handful of events
        if not fit.good or nested[0][outside].sum() < min_events:
            value = error = np.nan
        observed = None if hidden else int(counts.nested[i, inside].sum())
        local = local_significance(
            0 if observed is None else observed, value, error, observed is not None and _quotable(value, error)
        )
        cross = cross_error = np.nan
        if len(sizes) and fit.good and float(sizes.min()) * efficiency >= 1.0:
            share = (
                float(((np.floor(efficiency * sizes + 1e-9) + 1.0) / (sizes + 1.0)).mean()) if efficiency < 1 else 1.0
            )
            cross = share * inclusive
            sampling = inclusive * np.sqrt(share * (1.0 - share) / sizes.sum())
            cross_error = float(np.hypot(sampling, share * inclusive_error))
        spectrum: FloatArray | None = None
        spectrum_covariance: FloatArray | None = None
        if np.isfinite(value):
            spectrum = fit.expected if part is None else part.spectrum[0]
            spectrum_covariance = _bin_covariance(spectrum, gradient, fit.covariance, design, part)
        points.append(
            WorkingPoint(
                efficiency, observed, _none(value), _none(error), _none(float(local.p)), _none(float(local.z)),
                _none(cross), _none(cross_error), degree, int(nested[i][outside].sum()), spectrum,
                spectrum_covariance, chi2, ndof,
            )
        )  # fmt: skip
    return WindowHunt(window, fit, tuple(points))


def _fit_outside(
    counts: FloatArray, edges: FloatArray, outside: BoolArray, shape: str | SpectrumShape, sqrt_s: float
) -> SpectrumFit:
    return fit_spectrum(counts, edges, None, shape, sqrt_s, fitted=outside)
