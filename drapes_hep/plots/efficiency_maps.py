"""The efficiency of cuts for signals, over the masses of the daughters of the resonance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from drapes_hep.plots.style import INK, Stamp, canvas, efficiency_label, stamp_figure, styled

__all__ = ["MapPoint", "efficiency_maps"]


@dataclass(frozen=True)
class MapPoint:
    """A signal.

    Attributes
    ----------
    mass_b, mass_c : float
        Of the daughters, GeV.
    efficiencies : mapping of float to (float, float)
        Mean and spread over trainings for each cut; a spread that does not exist is NaN.
    """

    mass_b: float
    mass_c: float
    efficiencies: Mapping[float, tuple[float, float]]


@styled
def efficiency_maps(points: Sequence[MapPoint], title: str, stamp: Stamp) -> Figure:
    """Draw a map for each cut, in the colours of one scale; the numbers are mean and spread.

    Parameters
    ----------
    points : sequence of MapPoint
    title : str
        What they have in common.
    stamp : Stamp

    Returns
    -------
    Figure
    """
    cuts = sorted({cut for point in points for cut in point.efficiencies}, reverse=True)
    across = max(len(cuts), 1)
    left, right, bar = 1.0, 1.35, 0.18
    width, height = 4.9 * across + left + right, 5.9
    fig, axes = canvas(width, height, columns=across, left=left, right=right, top=1.25, wspace=0.12)
    largest = max((mean for point in points for mean, _ in point.efficiencies.values()), default=1.0)
    norm = Normalize(0.0, largest or 1.0)
    for cut, ax in zip(cuts, axes[0], strict=False):
        _draw_map(ax, points, cut, norm)
        ax.set_title(efficiency_label(cut), fontsize=15, loc="right", pad=6)
        ax.set_xlabel(r"$m_B$ [GeV]")
        if ax is not axes[0, 0]:
            ax.tick_params(labelleft=False)
    axes[0, 0].set_ylabel(r"$m_C$ [GeV]")
    last = axes[0, -1].get_position()
    scale = fig.add_axes((1 - (right - 0.15) / width, last.y0, bar / width, last.height))
    fig.colorbar(ScalarMappable(norm, "cividis"), cax=scale)
    scale.set_ylabel("Part of the signal that passes", fontsize=14)
    scale.tick_params(labelsize=12)
    stamp_figure(fig, stamp, left / width, 1 - 0.34 / height)
    fig.text(left / width, 1 - 0.78 / height, title, fontsize=15)
    return fig


def _draw_map(ax: Axes, points: Sequence[MapPoint], cut: float, norm: Normalize) -> None:
    colours = mpl.colormaps["cividis"]
    rows = max(len({point.mass_b for point in points}), len({point.mass_c for point in points}), 1)
    # three quarters of the room that a point has on axes of 4.4 inches, in points of 1/72 inch
    side = min(44.0, 0.75 * 72 * 4.4 / (rows + 0.4))
    shown = [(point.mass_b, point.mass_c, *point.efficiencies[cut]) for point in points if cut in point.efficiencies]
    for first, second, mean, spread in shown:
        colour = colours(float(norm(mean)))
        ax.plot(first, second, "s", ms=side, color=colour, mec="none")
        text = f"{mean:.2f}" if not np.isfinite(spread) else f"{mean:.2f}\n±{spread:.2f}"
        ink, size = INK if norm(mean) > 0.5 else "white", min(12.0, 0.27 * side)
        ax.text(first, second, text, ha="center", va="center", fontsize=size, color=ink)
    for set_ticks, set_range, masses in (
        (ax.set_xticks, ax.set_xlim, {point.mass_b for point in points}),
        (ax.set_yticks, ax.set_ylim, {point.mass_c for point in points}),
    ):
        values = sorted(masses)
        gap = max((values[-1] - values[0]) / max(len(values) - 1, 1), 1.0)
        set_ticks(values, [f"{value:g}" for value in values])
        set_ticks([], minor=True)
        set_range(values[0] - 0.7 * gap, values[-1] + 0.7 * gap)
