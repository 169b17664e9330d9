r"""Batched Poisson regression with a logarithmic link: thousands of spectra fitted at once.

Counts :math:`n_i` of bin *i* are Poisson with mean :math:`\mu_i = \exp(o_i + \sum_k x_{ik} \theta_k)`, with a fixed
offset :math:`o_i`. The penalised negative log-likelihood

.. math:: L(\theta) = \sum_i (\mu_i - n_i \ln \mu_i) + \tfrac12 \sum_k \lambda_k \theta_k^2

is convex, with score :math:`X^T (n - \mu) - \lambda \theta` and information :math:`X^T \mathrm{diag}(\mu) X + \lambda`,
so Newton's method with step halving finds its minimum from any start (McCullagh and Nelder, Generalized Linear Models,
1989, ch. 2). The deviance :math:`2 \sum_i [n_i \ln (n_i / \mu_i) - n_i + \mu_i]` is Baker and Cousins' likelihood ratio
chi2 (NIM 221 (1984) 437), the 2NLLR of the dijet literature.

Where bins are few-count, the deviance is not chi2 distributed. :func:`deviance_p_value` matches the two first moments
that it has under the fitted means, computed exactly bin by bin, to a scaled chi2 (Satterthwaite, Biometrics 2
(1946) 110).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from drapes_hep.errors import FitError, counted

__all__ = ["PoissonFit", "deviance_moments", "deviance_p_value", "fit_poisson", "poisson_deviance"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_BLOCK = 1 << 18
"""Bins held at once (rows times bins): some eight arrays of 2 MiB, which stay near the processor."""
_MAX_LOG = 100.0
"""Bound on ln mu, so that a wild step gives a huge but finite objective and is halved."""


@dataclass(frozen=True)
class PoissonFit:
    """Fits of many spectra to one design.

    Attributes
    ----------
    coefficients : array, shape (n, k)
    covariance : array, shape (n, k, k)
        Inverse of the (penalised) information.
    expected : array, shape (n, bins)
        Fitted means in *all* bins, those left out of the fit included.
    deviance : array, shape (n,)
        Over the fitted bins, without the penalty.
    converged : array of bool, shape (n,)
    """

    coefficients: FloatArray
    covariance: FloatArray
    expected: FloatArray
    deviance: FloatArray
    converged: BoolArray


def poisson_deviance(counts: npt.ArrayLike, expected: npt.ArrayLike) -> FloatArray:
    """Return each bin's share of Baker and Cousins' chi2, ``2 [n ln(n / mu) - n + mu]``, elementwise."""
    n, mu = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.asarray(2.0 * special.kl_div(n, mu), dtype=np.float64)


@cache
def _moment_table() -> tuple[FloatArray, FloatArray, FloatArray]:
    log_mu = np.linspace(-5.0, 3.0, 161)
    mean, variance = np.empty_like(log_mu), np.empty_like(log_mu)
    for i, mu in enumerate(10.0**log_mu):
        n = np.arange(max(0.0, np.floor(mu - 12.0 * np.sqrt(mu))), np.ceil(mu + 12.0 * np.sqrt(mu) + 20.0))
        weight = np.exp(special.xlogy(n, mu) - mu - special.gammaln(n + 1.0))
        share = poisson_deviance(n, mu)
        mean[i] = weight @ share
        variance[i] = weight @ (share - mean[i]) ** 2
    return log_mu, mean, variance


def deviance_moments(expected: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of each bin's deviance when its count is Poisson with this mean.

    Parameters
    ----------
    expected : array_like
        Means; 1 and 2 (a chi2) are approached above some ten events.

    Returns
    -------
    tuple of two arrays, shaped as ``expected``
    """
    log_mu, mean, variance = _moment_table()
    x = np.log10(np.maximum(np.asarray(expected, dtype=np.float64), 1e-5))
    return np.interp(x, log_mu, mean), np.interp(x, log_mu, variance)


def deviance_p_value(deviance: npt.ArrayLike, expected: npt.ArrayLike, parameters: npt.ArrayLike) -> FloatArray:
    """Return the probability of a deviance at least as large, sparse bins allowed for.

    Parameters
    ----------
    deviance : array_like, shape (n,)
    expected : array_like, shape (bins,) or (n, bins)
        Fitted means of the fitted bins.
    parameters : array_like of int, one or shape (n,)
        Fitted parameters: each takes 1 from the deviance's mean and 2 from its variance.

    Returns
    -------
    array, shape (n,)
    """
    each_mean, each_variance = deviance_moments(expected)
    k = np.asarray(parameters, dtype=np.float64)
    mean = np.maximum(each_mean.sum(axis=-1) - k, 1e-3)
    variance = np.maximum(each_variance.sum(axis=-1) - 2.0 * k, 1e-3)
    return np.asarray(stats.chi2.sf(np.asarray(deviance) * 2.0 * mean / variance, 2.0 * mean**2 / variance))


