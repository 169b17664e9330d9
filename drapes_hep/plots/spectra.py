"""The mass spectrum with its fit, inclusive and after a selection.

Points are counts with Garwood's 68% intervals. Pulls are signed square roots of the bins' deviances, which stay
sensible for few counts (a Pearson pull of one event where 0.01 are expected is 10) and whose squares, unmerged and
outside the window, sum to the fit's 2NLLR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from drapes_hep.plots.style import (
    BLUE,
    INK,
    MARKERS,
    PALETTE,
    RED,
    SHADE,
    Stamp,
    canvas,
    deviance_label,
    efficiency_label,
    inner_ticks,
    log_y,
    mask_runs,
    number,
    place_y_labels,
    poisson_interval,
    share_x,
    stamp_axes,
    styled,
)
from drapes_hep.spectrum.poisson import poisson_deviance

__all__ = ["Spectrum", "merge_bins", "selected_spectra", "spectrum"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """One spectrum of m_JJ and what is expected of it. What does not exist is None (in arrays: NaN).

    Attributes
    ----------
    edges : array, shape (bins + 1,)
        GeV.
    counts : array, shape (bins,)
        NaN where the data are blinded.
    expected, expected_error : array, shape (bins,), or None
        Fitted outside the window, with the uncertainty of the expectation alone.
    window : tuple of float or None
        The signal region, GeV, which the fit does not use.
    background_efficiency : float
        Of the selection on the template; 1 means no selection.
    chi2, fit_p : float or None
        Of the fit: the likelihood ratio 2NLLR (the sum of the bins' deviances) and its p-value.
    ndof : int or None
    observed, total, total_error, z_local : float or None
        In the window: data, expectation and its uncertainty, local significance.
    peak : array, shape (bins,), or None
        The signal in ``expected``, where a resonance was fitted with the background.
    notes : tuple of str
        Lines of the legend on the fit.
    """

    edges: FloatArray
    counts: FloatArray
    expected: FloatArray | None = None
    expected_error: FloatArray | None = None
    window: tuple[float, float] | None = None
    background_efficiency: float = 1.0
    chi2: float | None = None
    ndof: int | None = None
    fit_p: float | None = None
    observed: float | None = None
    total: float | None = None
    total_error: float | None = None
    z_local: float | None = None
    peak: FloatArray | None = None
    notes: tuple[str, ...] = ()

    @property
    def hidden(self) -> npt.NDArray[np.bool_]:
        """Bins that were never counted."""
        return np.asarray(np.isnan(self.counts))


def merge_bins(spectrum: Spectrum, factor: int) -> Spectrum:
    """Merge neighbouring bins for display.

    No merged bin crosses an edge of the window or of a blinded range. Expectations of neighbouring bins come from one
    smooth fit, so their uncertainties are added linearly.

    Parameters
    ----------
    spectrum : Spectrum
    factor : int
        Bins a merged bin, at most.

    Returns
    -------
    Spectrum
        Fit quality and totals are those of the fine bins.
    """
    if factor <= 1:
        return spectrum
    edges = spectrum.edges
    breaks = {0, len(edges) - 1}
    for start, stop in mask_runs(spectrum.hidden):
        breaks |= {start, stop}
    if spectrum.window is not None:
        breaks |= {int(np.argmin(np.abs(edges - edge))) for edge in spectrum.window}
    ordered = sorted(breaks)
    starts: list[int] = []
    for low, high in pairwise(ordered):
        pieces = max(1, round((high - low) / factor))
        starts += sorted({int(i) for i in np.linspace(low, high, pieces + 1)[:-1].round()})

    def add(values: FloatArray | None) -> FloatArray | None:
        return None if values is None else np.asarray(np.add.reduceat(values, starts), dtype=np.float64)

    counts = add(spectrum.counts)
    assert counts is not None
    return replace(
        spectrum,
        edges=np.asarray([*edges[starts], edges[-1]], dtype=np.float64),
        counts=counts,
        expected=add(spectrum.expected),
        expected_error=add(spectrum.expected_error),
        peak=add(spectrum.peak),
    )


def _nominal_width(edges: FloatArray) -> float:
    width, many = np.unique(np.round(np.diff(edges), 3), return_counts=True)
    return float(width[np.argmax(many)])


def _display_factor(spectrum: Spectrum) -> int:
    """Merge until bins hold ten events on average, at most to 100 GeV and never to under 12 bins."""
    level = spectrum.counts if spectrum.expected is None else spectrum.expected
    level = level[np.isfinite(level)]
    if not len(level) or level.sum() <= 0:
        return 1
    width = _nominal_width(spectrum.edges)
    largest = max(1, min(math.floor(100.0 / width + 1e-9), len(spectrum.counts) // 12))
    return int(np.clip(math.ceil(10.0 / float(level.mean())), 1, largest))


def _pulls(spectrum: Spectrum) -> FloatArray:
    assert spectrum.expected is not None
    mu = np.maximum(spectrum.expected, 1e-12)
    return np.asarray(np.sign(spectrum.counts - mu) * np.sqrt(poisson_deviance(spectrum.counts, mu)))


def _points(
    ax: Axes, s: Spectrum, scale: FloatArray, colour: str, marker: str, floor: float | None = None
) -> ErrorbarContainer:
    """Draw counts; empty bins show their interval above ``floor``, if it is given; hidden bins show nothing."""
    centre, half = 0.5 * (s.edges[1:] + s.edges[:-1]), 0.5 * np.diff(s.edges)
    low, high = poisson_interval(s.counts)
    filled, empty = s.counts > 0, s.counts == 0
    bars = ax.errorbar(
        centre[filled],
        (s.counts * scale)[filled],
        xerr=half[filled] if len(half) <= 40 else None,
        yerr=np.stack([(s.counts - low) * scale, (high - s.counts) * scale])[:, filled],
        fmt=marker,
        ms=4.0 if len(half) > 60 else 5.5,
        lw=1.0,
        color=colour,
        zorder=5,
    )
    if floor is not None:
        ax.vlines(centre[empty], floor, (high * scale)[empty], color=colour, lw=0.7, alpha=0.35, zorder=4)
    return bars


def _shade(ax: Axes, s: Spectrum, top: float = 1.0) -> list[Patch]:
    """Shade the window and hatch what is blinded, up to a fraction of the axes; returns the legend's handles."""
    handles: list[Patch] = []
    if s.window is not None:
        ax.axvspan(*s.window, 0, top, color=SHADE, lw=0, zorder=0)
        handles.append(Patch(color=SHADE, label=f"window {s.window[0]:g}–{s.window[1]:g} GeV"))
    for start, stop in mask_runs(s.hidden):
        low, high = s.edges[start], s.edges[stop]
        ax.axvspan(low, high, 0, top, facecolor="none", edgecolor="#8a8f98", hatch="////", lw=0, zorder=1)
    if s.hidden.any():
        handles.append(Patch(facecolor="none", edgecolor="#8a8f98", hatch="////", label="blinded"))
    return handles


def _below_legend(ax: Axes, lines: int) -> float:
    """Return the fraction of the axes' height that a legend of so many lines leaves free."""
    height = ax.figure.get_figheight() * ax.get_position().height  # type: ignore[union-attr]  # of a Figure
    return 1.0 - (0.22 + 0.24 * lines) / height


def _y_range(levels: Sequence[FloatArray], filled: float) -> tuple[float, float]:
    """Return the limits of a logarithmic axis of which the values fill a fraction."""
    positive = np.concatenate([x[np.isfinite(x) & (x > 0)] for x in levels])
    if not len(positive):
        return 0.1, 10.0
    high, low = float(positive.max()), max(float(positive.min()), 0.05)
    low = min(0.5 * low, 0.3 * high)
    return low, low * (high / low) ** (1.0 / filled)


def _summary(s: Spectrum) -> list[str]:
    """Lines on the window's counts."""
    out = []
    if s.background_efficiency < 1:
        out.append(f"selected at {efficiency_label(s.background_efficiency)}")
    out += s.notes
    if s.window is None:
        return out
    expected = "–"
    if s.total is not None:
        digits = 1 if s.total < 100 else 0
        error = "" if s.total_error is None else f" ± {s.total_error:.{digits}f}"
        expected = f"{s.total:.{digits}f}{error}"
    observed = "blind" if s.hidden.any() and s.observed is None else "–" if s.observed is None else f"{s.observed:.0f}"
    out.append(f"in the window: observed {observed}, expected {expected}")
    z = "–" if s.z_local is None else f"{s.z_local:.2f}".replace("-", "−")
    out.append(rf"$z_\mathrm{{local}}$ = {z}")
    return out


@styled
def spectrum(data: Spectrum, stamp: Stamp, *, merge: int | None = None) -> Figure:
    """Draw a spectrum of m_JJ with its fit, the fit's uncertainty and the pulls.

    Parameters
    ----------
    data : Spectrum
        Inclusive or selected.
    stamp : Stamp
    merge : int, optional
        Bins merged for display; by default as many as few counts ask for. The figure states it.

    Returns
    -------
    Figure
    """
    merged = merge_bins(data, _display_factor(data) if merge is None else merge)
    fig, axes = canvas(8.0, 7.0, rows=(2.9, 1.0))
    top, low_panel = axes[:, 0]
    share_x(top, low_panel)
    scale = _nominal_width(merged.edges) / np.diff(merged.edges)
    levels = [merged.counts * scale] + ([] if merged.expected is None else [merged.expected * scale])
    summary = _summary(data)
    lines = 1 + (merged.expected is not None) + (merged.window is not None) + bool(merged.hidden.any()) + len(summary)
    lines += 2 * (merged.peak is not None)
    free = _below_legend(top, lines)
    bottom, ceiling = _y_range(levels, 0.97 * free)
    handles: list[object] = [_points(top, merged, scale, INK, "o", bottom)]
    names = [
        "data"
        if len(merged.counts) == len(data.counts)
        else f"data, bins merged for display (fit: {_nominal_width(data.edges):.3g} GeV)"
    ]
    log_y(top)
    top.set_ylim(bottom, ceiling)
    top.set_xlim(merged.edges[0], merged.edges[-1])
    if merged.expected is not None:
        middle = merged.expected * scale
        error = np.zeros_like(middle) if merged.expected_error is None else merged.expected_error * scale
        x, y = np.repeat(merged.edges, 2)[1:-1], np.repeat(middle, 2)
        band = np.repeat(error, 2)
        top.fill_between(x, np.maximum(y - band, 1e-9), y + band, color=BLUE, alpha=0.35, lw=0, zorder=2)
        top.plot(x, y, color=BLUE, zorder=3)
        curve = Line2D([], [], color=BLUE)
        handles.append(curve if merged.expected_error is None else (Patch(color=BLUE, alpha=0.35, lw=0), curve))
        names.append(_fit_label(data))
    if merged.expected is not None and merged.peak is not None:
        peaks = _draw_peak(top, merged, scale, bottom)
        handles += peaks
        names += [str(peak.get_label()) for peak in peaks]
    shades = _shade(top, merged, free)
    handles += shades
    names += [str(p.get_label()) for p in shades]
    for line in summary:
        handles.append(Line2D([], [], lw=0))
        names.append(line)
    top.legend(handles, names, loc="upper right")
    top.set_ylabel(f"Events / {_nominal_width(merged.edges):.3g} GeV")
    stamp_axes(top, stamp)
    _draw_pulls(low_panel, merged)
    place_y_labels(top, low_panel)
    return fig


def _draw_peak(ax: Axes, merged: Spectrum, scale: FloatArray, floor: float) -> list[Line2D]:
    """Draw the background and the signal of a fit of both; returns the legend's handles."""
    assert merged.expected is not None
    assert merged.peak is not None
    background = (merged.expected - merged.peak) * scale
    # a negative signal has no place on a logarithmic axis
    signal = np.where(merged.peak * scale > floor, merged.peak * scale, np.nan)
    for values, colour, style in ((background, BLUE, "--"), (signal, RED, "-")):
        ax.stairs(values, merged.edges, baseline=None, color=colour, ls=style, lw=1.4, zorder=3)
    return [
        Line2D([], [], color=BLUE, ls="--", label="background of the fit"),
        Line2D([], [], color=RED, label="signal of the fit"),
    ]


def _fit_label(data: Spectrum) -> str:
    quality = []
    if data.chi2 is not None and data.ndof is not None:
        quality.append(deviance_label(data.chi2, data.ndof))
    if data.fit_p is not None:
        quality.append(rf"$p = {number(data.fit_p, 2)}$")
    label = "fit outside the window" if data.window is not None else "fit" if data.peak is None else "fit with a signal"
    return label + (", " + ", ".join(quality) if quality else r", ±1$\sigma$")


def _draw_pulls(ax: Axes, merged: Spectrum) -> None:
    """Draw the lower panel: pulls, and the fit's uncertainty in units of them."""
    _shade(ax, merged)
    ax.set_xlabel(r"$m_{JJ}$ [GeV]")
    ax.set_ylabel("Pull", loc="center")
    ax.axhline(0, color=INK, lw=0.8)
    reach = 3.0
    if merged.expected is not None:
        pull = _pulls(merged)
        finite = np.isfinite(pull)
        if merged.expected_error is not None:
            band = np.repeat(merged.expected_error / np.sqrt(np.maximum(merged.expected, 1e-12)), 2)
            x = np.repeat(merged.edges, 2)[1:-1]
            ax.fill_between(x, -band, band, color=BLUE, alpha=0.35, lw=0, zorder=2)
        ax.stairs(np.where(finite, pull, 0.0), merged.edges, fill=True, color="#717581", alpha=0.8, zorder=3)
        if finite.any():
            reach = max(reach, 1.15 * float(np.abs(pull[finite]).max()))
    inner_ticks(ax, -reach, reach)
    for level in (-2, 2):
        ax.axhline(level, color=INK, lw=0.6, ls=":")


@styled
def selected_spectra(spectra: Sequence[Spectrum], stamp: Stamp) -> Figure:
    """Draw all working points of one window on one canvas.

    Parameters
    ----------
    spectra : sequence of Spectrum
        Of one window, from loose to tight.
    stamp : Stamp

    Returns
    -------
    Figure
        All are drawn per the same width, whatever their display bins, so that their heights compare.
    """
    merged = [merge_bins(s, _display_factor(s)) for s in spectra]
    unit = _nominal_width(spectra[0].edges)
    fig, axes = canvas(8.0, 6.8)
    ax = axes[0, 0]
    levels = []
    for s in merged:
        scale = unit / np.diff(s.edges)
        levels += [s.counts * scale] + ([] if s.expected is None else [s.expected * scale])
    free = _below_legend(ax, len(merged) + (merged[0].window is not None) + bool(merged[0].hidden.any()))
    bottom, ceiling = _y_range(levels, 0.97 * free)
    log_y(ax)
    ax.set_ylim(bottom, ceiling)
    ax.set_xlim(merged[0].edges[0], merged[0].edges[-1])
    handles: list[object] = []
    names: list[str] = []
    for i, (s, fine) in enumerate(zip(merged, spectra, strict=True)):
        colour, marker = (INK, *PALETTE)[i % 7], MARKERS[i % 6]
        scale = unit / np.diff(s.edges)
        # no bars for empty bins: those of several cuts would hide each other
        handles.append(_points(ax, s, scale, colour, marker))
        if s.expected is not None:
            x, y = np.repeat(s.edges, 2)[1:-1], np.repeat(s.expected * scale, 2)
            if s.expected_error is not None:
                band = np.repeat(s.expected_error * scale, 2)
                ax.fill_between(x, np.maximum(y - band, 1e-9), y + band, color=colour, alpha=0.25, lw=0, zorder=2)
            ax.plot(x, y, color=colour, lw=1.3, zorder=3)
        z = "–" if s.z_local is None else f"{s.z_local:.2f}".replace("-", "−")
        text = f"{efficiency_label(s.background_efficiency)}: " + rf"$z_\mathrm{{local}}$ = {z}"
        if len(s.counts) != len(fine.counts):
            text += f" (shown in {_nominal_width(s.edges):.3g} GeV bins)"
        names.append(text)
    shades = _shade(ax, merged[0], free)
    handles += shades
    names += [str(p.get_label()) for p in shades]
    ax.legend(handles, names, loc="upper right")
    ax.set_xlabel(r"$m_{JJ}$ [GeV]")
    ax.set_ylabel(f"Events / {unit:.3g} GeV")
    stamp_axes(ax, stamp)
    return fig
