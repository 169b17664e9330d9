"""Figures of generated jets: distributions against true ones, with the ratio below each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from drapes_hep.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    Stamp,
    canvas,
    place_y_labels,
    share_x,
    stamp_figure,
    styled,
)
from drapes_hep.templates.quantities import QUANTITIES

__all__ = ["JetShape", "jet_grid", "jet_shapes"]

FloatArray = npt.NDArray[np.float64]

_COLOURS = (RED, BLUE, ORANGE)
_WIDEST = 1.6
_LOGARITHMIC = frozenset({"delta_eta", "delta_phi", "pt", "pt_fraction"})


@dataclass(frozen=True)
class JetShape:
    """One quantity of true jets and of those of one generator or more.

    Attributes
    ----------
    axis_label : str
        With the unit.
    edges : array, shape (bins + 1,)
    true : array, shape (bins,)
        Counts.
    generated : mapping of str to array, shape (bins,)
        Counts, by the generators' names.
    notes : mapping of str to str
        What is written in the generator's colour, such as its distance; may lack generators.
    log_y : bool
        Whether the densities' axis is logarithmic.
    """

    axis_label: str
    edges: FloatArray
    true: FloatArray
    generated: Mapping[str, FloatArray]
    notes: Mapping[str, str]
    log_y: bool = False


def jet_shapes(comparisons: Mapping[str, Mapping[str, Any]]) -> list[JetShape]:
    """Return the cells of a figure of comparisons.

    Parameters
    ----------
    comparisons : mapping of str to mapping
        By the generators' names, what :func:`drapes_hep.templates.comparison.compare_jets` gives; the true jets are the
        same for all.

    Returns
    -------
    list of JetShape
        A quantity that a generator did not make lacks its line; one that none made is left out.

    Raises
    ------
    ValueError
        If the true jets are not the same: counts in other bins cannot be drawn together.
    """
    shapes = []
    for name, label in QUANTITIES.items():
        with_shape = {title: record for title, record in comparisons.items() if name in record["shapes"]}
        if not with_shape:
            continue
        shape = next(iter(with_shape.values()))["shapes"][name]
        # the bins follow the true jets alone
        if any(record["shapes"][name]["edges"] != shape["edges"] for record in with_shape.values()):
            raise ValueError(f"{name}: the generators were compared with different true jets")
        generated = {
            title: np.array(record["shapes"][name]["made"], dtype=float) for title, record in with_shape.items()
        }
        notes = {
            title: f"$W_1$ / true: {record['quantities'][name]['ratio']:.1f}" for title, record in with_shape.items()
        }
        edges, true = np.array(shape["edges"]), np.array(shape["true"], dtype=float)
        shapes.append(JetShape(label, edges, true, generated, notes, name in _LOGARITHMIC))
    return shapes


def _density(counts: FloatArray, width: FloatArray) -> tuple[FloatArray, FloatArray]:
    total = max(float(counts.sum()), 1.0) * width
    return counts / total, np.sqrt(counts) / total


def _panels(top: Axes, below: Axes, shape: JetShape, true_label: str) -> None:
    edges, width = shape.edges, np.diff(shape.edges)
    true, error = _density(shape.true, width)
    top.stairs(true, edges, fill=True, color=GREY, alpha=0.35, label=true_label)
    good = true > 0
    relative = np.divide(error, true, out=np.zeros_like(true), where=good)
    band = np.repeat(relative, 2)
    below.fill_between(np.repeat(edges, 2)[1:-1], 1 - band, 1 + band, color=GREY, alpha=0.5, lw=0)
    below.axhline(1, color=INK, lw=0.8)
    centre, peak = 0.5 * (edges[1:] + edges[:-1]), float(true.max(initial=0.0))
    for i, (name, counts) in enumerate(shape.generated.items()):
        density, density_error = _density(counts, width)
        colour = _COLOURS[i % len(_COLOURS)]
        top.stairs(density, edges, color=colour, lw=1.7, label=name)
        peak = max(peak, float(density.max(initial=0.0)))
        ratio = np.divide(density, true, out=np.full_like(true, np.nan), where=good)
        bars = np.divide(density_error, true, out=np.zeros_like(true), where=good)
        # the ratio is not meaningful in bins with few events
        populated = good & (shape.true >= 5)
        below.errorbar(centre[populated], ratio[populated], bars[populated], fmt="o", ms=2.8, lw=1, color=colour)
        for edge, mask, marker in ((_WIDEST - 0.05, ratio > _WIDEST, "^"), (2.05 - _WIDEST, ratio < 2 - _WIDEST, "v")):
            below.plot(
                centre[populated & mask], np.full(int((populated & mask).sum()), edge), marker, color=colour, ms=4
            )
        if name in shape.notes:
            top.text(
                0.96, 0.95 - 0.09 * i, shape.notes[name], transform=top.transAxes, ha="right", va="top", fontsize=11,
                color=colour,
            )  # fmt: skip
    rows = 1 + len(shape.generated)
    if shape.log_y:
        lowest = float(true[good].min(initial=peak))
        top.set_yscale("log")
        top.yaxis.set_minor_formatter(NullFormatter())
        top.set_ylim(lowest * 0.5, max(peak, 1e-12) * (max(peak, 1e-12) / max(lowest, 1e-12)) ** (0.1 * rows))
    else:
        top.set_ylim(0, max(peak, 1e-12) * (1.1 + 0.09 * rows))
        if 0 < peak < 0.02:
            top.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
            top.yaxis.offsetText.set_visible(False)
            power = math.floor(math.log10(peak))
            top.yaxis.get_major_formatter().set_powerlimits((power, power))  # type: ignore[attr-defined]
    power = math.floor(math.log10(peak)) if 0 < peak < 0.02 and not shape.log_y else 0
    top.set_ylabel(rf"Density [$\mathrm{{10^{{{power}}}}}$]" if power else "Density", fontsize=13)
    below.set_ylim(2 - _WIDEST, _WIDEST)
    below.set_yticks([0.5, 1.0, 1.5])
    below.set_ylabel("Gen. / true", loc="center", fontsize=12)
    below.set_xlabel(shape.axis_label, fontsize=14)
    top.set_xlim(edges[0], edges[-1])


@styled
def jet_grid(
    shapes: Sequence[JetShape],
    stamp: Stamp,
    *,
    title: str = "",
    true_label: str = "True background",
    columns: int = 4,
) -> Figure:
    """Draw generated jets against true ones, a cell a quantity, each a density of area 1 in the range shown.

    Parameters
    ----------
    shapes : sequence of JetShape
    stamp : Stamp
    title : str
        Of the legend, such as the region.
    true_label : str
        What the generated jets are held against.
    columns : int
        Cells a row.

    Returns
    -------
    Figure
        In the lower panels the band is the true jets' statistical uncertainty, the bars the generated ones'; triangles
        are outside the panel. Constituents of a jet are not independent, so theirs are too small.
    """
    columns = min(columns, max(len(shapes), 1))
    rows = math.ceil(len(shapes) / columns)
    width, height = 4.5 * columns + 0.4, 4.1 * rows + 1.3
    fig, _ = canvas(width, height, rows=(1.0,), columns=1)
    for ax in list(fig.axes):
        ax.remove()
    outer = fig.add_gridspec(
        rows, columns, left=0.95 / width, right=1 - 0.3 / width, bottom=0.8 / height, top=1 - 1.0 / height,
        wspace=0.28, hspace=0.26,
    )  # fmt: skip
    handles: dict[str, Any] = {}
    for i, shape in enumerate(shapes):
        cell = outer[i // columns, i % columns].subgridspec(2, 1, height_ratios=(2.4, 1.0), hspace=0.07)
        top, below = fig.add_subplot(cell[0]), fig.add_subplot(cell[1])
        for ax in (top, below):
            ax.tick_params(labelsize=11)
        share_x(top, below)
        _panels(top, below, shape, true_label)
        place_y_labels(top, below, inches=0.52)
        for handle, name in zip(*top.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    fig.legend(
        list(handles.values()),
        list(handles),
        loc="upper right",
        bbox_to_anchor=(1 - 0.3 / width, 1 - 0.1 / height),
        ncols=len(handles),
        title=title or None,
        frameon=False,
    )
    stamp_figure(fig, stamp, 0.95 / width, 1 - 0.8 / height)
    return fig
