r"""How unlikely the resonance fit of few events is, from pseudo-experiments. Masses in GeV.

Where few background events lie under the signal, :math:`z = \mathrm{sign}(\hat S_p) \sqrt{q_0}` is not normally
distributed. Pseudo-experiments are then drawn from means :math:`m^0`, those of the fit of the data without a signal
that passes (:mod:`drapes_hep.bumphunt.pass_fail`), and fitted as the data are, degree of the efficiency included.

Half of them are drawn from the means :math:`m^1` of the fit with the signal instead, since under :math:`m^0` alone
some :math:`10^7` would be needed at five standard deviations. A pseudo-experiment with counts n has the weight

.. math:: w = \frac{2}{1 + L_1 / L_0}, \qquad \ln \frac{L_1}{L_0} = \sum_i \left(n_i \ln \frac{m^1_i}{m^0_i}
    - m^1_i + m^0_i\right),

its probability under :math:`m^0` over that under the mixture. No weight exceeds 2, so that extreme
pseudo-experiments of a kind that :math:`m^1` does not have are not missed beyond 1 in the number of those drawn. With
z and weight of the data without index,

.. math:: p = \frac{w + \sum_j w_j [z_j \ge z]}{N + 1}

is a p-value: P(p <= a) <= a under :math:`m^0` for any N (Harrison, Biometrika 99 (2012) 57). With :math:`m^1 = m^0` it
is :math:`(k + 1) / (N + 1)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from drapes_hep.bumphunt.pass_fail import Background, PassFailCounts, PassFailFits, fit_pass_fail

__all__ = ["FEW_EVENTS", "LEAST_Z", "PSEUDO_EXPERIMENTS", "TailProbability", "tail_probability"]

FloatArray = npt.NDArray[np.float64]

FEW_EVENTS = 10.0
"""Fitted background under the signal below which z comes from pseudo-experiments."""
LEAST_Z = 1.0
"""Asymptotic z below which it is quoted as it is.

What is quoted is then still a function of the data that is large only if they are extreme: where the two differ by
less than one standard deviation, as they do above half an event, no z above 2 is lost and none is added.
"""
PSEUDO_EXPERIMENTS = 400
"""Of each mass, window and cut: the relative error of p is 5 to 15 %, or 0.1 in z at most."""
_TIE = 1e-6
"""Difference in z below which two experiments are equally extreme."""


@dataclass(frozen=True)
class TailProbability:
    """The p-value of an excess.

    Attributes
    ----------
    p : float
        Of the module's head.
    z : float
        In one-sided standard deviations.
    toys, exceeding : int
        Pseudo-experiments, and those at least as extreme as the data, each counted as 1. With none of them p is an
        upper bound.
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
    toys: int = PSEUDO_EXPERIMENTS,
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
    toys : int
        Pseudo-experiments.

    Returns
    -------
    TailProbability
    """
    with_cut = counts.failed is not None
    nulls, full = (
        np.concatenate([passed[0], failed[0]]) if with_cut else passed[0]
        for passed, failed in ((fits.null_passed, fits.null_failed), (fits.full_passed, fits.full_failed))
    )
    # the data are the last row
    tilted = rng.random(toys) < 0.5
    observed = counts.passed[0] if counts.failed is None else np.concatenate([counts.passed[0], counts.failed[0]])
    drawn = np.concatenate([rng.poisson(np.where(tilted[:, None], full, nulls)).astype(np.float64), observed[None]])
    log_ratio = drawn @ np.log(full / nulls) - (full - nulls).sum()
    weight = 2.0 * special.expit(-log_ratio)
    bins = counts.passed.shape[1]

    def each(values: FloatArray) -> FloatArray:
        return np.repeat(values, toys, axis=0)

    trial = PassFailCounts(
        drawn[:-1, :bins], drawn[:-1, bins:] if with_cut else None, each(counts.share), each(counts.signal),
        None if counts.included is None else each(counts.included),
    )  # fmt: skip
    fitted = fit_pass_fail(background, trial)
    # where a fit does not converge a search quotes nothing
    extreme = fitted.converged & (fitted.z >= fits.z[0] - _TIE)
    p = float(min((weight[-1] + weight[:-1][extreme].sum()) / (toys + 1), 1.0))
    return TailProbability(p, float(stats.norm.isf(p)), toys, int(extreme.sum()))
