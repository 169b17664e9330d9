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
from scipy import special

from drapes_hep.errors import FitError, counted
from drapes_hep.spectrum.newton import Nodes, Results, fit_rows, make_design

__all__ = [
    "Expansion",
    "PoissonFit",
    "deviance_moments",
    "deviance_p_value",
    "expand_poisson",
    "fit_poisson",
    "poisson_deviance",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

_FAR = 10.0
"""Change of ln mu for which an expansion is no start."""


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
    moments : array, shape (n, 2)
        Sums over the fitted bins of :func:`deviance_moments`.
    parameters : array of int, shape (n,)
        How many were fitted; the coefficients of the others, and their covariance, are 0.
    converged : array of bool, shape (n,)
    """

    coefficients: FloatArray
    covariance: FloatArray
    expected: FloatArray
    deviance: FloatArray
    moments: FloatArray
    parameters: IntArray
    converged: BoolArray

    @property
    def p_value(self) -> FloatArray:
        """Goodness of fit: :func:`deviance_p_value` of the fitted bins, shape (n,)."""
        return _p_value(self.deviance, self.moments[:, 0], self.moments[:, 1], self.parameters)


def poisson_deviance(counts: npt.ArrayLike, expected: npt.ArrayLike) -> FloatArray:
    """Return each bin's share of Baker and Cousins' chi2, ``2 [n ln(n / mu) - n + mu]``, elementwise."""
    n, mu = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.asarray(2.0 * special.kl_div(n, mu), dtype=np.float64)


@cache
def _nodes() -> Nodes:
    """Compute the moments of a bin's deviance for means of 1e-5 to 1000, twenty a decade."""
    log_mu = np.linspace(-5.0, 3.0, 161)
    mean, variance = np.empty_like(log_mu), np.empty_like(log_mu)
    for i, mu in enumerate(10.0**log_mu):
        n = np.arange(max(0.0, np.floor(mu - 12.0 * np.sqrt(mu))), np.ceil(mu + 12.0 * np.sqrt(mu) + 20.0))
        weight = np.exp(special.xlogy(n, mu) - mu - special.gammaln(n + 1.0))
        share = poisson_deviance(n, mu)
        mean[i] = weight @ share
        variance[i] = weight @ (share - mean[i]) ** 2
    changes = [np.diff(moment, append=moment[-1]) for moment in (mean, variance)]
    return Nodes(-5.0 * np.log(10.0), 20.0 / np.log(10.0), np.stack([mean, variance, *changes], axis=1))


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
    nodes = _nodes()
    x = np.log(np.maximum(np.asarray(expected, dtype=np.float64), 1e-300))
    at = nodes.first + np.arange(len(nodes.moments)) / nodes.per_unit
    return np.interp(x, at, nodes.moments[:, 0]), np.interp(x, at, nodes.moments[:, 1])


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
    mean, variance = (moment.sum(axis=-1) for moment in deviance_moments(expected))
    return _p_value(deviance, mean, variance, parameters)


def _p_value(deviance: npt.ArrayLike, mean: FloatArray, variance: FloatArray, parameters: npt.ArrayLike) -> FloatArray:
    k = np.asarray(parameters, dtype=np.float64)
    mean, variance = np.maximum(mean - k, 1e-3), np.maximum(variance - 2.0 * k, 1e-3)
    return np.asarray(special.chdtrc(2.0 * mean**2 / variance, np.asarray(deviance) * 2.0 * mean / variance))


@dataclass(frozen=True)
class Expansion:
    """Fits of c expectations, and how fits of spectra near them differ to second order: a start for these.

    Attributes
    ----------
    coefficients : array, shape (c, k)
    covariance : array, shape (c, k, k)
    third : array, shape (c, k, k, k)
        Third derivatives of L.
    largest : float
        Norm of the design in any bin.
    """

    coefficients: FloatArray
    covariance: FloatArray
    third: FloatArray
    largest: float

    def start(self, score: FloatArray) -> FloatArray:
        """Return where the fits of spectra are, about.

        Parameters
        ----------
        score : array, shape (c, n, k)
            Derivatives of -L at the coefficients.

        Returns
        -------
        array, shape (c, n, k)
        """
        c, n, k = score.shape
        step = score @ self.covariance
        pairs = (step[..., None] * step[..., None, :]).reshape(c, n, k * k)
        moved = step - 0.5 * (pairs @ self.third.reshape(c, k * k, k) @ self.covariance)
        # far away an expansion is no help
        near = np.einsum("cnk,cnk->cn", moved, moved) * self.largest**2 < _FAR**2
        return np.asarray(self.coefficients[:, None] + np.where(near[..., None], moved, 0.0))


def expand_poisson(
    design: FloatArray, expected: FloatArray, coefficients: FloatArray, covariance: FloatArray
) -> Expansion:
    """Expand L about the fits of c expectations.

    Parameters
    ----------
    design : array, shape (bins, k)
    expected : array, shape (c, bins)
        Fitted means.
    coefficients, covariance : arrays, shapes (c, k) and (c, k, k)

    Returns
    -------
    Expansion
    """
    third = np.einsum("cb,bi,bj,bk->cijk", expected, design, design, design)
    return Expansion(coefficients, covariance, third, float(np.linalg.norm(design, axis=1).max()))


def fit_poisson(
    counts: npt.ArrayLike,
    design: npt.ArrayLike,
    offset: npt.ArrayLike = 0.0,
    *,
    fitted: npt.ArrayLike | None = None,
    start: npt.ArrayLike | None = None,
    precision: npt.ArrayLike | None = None,
    least: int | None = None,
    gain: float = 0.0,
) -> PoissonFit:
    """Fit many spectra by Newton's method with step halving.

    Parameters
    ----------
    counts : array_like, shape (bins,) or (n, bins)
        May be anything, NaN included, where ``fitted`` is false.
    design : array_like, shape (bins, k)
    offset : array_like, broadcastable to (m, bins), of which n is a multiple
        Fixed part of ln mu, of the first m spectra, of the next m, and so on.
    fitted : array_like of bool, shape (bins,), optional
        Bins that enter the likelihood; all by default.
    start : array_like, broadcastable to (n, least), optional
        First guess; zero by default.
    precision : array_like, shape (k,), optional
        Penalty lambda: inverse variances of a normal prior around zero.
    least : int, optional
        Columns of the design that are fitted to every spectrum; each further one only to spectra whose penalised
        deviance it lowers by more than ``gain``. All by default.
    gain : float

    Returns
    -------
    PoissonFit

    Raises
    ------
    FitError
        If a fitted bin's count is negative or not finite, or fewer bins than parameters are fitted.
    """
    x, n = np.asarray(design, dtype=np.float64), np.atleast_2d(np.asarray(counts, dtype=np.float64))
    (rows, bins), k = n.shape, x.shape[1]
    use = np.ones(bins, dtype=np.bool_) if fitted is None else np.asarray(fitted, dtype=np.bool_)
    if int(use.sum()) < k:
        raise FitError(f"a fit of {counted(k, 'parameter')} has only {counted(int(use.sum()), 'bin')}")
    penalty = np.zeros(k) if precision is None else np.asarray(precision, dtype=np.float64)
    few = k if least is None else least
    shift = np.atleast_2d(np.asarray(offset, dtype=np.float64))
    shift = np.ascontiguousarray(np.broadcast_to(shift, (len(shift), bins)))
    theta = np.zeros((rows, k))
    theta[:, :few] = 0.0 if start is None else start
    out = Results(
        theta, np.zeros((rows, k, k)), np.empty((rows, bins)), np.empty(rows), np.empty((rows, 2)),
        np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.bool_),
    )  # fmt: skip
    if not (np.isfinite(shift).all() and np.isfinite(theta).all() and np.isfinite(x).all()):
        raise FitError("a Poisson fit whose design, offset or start is not finite")
    common = make_design(x, use, penalty)
    # the deviance is twice the objective
    if not fit_rows(common, few, np.ascontiguousarray(n), shift, _powers(), _nodes(), 0.5 * gain, out):
        raise FitError("a fitted bin has a count that is negative or not finite")
    return PoissonFit(*out)


@cache
def _powers() -> FloatArray:
    n = np.arange(1 << 14, dtype=np.float64)
    return np.asarray(special.xlogy(n, n))
