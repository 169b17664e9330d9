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
prior of a_1, a_2, a_3 and the test of their number are those of the count (:mod:`drapes_hep.bumphunt.efficiency`); the
degree is chosen with the signal free, so that no signal can choose it.

A negative signal may take more than a bin's background holds. There the mean is continued by an exponential
(:data:`FLOOR`), so that it stays positive and every fit has a minimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.efficiency import DEGREE_LEVEL, DEGREES, EFFICIENCY_PRIOR
from drapes_hep.errors import FitError
from drapes_hep.spectrum.poisson import deviance_p_value

__all__ = ["Background", "PassFailCounts", "PassFailFits", "fit_pass_fail"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

FLOOR = 0.1
"""Fraction of a bin's background below which a negative signal takes away exponentially less."""
LARGEST_EFFICIENCY = 0.999
"""A cut lets some background of every bin fail: the mean of the events that fail stays positive."""
_LARGEST_LOG = 8.0
"""Bound on |ln(mu / mu of the expansion)|, so that a wild step has a finite objective and is halved."""
_BLOCK = 128
"""Fits at a time: some arrays of 165 bins and ten parameters each, which stay near the processor."""
_TOLERANCE = 1e-9
"""On the decrement of ln L: the estimate is then within some 5e-5 standard deviations."""
_ITERATIONS = 200


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
    """

    passed: FloatArray
    failed: FloatArray | None
    share: FloatArray
    signal: FloatArray

    def __len__(self) -> int:
        return len(self.passed)

    def __getitem__(self, rows: slice | IntArray) -> PassFailCounts:
        failed = None if self.failed is None else self.failed[rows]
        return PassFailCounts(self.passed[rows], failed, self.share[rows], self.signal[rows])


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
        inside the range, but for the continuation of negative signals.
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


@dataclass(frozen=True)
class _Model:
    """The means as a function of the parameters (theta, a, S_p, S_f); without a cut (theta, S_p)."""

    mu: FloatArray
    basis: FloatArray
    design: FloatArray

    @property
    def with_cut(self) -> bool:
        return bool(self.design.shape[1] > 0)

    @property
    def size(self) -> int:
        return int(self.basis.shape[1] + self.design.shape[1]) + (2 if self.with_cut else 1)

    @property
    def passing(self) -> int:
        """Place of S_p among the parameters."""
        return int(self.basis.shape[1] + self.design.shape[1])

    @property
    def precision(self) -> FloatArray:
        out, k = np.zeros(self.size), self.basis.shape[1]
        out[k + 1 : k + self.design.shape[1]] = EFFICIENCY_PRIOR**-2
        return out


@dataclass(frozen=True)
class _Minimum:
    parameters: FloatArray
    objective: FloatArray
    information: FloatArray
    converged: BoolArray


def _add_signal(
    background: FloatArray, d_background: FloatArray, signal: FloatArray, d_signal: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Add a signal of any sign to a positive background: the mean, which is positive, and its gradient."""
    x = signal / background
    low = x < FLOOR - 1.0
    tail = FLOOR * np.exp(np.minimum((x - (FLOOR - 1.0)) / FLOOR, 0.0))
    factor, slope = np.where(low, tail, 1.0 + x), np.where(low, tail / FLOOR, 1.0)
    # a mean that underflows would divide by zero
    mean = np.maximum(background * factor, 1e-300)
    gradient = (factor - x * slope)[..., None] * d_background + slope[..., None] * d_signal
    return mean, gradient


def _means(model: _Model, p: FloatArray, counts: PassFailCounts) -> list[tuple[FloatArray, FloatArray]]:
    """Compute the means of the counts that pass and, with a cut, of those that fail, with their gradients."""
    k, last = model.basis.shape[1], model.passing
    t, c = counts.signal, counts.share
    mu = model.mu * np.exp(np.clip(p[:, :k] @ model.basis.T, -_LARGEST_LOG, _LARGEST_LOG))
    d_mu = np.zeros((*mu.shape, model.size))
    d_mu[..., :k] = mu[..., None] * model.basis
    d_signal = np.zeros_like(d_mu)
    if not model.with_cut:
        d_signal[..., last] = t
        return [_add_signal(mu, d_mu, p[:, last, None] * t, d_signal)]
    log_eps = p[:, k:last] @ model.design.T
    eps = np.exp(np.minimum(log_eps, np.log(LARGEST_EFFICIENCY)))
    d_eps = np.zeros_like(d_mu)
    d_eps[..., k:last] = np.where(log_eps < np.log(LARGEST_EFFICIENCY), eps, 0.0)[..., None] * model.design
    d_passed = (c * eps)[..., None] * d_mu + (c * mu)[..., None] * d_eps
    d_signal[..., last] = c * t
    passed = _add_signal(c * mu * eps, d_passed, p[:, last, None] * c * t, d_signal)
    d_other = np.zeros_like(d_mu)
    d_other[..., last], d_other[..., last + 1] = (1.0 - c) * t, t
    other = (p[:, last + 1, None] + (1.0 - c) * p[:, last, None]) * t
    return [passed, _add_signal(mu * (1.0 - c * eps), d_mu - d_passed, other, d_other)]


def _observed(counts: PassFailCounts) -> list[FloatArray]:
    return [counts.passed] if counts.failed is None else [counts.passed, counts.failed]


def _objective(
    model: _Model, p: FloatArray, counts: PassFailCounts
) -> tuple[FloatArray, list[tuple[FloatArray, FloatArray]]]:
    """Compute half the deviance with the prior, and the means."""
    means = _means(model, p, counts)
    value = 0.5 * (p**2 @ model.precision)
    for (mean, _), n in zip(means, _observed(counts), strict=True):
        value = value + special.kl_div(n, mean).sum(axis=1)
    return value, means


def _step(
    model: _Model,
    p: FloatArray,
    counts: PassFailCounts,
    means: list[tuple[FloatArray, FloatArray]],
    free: IntArray,
    damping: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the step of Fisher scoring, its decrement and the information."""
    prior = model.precision[free]
    score = -prior * p[:, free]
    information = np.broadcast_to(np.diag(prior), (len(p), len(free), len(free))).copy()
    for (mean, gradient), n in zip(means, _observed(counts), strict=True):
        used = gradient[..., free]
        score += np.einsum("nb,nbk->nk", n / mean - 1.0, used)
        information += np.swapaxes(used / mean[..., None], 1, 2) @ used
    scale = np.einsum("nkk->nk", information)
    ridge = (1e-12 + damping)[:, None] * scale + 1e-300
    step = np.linalg.solve(information + ridge[:, :, None] * np.eye(len(free)), score[..., None])[..., 0]
    return step, np.einsum("nk,nk->n", score, step), information


def _minimise(model: _Model, counts: PassFailCounts, start: FloatArray, fixed: int | None = None) -> _Minimum:
    """Minimise the objective by Fisher scoring with step halving; a row that no step improves is damped."""
    p, rows = start.copy(), np.arange(len(start))
    free = np.array([i for i in range(model.size) if i != fixed])
    damping, converged = np.zeros(len(p)), np.zeros(len(p), dtype=np.bool_)
    information = np.zeros((len(p), len(free), len(free)))
    value, means = _objective(model, p, counts)
    for _ in range(_ITERATIONS):
        part = counts[rows]
        step, decrement, information[rows] = _step(model, p[rows], part, means, free, damping[rows])
        trial = p[rows]
        trial[:, free] += step
        trial_value = _objective(model, trial, part)[0]
        slack = 1e-10 * (1.0 + np.abs(value[rows]))  # rounding of a sum over many events
        bad, length = ~(trial_value <= value[rows] + slack), 1.0
        while bad.any() and length > 1e-4:
            length *= 0.5
            tried = np.flatnonzero(bad)
            trial[tried] = p[rows[tried]]
            trial[np.ix_(tried, free)] += length * step[tried]
            trial_value[tried] = _objective(model, trial[tried], part[tried])[0]
            bad[tried] = ~(trial_value[tried] <= value[rows[tried]] + slack[tried])
        good = ~bad
        p[rows[good]], value[rows[good]] = trial[good], trial_value[good]
        damping[rows] = np.where(good, 0.3 * damping[rows], np.maximum(10.0 * damping[rows], 1e-3))
        done = (decrement < _TOLERANCE) & good
        converged[rows[done]] = True
        rows = rows[~done & (damping[rows] < 1e6)]
        if not len(rows):
            break
        means = _objective(model, p[rows], counts[rows])[1]
    return _Minimum(p, value, information, converged)


def _extended(model: _Model, parameters: FloatArray) -> FloatArray:
    """Return parameters with one more coefficient of the efficiency's polynomial, 0."""
    return np.insert(parameters, model.passing, 0.0, axis=1)


@dataclass(frozen=True)
class _Pair:
    """Fits with S_p free and with S_p = 0, by one model."""

    model: _Model
    full: _Minimum
    null: _Minimum

    def results(self, counts: PassFailCounts) -> PassFailFits:
        model, full, last = self.model, self.full, self.model.passing
        q0 = np.maximum(2.0 * (self.null.objective - full.objective), 0.0)
        signal = full.parameters[:, last]
        # a direction without information has an infinite error
        damped = full.information + 1e-300 * np.eye(model.size)
        with np.errstate(invalid="ignore"):
            error = np.sqrt(np.linalg.pinv(damped, hermitian=True)[:, last, last])
        means = [mean for mean, _ in _means(model, full.parameters, counts)]
        everything = replace(counts, share=np.ones_like(counts.share))
        without = full.parameters.copy()
        without[:, last:] = 0.0
        background = _means(model, without, everything)[0][0]
        whole = _means(model, full.parameters, everything)[0][0]
        terms = model.design.shape[1]
        return PassFailFits(
            signal=signal, error=error,
            signal_failing=full.parameters[:, last + 1] if model.with_cut else np.zeros_like(signal),
            z=np.sign(signal) * np.sqrt(q0), converged=full.converged & self.null.converged,
            degree=np.full(len(signal), terms - 1),
            p_signal=_goodness(means, counts, model.size),
            p_background=_goodness(
                [mean for mean, _ in _means(model, self.null.parameters, counts)], counts, model.size - 1
            ),
            p_passed=_goodness(means[:1], counts, terms + 1 if model.with_cut else model.size),
            background=background, peak=whole - background,
        )  # fmt: skip


def _goodness(means: list[FloatArray], counts: PassFailCounts, parameters: int) -> FloatArray:
    observed = np.concatenate(_observed(counts)[: len(means)], axis=1)
    expected = np.concatenate(means, axis=1)
    return deviance_p_value(2.0 * special.kl_div(observed, expected).sum(axis=1), expected, parameters)


def _fit_block(background: Background, basis: FloatArray, counts: PassFailCounts) -> PassFailFits:
    if counts.failed is None:
        return _fit_pair(_Model(background.mu, basis, np.empty((len(basis), 0))), counts, None).results(counts)
    pair: _Pair | None = None
    results: PassFailFits | None = None
    for degree in DEGREES:
        model = _Model(background.mu, basis, background.u[:, None] ** np.arange(degree + 1))
        next_pair = _fit_pair(model, counts, pair)
        next_results = next_pair.results(counts)
        if pair is None or results is None:
            pair, results = next_pair, next_results
            continue
        gain = 2.0 * (pair.full.objective - next_pair.full.objective)
        better = (gain > DEGREE_LEVEL) & next_results.converged
        results = _chosen(better, next_results, results)
        pair = next_pair
    assert results is not None
    return results


def _fit_pair(model: _Model, counts: PassFailCounts, before: _Pair | None) -> _Pair:
    """Fit without and with S_p, each from the minimum of the simpler model, so that q0 is not negative."""
    if before is None:
        start = np.zeros((len(counts), model.size))
        if model.with_cut:
            expected = (counts.share * model.mu).sum(axis=1)
            passed = np.maximum(counts.passed.sum(axis=1), 0.5)
            start[:, model.basis.shape[1]] = np.log(np.minimum(passed / expected, 0.9))
    else:
        start = _extended(before.model, before.null.parameters)
    null = _minimise(model, counts, start, fixed=model.passing)
    first = _minimise(model, counts, null.parameters)
    return _Pair(model, first, null)


def _chosen(better: BoolArray, ours: PassFailFits, theirs: PassFailFits) -> PassFailFits:
    """Merge results row by row."""
    merged = {
        name: np.where(better if getattr(ours, name).ndim == 1 else better[:, None], getattr(ours, name), value)
        for name, value in vars(theirs).items()
    }
    return PassFailFits(**merged)


def fit_pass_fail(background: Background, counts: PassFailCounts) -> PassFailFits:
    """Fit a resonance, and no resonance, to many spectra.

    Parameters
    ----------
    background : Background
        Before the cut; one for all fits.
    counts : PassFailCounts
        A row per fit.

    Returns
    -------
    PassFailFits
        A row per fit. A row does not depend on the others.

    Raises
    ------
    FitError
        If a count is negative or not finite (a hidden bin), or the background is not positive.
    """
    for n in _observed(counts):
        if not bool(np.all(np.isfinite(n) & (n >= 0))):
            raise FitError("a bin of the spectrum that a resonance is fitted to is hidden, negative or not finite")
    if not bool(np.all(np.isfinite(background.mu) & (background.mu > 0))):
        raise FitError("the background that a resonance is fitted on is not positive everywhere")
    # in this basis the information is the identity: the shape's own functions are nearly collinear
    _, r = np.linalg.qr(np.sqrt(background.mu)[:, None] * background.gradient)
    basis = background.gradient @ np.linalg.inv(r)
    blocks = [
        _fit_block(background, basis, counts[low : low + _BLOCK]) for low in range(0, max(len(counts), 1), _BLOCK)
    ]
    return PassFailFits(
        **{name: np.concatenate([getattr(block, name) for block in blocks]) for name in vars(blocks[0])}
    )
