"""The diagram of which events do what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from drapes_hep.plots.style import BLUE, INK, RED, SHADE, Stamp, canvas, stamp_axes, styled

__all__ = ["SplitCounts", "data_split"]

_DARK_BLUE = "#2f5fc4"


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
    models : int
        Background models: with more than one, an event closes the model of its fold and is used by the others.
    """

    window: tuple[float, float]
    mass_range: tuple[float, float]
    train: int | None = None
    validation: int | None = None
    closure: int | None = None
    in_window: int | None = None
    template: int | None = None
    folds: int | None = None
    models: int = 1


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
    _draw_spectrum(ax, counts)
    _draw_boxes(ax, counts)
    _draw_arrows(ax, counts.models > 1)
    if stamp is not None:
        stamp_axes(ax, stamp)
    return fig


def _draw_spectrum(ax: Axes, counts: SplitCounts) -> None:
    """Draw a falling spectrum with the window cut out."""
    low, high = counts.mass_range

    def place(mass: float) -> float:
        return 3.0 + 94.0 * (mass - low) / (high - low)

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
    middle = (place(counts.window[0]) + place(counts.window[1])) / 2
    ax.text(middle, 99, "window", ha="center", va="top", fontsize=13, color=RED)
    ax.text(62, 90, "sidebands", ha="left", va="center", fontsize=13, color=_DARK_BLUE)


def _draw_boxes(ax: Axes, counts: SplitCounts) -> None:
    pale, warm, plain = "#dbe7fe", "#fbdcdf", SHADE
    folds = "" if counts.folds is None else f"{counts.folds} folds, "
    crossed = counts.models > 1
    train, close = (
        ("background models\nof other folds", "model of\nits fold") if crossed else ("background model", "never fitted")
    )
    for (x, y, width), text, colour in (
        ((3, 46, 19), f"train\n{train}" + _count(counts.train), pale),
        ((24, 46, 15), "validate\nearly stopping" + _count(counts.validation), pale),
        ((41, 46, 15), f"close\n{close}" + _count(counts.closure), pale),
        ((62, 46, 35), "data in the window\nnever seen by the background model" + _count(counts.in_window), warm),
        ((3, 20, 30), "template: generated\nat masses of the window" + _count(counts.template), plain),
        (
            (37.5, 20, 34),
            f"classifier: window against template\n{folds}each event scored by\nmodels that never saw it",
            plain,
        ),
        ((77, 20, 20), "hunt: fit outside\nthe window,\ncount inside", plain),
    ):
        height = 17
        shape = FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2", facecolor=colour, edgecolor=INK, lw=1.0,
            zorder=2,
        )  # fmt: skip
        ax.add_patch(shape)
        ax.text(
            x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=12, color=INK, zorder=3,
            linespacing=1.25,
        )  # fmt: skip


def _draw_arrows(ax: Axes, crossed: bool) -> None:
    def arrow(start: tuple[float, float], end: tuple[float, float], **extra: Any) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2, **extra}, zorder=1)

    split = "sideband events, each out of the model of its fold" if crossed else "sideband events, split once"
    ax.text(29.5, 65.5, split, ha="center", va="center", fontsize=11.5, color=_DARK_BLUE)
    arrow((12.5, 46), (12.5, 37.2))
    arrow((31.5, 46), (31.5, 37.2), ls="--")
    arrow((33, 28.5), (37.3, 28.5))
    arrow((66.5, 46), (66.5, 37.2))
    arrow((71.5, 28.5), (76.8, 28.5))
    arrow((43, 46), (33.2, 37.4), ls="--")
    ax.text(40.6, 40.6, "closure test", ha="left", va="center", fontsize=11)
    # in the sidebands, only closure events measure the efficiency of a cut
    ax.plot([56, 60, 60, 87], [51, 51, 41.6, 41.6], color=_DARK_BLUE, lw=1.2, zorder=1)
    arrow((87, 41.9), (87, 37.2), color=_DARK_BLUE)
    ax.text(77, 42.3, "efficiency of each cut", ha="center", va="bottom", fontsize=11, color=_DARK_BLUE)
    counted = "all of them, each scored by what never saw it" if crossed else "only the closure events"
    ax.text(
        50, 9,
        f"All sideband events are scored; the fit after a cut uses {counted}.\n"
        "Truth labels, if any, are used only for signal injection and metrics.",
        ha="center", va="center", fontsize=11.5,
    )  # fmt: skip
