r"""Fits of a resonance to the events that pass a cut and to those that fail, many at once. Masses in GeV.

Bin i of the whole fitted range, window included, holds a background of mean :math:`\mu_i(\theta)`, of which the
fraction :math:`\epsilon_i = \exp(a_0 + a_1 u_i + a_2 u_i^2 [+ a_3 u_i^3])` passes, and a signal of shape :math:`t_i`,
of which :math:`S_p` events pass and :math:`S_f` fail. Events that pass are counted with the share :math:`c_i` (1 inside
the window; outside it, the part of the sidebands that no model was trained on). Then

.. math::
    pass_i &\sim \mathrm{Pois}(c_i (\mu_i \epsilon_i + S_p t_i)), \\
    fail_i &\sim \mathrm{Pois}(\mu_i (1 - c_i \epsilon_i) + S_f t_i + (1 - c_i) S_p t_i):

an event that passes without being counted is among those that fail. Without a cut there are only the first counts, with
:math:`\epsilon_i = c_i = 1`. The test statistic is :math:`q_0 = 2 (\ln L(\hat S_p) - \ln L(0))` with :math:`S_f` free
in both.

:math:`\ln \mu` is linear in the parameters up to the average over a bin, so it is expanded to first order around one
fit. The expansion is exact but for the change of that average, which is of second order in the width of a bin. The
prior of a_1, a_2, a_3 and the test of their number are those of the count (:mod:`drapes_hep.bumphunt.expectation`); the
degree is chosen with the signal free, so that no signal can choose it.

A negative signal may take more than a bin's background holds. There the mean is continued by an exponential
(:data:`drapes_hep.bumphunt.pass_fail_likelihood.FLOOR`), so that it stays positive and every fit has a minimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.expectation import DEGREE_LEVEL, DEGREES
from drapes_hep.bumphunt.fisher_scoring import TOLERANCE, Minimum, minimise
from drapes_hep.bumphunt.pass_fail_likelihood import Counts, Model, PassFailLikelihood, means
from drapes_hep.errors import FitError
from drapes_hep.spectrum.poisson import deviance_p_value, well_conditioned

__all__ = ["Background", "PassFailCounts", "PassFailFits", "fit_pass_fail"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

LARGEST_DEFICIT = 2.0
"""A deficit beyond this number of signals that take all of one bin's background has a penalty.

