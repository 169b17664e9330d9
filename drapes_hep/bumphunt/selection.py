"""From scored events to counts: score bins against mass, window by window.

Every event carries, for each window, its ``tail``: the fraction of out-of-fold template events *of its own fold* that
score at least as high. The cut at background efficiency e is then ``tail <= e``, set fold by fold. Working points are
nested; what is counted are the disjoint score bins between them, which are independent Poisson counts. GeV.

A hidden (blinded) bin never gets a count: its events are removed before anything is counted, and it holds NaN, so that
anything computed from it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import FitError
from drapes_hep.regions import Window

__all__ = ["SelectedCounts", "count_selected", "score_bin", "set_overlaps"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SelectedCounts:
    """Counts of one window's selection.

    Attributes
    ----------
    edges : array, shape (bins + 1,)
        Mass, GeV.
    efficiencies : tuple of float
        Working points from loose to tight; the first is 1, the inclusive one.
    counts : array, shape (working points, bins)
        Disjoint: row b holds ``efficiencies[b + 1] < tail <= efficiencies[b]``, the last row all below. NaN if hidden.
    hidden : array of bool, shape (bins,)
        Bins that were never counted.
    share : float
        Part of the events outside the window that the tight rows count; the others went into the loosest row.
    """

    edges: FloatArray
    efficiencies: tuple[float, ...]
    counts: FloatArray
    hidden: BoolArray
    share: float = 1.0

    @property
    def nested(self) -> FloatArray:
        """Counts that pass each working point, shape (working points, bins); NaN where hidden."""
        return np.asarray(self.counts[::-1].cumsum(axis=0)[::-1])


def _working_points(efficiencies: Sequence[float]) -> tuple[float, ...]:
    points = tuple(sorted({1.0, *(float(e) for e in efficiencies)}, reverse=True))
    if not 0 < points[-1] <= points[0] <= 1:
        raise FitError(f"background efficiencies must be in (0, 1], got {', '.join(f'{e:g}' for e in points)}")
    return points


def score_bin(tail: npt.ArrayLike, efficiencies: Sequence[float]) -> IntArray:
    """Return the tightest working point that each event passes, as an index into the points from loose to tight.

    Parameters
    ----------
    tail : array_like, any shape
        In [0, 1].
    efficiencies : sequence of float
        Working points; 1 is always one of them.

    Returns
    -------
    array of int, shaped as ``tail``

    Raises
    ------
    FitError
        If a tail is not a fraction (NaN: an event that no model scored).
    """
    t = np.asarray(tail, dtype=np.float64)
    if not bool(np.all((t >= 0) & (t <= 1))):
        raise FitError("an event's score tail is not a fraction between 0 and 1: some events were not scored")
    points = np.array(_working_points(efficiencies))
    # ascending points; side "left" makes tail == e pass e
    return np.asarray(len(points) - 1 - np.searchsorted(points[::-1], t, side="left"), dtype=np.int64)


def count_selected(
    mjj: npt.ArrayLike,
    tail: npt.ArrayLike,
    edges: npt.ArrayLike,
    efficiencies: Sequence[float],
    hidden: Sequence[Window] = (),
    counted: npt.ArrayLike | None = None,
    share: float = 1.0,
) -> SelectedCounts:
    """Count the events of one window's scores, in score bins against mass.

    Parameters
    ----------
    mjj : array_like, shape (n,)
        GeV; events outside the edges are not counted.
    tail : array_like, shape (n,)
        Each event's calibrated score; events in hidden windows may hold anything.
    edges : array_like, shape (bins + 1,)
        From :func:`drapes_hep.spectrum.bins.spectrum_edges`.
    efficiencies : sequence of float
        Working points.
    hidden : sequence of Window
        Windows whose events are not to be counted.
    counted : array_like of bool, shape (n,), optional
        Events that the tight working points may count; all by default. Sideband events that trained the template are
        left out: a cut prefers what the template has too little of, that is where the events it was trained on happen
        to be few, and counting them there again would bias the expectation low.
    share : float
        Probability, by design, of an event outside the window to be ``counted``.

    Returns
    -------
    SelectedCounts
    """
    m, t, e = (np.asarray(x, dtype=np.float64) for x in (mjj, tail, edges))
    points = _working_points(efficiencies)
    if counted is not None:
        t = np.where(np.asarray(counted, dtype=np.bool_), t, 1.0)
    slack = 1e-6 * float(np.diff(e).min())
    covered = np.zeros(len(e) - 1, dtype=np.bool_)
    counted_events = (m >= e[0]) & (m < e[-1])
    for window in hidden:
        # a bin that only overlaps a hidden window is hidden whole
        covered |= (e[1:] > window.lo + slack) & (e[:-1] < window.hi - slack)
        counted_events &= ~window.in_signal_region(m)
    column = np.searchsorted(e, m[counted_events], side="right") - 1
    row = score_bin(t[counted_events], points)
    counts = np.bincount(row * (len(e) - 1) + column, minlength=len(points) * (len(e) - 1)).astype(np.float64)
    counts = counts.reshape(len(points), len(e) - 1)
    counts[:, covered] = np.nan
    return SelectedCounts(e, points, counts, covered, float(share))


def set_overlaps(
    mjj: npt.ArrayLike, tails: npt.ArrayLike, edges: npt.ArrayLike, efficiencies: Sequence[float]
) -> FloatArray:
    r"""Measure how strongly the event sets of all windows overlap: their normalised Gram matrix.

    Sets are the inclusive one and, for each window, its tight disjoint score bins. Two Poisson counts that share events
    have the correlation :math:`\mu_{A \cap B} / \sqrt{\mu_A \mu_B}`: the scalar product of the sets' indicator vectors
    over their norms, so that the matrix is positive semi-definite by construction.

    Parameters
    ----------
    mjj : array_like, shape (n,)
        GeV.
    tails : array_like, shape (windows, n)
    edges : array_like, shape (bins + 1,)
        Events outside are not used.
    efficiencies : sequence of float

    Returns
    -------
    array, shape (1 + windows * (working points - 1),) * 2
        The inclusive set first, then window by window from loose to tight. An empty set has no overlap.
    """
    m, t, e = np.asarray(mjj), np.atleast_2d(np.asarray(tails, dtype=np.float64)), np.asarray(edges)
    points = _working_points(efficiencies)
    tight = len(points) - 1
    inside = (m >= e[0]) & (m < e[-1])
    # one code per event and window: the set it belongs to, 0 for the loose rest
    codes = np.stack([score_bin(row[inside], points) for row in t]) if len(t) else np.empty((0, int(inside.sum())), int)
    size = 1 + len(t) * tight
    shared = np.zeros((size, size))
    shared[0, 0] = codes.shape[1]
    for i in range(len(t)):
        for j in range(i, len(t)):
            table = np.bincount(codes[i] * len(points) + codes[j], minlength=len(points) ** 2)
            block = table.reshape(len(points), len(points))[1:, 1:]
            rows, columns = slice(1 + i * tight, 1 + (i + 1) * tight), slice(1 + j * tight, 1 + (j + 1) * tight)
            shared[rows, columns], shared[columns, rows] = block, block.T
    content = np.diagonal(shared).copy()
    shared[0, :] = shared[:, 0] = content
    norm = np.sqrt(np.maximum(content, 1e-300))
    gram = np.where((content[:, None] > 0) & (content[None, :] > 0), shared / norm[:, None] / norm[None, :], 0.0)
    np.fill_diagonal(gram, 1.0)
    return gram
