"""The scan of the resonance fit: every mass of the fitted range, in the windows that contain it. Masses in GeV.

The likelihood is that of :mod:`drapes_hep.bumphunt.pass_fail`. Without a cut it does not depend on the window, so there
is one fit for each mass of the range; after a cut there is one for each mass, window that contains it, and cut. What
the counts of a window would not be quoted for (too few events outside it that pass) has no result here either.

z is asymptotic where at least ten background events are fitted within two resolutions of the mass. With fewer, a z
beyond 1 has its p-value from pseudo-experiments (:mod:`drapes_hep.bumphunt.few_events`).

A strong resonance is in no other mass's model, so that no other fit describes the spectrum, or the background is pulled
up beside it. Where the largest z is above 5, the scan is therefore repeated with that resonance in the fits with and
without the signal, free in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.expectation import LEAST_EXPECTED, mass_coordinate
from drapes_hep.bumphunt.few_events import FEW_EVENTS, LEAST_Z, tail_probability
from drapes_hep.bumphunt.pass_fail import Background, PassFailCounts, PassFailFits, fit_pass_fail
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_shapes import SignalShape, signal_templates
from drapes_hep.errors import FitError
from drapes_hep.regions import Window, uncovered
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE, bin_model, fit_spectrum
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = [
    "ASYMPTOTIC",
    "FROM_TOYS",
    "ConditionalScan",
    "ResonancePoint",
    "ResonanceScan",
    "largest",
    "leading_point",
    "scan_masses",
    "scan_resonances",
]

FloatArray = npt.NDArray[np.float64]

STEP = 0.5
"""Distance of neighbouring masses in units of the resolution."""
_NEAR = 2.0
"""Resolutions from the mass within which the background under the signal is counted."""
INCLUDED_Z = 5.0
"""z above which a resonance is in the fits of all other masses."""
_FINER = 10
"""Masses on either side of the largest z, within half a resolution, at which its fit is repeated."""
_APART = 1.0
"""Resolutions from an included resonance within which another one cannot be told from it."""
ASYMPTOTIC, FROM_TOYS = "asymptotic", "pseudo-experiments"
"""The ways a z is obtained."""


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
    z, p_local : float or None
        Local significance in one-sided standard deviations, with the sign of the signal, and its p-value.
    method : str or None
        :data:`ASYMPTOTIC` or :data:`FROM_TOYS`: how z was obtained.
    z_asymptotic : float or None
        sign(signal) sqrt(q0).
    toys, exceeding : int or None
        Pseudo-experiments behind z, and those at least as extreme as the data. None where z is asymptotic.
    background : float or None
        Fitted background that passes within two resolutions of the mass, an included resonance among it.
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
    p_local: float | None = None
    method: str | None = None
    z_asymptotic: float | None = None
    toys: int | None = None
    exceeding: int | None = None
    background: float | None = None
    degree: int | None = None
    p_signal: float | None = None
    p_background: float | None = None
    reason: str | None = None
    spectrum: FloatArray | None = field(default=None, compare=False, repr=False)
    peak: FloatArray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ConditionalScan:
    """The scan with a resonance included.

    Attributes
    ----------
    included : ResonancePoint
        The fit of largest z without it, at a mass between those of the scan.
    points : tuple of ResonancePoint
        As in :class:`ResonanceScan`.
    """

    included: ResonancePoint
    points: tuple[ResonancePoint, ...]


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
    conditional : ConditionalScan or None
        With the resonance of largest z included, where that is above 5.
    """

    title: str
    points: tuple[ResonancePoint, ...]
    unsearched: tuple[tuple[float, float], ...]
    reason: str | None = None
    conditional: ConditionalScan | None = None


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


@dataclass(frozen=True)
class _Setup:
    """What all fits of a scan share."""

    background: Background
    edges: FloatArray
    signal: SignalShape
    masses: FloatArray
    resolution: FloatArray
    templates: FloatArray
    min_events: int
    seed: int


