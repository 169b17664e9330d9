"""Upper limits on a signal of unknown size at one cut, from the whole spectra and from the window's count. GeV.

Limits are on the number of signal events before the cut. How many of them pass follows from trainings
(:mod:`drapes_hep.bumphunt.trained_efficiency`); nothing is said of signals smaller or larger than those of the
trainings.

- From the spectra (:mod:`drapes_hep.bumphunt.spectrum_limits`): all masses, what passes and what fails.
- From the count (:mod:`drapes_hep.bumphunt.count_limits`): the events that pass in the window. Its expectation is from
  outside the window, where some of the signal is; by as much as a signal of the same size raises it, what the signal
  adds is less. This is computed from the counts that are expected without a signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.count_limits import background_quantiles, count_cls
from drapes_hep.bumphunt.expectation import mass_coordinate
from drapes_hep.bumphunt.few_events import FEW_EVENTS
from drapes_hep.bumphunt.pass_fail import Background, PassFailCounts, fit_pass_fail
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.spectrum_limits import ClsScan, SignalSpectra, crossing, scan_signals
from drapes_hep.bumphunt.tied_likelihood import VariedTemplate
from drapes_hep.bumphunt.trained_efficiency import TrainedEfficiency
from drapes_hep.bumphunt.working_points import WindowHunt, hunt_window
from drapes_hep.errors import FitError
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import bin_model, fit_spectrum
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = [
    "CutLimits",
    "Limit",
    "LimitSettings",
    "QuotedCount",
    "SignalAtCut",
    "SignalErrors",
    "cut_limits",
    "inclusive_limit",
    "limit_budget",
]

FloatArray = npt.NDArray[np.float64]

_POINTS = 30
"""Numbers of signal events at which CLs is computed; between two of them it is interpolated."""
_EFFICIENCIES = 12
"""Efficiencies at which CLs is computed, from 0 to the largest of the trainings, denser where they are small."""
_DRAWS = 50
"""How often trainings are drawn again, for the error that their number leaves."""


@dataclass(frozen=True)
class Limit:
    """An upper limit at 95 % confidence level, in signal events before the cut.

    Attributes
    ----------
    observed : float
        Infinite if the largest signal that was injected is not excluded; the smallest one if all are.
    expected : tuple of five floats
        For a background at -2 to 2 standard deviations.
    """

    observed: float
    expected: tuple[float, ...]


@dataclass(frozen=True)
class SignalErrors:
    """Relative standard deviations of what a signal is expected to look like.

    Attributes
    ----------
    scale, resolution : float
        Of its mass.
    normalisation : float
        Of its number of events.
    """

    scale: float = 0.0
    resolution: float = 0.0
    normalisation: float = 0.0


@dataclass(frozen=True)
class SignalAtCut:
    """What trainings say of a signal at one cut.

    Attributes
    ----------
    every, passing : VariedTemplate
        Fractions in the bins, of all events and of those that pass.
    passes, inside : TrainedEfficiency, or None
        Part of all events that passes, and that passes inside the window; None without a cut.
    """

    every: VariedTemplate
    passing: VariedTemplate
    passes: TrainedEfficiency | None
    inside: TrainedEfficiency | None


@dataclass(frozen=True)
class QuotedCount:
    """What the hunt quotes of one cut.

    Attributes
    ----------
    observed : int
    expected, error : float or None
        None where nothing is expected.
    spurious, added : float
        Included in the error, in events that pass: the spurious signal, and what a calibration adds.
    """

    observed: int
    expected: float | None
    error: float | None
    spurious: float = 0.0
    added: float = 0.0


@dataclass(frozen=True)
class LimitSettings:
    """What the limits of all cuts share.

    Attributes
    ----------
    shape : SpectrumShape or str
        Of the inclusive background.
    sqrt_s : float
        GeV.
    min_events : int
        As the hunt has it.
    normalisation : float
        Relative error of the number of signal events.
    """

    shape: str | SpectrumShape
    sqrt_s: float
    min_events: int = 10
    normalisation: float = 0.0


@dataclass(frozen=True)
class CutLimits:
    """The limits of one cut. What does not exist is None, with the reason.

    Attributes
    ----------
    background_efficiency : float
    fitted : Limit or None
        From the spectra.
    fitted_error : float or None
        Standard error of its expected median that the number of trainings leaves; None without a cut.
    counted : Limit or None
        From the window's count.
    reason : str or None
        Why a limit is missing.
    """

    background_efficiency: float
    fitted: Limit | None
    fitted_error: float | None
    counted: Limit | None
    reason: str | None = None


def cut_limits(
    counts: SelectedCounts,
    window: Window,
    signals: Sequence[SignalAtCut],
    quoted: Sequence[QuotedCount],
    injected: FloatArray,
    settings: LimitSettings,
) -> tuple[CutLimits, ...]:
    """Compute the limits of all cuts.

    Parameters
    ----------
    counts : SelectedCounts
        Of the window's scores, nothing hidden.
    window : Window
    signals : sequence of SignalAtCut
        Of each working point, the inclusive one first.
    quoted : sequence of QuotedCount
    injected : array, shape (injections,)
        Signal events before the cut of the trainings, rising.
    settings : LimitSettings

    Returns
    -------
    tuple of CutLimits

    Raises
    ------
    FitError
        If the inclusive spectrum cannot be fitted.
    """
    background = _background(counts, settings)
    raised = _raised_expectation(counts, window, signals, injected, settings)
    out = []
    for place, (efficiency, signal, count) in enumerate(zip(counts.efficiencies, signals, quoted, strict=True)):
        fitted, error, reason = _fitted(counts, place, window, signal, count, injected, background, settings)
        counted = None
        if count.expected is None or count.error is None:
            reason = "the hunt expects no count"
        else:
            events, adds = _adds(signal, window, counts.edges, injected, raised[:, place])
            counted = _counted(count, events, adds)
        out.append(CutLimits(efficiency, fitted, error, counted, reason))
    return tuple(out)


def limit_budget(
    counts: SelectedCounts,
    window: Window,
    signals: Sequence[SignalAtCut],
    quoted: Sequence[QuotedCount],
    injected: FloatArray,
    settings: LimitSettings,
    place: int,
) -> tuple[tuple[str, float], ...]:
    """Compute what the limit expected from the spectra would be without each source of uncertainty.

    Parameters
    ----------
    counts, window, signals, quoted, injected, settings
        As :func:`cut_limits` takes them.
    place : int
        Of the cut among the working points.

    Returns
    -------
    tuple of (str, float)
        The source that is left out, and the expected median in signal events; the last is without any of them, which
        leaves fluctuations and the fit of the background.
    """
    signal, count, background = signals[place], quoted[place], _background(counts, settings)
    still = replace(signal, every=_still(signal.every), passing=_still(signal.passing))
    alike = replace(signal, passes=None if signal.passes is None else signal.passes.averaged())
    sure = replace(count, spurious=0.0, added=0.0)
    exact = replace(settings, normalisation=0.0)
    everything = replace(still, passes=alike.passes)
    without = {
        "mass scale and resolution of the signal": (still, count, settings),
        "number of signal events": (signal, count, exact),
        "mass function (spurious signal)": (signal, replace(count, spurious=0.0), settings),
        "null searches": (signal, replace(count, added=0.0), settings),
        "spread of the efficiency over trainings": (alike, count, settings),
        "all of these": (everything, sure, exact),
    }
    out = []
    for source, (changed, its_count, its_settings) in without.items():
        scan = _scan(counts, place, window, changed, its_count, injected, background, its_settings)
        out.append((source, _limit(scan, changed.passes).expected[2]))
    return tuple(out)


def _still(template: VariedTemplate) -> VariedTemplate:
    """Return a template without its variations."""
    return replace(template, slope=template.slope[:0], curvature=template.curvature[:0])


def inclusive_limit(counts: SelectedCounts, signal: SignalAtCut, start: float, settings: LimitSettings) -> float:
    """Compute the expected limit without a cut.

    Parameters
    ----------
    counts : SelectedCounts
        Nothing hidden.
    signal : SignalAtCut
        Without a cut.
    start : float
        Its order of magnitude, signal events.
    settings : LimitSettings

    Returns
    -------
    float
        Signal events; infinite if it is more than 30 times the start.
    """
    spectra = _inclusive(counts, signal, _background(counts, settings), settings, None)
    scan = scan_signals(spectra, np.geomspace(start / 30.0, 30.0 * start, 2 * _POINTS), np.ones(1))
    return crossing(scan.signal, scan.expected[:, 0, 2])


def _background(counts: SelectedCounts, settings: LimitSettings) -> Background:
    fit = fit_spectrum(counts.nested[0], counts.edges, None, settings.shape, settings.sqrt_s)
    mu, gradient = bin_model(settings.shape, settings.sqrt_s, counts.edges, fit.parameters)
    return Background(mu, gradient, mass_coordinate(counts.edges))


def _inclusive(
    counts: SelectedCounts,
    signal: SignalAtCut,
    background: Background,
    settings: LimitSettings,
    additions: FloatArray | None,
) -> SignalSpectra:
    share = np.ones(len(background.mu))
    return SignalSpectra(
        background, counts.nested[0], None, share, -1, signal.every, signal.every, settings.normalisation, additions
    )


def _fitted(
    counts: SelectedCounts,
    place: int,
    window: Window,
    signal: SignalAtCut,
    count: QuotedCount,
    injected: FloatArray,
    background: Background,
    settings: LimitSettings,
) -> tuple[Limit | None, float | None, str | None]:
    """Return the limit from the spectra and its error, or the reason why there is none."""
    reason = _too_few(counts, place, window, background, settings) if place else None
    if reason is not None:
        return None, None, reason
    scan = _scan(counts, place, window, signal, count, injected, background, settings)
    if signal.passes is None:
        return _limit(scan, None), None, None
    rng = np.random.default_rng(0)
    medians = [_limit(scan, signal.passes.drawn_again(rng)).expected[2] for _ in range(_DRAWS)]
    finite = [median for median in medians if np.isfinite(median)]
    error = float(np.std(finite, ddof=1)) if len(finite) > 1 else None
    return _limit(scan, signal.passes), error, None


def _too_few(
    counts: SelectedCounts, place: int, window: Window, background: Background, settings: LimitSettings
) -> str | None:
    """Return why so few events pass that there is no limit from the spectra."""
    inside, share = _inside(counts, window)
    outside = float(counts.nested[place][~inside].sum())
    if outside < settings.min_events:
        return f"fewer than {settings.min_events} events outside the window pass"
    efficiency = outside / float((share * background.mu)[~inside].sum())
    if efficiency * background.mu[inside].sum() < FEW_EVENTS:
        return f"fewer than {FEW_EVENTS:g} background events pass in the window: q is not asymptotic"
    return None


def _inside(counts: SelectedCounts, window: Window) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Return which bins are inside the window, and the share of each bin's events that a cut counts."""
    inside = window.in_signal_region(0.5 * (counts.edges[1:] + counts.edges[:-1]))
    return inside, np.where(inside, 1.0, counts.share)


