"""Control histograms: of any axes, each with its own labels and the categories of its own axes.

A histogram is taken apart into *cells*, each with one dense axis or two. Category axes are the lines of a cell with one
dense axis; ``dataset`` is summed. A histogram of more dense axes becomes its projections, one of categories alone is
drawn over its last category axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hist
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from drapes_hep.events.blinding import hidden_bins, measures_mjj
from drapes_hep.events.ranges import Ranges
from drapes_hep.plots.style import (
    BLUE,
    GREY,
    PALETTE,
    RED,
    Stamp,
    can_be_typeset,
    canvas,
    log_y,
    stamp_axes,
    stamp_figure,
    styled,
)

__all__ = ["Cell", "control_cells", "control_grid", "control_histogram"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_COLOURS = (BLUE, RED, GREY, *PALETTE[2:])
_STYLES = ("-", "--", ":", "-.")
_LINES = 8
"""Lines of a cell at most, and planes of a histogram."""
_LETTERS = 60
"""Of a label at most."""
_HATCH: dict[str, Any] = {"facecolor": "none", "edgecolor": "#8a8f98", "hatch": "////"}
_BLINDED = "blinded"


@dataclass(frozen=True)
class _Line:
    """One line of a cell.

    Attributes
    ----------
    label : str
    content, error : array, shape (bins,)
    colour : int
        Counts the combinations of categories.
    final : bool
        Whether it is after the last step of the selection.
    """

    label: str
    content: FloatArray
    error: FloatArray
    colour: int
    final: bool


@dataclass(frozen=True)
class Cell:
    """What one panel draws.

    Attributes
    ----------
    name : str
        The histogram's.
    histogram : hist.Hist
        One or two dense axes (or one category axis to draw over) and, with one, category axes.
    axis : int
        Place of the axis that is drawn.
    lines : tuple of str
        Labels of the lines, in their order; empty for a plane. Cells of the same lines share a legend.
    note : str
        What the panel says of itself.
    choices : tuple of dict
        Of each line, the bin of each category axis by the axis's place.
    """

    name: str
    histogram: Any
    axis: int
    lines: tuple[str, ...]
    note: str = ""
    choices: tuple[dict[int, Any], ...] = field(default=(), repr=False)


def _is_category(axis: Any) -> bool:
    return isinstance(axis, hist.axis.StrCategory | hist.axis.IntCategory | hist.axis.Boolean)


def _text(words: str) -> str:
    """Return a user's text as matplotlib can write it: text that is not mathematics keeps its dollars."""
    short = " ".join(words.split())
    short = short if len(short) <= _LETTERS or "$" in short else f"{short[: _LETTERS - 1]}…"
    return short if "$" not in short or can_be_typeset(short) else short.replace("$", r"\$")


def _value(axis: Any, j: int) -> str:
    """Return a category as the legend writes it."""
    value = list(axis)[j]
    if isinstance(axis, hist.axis.StrCategory):
        return _text(str(value).replace("_", " "))
    value = bool(value) if isinstance(axis, hist.axis.Boolean) else value
    return _text(f"{axis.label or axis.name or 'category'} {value}")


def _step(value: str) -> str:
    return f"{value} the selection" if value in {"before", "after"} else f"selection {value}"


def _lines(histogram: Any, categories: Sequence[int]) -> list[tuple[str, dict[int, Any]]]:
    """Return label and choice of bins of each combination of categories, steps of the selection outermost."""
    axes = histogram.axes
    summed = {i: sum for i in categories if axes[i].name == "dataset" or not len(axes[i])}
    drawn = sorted((i for i in categories if i not in summed), key=lambda i: axes[i].name != "selection")
    out = []
    for chosen in itertools.product(*(range(len(axes[i])) for i in drawn)):
        at = dict(zip(drawn, chosen, strict=True))
        steps = [_step(_value(axes[i], j)) for i, j in at.items() if axes[i].name == "selection"]
        parts = [_value(axes[i], j) for i, j in at.items() if axes[i].name != "selection"]
        out.append((", ".join([*parts, *steps]) or "events", {**summed, **at}))
    return out


def _most(histogram: Any, lines: list[tuple[str, dict[int, Any]]]) -> list[tuple[str, dict[int, Any]]]:
    """Return as many lines as a cell can show, those after the selection first."""
    selected = any(axis.name == "selection" for axis in histogram.axes)
    return lines[-_LINES:] if selected else lines[:_LINES]


