"""The classifier: ROC and SIC curves, the tail of the score, who passes the cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from drapes_hep.metrics import Roc
from drapes_hep.plots.style import (
    BLUE,
    INK,
    MARKERS,
    PALETTE,
    RED,
    Stamp,
    canvas,
    efficiency_label,
    inner_ticks,
    log_y,
    place_y_labels,
    poisson_interval,
    ratio_interval,
    share_x,
    stamp_axes,
    styled,
)

__all__ = ["Passing", "passing_fraction", "roc_curve", "score_distribution", "sic_curve"]

FloatArray = npt.NDArray[np.float64]

LEAST_BACKGROUND = 10.0
"""Background events below which a curve is dotted: there it is a fluctuation."""


@dataclass(frozen=True)
class Passing:
    """How many data events of a region pass a cut.

    Attributes
    ----------
    window : tuple of float
        The signal region whose classifier cuts, GeV.
    region : str
        ``"lower sideband"``, ``"window"`` or ``"upper sideband"``.
    background_efficiency : float
        Of the cut on the template.
    passed, total : float
        Events.
    """

    window: tuple[float, float]
    region: str
    background_efficiency: float
    passed: float
    total: float


def _colours(count: int) -> list[object]:
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    # many curves are windows in order of mass: an ordered map says which is which better than a cycle does
    return [colormaps["viridis"](x) for x in np.linspace(0.0, 0.9, count)]


def _cuts(curve: Roc) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return (eff S, eff B, relative error S, relative error B), where background passes, thinned for drawing."""
    s, b = curve.signal_efficiency, curve.background_efficiency
    keep = np.flatnonzero((b > 0) & (s > 0))
    if len(keep) > 600:
        # even in log eps_B: vector figures of 100000 points are slow to open and show no more
        grid = np.geomspace(b[keep[0]], b[keep[-1]], 600)
        keep = keep[np.unique(np.searchsorted(b[keep], grid).clip(0, len(keep) - 1))]
    s, b = s[keep], b[keep]
    with np.errstate(divide="ignore", invalid="ignore"):
        error_s = np.sqrt((1 - s) / (s * curve.n_signal))
        error_b = np.sqrt((1 - b) / (b * curve.n_background))
    return s, b, np.nan_to_num(error_s, posinf=0.0), np.nan_to_num(error_b, posinf=0.0)


def _limit(curve: Roc) -> float:
    """Background efficiency under which fewer than ten background events pass; 0 if their number is not known."""
    return LEAST_BACKGROUND / curve.n_background if np.isfinite(curve.n_background) and curve.n_background > 0 else 0.0


def _curve(ax: Axes, x: FloatArray, y: FloatArray, good: npt.NDArray[np.bool_], colour: object, label: str) -> None:
    ax.plot(x[good], y[good], color=colour, label=label, zorder=4)
    dots = ~good
    dots[1:] |= ~good[:-1]
    dots[:-1] |= ~good[1:]  # from the last good cut on, or the curve has a gap
    ax.plot(x[dots], y[dots], color=colour, alpha=0.8, lw=1.2, ls=":", zorder=3)


def _legend(ax: Axes, curves: Mapping[str, Roc], **options: Any) -> None:
    """Make the legend, with an entry for what dots mean if a curve has any."""
    handles, names = ax.get_legend_handles_labels()
    if any(bool((_cuts(curve)[1] < _limit(curve)).any()) for curve in curves.values()):
        handles.append(Line2D([], [], color=INK, lw=1.2, ls=":"))
        names.append(f"under {LEAST_BACKGROUND:g} background events")
    ax.legend(handles, names, fontsize=11.5 if len(curves) > 4 else None, **options)


