r"""Newton's method for many Poisson regressions, compiled: each spectrum is fitted on its own, near the processor.

The counts enter :math:`L = \sum_i (\mu_i - n_i \ln \mu_i) + \tfrac12 \sum_k \lambda_k \theta_k^2` only through
:math:`X^T n` and constants. A step costs the exponentials of the bins and the sums of :math:`\mu` times the different
products of two functions of the design, of which a polynomial has few. The last step is so small that a cubic serves
for its exponential.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drapes_hep.compiled import compiled, exponentials, inlined

__all__ = ["Design", "Nodes", "Results", "fit_rows", "make_design"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
UIntArray = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]

ITERATIONS = 60
TOLERANCE = 1e-6
"""On the decrement of L before the last step, which leaves about its square."""
MAX_LOG = 100.0
"""Bound on ln mu, so that a wild step gives a huge but finite objective and is halved."""
SMALL = 0.02
"""Change of ln mu up to which a cubic serves for the exponential, to 1e-8."""


class Design(NamedTuple):
    """What the fits have in common.

    Attributes
    ----------
    whole : array, shape (k, all bins)
        X^T of all bins.
    fitted, rest : arrays of unsigned int
        The bins that are fitted, and the others. (A compiled loop need not ask whether they count from the end.)
    x : array, shape (k, bins)
        X^T of the fitted bins.
    pairs : array, shape (products, bins)
        The different products of two of the functions (1, x), those of the first functions first.
    places : array of unsigned int, shape (1 + k, 1 + k)
        Which of them each pair has.
    needed : array of unsigned int, shape (1 + k,)
        How many of them the first so many parameters have.
    precision : array, shape (k,)
        lambda.
    reach : float
        Largest norm of x in a fitted bin.
    """

    whole: FloatArray
    fitted: UIntArray
    rest: UIntArray
    x: FloatArray
    pairs: FloatArray
    places: UIntArray
    needed: UIntArray
    precision: FloatArray
    reach: float


class Nodes(NamedTuple):
    """Moments of a bin's deviance at equal steps of ln mu.

    Attributes
    ----------
    first, per_unit : float
        ln mu of the first, and how many a unit of it.
    moments : array, shape (nodes, 4)
        Mean and variance, and how much they change to the next node.
    """

    first: float
    per_unit: float
    moments: FloatArray


class Results(NamedTuple):
    """What the fits of n spectra are written to.

    Attributes
    ----------
    theta : array, shape (n, k)
        Before, the start, in the first columns; 0 in the others.
    covariance : array, shape (n, k, k)
        Before, 0.
    mu : array, shape (n, all bins)
    deviance : array, shape (n,)
    moments : array, shape (n, 2)
        Sums over the fitted bins of the mean and the variance of a bin's deviance.
    parameters : array of int, shape (n,)
    converged : array of bool, shape (n,)
    """

    theta: FloatArray
    covariance: FloatArray
    mu: FloatArray
    deviance: FloatArray
    moments: FloatArray
    parameters: IntArray
    converged: BoolArray


def make_design(design: FloatArray, fitted: BoolArray, precision: FloatArray) -> Design:
    """Prepare a design for :func:`fit_rows`.

    Parameters
    ----------
    design : array, shape (all bins, k)
    fitted : array of bool, shape (all bins,)
    precision : array, shape (k,)

    Returns
    -------
    Design
    """
    whole = np.ascontiguousarray(design.T)
    return _design(whole.shape[0], whole.tobytes(), fitted.tobytes(), precision.tobytes())


@lru_cache(maxsize=128)
def _design(k: int, design: bytes, fitted: bytes, precision: bytes) -> Design:
    whole, use = np.frombuffer(design).reshape(k, -1), np.frombuffer(fitted, dtype=np.bool_)
    x = np.ascontiguousarray(whole[:, use])
    functions = np.concatenate([np.ones((1, x.shape[1])), x])
    # pairs by the later function, so that fewer functions have the first of them
    later, earlier = np.tril_indices(k + 1)
    pairs = functions[later] * functions[earlier]
    # powers have equal products, and a constant none of its own
    distance = np.abs(pairs[:, None] - pairs).max(axis=2)
    first = (distance <= 1e-14 * np.abs(pairs).max(axis=1)).argmax(axis=1)
    different, place = np.unique(first, return_inverse=True)
    places = np.zeros((k + 1, k + 1), dtype=np.uint64)
    places[later, earlier] = places[earlier, later] = place
    return Design(
        whole=whole.copy(),
        fitted=np.flatnonzero(use).astype(np.uint64),
        rest=np.flatnonzero(~use).astype(np.uint64),
        x=x,
        pairs=np.ascontiguousarray(pairs[different]),
        places=places,
        needed=np.array([places[: i + 1, : i + 1].max() + 1 for i in range(k + 1)]),
        precision=np.frombuffer(precision).copy(),
        reach=float(np.linalg.norm(x, axis=0).max()),
    )


@inlined
def _add(base: FloatArray, x: FloatArray, theta: FloatArray, eta: FloatArray) -> None:
    """Compute ln mu."""
    for i in range(len(eta)):
        eta[i] = base[i]
    for a in range(len(theta)):
        coefficient = theta[a]
        for i in range(len(eta)):
            eta[i] += coefficient * x[a, i]


@inlined
def _objective(
    pairs: FloatArray, theta: FloatArray, statistic: FloatArray, precision: FloatArray, mu: FloatArray, sums: FloatArray
) -> float:
    """Compute L up to a constant, and the sums of mu times each pair of functions; the first pair is 1."""
    for q in range(len(sums)):
        total = 0.0
        for i in range(len(mu)):
            total += mu[i] * pairs[q, i]
        sums[q] = total
    value: float = sums[0]
    for a in range(len(theta)):
        value += (0.5 * precision[a] * theta[a] - statistic[a]) * theta[a]
    return value


@inlined
def _invert(places: UIntArray, precision: FloatArray, sums: FloatArray, inverse: FloatArray) -> None:
    """Invert the penalised information, by Gauss-Jordan elimination: a positive definite matrix needs no pivots."""
    k, trace = len(precision), 0.0
    for a in range(k):
        for b in range(k):
            inverse[a, b] = sums[places[1 + a, 1 + b]]
        inverse[a, a] += precision[a]
        trace += inverse[a, a]
    for a in range(k):
        # a spectrum that has run to mu = 0 keeps an invertible matrix; 1e-13 of the scale is below rounding otherwise
        inverse[a, a] += 1e-13 * trace + 1e-300
    for j in range(k):
        pivot = 1.0 / inverse[j, j]
        inverse[j, j] = 1.0
        for b in range(k):
            inverse[j, b] *= pivot
        for a in range(k):
            if a != j:
                factor = inverse[a, j]
                inverse[a, j] = 0.0
                for b in range(k):
                    inverse[a, b] -= factor * inverse[j, b]


@inlined
def _step(score: FloatArray, inverse: FloatArray, step: FloatArray) -> float:
    """Compute Newton's step, and its decrement."""
    decrement = 0.0
    for a in range(len(score)):
        total = 0.0
        for b in range(len(score)):
            total += inverse[a, b] * score[b]
        step[a] = total
        decrement += total * score[a]
    return decrement


