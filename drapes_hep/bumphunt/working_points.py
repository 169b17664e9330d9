"""The working points of one window: what is expected inside, what is observed, and how unlikely that is. GeV.

The spectrum outside the window is fitted (:mod:`drapes_hep.spectrum.fit`) and integrated inside; after a cut it is the
inclusive one times a smooth efficiency (:mod:`drapes_hep.bumphunt.expectation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.background import SpuriousSignal, with_spurious
from drapes_hep.bumphunt.expectation import (
    InclusiveSpectra,
    SelectedExpectations,
    bin_covariance,
    inclusive_expectations,
    quotable,
    selected_expectations,
    window_bins,
)
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import SpectrumFit, bin_model, fit_spectrum
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = ["WindowHunt", "WorkingPoint", "eigen_variations", "hunt_window"]

FloatArray = npt.NDArray[np.float64]


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
        From the fit outside the window; None with too few events or a poor inclusive fit. The error includes the
        spurious signal, where there is one.
    p_local, z_local : float or None
        ``z_local`` is None where nothing is observed: p is 1.
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
    """One window: its inclusive fit and its working points from loose to tight.

    Attributes
    ----------
    sr : Window
    fit : SpectrumFit
    working_points : tuple of WorkingPoint
    spurious : SpuriousSignal or None
        That the errors include; None if the search does without.
    """

    sr: Window
    fit: SpectrumFit
    working_points: tuple[WorkingPoint, ...]
    spurious: SpuriousSignal | None = None


def eigen_variations(covariance: npt.ArrayLike) -> FloatArray:
    """Turn a covariance of bins into independent variations of one standard deviation each.

    Parameters
    ----------
    covariance : array_like, shape (bins, bins)

    Returns
    -------
    array, shape (variations, bins)
        V with V^T V = covariance, largest first: eigenvectors times the roots of their eigenvalues. There are no more
        than the fit has parameters, and one for the spurious signal; eigenvalues below 1e-8 of the largest are left
        out.
    """
    value, vector = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    large = np.flatnonzero(value > 1e-8 * value[-1])[::-1]
    variations = (vector[:, large] * np.sqrt(value[large])).T
    # an eigenvector has no sign of its own: up is where the sum rises
    return np.asarray(variations * np.where(variations.sum(axis=1) < 0, -1.0, 1.0)[:, None], dtype=np.float64)


def _none(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def hunt_window(
    counts: SelectedCounts,
    window: Window,
    *,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    min_events: int = 10,
    blind: bool = False,
    spurious: SpuriousSignal | None = None,
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
    blind : bool
        Never look inside the window.
    spurious : SpuriousSignal, optional
        Of this window and shape: added in quadrature to the errors, at a cut scaled by its efficiency.

    Returns
    -------
    WindowHunt

    Raises
    ------
    FitError
        If the inclusive spectrum cannot be fitted at all, or the bins do not have the window's edges.
    """
    bins = window_bins(counts.edges, window, counts.hidden)
    outside = bins.outside
    nested = np.where(outside, counts.nested, np.nan)
    fit = fit_spectrum(nested[0], counts.edges, None, shape, sqrt_s, fitted=outside)
    _, gradient = bin_model(shape, sqrt_s, counts.edges, fit.parameters)
    spectra = InclusiveSpectra(fit.expected[None], gradient, fit.covariance[None])
    inclusive, inclusive_error = (float(x[0]) for x in inclusive_expectations(spectra, bins))
    hidden = blind or bool(counts.hidden[bins.inside].any())
    # the inclusive shape too: its parameters go through any handful of events
    fitted = fit.good and nested[0][outside].sum() >= min_events
    points = []
    for i, efficiency in enumerate(counts.efficiencies):
        degree: int | None = None
        part: SelectedExpectations | None = None
        chi2, ndof = _none(fit.chi2), fit.ndof
        value, error = inclusive, inclusive_error
        if i > 0:
            part = selected_expectations(nested[i][None], spectra, bins, min_events=min_events, share=counts.share)
            value, error = float(part.expected[0]), float(part.error[0])
            degree = int(part.degree[0]) if fit.good and part.degree[0] >= 0 else None
            chi2, ndof = _none(float(part.deviance[0])), int(outside.sum()) - int(part.degree[0]) - 1
        if not fitted:
            value = error = np.nan
        if spurious is not None:
            error = float(with_spurious(error, value, inclusive, spurious.size))
        observed = None if hidden else int(counts.nested[i, bins.inside].sum())
        local = local_significance(
            0 if observed is None else observed, value, error, observed is not None and quotable(value, error)
        )
        spectrum: FloatArray | None = None
        spectrum_covariance: FloatArray | None = None
        if np.isfinite(value):
            spectrum = fit.expected if part is None else part.spectrum[0]
            spectrum_covariance = bin_covariance(spectrum, gradient, fit.covariance, bins, part)
            if spurious is not None and spurious.difference is not None:
                varied = spurious.difference * (value / inclusive)
                spectrum_covariance += varied[:, None] * varied
        points.append(
            WorkingPoint(
                efficiency, observed, _none(value), _none(error), _none(float(local.p)), _none(float(local.z)),
                degree, int(nested[i][outside].sum()), spectrum, spectrum_covariance, chi2, ndof,
            )
        )  # fmt: skip
    return WindowHunt(window, fit, tuple(points), spurious)