def control_cells(name: str, histogram: Any) -> Iterator[Cell]:
    """Take a histogram apart into what panels draw.

    Parameters
    ----------
    name : str
        Its name.
    histogram : hist.Hist
        Of any axes.

    Yields
    ------
    Cell
        Nothing for a histogram without axes.
    """
    places = range(len(histogram.axes))
    categories = [i for i in places if _is_category(histogram.axes[i])]
    dense = sorted(set(places).difference(categories)) or categories[-1:]
    categories = sorted(set(categories).difference(dense))
    if len(dense) == 2:
        yield from _planes(name, histogram, categories)
        return
    for i in dense:
        others = set(dense) - {i}
        # indices count down where other dense axes are summed
        axes_left = sorted(set(places) - others)
        projection = histogram[dict.fromkeys(others, sum)] if others else histogram
        yield _projected(name, projection, axes_left.index(i), [axes_left.index(j) for j in categories])


def _projected(name: str, histogram: Any, axis: int, categories: Sequence[int]) -> Cell:
    """Return the cell of a histogram with one axis to draw."""
    lines = _lines(histogram, categories)
    note = "" if len(lines) <= _LINES else f"{len(lines) - _LINES} more in hists.json"
    drawn = _most(histogram, lines)
    return Cell(
        name, histogram, axis, tuple(label for label, _ in drawn), note, choices=tuple(pick for _, pick in drawn)
    )


def _planes(name: str, histogram: Any, categories: Sequence[int]) -> Iterator[Cell]:
    lines = _lines(histogram, categories)
    drawn = _most(histogram, lines)
    for k, (label, pick) in enumerate(drawn):
        words = name.replace("_", " ") if label == "events" else f"{name.replace('_', ' ')}, {label}"
        more = f" ({len(lines) - len(drawn)} more in hists.json)" if len(lines) > len(drawn) and k == 0 else ""
        yield Cell(name, histogram[pick] if pick else histogram, 0, (), _text(words) + more)


def _edges(axis: Any) -> FloatArray:
    """Return an axis's edges; an infinite one lies as far out as its neighbour is wide."""
    edges = np.array(axis.edges, dtype=np.float64)
    finite = edges[np.isfinite(edges)]
    width = float(np.diff(finite)[-1]) if len(finite) > 1 else 1.0
    first, last = (float(finite[0]), float(finite[-1])) if len(finite) else (0.0, 0.0)
    edges[edges == -np.inf], edges[edges == np.inf] = first - width, last + width
    return edges


def _covered(axis: Any, hidden: Ranges) -> BoolArray:
    if hidden and measures_mjj(axis):
        return hidden_bins(axis, hidden)
    return np.zeros(len(axis), dtype=np.bool_)


def _content(histogram: Any) -> tuple[FloatArray, FloatArray]:
    """Return contents and errors; of a profile, means and their errors, NaN where there is no entry."""
    content = np.asarray(histogram.values(), dtype=np.float64)
    variance = histogram.variances()
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.asarray(content if variance is None else variance, dtype=np.float64))
    if histogram.kind == "MEAN":
        content = np.where(np.asarray(histogram.counts()) > 0, content, np.nan)
    finite = np.isfinite(content)
    return np.where(finite, content, np.nan), np.where(finite & np.isfinite(error), error, 0.0)


def _read_lines(cell: Cell, covered: BoolArray) -> list[_Line]:
    axes = cell.histogram.axes
    step = next((i for i, axis in enumerate(axes) if axis.name == "selection" and _is_category(axis)), None)
    last = None if step is None else len(axes[step]) - 1
    colours: dict[tuple[Any, ...], int] = {}
    out = []
    for label, pick in zip(cell.lines, cell.choices, strict=True):
        content, error = _content(cell.histogram[pick] if pick else cell.histogram)
        part = tuple(j for i, j in pick.items() if i != step)
        colour = colours.setdefault(part, len(colours))
        final = step is None or pick.get(step) in (last, sum)
        out.append(_Line(label, np.where(covered, np.nan, content), np.where(covered, 0.0, error), colour, final))
    return out


def _draw_line(ax: Axes, line: _Line, edges: FloatArray, floor: float | None) -> None:
    colour = _COLOURS[line.colour % len(_COLOURS)] if line.final else GREY
    style = _STYLES[line.colour % len(_STYLES)]
    ax.stairs(
        line.content, edges, baseline=None if floor is None else 0.0, color=colour, lw=1.5 if line.final else 1.2,
        ls=style, label=line.label, zorder=3 if line.final else 2,
    )  # fmt: skip
    if line.final:
        lower, upper = line.content - line.error, line.content + line.error
        if floor is not None:
            lower = np.where(lower > 0, lower, floor)
        ax.fill_between(
            np.repeat(edges, 2)[1:-1], np.repeat(lower, 2), np.repeat(upper, 2), color=colour, alpha=0.3, lw=0
        )


