"""Blinding by axis: no bin of a histogram of m_JJ that touches a hidden window is filled.

Every output of a blinded run but its raw files is a function of the events outside the hidden windows.
:class:`drapes_hep.events.blinded_processor.Blinding` leaves the selected events of these windows out of what a
processor fills. Events that fail the selection stay, and an axis that measures m_JJ would show them inside the windows,
so :func:`empty_hidden_bins` empties the bins that touch one. The axis of m_JJ is called ``mjj``; an axis of a mass that
follows m_JJ (groomed, corrected otherwise) says so in its metadata, ``metadata={"measures": "mjj"}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hist
import numpy as np
import numpy.typing as npt

from drapes_hep.events.ranges import Ranges

__all__ = ["empty_hidden_bins", "hidden_bins", "measures_mjj"]

BoolArray = npt.NDArray[np.bool_]

_SLACK = 1e-9
"""Fraction of a bin's width by which its edge may miss a window's edge through rounding."""


def measures_mjj(axis: Any) -> bool:
    """Whether an axis of a histogram measures m_JJ, by its name or by its metadata ``{"measures": "mjj"}``."""
    metadata = getattr(axis, "metadata", None)
    marked = isinstance(metadata, Mapping) and metadata.get("measures") == "mjj"
    return marked or str(axis.name).lower().replace("_", "") == "mjj"


def hidden_bins(axis: Any, ranges: Ranges, *, flow: bool = False) -> BoolArray:
    """Compute which bins of an axis of m_JJ touch a hidden window.

    Parameters
    ----------
    axis : axis of a histogram
        Without an order of masses (categories, circular) all of its bins count as touching.
    ranges : sequence of tuple of float
        GeV.
    flow : bool
        Whether the bins below and above the axis are counted, where it has them.

    Returns
    -------
    array of bool, shape (bins,)
        In the order of the bins, flow bins at the ends.
    """
    traits = axis.traits
    ordered = traits.continuous or isinstance(axis, hist.axis.Integer)
    if not ordered or traits.circular:
        return np.full(axis.extent if flow else axis.size, bool(ranges))
    edges = np.asarray(axis.edges, dtype=np.float64)
    slack = _SLACK * np.diff(edges)
    lower, upper = edges[:-1] + slack, edges[1:] - slack
    if flow:
        below, above = ([-np.inf], [edges[0]]), ([edges[-1]], [np.inf])
        lower = np.concatenate([below[0] * traits.underflow, lower, above[0] * traits.overflow])
        upper = np.concatenate([below[1] * traits.underflow, upper, above[1] * traits.overflow])
    touched = np.zeros(len(lower), dtype=np.bool_)
    for low, high in ranges:
        touched |= (upper > low) & (lower < high)
    return touched


def empty_hidden_bins(histogram: Any, ranges: Ranges) -> Any:
    """Empty the bins of each axis of m_JJ that touch a hidden window.

    Parameters
    ----------
    histogram : hist.Hist
        Of any axes and storage.
    ranges : sequence of tuple of float
        GeV.

    Returns
    -------
    hist.Hist
        A copy; equal to the histogram where it has no axis of m_JJ.
    """
    copy = histogram.copy()
    view = copy.view(flow=True)
    nothing = np.zeros((), dtype=np.asarray(view).dtype)
    for i, axis in enumerate(copy.axes):
        if measures_mjj(axis):
            view[(slice(None),) * i + (hidden_bins(axis, ranges, flow=True),)] = nothing
    return copy
