r"""Figures of merit of a classifier, with their uncertainties.

``SIC = eps_S / sqrt(eps_B)``, the factor by which a cut multiplies S / sqrt(B). Everything is computed from scores and
truth; nothing here is seen by a search without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from drapes_hep.errors import FitError, counted

__all__ = ["Estimate", "Roc", "SicPoint", "auc", "jackknife_spread", "roc", "sic_at_rejection", "sic_maximum", "spread"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard uncertainty."""

    value: float
    error: float


@dataclass(frozen=True)
class Roc:
    """Efficiencies of every cut, from the tightest (one event passes) to none.

    Attributes
    ----------
    signal_efficiency, background_efficiency : array, shape (cuts,)
        Weighted efficiencies, rising together.
    n_signal, n_background : float
        Effective numbers of events, (sum w)^2 / sum w^2.
    """

    signal_efficiency: FloatArray
    background_efficiency: FloatArray
    n_signal: float
    n_background: float

    @property
    def sic(self) -> FloatArray:
        """SIC of every cut; 0 where no background passes."""
        eff = self.background_efficiency
        return np.divide(self.signal_efficiency, np.sqrt(eff), out=np.zeros_like(eff), where=eff > 0)

    @property
    def area(self) -> float:
        """Area under the curve of signal against background efficiency."""
        x = np.concatenate([[0.0], self.background_efficiency])
        y = np.concatenate([[0.0], self.signal_efficiency])
        return float(np.trapezoid(y, x))


@dataclass(frozen=True)
class SicPoint:
    """SIC at one cut.

    Attributes
    ----------
    sic, error : float
        Significance improvement and its binomial uncertainty.
    signal_efficiency, background_efficiency : float
        Of the cut.
    """

    sic: float
    error: float
    signal_efficiency: float
    background_efficiency: float


def _effective(weight: FloatArray) -> float:
    total = float(weight.sum())
    return total * total / float((weight * weight).sum()) if total > 0 else 0.0


def roc(score: npt.ArrayLike, is_signal: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Roc:
    """Compute the ROC curve of scores, larger meaning more signal-like.

    Parameters
    ----------
    score : array_like, shape (n,)
    is_signal : array_like of bool, shape (n,)
    weight : array_like, shape (n,), optional
        Event weights, 1 if not given.

    Returns
    -------
    Roc
        Equal scores are one cut.

    Raises
    ------
    FitError
        If one of the classes is empty or has no weight, a score is not finite, or a weight is negative or not finite.
    """
    s, y = np.asarray(score, dtype=np.float64), np.asarray(is_signal, dtype=bool)
    w = np.ones_like(s) if weight is None else np.asarray(weight, dtype=np.float64)
    if not len(s) == len(y) == len(w):
        raise FitError(f"a ROC curve of {counted(len(s), 'score')}, {len(y)} labels and {len(w)} weights")
    if not np.isfinite(s).all():
        raise FitError("a ROC curve of scores that are not finite")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise FitError("a ROC curve of weights that are negative or not finite")
    for name, own in (("signal", w[y]), ("background", w[~y])):
        if not own.sum() > 0:
            raise FitError(f"a ROC curve needs events of both classes: {counted(len(own), name + ' event')}, no weight")
    order = np.argsort(-s, kind="stable")
    s, y, w = s[order], y[order], w[order]
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    passing_signal = np.cumsum(np.where(y, w, 0.0))[last]
    passing_background = np.cumsum(np.where(y, 0.0, w))[last]
    return Roc(
        passing_signal / passing_signal[-1],
        passing_background / passing_background[-1],
        _effective(w[y]),
        _effective(w[~y]),
    )


def auc(score: npt.ArrayLike, is_signal: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Estimate:
    """Area under the ROC curve with the uncertainty of Hanley and McNeil (Radiology 143 (1982) 29).

    Parameters
    ----------
    score, is_signal, weight
        As for :func:`roc`.

    Returns
    -------
    Estimate
    """
    curve = roc(score, is_signal, weight)
    a, n_s, n_b = curve.area, curve.n_signal, curve.n_background
    q1, q2 = a / (2.0 - a), 2.0 * a * a / (1.0 + a)
    variance = (a * (1 - a) + (n_s - 1) * (q1 - a * a) + (n_b - 1) * (q2 - a * a)) / (n_s * n_b)
    return Estimate(a, float(np.sqrt(max(variance, 0.0))))


def _sic_point(curve: Roc, index: int) -> SicPoint:
    eps_s, eps_b = float(curve.signal_efficiency[index]), float(curve.background_efficiency[index])
    if eps_b <= 0 or eps_s <= 0:
        return SicPoint(0.0, 0.0, eps_s, eps_b)
    relative = (1 - eps_s) / (eps_s * curve.n_signal) + 0.25 * (1 - eps_b) / (eps_b * curve.n_background)
    sic = eps_s / np.sqrt(eps_b)
    return SicPoint(float(sic), float(sic * np.sqrt(relative)), eps_s, eps_b)


def sic_at_rejection(curve: Roc, rejection: float) -> SicPoint | None:
    """SIC at the loosest cut whose background rejection 1 / eps_B is at least ``rejection``.

    Returns
    -------
    SicPoint or None
        None if no cut that passes background is that tight: the sample is too small for this rejection.
    """
    eff = curve.background_efficiency
    allowed = np.flatnonzero((eff > 0) & (eff <= 1.0 / rejection * (1 + 1e-12)))
    return _sic_point(curve, int(allowed[-1])) if len(allowed) else None


def sic_maximum(curve: Roc, least_background: float = 10.0) -> SicPoint | None:
    """Largest SIC among the cuts that at least ``least_background`` background events pass.

    Fewer events make the maximum a fluctuation: 1 / sqrt(eps_B) grows without bound as the count falls.
    """
    allowed = np.flatnonzero(curve.background_efficiency * curve.n_background >= least_background * (1 - 1e-12))
    if not len(allowed):
        return None
    return _sic_point(curve, int(allowed[np.argmax(curve.sic[allowed])]))


def spread(values: Sequence[float] | npt.NDArray[Any]) -> tuple[float, float, float]:
    """Median and the central 68% band of values over seeds.

    Returns
    -------
    tuple of float
        (median, lower, upper).
    """
    tail = float(ndtr(-1.0))
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), [tail, 0.5, 1 - tail])
    return float(middle), float(low), float(high)


def jackknife_spread(values: Sequence[float] | npt.NDArray[Any]) -> float:
    r"""Compute the delete-a-group jackknife spread :math:`\sqrt{(K - 1) / K \sum_f (\theta_f - \bar\theta)^2}`.

    Parameters
    ----------
    values : sequence of float, shape (K,)
        Of K models, each of which left out another K-th of the data.

    Returns
    -------
    float
    """
    theta = np.asarray(values, dtype=np.float64)
    return float(np.sqrt((len(theta) - 1) / len(theta) * ((theta - theta.mean()) ** 2).sum()))
