"""What all figures share: style, canvas, stamp, colours, intervals of counts.

Style lives in a context, never in the session's ``rcParams``. Matplotlib reads some parameters only when it draws
(fonts, ticks), so a figure carries its style along: :class:`HepFigure` enters the context again whenever it is drawn.
Margins are fixed in inches, not computed: every figure of a kind is aligned alike, and drawing takes half the time.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import mplhep
import numpy as np
import numpy.typing as npt
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Annotation
from matplotlib.ticker import NullFormatter, NullLocator
from scipy import special

from drapes_hep.config import PlotConfig

__all__ = ["PALETTE", "HepFigure", "Stamp", "can_be_typeset", "figure_style", "poisson_interval"]

FloatArray = npt.NDArray[np.float64]
P = ParamSpec("P")
R = TypeVar("R")

# Petroff's colours, accessible for all kinds of colour blindness (arXiv:2107.02270)
BLUE, ORANGE, RED, PURPLE, GREY, OLIVE = "#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#adad7d"
# the fifth of his six is a second purple, as a thin line hardly another colour: one of his eight, and a dark blue
PALETTE = (BLUE, RED, ORANGE, PURPLE, OLIVE, "#1111cc")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, SHADE = "#1a1a1a", "#e9ecf1"

_STYLE: dict[str, Any] = {
    **mplhep.style.ROOT,
    "font.size": 16,
    "axes.labelsize": 17,
    "axes.linewidth": 1.1,
    "lines.linewidth": 1.6,
    "xtick.labelsize": 14,
    "ytick.labelsize": 14,
    "xtick.major.size": 8,
    "ytick.major.size": 8,
    "xtick.minor.size": 4,
    "ytick.minor.size": 4,
    "legend.fontsize": 12.5,
    "legend.title_fontsize": 12.5,
    "legend.handlelength": 1.7,
    "legend.labelspacing": 0.35,
    "mathtext.default": "it",
    "axes.unicode_minus": True,
    # the numbers of linear axes are plain text: to typeset them takes a sixth of a report's time
    "axes.formatter.use_mathtext": False,
    "axes.axisbelow": False,
    "hatch.linewidth": 0.6,
    "text.usetex": False,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Set the style of all figures for a block; the session's own settings come back afterwards."""
    # after_reset: a user's matplotlibrc would otherwise change the figures, and with it their bytes
    with mpl_style.context(_STYLE, after_reset=True):
        yield


def can_be_typeset(text: str) -> bool:
    """Whether a text with mathematics between dollars is one that matplotlib's mathtext knows."""
    try:
        MathTextParser("path").parse(text)
    except ValueError:
        return False
    return True


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in :func:`figure_style`."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with figure_style():
            return function(*args, **kwargs)

    return inside


class _Formulas:
    """A parser of mathtext that keeps what it parsed, of all figures: they share most of it.

    Matplotlib's own keeps the last fifty formulas of one drawing; to parse them again took a third of a report's time.
    All figures are drawn in one style, so what a formula looks like depends on nothing else.
    """

    def __init__(self, parser: MathTextParser[Any]) -> None:
        self._parse = functools.lru_cache(1024)(parser.parse)

    def parse(self, s: str, dpi: float = 72, prop: FontProperties | None = None, **how: Any) -> Any:
        """Parse as :meth:`matplotlib.mathtext.MathTextParser.parse` does."""
        # properties can be changed later
        return self._parse(s, dpi, None if prop is None else prop.copy(), **how)


_FORMULAS: dict[str, _Formulas] = {}


def _share_formulas(renderer: RendererBase) -> None:
    """Let a renderer parse with what earlier ones parsed; one without the attributes parses on its own."""
    for holder in (renderer, getattr(renderer, "_text2path", None)):
        parser = getattr(holder, "mathtext_parser", None)
        if isinstance(parser, MathTextParser):
            kind = f"{type(renderer).__name__} {type(holder).__name__}"
            holder.mathtext_parser = _FORMULAS.setdefault(kind, _Formulas(parser))  # type: ignore[union-attr]


@contextmanager
def _minor_ticks_as_lines(figure: Figure) -> Iterator[None]:
    """Let a figure's minor ticks without labels be drawn as two lines an axis, for a block.

    Matplotlib makes and draws some twenty objects for each tick: the minor ones, a thousand in a grid of panels, took
    half of a report's time.
    """
    axes = [(ax, axis) for ax in figure.get_axes() for axis in (ax.xaxis, ax.yaxis) if _has_bare_minor_ticks(ax, axis)]
    # all positions before any change: panels that share an axis share its locator
    positions = [_visible(axis, axis.get_minorticklocs()) for _, axis in axes]
    locators = [axis.get_minor_locator() for _, axis in axes]
    ticks = [axis.get_minor_ticks(1)[0] for _, axis in axes]
    lines = [
        ax.add_artist(_tick_line(mark, at, horizontal=axis is ax.xaxis))
        for (ax, axis), tick, at in zip(axes, ticks, positions, strict=True)
        for mark in (tick.tick1line, tick.tick2line)
        if mark.get_visible()
    ]
    try:
        for _, axis in axes:
            axis.minor.locator = NullLocator()
        yield
    finally:
        for line in lines:
            line.remove()
        for (_, axis), locator in zip(axes, locators, strict=True):
            axis.minor.locator = locator


