"""The resonance fit against mass: significance and fitted signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from drapes_hep.plots.style import (
    INK,
    MARKERS,
    PALETTE,
    SHADE,
    Stamp,
    canvas,
    efficiency_label,
    inner_ticks,
    place_y_labels,
    share_x,
    stamp_axes,
    styled,
)

__all__ = ["FittedMass", "resonance_scan"]


@dataclass(frozen=True)
class FittedMass:
    """The fit of one mass at one cut; numbers are None where nothing is quoted.

    Attributes
    ----------
    mass : float
        GeV.
    window : tuple of float or None
        Whose classifier the cut is of; None without a cut.
    background_efficiency : float
    z, signal, error : float or None
    z_included : float or None
        With a stronger resonance included in the background.
    """

    mass: float
    window: tuple[float, float] | None
    background_efficiency: float
    z: float | None
    signal: float | None
    error: float | None
    z_included: float | None = None


@styled
def resonance_scan(
    points: Sequence[FittedMass], stamp: Stamp, *, unsearched: Sequence[tuple[float, float]] = ()
) -> Figure:
    """Draw z and the fitted signal against mass.

    Parameters
    ----------
    points : sequence of FittedMass
    stamp : Stamp
    unsearched : sequence of tuple of two floats
        Ranges that no window covers, GeV: shaded.

    Returns
    -------
    Figure
        Lines join the masses of one window and cut, and break where nothing is quoted; dashed with a stronger resonance
        included. The axis of the signal is
        logarithmic on both sides of 0, as cuts differ by orders of magnitude in the signal that passes.
    """
    fig, axes = canvas(8.6, 8.0, rows=(1.5, 1.0), right=0.4, bottom=1.55)
    top, bottom = axes[:, 0]
    share_x(top, bottom)
    cuts = sorted({p.background_efficiency for p in points}, reverse=True)
    for i, cut in enumerate(cuts):
        colour, marker = _style(i)
        of_cut = [p for p in points if p.background_efficiency == cut]
        for _, group in groupby(of_cut, key=lambda p: p.window):
            _draw(top, bottom, list(group), colour, marker)
    for ax in (top, bottom):
        ax.axhline(0, color=INK, lw=0.8)
        for low, high in unsearched:
            ax.axvspan(low, high, color=SHADE, lw=0, zorder=0)
    z = [x for p in points for x in (p.z, p.z_included) if x is not None]
    inner_ticks(top, min([-3.0, *(1.15 * x for x in z)]), max([4.0, *(1.15 * x for x in z)]))
    for level in (-2, 2):
        top.axhline(level, color=INK, lw=0.6, ls=":")
    errors = [p.error for p in points if p.error is not None and math.isfinite(p.error) and p.error > 0]
    bottom.set_yscale("symlog", linthresh=10.0 ** math.ceil(math.log10(min(errors, default=1.0))), linscale=0.7)
    masses = [p.mass for p in points]
    bottom.set_xlim(min(masses, default=0.0), max(masses, default=1.0))
    bottom.set_xlabel("Mass of the resonance [GeV]")
    top.set_ylabel("Local significance $z$")
    bottom.set_ylabel("Fitted signal that passes")
    names, handles = zip(*_legend(cuts, points, bool(unsearched)).items(), strict=True)
    fig.legend(handles, names, loc="lower center", ncols=3, bbox_to_anchor=(0.53, 0.005))
    stamp_axes(top, stamp)
    place_y_labels(top, bottom)
    return fig


def _style(place: int) -> tuple[str, str]:
    return (INK, *PALETTE)[place % 7], MARKERS[place % 6]


def _legend(cuts: Sequence[float], points: Sequence[FittedMass], shaded: bool) -> dict[str, Artist]:
    """Return names and handles."""
    legend: dict[str, Artist] = {}
    for i, cut in enumerate(cuts):
        colour, marker = _style(i)
        legend[efficiency_label(cut)] = Line2D([], [], color=colour, marker=marker, ms=4)
    if shaded:
        legend["in no window: no cut applied"] = Patch(color=SHADE)
    if any(p.z_included is not None for p in points):
        legend["strongest included"] = Line2D([], [], color=INK, lw=1.0, ls="--")
    return legend


def _draw(top: Axes, bottom: Axes, points: Sequence[FittedMass], colour: str, marker: str) -> None:
    """Draw the masses of one window and cut; NaN breaks a line."""
    mass, z, signal, error, included = (
        np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        for values in zip(*((p.mass, p.z, p.signal, p.error, p.z_included) for p in points), strict=True)
    )
    top.plot(mass, included, color=colour, lw=1.0, ls="--", zorder=2)
    top.plot(mass, z, color=colour, marker=marker, ms=3.5, lw=1.1, zorder=3)
    bottom.errorbar(mass, signal, error, fmt=marker, color=colour, ms=3.0, elinewidth=0.7, zorder=3)