_Job = tuple[ResonancePoint, int, str | None, FloatArray, FloatArray | None, FloatArray]
"""A point, the place of its mass, the reason why it is not fitted, counts that pass and fail, share."""


def scan_resonances(
    windows: Sequence[Window],
    counts: Sequence[SelectedCounts],
    signal: SignalShape,
    *,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    min_events: int = 10,
    seed: int = 1,
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
    seed : int
        Of the pseudo-experiments; each point has its own, whatever the other points.

    Returns
    -------
    ResonanceScan
        Without points if a bin is hidden, or the inclusive spectrum cannot be fitted.
    """
    edges = counts[0].edges
    unsearched = uncovered((float(edges[0]), float(edges[-1])), windows)
    if any(bool(count.hidden.any()) for count in counts):
        return ResonanceScan(signal.title, (), unsearched, "the spectrum has hidden bins: the run is blinded")
    try:
        # window included: this is what ln mu is expanded around, not what is expected of it
        fit = fit_spectrum(counts[0].nested[0], edges, None, shape, sqrt_s)
        mu, gradient = bin_model(shape, sqrt_s, edges, fit.parameters)
        masses = scan_masses(signal, float(edges[0]), float(edges[-1]))
        setup = _Setup(
            Background(mu, gradient, mass_coordinate(edges)), edges, signal, masses, signal.resolution(masses),
            signal_templates(signal, masses, edges), min_events, seed,
        )  # fmt: skip
        points = _points(setup, windows, counts)
        conditional: ConditionalScan | None = None
        leading = leading_point(points)
        if leading is not None and leading.z is not None and leading.z > INCLUDED_Z:
            included = _between_masses(setup, windows, counts, leading)
            conditional = ConditionalScan(included, tuple(_points(setup, windows, counts, included)))
    except FitError as error:
        return ResonanceScan(signal.title, (), unsearched, str(error))
    return ResonanceScan(signal.title, tuple(points), unsearched, conditional=conditional)


def _points(
    setup: _Setup,
    windows: Sequence[Window],
    counts: Sequence[SelectedCounts],
    included: ResonancePoint | None = None,
) -> list[ResonancePoint]:
    """Fit every mass: without a cut, then in the windows that contain it."""
    cuts = [job for window, count in zip(windows, counts, strict=True) for job in _cut_jobs(setup, window, count)]
    return _fitted(setup, _inclusive_jobs(setup, counts[0]), included) + _fitted(setup, cuts, included)


def _between_masses(
    setup: _Setup, windows: Sequence[Window], counts: Sequence[SelectedCounts], leading: ResonancePoint
) -> ResonancePoint:
    """Return the fit of largest z at a mass between those of the scan; a strong signal is not at one of them."""
    masses = leading.mass + leading.resolution * np.linspace(-STEP, STEP, 2 * _FINER + 1)
    masses = masses[(masses > setup.edges[0]) & (masses < setup.edges[-1])]
    signal = setup.signal
    finer = replace(
        setup,
        masses=masses,
        resolution=signal.resolution(masses),
        templates=signal_templates(signal, masses, setup.edges),
    )
    jobs = _inclusive_jobs(finer, counts[0])
    if leading.window is not None:
        jobs = _cut_jobs(finer, leading.window, counts[list(windows).index(leading.window)])
    jobs = [job for job in jobs if job[0].background_efficiency == leading.background_efficiency]
    return max((point for point in (leading, *_fitted(finer, jobs, None)) if point.z is not None), key=_rank)


def _inclusive_jobs(setup: _Setup, count: SelectedCounts) -> list[_Job]:
    inclusive = count.nested[0]
    few = _few(setup.min_events, "are selected") if inclusive.sum() < setup.min_events else None
    return [
        (ResonancePoint(float(mass), float(resolution), None, 1.0), j, few, inclusive, None, np.ones(len(inclusive)))
        for j, (mass, resolution) in enumerate(zip(setup.masses, setup.resolution, strict=True))
    ]


def _cut_jobs(setup: _Setup, window: Window, count: SelectedCounts) -> list[_Job]:
    centre = 0.5 * (count.edges[1:] + count.edges[:-1])
    inside = window.in_signal_region(centre)
    share, nested = np.where(inside, 1.0, count.share), count.nested
    jobs: list[_Job] = []
    for row, efficiency in zip(nested[1:], count.efficiencies[1:], strict=True):
        few = _few(setup.min_events, "outside the window pass") if row[~inside].sum() < setup.min_events else None
        for j in np.flatnonzero(window.in_signal_region(setup.masses)):
            point = ResonancePoint(float(setup.masses[j]), float(setup.resolution[j]), window, efficiency)
            jobs.append((point, int(j), few, row, nested[0] - row, share))
    return jobs


def _fitted(setup: _Setup, jobs: list[_Job], included: ResonancePoint | None) -> list[ResonancePoint]:
    """Fit the points that can be, all at once."""
    reasons = [few or _too_close(point, included) for point, _, few, *_ in jobs]
    points = [point if why is None else _refused(point, why) for (point, *_), why in zip(jobs, reasons, strict=True)]
    chosen = [place for place, why in enumerate(reasons) if why is None]
    if not chosen:
        return points
    used = [jobs[place] for place in chosen]
    second: FloatArray | None = None
    if included is not None:
        second = np.repeat(signal_templates(setup.signal, [included.mass], setup.edges), len(used), axis=0)
    first = used[0][4]
    counts = PassFailCounts(
        np.stack([job[3] for job in used]),
        None if first is None else np.stack([job[4] for job in used if job[4] is not None]),
        np.stack([job[5] for job in used]),
        setup.templates[[job[1] for job in used]],
        second,
    )
    fits = fit_pass_fail(setup.background, counts)
    for row, place in enumerate(chosen):
        quoted = _quoted(points[place], fits, row, setup.edges)
        points[place] = _few_events(setup, quoted, counts[row : row + 1], fits.rows(slice(row, row + 1)), included)
    return points


def _too_close(point: ResonancePoint, included: ResonancePoint | None) -> str | None:
    if included is None or abs(point.mass - included.mass) > _APART * included.resolution:
        return None
    return "it is not resolved from the included resonance"


def _few_events(
    setup: _Setup, point: ResonancePoint, counts: PassFailCounts, fits: PassFailFits, included: ResonancePoint | None
) -> ResonancePoint:
    """Replace the asymptotic z of few events."""
    if point.z is None or point.background is None or point.background >= FEW_EVENTS or abs(point.z) < LEAST_Z:
        return point
    names = (point.mass, point.background_efficiency, point.window, None if included is None else included.mass)
    rng = np.random.default_rng(stage_seed(setup.seed, "resonance", *names))
    tail = tail_probability(setup.background, counts, fits, rng)
    return replace(point, z=tail.z, p_local=tail.p, method=FROM_TOYS, toys=tail.toys, exceeding=tail.exceeding)


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
        z=float(fits.z[row]), p_local=float(special.ndtr(-fits.z[row])), method=ASYMPTOTIC,
        z_asymptotic=float(fits.z[row]), background=under, degree=int(fits.degree[row]) if with_cut else None,
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
        if point.z is not None and (key not in best or _rank(point) > _rank(best[key])):
            best[key] = point
    return tuple(best.values())


def leading_point(points: Sequence[ResonancePoint]) -> ResonancePoint | None:
    """Return the point of largest z; None where none is quoted.

    Parameters
    ----------
    points : sequence of ResonancePoint

    Returns
    -------
    ResonancePoint or None
    """
    return max(largest(points), key=_rank, default=None)


def _rank(point: ResonancePoint) -> tuple[float, float]:
    """Order points by z; those that pseudo-experiments cannot tell apart by what the asymptotic z says."""
    return point.z or 0.0, point.z_asymptotic or 0.0