def _has_bare_minor_ticks(ax: Axes, axis: Axis) -> bool:
    """Whether an axis has minor ticks that are marks alone."""
    return (
        ax.axison
        and ax.get_visible()
        and not isinstance(axis.get_minor_locator(), NullLocator)
        and isinstance(axis.get_minor_formatter(), NullFormatter)
    )


def _visible(axis: Axis, positions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    low, high = sorted(axis.get_view_interval())
    return positions[(positions >= low) & (positions <= high)]


def _tick_line(mark: Line2D, at: npt.NDArray[Any], *, horizontal: bool) -> Line2D:
    """Return the line that has the mark of a tick at all positions."""
    fixed = np.full(len(at), np.ravel(mark.get_ydata() if horizontal else mark.get_xdata())[0])
    line = Line2D(*((at, fixed) if horizontal else (fixed, at)), clip_on=False)
    line.update_from(mark)
    line.set_transform(mark.get_transform())
    line.set_zorder(2.5)
    return line


class HepFigure(Figure):
    """A figure, unknown to pyplot, that is drawn in the style in which it was made.

    Attributes
    ----------
    measuring : bool
        While set, drawing does nothing.
    """

    measuring = False

    def draw(self, renderer: RendererBase) -> None:
        """Draw in :func:`figure_style`."""
        if self.measuring:
            return
        with figure_style(), _minor_ticks_as_lines(self):
            _share_formulas(renderer)
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        # pyplot, which tells notebooks how figures are shown, does not know of this one
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=110)
        return png.getvalue()


@dataclass(frozen=True)
class Stamp:
    """Text above the axes.

    Attributes
    ----------
    label, text : str
        Sample or experiment, bold, and text after it.
    lumi : float or None
        Integrated luminosity, 1/fb; None prints none.
    sqrt_s : float or None
        Centre-of-mass energy, GeV; None prints none.
    """

    label: str = "Simulation"
    text: str = ""
    lumi: float | None = None
    sqrt_s: float | None = 13_000.0

    @classmethod
    def from_config(cls, plots: PlotConfig, sqrt_s: float | None) -> Stamp:
        """Take the labels of the configuration."""
        return cls(plots.label, plots.text, plots.lumi, sqrt_s)


def stamp_axes(ax: Axes, stamp: Stamp, scale: float = 1.0) -> None:
    """Write the stamp above an axes."""
    com = None if stamp.sqrt_s is None else f"{stamp.sqrt_s / 1000:g}"
    lumi = None if stamp.lumi is None else f"{stamp.lumi:g}"
    size = 16.0 * scale
    fig = ax.figure
    # mplhep draws everything to place the second text after the first, which takes a third of a report's time; with
    # fixed margins the text can be measured without
    if isinstance(fig, HepFigure):
        fig.measuring = True
    mplhep.label.exp_label(
        exp=stamp.label,
        text=stamp.text,
        data=True,  # otherwise mplhep writes "Simulation" itself, whatever the label says
        scilocator_adjust=False,  # it draws the whole figure once more to find an offset text, and ours have none
        lumi=lumi,
        com=com,
        ax=ax,
        fontsize=(1.15 * size, size, size, size),
    )
    if isinstance(fig, HepFigure):
        fig.measuring = False


def stamp_figure(fig: Figure, stamp: Stamp, x: float, y: float) -> None:
    """Write the stamp in one line on a grid of panels, starting at figure coordinates (x, y)."""
    energy = "" if stamp.sqrt_s is None else f"{stamp.sqrt_s / 1000:g} TeV"
    lumi = "" if stamp.lumi is None else rf"{stamp.lumi:g} fb$^{{-1}}$"
    right = ", ".join(word for word in (lumi, energy) if word)
    bold = fig.text(x, y, stamp.label, fontsize=18, fontweight="bold")
    words = f"{stamp.text} ({right})".strip() if right else stamp.text
    # beside the end of the bold text, wherever that is
    end = Annotation(words, (1, 0), xycoords=bold, xytext=(6, 0), textcoords="offset points", fontsize=16, va="bottom")
    fig.add_artist(end)


