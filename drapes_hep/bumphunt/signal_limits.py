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
    spurious_inclusive : float
        The spurious signal without a cut.
    """

    observed: int
    expected: float | None
    error: float | None
    spurious: float = 0.0
    added: float = 0.0
    spurious_inclusive: float = 0.0


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
        Standard error of its expected median that the number of trainings leaves; None without a cut, with one
        training, or where a part of the trainings has no limit.
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
    expected = _outside(counts, window, settings)
    background = _background(counts, settings, expected)
    raised = _raised_expectation(counts, window, signals, injected, settings, expected)
    out = []
    for place, (efficiency, signal, count) in enumerate(zip(counts.efficiencies, signals, quoted, strict=True)):
        if count.expected is None or count.error is None:
            out.append(CutLimits(efficiency, None, None, None, "the hunt expects no count"))
            continue
        fitted, error, reason = _fitted(counts, place, window, signal, count, injected, background, settings)
        inside, _ = _inside(counts, window)
        counted, why_not = _counted(count, *_adds(signal, inside, injected, raised[:, place]))
        out.append(CutLimits(efficiency, fitted, error, counted, reason or why_not))
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
    signal, count = signals[place], quoted[place]
    background = _background(counts, settings, _outside(counts, window, settings))
    still = replace(signal, every=_still(signal.every), passing=_still(signal.passing))
    alike = replace(signal, passes=None if signal.passes is None else signal.passes.averaged())
    sure = replace(count, spurious=0.0, spurious_inclusive=0.0, added=0.0)
    exact = replace(settings, normalisation=0.0)
    everything = replace(still, passes=alike.passes)
    spurious = replace(count, spurious=0.0, spurious_inclusive=0.0)
    # a source that is not assessed, or has no error, is in no limit
    without = (
        ("mass scale and resolution of the signal", len(signal.every.slope) > 0, still, count, settings),
        ("number of signal events", settings.normalisation > 0, signal, count, exact),
        ("mass function (spurious signal)", count.spurious > 0, signal, spurious, settings),
        ("null searches", count.added > 0, signal, replace(count, added=0.0), settings),
        ("spread of the efficiency over trainings", signal.passes is not None, alike, count, settings),
        ("all of these", True, everything, sure, exact),
    )
    out = []
    for source, present, changed, its_count, its_settings in without:
        if present:
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
    spectra = _inclusive(counts, signal, _background(counts, settings, None), settings, None)
    scan = scan_signals(spectra, np.geomspace(start / 30.0, 30.0 * start, 2 * _POINTS), np.ones(1))
    return crossing(scan.signal, scan.expected[:, 0, 2])


@dataclass(frozen=True)
class _Expected:
    """The background that all fits expand around, and what each cut is expected to count.

    Attributes
    ----------
    inclusive : Background
        Of a fit to all of the range: an expansion, which no limit is expected from.
    expected : array, shape (cuts, bins), or None
        From outside the window; a cut without a curve has zeros.
    """

    inclusive: Background
    expected: FloatArray | None

    def counts(self, place: int) -> tuple[FloatArray, ...] | None:
        """Return what is expected to pass a cut and to fail it."""
        if self.expected is None:
            return None
        if place == 0:
            return (self.expected[0],)
        return self.expected[place], self.expected[0] - self.expected[place]


def _background(counts: SelectedCounts, settings: LimitSettings, expected: FloatArray | None) -> _Expected:
    fit = fit_spectrum(counts.nested[0], counts.edges, None, settings.shape, settings.sqrt_s)
    mu, gradient = bin_model(settings.shape, settings.sqrt_s, counts.edges, fit.parameters)
    return _Expected(Background(mu, gradient, mass_coordinate(counts.edges)), expected)


def _outside(counts: SelectedCounts, window: Window, settings: LimitSettings) -> FloatArray:
    """Compute the counts of each cut that are expected from outside the window, shape (cuts, bins)."""
    hunted = _hunted(counts, window, settings)
    mu, (_, share) = hunted.fit.expected, _inside(counts, window)
    curves = [np.zeros_like(mu) if point.spectrum is None else point.spectrum for point in hunted.working_points[1:]]
    return np.minimum.accumulate(np.stack([mu, *(share * curve for curve in curves)]), axis=0)


def _hunted(counts: SelectedCounts, window: Window, settings: LimitSettings) -> WindowHunt:
    return hunt_window(counts, window, shape=settings.shape, sqrt_s=settings.sqrt_s, min_events=settings.min_events)


def _inclusive(
    counts: SelectedCounts,
    signal: SignalAtCut,
    background: _Expected,
    settings: LimitSettings,
    additions: FloatArray | None,
) -> SignalSpectra:
    share = np.ones(len(background.inclusive.mu))
    return SignalSpectra(
        background.inclusive, counts.nested[0], None, share, -1, signal.every, signal.every, settings.normalisation,
        additions, background.counts(0),
    )  # fmt: skip


def _fitted(
    counts: SelectedCounts,
    place: int,
    window: Window,
    signal: SignalAtCut,
    count: QuotedCount,
    injected: FloatArray,
    background: _Expected,
    settings: LimitSettings,
) -> tuple[Limit | None, float | None, str | None]:
    """Return the limit from the spectra and its error, or the reason why there is none."""
    reason = _too_few(counts, place, window, background.inclusive, settings) if place else None
    if reason is not None:
        return None, None, reason
    scan = _scan(counts, place, window, signal, count, injected, background, settings)
    if signal.passes is None:
        return _limit(scan, None), None, None
    rng = np.random.default_rng(0)
    medians = [_limit(scan, signal.passes.drawn_again(rng)).expected[2] for _ in range(_DRAWS)]
    several = min(map(len, signal.passes.trained)) > 1 and bool(np.isfinite(medians).all())
    error = float(np.std(medians, ddof=1)) if several else None
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
    background: _Expected,
    settings: LimitSettings,
) -> ClsScan:
    """Compute CLs for signals between the smallest and the largest that was injected."""
    nested = counts.nested
    inside, share = _inside(counts, window)
    bump = signal.every.nominal / max(float(signal.every.nominal[inside].sum()), 1e-9)
    additions = []
    if count.spurious > 0:
        # as many events of the inclusive spectrum as the cut's efficiency says
        passing = count.spurious * share * bump
        additions.append(np.stack([passing, count.spurious_inclusive * bump - passing]))
    if count.added > 0:
        # what a calibration adds is of the events that pass alone
        additions.append(np.stack([count.added * share * bump, -count.added * share * bump]))
    stacked = np.stack(additions) if additions else None
    if place == 0 or signal.passes is None:
        return scan_signals(_inclusive(counts, signal, background, settings, stacked), _events(injected), np.ones(1))
    passed, failed = nested[place], nested[0] - nested[place]
    data = PassFailCounts(passed[None], failed[None], share[None], signal.every.nominal[None])
    # chosen with a signal that is free in both, so that no signal can choose it
    degree = int(fit_pass_fail(background.inclusive, data).degree[0])
    spectra = SignalSpectra(
        background.inclusive, passed, failed, share, degree, signal.every, signal.passing, settings.normalisation,
        stacked, background.counts(place),
    )  # fmt: skip
    largest = max(float(signal.passes.values.max()), 1e-4)
    return scan_signals(spectra, _events(injected), largest * np.linspace(0.0, 1.0, _EFFICIENCIES) ** 2)


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
    base: FloatArray,
) -> FloatArray:
    """Compute by how many events a signal raises the expectation of each cut, shape (injections, cuts).

    The signal is added to the counts that are expected without one, and the hunt's fits are made again.
    """
    _, share = _inside(counts, window)

    def expectations(nested: FloatArray) -> FloatArray:
        disjoint = np.concatenate([nested[:-1] - nested[1:], nested[-1:]])
        points = _hunted(replace(counts, counts=np.maximum(disjoint, 0.0)), window, settings).working_points
        return np.array([np.nan if point.expected is None else point.expected for point in points])

    zero, rows = expectations(base), []
    for place, number in enumerate(injected):
        added = [number * signals[0].every.nominal]
        for signal in signals[1:]:
            assert signal.passes is not None
            added.append(number * signal.passes.values[place].mean() * share * signal.passing.nominal)
        rows.append(expectations(base + np.minimum.accumulate(np.stack(added), axis=0)) - zero)
    return np.stack(rows)


def _adds(
    signal: SignalAtCut, inside: npt.NDArray[np.bool_], injected: FloatArray, raised: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return numbers of signal events, and what each adds to a count less what it adds to its expectation."""
    events = _events(injected)
    if signal.inside is None:
        fraction = np.full((len(events), 1), float(signal.every.nominal[inside].sum()))
    else:
        fraction = signal.inside.at(events)
    # a signal so large that the hunt's fit fails raises the expectation as the largest that does not, in proportion
    fitted = np.isfinite(raised)
    if not fitted.any():
        return events, np.full(fraction.shape, np.nan)
    part = np.interp(np.log(events), np.log(injected[fitted]), raised[fitted] / injected[fitted])
    # a signal never adds less than nothing, nor more than all of it that passes
    return events, np.clip(fraction - part[:, None], 0.0, fraction) * events[:, None]


def _counted(count: QuotedCount, events: FloatArray, adds: FloatArray) -> tuple[Limit | None, str | None]:
    """Return the limits from a count, or the reason why there are none."""
    assert count.expected is not None
    assert count.error is not None
    if not bool(np.isfinite(adds).all()):
        return None, "the count: the hunt's fit fails with each of the signals that were injected"
    try:
        observed = count_cls(count.observed, count.expected, count.error, adds)
        band = [
            count_cls(n, count.expected, count.error, adds) for n in background_quantiles(count.expected, count.error)
        ]
    except FitError as error:
        return None, f"the count: {error}"
    return Limit(crossing(events, observed), tuple(crossing(events, cls) for cls in band)), None
