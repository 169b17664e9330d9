r"""Upper limits on a signal from one count: CLs with an uncertain background.

The background has the gamma density of :mod:`drapes_hep.bumphunt.significance`, so that its count is negative binomial.
With a signal of s events on average,

.. math:: P(N \le n \mid s) = \sum_{k \le n} \mathrm{Pois}(k; s)\, [1 - I_x(n - k + 1, \alpha)], \qquad
    \mathrm{CL}_s(s) = \frac{P(N \le n \mid s)}{P(N \le n \mid 0)}

(Read, J. Phys. G 28 (2002) 2693). The limit at 95 % is the signal at which CLs falls to 0.05. For n = 0 it is
:math:`-\ln 0.05 = 3.00` whatever the background is, as long as it can have no event.

Where the number of signal events that a cut selects is itself known from a few trainings, the Poisson distribution is
mixed over these: :math:`P(N \le n) = \frac{1}{R} \sum_r P(N \le n \mid s_r)`. No density is assumed for the selected
number; a training that finds nothing, :math:`s_r = 0`, counts as what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from drapes_hep.bumphunt.significance import check_counts
from drapes_hep.errors import FitError

__all__ = ["BAND", "CountLimits", "background_quantiles", "count_cls", "count_limit", "count_limits"]

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
"""Confidence level of a limit."""
BAND = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Standard deviations at which an expected limit is quoted: the median, and the edges of its bands."""
_LEAST_ALONE = 1e-200
"""Probability of a deficit below which no ratio is computed: a model that is this wrong limits nothing."""
_REACH = 12.0
"""Standard deviations of a Poisson distribution outside which nothing is summed; some 1e-32 of it."""


@dataclass(frozen=True)
class CountLimits:
    """Limits on the mean number of signal events in one count.

    Attributes
    ----------
    observed : float or None
        None where nothing was observed yet.
    expected : tuple of five floats
        For the counts at which a background alone is at -2, -1, 0, 1, 2 standard deviations.
    """

    observed: float | None
    expected: tuple[float, ...]


def count_cls(observed: float, expected: float, error: float, signal: npt.ArrayLike) -> FloatArray:
    """Compute CLs of signals.

    Parameters
    ----------
    observed : float
        Count.
    expected, error : float
        The background's expectation, above 0, and its standard deviation.
    signal : array_like, shape (n, replicas) or (n,)
        Mean number of signal events of each hypothesis; the last of two axes is mixed over.

    Returns
    -------
    array, shape (n,)

    Raises
    ------
    FitError
        If the count is not a whole number, the expectation not positive, the error or a signal negative, or the count
        so far below the expectation that a background alone never has it.
    """
    check_counts(observed, expected, error)
    s = np.asarray(signal, dtype=np.float64)
    if not bool(np.all(np.isfinite(s) & (s >= 0))):
        raise FitError("no limit: a number of signal events is negative or not finite")
    alone = float(_background_at_most(observed, expected, error))
    if alone < _LEAST_ALONE:
        raise FitError(
            f"no limit: a background of {expected:g} +- {error:g} alone hardly ever has as few as {observed:g} events"
        )
    each = _at_most(observed, expected, error, s.reshape(-1)).reshape(s.shape)
    mixed = each.mean(axis=1) if s.ndim > 1 else each
    return np.asarray(mixed / alone)


def count_limit(observed: float, expected: float, error: float, level: float = LEVEL) -> float:
    """Compute the upper limit on the mean number of signal events.

    Parameters
    ----------
    observed, expected, error : float
        As :func:`count_cls` has them, which raises the same errors.
    level : float
        Confidence level.

    Returns
    -------
    float
    """

    def cls(signal: float) -> float:
        return float(count_cls(observed, expected, error, [signal])[0])

    # the spread of background and signal together, from above 0 however few events there are
    start = max(observed - expected, 0.0) + 2.0 * np.sqrt(max(observed, expected) + error**2) + 3.0
    return cross_level(cls, 1.0 - level, start)


def cross_level(falling: Callable[[float], float], level: float, start: float) -> float:
    """Return where a function that falls from 1 crosses a level.

    Parameters
    ----------
    falling : callable
        Of one argument, from 0 on.
    level : float
        In (0, 1).
    start : float
        A first guess of the crossing, above 0.

    Returns
    -------
    float
        Infinite where the function stays above the level up to 1e6 times the guess.
    """
    high = start
    while falling(high) > level:
        high *= 2.0
        if high > 1e6 * start:
            return float("inf")
    return float(optimize.brentq(lambda x: falling(x) - level, 0.0, high, xtol=1e-9 * start, rtol=1e-10))


def background_quantiles(expected: float, error: float) -> FloatArray:
    """Return the counts at which a background alone is at the standard deviations of :data:`BAND`.

    Parameters
    ----------
    expected, error : float

    Returns
    -------
    array, shape (5,)
        The smallest counts that a background does not exceed with at least these probabilities.
    """
    check_counts(0.0, expected, error)
    p = special.ndtr(np.array(BAND))
    if error**2 < 1e-12 * expected:
        return np.asarray(stats.poisson.ppf(p, expected), dtype=np.float64)
    alpha = expected**2 / error**2 + 1.0
    return np.asarray(stats.nbinom.ppf(p, alpha, expected / (expected + error**2)), dtype=np.float64)


def count_limits(observed: float | None, expected: float, error: float, level: float = LEVEL) -> CountLimits:
    """Compute observed and expected limits on the mean number of signal events.

    Parameters
    ----------
    observed : float or None
        None for a count that is hidden.
    expected, error : float
        As :func:`count_cls` has them, which raises the same errors.
    level : float

    Returns
    -------
    CountLimits
    """
    own = None if observed is None else count_limit(observed, expected, error, level)
    band = tuple(count_limit(float(n), expected, error, level) for n in background_quantiles(expected, error))
    return CountLimits(own, band)


def _background_at_most(n: npt.ArrayLike, expected: float, error: float) -> FloatArray:
    """Compute P(N <= n) of the background alone; 0 below 0."""
    n = np.asarray(n, dtype=np.float64)
    k = np.maximum(n, 0.0)
    if error**2 < 1e-12 * expected:
        below = special.gammaincc(k + 1.0, expected)
    else:
        x = error**2 / (error**2 + expected)
        below = special.betaincc(k + 1.0, expected**2 / error**2 + 1.0, x)
    return np.where(n < 0, 0.0, below)


def _at_most(n: float, expected: float, error: float, signal: FloatArray) -> FloatArray:
    """Compute P(N <= n) with each signal, shape (n,)."""
    out = np.empty(len(signal))
    for place, s in enumerate(signal):
        reach = _REACH * np.sqrt(s) + 40.0
        k = np.arange(max(0.0, np.floor(s - reach)), min(n, np.ceil(s + reach)) + 1.0)
        out[place] = (
            np.exp(special.xlogy(k, s) - s - special.gammaln(k + 1.0)) * _background_at_most(n - k, expected, error)
        ).sum()
    return out