def _hatch(ax: Axes, axis: Any, hidden: Ranges, *, vertical: bool = False) -> bool:
    """Hatch the windows on an axis of m_JJ; whether there is one."""
    if not hidden or not measures_mjj(axis):
        return False
    for low, high in hidden:
        (ax.axhspan if vertical else ax.axvspan)(low, high, lw=0, zorder=1, **_HATCH)
    return True


def _scale(ax: Axes, lines: Sequence[_Line], entries: int, *, counts: bool, legend: bool) -> None:
    """Set the y axis: logarithmic for counts, unless some are negative."""
    every = np.concatenate([line.content for line in lines] or [np.array([])])
    finite = every[np.isfinite(every)]
    room = 0.1 + 0.085 * entries if legend else 0.08
    if counts and not (finite < 0).any():
        positive = finite[finite > 0]
        low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.5, 1.0)
        low = min(low, 0.1 * high)  # a flat histogram still shows a decade
        log_y(ax)
        ax.set_ylim(0.5 * low, high * max(high / low, 10.0) ** room)
    elif len(finite):
        low, high = float(finite.min()), float(finite.max())
        width = (high - low) or abs(high) or 1.0
        ax.set_ylim(low - 0.08 * width, high + (room + 0.08) * width)


def _name_categories(ax: Axes, axis: Any, *, vertical: bool = False) -> None:
    if not _is_category(axis):
        return
    at = sorted({int(j) for j in np.linspace(0, len(axis) - 1, min(len(axis), 12))})
    labels = [_text(str(list(axis)[j]))[:12] for j in at]
    long = not vertical and sum(map(len, labels)) > 24
    set_ticks: Any = ax.set_yticks if vertical else ax.set_xticks
    set_ticks([j + 0.5 for j in at], labels, **({"rotation": 30, "ha": "right"} if long else {}))
    ax.minorticks_off()


def _y_label(histogram: Any, axis: Any) -> str:
    if histogram.kind == "MEAN":
        return _text(histogram.label or "Mean")
    words = _text(histogram.label or "Events")
    widths = np.diff(axis.edges) if len(axis) else np.array([1.0])
    if _is_category(axis):
        return words
    if not np.allclose(widths, widths[0], rtol=1e-6):
        return f"{words} / bin"
    unit = (axis.label or "").rpartition("[")[2].rstrip("]") if "[" in (axis.label or "") else ""
    return _text(f"{words} / {float(widths[0]):.3g} {unit}".rstrip())


def _draw(ax: Axes, cell: Cell, hidden: Ranges, *, legend: bool) -> None:
    """Draw a cell with one dense axis."""
    axis = cell.histogram.axes[cell.axis]
    lines = _read_lines(cell, _covered(axis, hidden))
    edges = _edges(axis) if len(axis) else np.array([0.0, 1.0])
    counts = cell.histogram.kind == "COUNT"
    logarithmic = counts and not any((line.content < 0).any() for line in lines)
    for line in lines if len(axis) else []:
        _draw_line(ax, line, edges, 1e-9 if logarithmic else None)
    hatched = _hatch(ax, axis, hidden)
    _scale(ax, lines, len(lines) + hatched, counts=counts, legend=legend)
    _cut_empty_ends(ax, lines if len(axis) else [], edges, counts=counts)
    _name_categories(ax, axis)
    ax.set_xlabel(_text(axis.label or axis.name or "value"))
    ax.set_ylabel(_y_label(cell.histogram, axis), fontsize=None if legend else 14)
    if cell.note:
        ax.text(0.03, 0.95, cell.note, transform=ax.transAxes, va="top", fontsize=11)
    if legend:
        ax.legend(*_legend(ax, hatched), loc="upper right")


def _cut_empty_ends(ax: Axes, lines: Sequence[_Line], edges: FloatArray, *, counts: bool) -> None:
    """Cut off the empty ends of an axis that suits every sample, or write that all of it is empty."""
    full = [np.isfinite(line.content) & ((line.content != 0) | (not counts)) for line in lines]
    used = np.flatnonzero(np.any(full, axis=0)) if full else np.array([], dtype=np.int64)
    if len(used):
        ax.set_xlim(edges[used[0]], edges[used[-1] + 1])
    else:
        _write_empty(ax)


