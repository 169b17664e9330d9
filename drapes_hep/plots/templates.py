"""How good a template is: closure of each feature, the training, the measures over all windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drapes_hep.plots.style import (
    BLUE,
    INK,
    MARKERS,
    PALETTE,
    RED,
    Stamp,
    canvas,
    chi2_label,
    inner_ticks,
    place_y_labels,
    share_x,
    stamp_axes,
    stamp_figure,
    styled,
)

__all__ = [
    "Closure",
    "QualityPoint",
    "TrainingCurve",
    "feature_closure",
    "feature_grid",
    "make_closure",
    "template_quality",
    "training_loss",
]

FloatArray = npt.NDArray[np.float64]


_FEW_EPOCHS = 4
"""Below so many, points are marked."""


@dataclass(frozen=True)
class Closure:
    """One feature of held-out reference events and of the template made at their masses.

    Attributes
    ----------
    axis_label : str
        With the unit.
    edges : array, shape (bins + 1,)
    reference, reference_variance, template, template_variance : array, shape (bins,)
        Sums of weights and of squared weights.
    outside : tuple of float
        Fractions of the reference and of the template outside the edges.
    """

    axis_label: str
    edges: FloatArray
    reference: FloatArray
    reference_variance: FloatArray
    template: FloatArray
    template_variance: FloatArray
    outside: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class TrainingCurve:
    """Losses and learning rate, one number an epoch."""

    train: Sequence[float]
    validation: Sequence[float]
    rate: Sequence[float]
    best_epoch: int | None = None


@dataclass(frozen=True)
class QualityPoint:
    """The AUCs of one window's template, each (value, error or None), or None where it was not measured.

    Attributes
    ----------
    window : tuple of float
        GeV.
    truth, sidebands, pseudo : tuple of float or None
        Against true background in the window, held-out sidebands, data in the pseudo-window.
    pseudo_window : tuple of float or None
        Where the last was measured, GeV.
    """

    window: tuple[float, float]
    truth: tuple[float, float | None] | None = None
    sidebands: tuple[float, float | None] | None = None
    pseudo: tuple[float, float | None] | None = None
    pseudo_window: tuple[float, float] | None = None


def make_closure(
    axis_label: str,
    reference: npt.ArrayLike,
    template: npt.ArrayLike,
    *,
    reference_weight: npt.ArrayLike | None = None,
    template_weight: npt.ArrayLike | None = None,
    edges: npt.ArrayLike | None = None,
    bins: int = 30,
) -> Closure:
    """Histogram a feature of reference and template alike.

    Parameters
    ----------
    axis_label : str
        With the unit.
    reference, template : array_like, shapes (n,) and (m,)
        Values of the feature.
    reference_weight, template_weight : array_like, optional
        1 if not given.
    edges : array_like, optional
        Bins; by default ``bins`` of them over the central 99% of both samples.
    bins : int
        How many, where ``edges`` is not given.

    Returns
    -------
    Closure
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(template, dtype=np.float64)
    wa = np.ones_like(a) if reference_weight is None else np.asarray(reference_weight, dtype=np.float64)
    wb = np.ones_like(b) if template_weight is None else np.asarray(template_weight, dtype=np.float64)
    if edges is None:
        samples = [x for x in (a, b) if len(x)]
        low = min((float(np.quantile(x, 0.002)) for x in samples), default=0.0)
        high = max((float(np.quantile(x, 0.992)) for x in samples), default=1.0)
        e = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    else:
        e = np.asarray(edges, dtype=np.float64)

    def fill(x: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        total = float(w.sum())
        inside = (x >= e[0]) & (x <= e[-1])
        lost = 1.0 - float(w[inside].sum()) / total if total > 0 else 0.0
        return np.histogram(x, e, weights=w)[0], np.histogram(x, e, weights=w * w)[0], max(lost, 0.0)

    (ra, va, oa), (rb, vb, ob) = fill(a, wa), fill(b, wb)
    return Closure(axis_label, e, ra, va, rb, vb, (oa, ob))


def _closure_panels(top: Axes, low_panel: Axes, data: Closure, *, legend: bool) -> None:
    width = np.diff(data.edges)

    def density(h: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        total = h.sum() if h.sum() > 0 else 1.0
        return h / total / width, np.sqrt(v) / total / width

    ref, ref_error = density(data.reference, data.reference_variance)
    tem, tem_error = density(data.template, data.template_variance)
    centre = 0.5 * (data.edges[1:] + data.edges[:-1])
    # bins of one event tell nothing of normalised shapes, and their errors are not Gaussian
    full = (data.reference > 0) & (data.template > 0)
    chi2 = float((((ref - tem) ** 2)[full] / (ref_error**2 + tem_error**2)[full]).sum())
    ndof = int(full.sum()) - 1
    top.stairs(tem, data.edges, color=BLUE, lw=1.6, label="template, same masses", zorder=3)
    x = np.repeat(data.edges, 2)[1:-1]
    top.fill_between(
        x, np.repeat(tem - tem_error, 2), np.repeat(tem + tem_error, 2), color=BLUE, alpha=0.35, lw=0, zorder=2
    )
    nonempty = data.reference > 0
    top.errorbar(
        centre[nonempty], ref[nonempty], ref_error[nonempty], fmt="o", ms=3.5, lw=1, color=INK, label="held-out data",
        zorder=4,
    )  # fmt: skip
    peak = float(max(np.max(ref + ref_error, initial=0.0), np.max(tem + tem_error, initial=0.0), 1e-12))
    top.set_ylim(0, peak * (1.62 if legend else 1.3))
    text = chi2_label(chi2, max(ndof, 0))
    if legend:
        top.legend(title=text, title_fontsize=12.5, loc="upper right", alignment="left")
    else:
        top.text(0.96, 0.95, text, transform=top.transAxes, ha="right", va="top", fontsize=12)
    # three digits at most: 0.0025 in large ticks runs out of the canvas
    power = math.floor(math.log10(peak)) if peak > 0 else 0
    if power < -1:
        top.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        # the common factor is written into the label instead of above the axes, where the stamp stands
        top.yaxis.offsetText.set_visible(False)
        top.yaxis.get_major_formatter().set_powerlimits((power, power))  # type: ignore[attr-defined]
    top.set_ylabel(_density_label(data.axis_label, power if power < -1 else 0), fontsize=None if legend else 13)
    top.yaxis.set_major_locator(MaxNLocator(5, prune="lower"))
    good = tem > 0
    ratio = np.divide(ref, tem, out=np.full_like(ref, np.nan), where=good)
    error = np.divide(ref_error, tem, out=np.full_like(ref, np.nan), where=good)
    band = np.repeat(np.divide(tem_error, tem, out=np.zeros_like(tem), where=good), 2)
    low_panel.fill_between(x, 1 - band, 1 + band, color=BLUE, alpha=0.35, lw=0)
    low_panel.axhline(1, color=INK, lw=0.8)
    drawn = nonempty & good
    low_panel.errorbar(centre[drawn], ratio[drawn], error[drawn], fmt="o", ms=3.5, lw=1, color=INK)
    inner_ticks(low_panel, 0.5, 1.5, 4)
    for edge, mask, marker in ((1.46, drawn & (ratio > 1.5), "^"), (0.54, drawn & (ratio < 0.5), "v")):
        low_panel.plot(centre[mask], np.full(int(mask.sum()), edge), marker, color=RED, ms=5)  # beyond the panel
    low_panel.set_xlabel(data.axis_label)
    low_panel.set_ylabel("Data / templ.", loc="center", fontsize=14 if legend else 12)
    top.set_xlim(data.edges[0], data.edges[-1])


def _density_label(axis_label: str, power: int) -> str:
    """Name a density whose ticks are to be multiplied by 10**power, with its unit: per that of the axis."""
    unit = axis_label.rpartition("[")[2].rstrip("]") if "[" in axis_label else ""
    factor = rf"$\mathrm{{10^{{{power}}}}}$" if power else "1" if unit else ""
    inverse = f"{factor} / {unit}" if unit else factor
    # a feature without a unit has a density without one
    return f"Normalised [{inverse}]" if unit else f"Normalised density [{inverse}]" if inverse else "Normalised density"


@styled
def feature_closure(data: Closure, stamp: Stamp) -> Figure:
    """Draw one feature of held-out data and of the template, each a density of area 1 in the range, and their ratio.

    Parameters
    ----------
    data : Closure
    stamp : Stamp

    Returns
    -------
    Figure
        The band is the template's statistical uncertainty, the bars the data's; red triangles lie beyond the panel.
    """
    fig, axes = canvas(7.4, 6.6, rows=(2.6, 1.0))
    share_x(axes[0, 0], axes[1, 0])
    _closure_panels(axes[0, 0], axes[1, 0], data, legend=True)
    stamp_axes(axes[0, 0], stamp)
    place_y_labels(axes[0, 0], axes[1, 0])
    return fig


@styled
def feature_grid(data: Sequence[Closure], stamp: Stamp, *, title: str = "", columns: int = 3) -> Figure:
    """Draw the closure of all features of a window; the cells are as in :func:`feature_closure`.

    Parameters
    ----------
    data : sequence of Closure
    stamp : Stamp
    title : str
        Of the free corner or, without one, above the last column; e.g. the window.
    columns : int
        Cells a row.

    Returns
    -------
    Figure
    """
    columns = min(columns, max(len(data), 1))
    rows = math.ceil(len(data) / columns)
    width, height = 4.9 * columns, 4.2 * rows + 1.1
    fig, _ = canvas(width, height, rows=(1.0,), columns=1)
    for ax in list(fig.axes):
        ax.remove()
    outer = fig.add_gridspec(
        rows, columns, left=0.95 / width, right=1 - 0.3 / width, bottom=0.9 / height, top=1 - 0.95 / height,
        wspace=0.26, hspace=0.25,
    )  # fmt: skip
    for i, closure in enumerate(data):
        cell = outer[i // columns, i % columns].subgridspec(2, 1, height_ratios=(2.5, 1.0), hspace=0.06)
        top, low_panel = fig.add_subplot(cell[0]), fig.add_subplot(cell[1])
        for ax in (top, low_panel):
            ax.tick_params(labelsize=12)
        share_x(top, low_panel)
        _closure_panels(top, low_panel, closure, legend=False)
        place_y_labels(top, low_panel, inches=0.56)
        if i == 0:
            first = top
    handles, names = first.get_legend_handles_labels()
    anchor = (1 - 0.3 / width, 1 - 0.12 / height)
    fig.legend(handles, names, loc="upper right", bbox_to_anchor=anchor, ncols=2, title=title or None)
    stamp_figure(fig, stamp, 0.95 / width, 1 - 0.75 / height)
    return fig


@styled
def training_loss(curve: TrainingCurve, stamp: Stamp, *, title: str = "", unit: str = "event") -> Figure:
    """Draw the loss in training and in validation against the epoch, and the learning rate.

    Parameters
    ----------
    curve : TrainingCurve
    stamp : Stamp
    title : str
        Of the legend, e.g. the window.
    unit : str
        What the loss is the mean of.

    Returns
    -------
    Figure
    """
    fig, axes = canvas(7.4, 6.2, rows=(2.8, 1.0), left=1.15)
    top, low_panel = axes[:, 0]
    share_x(top, low_panel)
    epoch = np.arange(1, len(curve.train) + 1)
    train, validation = np.asarray(curve.train, dtype=np.float64), np.asarray(curve.validation, dtype=np.float64)
    # a line of one point is none
    marker = "o" if len(epoch) < _FEW_EPOCHS else None
    top.plot(epoch, train, color=BLUE, marker=marker, label="training")
    top.plot(
        epoch[: len(validation)], validation, color=RED, ls="--", marker=marker, label="validation (early stopping)"
    )
    if curve.best_epoch is not None:
        for ax in (top, low_panel):
            ax.axvline(curve.best_epoch, 0, 0.6 if ax is top else 1.0, color=INK, lw=1, ls=":")  # under the legend
        top.plot([], [], color=INK, lw=1, ls=":", label=f"kept: epoch {curve.best_epoch}")
    values = np.concatenate([train, validation])
    values = values[np.isfinite(values)]
    if len(values):
        # the first epochs are far above the rest: the range is that of the rest
        low, high = float(values.min()), float(np.quantile(values, 0.97))
        span = max(high - low, 1e-3 * max(abs(high), 1e-9))
        top.set_ylim(low - 0.06 * span, high + 0.55 * span)
    top.set_xlim(0.5, len(train) + 0.5)
    top.set_ylabel(f"Loss per {unit}")
    top.legend(title=title or None, loc="upper right", alignment="left")
    rate = np.asarray(curve.rate, dtype=np.float64)
    low_panel.plot(epoch[: len(rate)], 1e3 * rate, color=PALETTE[3], marker=marker)
    # after an only epoch the rate is 0, and the axis still of its usual size
    low_panel.set_ylim(0, 1.15e3 * float(rate.max(initial=1e-4)))
    low_panel.set_ylabel("Learning rate\n" + r"[$\mathrm{10^{-3}}$]", loc="center", fontsize=13)
    low_panel.yaxis.set_major_locator(MaxNLocator(3, prune="upper"))
    low_panel.set_xlabel("Epoch")
    low_panel.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    stamp_axes(top, stamp)
    place_y_labels(top, inches=0.78)
    place_y_labels(low_panel, inches=0.55)  # of two lines
    return fig


@styled
def template_quality(points: Sequence[QualityPoint], stamp: Stamp) -> Figure:
    """Draw how well a classifier tells each window's template from background; 0.5 is perfect.

    Parameters
    ----------
    points : sequence of QualityPoint
    stamp : Stamp

    Returns
    -------
    Figure
        Horizontal bars are the widths of the windows, vertical ones statistical uncertainties. The pseudo-window's
        point lies at its own mass.
    """
    fig, axes = canvas(8.0, 5.6, bottom=1.35)
    ax = axes[0, 0]
    series = (
        ("truth", "against true background in the window", RED),
        ("sidebands", "against held-out sidebands", BLUE),
        ("pseudo", "in a pseudo-window", PALETTE[2]),
    )
    extremes: list[float] = []
    edges = [e for p in points for e in p.window]
    ax.axhline(0.5, color=INK, lw=1, ls="--")
    for i, (name, label, colour) in enumerate(series):
        rows = [
            ((p.pseudo_window or p.window) if name == "pseudo" else p.window, getattr(p, name))
            for p in points
            if getattr(p, name) is not None
        ]
        if not rows:
            continue
        edges += [edge for window, _ in rows for edge in window]
        width = np.array([0.5 * (w[1] - w[0]) for w, _ in rows])
        # the series are moved apart a little, or their points hide each other
        middle = np.array([0.5 * (w[0] + w[1]) for w, _ in rows])
        centre = middle + (i - 1) * 0.08 * width
        value = np.array([v[0] for _, v in rows])
        error = np.array([0.0 if v[1] is None else v[1] for _, v in rows])
        ax.errorbar(centre, value, error, fmt=MARKERS[i], color=colour, ms=6, lw=1.3, label=label)
        ax.hlines(value, middle - width, middle + width, color=colour, lw=1.0)
        extremes += [*(value + error), *(value - error)]
    ax.plot([], [], color=INK, lw=1, ls="--", label="indistinguishable")
    reach = max([abs(v - 0.5) for v in extremes], default=0.02)
    low = min([*extremes, 0.5])
    ax.set_ylim(low - 0.15 * max(reach, 0.01), 0.5 + 1.25 * max(reach, 0.01))
    if not extremes:
        ax.text(0.5, 0.7, "not measured in this run", transform=ax.transAxes, ha="center")
    ax.set_xlim(min(edges, default=0) - 50, max(edges, default=1) + 50)
    ax.set_xlabel(r"$m_{JJ}$ of the window or pseudo-window [GeV]")
    ax.set_ylabel("Template AUC")
    fig.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.55, 0.005))
    stamp_axes(ax, stamp)
    return fig
