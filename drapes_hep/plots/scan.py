"""The scan over windows: local p-values, and what pseudo-experiments make of the smallest one."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from scipy import special

from drapes_hep.errors import counted
from drapes_hep.plots.style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    RED,
    Stamp,
    canvas,
    efficiency_label,
    log_y,
    number,
    stamp_axes,
    styled,
)

__all__ = ["GlobalP", "LocalP", "local_p_scan", "toy_distribution"]


_COUNTED = 10
"""With fewer pseudo-experiments as extreme as the data the measured p has an error of a third and more."""


@dataclass(frozen=True)
class LocalP:
    """One working point of one window; ``p_local`` is None where nothing is quoted."""

    window: tuple[float, float]
    background_efficiency: float
    p_local: float | None


@dataclass(frozen=True)
class GlobalP:
    """The significance of the whole search.

    Attributes
    ----------
    p, z : float or None
        None without pseudo-experiments.
    interval : tuple of float or None
        Of p, 95%.
    bound : bool
        No pseudo-experiment was as extreme: p is an upper bound, z a lower one.
    toys, exceeding : int
        Pseudo-experiments, and how many were as extreme.
    extrapolated, extrapolated_z : float or None
        From the distribution of the pseudo-experiments' smallest p-values.
    extrapolated_interval : tuple of float or None
        Its 68% interval.
    trials : float or None
        The effective number of trials.
    reason : str
        Why p is None, if it is.
    """

    p: float | None = None
    z: float | None = None
    interval: tuple[float, float] | None = None
    bound: bool = False
    toys: int = 0
    exceeding: int = 0
    extrapolated: float | None = None
    extrapolated_z: float | None = None
    extrapolated_interval: tuple[float, float] | None = None
    trials: float | None = None
    reason: str = ""

    @property
    def quotes_extrapolation(self) -> bool:
        """Whether so few pseudo-experiments were as extreme that the extrapolated value is the one to quote."""
        return self.extrapolated is not None and self.exceeding < _COUNTED

    @property
    def text(self) -> str:
        """The p-value as a bound where it is one; where it is extrapolated, the measured one on a second line."""
        if self.p is None:
            return textwrap.fill(f"global p: not quoted{self.reason and f' ({self.reason})'}", 80)
        sign, zsign = (r"\leq", r"\geq") if self.bound else ("=", "=")
        z = "" if self.z is None else rf", $z {zsign} \mathrm{{{self.z:.2f}}}$"
        interval = ""
        if self.interval is not None and not self.bound:
            interval = rf" [${number(self.interval[0], 2)}$, ${number(self.interval[1], 2)}$]"
        none = "none of " if self.bound else ""
        measured = rf"$p {sign} {number(self.p, 2)}${interval}{z} ({none}{counted(self.toys, 'pseudo-experiment')})"
        if not self.quotes_extrapolation:
            return f"global {measured}"
        z = "" if self.extrapolated_z is None else rf", $z = \mathrm{{{self.extrapolated_z:.2f}}}$"
        return rf"global $p = {number(self.extrapolated, 2)}${z} (extrapolated)" + f"\nmeasured {measured}"


@styled
def local_p_scan(points: Sequence[LocalP], stamp: Stamp, *, overall: GlobalP | None = None) -> Figure:
    """Draw the local p-values of all windows and working points.

    Parameters
    ----------
    points : sequence of LocalP
    stamp : Stamp
    overall : GlobalP, optional
        Quoted below the axes.

    Returns
    -------
    Figure
        Horizontal bars are the windows' widths. Where nothing is quoted, the line is broken and an open mark stands
        above p = 1.
    """
    fig, axes = canvas(8.6, 7.1, right=0.6, bottom=1.85)
    ax = axes[0, 0]
    cuts = sorted({p.background_efficiency for p in points}, reverse=True)
    quoted = [p.p_local for p in points if p.p_local is not None]
    smallest = max(min([*quoted, 0.1]), 1e-300)
    depth = max(-math.log10(smallest), 2.0)
    # the smallest double bounds both p and the axis
    ceiling, floor = 10 ** (0.16 * depth), max(10 ** (-1.12 * depth), 1e-306)
    handles: list[Artist] = []
    for i, cut in enumerate(cuts):
        rows = sorted((p for p in points if p.background_efficiency == cut), key=lambda p: p.window)
        handles.append(_draw_cut(ax, rows, i, len(cuts), depth))
    names = [efficiency_label(cut) for cut in cuts]
    if len(quoted) < len(points):
        handles.append(Line2D([], [], color=GREY, marker="o", mfc="none", ls="none", ms=6))
        names.append("not quoted")
    log_y(ax)
    ax.set_ylim(floor, ceiling)
    ax.axhline(1.0, color=INK, lw=0.7)
    _draw_levels(ax, floor)
    # p-values above 1 do not exist: the strip for open marks has no ticks
    decades = range(0, -math.floor(-1.12 * depth) + 1, max(1, math.ceil(depth / 7)))
    ax.set_yticks([10.0**-d for d in decades if 10.0**-d >= floor])
    if depth < 8:
        ax.yaxis.set_minor_locator(LogLocator(subs=tuple(range(2, 10)), numticks=200))
        ax.set_yticks([t for t in ax.get_yticks(minor=True) if floor <= t < 1], minor=True)
    else:
        ax.set_yticks([], minor=True)
    edges = [e for p in points for e in p.window]
    ax.set_xlim(min(edges, default=0) - 60, max(edges, default=1) + 60)
    ax.set_xlabel(r"$m_{JJ}$ of the window [GeV]")
    ax.set_ylabel(r"Local $p$-value")
    title = None if overall is None else overall.text
    fig.legend(
        handles, names, loc="lower center", ncols=min(5, len(names)), title=title, title_fontsize=13.5,
        bbox_to_anchor=(0.53, 0.005),
    )  # fmt: skip
    stamp_axes(ax, stamp)
    return fig


def _draw_cut(ax: Axes, rows: Sequence[LocalP], i: int, cuts: int, depth: float) -> Line2D:
    """Draw the windows of one cut, the ``i``-th of ``cuts``; returns the legend's handle."""
    colour, marker = (INK, *PALETTE)[i % 7], MARKERS[i % 6]
    width = np.array([p.window[1] - p.window[0] for p in rows])
    # a little apart, or the markers of one window hide each other
    middle = np.array([0.5 * sum(p.window) for p in rows])
    centre = middle + (i - 0.5 * (cuts - 1)) * 0.05 * width
    p = np.array([math.nan if r.p_local is None else max(r.p_local, 1e-300) for r in rows])
    style = "--" if rows[0].background_efficiency >= 1 else "-"
    ax.plot(centre, p, color=colour, lw=1.2, alpha=0.8, ls=style, zorder=3)
    finite = np.isfinite(p)
    ax.plot(centre[finite], p[finite], marker, color=colour, ms=6, zorder=4)
    low, high = (middle - 0.5 * width)[finite], (middle + 0.5 * width)[finite]
    ax.hlines(p[finite], low, high, color=colour, lw=0.9, ls=style, zorder=3)
    if (~finite).any():
        level = 10 ** (depth * (0.035 + 0.11 * i / cuts))
        ax.plot(centre[~finite], np.full(int((~finite).sum()), level), marker, mfc="none", mec=colour, ms=6, ls="none")
    return Line2D([], [], color=colour, marker=marker, ls=style, ms=6)


