"""Binned spectra: fine bins whose edges include every window's, and spectra that are read. Masses in GeV."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import FitError
from drapes_hep.regions import Window

__all__ = ["spectrum_edges"]

FloatArray = npt.NDArray[np.float64]


def spectrum_edges(mass_range: tuple[float, float], width: float, windows: Sequence[Window] = ()) -> FloatArray:
    """Return fine bins whose edges include every window's.

    Parameters
    ----------
    mass_range : tuple of two floats
        GeV.
    width : float
        Largest width of a bin, GeV.
    windows : sequence of Window
        Their edges inside the range divide it; each piece is cut into equal bins.

    Returns
    -------
    array, shape (bins + 1,)
        GeV, rising.
    """
    low, high = (float(x) for x in mass_range)
    if not low < high or width <= 0:
        raise FitError(f"cannot divide {low:g}-{high:g} GeV into bins of {width:g} GeV")
    inner = sorted(x for window in windows for x in (window.lo, window.hi) if low < x < high)
    marks = [low]
    # edges that differ by rounding alone (3100 + 3 * 0.1 steps) are one edge
    for x in (*inner, high):
        if x - marks[-1] > 1e-6 * width:
            marks.append(x)
    marks[-1] = high
    pieces = [np.linspace(a, b, max(1, int(np.ceil((b - a) / width - 1e-9))) + 1)[:-1] for a, b in pairwise(marks)]
    return np.concatenate([*pieces, [high]])