def _scan(
    counts: SelectedCounts,
    place: int,
    window: Window,
    signal: SignalAtCut,
    count: QuotedCount,
    injected: FloatArray,
    background: Background,
    settings: LimitSettings,
) -> ClsScan:
    """Compute CLs for signals between the smallest and the largest that was injected."""
    nested = counts.nested
    inside, share = _inside(counts, window)
    bump = signal.every.nominal / max(float(signal.every.nominal[inside].sum()), 1e-9)
    sizes = _sizes(count, nested, inside, place)
    additions = [size * np.stack([bump, fails * bump]) for size, fails in sizes if size > 0]
    stacked = np.stack(additions) if additions else None
    if place == 0 or signal.passes is None:
        return scan_signals(_inclusive(counts, signal, background, settings, stacked), _events(injected), np.ones(1))
    passed, failed = nested[place], nested[0] - nested[place]
    data = PassFailCounts(passed[None], failed[None], share[None], signal.every.nominal[None])
    # chosen with a signal that is free in both, so that no signal can choose it
    degree = int(fit_pass_fail(background, data).degree[0])
    spectra = SignalSpectra(
        background, passed, failed, share, degree, signal.every, signal.passing, settings.normalisation, stacked
    )
    largest = max(float(signal.passes.values.max()), 1e-4)
    return scan_signals(spectra, _events(injected), largest * np.linspace(0.0, 1.0, _EFFICIENCIES) ** 2)


