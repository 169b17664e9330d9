r"""How unlikely a count is, given an expectation with an uncertainty.

The expectation :math:`\mu` with standard deviation s is treated as a measurement outside the signal region, in counts:
an *off* region :math:`\tau = \mu / s^2` times as large, in which :math:`n_{off} = \mu^2 / s^2` events were counted.
With a flat prior in the mean of the off count, the background in the signal region has a gamma density,

.. math:: \alpha = \mu^2 / s^2 + 1, \quad \text{rate } \mu / s^2, \quad
    \text{mean } \mu + s^2 / \mu, \quad \text{variance } s^2 (1 + s^2 / \mu^2),

whose mode is :math:`\mu`. The count is then negative binomial, with a closed tail,

.. math:: p = P(N \ge n) = I_x(n, \alpha), \quad x = s^2 / (s^2 + \mu)

(regularised incomplete beta function), and the Poisson tail for s = 0. This is Z_Bi (Cousins, Linnemann and Tucker,
NIM A 595 (2008) 480, arXiv:physics/0702156): for whole :math:`n_{off}` it is also the exact binomial test of the ratio
of two Poisson means, so that p is never too small on average. A gamma density with mean :math:`\mu` instead
(:math:`\alpha = \mu^2 / s^2`) makes an excess of few events *more* significant as s grows, since its mass gathers at 0.

Numerics. With :math:`t = s^2 / \mu^2` the tail is the count's own probability times a continued fraction. Both are
written in :math:`\mu` and t alone, so that they tend to the Poisson's as t goes to 0, and the probability in saddle
point form (Loader, Fast and accurate computation of binomial probabilities, 2000), in which nothing large cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.errors import FitError

__all__ = ["LocalSignificance", "check_counts", "local_log_p", "local_significance"]

_MOST = 2.0**53
"""Beyond it a double cannot tell one count from the next."""

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_FAR = 1e-3
"""Tails below this come from the continued fraction, which takes some 100 terms here for a million events, and more
nearer the mean. (scipy's gammainc is off by 3e-7 in ln p five standard deviations above a mean of a million.)"""
_POISSON = 1e-9
"""Where s / mu times the count is less, the error's relative effect on p, about its square, is less than rounding."""
_STIRLING = np.array([1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156])
"""Coefficients of Stirling's series in odd inverse powers (DLMF 5.11.1)."""


@dataclass(frozen=True)
class LocalSignificance:
    """Tail probabilities of counts, arrays of one shape; NaN where nothing is quoted.

    Attributes
    ----------
    log_p : array
        Natural logarithm, finite however small p is.
    p : array
        At least the smallest normal double (2e-308).
    z : array
        Standard deviations, one-sided; NaN where nothing was observed (p = 1).
    """

    log_p: FloatArray
    p: FloatArray
    z: FloatArray


def local_significance(
    observed: npt.ArrayLike, expected: npt.ArrayLike, error: npt.ArrayLike, quoted: npt.ArrayLike = True
) -> LocalSignificance:
    """Compute the probability of a count at least as large as the one observed, and its significance.

    Parameters
    ----------
    observed : array_like
        Counts.
    expected, error : array_like
        The expectation, above 0, and its standard deviation. An error of 0 gives the Poisson tail.
    quoted : array_like of bool
        Whether there is anything to quote. Where false the other arguments are not looked at, and the results are NaN.

    Returns
    -------
    LocalSignificance
        Shaped as the arguments broadcast together.

    Raises
    ------
    FitError
        If a quoted count is not a whole number from 0 to 2^53, a quoted expectation is not positive and finite, or its
        error is negative or not finite.
    """
    use, n, mu, s = _quoted(observed, expected, error, quoted)
    log_p, lower = _log_tail(n, mu, s)
    tiny = np.finfo(np.float64).tiny
    # from the smaller tail, which is the accurate one
    z = np.where(
        lower < 0.5,
        special.ndtri_exp(np.log(np.clip(lower, tiny, 1.0))),
        -special.ndtri_exp(np.minimum(log_p, -1e-300)),
    )
    out = LocalSignificance(*(np.full(use.shape, np.nan) for _ in range(3)))
    out.log_p[use], out.p[use] = log_p, np.maximum(np.exp(log_p), tiny)
    out.z[use] = np.where(n < 1, np.nan, z)
    return out


def local_log_p(
    observed: npt.ArrayLike, expected: npt.ArrayLike, error: npt.ArrayLike, quoted: npt.ArrayLike = True
) -> FloatArray:
    """Compute ``local_significance(...).log_p`` alone, in half the time.

    Parameters
    ----------
    observed, expected, error, quoted : array_like
        As :func:`local_significance` has them, which raises the same errors.

    Returns
    -------
    array
    """
    use, n, mu, s = _quoted(observed, expected, error, quoted)
    out = np.full(use.shape, np.nan)
    out[use] = _log_tail(n, mu, s)[0]
    return out


def check_counts(observed: npt.ArrayLike, expected: npt.ArrayLike, error: npt.ArrayLike) -> None:
    """Refuse what no probability can be computed of.

    Parameters
    ----------
    observed, expected, error : array_like
        As :func:`local_significance` has them.

    Raises
    ------
    FitError
        If a count is not a whole number from 0 to 2^53, an expectation is not positive and finite, or its error is
        negative or not finite.
    """
    n, mu, s = (np.asarray(a, dtype=np.float64) for a in (observed, expected, error))
    for what, values, good, problem in (
        ("count", n, (n >= 0) & (n <= _MOST) & (np.rint(n) == n), "is not a whole number from 0 to 2^53"),
        ("expectation", mu, np.isfinite(mu) & (mu > 0), "is not positive and finite"),
        ("error of an expectation", s, np.isfinite(s) & (s >= 0), "is negative or not finite"),
    ):
        if not bool(good.all()):
            raise FitError(f"no result: the {what} {values[~good].flat[0]:g} {problem}")


def _quoted(
    observed: npt.ArrayLike, expected: npt.ArrayLike, error: npt.ArrayLike, quoted: npt.ArrayLike
) -> tuple[BoolArray, FloatArray, FloatArray, FloatArray]:
    """Return where something is quoted, and the arguments there, which are checked."""
    *numbers, quote = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64) for a in (observed, expected, error)), quoted
    )
    use = np.asarray(quote, dtype=np.bool_)
    n, mu, s = (a[use] for a in numbers)
    check_counts(n, mu, s)
    return use, n, mu, s


