"""Binned spectra: fine bins whose edges include every window's, and spectra that are read. Masses in GeV."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uproot

from drapes_hep.errors import FitError, InputError
from drapes_hep.regions import Window

__all__ = ["spectrum_edges", "spectrum_from_root", "trim_spectrum"]

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


def trim_spectrum(
    counts: npt.ArrayLike, edges: npt.ArrayLike, lo: float, hi: float | None = None
) -> tuple[FloatArray, FloatArray]:
    """Cut a spectrum to ``lo`` and above, and to its last filled bin or ``hi``.

    Parameters
    ----------
    counts : array_like, shape (bins,)
    edges : array_like, shape (bins + 1,)
        GeV.
    lo : float
        First edge that is kept, GeV.
    hi : float, optional
        Last edge that is kept, GeV; by default the last filled bin's upper edge. Empty bins between stay.

    Returns
    -------
    counts, edges : arrays, shapes (n,) and (n + 1,)
    """
    n, e = np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    keep = np.flatnonzero((e[:-1] >= lo) & ((n > 0) if hi is None else (e[1:] <= hi)))
    first = np.flatnonzero(e[:-1] >= lo)
    if len(keep) == 0:
        raise FitError(f"the spectrum has no filled bin above {lo:g} GeV")
    part = slice(int(first[0]), int(keep[-1]) + 1)
    return n[part], e[part.start : part.stop + 1]


def spectrum_from_root(path: str | Path, name: str) -> tuple[FloatArray, FloatArray]:
    """Read a TH1 as counts a bin.

    Parameters
    ----------
    path : str or Path
        ROOT file.
    name : str
        The histogram, e.g. ``Mjj``.

    Returns
    -------
    counts, edges : arrays, shapes (bins,) and (bins + 1,)
        Without under- and overflow; edges in the histogram's own unit.

    Raises
    ------
    InputError
        If the file is missing or truncated, or the histogram is missing or not one-dimensional.
    """
    if not Path(path).is_file():
        raise InputError(path, "no such file", "check the path")
    try:
        with uproot.open(path) as file:
            if name not in file:
                names = sorted({key.split(";")[0] for key, kind in file.classnames().items() if kind.startswith("TH1")})
                listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise InputError(
                    path, f"has no histogram {name!r}", f"choose one of its TH1s: {listed or 'it has none'}"
                )
            histogram = file[name]
            if not histogram.classname.startswith("TH1"):
                raise InputError(path, f"{name!r} is a {histogram.classname}, not a TH1", "name a TH1 histogram")
            counts, edges = histogram.to_numpy(flow=False)
    except InputError:
        raise
    except Exception as error:  # uproot raises whatever the first bad byte leads to
        raise InputError(
            path, f"cannot be read as ROOT ({type(error).__name__})", "it may be truncated: copy it again"
        ) from error
    return np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
