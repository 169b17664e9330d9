"""Mass windows: the signal region, its sidebands, the sliding scan, and what blinding hides.

A window is half open, ``lo <= m_JJ < hi``, so that neighbouring windows share no event. All masses in GeV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.caller import option
from drapes_hep.config import Config
from drapes_hep.errors import ConfigError
from drapes_hep.events.ranges import in_ranges

__all__ = ["Window", "blinded", "parse_window", "sliding_windows", "uncovered"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, order=True)
class Window:
    """A signal region and the range whose rest is its sidebands.

    Attributes
    ----------
    lo, hi : float
        The signal region, GeV.
    range_lo, range_hi : float
        The range of the selected events, GeV; sidebands are this range without the signal region.
    """

    lo: float
    hi: float
    range_lo: float
    range_hi: float

    def __post_init__(self) -> None:
        if not self.lo < self.hi:
            raise ConfigError(f"window {self.lo:g}-{self.hi:g} is inverted or empty: its lower edge must come first")
        if not self.range_lo < self.lo or not self.hi < self.range_hi:
            raise ConfigError(
                f"window {self.lo:g}-{self.hi:g} leaves no sideband on one side of the range"
                f" {self.range_lo:g}-{self.range_hi:g} GeV"
            )

    @property
    def name(self) -> str:
        """The window as folders are named, ``3300-3700``."""
        return f"{self.lo:g}-{self.hi:g}"

    @property
    def centre(self) -> float:
        """The middle of the signal region, GeV."""
        return 0.5 * (self.lo + self.hi)

    def in_signal_region(self, mjj: npt.ArrayLike) -> BoolArray:
        """Return which masses (any shape, GeV) are in the signal region."""
        m = np.asarray(mjj)
        return np.asarray((m >= self.lo) & (m < self.hi), dtype=np.bool_)

    def in_sidebands(self, mjj: npt.ArrayLike) -> BoolArray:
        """Return which masses (any shape, GeV) are in the sidebands."""
        m = np.asarray(mjj)
        inside = (m >= self.range_lo) & (m < self.range_hi)
        return np.asarray(inside & ~self.in_signal_region(m), dtype=np.bool_)


def sliding_windows(config: Config) -> tuple[Window, ...]:
    """Return the windows of a search, from low to high mass.

    Parameters
    ----------
    config : Config
        Its ``windows`` and ``mass.range`` are used.

    Returns
    -------
    tuple of Window
    """
    scan, (low, high) = config.windows, config.mass.range
    count = math.floor((scan.last - scan.first) / scan.step + 1e-9) + 1
    starts = (scan.first + i * scan.step for i in range(count))
    return tuple(Window(start, start + scan.width, low, high) for start in starts)


def parse_window(text: str, windows: Sequence[Window]) -> Window:
    """Find the window that a user names as ``LO-HI``.

    Raises
    ------
    ConfigError
        If the text is not a window of this search.
    """
    try:
        low, high = (float(part) for part in text.split("-"))
    except ValueError:
        raise ConfigError(f"{option('window', text)}: expected LO-HI in GeV, e.g. 3300-3700") from None
    if not low < high:
        raise ConfigError(f"{option('window', text)}: the window is inverted, its lower edge must come first")
    for window in windows:
        if math.isclose(window.lo, low) and math.isclose(window.hi, high):
            return window
    names = ", ".join(window.name for window in windows)
    raise ConfigError(f"{option('window', text)}: not a window of this search; it has {names}")


def blinded(mjj: npt.NDArray[Any], windows: Sequence[Window]) -> BoolArray:
    """Return which masses are in any window: what a blinded search neither counts nor draws after a selection."""
    return in_ranges(mjj, [(window.lo, window.hi) for window in windows])


def uncovered(mass_range: tuple[float, float], windows: Sequence[Window]) -> tuple[tuple[float, float], ...]:
    """Return the parts of a mass range that lie in no window.

    Parameters
    ----------
    mass_range : tuple of two floats
        GeV.
    windows : sequence of Window

    Returns
    -------
    tuple of pairs of float
        Rising and disjoint, GeV.
    """
    low, high = mass_range
    parts: list[tuple[float, float]] = []
    for window in sorted(windows, key=lambda window: window.lo):
        if window.lo > low:
            parts.append((low, min(window.lo, high)))
        low = max(low, window.hi)
    if low < high:
        parts.append((low, high))
    return tuple(parts)