@styled
def roc_curve(curves: Mapping[str, Roc], stamp: Stamp) -> Figure:
    """Draw background rejection (log) against signal efficiency.

    Parameters
    ----------
    curves : mapping of str to Roc
        By legend entry. Up to three curves have a band: binomial, of the background that passes.
    stamp : Stamp

    Returns
    -------
    Figure
        Dotted where fewer than 10 background events pass.
    """
    fig, axes = canvas(7.2, 6.4)
    ax = axes[0, 0]
    top = 10.0
    for (name, curve), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        s, b, _, error = _cuts(curve)
        good = b >= _limit(curve)
        _curve(ax, s, 1 / b, good, colour, f"{name}, AUC {curve.area:.3f}")
        if len(curves) <= 3:
            g = good & (error < 1)
            ax.fill_between(s[g], 1 / b[g] / (1 + error[g]), 1 / b[g] / (1 - error[g]), color=colour, alpha=0.2, lw=0)
        top = max(top, float((1 / b).max(initial=1.0)))
    line = np.geomspace(1e-4, 1, 200)
    ax.plot(line, 1 / line, color=INK, ls="--", lw=1, label="random")
    log_y(ax)
    ax.set_xlim(0, 1)
    ax.set_ylim(1, 3 * top)
    ax.set_xlabel(r"Signal efficiency $\epsilon_S$")
    ax.set_ylabel(r"Background rejection $1/\epsilon_B$")
    _legend(ax, curves, loc="upper right")
    stamp_axes(ax, stamp)
    return fig


