r"""How unlikely the resonance fit of few events is, from pseudo-experiments. Masses in GeV.

Where few background events lie under the signal, :math:`z = \mathrm{sign}(\hat S_p) \sqrt{q_0}` is not normally
distributed. Pseudo-experiments are then drawn from means :math:`m^0`, those of the fit of the data without a signal
that passes (:mod:`drapes_hep.bumphunt.pass_fail`), and fitted as the data are, degree of the efficiency included.

Half of them are drawn from the means :math:`m^1` of the fit with the signal instead, since under :math:`m^0` alone
some :math:`10^7` would be needed at five standard deviations. A pseudo-experiment with counts n has the weight

.. math:: w = \frac{2}{1 + L_1 / L_0}, \qquad \ln \frac{L_1}{L_0} = \sum_i \left(n_i \ln \frac{m^1_i}{m^0_i}
    - m^1_i + m^0_i\right),

its probability under :math:`m^0` over that under the mixture. No weight exceeds 2. A pseudo-experiment whose fit does
not converge counts as extreme. With z and weight of the data without index,

.. math:: p = \frac{w + \sum_j w_j [z_j \ge z]}{N + 1}

is a p-value, P(p <= a) <= a under :math:`m^0` for any N, if both means are given (Harrison, Biometrika 99 (2012) 57).
They are fitted to the data, so that this holds approximately: docs/validation.md has what is measured. With
:math:`m^1 = m^0` p is :math:`(k + 1) / (N + 1)`. That of a deficit has the other tail, :math:`z_j \le z`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.pass_fail import Background, PassFailCounts, PassFailFits, fit_pass_fail

__all__ = ["ALL", "FEW_EVENTS", "FIRST", "LEAST_Z", "TailProbability", "tail_probability"]

FloatArray = npt.NDArray[np.float64]

FEW_EVENTS = 10.0
"""Fitted background under the signal below which z comes from pseudo-experiments."""
LEAST_Z = 1.0
"""Magnitude of the asymptotic z below which it is quoted as it is: no z above 2 is lost, where both differ by less
than 1."""
FIRST, ALL = 100, 400
"""Pseudo-experiments of each mass, window and cut: the first, and all where they give p <= ENOUGH.

The error of z is then 0.1 and 0.05, whatever z.
"""
ENOUGH = 0.05
"""p above which the first pseudo-experiments are enough; p <= a < ENOUGH is then still no more frequent than a."""
_LARGEST_WEIGHT = 2.0
TOLERANCE = 1e-4
"""Of the fits of pseudo-experiments."""
_TIE = 1e-3
"""Difference in z below which two experiments are equally extreme: more than the tolerance of their fits leaves."""


@dataclass(frozen=True)
class TailProbability:
    """The p-value of an excess or a deficit.

    Attributes
    ----------
    p : float
        Of the module's head; of a deficit, 1 less that.
    z : float
        p in one-sided standard deviations; not positive for a deficit.
    toys, exceeding : int
        Pseudo-experiments, and those at least as extreme as the data, each counted as 1; those without a fit are. With
        none of them p is that of one of the largest weight.
    """

    p: float
    z: float
    toys: int
    exceeding: int


def tail_probability(
    background: Background,
    counts: PassFailCounts,
    fits: PassFailFits,
    rng: np.random.Generator,
    toys: tuple[int, int] = (FIRST, ALL),
) -> TailProbability:
    """Compute the p-value of one fit from pseudo-experiments.

    Parameters
    ----------
    background : Background
        As the data were fitted with.
    counts : PassFailCounts
        Of one fit.
    fits : PassFailFits
        Its result.
    rng : Generator
    toys : tuple of two ints
        Pseudo-experiments at first, and in all where these give a small p.

    Returns
    -------
    TailProbability
    """
    means = _Means.of(counts, fits)
    drawn = means.draw(toys[0], rng)
    z = _z(background, counts, drawn)
    result = _p_value(means, drawn, z, fits)
    if min(result.p, 1.0 - result.p) > ENOUGH or toys[1] <= toys[0]:
        return result
    more = means.draw(toys[1] - toys[0], rng)
    z = np.concatenate([z, _z(background, counts, more)])
    return _p_value(means, np.concatenate([drawn, more]), z, fits)


@dataclass(frozen=True)
class _Means:
    """The data, and the means without and with a signal: counts that pass and, with a cut, those that fail."""

    observed: FloatArray
    null: FloatArray
    full: FloatArray

    @classmethod
    def of(cls, counts: PassFailCounts, fits: PassFailFits) -> _Means:
        if counts.failed is None:
            return cls(counts.passed[0], fits.null_passed[0], fits.full_passed[0])
        return cls(
            np.concatenate([counts.passed[0], counts.failed[0]]),
            np.concatenate([fits.null_passed[0], fits.null_failed[0]]),
            np.concatenate([fits.full_passed[0], fits.full_failed[0]]),
        )

    def draw(self, toys: int, rng: np.random.Generator) -> FloatArray:
        """Draw from the mixture of both."""
        with_signal = rng.random((toys, 1)) < 0.5
        return rng.poisson(np.where(with_signal, self.full, self.null)).astype(np.float64)

    def weight(self, counts: FloatArray) -> FloatArray:
        """Return w of the module's head."""
        log_ratio = counts @ np.log(self.full / self.null) - (self.full - self.null).sum()
        return np.asarray(2.0 * special.expit(-log_ratio))


def _z(background: Background, counts: PassFailCounts, drawn: FloatArray) -> FloatArray:
    """Fit pseudo-experiments; NaN where a fit does not converge, as a search then quotes nothing."""
    bins = counts.passed.shape[1]

    def each(values: FloatArray) -> FloatArray:
        return np.repeat(values, len(drawn), axis=0)

    trial = PassFailCounts(
        drawn[:, :bins],
        None if counts.failed is None else drawn[:, bins:],
        each(counts.share),
        each(counts.signal),
        None if counts.included is None else each(counts.included),
    )
    fitted = fit_pass_fail(background, trial, TOLERANCE)
    return np.where(fitted.converged, fitted.z, np.nan)


def _p_value(means: _Means, drawn: FloatArray, z: FloatArray, fits: PassFailFits) -> TailProbability:
    sign = 1.0 if fits.z[0] >= 0 else -1.0
    # a fit that does not converge may hide an extreme experiment
    extreme = np.isnan(z) | (sign * z >= sign * fits.z[0] - _TIE)
    own = float(means.weight(means.observed[None])[0])
    total = len(drawn) + 1
    p = (own + float(means.weight(drawn)[extreme].sum())) / total
    if not extreme.any():
        # half of them are like the data: where none is as extreme, the weights say nothing
        p = max(p, _LARGEST_WEIGHT / total)
    p = min(p, len(drawn) / total)
    if sign > 0:
        return TailProbability(p, 0.0 - float(special.ndtri(p)), len(drawn), int(extreme.sum()))
    # a deficit is never evidence of an excess
    z_deficit = min(float(special.ndtri(p)), 0.0)
    return TailProbability(float(special.ndtr(-z_deficit)), z_deficit, len(drawn), int(extreme.sum()))
