"""Figures of studies: lines with bands over seeds, in panels; a template has the same colour in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from drapes_hep.plots.style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    OLIVE,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    Stamp,
    canvas,
    stamp_figure,
    styled,
)

__all__ = ["FEW_SEEDS", "Band", "Panel", "study_panels"]

FloatArray = npt.NDArray[np.float64]

FEW_SEEDS = 6
"""Below this many values, quantiles for 68% would be well inside the values' own scatter (0.57 of it for three)."""

_LOOKS: dict[str, tuple[str, str]] = {
    "Drapes 0": (BLUE, "-"),
    "Drapes SR": (RED, "-"),
    "Drapes SB": (ORANGE, "-"),
    "Drapes MC": (PURPLE, "-"),
    "Drapes 0 at sigma'": (OLIVE, "-"),
    "Drapes 0 LLV": (ORANGE, "-"),
    "Drapes SR LLV": (PURPLE, "-"),
    "Drapes SB LLV": (OLIVE, "-"),
    "Supervised LLV": (INK, ":"),
    "Over-idealised LLV": (INK, "--"),
    "Idealised LLV": (GREY, "--"),
    "Supervised": (INK, ":"),
    "Over-idealised": (INK, "--"),
    "Idealised": (GREY, "--"),
    "CWoLa hunting": (GREY, "-."),
    "Signal": (RED, "-"),
    "Background": (BLUE, "-"),
    "Signal, carried": (RED, "--"),
    "Background, carried": (BLUE, "--"),
}


