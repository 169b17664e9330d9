r"""Cross-checks of a cut's expectation that fit no mass spectrum: other events than the window's own say what passes.

Direct count (arXiv:2411.00085). The reference is the events of the template that set the cut. Of M such events in a
fold, k pass, and a new event that follows the template passes with a probability that is beta distributed, with
parameters k + 1 and M - k: what passes of the N events in the window is beta-binomial, with the mean N (k + 1)/(M + 1).
The assumption is that the template is the background of the window.

Weighted conformal p-values (arXiv:2606.13780; Tibshirani et al., arXiv:1904.06019). The reference is the sideband
events next to the window, one width of it on either side, weighted by :math:`w = e^{\lambda m}` so that their mean mass
is that of the window's events. The p-value of an event is

.. math:: p(s, m) = \frac{\sum_j w_j [s_j \ge s] + w(m)}{\sum_j w_j + w(m)} ,

with the scores s of its own fold, and events with p at most e are counted: N e on average. The assumption is that at
every score the fraction of the background that scores at least as high is a straight line in mass from one sideband
through the window to the other. No template enters.

Both take N from the window itself: an excess without a cut is in neither. The error is that of the reference events;
what a wrong assumption costs is not in it. The window's share that passes, summed over the folds, has a gamma density
with the mean and the variance of the beta densities, and p-values are those of
:mod:`drapes_hep.bumphunt.significance`. They are Poisson where the law is binomial: at a cut of 0.1, widths are larger
by 5 % than need be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from drapes_hep.bumphunt.expectation import quotable
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.regions import Window

__all__ = ["CrossCheck", "CrossChecks", "ScoredEvents", "conformal_counts", "direct_counts"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_STEEPEST = 30.0
"""Exponent per width of the window beyond which a weight is no interpolation."""
_LEAST = 1.0
"""Reference events of a fold that pass, in effect: with fewer, nothing is said."""


@dataclass(frozen=True)
class ScoredEvents:
    """Events with scores of classifiers that were not trained on them.

    Attributes
    ----------
    mjj : array, shape (n,)
        GeV.
    tail : array, shape (n,)
        The tightest cut that each passes; it falls with the score.
    fold : array of int, shape (n,)
    weight : array, shape (n,)
        Not negative.
    group : array of int, shape (n,)
        Events of one group, a parent and its copies, are not independent of each other; a group is in one fold.
    """

    mjj: FloatArray
    tail: FloatArray
    fold: IntArray
    weight: FloatArray
    group: IntArray


@dataclass(frozen=True)
class CrossCheck:
    """What reference events expect at a cut, in events in the window.

    Attributes
    ----------
    observed : int
        Events counted: those that pass the cut, or have a conformal p-value at most that of it.
    expected, error : float
        The error is that of the reference events.
    p_local : float
        Of at least as many events as observed.
    z_local : float or None
        None where nothing is observed.
    """

    observed: int
    expected: float
    error: float
    p_local: float
    z_local: float | None


@dataclass(frozen=True)
class CrossChecks:
    """Both at one cut; None where there is none.

    Attributes
    ----------
    direct, conformal : CrossCheck or None
    """

    direct: CrossCheck | None
    conformal: CrossCheck | None


def direct_counts(
    inside: ScoredEvents, template: ScoredEvents, efficiencies: Sequence[float], folds: int
) -> tuple[CrossCheck | None, ...]:
    """Compare the window's counts with those of the template.

    Parameters
    ----------
    inside : ScoredEvents
        Data in the window, without weights.
    template : ScoredEvents
        The events that set the cuts.
    efficiencies : sequence of float
        The cuts.
    folds : int
        How many; ``fold`` runs from 0.

    Returns
    -------
    tuple of CrossCheck or None
        None without a cut, where less than one template event of a fold passes, and for a template that was made of
        events in the window: it is not independent of them.
    """
    if bool(np.isin(template.group, inside.group).any()):
        return (None,) * len(efficiencies)
    events, size = np.bincount(inside.fold, minlength=folds), _effective(template, folds)
    total = np.bincount(template.fold, template.weight, minlength=folds)
    out: list[CrossCheck | None] = []
    for efficiency in efficiencies:
        chosen = template.tail <= efficiency
        fraction = np.bincount(template.fold[chosen], template.weight[chosen], minlength=folds)
        passes = size * fraction / np.maximum(total, 1e-300)
        observed = int((inside.tail <= efficiency).sum())
        out.append(_at_cut(efficiency, observed, events, size, passes, (passes + 1.0) / (size + 1.0)))
    return tuple(out)


def conformal_counts(
    inside: ScoredEvents, sidebands: ScoredEvents, window: Window, efficiencies: Sequence[float], folds: int
) -> tuple[CrossCheck | None, ...]:
    """Count the window's events by their conformal p-values.

    Parameters
    ----------
    inside : ScoredEvents
        Data in the window, without weights.
    sidebands : ScoredEvents
        Data in the sidebands that no model of the template met, without weights.
    window : Window
    efficiencies : sequence of float
        The cuts.
    folds : int
        How many; ``fold`` runs from 0.

    Returns
    -------
    tuple of CrossCheck or None
        None without a cut, without events on both sides of the window, and where less than one of them in a fold
        passes.
    """
    near = np.abs(sidebands.mjj - 0.5 * (window.lo + window.hi)) < 1.5 * (window.hi - window.lo)
    tilt = _tilt(inside.mjj, sidebands.mjj[near], window) if len(inside.mjj) and near.any() else None
    if tilt is None:
        return (None,) * len(efficiencies)
    own, weight = np.exp(tilt * _scaled(inside.mjj, window)), np.exp(tilt * _scaled(sidebands.mjj[near], window))
    tail, fold = sidebands.tail[near], sidebands.fold[near]
    p, size = np.ones(len(inside.mjj)), np.zeros(folds)
    for number in range(folds):
        rows, reference = inside.fold == number, fold == number
        order = np.argsort(tail[reference], kind="stable")
        above = np.concatenate([[0.0], np.cumsum(weight[reference][order])])
        place = np.searchsorted(tail[reference][order], inside.tail[rows], side="right")
        p[rows] = (above[place] + own[rows]) / (above[-1] + own[rows])
        size[number] = above[-1] ** 2 / max(float((weight[reference] ** 2).sum()), 1e-300)
    events = np.bincount(inside.fold, minlength=folds)
    out: list[CrossCheck | None] = []
    for efficiency in efficiencies:
        observed = int((p <= efficiency).sum())
        out.append(_at_cut(efficiency, observed, events, size, efficiency * size, np.full(folds, efficiency)))
    return tuple(out)


def _effective(sample: ScoredEvents, folds: int) -> FloatArray:
    """Compute how many independent events without weights each fold is worth."""
    _, first, place = np.unique(sample.group, return_index=True, return_inverse=True)
    fold, weight = sample.fold[first], np.bincount(place, sample.weight)
    summed, squared = np.bincount(fold, weight, minlength=folds), np.bincount(fold, weight**2, minlength=folds)
    return np.asarray(summed**2 / np.where(squared > 0, squared, 1.0))


def _scaled(mjj: FloatArray, window: Window) -> FloatArray:
    return (mjj - 0.5 * (window.lo + window.hi)) / (window.hi - window.lo)


def _tilt(inside: FloatArray, sidebands: FloatArray, window: Window) -> float | None:
    """Find the exponent with which the weighted mean mass of the sidebands is that of the window's events."""
    x, target = _scaled(sidebands, window), float(_scaled(inside, window).mean())
    if not x.min() < target < x.max():
        return None

    def excess(tilt: float) -> float:
        weight = np.exp(tilt * x)
        return float((weight @ x) / weight.sum()) - target

    # the mean runs from one end to the other: no tilt in reach means next to no events on one side
    if excess(-_STEEPEST) > 0 or excess(_STEEPEST) < 0:
        return None
    root = optimize.brentq(excess, -_STEEPEST, _STEEPEST)
    return float(root)


def _at_cut(
    efficiency: float, observed: int, events: IntArray, size: FloatArray, passes: FloatArray, mean: FloatArray
) -> CrossCheck | None:
    """Quote a cut that in each fold ``passes`` of ``size`` reference events pass, and a new event with the ``mean``."""
    if efficiency >= 1 or bool((passes[events > 0] < _LEAST).any()):
        return None
    variance = mean * (1.0 - mean) / (size + 2.0)
    return _check(observed, float(events @ mean), float(events**2 @ variance))


def _check(observed: int, mean: float, variance: float) -> CrossCheck | None:
    # the gamma density of significance.py has this mean and variance, and its own parameters
    rate = mean / variance if variance > 0 else np.inf
    mu = mean - 1.0 / rate
    error = float(np.sqrt(mu / rate)) if mu > 0 else np.nan
    if not quotable(mu, error):
        return None
    local = local_significance(observed, mu, error)
    z = float(local.z)
    return CrossCheck(observed, mean, float(np.sqrt(variance)), float(local.p), z if np.isfinite(z) else None)
