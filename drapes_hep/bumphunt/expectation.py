r"""What is expected inside a window from fits outside it, for many spectra at once. GeV.

*Inclusive.* The fitted spectrum (:mod:`drapes_hep.spectrum.fit`) is summed inside the window.

*After a cut.* At 1e-3 a few dozen events meet a four-parameter shape, so the selected spectrum is taken as
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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import FitError
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE
from drapes_hep.spectrum.poisson import (
    Expansion,
    PoissonFit,
    expand_poisson,
    fit_poisson,
)

__all__ = [
    "DEGREES",
    "LEAST_EXPECTED",
    "EfficiencyGuess",
    "InclusiveSpectra",
    "SelectedExpectations",
    "WindowBins",
    "bin_covariance",
    "efficiency_guess",
    "inclusive_expectations",
    "mass_coordinate",
    "quotable",
    "selected_expectations",
    "window_bins",
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
class WindowBins:
    """The bins of a spectrum as one window divides them.

    Attributes
    ----------
    inside, outside : array of bool, shape (bins,)
        Of the window, and of the fits; hidden bins are in neither.
    design : array, shape (bins, terms)
        (1, u, u^2, ...) at the bins' centres, u from -1 to 1.
    """

    inside: BoolArray
    outside: BoolArray
    design: FloatArray


@dataclass(frozen=True)
class InclusiveSpectra:
    """Fitted inclusive spectra of n experiments.

    Attributes
    ----------
    mu : array, shape (n, bins)
    gradient : array, shape (bins, k)
        Of ln mu in the parameters.
    covariance : array, shape (n, k, k)
        Of the parameters.
    """

    mu: FloatArray
    gradient: FloatArray
    covariance: FloatArray


@dataclass(frozen=True)
class SelectedExpectations:
    """Expectations after a cut, one row per spectrum; NaN where too few events pass.

    Attributes
    ----------
    expected, error : array, shape (n,)
        Inside the window.
    degree : array of int, shape (n,)
        Of the efficiency's polynomial; -1 without a fit.
    sideband_events : array, shape (n,)
        Events outside that pass.
    spectrum : array, shape (n, bins)
    deviance : array, shape (n,)
    efficiency_covariance : array, shape (n, terms, terms)
        A of the module's head.
    absorbed : array, shape (n, terms, k)
        Z^T diag(mu) J over the bins outside.
    """

    expected: FloatArray
    error: FloatArray
    degree: IntArray
    sideband_events: FloatArray
    spectrum: FloatArray
    deviance: FloatArray
    efficiency_covariance: FloatArray
    absorbed: FloatArray


def window_bins(edges: FloatArray, window: Window, hidden: BoolArray | None = None) -> WindowBins:
    """Divide the bins of a spectrum into those inside a window and those outside.

    Parameters
    ----------
    edges : array, shape (bins + 1,)
        GeV.
    window : Window
    hidden : array of bool, shape (bins,), optional
        Bins that no fit may see.

    Returns
    -------
    WindowBins

    Raises
    ------
    FitError
        If the bins do not have the window's edges.
    """
    slack = 1e-6 * float(np.diff(edges).min())
    inside = np.asarray((edges[:-1] >= window.lo - slack) & (edges[1:] <= window.hi + slack))
    touched = (edges[1:] > window.lo + slack) & (edges[:-1] < window.hi - slack)
    if not inside.any() or bool((touched & ~inside).any()):
        raise FitError(f"the bins do not have the edges of window {window.name} GeV")
    outside = ~inside if hidden is None else ~inside & ~hidden
    powers = mass_coordinate(edges)[:, None] ** np.arange(DEGREES[-1] + 1)
    return WindowBins(inside, outside, np.asarray(powers, dtype=np.float64))


def mass_coordinate(edges: FloatArray) -> FloatArray:
    """Return the centres of bins as u, from -1 to 1 over the fitted range: what the efficiency is a polynomial of."""
    centre = 0.5 * (edges[1:] + edges[:-1])
    return np.asarray((2.0 * centre - edges[0] - edges[-1]) / (edges[-1] - edges[0]), dtype=np.float64)


def inclusive_expectations(spectra: InclusiveSpectra, bins: WindowBins) -> tuple[FloatArray, FloatArray]:
    """Compute the inclusive expectations inside a window and their errors.

    Parameters
    ----------
    spectra : InclusiveSpectra
    bins : WindowBins

    Returns
    -------
    expected, error : array, shape (n,)
    """
    within = spectra.mu[:, bins.inside]
    g = within @ spectra.gradient[bins.inside]
    variance = np.einsum("nk,nkl,nl->n", g, spectra.covariance, g)
    return within.sum(axis=1), np.sqrt(np.maximum(variance, 0.0))


_PRECISION = np.array([0.0, *[EFFICIENCY_PRIOR**-2] * DEGREES[-1]])
_LEAST_TERMS = DEGREES[0] + 1


@dataclass(frozen=True)
class EfficiencyGuess:
    """Where the efficiency fits of spectra that fluctuate about c expectations start.

    Attributes
    ----------
    expansion : Expansion
        Of the fits to the expectations, of the least degree.
    design : array, shape (bins, least terms)
        Of the polynomial, 0 inside the window.
    passed : array, shape (c, bins, least terms)
        The same times the expected efficiency.
    """

    expansion: Expansion
    design: FloatArray
    passed: FloatArray

    def start(self, selected: FloatArray, mu: FloatArray) -> FloatArray:
        """Return coefficients of the least degree.

        Parameters
        ----------
        selected : array, shape (c, n, bins)
            Counts after the cuts.
        mu : array, shape (n, bins)
            Fitted inclusive means.

        Returns
        -------
        array, shape (c, n, least terms)
        """
        prior = _PRECISION[:_LEAST_TERMS] * self.expansion.coefficients
        return self.expansion.start(selected @ self.design - mu @ self.passed - prior[:, None])


def efficiency_guess(selected: FloatArray, mu: FloatArray, bins: WindowBins, *, share: float = 1.0) -> EfficiencyGuess:
    """Fit the efficiencies of expectations, for the fits of spectra that fluctuate about them to start near.

    Parameters
    ----------
    selected : array, shape (c, bins)
        Expected counts after each cut, without fluctuations; outside, of the ``share`` of the events alone.
    mu : array, shape (bins,)
        Inclusive means.
    bins, share
        As :func:`selected_expectations` has them.

    Returns
    -------
    EfficiencyGuess
    """
    outside, z = bins.outside, bins.design[:, :_LEAST_TERMS]
    offset, start = np.log(np.maximum(share * mu, 1e-300)), np.zeros((len(selected), _LEAST_TERMS))
    # an expectation of nothing has a fit too
    start[:, 0] = np.log(np.maximum(selected[:, outside].sum(axis=1), 1e-3) / (share * mu[outside]).sum())
    fit = fit_poisson(selected, z, offset, fitted=outside, start=start, precision=_PRECISION[:_LEAST_TERMS])
    expansion = expand_poisson(z[outside], fit.expected[:, outside], fit.coefficients, fit.covariance)
    design = z * outside[:, None]
    return EfficiencyGuess(expansion, design, design * (share * np.exp(fit.coefficients @ z.T))[..., None])


def _fit_efficiency(
    n: FloatArray, spectra: InclusiveSpectra, bins: WindowBins, share: float, start: FloatArray | None
) -> PoissonFit:
    """Fit the efficiency's polynomial; the degree is chosen per row."""
    z, outside, k = bins.design, bins.outside, _LEAST_TERMS
    offset = np.log(np.maximum(spectra.mu, 1e-300)) + np.log(share)
    if start is None:
        start = np.zeros((len(n), k))
        passed = n[:, outside].sum(axis=1).reshape(-1, len(spectra.mu))
        # an efficiency of nothing has a fit too
        total = np.maximum(share * spectra.mu[:, outside].sum(axis=1), 1e-300)
        start[:, 0] = np.log(np.maximum(passed, 1e-3) / total).ravel()
    # the penalty belongs to the objective that the degrees are compared by
    return fit_poisson(n, z, offset, fitted=outside, start=start, precision=_PRECISION, least=k, gain=DEGREE_LEVEL)