def _sizes(
    count: QuotedCount, nested: FloatArray, inside: npt.NDArray[np.bool_], place: int
) -> list[tuple[float, float]]:
    """Return what may be in the window beside background and signal: events that pass, and what fails for each.

    A spurious signal is one of all events; what a calibration adds, one of the events that pass alone.
    """
    passed, every = float(nested[place][inside].sum()), float(nested[0][inside].sum())
    fails = (every - passed) / passed if passed > 0 else 0.0
    return [(count.spurious, fails), (count.added, -1.0)]


def _events(injected: FloatArray) -> FloatArray:
    return np.geomspace(injected[0], injected[-1], _POINTS)


def _limit(scan: ClsScan, efficiency: TrainedEfficiency | None) -> Limit:
    """Average CLs over trainings, and find the limits."""
    if efficiency is None:
        observed, expected = scan.observed[:, 0], scan.expected[:, 0]
    else:
        observed, expected = scan.averaged(efficiency.at(scan.signal))
    return Limit(crossing(scan.signal, observed), tuple(crossing(scan.signal, column) for column in expected.T))


def _raised_expectation(
    counts: SelectedCounts,
    window: Window,
    signals: Sequence[SignalAtCut],
    injected: FloatArray,
    settings: LimitSettings,
) -> FloatArray:
    """Compute by how many events a signal raises the expectation of each cut, shape (injections, cuts).

    The signal is added to the counts that are expected without one, and the hunt's fits are made again.
    """

    def hunted(nested: FloatArray | None) -> WindowHunt:
        if nested is None:
            changed = counts
        else:
            disjoint = np.concatenate([nested[:-1] - nested[1:], nested[-1:]])
            changed = replace(counts, counts=np.maximum(disjoint, 0.0))
        return hunt_window(
            changed, window, shape=settings.shape, sqrt_s=settings.sqrt_s, min_events=settings.min_events
        )

    def expectations(nested: FloatArray) -> FloatArray:
        points = hunted(nested).working_points
        return np.array([np.nan if point.expected is None else point.expected for point in points])

    without = hunted(None)
    mu = without.fit.expected
    share = np.where(window.in_signal_region(0.5 * (counts.edges[1:] + counts.edges[:-1])), 1.0, counts.share)
    # a cut without a curve has no count either
    curves = [np.zeros_like(mu) if point.spectrum is None else point.spectrum for point in without.working_points[1:]]
    spectra = [mu, *(share * curve for curve in curves)]
    base = np.minimum.accumulate(np.stack(spectra), axis=0)
    zero, rows = expectations(base), []
    for place, number in enumerate(injected):
        added = [number * signals[0].every.nominal]
        for signal in signals[1:]:
            assert signal.passes is not None
            added.append(number * signal.passes.values[place].mean() * share * signal.passing.nominal)
        rows.append(expectations(base + np.minimum.accumulate(np.stack(added), axis=0)) - zero)
    return np.stack(rows)


