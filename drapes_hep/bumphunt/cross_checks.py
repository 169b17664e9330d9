r"""Cross-checks of a cut's expectation that fit no mass spectrum: other events than the window's own say what passes.

Of the N events in the window, :math:`N \sum_i w_i [s_i \ge t] / \sum_i w_i` are expected to pass the cut t, if the
reference events i with their weights have the scores of the background in the window, fold by fold.

- Direct count (arXiv:2411.00085): the events of the template that set the cut, which no classifier was trained on. The
  assumption is that the template is the background of the window.
- Weighted conformal (arXiv:2606.13780, after Tibshirani et al., arXiv:1904.06019): the sideband events, each with the
  ratio of the densities of the window's template and of the sidebands at its features. The mean weight of what scores
  at least as high is the event's conformal p-value. The assumption is that the ratio is right, and that the background
  differs between window and sidebands by nothing else.

Both take N from the window itself: an excess without a cut is none of theirs. The error is that of the reference
events, from one parent and its copies to the next; that of a wrong template or ratio is not in it. With it, p-values
are those of :mod:`drapes_hep.bumphunt.significance`: for equal weights, and a cut that few events pass, the count is
beta-binomial, as new events below an order statistic are, and this is its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.expectation import quotable
from drapes_hep.bumphunt.significance import local_significance

__all__ = ["CrossCheck", "CrossChecks", "ScoredEvents", "compare_counts"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoredEvents:
    """Events that classifiers scored which never saw them.

    Attributes
    ----------
    tail : array, shape (n,)
        The tightest cut that each passes.
    fold : array of int, shape (n,)
    weight : array, shape (n,)
        Not negative.
    group : array of int, shape (n,)
        Events of one group are not independent of each other.
    """

    tail: FloatArray
    fold: IntArray
    weight: FloatArray
    group: IntArray


@dataclass(frozen=True)
class CrossCheck:
    """What reference events expect at a cut, in events in the window.

    Attributes
    ----------
    expected, error : float
        The error is that of the reference events.
    p_local : float
        Of at least as many events as observed.
    z_local : float or None
        None where nothing is observed.
    """

    expected: float
    error: float
    p_local: float
    z_local: float | None


@dataclass(frozen=True)
class CrossChecks:
    """Both at one cut; None where no reference event passes, or there are none.

    Attributes
    ----------
    direct, conformal : CrossCheck or None
    """

    direct: CrossCheck | None
    conformal: CrossCheck | None


def compare_counts(
    inside: ScoredEvents, reference: ScoredEvents, efficiencies: Sequence[float], folds: int
) -> tuple[CrossCheck | None, ...]:
    """Compare the window's counts with those of reference events.

    Parameters
    ----------
    inside : ScoredEvents
        Data in the window; their weights are not looked at.
    reference : ScoredEvents
    efficiencies : sequence of float
        The cuts.
    folds : int

    Returns
    -------
    tuple of CrossCheck or None
        None without a cut, where too few reference events pass for a p-value, and where a fold has data but no
        reference event with a weight.
    """
    total = np.bincount(reference.fold, reference.weight, minlength=folds)
    events = np.bincount(inside.fold, minlength=folds)
    if bool(((total <= 0) & (events > 0)).any()):
        return (None,) * len(efficiencies)
    share = reference.weight / np.maximum(total[reference.fold], 1e-300)
    _, group = np.unique(reference.group, return_inverse=True)
    out: list[CrossCheck | None] = []
    for efficiency in efficiencies:
        if efficiency >= 1:
            out.append(None)
            continue
        passes = reference.tail <= efficiency
        fraction = np.bincount(reference.fold[passes], share[passes], minlength=folds)
        # the error of a ratio of sums: what each group adds to it
        adds = events[reference.fold] * share * (passes - fraction[reference.fold])
        expected, error = float(events @ fraction), float(np.sqrt((np.bincount(group, adds) ** 2).sum()))
        out.append(_check(int((inside.tail <= efficiency).sum()), expected, error))
    return tuple(out)


def _check(observed: int, expected: float, error: float) -> CrossCheck | None:
    if not quotable(expected, error):
        return None
    local = local_significance(observed, expected, error)
    z = float(local.z)
    return CrossCheck(expected, error, float(local.p), z if np.isfinite(z) else None)
