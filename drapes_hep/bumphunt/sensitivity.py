r"""What a search will be able to discover, cut by cut: in a blinded one, from the events outside all windows. GeV.

A blinded search hides every window from every fit, as the sideband of one is the signal region of another. Its
expectation is a long interpolation and its error is large. After unblinding, each fit leaves out its own window alone.

*Error after unblinding.* Hidden bins are filled with the expectation :math:`\mu_i` of the blinded fit, visible ones
hold their counts, and the fit of the unblinded search is made of this spectrum, outside one window: inclusive, and at a
cut with the counted share of the efficiency's fit. Its score vanishes at the blinded estimate, prior included, so the
expectation stays what it was, while the error becomes that of a fit with all these bins.

*Spurious signal after unblinding.* With :math:`n_h` in the hidden bins, S_f (:mod:`drapes_hep.bumphunt.background`) has
its value at :math:`\mu_h`, and to first order the variance

.. math:: k_h (\mathrm{diag}(\mu_h) + V_h) k_h, \quad k = \partial S_f / \partial n,

with V the covariance of the blinded expectation. The root mean square of the alternative where it is largest is
expected, and is added to the error in quadrature, at a cut times its efficiency.

*Signal needed.* :math:`n_Z` is the smallest count with :math:`z_{local} \ge Z` for the expectation :math:`\mu \pm s`.
Half of all experiments reach it with :math:`S_Z` signal events among those that are counted, if the signal is entirely
inside the window: what is outside raises the expectation.

.. math:: P(N \ge n_Z \mid \mu + S_Z) = 1/2.

*Their errors.* With r the relative error of the (blinded) expectation, all is computed again for
:math:`\mu \exp(\pm r)`, the error from counts times :math:`\exp(\pm r / 2)`, the spurious signal times
:math:`\exp(\pm r)`. The size of the spurious signal itself is that of a normal number about zero: all is computed for
its 16 % and 84 % quantiles, 0.20 and 1.41 root mean squares. Half of each difference is an error; they are added in
quadrature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.background import spurious_signals
from drapes_hep.bumphunt.expectation import (
    LEAST_EXPECTED,
    InclusiveSpectra,
    inclusive_expectations,
    quotable,
    selected_expectations,
    window_bins,
)
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.bumphunt.working_points import WindowHunt, WorkingPoint
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import SpectrumFit, bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import fit_poisson

__all__ = [
    "Sensitivity",
    "critical_counts",
    "expected_spurious_signals",
    "signal_needed",
    "window_sensitivity",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_MOST = 2.0**52
"""Counts beyond it are not looked for."""
_LARGEST = 3.0
"""Relative error of an expectation that is propagated at most: beyond it, not even the order of magnitude is known."""
_LOW, _HIGH = (float(special.ndtri(0.5 + 0.5 * special.ndtr(x))) for x in (-1.0, 1.0))
"""Quantiles of the magnitude of a standard normal number: 16 % and 84 %."""


@dataclass(frozen=True)
class Sensitivity:
    """What one cut in one window can discover. What does not exist is None, with the reason.

    Attributes
    ----------
    expected_error : tuple of two floats, or None
        Standard deviation that the expectation will have once unblinded, and its error.
    signal_z3, signal_z5 : tuple of two floats, or None
        Signal events in the window that pass, with which half of all experiments have a local z of 3 and 5, and the
        error.
    break_even_efficiency : float or None
        ``signal_z3`` over that without a cut: the cut helps a signal of which a larger fraction passes. None without a
        cut.
    reason : str or None
        Why there is none.
    """

    expected_error: tuple[float, float] | None = None
    signal_z3: tuple[float, float] | None = None
    signal_z5: tuple[float, float] | None = None
    break_even_efficiency: float | None = None
    reason: str | None = None


def critical_counts(z: float, expected: npt.ArrayLike, error: npt.ArrayLike) -> FloatArray:
    """Compute the smallest counts that have a local significance.

    Parameters
    ----------
    z : float
        At least 1.
    expected, error : array_like
        The expectation, above 0, and its standard deviation.

    Returns
    -------
    array, as the arguments
        NaN where no count up to 2^52 has it.
    """
    mu, s = np.broadcast_arrays(np.asarray(expected, dtype=np.float64), np.asarray(error, dtype=np.float64))

    def reached(count: FloatArray) -> BoolArray:
        return np.asarray(local_significance(count, mu, s).z >= z, dtype=np.bool_)

    # a count at or below the mode is no excess
    low, high = np.floor(mu), np.ceil(mu + z * np.sqrt(mu + s**2) + z**2)
    while not bool(np.all(enough := reached(high) | (high >= _MOST))):
        low, high = np.where(enough, low, high), np.where(enough, high, np.minimum(2.0 * high, _MOST))
    while bool(np.any(high - low > 1.0)):
        middle = np.floor(0.5 * (low + high))
        enough = reached(middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reached(high), high, np.nan)


def signal_needed(z: float, expected: npt.ArrayLike, error: npt.ArrayLike) -> FloatArray:
    """Compute the mean number of signal events with which half of all experiments have a local significance.

    Parameters
    ----------
    z : float
        At least 1.
    expected, error : array_like
        The expectation, above 0, and its standard deviation.

    Returns
    -------
    array, as the arguments
        S_Z of the module's head; NaN where no count has the significance.
    """
    mean = special.gammaincinv(critical_counts(z, expected, error), 0.5)
    return np.asarray(mean - np.asarray(expected), dtype=np.float64)


def window_sensitivity(
    counts: SelectedCounts, hunt: WindowHunt, *, spurious: float | None = None, min_events: int = 10
) -> tuple[Sensitivity, ...]:
    """Compute what each cut of a window can discover.

    Parameters
    ----------
    counts : SelectedCounts
        That ``hunt`` was made of. Bins that it hides are unblinded; if it hides none, the errors are those of ``hunt``.
    hunt : WindowHunt
    spurious : float, optional
        From :func:`expected_spurious_signals`; none by default. The errors of an open search have theirs already.
    min_events : int
        As the search has it.

    Returns
    -------
    tuple of Sensitivity
        One per working point.
    """
    value, blinded = (
        np.array([np.nan if x is None else x for x in (getattr(p, name) for p in hunt.working_points)])
        for name in ("expected", "expected_error")
    )
    if counts.hidden.any():
        error, spurious = _unblinded_errors(counts, hunt, min_events), spurious or 0.0
    else:
        error, spurious = blinded, 0.0
    reasons = [_reason(hunt, *point, min_events) for point in zip(hunt.working_points, error, strict=True)]
    use = np.array([reason is None for reason in reasons])
    missed = spurious / value[0]
    value, blinded, error = value[use], blinded[use], error[use]
    # as it is; the expectation up and down; the spurious signal up and down
    factor = np.exp(np.array([[0.0], [1.0], [-1.0], [0.0], [0.0]]) * np.minimum(blinded / value, _LARGEST))
    size = np.array([[1.0], [1.0], [1.0], [_HIGH], [_LOW]])
    expected = value * factor
    total = np.hypot(error * np.sqrt(factor), missed * size * expected)
    three, five = (signal_needed(z, expected, total) for z in (3.0, 5.0))
    rows = iter(zip(total.T, three.T, five.T, strict=True))
    out: list[Sensitivity] = []
    for reason in reasons:
        if reason is not None:
            out.append(Sensitivity(reason=reason))
            continue
        errors, z3, z5 = (_with_error(column) for column in next(rows))
        without = out[0].signal_z3 if out else None
        ratio = None if without is None or z3 is None else z3[0] / without[0]
        out.append(Sensitivity(errors, z3, z5, ratio))
    return tuple(out)


def _with_error(values: FloatArray) -> tuple[float, float] | None:
    """Return a number and its error, from its value and two pairs up and down; None where one does not exist."""
    if not np.isfinite(values).all():
        return None
    return float(values[0]), float(0.5 * np.hypot(values[1] - values[2], values[3] - values[4]))


def _reason(hunt: WindowHunt, point: WorkingPoint, error: float, min_events: int) -> str | None:
    """Return why a working point has no sensitivity; None if it has one."""
    if not hunt.fit.good:
        return "the fit of the inclusive spectrum is poor"
    if point.fitted_events < min_events:
        return f"fewer than {min_events} visible events pass"
    if point.expected is None or not np.isfinite(error):
        return "the fit of the events that pass is poor"
    if not quotable(point.expected, error):
        return f"fewer than {LEAST_EXPECTED:g} events are expected"
    return None


def _unblinded_errors(counts: SelectedCounts, hunt: WindowHunt, min_events: int) -> FloatArray:
    """Compute the errors of the unblinded fits, without a spurious signal: NaN where there is no expectation."""
    hidden, nested, mu = counts.hidden, counts.nested, hunt.fit.expected
    # outside this window, where nothing is hidden any more
    bins = window_bins(counts.edges, hunt.sr)
    gradient = _scaled_gradient(hunt.fit, mu, bins.outside)
    filled = np.where(hidden, mu, nested[0])
    fit = fit_poisson(filled, gradient, np.log(np.maximum(mu, 1e-300)), fitted=bins.outside)
    spectra = InclusiveSpectra(fit.expected, gradient, fit.covariance)
    errors = np.full(len(hunt.working_points), np.nan)
    errors[0] = inclusive_expectations(spectra, bins)[1][0]
    for i, point in enumerate(hunt.working_points[1:], 1):
        if point.spectrum is not None:
            selected = np.where(hidden, counts.share * point.spectrum, nested[i])[None]
            part = selected_expectations(selected, spectra, bins, min_events=min_events, share=counts.share)
            errors[i] = part.error[0]
    return errors


def _scaled_gradient(fit: SpectrumFit, mu: FloatArray, fitted: BoolArray) -> FloatArray:
    """Return the gradient of ln mu in parameters whose information is the identity: the basis is nearly collinear."""
    _, gradient = bin_model(fit.shape, fit.sqrt_s, fit.edges, fit.parameters)
    _, r = np.linalg.qr(np.sqrt(mu[fitted])[:, None] * gradient[fitted])
    return np.asarray(gradient @ np.linalg.inv(r), dtype=np.float64)


def expected_spurious_signals(
    counts: SelectedCounts, fit: SpectrumFit, windows: Sequence[Window]
) -> tuple[float | None, ...]:
    """Compute the root mean square that each window's spurious signal will have once unblinded.

    Parameters
    ----------
    counts : SelectedCounts
        Of any window: the inclusive counts are used, outside the hidden bins.
    fit : SpectrumFit
        Of the visible bins, by the shape of the search.
    windows : sequence of Window

    Returns
    -------
    tuple of float or None
        Events, one per window; None if no alternative describes the data.
    """
    hidden, edges, mu = counts.hidden, counts.edges, fit.expected
    filled = np.where(hidden, mu, counts.nested[0])
    if not np.isfinite(filled).all():
        return (None,) * len(windows)
    unblinded = SelectedCounts(edges, (1.0,), filled[None], np.zeros_like(hidden))
    signals = spurious_signals(unblinded, windows, fit.shape, fit.sqrt_s)
    seen = _scaled_gradient(fit, mu, ~hidden)
    # counts of hidden bins about their expectation, which has an error itself
    covariance = np.diag(mu[hidden]) + (mu[:, None] * seen)[hidden] @ (mu[:, None] * seen)[hidden].T
    out: list[float | None] = []
    fits: dict[tuple[str, bytes], SpectrumFit] = {}
    for window, signal in zip(windows, signals, strict=True):
        inside = window_bins(edges, window).inside
        sizes = []
        for alternative in signal.alternatives:
            if alternative.events is None:
                continue
            fitted = np.ones_like(inside) if alternative.window_included else ~inside
            key = alternative.shape, fitted.tobytes()
            if key not in fits:
                fits[key] = fit_spectrum(filled, edges, None, alternative.shape, fit.sqrt_s, fitted=fitted)
            response = _response(fits[key], fit, inside)[hidden]
            sizes.append(float(np.sqrt(alternative.events**2 + response @ covariance @ response)))
        out.append(max(sizes, default=None))
    return tuple(out)


def _response(alternative: SpectrumFit, nominal: SpectrumFit, inside: BoolArray) -> FloatArray:
    """Compute how the spurious signal of an alternative follows each bin's count, shape (bins,)."""
    other = _scaled_gradient(alternative, alternative.expected, alternative.fitted)
    mine = _scaled_gradient(nominal, nominal.expected, ~inside)
    # the sum inside, less what the shape of the search makes of the same expectation outside
    within = nominal.expected[inside] @ mine[inside]
    weight = np.where(inside, 1.0, -(mine @ within))
    follows = (weight * alternative.expected) @ other @ other.T
    return np.where(alternative.fitted, follows, 0.0)