@inlined
def _drop(decrement: float, k: int, inverse: FloatArray, reach: float) -> float:
    """Bound by how much L may still fall, or return infinity: see :func:`fit_rows`."""
    trace = 0.0
    for a in range(k):
        trace += inverse[a, a]
    c = 4.0 * reach * np.sqrt(max(decrement * trace, 1e-12))
    psi = 2.0 * (np.exp(-c) + c - 1.0) / c**2
    return 0.5 * decrement / psi if psi >= 0.5 else np.inf


@inlined
def _move(
    zero: FloatArray, x: FloatArray, step: FloatArray, eta: FloatArray, mu: FloatArray, delta: FloatArray
) -> None:
    """Take the last step."""
    _add(zero, x, step, delta)
    for i in range(len(mu)):
        eta[i] += delta[i]
        mu[i] *= 1.0 + delta[i] * (1.0 + delta[i] * (0.5 + delta[i] * (1.0 / 6.0)))


@inlined
def _minimise(
    design: Design,
    k: int,
    gain: float,
    theta: FloatArray,
    statistic: FloatArray,
    inverse: FloatArray,
    curves: FloatArray,
) -> bool:
    """Fit the first k parameters, from theta, whose ln mu and mu are known, to the minimum of L.

    Returns whether it was reached, and L fell by more than the gain. ``curves`` are the offset, ln mu, mu, two more of
    these for a trial, and 0.
    """
    x, places, precision = design.x, design.places, design.precision[:k]
    pairs = design.pairs[: design.needed[k]]
    base, eta, mu, new_eta, new_mu, zero = curves[0], curves[1], curves[2], curves[3], curves[4], curves[5]
    sums, score, step, trial = np.empty(len(pairs)), np.empty(k), np.empty(k), np.empty(k)
    value = _objective(pairs, theta[:k], statistic, precision, mu, sums)
    first = value
    for _ in range(ITERATIONS):
        for a in range(k):
            score[a] = statistic[a] - sums[places[0, 1 + a]] - precision[a] * theta[a]
        _invert(places, precision, sums, inverse)
        decrement = _step(score, inverse, step)
        if gain > -np.inf and first - value + _drop(decrement, k, inverse, design.reach) <= gain:
            return False
        # rounding of a sum over many events
        slack = 1e-10 * (1.0 + abs(value)) if decrement < 1.0 else 0.0
        length = 1.0
        while True:
            size = 0.0
            for a in range(k):
                trial[a] = theta[a] + length * step[a]
                size += step[a] ** 2
            if decrement < TOLERANCE and size * design.reach**2 < SMALL**2:
                for a in range(k):
                    theta[a] = trial[a]
                _move(zero, x, step, eta, mu, new_mu)
                return first - value + 0.5 * decrement > gain
            _add(base, x, trial, new_eta)
            exponentials(new_eta, MAX_LOG, new_mu)
            new_value = _objective(pairs, trial, statistic, precision, new_mu, sums)
            if new_value <= value + slack:
                break
            length *= 0.5
            if length < 1e-6:
                return False
        for a in range(k):
            theta[a] = trial[a]
        for i in range(len(mu)):
            eta[i], mu[i] = new_eta[i], new_mu[i]
        value = new_value
        if decrement < TOLERANCE:
            return first - value > gain
    return False