def _log_tail(n: FloatArray, mu: FloatArray, s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute ln P(N >= n), and P(N < n) where that is the smaller of the two; elsewhere 1."""
    k = np.maximum(n, 1.0)
    with np.errstate(over="ignore"):
        relative = s / mu
        v = np.minimum(s * relative, 1e300)
        poisson = relative * np.maximum(k, mu) < _POISSON
    t = np.minimum(relative, 1e150) ** 2
    alpha = 1.0 + 1.0 / np.where(poisson, 1.0, t)
    # by x and 1 - x as they are: differences from 1 would lose their digits
    x, rest = v / (1.0 + v), 1.0 / (1.0 + v)
    # betaincc takes ten times as long as betainc with the arguments exchanged, which is as good where neither is small
    medium = ~poisson & (v > 0.1) & (v < 10.0)
    below, above = ~poisson & (v <= 0.1), ~poisson & (v >= 10.0)
    upper, lower = np.empty_like(mu), np.ones_like(mu)
    for some, tail, arguments, other, exchanged in (
        (poisson, special.gammainc, (k, mu), special.gammaincc, (k, mu)),
        (below, special.betainc, (k, alpha, x), special.betaincc, (k, alpha, x)),
        (medium, special.betainc, (k, alpha, x), special.betainc, (alpha, k, rest)),
        (above, special.betaincc, (alpha, k, rest), special.betainc, (alpha, k, rest)),
    ):
        if some.any():
            # of a deficit the lower tail is the smaller one, most often, and all that is needed
            deficit = some & (n < mu)
            lower[deficit] = other(*(a[deficit] for a in exchanged))
            upper[deficit] = 1.0 - lower[deficit]
            larger = some & ~(deficit & (lower < 0.5))
            upper[larger] = tail(*(a[larger] for a in arguments))
            lower[larger & deficit] = 1.0
            less = larger & (upper > 0.5)
            lower[less] = other(*(a[less] for a in exchanged))
    tiny = np.finfo(np.float64).tiny
    # from the smaller tail, which is the accurate one
    log_p = np.where(upper > 0.5, np.log1p(-np.minimum(lower, 0.5)), np.log(np.maximum(upper, tiny)))
    far = (upper < _FAR) & (n > mu + v)
    if bool(far.any()):
        log_p[far] = _log_probability(n[far], mu[far], t[far], v[far]) + _log_tail_ratio(
            n[far], mu[far], t[far], v[far]
        )
    return np.where(n < 1, 0.0, log_p), lower


def _log_probability(n: FloatArray, mu: FloatArray, t: FloatArray, v: FloatArray) -> FloatArray:
    """Compute ln P(N = n) for n > 0; t is s^2 / mu^2 and v is s^2 / mu.

    With the binomial deviance, ``n D(n, (n + alpha) x) + alpha D(alpha, (n + alpha)(1 - x))``, written in the distance
    of the count from the mean, which both terms share.
    """
    inverse = t / (1.0 + t)  # of alpha, which may be too large for a double
    distance = (n - mu * (1.0 + t)) / (1.0 + v)
    background = np.log1p(n * inverse) - np.log1p(v)
    signal = np.log(mu) - np.log(n) + np.log1p(t * (1.0 + n)) - np.log1p(v)
    deviance = distance**2 * (
        _curvature(-distance / n, signal) / n + _curvature(distance * inverse, background) * inverse
    )
    norm = -0.5 * (np.log(2.0 * np.pi * n) + np.log1p(n * inverse))
    finite = inverse > 1e-200
    alpha = 1.0 / np.where(finite, inverse, 1.0)
    steps = np.where(finite, _stirling_error(n + alpha) - _stirling_error(alpha), 0.0)
    return np.asarray(norm - _stirling_error(n) + steps - deviance)


def _curvature(e: FloatArray, log1p: FloatArray) -> FloatArray:
    """Compute (e - ln(1 + e)) / e^2, the logarithm of ``log1p`` where e is not small: 1 + e may be tiny."""
    k = np.arange(14)
    small = np.abs(e) < 0.05
    series = np.polynomial.polynomial.polyval(np.where(small, e, 0.0), (-1.0) ** k / (k + 2.0))
    safe = np.where(small, 1.0, e)
    return np.asarray(np.where(small, series, (safe - log1p) / safe**2))


def _stirling_error(v: FloatArray) -> FloatArray:
    """Compute ln v! less Stirling's formula for it."""
    small = v < 12.0
    low, high = np.where(small, v, 1.0), np.where(small, 12.0, v)
    exact = special.gammaln(low + 1.0) - (low + 0.5) * np.log(low) + low - 0.5 * np.log(2.0 * np.pi)
    return np.asarray(np.where(small, exact, np.polynomial.polynomial.polyval(high**-2.0, _STIRLING) / high))


def _log_tail_ratio(n: FloatArray, mu: FloatArray, t: FloatArray, v: FloatArray) -> FloatArray:
    """Compute ln(P(N >= n) / P(N = n)) for n above the mean (continued fraction DLMF 8.17.22, modified Lentz)."""
    x, scaled = v / (1.0 + v), mu * (1.0 + t) / (1.0 + v)  # alpha x
    c = np.ones_like(x)
    d = 1.0 / np.maximum(1.0 - (n * x + scaled) / (n + 1.0), 1e-300)
    h = d.copy()
    for m in range(1, 100_000):
        even = m * (scaled - m * x) / ((n + 2 * m - 1.0) * (n + 2 * m))
        d = 1.0 / (1.0 + even * d)
        c = 1.0 + even / c
        h *= d * c
        odd = -(n + m) * (scaled + (n + m) * x) / ((n + 2 * m) * (n + 2 * m + 1.0))
        d = 1.0 / (1.0 + odd * d)
        c = 1.0 + odd / c
        change = d * c
        h *= change
        if bool(np.all(np.abs(change - 1.0) < 1e-15)):
            break
    return np.asarray(np.log(h))