def _quadratic(matrices: FloatArray, vectors: FloatArray) -> FloatArray:
    """Compute v M v of each row."""
    return np.asarray(np.einsum("ni,ni->n", np.einsum("nij,nj->ni", matrices, vectors), vectors))


def _inside(fit: PoissonFit, spectra: InclusiveSpectra, bins: WindowBins) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute what is expected inside the window, its relative error, and Z^T diag(mu) J (the module's head)."""
    z, inside, outside, j = bins.design, bins.inside, bins.outside, spectra.gradient
    terms, k = z.shape[1], j.shape[1]
    cross = (z[:, :, None] * j[:, None, :]).reshape(len(z), terms * k)
    # all sums over bins at once
    functions = np.concatenate([np.concatenate([z, j], axis=1) * inside[:, None], cross * outside[:, None]], axis=1)
    sums = fit.expected @ functions
    within = sums[:, 0]  # the first power of u is 1
    inner = sums[:, : terms + k] / np.maximum(within, 1e-300)[:, None]
    z_in, g_in, m = inner[:, :terms], inner[:, terms:], sums[:, terms + k :].reshape(-1, terms, k)
    q = np.einsum("ni,nik->nk", np.einsum("nij,nj->ni", fit.covariance, z_in), m)
    c = np.tile(spectra.covariance, (len(within) // len(spectra.mu), 1, 1))
    variance = _quadratic(fit.covariance, z_in) + _quadratic(c, g_in) - _quadratic(c, q)
    return within, np.sqrt(np.maximum(variance, 0.0)), m


def selected_expectations(
    selected: FloatArray,
    spectra: InclusiveSpectra,
    bins: WindowBins,
    *,
    min_events: int,
    share: float = 1.0,
    start: FloatArray | None = None,
) -> SelectedExpectations:
    """Fit the efficiency of each selected spectrum outside a window, and compute what is expected inside.

    Parameters
    ----------
    selected : array, shape (n, bins)
        Counts after the cut; outside, of the ``share`` of the events alone.
    spectra : InclusiveSpectra
        Of the same experiments: of n, or of the first m, the next m and so on, after cuts that differ.
    bins : WindowBins
    min_events : int
        Fewer events outside give no expectation.
    share : float
        Fraction of the events outside the window that ``selected`` counts. The expectation is of all events.
    start : array, shape (n, least terms), optional
        Coefficients of the polynomial of the least degree, near which the fits may be; they do not depend on it.

    Returns
    -------
    SelectedExpectations
    """
    (rows, size), terms = selected.shape, bins.design.shape[1]
    total = selected[:, bins.outside].sum(axis=1)
    some = total >= min_events
    if some.all():
        return _expectations(selected, spectra, bins, total, share, start)
    out = SelectedExpectations(
        expected=np.full(rows, np.nan), error=np.full(rows, np.nan), degree=np.full(rows, -1, dtype=np.int64),
        sideband_events=total, spectrum=np.full((rows, size), np.nan), deviance=np.full(rows, np.nan),
        efficiency_covariance=np.zeros((rows, terms, terms)),
        absorbed=np.zeros((rows, terms, spectra.gradient.shape[1])),
    )  # fmt: skip
    if some.any():
        of = np.flatnonzero(some) % len(spectra.mu)
        part = InclusiveSpectra(spectra.mu[of], spectra.gradient, spectra.covariance[of])
        fits = _expectations(selected[some], part, bins, total[some], share, None if start is None else start[some])
        for name, values in vars(fits).items():
            getattr(out, name)[some] = values
    return out


def _expectations(
    selected: FloatArray,
    spectra: InclusiveSpectra,
    bins: WindowBins,
    total: FloatArray,
    share: float,
    start: FloatArray | None,
) -> SelectedExpectations:
    """Compute the expectations of spectra that have events enough."""
    fit = _fit_efficiency(selected, spectra, bins, share, start)
    within, relative, absorbed = _inside(fit, spectra, bins)
    # a selected spectrum that its own model does not describe outside the window says nothing inside
    poor = ~fit.converged | ~(fit.p_value >= GOOD_FIT_P_VALUE)
    expected = np.where(poor, np.nan, within / share)
    return SelectedExpectations(
        expected=expected, error=expected * relative, degree=fit.parameters - 1, sideband_events=total,
        spectrum=fit.expected / share, deviance=fit.deviance, efficiency_covariance=fit.covariance, absorbed=absorbed,
    )  # fmt: skip


def bin_covariance(
    spectrum: FloatArray,
    gradient: FloatArray,
    covariance: FloatArray,
    bins: WindowBins,
    part: SelectedExpectations | None = None,
) -> FloatArray:
    """Compute the covariance of the bins' expectations: the formula of the module's head, for pairs of bins.

    The errors of two bins come from the same few parameters, so neighbours are almost fully correlated. The sum over
    the bins of a window is the square of the error that is quoted for it.

    Parameters
    ----------
    spectrum : array, shape (bins,)
        The expectation.
    gradient, covariance : array, shapes (bins, k) and (k, k)
        Of the inclusive fit.
    bins : WindowBins
    part : SelectedExpectations, optional
        Of this spectrum alone, after a cut.

    Returns
    -------
    array, shape (bins, bins)
    """
    relative = gradient @ covariance @ gradient.T
    if part is not None:
        a, design = part.efficiency_covariance[0], bins.design
        q = design @ a @ part.absorbed[0]
        relative += design @ a @ design.T - q @ covariance @ q.T
    scaled = spectrum[:, None] * relative * spectrum
    return np.asarray(0.5 * (scaled + scaled.T), dtype=np.float64)


def quotable(expected: npt.ArrayLike, error: npt.ArrayLike) -> BoolArray:
    """Whether there is an expectation: a fit that says nothing leaves NaN, one that ran away next to nothing.

    Parameters
    ----------
    expected, error : array_like
        Of the same shape.

    Returns
    -------
    array of bool
    """
    return np.asarray(np.isfinite(expected) & np.isfinite(error) & (np.asarray(expected) >= LEAST_EXPECTED))
