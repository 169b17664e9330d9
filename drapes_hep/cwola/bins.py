"""Features divided into bins once, for all trees that are trained on the same events.

The edges rest on the values and weights of all events that are passed, as they are before classes are balanced, never
on their classes. Events that a fold scores may therefore take part in them without a leak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "BinnedEvents", "bin_edges", "bin_numbers"]

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

BINS = 255
"""Bins of a column; all that scikit-learn has room for."""


@dataclass(frozen=True, eq=False)
class BinnedEvents:
    """Some of the events whose features were divided into bins together.

    Attributes
    ----------
    edges : tuple of array
        Inner edges of the bins of each column.
    shared : object
        Numbers of the bins of all these events, shape (n, d), or a library's own form of them.
    rows : array of int, shape (m,)
        Which of these events, in this order.
    """

    edges: tuple[FloatArray, ...]
    shared: Any
    rows: IntArray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: IntArray | npt.NDArray[np.bool_]) -> BinnedEvents:
        """Return some of the events; no values are copied."""
        return replace(self, rows=self.rows[rows])


def bin_edges(values: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the inner edges of bins of equal weight.

    Parameters
    ----------
    values : array, shape (n,)
        One column; NaN is left out.
    weight : array, shape (n,)
        Events of no weight are left out.

    Returns
    -------
    array, shape (at most 254,)
        Between the values where these are few.
    """
    keep = (weight > 0) & ~np.isnan(values)
    values, weight = values[keep], weight[keep]
    if (weight == weight[:1]).all():
        # ten times faster than an order of the events
        values, below = np.sort(values), weight[:1] * np.arange(1, len(values) + 1)
    else:
        order = np.argsort(values, kind="stable")
        values, below = values[order], np.cumsum(weight[order])
    distinct = values[np.concatenate([values[:1] == values[:1], np.diff(values) > 0])]
    if len(distinct) <= BINS:
        return np.asarray((distinct[1:] + distinct[:-1]) / 2)
    targets = np.linspace(0, 100, BINS + 1)[1:-1] / 100 * below[-1]
    place = np.minimum(np.searchsorted(below, targets), len(values) - 1)
    # an edge that falls between two events is their middle
    after = np.minimum(place + 1, len(values) - 1)
    between = below[place] - targets <= np.finfo(np.float64).eps
    return np.unique(np.where(between, (values[place] + values[after]) / 2, values[place]))


def bin_numbers(x: FloatArray, edges: tuple[FloatArray, ...]) -> Float32Array:
    """Return the number of the bin that each value falls in.

    Parameters
    ----------
    x : array, shape (n, d)
    edges : tuple of array
        Of each column, from :func:`bin_edges`.

    Returns
    -------
    array, shape (n, d)
        NaN stays.
    """
    numbers = np.empty(x.shape, dtype=np.float32)
    for column, inner in enumerate(edges):
        numbers[:, column] = np.searchsorted(inner, x[:, column])
    numbers[np.isnan(x)] = np.nan
    return numbers