At 1, z without a signal has a width of 0.955 where ten events are under it, as a part of its lower half is cut off; at
2 and 3 it has 0.980 and 0.982, at infinity 0.982. Without a penalty nothing ends a deficit where no event is: a signal
of -1e8 events makes the template's far tails a hole.
"""
_BLOCK = 128
"""Fits at a time: some arrays of 165 bins and ten parameters each, which stay near the processor."""


@dataclass(frozen=True)
class Background:
    """The background before the cut, and how it may change.

    Attributes
    ----------
    mu : array, shape (bins,)
        Expectation of the fit that ln mu is expanded around; positive.
    gradient : array, shape (bins, k)
        Of ln mu in the parameters.
    u : array, shape (bins,)
        Centres of the bins, from -1 to 1 over the fitted range.
    """

    mu: FloatArray
    gradient: FloatArray
    u: FloatArray


@dataclass(frozen=True)
class PassFailCounts:
    """What n fits are made to.

    Attributes
    ----------
    passed : array, shape (n, bins)
        Counted events that pass; without a cut, all.
    failed : array, shape (n, bins), or None
        All others; None without a cut.
    share : array, shape (n, bins)
        c of the module's head; 1 without a cut.
    signal : array, shape (n, bins)
        t of the module's head: the fraction of the signal in each bin.
    included : array, shape (n, bins), or None
        The same of a second signal that is in the fits with and without the first, free in both.
    """

    passed: FloatArray
    failed: FloatArray | None
    share: FloatArray
    signal: FloatArray
    included: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.passed)

    def __getitem__(self, rows: slice | IntArray | BoolArray) -> PassFailCounts:
        failed = None if self.failed is None else self.failed[rows]
        included = None if self.included is None else self.included[rows]
        return PassFailCounts(self.passed[rows], failed, self.share[rows], self.signal[rows], included)


@dataclass(frozen=True)
class PassFailFits:
    """Results of n fits.

    Attributes
    ----------
    signal, error : array, shape (n,)
        S_p in events of the whole mass range, fitted or not, and its standard error.
    signal_failing : array, shape (n,)
        S_f; 0 without a cut.
    z : array, shape (n,)
        sign(S_p) sqrt(q0).
    converged : array of bool, shape (n,)
        Of both fits, with and without S_p.
    degree : array of int, shape (n,)
        Of the efficiency's polynomial; -1 without a cut.
    p_signal, p_background : array, shape (n,)
        Goodness of fit with S_p free and with S_p = 0: p-values of the deviance of all counts.
    p_passed : array, shape (n,)
        With S_p free, of the counts that pass alone.
    background, peak : array, shape (n, bins)
        Fitted background and signal that pass, all events counted (c = 1); the second sums to S_p times the fraction
        inside the range, but for the continuation of negative signals. A second signal belongs to the background.
    full_passed, full_failed, null_passed, null_failed : array, shape (n, bins)
        Means of the counts with S_p free, and with S_p = 0; of those that fail, 0 without a cut.
    """

    signal: FloatArray
    error: FloatArray
    signal_failing: FloatArray
    z: FloatArray
    converged: BoolArray
    degree: IntArray
    p_signal: FloatArray
    p_background: FloatArray
    p_passed: FloatArray
    background: FloatArray
    peak: FloatArray
    full_passed: FloatArray
    full_failed: FloatArray
    null_passed: FloatArray
    null_failed: FloatArray

    def rows(self, rows: slice | IntArray) -> PassFailFits:
        """Return the results of some fits."""
        return PassFailFits(**{name: values[rows] for name, values in vars(self).items()})


def _extended(model: Model, parameters: FloatArray) -> FloatArray:
    """Return parameters with one more coefficient of the efficiency's polynomial, 0."""
    return np.insert(parameters, model.passing, 0.0, axis=1)


def _results(model: Model, full: Minimum, null: Minimum, counts: Counts) -> PassFailFits:
    last, size = model.passing, model.size
    q0 = np.maximum(2.0 * (null.objective - full.objective), 0.0)
    signal = full.parameters[:, last]
    # a direction without information has an infinite error
    damped = full.information + 1e-300 * np.eye(size)
    # the penalty is no measurement
    distance, rate = counts.beyond(signal)
    damped[:, last, last] -= np.where(distance < 0, rate**2, 0.0)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.linalg.pinv(damped, hermitian=True)[:, last, last])
    fitted = [part.mean for part in means(model, full.parameters, counts)]
    nulls = [part.mean for part in means(model, null.parameters, counts)]
    everything = replace(counts, share=np.ones_like(counts.share))
    without = full.parameters.copy()
    without[:, last : last + (2 if model.with_cut else 1)] = 0.0
    background = means(model, without, everything)[0].mean
    whole = means(model, full.parameters, everything)[0].mean
    terms, signals = model.design.shape[1], model.signals
    return PassFailFits(
        signal=signal, error=error,
        signal_failing=full.parameters[:, last + 1] if model.with_cut else np.zeros_like(signal),
        z=np.sign(signal) * np.sqrt(q0), converged=full.converged & null.converged,
        degree=np.full(len(signal), terms - 1),
        p_signal=_goodness(fitted, counts, size), p_background=_goodness(nulls, counts, size - 1),
        p_passed=_goodness(fitted[:1], counts, terms + signals if model.with_cut else size),
        background=background, peak=whole - background, full_passed=fitted[0], null_passed=nulls[0],
        full_failed=fitted[1] if model.with_cut else np.zeros_like(nulls[0]),
        null_failed=nulls[1] if model.with_cut else np.zeros_like(nulls[0]),
    )  # fmt: skip