def canvas(
    width: float = 8.0,
    height: float = 6.4,
    *,
    rows: Sequence[float] = (1.0,),
    columns: int = 1,
    left: float = 1.05,
    right: float = 0.3,
    top: float = 0.5,
    bottom: float = 0.85,
    wspace: float = 0.0,
    hspace: float = 0.06,
) -> tuple[HepFigure, npt.NDArray[Any]]:
    """Make a figure with margins in inches.

    Parameters
    ----------
    width, height : float
        Inches.
    rows : sequence of float
        Relative heights.
    columns : int
        Of equal width.
    left, right, top, bottom : float
        Margins, inches.
    wspace, hspace : float
        Gaps relative to the mean panel.

    Returns
    -------
    HepFigure, array of Axes of shape (rows, columns)
    """
    fig = HepFigure(figsize=(width, height))
    FigureCanvasAgg(fig)
    grid = fig.add_gridspec(
        len(rows),
        columns,
        height_ratios=list(rows),
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=wspace,
        hspace=hspace,
    )
    axes = np.empty((len(rows), columns), dtype=object)
    for i in range(len(rows)):
        for j in range(columns):
            axes[i, j] = fig.add_subplot(grid[i, j])
    return fig, axes


def share_x(upper: Axes, lower: Axes) -> None:
    """Tie a panel's x axis to the one above, which loses its tick labels."""
    lower.sharex(upper)
    upper.tick_params(labelbottom=False)


def log_y(ax: Axes) -> None:
    """Make the y axis logarithmic, without labels between the decades: they overlap, and cost time."""
    ax.set_yscale("log")
    ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def inner_ticks(ax: Axes, low: float, high: float, count: int = 5) -> None:
    """Set a panel's range with few ticks, none at its upper edge where the panel above has its own lowest label."""
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(count, prune="upper", steps=[1, 2, 2.5, 5, 10]))


def place_y_labels(*axes: Axes, inches: float = 0.72) -> None:
    """Put the y labels of panels in one line, at a distance from the axes that need not be measured by drawing."""
    for ax in axes:
        width = ax.figure.get_figwidth() * ax.get_position().width  # type: ignore[union-attr]
        ax.yaxis.set_label_coords(-inches / width, ax.yaxis.label.get_position()[1])


def mask_runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the half-open index ranges in which a mask is true."""
    edge = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edge[::2], edge[1::2], strict=True)]


def poisson_interval(counts: npt.ArrayLike, level: float = 0.6826894921370859) -> tuple[FloatArray, FloatArray]:
    """Return Garwood's central intervals for the mean of Poisson counts.

    Parameters
    ----------
    counts : array_like
        Observed counts; NaN gives NaN.
    level : float
        Confidence level.

    Returns
    -------
    low, high : array
        Bounds of the mean; ``low`` is 0 for no event.
    """
    n = np.asarray(counts, dtype=np.float64)
    tail = 0.5 * (1.0 - level)
    low = np.where(n > 0, special.gammaincinv(np.maximum(n, 1e-9), tail), np.where(np.isnan(n), np.nan, 0.0))
    return np.asarray(low, dtype=np.float64), np.asarray(special.gammaincinv(n + 1.0, 1.0 - tail), dtype=np.float64)


def ratio_interval(passed: npt.ArrayLike, total: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return Clopper and Pearson's 68% intervals of fractions; (0, 1) where there is no event."""
    k, n = (np.asarray(x, dtype=np.float64) for x in (passed, total))
    tail = 0.5 * (1.0 - 0.6826894921370859)
    low = np.where(k > 0, special.betaincinv(np.maximum(k, 1e-9), n - k + 1.0, tail), 0.0)
    high = np.where(k < n, special.betaincinv(k + 1.0, np.maximum(n - k, 1e-9), 1.0 - tail), 1.0)
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number as upright mathtext without its dollars: large and small ones in powers of ten."""
    if value is None or not np.isfinite(value):
        return r"\mathrm{-}"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
        return rf"\mathrm{{{text}}}"
    mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
    return rf"\mathrm{{{mantissa}\times 10^{{{int(exponent)}}}}}"


def chi2_label(chi2: float, ndof: int) -> str:
    """Write Pearson's chi2 / ndof as mathtext."""
    return rf"$\chi^\mathrm{{2}}/\mathrm{{ndof}} = \mathrm{{{chi2:.1f}/{ndof}}}$"


def deviance_label(deviance: float, ndof: int) -> str:
    """Write a likelihood ratio 2NLLR / ndof as mathtext."""
    return rf"$\mathrm{{2NLLR/ndof}} = \mathrm{{{deviance:.1f}/{ndof}}}$"


def efficiency_label(efficiency: float) -> str:
    """Name a working point."""
    if efficiency >= 1:
        return "inclusive"
    exponent = np.log10(efficiency)
    if np.isclose(exponent, round(exponent)) and exponent <= -3:
        return rf"$\epsilon_B = \mathrm{{10^{{{round(exponent)}}}}}$"
    return rf"$\epsilon_B = \mathrm{{{efficiency:g}}}$"