@dataclass(frozen=True)
class Band:
    """A line with a band; arrays of shape (n,), NaN where there is nothing.

    Attributes
    ----------
    label : str
        For the legend.
    x, median, low, high : array
        ``low`` and ``high`` are the central 68% over seeds, or the range of fewer than :data:`FEW_SEEDS`.
    marked : bool
        Whether each point has a marker: for few points.
    seeds : int
        Number of repetitions.
    repeated : str
        What was repeated.
    """

    label: str
    x: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray
    marked: bool = True
    seeds: int = 1
    repeated: str = "seeds"


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    x_label, y_label : str
    bands : sequence of Band
    title : str
        Inside the axes, above the lines.
    log_x : bool
    level : float, optional
        Position of a thin horizontal line, with its meaning.
    meaning : str
    random : bool
        Whether the line of a random choice is drawn: SIC against rejection.
    from_zero : bool
        Whether the y axis starts at 0.
    names : sequence of str
        Labels at x = 0, 1, ..., if x is categorical; points are then not joined.
    zone : tuple of two floats, optional
        Values of y between which the axes are shaded, with its meaning.
    zone_meaning : str
    """

    x_label: str
    y_label: str
    bands: Sequence[Band]
    title: str = ""
    log_x: bool = False
    level: float | None = None
    meaning: str = ""
    random: bool = False
    from_zero: bool = False
    names: Sequence[str] = ()
    zone: tuple[float, float] | None = None
    zone_meaning: str = ""


def _look(band: Band, index: int) -> tuple[str, str, str]:
    colour, line = _LOOKS.get(band.label, (PALETTE[index % len(PALETTE)], "-"))
    return colour, line, MARKERS[index % len(MARKERS)] if band.marked else ""


@styled
def study_panels(panels: Sequence[Panel], stamp: Stamp) -> Figure:
    """Draw panels side by side, up to three a row (four in two rows), with one legend.

    Parameters
    ----------
    panels : sequence of Panel
    stamp : Stamp

    Returns
    -------
    Figure
    """
    across = min(2 if len(panels) == 4 else 3, len(panels))
    rows = -(-len(panels) // across)
    labels = list(dict.fromkeys(band.label for panel in panels for band in panel.bands))
    legend_width = 2.9
    # upright names take room below the axes
    deep = 0.085 * max((len(name) for panel in panels for name in panel.names), default=0)
    width, height = 5.4 * across + 0.5 + legend_width, 4.9 * rows + 0.6 + deep
    fig, axes = canvas(
        width,
        height,
        rows=(1.0,) * rows,
        columns=across,
        left=0.95,
        right=legend_width,
        top=0.55,
        bottom=0.85 + deep,
        wspace=0.26,
        hspace=0.28,
    )
    handles: dict[str, Any] = {}
    for panel, ax in zip(panels, axes.flat, strict=False):
        _draw_panel(ax, panel, labels, handles)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    seeds = max((band.seeds for panel in panels for band in panel.bands), default=1)
    if seeds > 1:
        what = max((band for panel in panels for band in panel.bands), key=lambda band: band.seeds).repeated
        handles[f"{'Range' if seeds < FEW_SEEDS else '68%'} of {seeds} {what}"] = Patch(color=GREY, alpha=0.35, lw=0)
    fig.legend(
        list(handles.values()),
        list(handles),
        loc="upper left",
        bbox_to_anchor=(1 - (legend_width - 0.15) / width, 1 - 0.5 / height),
        frameon=False,
    )
    stamp_figure(fig, stamp, 0.95 / width, 1 - 0.36 / height)
    return fig


def _draw_panel(ax: Axes, panel: Panel, labels: Sequence[str], handles: dict[str, Any]) -> None:
    """Draw one panel; what it draws for the first time joins the legend's ``handles``."""
    for band in panel.bands:
        handles.setdefault(band.label, _draw_band(ax, band, labels.index(band.label), joined=not panel.names))
    top = max((float(np.nanmax(band.high)) for band in panel.bands if np.isfinite(band.high).any()), default=-np.inf)
    x = np.concatenate([band.x for band in panel.bands]) if panel.bands else np.array([1.0])
    if panel.random:
        line_x = np.geomspace(max(float(np.nanmin(x)), 1.0), float(np.nanmax(x)), 100)
        (handles["Random choice"],) = ax.plot(line_x, 1 / np.sqrt(line_x), color=GREY, ls=(0, (1, 2)), lw=1.2)
    if panel.level is not None:
        handles[panel.meaning] = ax.axhline(panel.level, color=GREY, lw=1.0, ls=(0, (4, 3)), zorder=0)
    if panel.zone is not None:
        handles[panel.zone_meaning] = ax.axhspan(*panel.zone, color=GREY, alpha=0.15, lw=0, zorder=0)
    if panel.log_x:
        _log_x(ax, x, empty=not np.isfinite(top))
    if np.isfinite(top):
        low = min(0.0, ax.get_ylim()[0]) if panel.from_zero else ax.get_ylim()[0]
        # room for the title
        ax.set_ylim(low, low + (max(top, panel.level or -np.inf) - low) * 1.2)
    if panel.names:
        ax.set_xticks(range(len(panel.names)), panel.names, rotation=90, fontsize=12)
        ax.set_xlim(-0.6, len(panel.names) - 0.4)
        ax.tick_params(axis="x", which="minor", bottom=False, top=False)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.text(0.96, 0.955, panel.title, transform=ax.transAxes, ha="right", va="top", fontsize=13)


def _draw_band(ax: Axes, band: Band, index: int, *, joined: bool) -> Any:
    colour, line, marker = _look(band, index)
    if not joined:
        error = np.abs(np.stack([band.low, band.high]) - band.median)
        return ax.errorbar(band.x, band.median, error, color=colour, ls="", marker=marker, ms=6)
    (drawn,) = ax.plot(band.x, band.median, color=colour, ls=line, marker=marker, ms=6)
    ax.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, lw=0)
    return drawn


def _log_x(ax: Axes, x: FloatArray, *, empty: bool) -> None:
    if empty:
        # without any number to draw, the axes do not know where they are
        ax.set_xlim(0.8 * float(np.nanmin(x)), 1.25 * float(np.nanmax(x)))
    ax.set_xscale("log")
    if np.nanmax(x) / max(float(np.nanmin(x)), 1e-12) <= 10:
        # within a decade powers of ten say little
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
