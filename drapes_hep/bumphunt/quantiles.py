r"""Poisson counts from standard normal variables: the inverse distribution functions of many means, exactly.

The count of a normal variable z is the number of thresholds :math:`t_k = \Phi^{-1}(P(N \le k))` below it. The first
terms of an expansion for large means (Giles, Algorithm 955, ACM Transactions on Mathematical Software 42 (2016) 7),

.. math:: q(z) = \mu + \sqrt\mu z + \frac13 + \frac{z^2}{6} ,

say where to look for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.compiled import compiled

__all__ = ["PoissonQuantiles", "poisson_quantiles"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PoissonQuantiles:
    """The thresholds of several means, one after the other.

    Attributes
    ----------
    means : array, shape (sets, bins)
    thresholds : array
        Of all means: minus infinity, then t_k from the least count that can matter on, then infinity.
    begins : array of int, shape (sets, bins)
        Index of each mean's minus infinity.
    least : array of int, shape (sets, bins)
        The least count that can matter.
    """

    means: FloatArray
    thresholds: FloatArray
    begins: IntArray
    least: IntArray

    def counts(self, z: FloatArray) -> FloatArray:
        """Return the counts of normal variables, shape (sets, n, bins)."""
        out = np.empty(z.shape)
        _count(np.ascontiguousarray(z), self.means, self.thresholds, self.begins, self.least, out)
        return out


def poisson_quantiles(means: FloatArray) -> PoissonQuantiles:
    """Compute the thresholds of several means, not negative, shape (sets, bins)."""
    mu = np.ascontiguousarray(means, dtype=np.float64)
    flat = mu.ravel()
    least = np.maximum(0.0, np.floor(flat - 9.0 * np.sqrt(flat) - 2.0)).astype(np.int64)
    size = np.ceil(flat + 10.0 * np.sqrt(flat) + 12.0).astype(np.int64) - least
    ends = np.cumsum(size + 2)
    begins = ends - size - 2
    row = np.repeat(np.arange(len(flat)), size)
    place = np.arange(len(row)) - (np.cumsum(size) - size)[row]
    k = place + least[row]
    below = special.pdtr(k, flat[row])
    thresholds = np.full(int((size + 2).sum()), np.inf)
    thresholds[begins] = -np.inf
    # from the smaller tail, which is the accurate one
    thresholds[begins[row] + 1 + place] = np.where(
        below < 0.5, special.ndtri(below), -special.ndtri(special.pdtrc(k, flat[row]))
    )
    return PoissonQuantiles(mu, thresholds, begins.reshape(mu.shape), least.reshape(mu.shape))


@compiled
def _count(
    z: FloatArray, means: FloatArray, thresholds: FloatArray, begins: IntArray, least: IntArray, out: FloatArray
) -> None:
    sets, n, bins = z.shape
    for s in range(sets):
        root, largest = np.sqrt(means[s]), np.empty(bins, dtype=np.int64)
        for i in range(bins):
            largest[i] = int(means[s, i] + 10.0 * root[i] + 11.0) - least[s, i]
        for t in range(n):
            for i in range(bins):
                y, begin = z[s, t, i], begins[s, i]
                guess = int(means[s, i] + 1.0 / 3.0 + y * (root[i] + y / 6.0)) - least[s, i]
                place = begin + 1 + min(max(guess, 0), largest[i])
                while thresholds[place] < y:
                    place += 1
                while thresholds[place - 1] >= y:
                    place -= 1
                out[s, t, i] = least[s, i] + place - begin - 1