def _goodness(expected_counts: list[FloatArray], counts: Counts, parameters: int) -> FloatArray:
    observed = np.concatenate(counts.observed[: len(expected_counts)], axis=1)
    expected = np.concatenate(expected_counts, axis=1)
    return deviance_p_value(2.0 * special.kl_div(observed, expected).sum(axis=1), expected, parameters)


def _fit_block(background: Background, basis: FloatArray, data: PassFailCounts, tolerance: float) -> PassFailFits:
    """Fit without and with S_p, each from the minimum of the simpler model, so that q0 is not negative."""
    templates = [data.signal] if data.included is None else [data.signal, data.included]
    observed = (data.passed,) if data.failed is None else (data.passed, data.failed)
    counts = Counts(observed, data.share, np.stack(templates, axis=1), np.full(len(data), -np.inf))
    degrees = (-1,) if data.failed is None else DEGREES
    powers = [background.u[:, None] ** np.arange(degree + 1) for degree in degrees]
    models = [Model(background.mu, basis, design, len(templates)) for design in powers]
    first = models[0]
    start = np.zeros((len(data), first.size))
    if first.with_cut:
        expected = (counts.share * first.mu).sum(axis=1)
        passed = np.maximum(data.passed.sum(axis=1), 0.5)
        start[:, first.basis.shape[1]] = np.log(np.minimum(passed / expected, 0.9))
    null = minimise(PassFailLikelihood.of(first, counts), start, first.passing, tolerance)
    under = means(first, null.parameters, counts)[0].mean / data.share
    counts = replace(counts, least=-LARGEST_DEFICIT * (under / np.maximum(data.signal, 1e-300)).min(axis=1))
    full = minimise(PassFailLikelihood.of(first, counts), null.parameters, None, tolerance)
    results = _results(first, full, null, counts)
    null_start = null.parameters
    for before, model in pairwise(models):
        null_start, start = _extended(before, null_start), _extended(before, full.parameters)
        larger = minimise(PassFailLikelihood.of(model, counts), start, None, tolerance)
        better = np.flatnonzero((2.0 * (full.objective - larger.objective) > DEGREE_LEVEL) & larger.converged)
        full = larger
        if len(better):
            part = counts.rows(better)
            chosen = Minimum(*(values[better] for values in vars(larger).values()))
            smaller = minimise(PassFailLikelihood.of(model, part), null_start[better], model.passing, tolerance)
            _replace(results, better, _results(model, chosen, smaller, part))
    return results


def _replace(results: PassFailFits, rows: IntArray, ours: PassFailFits) -> None:
    """Replace rows of results, in place."""
    for name, values in vars(ours).items():
        getattr(results, name)[rows] = values


def fit_pass_fail(background: Background, counts: PassFailCounts, tolerance: float = TOLERANCE) -> PassFailFits:
    """Fit a resonance, and no resonance, to many spectra.

    Parameters
    ----------
    background : Background
        Before the cut; one for all fits.
    counts : PassFailCounts
        A row per fit.
    tolerance : float
        On the decrement of ln L at which a fit ends; q0 has an error of this order.

    Returns
    -------
    PassFailFits
        A row per fit. A row does not depend on the others.

    Raises
    ------
    FitError
        If a count is negative or not finite (a hidden bin), or the background is not positive.
    """
    for n in (counts.passed, counts.failed):
        if n is not None and not bool(np.all(np.isfinite(n) & (n >= 0))):
            raise FitError("a bin of the spectrum that a resonance is fitted to is hidden, negative or not finite")
    if not bool(np.all(np.isfinite(background.mu) & (background.mu > 0))):
        raise FitError("the background that a resonance is fitted on is not positive everywhere")
    basis = well_conditioned(background.gradient, background.mu)
    starts = range(0, max(len(counts), 1), _BLOCK)
    blocks = [_fit_block(background, basis, counts[low : low + _BLOCK], tolerance) for low in starts]
    return PassFailFits(
        **{name: np.concatenate([getattr(block, name) for block in blocks]) for name in vars(blocks[0])}
    )
