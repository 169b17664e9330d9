r"""Bias of the window count where another mass shape is true than the one that is fitted. Masses in GeV.

The shape is fitted to pseudo-experiments outside each window. The pull of the count inside is

.. math:: \frac{n - \hat\mu}{\sqrt{\hat\mu + s^2}},

s the error of the expectation :math:`\hat\mu` from the fit. The mean of the pulls is the bias; their width is 1 if the
errors are right. The pull of the true spectrum itself, without fluctuations (Asimov), is the spurious signal in
standard deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.expectation import InclusiveSpectra, inclusive_expectations, window_bins
from drapes_hep.errors import FitError
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE, bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import deviance_p_value, fit_poisson
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = ["Bias", "window_biases"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bias:
    """The pulls of one window. What does not exist is None.

    Attributes
    ----------
    window : Window
    experiments : int
        Pseudo-experiments.
    good_fits : int
        Of these, fits that converge and are good: the others have no pull.
    asimov : float or None
        Pull of the true spectrum, without fluctuations; None if its fit does not converge.
    mean, mean_error : float or None
        Of the pulls.
    width, width_error : float or None
    """

    window: Window
    experiments: int
    good_fits: int
    asimov: float | None
    mean: float | None
    mean_error: float | None
    width: float | None
    width_error: float | None


def window_biases(
    spectra: FloatArray,
    truth: FloatArray,
    edges: FloatArray,
    windows: Sequence[Window],
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
) -> tuple[Bias, ...]:
    """Fit a shape to pseudo-experiments outside each window, and compare the counts inside with the expectations.

    Parameters
    ----------
    spectra : array, shape (n, bins)
        Pseudo-experiments.
    truth : array, shape (bins,)
        Their mean.
    edges : array, shape (bins + 1,)
        GeV.
    windows : sequence of Window
    shape : SpectrumShape or str
    sqrt_s : float
        GeV.

    Returns
    -------
    tuple of Bias
        One per window.

    Raises
    ------
    FitError
        If the shape cannot be fitted to the mean, or the bins do not have a window's edges.
    """
    # fits start from what the shape makes of the truth; row 0 is the truth itself
    start = fit_spectrum(truth, edges, None, shape, sqrt_s)
    if not start.valid:
        raise FitError(f"the fit of {start.shape.name} to the mean of the pseudo-experiments does not converge")
    mean, gradient = bin_model(shape, sqrt_s, edges, start.parameters)
    every = np.concatenate([truth[None], spectra])
    out = []
    for window in windows:
        bins = window_bins(edges, window)
        _, r = np.linalg.qr(np.sqrt(mean[bins.outside])[:, None] * gradient[bins.outside])
        design = gradient @ np.linalg.inv(r)
        fit = fit_poisson(every, design, np.log(mean), fitted=bins.outside)
        expected, error = inclusive_expectations(InclusiveSpectra(fit.expected, design, fit.covariance), bins)
        pulls = (every[:, bins.inside].sum(axis=1) - expected) / np.sqrt(expected + error**2)
        good = deviance_p_value(fit.deviance, mean[bins.outside], design.shape[1]) >= GOOD_FIT_P_VALUE
        asimov = float(pulls[0]) if fit.converged[0] and np.isfinite(pulls[0]) else None
        out.append(_bias(window, asimov, len(spectra), pulls[1:][(good & fit.converged)[1:]]))
    return tuple(out)


def _bias(window: Window, asimov: float | None, experiments: int, pulls: FloatArray) -> Bias:
    n = len(pulls)
    width = float(pulls.std(ddof=1)) if n > 1 else None
    return Bias(
        window,
        experiments,
        n,
        asimov,
        mean=float(pulls.mean()) if n else None,
        mean_error=None if width is None else width / n**0.5,
        width=width,
        width_error=None if width is None else width / (2 * (n - 1)) ** 0.5,
    )