@styled
def sic_curve(curves: Mapping[str, Roc], stamp: Stamp) -> Figure:
    r"""Draw the significance improvement :math:`\epsilon_S / \sqrt{\epsilon_B}` against background rejection.

    Parameters
    ----------
    curves : mapping of str to Roc
        By legend entry. Up to three curves have a band: binomial, of signal and background that pass.
    stamp : Stamp

    Returns
    -------
    Figure
        Dotted where fewer than 10 background events pass.
    """
    fig, axes = canvas(8.0, 6.0)
    ax = axes[0, 0]
    highest, largest = 2.0, 10.0
    for (name, curve), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        s, b, error_s, error_b = _cuts(curve)
        good = b >= _limit(curve)
        sic = s / np.sqrt(b)
        _curve(ax, 1 / b, sic, good, colour, name)
        if len(curves) <= 3:
            error = sic * np.sqrt(error_s**2 + 0.25 * error_b**2)
            ax.fill_between(1 / b[good], (sic - error)[good], (sic + error)[good], color=colour, alpha=0.2, lw=0)
            highest = max(highest, float((sic + error)[good].max(initial=0.0)))
        highest = max(highest, float(sic[good].max(initial=0.0)))
        largest = max(largest, float((1 / b).max(initial=1.0)))
    x = np.geomspace(1, largest, 200)
    ax.plot(x, 1 / np.sqrt(x), color=INK, ls="--", lw=1, label="random")
    ax.set_xscale("log")
    ax.set_xlim(1, largest)
    # one row of headroom for each two entries of the legend
    ax.set_ylim(0, highest * (1.12 + 0.075 * ((len(curves) + 3) // 2)))
    ax.set_xlabel(r"Background rejection $1/\epsilon_B$")
    ax.set_ylabel(r"Significance improvement $\epsilon_S\,/\,√\epsilon_B$")
    _legend(ax, curves, loc="upper left", ncols=2)
    stamp_axes(ax, stamp)
    return fig


@styled
def score_distribution(
    data_tail: npt.ArrayLike,
    template_tail: npt.ArrayLike,
    stamp: Stamp,
    *,
    data_weight: npt.ArrayLike | None = None,
    template_weight: npt.ArrayLike | None = None,
    working_points: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """Draw the tail of the score: data in the window and template in bins of background efficiency.

    Parameters
    ----------
    data_tail, template_tail : array_like, shapes (n,) and (m,)
        Fraction of the template that scores at least as high.
    stamp : Stamp
    data_weight, template_weight : array_like, optional
        1 if not given.
    working_points : sequence of float
        Cuts to mark.
    title : str
        Of the legend, e.g. the window.

    Returns
    -------
    Figure
        The template is scaled to the data; the last bin holds all tighter ones. Without signal the ratio is flat.
    """
    data, templ = (np.asarray(x, dtype=np.float64) for x in (data_tail, template_tail))
    w_data = np.ones_like(data) if data_weight is None else np.asarray(data_weight, dtype=np.float64)
    w_templ = np.ones_like(templ) if template_weight is None else np.asarray(template_weight, dtype=np.float64)
    # decades as far as the template still has some ten events beyond
    reach = np.clip(np.floor(4 * np.log10(max(len(templ), 40) / 20.0)) / 4, 1.0, 5.0)
    edges = np.arange(0.0, reach + 0.125, 0.25)

    def fill(tail: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
        x = np.clip(-np.log10(np.maximum(tail, 1e-300)), 0.0, edges[-1] - 1e-9)
        return np.histogram(x, edges, weights=w)[0], np.histogram(x, edges, weights=w * w)[0]

    observed, observed_variance = fill(data, w_data)
    flat, flat_var = fill(templ, w_templ)
    scale = float(w_data.sum() / w_templ.sum()) if w_templ.sum() > 0 else 1.0
    flat, flat_error = flat * scale, np.sqrt(flat_var) * scale
    # effective counts: Garwood's interval for weighted data, exact for weights of 1
    per_event = np.divide(observed_variance, observed, out=np.ones_like(observed), where=observed > 0)
    low, high = (bound * per_event for bound in poisson_interval(observed / per_event))
    fig, axes = canvas(7.6, 6.6, rows=(2.6, 1.0))
    top, low_panel = axes[:, 0]
    share_x(top, low_panel)
    centre, x = 0.5 * (edges[1:] + edges[:-1]), np.repeat(edges, 2)[1:-1]
    top.stairs(flat, edges, color=BLUE, label="template, scaled to the data", zorder=3)
    lower = np.maximum(np.repeat(flat - flat_error, 2), 1e-9)
    top.fill_between(x, lower, np.repeat(flat + flat_error, 2), color=BLUE, alpha=0.35, lw=0)
    bars = np.stack([observed - low, high - observed])
    nonempty = observed > 0
    top.errorbar(
        centre[nonempty], observed[nonempty], bars[:, nonempty], fmt="o", ms=5, lw=1, color=INK,
        label="data in the window",
    )  # fmt: skip
    log_y(top)
    positive = np.concatenate([observed[observed > 0], flat[flat > 0], [1.0]])
    top.set_ylim(0.3 * positive.min(), positive.max() * 12)
    top.set_xlim(edges[0], edges[-1])
    top.set_ylabel("Events / bin")
    _draw_score_ratio(low_panel, edges, observed, bars, flat, flat_error)
    cuts = [-np.log10(point) for point in working_points if point < 1]
    for place in cuts:
        if place < edges[-1]:
            # under the legend
            top.axvline(place, 0, 0.72, color=RED, lw=1, ls=":", zorder=1)
            low_panel.axvline(place, 0, 1, color=RED, lw=1, ls=":", zorder=1)
    if cuts:
        top.plot([], [], color=RED, lw=1, ls=":", label="working points")
    top.legend(title=title or None, loc="upper right", alignment="left")
    low_panel.set_xlabel(r"$-\log_\mathrm{10}$(score tail), last bin with overflow")
    stamp_axes(top, stamp)
    place_y_labels(top, low_panel)
    return fig


def _draw_score_ratio(
    ax: Axes, edges: FloatArray, observed: FloatArray, bars: FloatArray, flat: FloatArray, flat_error: FloatArray
) -> None:
    """Draw data over template, with logarithmic ticks where the data go far above."""
    good = flat > 0
    centre, x = 0.5 * (edges[1:] + edges[:-1]), np.repeat(edges, 2)[1:-1]
    ratio = np.divide(observed, flat, out=np.full_like(observed, np.nan), where=good)
    spread = np.divide(bars, flat, out=np.zeros_like(bars), where=good)
    band = np.repeat(np.divide(flat_error, flat, out=np.zeros_like(flat), where=good), 2)
    ax.fill_between(x, 1 - band, 1 + band, color=BLUE, alpha=0.35, lw=0)
    ax.axhline(1, color=INK, lw=0.8)
    ax.errorbar(centre[good], ratio[good], spread[:, good], fmt="o", ms=5, lw=1, color=INK)
    largest_ratio = float(np.nanmax((observed + bars[1])[good] / flat[good], initial=1.5))
    if largest_ratio > 4:
        log_y(ax)
        ax.set_ylim(0.4, 1.6 * largest_ratio)
        ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t < 1.4 * largest_ratio]
        ticks = ticks[1 :: 1 if len(ticks) < 6 else 2]
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    else:
        inner_ticks(ax, 0.0, max(2.0, 1.1 * largest_ratio), 4)
    ax.set_ylabel("Data / templ.", loc="center", fontsize=14)


@styled
def passing_fraction(points: Sequence[Passing], stamp: Stamp) -> Figure:
    """Draw the fraction of data that passes each cut, over the cut's background efficiency, in and around the windows.

    Parameters
    ----------
    points : sequence of Passing
        In a blinded run, without the windows.
    stamp : Stamp

    Returns
    -------
    Figure
        One panel a working point. A cut that sculpts passes more in one sideband than in the other.
    """
    cuts = sorted({p.background_efficiency for p in points if p.background_efficiency < 1}, reverse=True)
    rows = max(len(cuts), 1)
    height = 1.7 * rows + 1.95
    fig, axes = canvas(8.0, height, rows=(1.0,) * rows, bottom=1.4, hspace=0.08)
    regions = ("lower sideband", "window", "upper sideband")
    for i, cut in enumerate(cuts):
        ax = axes[i, 0]
        if i:
            share_x(axes[i - 1, 0], ax)
        ax.axhline(1, color=INK, lw=0.9, ls="--")
        highest, lowest = 1.5, 0.5
        for j, region in enumerate(regions):
            cut_points = [p for p in points if p.region == region and p.background_efficiency == cut and p.total > 0]
            if not cut_points:
                continue
            k, n = np.array([p.passed for p in cut_points]), np.array([p.total for p in cut_points])
            low, high = ratio_interval(k, n)
            value = k / n
            width = np.array([p.window[1] - p.window[0] for p in cut_points])
            centre = np.array([0.5 * sum(p.window) for p in cut_points]) + (j - 1) * 0.12 * width
            ax.errorbar(
                centre, value / cut, np.stack([value - low, high - value]).clip(0) / cut, fmt=MARKERS[j],
                color=(BLUE, RED, PALETTE[2])[j], ms=6, lw=1.2, label=region,
            )  # fmt: skip
            highest = max(highest, float((high / cut).max()))
            lowest = min(lowest, float((value / cut)[value > 0].min(initial=lowest)))
        low_edge = 0.0
        if highest > 6:
            log_y(ax)
            low_edge = min(0.2, 0.4 * lowest)
            ax.yaxis.set_major_locator(LogLocator(numticks=4))
            ax.set_ylim(low_edge, highest * 2.5)
        else:
            inner_ticks(ax, low_edge, 1.25 * highest, 4)
            ax.yaxis.get_major_locator().set_params(prune="both" if i < rows - 1 else "upper")
        ax.text(0.015, 0.93, efficiency_label(cut), transform=ax.transAxes, va="top", fontsize=14)
    # one label for all panels, clear of the widest tick label
    fig.text(
        0.3 / 8.0, 1 - 0.5 / height, r"Fraction passing / $\epsilon_B$", rotation=90, ha="center", va="top", fontsize=17
    )
    edges = [e for p in points for e in p.window]
    axes[-1, 0].set_xlim(min(edges, default=0) - 50, max(edges, default=1) + 50)
    axes[-1, 0].set_xlabel(r"$m_{JJ}$ of the window [GeV]")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="lower center", ncols=3, bbox_to_anchor=(0.55, 0.01))
    stamp_axes(axes[0, 0], stamp)
    return fig