@inlined
def _constant(n: FloatArray, base: FloatArray, powers: FloatArray) -> float:
    """Compute half of what the deviance has besides the sum of mu and the products of X^T n."""
    total = 0.0
    for i in range(len(n)):
        total -= n[i] + n[i] * base[i]
    for i in range(len(n)):
        whole = np.uint64(min(n[i], len(powers) - 1.0))
        # a logarithm only where the count is not whole or large
        total += powers[whole] if whole == n[i] else n[i] * np.log(n[i])
    return total


@inlined
def _moments(eta: FloatArray, nodes: Nodes) -> tuple[float, float]:
    """Sum the moments of the bins' deviances."""
    mean, variance, last = 0.0, 0.0, len(nodes.moments) - 1.0
    for i in range(len(eta)):
        place = min(max((eta[i] - nodes.first) * nodes.per_unit, 0.0), last)
        node = np.uint64(place)
        place -= node
        mean += nodes.moments[node, 0] + place * nodes.moments[node, 2]
        variance += nodes.moments[node, 1] + place * nodes.moments[node, 3]
    return mean, variance


@inlined
def _write(
    design: Design, k: int, constant: float, theta: FloatArray, statistic: FloatArray, curves: FloatArray, out: Results,
    r: int,
) -> None:  # fmt: skip
    """Compute and write what follows from the minimum."""
    mu, pairs = curves[2], design.pairs[: design.needed[k]]
    sums = np.empty(len(pairs))
    _objective(pairs, theta[:k], statistic, design.precision, mu, sums)
    _invert(design.places, design.precision[:k], sums, out.covariance[r])
    value = constant + sums[0]
    for a in range(k):
        value -= statistic[a] * theta[a]
        out.theta[r, a] = theta[a]
    out.deviance[r], out.parameters[r] = max(2.0 * value, 0.0), k
    for i in range(len(mu)):
        out.mu[r, design.fitted[i]] = mu[i]