def _draw_levels(ax: Axes, floor: float) -> None:
    """Draw lines at whole standard deviations, at most some eight."""
    deepest = int(-special.ndtri(max(floor, 1e-300)))
    step = max(1, math.ceil(deepest / 8))
    for z in range(step, deepest + 1, step):
        level = float(special.ndtr(-z))
        ax.axhline(level, color=GREY, lw=0.8, ls=":", zorder=1)
        ax.annotate(
            rf"{z}$\sigma$", (1.0, level), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=12, color="#555b66", annotation_clip=False,
        )  # fmt: skip


@styled
def toy_distribution(smallest_p: npt.ArrayLike, observed: float | None, stamp: Stamp) -> Figure:
    """Draw the smallest local p-value of each pseudo-experiment, and the data's.

    Parameters
    ----------
    smallest_p : array_like, shape (toys,)
        Under background only.
    observed : float or None
        The data's; None draws none.
    stamp : Stamp

    Returns
    -------
    Figure
        The legend states how many pseudo-experiments are at least as extreme.
    """
    x = -np.log10(np.clip(np.asarray(smallest_p, dtype=np.float64), 1e-300, 1.0))
    fig, axes = canvas(7.6, 5.8)
    ax = axes[0, 0]
    data = None if observed is None else -math.log10(max(observed, 1e-300))
    toys_end = float(x.max(initial=1.0))
    step = max(0.1, round(toys_end / 45, 2))
    edges = np.arange(0.0, toys_end + 1.5 * step, step)
    counts = np.histogram(x, edges)[0].astype(np.float64)
    beyond = counts.copy()
    ax.stairs(counts, edges, color=BLUE, fill=True, alpha=0.35)
    ax.stairs(counts, edges, color=BLUE, lw=1.3, label=f"{counted(len(x), 'pseudo-experiment')}, background only")
    centre = 0.5 * (edges[1:] + edges[:-1])
    nonempty = counts > 0
    ax.errorbar(centre[nonempty], counts[nonempty], np.sqrt(counts[nonempty]), fmt="none", ecolor=BLUE, lw=1)
    end = edges[-1]
    if data is not None:
        at_least = int((np.asarray(smallest_p, dtype=np.float64) <= (observed or 0.0) * (1 + 1e-9)).sum())
        beyond = np.where(edges[:-1] >= data, counts, 0.0)
        ax.stairs(beyond, edges, color=RED, fill=True, alpha=0.6)
        text = rf"data: $p = {number(observed, 2)}$; {at_least} of {len(x)} at least as extreme"
        ax.axvline(data, 0, 0.8, color=RED, lw=2, label=text)  # under the legend
        end = max(end, 1.06 * data)
    log_y(ax)
    ax.set_ylim(0.5, max(float(counts.max(initial=1.0)), 1.0) * 12)
    ax.set_xlim(0, end)
    ax.set_xlabel(r"$-\log_\mathrm{10}$ of the smallest local $p$-value")
    ax.set_ylabel(f"Pseudo-experiments / {step:g}")
    ax.legend(loc="upper right")
    stamp_axes(ax, stamp)
    return fig
