"""How often pseudo-experiments are as extreme as the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

__all__ = ["Exceedance", "exceedance"]


@dataclass(frozen=True)
class Exceedance:
    """The p-value of the data among pseudo-experiments.

    Attributes
    ----------
    exceeding, toys : int
    p : float
        (exceeding + 1) / (toys + 1) (Davison and Hinkley, 1997, ch. 4).
    interval : tuple of two floats
        Clopper-Pearson interval of exceeding / toys, at the level asked for.
    z : float
        One-sided standard deviations of ``p``.
    bound : bool
        None is as extreme: ``p`` is an upper bound that the number of toys sets, ``z`` a lower one.
    """

    exceeding: int
    toys: int
    p: float
    interval: tuple[float, float]
    z: float
    bound: bool


def exceedance(toy_log_p: npt.ArrayLike, log_p: float, level: float = 0.95) -> Exceedance:
    """Count the pseudo-experiments that are at least as extreme as the data.

    Parameters
    ----------
    toy_log_p : array_like, shape (toys,)
        ln of the smallest p_local of each.
    log_p : float
        That of the data.
    level : float
        Confidence level of the interval.

    Returns
    -------
    Exceedance
    """
    smallest = np.asarray(toy_log_p, dtype=np.float64)
    toys = len(smallest)
    # equal p-values (counts are discrete) are as extreme; the tolerance is that between MIGRAD and Newton
    k = int((smallest <= log_p + 1e-9 * abs(log_p)).sum())
    p = (k + 1) / (toys + 1)
    tail = 0.5 * (1.0 - level)
    low = float(special.betaincinv(k, toys - k + 1, tail)) if k > 0 else 0.0
    high = float(special.betaincinv(k + 1, toys - k, 1.0 - tail)) if k < toys else 1.0
    # not -0.0 for a p of one half
    return Exceedance(k, toys, p, (low, high), 0.0 - float(special.ndtri(p)), k == 0)
