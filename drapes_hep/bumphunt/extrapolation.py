r"""A global p-value beyond the number of pseudo-experiments: the effective number of trials.

Were a search :math:`N` independent ones, its smallest p-value would be beta(1, N) distributed,

.. math:: P(p_{min} \le p) = 1 - (1 - p)^N,

and :math:`y = -\ln(1 - p_{min})` exponential with the rate N. The windows and cuts of a search are not independent, but
N as fitted to n pseudo-experiments by maximum likelihood,

.. math:: N_{eff} = n / \sum_i y_i = -n \big/ \sum_i \ln(1 - p_{min,i}) ,

describes their distribution closely enough to carry it to p-values smaller than 1/n. The sum of n exponentials is gamma
distributed, :math:`2 N \sum_i y_i \sim \chi^2_{2n}`, which gives the interval of N.

Where a search quotes nothing (poor fits, few events) or observes nothing, :math:`p_{min}` is 1 by convention. Such
pseudo-experiments are as extreme as no data that quote something: N is fitted to the others, and their fraction is a
factor,

.. math:: p_{global} = f \, [1 - (1 - p)^{N_{eff}}] .
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

__all__ = ["Extrapolation", "extrapolate"]

FloatArray = npt.NDArray[np.float64]

_TAIL = float(special.ndtr(-1.0))
"""Probability on either side of the central 68 % interval."""


_LEAST = 30
"""Pseudo-experiments that quote something, at least: with fewer, N_eff is not known to a fifth."""


@dataclass(frozen=True)
class Extrapolation:
    """A global p-value from the distribution of the pseudo-experiments' smallest p-values.

    Attributes
    ----------
    trials : float
        N_eff.
    trials_interval : tuple of two floats
        Its central 68 % interval, from the number of pseudo-experiments.
    p : float
        At least the smallest normal double.
    p_interval : tuple of two floats
        Its central 68 % interval, from the number of pseudo-experiments; whether the distribution holds that far out is
        not in it.
    z : float
        One-sided standard deviations of ``p``.
    """

    trials: float
    trials_interval: tuple[float, float]
    p: float
    p_interval: tuple[float, float]
    z: float


def extrapolate(toy_log_p: npt.ArrayLike, log_p: float) -> Extrapolation | None:
    """Extrapolate the smallest p-values of pseudo-experiments to that of the data.

    Parameters
    ----------
    toy_log_p : array_like, shape (toys,)
        ln of each pseudo-experiment's smallest p_local; 0 where it had nothing to quote.
    log_p : float
        ln of the data's smallest p_local.

    Returns
    -------
    Extrapolation or None
        None where fewer than 30 pseudo-experiments have a p-value below 1. Never below the data's own p_local, as which
        few trials with deep deficits would have it.
    """
    every = np.asarray(toy_log_p, dtype=np.float64)
    some = every[every < 0]
    total = float(_exponential(some).sum())
    if len(some) < _LEAST or not total > 0:
        return None
    n = len(some)
    trials = n / total
    low, high = (float(special.gammaincinv(n, q)) / total for q in (_TAIL, 1.0 - _TAIL))
    fraction = n / len(every)
    # p = 1 is never exceeded, whatever the fraction
    centre, below, above = (
        0.0 if log_p >= 0 else float(np.log(fraction)) + _log_smallest(log_p, count) for count in (trials, low, high)
    )
    # binomial error of the fraction, relative; independent of N, so in quadrature
    relative = float(np.sqrt((1.0 - fraction) / n))
    # a search is never less than one trial
    centre, below, above = (max(bound, log_p) for bound in (centre, below, above))
    down, up = centre - np.hypot(centre - below, relative), centre + np.hypot(above - centre, relative)
    tiny = float(np.finfo(np.float64).tiny)
    p, p_low, p_high = (max(float(np.exp(min(value, 0.0))), tiny) for value in (centre, down, up))
    z = -float(special.ndtri_exp(centre))
    return Extrapolation(trials, (low, high), p, (p_low, p_high), z)


def _exponential(log_p: FloatArray) -> FloatArray:
    """Compute -ln(1 - p), accurate at both ends."""
    near_one = log_p > -np.log(2.0)
    p = np.where(near_one, 0.5, np.exp(log_p))
    return np.where(near_one, -np.log(-np.expm1(np.where(near_one, log_p, -1.0))), -np.log1p(-p))


def _log_smallest(log_p: float, trials: float) -> float:
    """Compute ln(1 - (1 - p)^N), finite however small p is."""
    # ln(-ln(1 - p)) is ln p to rounding where p is small
    log_rate = np.log(trials) + (log_p if log_p < -40.0 else np.log(_exponential(np.asarray(log_p))))
    return float(log_rate if log_rate < -40.0 else -_exponential(-np.exp(log_rate)))