def _adds(
    signal: SignalAtCut, window: Window, edges: FloatArray, injected: FloatArray, raised: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return numbers of signal events, and what each adds to a count less what it adds to its expectation."""
    events = _events(injected)
    if signal.inside is None:
        inside = float(signal.every.nominal[window.in_signal_region(0.5 * (edges[1:] + edges[:-1]))].sum())
        fraction, mean = np.full((len(events), 1), inside), np.full(len(injected), inside)
    else:
        fraction, mean = signal.inside.at(events), signal.inside.values.mean(axis=1)
    # part of what a signal adds that its own events outside the window hide; a signal so large that the hunt's fit
    # fails hides as much of itself as the largest that does not
    fitted = np.isfinite(raised)
    if not fitted.any():
        return events, np.full(fraction.shape, np.nan)
    part = raised[fitted] / np.maximum(mean * injected, 1e-300)[fitted]
    hidden = np.interp(np.log(events), np.log(injected[fitted]), part)
    return events, np.maximum(fraction * (events * (1.0 - hidden))[:, None], 0.0)


def _counted(count: QuotedCount, events: FloatArray, adds: FloatArray) -> Limit | None:
    """Return the limits from a count; None where it cannot have one."""
    assert count.expected is not None
    assert count.error is not None
    if not bool(np.isfinite(adds).all()):
        return None
    try:
        observed = count_cls(count.observed, count.expected, count.error, adds)
        band = [
            count_cls(n, count.expected, count.error, adds) for n in background_quantiles(count.expected, count.error)
        ]
    except FitError:
        return None
    return Limit(crossing(events, observed), tuple(crossing(events, cls) for cls in band))
