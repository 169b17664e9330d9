"""The scan of the resonance fit: every mass of the fitted range, in the windows that contain it. Masses in GeV.

The likelihood is that of :mod:`drapes_hep.bumphunt.pass_fail`. Without a cut it does not depend on the window, so there
is one fit for each mass of the range; after a cut there is one for each mass, window that contains it, and cut. What
the counts of a window would not be quoted for (too few events outside it that pass) has no result here either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.efficiency import LEAST_EXPECTED, mass_coordinate
from drapes_hep.bumphunt.pass_fail import Background, PassFailCounts, PassFailFits, fit_pass_fail
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_shapes import SignalShape, signal_templates
from drapes_hep.errors import FitError
from drapes_hep.regions import Window, uncovered
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE, bin_model, fit_spectrum
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = ["ResonancePoint", "ResonanceScan", "largest", "scan_masses", "scan_resonances"]

FloatArray = npt.NDArray[np.float64]

STEP = 0.5
"""Distance of neighbouring masses in units of the resolution."""
_NEAR = 2.0
"""Resolutions from the mass within which the background under the signal is counted."""


@dataclass(frozen=True)
class ResonancePoint:
    """The fit of one mass at one cut. What does not exist is None, with the reason.

    Attributes
    ----------
    mass, resolution : float
        GeV.
    window : Window or None
        Whose classifier the cut is of; None without a cut.
    background_efficiency : float
        The cut; 1 is the inclusive spectrum.
    signal, error : float or None
        Signal events that pass, of all masses and parts, and the standard error.
    signal_failing : float or None
        Signal events that fail the cut; None without one.
    z : float or None
        sign(signal) sqrt(q0), in standard deviations, as far as many events make it so.
    background : float or None
        Fitted background that passes within two resolutions of the mass. Below some ten events the distribution of z
        has to come from pseudo-experiments.
    degree : int or None
        Of the efficiency's polynomial; None without a cut.
    p_signal, p_background : float or None
        Goodness of the fits with and without the signal.
    reason : str or None
        Why there is no result.
    spectrum, peak : array, shape (bins,), or None
        Fitted background and signal that pass, as if all events were counted.
    """

    mass: float
    resolution: float
    window: Window | None
    background_efficiency: float
    signal: float | None = None
    error: float | None = None
    signal_failing: float | None = None
    z: float | None = None
    background: float | None = None
    degree: int | None = None
    p_signal: float | None = None
    p_background: float | None = None
    reason: str | None = None
    spectrum: FloatArray | None = field(default=None, compare=False, repr=False)
    peak: FloatArray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ResonanceScan:
    """All fits of a scan.

    Attributes
    ----------
    title : str
        Of the signal's shape.
    points : tuple of ResonancePoint
        Without a cut first, then window by window, cut by cut, each by rising mass; none if nothing was fitted.
    unsearched : tuple of tuple of two floats
        Parts of the fitted range that are in no window, GeV: only the fit without a cut sees them.
    reason : str or None
        Why nothing was fitted.
    """

    title: str
    points: tuple[ResonancePoint, ...]
    unsearched: tuple[tuple[float, float], ...]
    reason: str | None = None


def scan_masses(shape: SignalShape, low: float, high: float) -> FloatArray:
    """Return the masses of a scan, in steps of half the resolution.

    Parameters
    ----------
    shape : SignalShape
    low, high : float
        The fitted range, GeV.

    Returns
    -------
    array
        From ``low`` to at most ``high``.
    """
    masses = [float(low)]
    while (following := masses[-1] + STEP * float(shape.resolution(np.array(masses[-1])))) <= high:
        masses.append(following)
    return np.array(masses)


def scan_resonances(
    windows: Sequence[Window],
    counts: Sequence[SelectedCounts],
    signal: SignalShape,
    *,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    min_events: int = 10,
) -> ResonanceScan:
    """Fit a resonance at every mass of the fitted range.

    Parameters
    ----------
    windows : sequence of Window
    counts : sequence of SelectedCounts
        Of each window's scores, with common bins, over the whole fitted range.
    signal : SignalShape
    shape : SpectrumShape or str
        Of the inclusive background.
    sqrt_s : float
        GeV.
    min_events : int
        Fewer events that pass outside the window give no result.

    Returns
    -------
    ResonanceScan
        Without points if a bin is hidden, or the inclusive spectrum cannot be fitted.
    """
    edges = counts[0].edges
    unsearched = uncovered((float(edges[0]), float(edges[-1])), windows)
    if any(bool(count.hidden.any()) for count in counts):
        return ResonanceScan(signal.title, (), unsearched, "the spectrum has hidden bins: the run is blinded")
    inclusive = counts[0].nested[0]
    try:
        # window included: this is what ln mu is expanded around, not what is expected of it
        fit = fit_spectrum(inclusive, edges, None, shape, sqrt_s)
        mu, gradient = bin_model(shape, sqrt_s, edges, fit.parameters)
        background = Background(mu, gradient, mass_coordinate(edges))
        masses = scan_masses(signal, float(edges[0]), float(edges[-1]))
        templates = signal_templates(signal, masses, edges)
        points = _inclusive_points(background, inclusive, edges, masses, templates, signal, min_events)
        points += _cut_points(background, windows, counts, masses, templates, signal, min_events)
    except FitError as error:
        return ResonanceScan(signal.title, (), unsearched, str(error))
    return ResonanceScan(signal.title, tuple(points), unsearched)


def _inclusive_points(
    background: Background,
    inclusive: FloatArray,
    edges: FloatArray,
    masses: FloatArray,
    templates: FloatArray,
    signal: SignalShape,
    min_events: int,
) -> list[ResonancePoint]:
    bare = [ResonancePoint(m, s, None, 1.0) for m, s in zip(masses, signal.resolution(masses), strict=True)]
    if inclusive.sum() < min_events:
        return [_refused(point, _few(min_events, "are selected")) for point in bare]
    ones = np.ones_like(templates)
    fits = fit_pass_fail(background, PassFailCounts(inclusive * ones, None, ones, templates))
    return [_quoted(point, fits, i, edges) for i, point in enumerate(bare)]


def _cut_points(
    background: Background,
    windows: Sequence[Window],
    counts: Sequence[SelectedCounts],
    masses: FloatArray,
    templates: FloatArray,
    signal: SignalShape,
    min_events: int,
) -> list[ResonancePoint]:
    points: list[ResonancePoint] = []
    # places of the points that are fitted, and what they are fitted to
    fitted: list[int] = []
    rows: list[tuple[FloatArray, FloatArray, FloatArray, FloatArray]] = []
    resolution = signal.resolution(masses)
    for window, count in zip(windows, counts, strict=True):
        centre = 0.5 * (count.edges[1:] + count.edges[:-1])
        inside = window.in_signal_region(centre)
        share, nested = np.where(inside, 1.0, count.share), count.nested
        for i, efficiency in enumerate(count.efficiencies[1:], 1):
            few = nested[i][~inside].sum() < min_events
            for j in np.flatnonzero(window.in_signal_region(masses)):
                point = ResonancePoint(float(masses[j]), float(resolution[j]), window, efficiency)
                if few:
                    point = _refused(point, _few(min_events, "outside the window pass"))
                else:
                    fitted.append(len(points))
                    rows.append((nested[i], nested[0] - nested[i], share, templates[j]))
                points.append(point)
    if fitted:
        passed, failed, shares, signals = (np.stack(column) for column in zip(*rows, strict=True))
        fits = fit_pass_fail(background, PassFailCounts(passed, failed, shares, signals))
        for i, place in enumerate(fitted):
            points[place] = _quoted(points[place], fits, i, counts[0].edges)
    return points


def _few(min_events: int, which: str) -> str:
    return f"fewer than {min_events} events {which}"


def _refused(point: ResonancePoint, reason: str, fits: PassFailFits | None = None, row: int = 0) -> ResonancePoint:
    p_values = (None, None) if fits is None else (_finite(fits.p_signal[row]), _finite(fits.p_background[row]))
    return ResonancePoint(
        point.mass, point.resolution, point.window, point.background_efficiency, p_signal=p_values[0],
        p_background=p_values[1], reason=reason,
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _quoted(point: ResonancePoint, fits: PassFailFits, row: int, edges: FloatArray) -> ResonancePoint:
    """Return a point with its results, or with the reason why they are not quoted."""
    centre = 0.5 * (edges[1:] + edges[:-1])
    near = np.abs(centre - point.mass) <= max(_NEAR * point.resolution, float(np.diff(edges).max()))
    under = float(fits.background[row][near].sum())
    if not fits.converged[row]:
        return _refused(point, "the fit did not converge")
    worst = min(float(fits.p_signal[row]), float(fits.p_passed[row]))
    if not worst >= GOOD_FIT_P_VALUE:
        return _refused(point, f"the fit with a signal does not describe the spectrum (p = {worst:.2g})", fits, row)
    if not under >= LEAST_EXPECTED:
        return _refused(point, f"the fitted background is below {LEAST_EXPECTED:g} events", fits, row)
    if not (np.isfinite(fits.error[row]) and fits.error[row] > 0 and np.isfinite(fits.z[row])):
        return _refused(point, "the counts do not constrain the signal", fits, row)
    with_cut = point.window is not None
    return ResonancePoint(
        point.mass, point.resolution, point.window, point.background_efficiency, signal=float(fits.signal[row]),
        error=float(fits.error[row]), signal_failing=float(fits.signal_failing[row]) if with_cut else None,
        z=float(fits.z[row]), background=under, degree=int(fits.degree[row]) if with_cut else None,
        p_signal=_finite(fits.p_signal[row]), p_background=_finite(fits.p_background[row]),
        spectrum=fits.background[row], peak=fits.peak[row],
    )  # fmt: skip


def largest(points: Sequence[ResonancePoint]) -> tuple[ResonancePoint, ...]:
    """Return the point of largest z of each window and cut, where one is quoted.

    Parameters
    ----------
    points : sequence of ResonancePoint

    Returns
    -------
    tuple of ResonancePoint
    """
    best: dict[tuple[Window | None, float], ResonancePoint] = {}
    for point in points:
        key = point.window, point.background_efficiency
        if point.z is not None and (key not in best or point.z > (best[key].z or 0.0)):
            best[key] = point
    return tuple(best.values())
