"""The dijet mass of a file as it is, before any selection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from drapes_hep.plots.style import BLUE, INK, RED, Stamp, canvas, log_y, poisson_interval, stamp_axes, styled

__all__ = ["MassPreview", "mass_preview"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MassPreview:
    """What the preview shows.

    Attributes
    ----------
    edges : array, shape (k + 1,)
        GeV, of equal width.
    counts, variances : array, shape (k,)
        Sums of weights and of their squares, of all events.
    signal : array of shape (k,) or None
        The part of ``counts`` that is labelled signal.
    note : str
        Lines of text inside the axes: which events these are.
    weighted : bool
        Whether the counts are sums of weights.
    """

    edges: FloatArray
    counts: FloatArray
    variances: FloatArray
    signal: FloatArray | None = None
    note: str = ""
    weighted: bool = False


@styled
def mass_preview(data: MassPreview, stamp: Stamp) -> Figure:
    """Draw m_JJ of a file, labelled events apart.

    Bars are 68% intervals of Poisson means; of weighted events, the root of the sum of squared weights.

    Parameters
    ----------
    data : MassPreview
        At least one bin.
    stamp : Stamp
        Text above the axes.

    Returns
    -------
    Figure
    """
    fig, axes = canvas(8.0, 6.0, rows=(1.0,), left=1.05, right=0.3, top=0.55, bottom=0.85)
    ax = axes[0, 0]
    centre = 0.5 * (data.edges[1:] + data.edges[:-1])
    filled = data.counts > 0
    if data.signal is not None:
        rest = data.counts - data.signal
        ax.stairs(rest, data.edges, fill=True, color=BLUE, alpha=0.35, lw=0, label="labelled background")
        ax.stairs(data.signal, data.edges, color=RED, lw=1.8, label="labelled signal")
    counts = data.counts[filled]
    if data.weighted:
        error = np.tile(np.sqrt(data.variances[filled]), (2, 1))
    else:
        bounds = poisson_interval(counts)
        error = np.stack([counts - bounds[0], bounds[1] - counts])
    ax.errorbar(centre[filled], counts, error, fmt="o", color=INK, ms=4, lw=1.1, label="all events")
    low, high = (float(counts.min()), float(counts.max())) if len(counts) else (1.0, 1.0)
    log_y(ax)
    low = min(low, 0.1 * high)
    # headroom for three lines of legend and the note
    ax.set_ylim(0.5 * low, high * max(high / low, 10.0) ** 0.45)
    ax.set_xlim(float(data.edges[0]), float(data.edges[-1]))
    width = float(data.edges[1] - data.edges[0])
    ax.set_xlabel(r"$m_{JJ}$ [GeV]")
    ax.set_ylabel(f"{'Sum of weights' if data.weighted else 'Events'} / {width:g} GeV")
    ax.legend(loc="upper right")
    ax.text(0.03, 0.965, data.note, transform=ax.transAxes, va="top", ha="left", fontsize=12.5, linespacing=1.35)
    stamp_axes(ax, stamp)
    return fig