@compiled
def fit_rows(
    design: Design, least: int, counts: FloatArray, offset: FloatArray, powers: FloatArray, nodes: Nodes, gain: float,
    out: Results,
) -> bool:  # fmt: skip
    r"""Fit the spectra one by one, with those further parameters that lower L by more than ``gain``.

    A fit of further parameters ends where L cannot fall by more than that. With v the distance from a point, g the
    derivatives of -L there, H its information and :math:`\lambda^2 = g H^{-1} g`,
    :math:`L - L_0 = -g v + \sum_i \mu_i (e^{\delta_i} - 1 - \delta_i) + \tfrac12 v \Lambda v` with
    :math:`\delta_i = x_i v`. Where :math:`v H v \le r^2`, no :math:`|\delta_i|` is above
    :math:`c = r \max_i |x_i| \sqrt{\mathrm{tr} H^{-1}}`, so that with :math:`\psi(c) = 2 (e^{-c} + c - 1) / c^2 \le 1`

    .. math:: L - L_0 \ge -g v + \tfrac12 \psi v H v \ge -\lambda^2 / (2 \psi).

    For :math:`r = 4 \lambda` and :math:`\psi \ge 1/2` the first bound is not negative where :math:`v H v = r^2`. L is
    convex, so its minimum is not beyond.

    Parameters
    ----------
    design : Design
    least : int
        Parameters that every spectrum is fitted with.
    counts : array, shape (n, all bins)
    offset : array, shape (m, all bins)
        Of the first m spectra, of the next m, and so on.
    powers : array
        n ln n of the whole numbers from 0 on.
    nodes : Nodes
    gain : float
    out : Results

    Returns
    -------
    bool
        False where a fitted bin has a count that is negative or not finite: nothing is right then.
    """
    (k, bins), fitted, rest = design.x.shape, design.fitted, design.rest
    n, curves, before = np.empty(bins), np.zeros((6, bins)), np.empty((2, bins))
    base, eta, mu = curves[0], curves[1], curves[2]
    theta, best, statistic, inverse = np.empty(k), np.empty(k), np.empty(k), np.empty((k, k))
    for r in range(len(counts)):
        shift = offset[r % len(offset)]
        good = True
        for i in range(bins):
            base[i] = shift[fitted[i]]
            n[i] = counts[r, fitted[i]]
        for i in range(bins):
            good &= (n[i] >= 0.0) & (n[i] < np.inf)
        if not good:
            return False
        for a in range(k):
            total = 0.0
            for i in range(bins):
                total += n[i] * design.x[a, i]
            statistic[a], best[a] = total, out.theta[r, a]
        _add(base, design.x, best[:least], eta)
        exponentials(eta, MAX_LOG, mu)
        converged, terms = False, least
        for more in range(least, k + 1):
            for i in range(bins):
                before[0, i], before[1, i] = eta[i], mu[i]
            for a in range(k):
                theta[a] = best[a] if a < terms else 0.0
            # without a fit so far, any will do
            lower = _minimise(design, more, gain if converged else -np.inf, theta, statistic, inverse, curves)
            converged |= lower
            # what the first fit has come to is kept
            if lower or more == least:
                terms = more
                for a in range(k):
                    best[a] = theta[a]
            else:
                for i in range(bins):
                    eta[i], mu[i] = before[0, i], before[1, i]
        _write(design, terms, _constant(n, base, powers), best, statistic, curves, out, r)
        out.converged[r] = converged
        out.moments[r, 0], out.moments[r, 1] = _moments(eta, nodes)
        for i in range(len(rest)):
            total = shift[rest[i]]
            for a in range(terms):
                total += best[a] * design.whole[a, rest[i]]
            out.mu[r, rest[i]] = np.exp(min(total, MAX_LOG))
    return True
