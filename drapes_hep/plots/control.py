"""Control histograms of the selection, and the diagram of which events do what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from drapes_hep.plots.style import BLUE, GREY, INK, RED, SHADE, Stamp, canvas, log_y, stamp_axes, stamp_figure, styled

__all__ = ["SplitCounts", "control_grid", "control_histogram", "data_split"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SplitCounts:
    """Which events do what in one window; None where it is not known or blinded.

    Attributes
    ----------
    window, mass_range : tuple of float
        GeV.
    train, validation, closure : int or None
        Sideband events of the background model.
    in_window : int or None
        Data in the signal region.
    template : int or None
        Generated events.
    folds : int or None
        Of the classifier.
    """

    window: tuple[float, float]
    mass_range: tuple[float, float]
    train: int | None = None
    validation: int | None = None
    closure: int | None = None
    in_window: int | None = None
    template: int | None = None
    folds: int | None = None


def _split_axes(histogram: Any) -> tuple[list[str], str]:  # noqa: ANN401
    """Give the names of the category axes and of the one that is drawn."""
    categories = [a.name for a in histogram.axes if not a.traits.continuous]
    continuous = [a.name for a in histogram.axes if a.traits.continuous]
    if len(continuous) != 1:
        raise ValueError(f"a control histogram has one continuous axis, this one {len(continuous)}")
    return categories, continuous[0]


def _draw(ax: Axes, histogram: Any, hidden: Sequence[tuple[float, float]], *, legend: bool) -> None:  # noqa: ANN401
    categories, name = _split_axes(histogram)
    axis = histogram.axes[name]
    edges = np.asarray(axis.edges, dtype=np.float64)
    covered = np.zeros(len(edges) - 1, dtype=np.bool_)
    for low, high in hidden:
        covered |= (edges[1:] > low) & (edges[:-1] < high)
    steps = list(histogram.axes["selection"]) if "selection" in categories else [None]
    split = next((c for c in categories if c not in {"dataset", "selection"}), None)
    parts = list(histogram.axes[split]) if split else [None]
    drawn: list[FloatArray] = []
    for step in steps:
        for k, part in enumerate(parts):
            # sums over all other categories; flow bins of the drawn axis stay out of the figure
            pick = dict.fromkeys(categories, sum)
            values = histogram
            if step is not None:
                values = values[{"selection": step}]
                pick.pop("selection")
            if part is not None:
                values = values[{split: part}]
                pick.pop(str(split))
            values = values[pick] if pick else values
            content = np.asarray(values.values(), dtype=np.float64)
            variance = values.variances()
            error = np.sqrt(np.asarray(content if variance is None else variance, dtype=np.float64))
            final = step is None or step == steps[-1]
            if final and hidden:
                content, error = np.where(covered, np.nan, content), np.where(covered, np.nan, error)
            drawn.append(content)
            colour = (BLUE, RED, GREY)[k % 3] if final else GREY
            words = [str(w).replace("_", " ") for w in (part, f"{step} the selection" if step else None) if w]
            ax.stairs(
                content, edges, color=colour, lw=1.5 if final else 1.2, ls=("-", "--", ":")[k % 3],
                label=", ".join(words) or "events", zorder=3 if final else 2,
            )  # fmt: skip
            if final:
                x = np.repeat(edges, 2)[1:-1]
                lower = np.repeat(np.where(content - error > 0, content - error, 1e-9), 2)
                ax.fill_between(x, lower, np.repeat(content + error, 2), color=colour, alpha=0.3, lw=0)
    for low, high in hidden:
        ax.axvspan(low, high, facecolor="none", edgecolor="#8a8f98", hatch="////", lw=0, zorder=1)
    positive = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in drawn] or [np.array([])])
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.5, 1.0)
    entries = len(steps) * len(parts) + bool(hidden)
    log_y(ax)
    low = min(low, 0.1 * high)  # a flat histogram still shows a decade
    ax.set_ylim(0.5 * low, high * max(high / low, 10.0) ** (0.1 + 0.085 * entries if legend else 0.08))
    used = np.flatnonzero(np.any([np.nan_to_num(v) > 0 for v in drawn], axis=0)) if drawn else np.array([])
    if not len(used):
        ax.text(0.5, 0.5, "no entries in this range", transform=ax.transAxes, ha="center", fontsize=13)
    else:
        # empty ends of an axis that suits every sample are cut off
        ax.set_xlim(edges[used[0]], edges[used[-1] + 1])
    ax.set_xlabel(axis.label or name)
    width = float(np.diff(edges)[0])
    unit = (axis.label or "").rpartition("[")[2].rstrip("]") if "[" in (axis.label or "") else ""
    ax.set_ylabel(f"{histogram.label or 'Events'} / {width:.3g} {unit}".rstrip(), fontsize=None if legend else 14)
    if legend:
        handles, names = ax.get_legend_handles_labels()
        if hidden:
            handles.append(Patch(facecolor="none", edgecolor="#8a8f98", hatch="////"))
            names.append("blinded after the selection")
        ax.legend(handles, names, loc="upper right")


@styled
def control_histogram(histogram: Any, stamp: Stamp, *, hidden: Sequence[tuple[float, float]] = ()) -> Figure:  # noqa: ANN401
    """Draw a control histogram before and after the selection.

    Parameters
    ----------
    histogram : hist.Hist
        One continuous axis; category axes ``dataset`` (summed), ``selection`` (drawn one by one, the last as the
        result) and at most one more (line styles).
    stamp : Stamp
    hidden : sequence of tuple of float
        Ranges of the drawn axis that are blinded after the selection.

    Returns
    -------
    Figure
    """
    fig, axes = canvas(7.4, 5.8)
    _draw(axes[0, 0], histogram, hidden, legend=True)
    stamp_axes(axes[0, 0], stamp)
    return fig


@styled
def control_grid(
    histograms: Mapping[str, Any],
    stamp: Stamp,
    *,
    hidden: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    columns: int = 3,
) -> Figure:
    """Draw many control histograms on one canvas, all with the same categories.

    Parameters
    ----------
    histograms : mapping of str to hist.Hist
        By name.
    stamp : Stamp
    hidden : mapping, optional
        By name, as for :func:`control_histogram`.
    columns : int
        Cells a row.

    Returns
    -------
    Figure
    """
    columns = min(columns, max(len(histograms), 1))
    rows = max(1, math.ceil(len(histograms) / columns))
    width, height = 4.9 * columns, 3.6 * rows + 1.3
    fig, axes = canvas(
        width, height, rows=(1.0,) * rows, columns=columns, left=0.95, right=0.35, bottom=1.3, top=0.6,
        wspace=0.3, hspace=0.32,
    )  # fmt: skip
    flat = list(axes.ravel())
    for ax, (name, histogram) in zip(flat, histograms.items(), strict=False):
        ax.tick_params(labelsize=12)
        _draw(ax, histogram, (hidden or {}).get(name, ()), legend=False)
        ax.xaxis.label.set_fontsize(14)
    for ax in flat[len(histograms) :]:
        ax.remove()
    handles, names = flat[0].get_legend_handles_labels()
    if hidden and any(hidden.values()):
        handles.append(Patch(facecolor="none", edgecolor="#8a8f98", hatch="////"))
        names.append("blinded after the selection")
    # as many columns as fit, below all cells
    fig.legend(handles, names, loc="lower center", ncols=max(1, int(width / 3.0)), bbox_to_anchor=(0.5, 0.0))
    stamp_figure(fig, stamp, 0.95 / width, 1 - 0.38 / height)
    return fig


def _count(value: int | None) -> str:
    return "" if value is None else f"\n{value:,} event{'' if value == 1 else 's'}".replace(",", " ")


@styled
def data_split(counts: SplitCounts, stamp: Stamp | None = None) -> Figure:
    """Draw which events train, validate, close and score.

    Parameters
    ----------
    counts : SplitCounts
        Of one window.
    stamp : Stamp, optional
        None draws none, as documentation wants it.

    Returns
    -------
    Figure
    """
    fig, axes = canvas(9.6, 6.2, left=0.35, right=0.35, top=0.45, bottom=0.2)
    ax = axes[0, 0]
    ax.set_axis_off()
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    low, high = counts.mass_range

    def place(mass: float) -> float:
        return 3.0 + 94.0 * (mass - low) / (high - low)

    a, b = place(counts.window[0]), place(counts.window[1])

    def box(x: float, y: float, w: float, h: float, text: str, colour: str, ink: str = INK) -> None:
        shape = FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0,rounding_size=1.2", facecolor=colour, edgecolor=INK, lw=1.0, zorder=2
        )
        ax.add_patch(shape)
        ax.text(
            x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=12, color=ink, zorder=3, linespacing=1.25
        )

    def arrow(start: tuple[float, float], end: tuple[float, float], **extra: Any) -> None:  # noqa: ANN401
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2, **extra}, zorder=1)

    # the spectrum with the window cut out
    x = np.union1d(np.linspace(low, high, 200), counts.window)
    y = 76 + 19 * np.exp(-3.2 * (x - low) / (high - low))
    at = np.array([place(float(m)) for m in x])
    inside = (x >= counts.window[0]) & (x <= counts.window[1])
    ax.fill_between(at, 76, y, color=BLUE, alpha=0.3, lw=0)
    ax.fill_between(at[inside], 76, 97, color="white", lw=0)
    ax.fill_between(at[inside], 76, y[inside], color=RED, alpha=0.35, lw=0)
    ax.plot(at, y, color=INK, lw=1.2)
    ax.plot([3, 97], [76, 76], color=INK, lw=1.2)
    for mass in (low, *counts.window, high):
        ax.plot([place(mass)] * 2, [75, 76], color=INK, lw=1.2)
        ax.text(place(mass), 74.4, f"{mass:g}", ha="center", va="top", fontsize=11)
    ax.text(97, 80, r"$m_{JJ}$ [GeV]", ha="right", va="bottom", fontsize=12)
    ax.text((a + b) / 2, 99, "window", ha="center", va="top", fontsize=13, color=RED)
    ax.text(62, 90, "sidebands: all the rest", ha="left", va="center", fontsize=13, color="#2f5fc4")

    pale, warm, plain = "#dbe7fe", "#fbdcdf", SHADE
    box(3, 46, 19, 17, "train\nbackground model" + _count(counts.train), pale)
    box(24, 46, 15, 17, "validate\nearly stopping" + _count(counts.validation), pale)
    box(41, 46, 15, 17, "close\nnever fitted" + _count(counts.closure), pale)
    box(64, 46, 33, 17, "data in the window\nnever seen by the background model" + _count(counts.in_window), warm)
    box(3, 20, 31, 17, "template: generated\nat masses of the window" + _count(counts.template), plain)
    folds = "" if counts.folds is None else f"{counts.folds} folds, "
    box(
        41,
        20,
        29,
        17,
        f"classifier: window against template\n{folds}each event scored by\nmodels that never saw it",
        plain,
    )
    box(77, 20, 20, 17, "hunt: fit outside\nthe window,\ncount inside", plain)
    ax.text(29.5, 65.5, "sideband events, split once", ha="center", va="center", fontsize=11.5, color="#2f5fc4")
    arrow((12.5, 46), (12.5, 37.2))
    arrow((31.5, 46), (31.5, 37.2), ls="--")
    arrow((34, 28.5), (39.8, 28.5))
    arrow((66.5, 46), (66.5, 37.2))
    arrow((71, 28.5), (76.8, 28.5))
    arrow((43, 46), (34.2, 37.4), ls="--")
    ax.text(40.6, 40.6, "closure test", ha="left", va="center", fontsize=11)
    # of the sidebands, the closure part alone says how often a cut passes
    efficiency = "#2f5fc4"
    ax.plot([56, 60, 60, 87], [51, 51, 41.6, 41.6], color=efficiency, lw=1.2, zorder=1)
    arrow((87, 41.9), (87, 37.2), color=efficiency)
    ax.text(77, 42.3, "efficiency of each cut", ha="center", va="bottom", fontsize=11, color=efficiency)
    ax.text(
        50, 9,
        "All sideband events get a score; the fit after a cut uses the closure part alone.\n"
        "Truth labels, where they exist, are read by the signal injection and the metrics alone.",
        ha="center", va="center", fontsize=11.5,
    )  # fmt: skip
    if stamp is not None:
        stamp_axes(ax, stamp)
    return fig
