"""Ranges of m_JJ, lower edge inclusive and upper edge exclusive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from drapes_hep.events.types import Column

__all__ = ["Ranges", "in_ranges"]

Ranges = Sequence[tuple[float, float]]
"""(lower, upper) edges, GeV."""
BoolArray = npt.NDArray[np.bool_]


def in_ranges(mjj: Column, ranges: Ranges) -> BoolArray:
    """Compute which masses are in any of the ranges.

    Parameters
    ----------
    mjj : array, shape (n,)
        GeV.
    ranges : sequence of tuple of float
        Lower edge inclusive, upper edge exclusive, GeV.

    Returns
    -------
    array of bool, shape (n,)
    """
    masses = np.asarray(mjj, dtype=np.float64)
    inside = np.zeros(masses.shape, dtype=np.bool_)
    for low, high in ranges:
        inside |= (masses >= low) & (masses < high)
    return inside