def _write_empty(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no entries in this range", transform=ax.transAxes, ha="center", fontsize=13)


def _legend(ax: Axes, hatched: bool) -> tuple[list[Any], list[str]]:
    """Return handles and names of the lines, and of the hatching where there is any."""
    handles, names = ax.get_legend_handles_labels()
    if hatched:
        return [*handles, Patch(**_HATCH)], [*names, _BLINDED]
    return handles, names


def _draw_plane(ax: Axes, cell: Cell, hidden: Ranges) -> None:
    """Draw a cell with two dense axes as colours."""
    x, y = cell.histogram.axes
    content, _ = _content(cell.histogram)
    content = np.where(_covered(x, hidden)[:, None] | _covered(y, hidden)[None], np.nan, content)
    counts = cell.histogram.kind == "COUNT"
    filled = content[np.isfinite(content) & ((content != 0) | (not counts))]
    if len(filled):
        logarithmic = counts and float(filled.min()) > 0 and float(filled.max()) > 10 * float(filled.min())
        values = np.where(content == 0, np.nan, content) if counts else content
        norm = LogNorm(float(filled.min()), float(filled.max())) if logarithmic else None
        image = ax.pcolormesh(_edges(x), _edges(y), values.T, norm=norm, cmap="viridis", rasterized=True)
        bar = ax.inset_axes((1.03, 0.0, 0.04, 1.0))
        ax.figure.colorbar(image, cax=bar)
        bar.tick_params(labelsize=10)
    else:
        _write_empty(ax)
    _hatch(ax, x, hidden)
    _hatch(ax, y, hidden, vertical=True)
    ax.set_xlabel(_text(x.label or x.name or "value"))
    ax.set_ylabel(_text(y.label or y.name or "value"), fontsize=14)
    ax.set_title(cell.note, fontsize=12)


@styled
def control_histogram(histogram: Any, stamp: Stamp, *, hidden: Ranges = ()) -> Figure:
    """Draw a control histogram with one dense axis.

    Parameters
    ----------
    histogram : hist.Hist
        Its category axes are lines; ``dataset`` is summed, and the last step of ``selection`` is drawn as the result.
    stamp : Stamp
    hidden : sequence of tuple of float
        Windows that are blinded, GeV: bins of an axis of m_JJ that touch one are not drawn.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If it has another number of dense axes.
    """
    cells = list(control_cells("", histogram))
    if len(cells) != 1 or not cells[0].lines:
        raise ValueError("control_histogram draws one dense axis; control_grid draws any")
    fig, axes = canvas(7.4, 5.8)
    _draw(axes[0, 0], cells[0], hidden, legend=True)
    stamp_axes(axes[0, 0], stamp)
    return fig


@styled
def control_grid(cells: Sequence[Cell], stamp: Stamp, *, hidden: Ranges = (), columns: int = 3) -> Figure:
    """Draw many cells on one canvas.

    Parameters
    ----------
    cells : sequence of Cell
        All with the same lines, which one legend explains, or all planes.
    stamp : Stamp
    hidden : sequence of tuple of float
        As for :func:`control_histogram`.
    columns : int
        Cells in a row.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If they have different lines.
    """
    if len({cell.lines for cell in cells}) != 1:
        raise ValueError("cells with different lines share no legend")
    planes = not cells[0].lines
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    per_row = max(1, int(4.9 * columns / (3.0 if max(map(len, cells[0].lines), default=0) < 30 else 4.6)))
    legend = 0.28 * math.ceil((len(cells[0].lines) + bool(hidden)) / per_row)
    width, height = 4.9 * columns + (0.7 if planes else 0.0), 3.6 * rows + 1.3 + legend
    fig, axes = canvas(
        width, height, rows=(1.0,) * rows, columns=columns, left=0.95, right=1.0 if planes else 0.35,
        bottom=1.0 + legend, top=0.9, wspace=0.55 if planes else 0.3, hspace=0.5 if planes else 0.36,
    )  # fmt: skip
    flat = list(axes.ravel())
    for ax, cell in zip(flat, cells, strict=False):
        ax.tick_params(labelsize=12)
        if planes:
            _draw_plane(ax, cell, hidden)
        else:
            _draw(ax, cell, hidden, legend=False)
        ax.xaxis.label.set_fontsize(14)
    labels = [ax.get_xlabel() for ax in flat[: len(cells)]]
    for ax, cell, label in zip(flat, cells, labels, strict=False):
        # two histograms of the same quantity are told apart by their names
        if labels.count(label) > 1 and not planes:
            ax.set_title(_text(cell.name.replace("_", " ")), fontsize=12)
    for ax in flat[len(cells) :]:
        ax.remove()
    hatched = bool(hidden) and any(measures_mjj(axis) for cell in cells for axis in cell.histogram.axes)
    handles, names = _legend(flat[0], hatched)
    if handles:
        # as many columns as fit, below all cells
        fig.legend(handles, names, loc="lower center", ncols=per_row, bbox_to_anchor=(0.5, 0.0))
    stamp_figure(fig, stamp, 0.95 / width, 1 - 0.38 / height)
    return fig