def fit_poisson(
    counts: npt.ArrayLike,
    design: npt.ArrayLike,
    offset: npt.ArrayLike = 0.0,
    *,
    fitted: npt.ArrayLike | None = None,
    start: npt.ArrayLike | None = None,
    precision: npt.ArrayLike | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-9,
) -> PoissonFit:
    """Fit many spectra by Newton's method with step halving.

    Parameters
    ----------
    counts : array_like, shape (bins,) or (n, bins)
        May be anything, NaN included, where ``fitted`` is false.
    design : array_like, shape (bins, k)
    offset : array_like, broadcastable to (n, bins)
        Fixed part of ln mu.
    fitted : array_like of bool, shape (bins,), optional
        Bins that enter the likelihood; all by default.
    start : array_like, broadcastable to (n, k), optional
        First guess; zero by default.
    precision : array_like, shape (k,), optional
        Penalty lambda: inverse variances of a normal prior around zero.
    max_iterations : int
        Newton steps.
    tolerance : float
        On the Newton decrement, in units of ln L: the estimate is then within sqrt(tolerance) standard deviations.

    Returns
    -------
    PoissonFit

    Raises
    ------
    FitError
        If a fitted bin's count is negative or not finite, or fewer bins than parameters are fitted.
    """
    x = np.asarray(design, dtype=np.float64)
    bins, k = x.shape
    n = np.atleast_2d(np.asarray(counts, dtype=np.float64))
    use = np.ones(bins, dtype=np.bool_) if fitted is None else np.asarray(fitted, dtype=np.bool_)
    if int(use.sum()) < k:
        raise FitError(f"a fit of {counted(k, 'parameter')} has only {counted(int(use.sum()), 'bin')}")
    if not bool(np.all(np.isfinite(n[:, use]) & (n[:, use] >= 0))):
        raise FitError("a fitted bin has a count that is negative or not finite")
    rows = len(n)
    shift = np.broadcast_to(np.asarray(offset, dtype=np.float64), (rows, bins))
    first = np.broadcast_to(np.asarray(0.0 if start is None else start, dtype=np.float64), (rows, k))
    penalty = np.zeros(k) if precision is None else np.asarray(precision, dtype=np.float64)

    out = PoissonFit(
        np.empty((rows, k)), np.empty((rows, k, k)), np.empty((rows, bins)), np.empty(rows), np.empty(rows, np.bool_)
    )
    size = max(1, _BLOCK // bins)
    for low in range(0, rows, size):
        part = slice(low, low + size)
        theta, converged = _newton(
            n[part][:, use], x[use], shift[part][:, use], first[part], penalty, max_iterations, tolerance
        )
        mu = np.exp(np.minimum(shift[part] + theta @ x.T, _MAX_LOG))
        out.coefficients[part] = theta
        out.covariance[part] = np.linalg.inv(_information(mu[:, use], x[use], penalty))
        out.expected[part] = mu
        out.deviance[part] = poisson_deviance(n[part][:, use], mu[:, use]).sum(axis=1)
        out.converged[part] = converged
    return out


def _information(mu: FloatArray, x: FloatArray, penalty: FloatArray) -> FloatArray:
    k = x.shape[1]
    # one matrix product over the bins serves every spectrum
    pairs = (x[:, :, None] * x[:, None, :]).reshape(len(x), k * k)
    information = (mu @ pairs).reshape(-1, k, k) + np.diag(penalty)
    # a spectrum that has run to mu = 0 keeps an invertible matrix; 1e-13 of the scale is below rounding otherwise
    trace = np.einsum("nkk->n", information)
    return np.asarray(information + (1e-13 * trace + 1e-300)[:, None, None] * np.eye(k))


def _objective(
    n: FloatArray, theta: FloatArray, x: FloatArray, shift: FloatArray, penalty: FloatArray
) -> tuple[FloatArray, FloatArray]:
    eta = np.minimum(shift + theta @ x.T, _MAX_LOG)
    mu = np.exp(eta)
    value = (mu - n * eta).sum(axis=1) + 0.5 * (theta**2 @ penalty)
    return value, mu


def _newton(
    n: FloatArray,
    x: FloatArray,
    shift: FloatArray,
    start: FloatArray,
    penalty: FloatArray,
    max_iterations: int,
    tolerance: float,
) -> tuple[FloatArray, BoolArray]:
    theta = np.array(start, dtype=np.float64)
    converged = np.zeros(len(theta), dtype=np.bool_)
    active = np.arange(len(theta))
    value, mu = _objective(n, theta, x, shift, penalty)
    na, sa = n, shift
    for _ in range(max_iterations):
        current = theta[active]
        score = (na - mu) @ x - penalty * current
        step = np.linalg.solve(_information(mu, x, penalty), score[:, :, None])[:, :, 0]
        decrement = np.einsum("nk,nk->n", score, step)
        trial = current + step
        new_value, new_mu = _objective(na, trial, x, sa, penalty)
        slack = 1e-10 * (1.0 + np.abs(value)) * (decrement < 1.0)  # rounding of a sum over many events
        bad = ~(new_value <= value + slack)
        length = 1.0
        while bad.any() and length > 1e-6:
            length *= 0.5
            trial[bad] = current[bad] + length * step[bad]
            new_value[bad], new_mu[bad] = _objective(na[bad], trial[bad], x, sa[bad], penalty)
            bad &= ~(new_value <= value + slack)
        theta[active] = np.where(bad[:, None], current, trial)
        # the step just taken squares what was left, so the decrement before it bounds the distance after it
        done = (decrement < tolerance) | bad
        converged[active] = (decrement < tolerance) & ~bad
        keep = ~done
        if not keep.any():
            break
        active, value, mu, na, sa = active[keep], new_value[keep], new_mu[keep], na[keep], sa[keep]
    return theta, converged
