"""Upper limits with their expected bands, and the efficiency that they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from drapes_hep.plots.style import (
    INK,
    MARKERS,
    PALETTE,
    RED,
    Stamp,
    canvas,
    efficiency_label,
    log_y,
    stamp_axes,
    styled,
)

__all__ = ["BandPoint", "EfficiencyCurve", "limit_bands", "trained_efficiencies"]

FloatArray = npt.NDArray[np.float64]

_ONE, _TWO = "#607641", "#f5bb54"
"""The bands of one and two standard deviations: green and yellow that the colour-blind tell apart."""


@dataclass(frozen=True)
class BandPoint:
    """A limit. Infinite where the largest signal that was tried is not excluded.

    Attributes
    ----------
    x : float
        Position, such as a mass in GeV.
    name : str
        Label at this position; empty where x is a number.
    observed : float or None
        None where nothing was observed.
    expected : tuple of five floats
        At -2 to 2 standard deviations.
    other : float or None
        Another expected median, such as that of the count.
    """

    x: float
    name: str
    observed: float | None
    expected: tuple[float, ...]
    other: float | None = None


@dataclass(frozen=True)
class EfficiencyCurve:
    """The efficiency of one cut for a signal, against the signal's size.

    Attributes
    ----------
    background_efficiency : float
        The cut.
    injected : array, shape (injections,)
    values : array, shape (injections, trainings)
    """

    background_efficiency: float
    injected: FloatArray
    values: FloatArray


@styled
def limit_bands(points: Sequence[BandPoint], y_label: str, stamp: Stamp, *, x_label: str, other: str = "") -> Figure:
    """Draw limits with their expected bands.

    Parameters
    ----------
    points : sequence of BandPoint
        With names they are drawn apart; without, they are joined.
    y_label : str
    stamp : Stamp
    x_label : str
    other : str
        What the other median is.

    Returns
    -------
    Figure
        A limit beyond what was tried leaves its point out; an arrow stands at the upper edge.
    """
    fig, axes = canvas(7.6, 6.4, left=1.2)
    ax = axes[0, 0]
    finite = [y for p in points for y in (*p.expected, p.observed, p.other) if y is not None and np.isfinite(y)]
    low, high = (min(finite), max(finite)) if finite else (1.0, 10.0)
    top = high * (high / low) ** 0.05
    if points and points[0].name:
        _draw_apart(ax, points, top)
    else:
        _draw_joined(ax, points, top)
    log_y(ax)
    # room for the legend
    ax.set_ylim(low * (low / high) ** 0.15, high * min((high / low) ** 1.1, 5.0))
    _label_minor(ax)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    observed = [p.observed for p in points if p.observed is not None]
    entries: list[tuple[str, Artist]] = [
        ("Median expected", Line2D([], [], ls="--", color=INK, lw=1.8)),
        ("68% expected", Patch(facecolor=_ONE)),
        ("95% expected", Patch(facecolor=_TWO)),
    ]
    if observed:
        entries.insert(0, ("Observed", Line2D([], [], marker="o", ls="none", color=INK, ms=7)))
    if not np.isfinite(observed).all():
        entries.append(("Observed, beyond", Line2D([], [], marker="^", ls="none", mfc="none", mec=INK, ms=8)))
    if other and any(p.other is not None for p in points):
        entries.append((other, Line2D([], [], ls=":", color=RED, lw=2.0)))
    ax.legend(
        [handle for _, handle in entries], [name for name, _ in entries], loc="upper left", ncols=2,
        title="Upper limits at 95% CL", alignment="left",
    )  # fmt: skip
    stamp_axes(ax, stamp)
    return fig


def _label_minor(ax: Axes) -> None:
    """Label 2 and 5 of each decade, in plain numbers, where the axis has less than two decades."""
    low, high = ax.get_ylim()
    if high / low < 100:
        ax.yaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 5.0, 7.0)))
        ax.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _draw_apart(ax: Axes, points: Sequence[BandPoint], top: float) -> None:
    for place, point in enumerate(points):
        lower2, lower1, median, upper1, upper2 = (min(y, top) for y in point.expected)
        width = 0.36
        for low, high, colour in ((lower2, upper2, _TWO), (lower1, upper1, _ONE)):
            ax.fill_between([place - width, place + width], low, high, color=colour, lw=0)
        if np.isfinite(point.expected[2]):
            ax.hlines(median, place - width, place + width, color=INK, ls="--", lw=1.8)
        if point.other is not None and np.isfinite(point.other):
            ax.hlines(point.other, place - width, place + width, color=RED, ls=":", lw=2.0)
        _draw_observed(ax, place, point.observed, top)
    ax.set_xticks(range(len(points)), [p.name for p in points])
    ax.set_xticks([], minor=True)
    ax.set_xlim(-0.6, len(points) - 0.4)


def _draw_joined(ax: Axes, points: Sequence[BandPoint], top: float) -> None:
    ordered = sorted(points, key=lambda p: p.x)
    x = np.array([p.x for p in ordered])
    bands = np.array([[min(y, top) for y in p.expected] for p in ordered])
    for low, high, colour in ((0, 4, _TWO), (1, 3, _ONE)):
        ax.fill_between(x, bands[:, low], bands[:, high], color=colour, lw=0)
    median = np.where([np.isfinite(p.expected[2]) for p in ordered], bands[:, 2], np.nan)
    ax.plot(x, median, "--", color=INK, lw=1.8)
    if any(p.other is not None for p in ordered):
        others = np.array([np.nan if p.other is None else p.other for p in ordered])
        ax.plot(x, np.where(np.isfinite(others), others, np.nan), ":", color=RED, lw=2.0)
    for point in ordered:
        _draw_observed(ax, point.x, point.observed, top)


def _draw_observed(ax: Axes, x: float, observed: float | None, top: float) -> None:
    if observed is None:
        return
    if np.isfinite(observed):
        ax.plot(x, observed, "o", color=INK, ms=7, zorder=5)
    else:
        ax.plot(x, top, "^", mfc="none", mec=INK, ms=8, zorder=5)


@styled
def trained_efficiencies(curves: Sequence[EfficiencyCurve], x_label: str, stamp: Stamp) -> Figure:
    """Draw the efficiency of each cut for a signal against the signal's size: each training, and their mean.

    Parameters
    ----------
    curves : sequence of EfficiencyCurve
    x_label : str
    stamp : Stamp

    Returns
    -------
    Figure
    """
    fig, axes = canvas(7.6, 6.0)
    ax = axes[0, 0]
    for i, curve in enumerate(curves):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        # a little apart, or the trainings of two cuts hide each other
        x = curve.injected * (1.0 + 0.03 * (i - 0.5 * (len(curves) - 1)))
        for place, values in zip(x, curve.values, strict=True):
            ax.plot(np.full(len(values), place), values, marker, color=colour, ms=4.5, mfc="none", alpha=0.8)
        ax.plot(
            curve.injected, curve.values.mean(axis=1), "-", color=colour, marker=marker, ms=6,
            label=efficiency_label(curve.background_efficiency),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks(curves[0].injected if curves else [], [f"{x:g}" for x in curves[0].injected] if curves else [])
    ax.set_xticks([], minor=True)
    ax.set_ylim(0, 1.4 * max((float(curve.values.max()) for curve in curves), default=1.0) + 0.02)
    ax.set_xlabel(x_label)
    ax.set_ylabel("Part of the signal that passes")
    ax.legend(title="Mean of the trainings, and each of them", alignment="left", loc="upper left")
    stamp_axes(ax, stamp)
    return fig
