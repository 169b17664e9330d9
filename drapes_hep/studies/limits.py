r"""Limits on a simulated signal from a finished search, with the efficiency that a signal of each size has. GeV.

The number of signal events S that a selection keeps is the cross section times luminosity and acceptance,
:math:`S = \sigma L A`. Of these, the part :math:`\epsilon_S(S)` passes a cut, and it depends on S: the classifier
learns from the signal. The efficiency is measured on searches of generated events with an injected signal, everything
trained anew (:mod:`drapes_hep.studies.injected_searches`); a signal added to the data would be there twice if the data
hold one. The generator is trained on what is outside the window, its masses are from a fit outside it, so that no limit
depends on the data inside but through the counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.count_limits import count_limits
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_limits import (
    CutLimits,
    LimitSettings,
    QuotedCount,
    SignalAtCut,
    cut_limits,
    inclusive_limit,
    limit_budget,
)
from drapes_hep.bumphunt.tied_likelihood import varied_template
from drapes_hep.bumphunt.trained_efficiency import TrainedEfficiency, trained_efficiency
from drapes_hep.config import Config, LimitsConfig, changed_config
from drapes_hep.errors import ConfigError, counted
from drapes_hep.files import file_hash, read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.stages.feature_tables import read_record
from drapes_hep.stages.sequence import run_verb
from drapes_hep.stages.skim import skim
from drapes_hep.stages.window_counts import window_counts
from drapes_hep.studies.injected_searches import (
    LIMIT_CODE,
    SignalSample,
    check_sample,
    injected_record,
    load_sample,
    run_injected,
)
from drapes_hep.studies.null_folder import null_folder, search_missing
from drapes_hep.studies.null_searches import check_nulls
from drapes_hep.studies.records import has_record, read_trial

__all__ = ["SignalLimits", "compute_limits", "select_signal", "signals_of"]

FloatArray = npt.NDArray[np.float64]

_APART = 1000
"""Between the numbers of the nulls of one size of the signal and the next: no two searches share events."""
_LEAST_INSIDE = 0.2
"""Part of a signal inside a window below which it is another window's, or none's."""


@dataclass(frozen=True)
class SignalLimits:
    """Limits on a signal, cut by cut.

    Attributes
    ----------
    window : Window
        Which has most of the signal.
    selected : int
        Events of the sample that the selection keeps.
    acceptance, acceptance_error : float
        Part of the sample's weight that it keeps, and the statistical error.
    inside : float
        Part of that inside the window.
    mass : float
        Median of the sample's m_JJ, GeV.
    luminosity : float or None
        1/fb.
    injected : tuple of float
        Signal events after the selection, on average, in the searches that measured the efficiency.
    searches : int
        With each.
    cuts : tuple of CutLimits
        In signal events after the selection.
    efficiencies : tuple of TrainedEfficiency or None
        Part of them that passes each cut; None without a cut.
    budget : tuple of (str, float)
        Sources of uncertainty, and what the expected limit of the best cut would be without each.
    """

    window: Window
    selected: int
    acceptance: float
    acceptance_error: float
    inside: float
    mass: float
    luminosity: float | None
    injected: tuple[float, ...]
    searches: int
    cuts: tuple[CutLimits, ...]
    efficiencies: tuple[TrainedEfficiency | None, ...]
    budget: tuple[tuple[str, float], ...]

    @property
    def best(self) -> CutLimits | None:
        """The cut with the lowest limit expected from the spectra: no observed count chooses it."""
        return best_cut(self.cuts)

    def cross_section(self, events: float) -> float | None:
        """Return the cross section in fb of a number of signal events; None without a luminosity."""
        return None if self.luminosity is None else events / (self.luminosity * self.acceptance)


def best_cut(cuts: Sequence[CutLimits]) -> CutLimits | None:
    """Return the cut with the lowest limit expected from the spectra; None if none is within the injections."""
    quoted = [cut for cut in cuts if np.isfinite(_median(cut))]
    # where several are below the smallest injection, the tightest of them
    return min(quoted, key=lambda cut: (_median(cut), cut.background_efficiency), default=None)


def _median(cut: CutLimits) -> float:
    return float("inf") if cut.fitted is None else cut.fitted.expected[2]


def compute_limits(search: Context, sample: Context, luminosity: float | None = None) -> SignalLimits:
    """Compute limits on a signal.

    Parameters
    ----------
    search : Context
        Of the search; what is missing of it is run.
    sample : Context
        Of the signal: its configuration is :func:`~drapes_hep.stages.apply.applied_config`'s, its run directory takes
        the selected events and the records of the searches.
    luminosity : float, optional
        1/fb.

    Returns
    -------
    SignalLimits

    Raises
    ------
    ConfigError
        If the search is blinded or cannot be repeated on generated events, the sample is in no window or too small.
    DrapesError
        If a file is bad, or a search fails; those that are done stay.
    """
    config, limits = search.config, search.config.limits
    # what was wrong with the signal is known: the search may take long
    signal, window = select_signal(search, sample)
    path = str(sample.config.data.path)
    run_verb("run", search, search.windows)
    counts = window_counts(search, window).counts
    acceptance = _acceptance(sample, signal.weight)
    settings = LimitSettings(
        find_shape(config.mass), config.mass.sqrt_s, config.hunt.min_events,
        # the acceptance is in no limit on the number of selected events
        float(np.hypot(limits.yield_error, 0.0 if luminosity is None else acceptance[1] / acceptance[0])),
    )  # fmt: skip
    results = read_json(search.run.results)["windows"]
    quoted = _quoted(next(each for each in results if each["sr"] == [window.lo, window.hi]))
    injected = _injected(counts, window, signal, quoted[0], settings, limits)
    check_sample(signal, injected[-1], path)
    records = _search(search, sample, window, injected)
    signals = signals_of(records, counts.edges, window, signal, limits)
    cuts = cut_limits(counts, window, signals, quoted, injected, settings)
    best = best_cut(cuts)
    budget = () if best is None else limit_budget(counts, window, signals, quoted, injected, settings, cuts.index(best))
    return SignalLimits(
        window, len(signal), *acceptance, _inside(window, signal), float(np.median(signal.mjj)), luminosity,
        tuple(injected), limits.searches, cuts, tuple(at_cut.passes for at_cut in signals), budget,
    )  # fmt: skip


def select_signal(search: Context, sample: Context) -> tuple[SignalSample, Window]:
    """Select the events of a signal, and find its window; nothing is searched.

    Parameters
    ----------
    search, sample : Context
        As :func:`compute_limits` takes them.

    Returns
    -------
    SignalSample, Window

    Raises
    ------
    ConfigError
        As :func:`compute_limits`; a sample that is too small only if ``limits.reference`` says how many are injected.
    DrapesError
        If a file is bad.
    """
    limits = search.config.limits
    check_nulls(search.config, "limits")
    skim(sample)
    signal, path = load_sample(sample.run.events, search.config), str(sample.config.data.path)
    window = _window_of(search.windows, signal, path)
    if limits.reference is not None:
        check_sample(signal, limits.injected[-1] * limits.reference, path)
    return signal, window


def _inside(window: Window, signal: SignalSample) -> float:
    return float(signal.weight[window.in_signal_region(signal.mjj)].sum() / signal.weight.sum())


def _window_of(windows: Sequence[Window], signal: SignalSample, path: str) -> Window:
    """Return the window that has most of a signal."""
    window = max(windows, key=lambda each: _inside(each, signal))
    if (part := _inside(window, signal)) < _LEAST_INSIDE:
        raise ConfigError(
            f"{path}: the window {window.name} has most of the signal, {part:.0%}; a limit needs {_LEAST_INSIDE:.0%}"
            " inside a window of the search"
        )
    return window


def _acceptance(sample: Context, weight: FloatArray) -> tuple[float, float]:
    """Return the part of the sample's weight that the selection keeps, and its error from independent events.

    The events' mean weight squared is that of those that are kept: the others' weights are only known as a sum.
    """
    steps = {step["name"]: step for step in read_record(sample.run.skim_info, "cutflow")["cutflow"]}
    read, selected = steps["read"], steps["defined"]
    share = selected["weight"] / read["weight"]
    spread = float((weight**2).mean() / max(weight.mean() ** 2, 1e-300))
    return share, float(np.sqrt(max(share * (1.0 - share), 0.0) * spread / max(read["events"], 1)))


def _quoted(result: Mapping[str, Any]) -> list[QuotedCount]:
    """Return what the hunt quotes of a window, with the errors that a calibration gives."""
    spurious = result["spurious_signal"]
    # not assessed, it is in no error of the hunt either; the report says so
    events = 0.0 if spurious is None or spurious["events"] is None else abs(spurious["events"])
    inclusive, out = result["working_points"][0]["expected"], []
    for point in result["working_points"]:
        expected, error, added = point["expected"], point["expected_error"], 0.0
        if point["calibrated"] is not None and error is not None:
            calibrated = point["calibrated"]["expected_error"]
            added, error = float(np.sqrt(max(calibrated**2 - error**2, 0.0))), calibrated
        passes = expected / inclusive if expected and inclusive else 0.0
        out.append(QuotedCount(point["observed"], expected, error, events * passes, added, events))
    return out


def _injected(
    counts: SelectedCounts,
    window: Window,
    signal: SignalSample,
    inclusive: QuotedCount,
    settings: LimitSettings,
    limits: LimitsConfig,
) -> FloatArray:
    """Return the numbers of signal events to inject, rising."""
    reference = limits.reference
    if reference is None:
        if inclusive.expected is None or inclusive.error is None:
            raise ConfigError(
                f"window {window.name}: nothing is expected without a cut, so no signal can be chosen; set"
                " limits.reference"
            )
        start = count_limits(None, inclusive.expected, inclusive.error).expected[2] / _inside(window, signal)
        whole = varied_template(_histogram(signal, counts.edges), counts.edges, 0.0, 0.0)
        expected = inclusive_limit(counts, SignalAtCut(whole, whole, None, None), start, settings)
        reference = 0.5 * (expected if np.isfinite(expected) else start)
    injected = np.array([float(f"{share * reference:.3g}") for share in limits.injected])
    if not bool(np.all(np.diff(injected) > 0)):
        raise ConfigError("limits.injected: sizes that are so near to each other are the same number of events")
    return injected


def _histogram(signal: SignalSample, edges: FloatArray) -> FloatArray:
    return np.asarray(np.histogram(signal.mjj, edges, weights=signal.weight)[0] / signal.weight.sum())


def _search(search: Context, sample: Context, window: Window, injected: FloatArray) -> list[list[dict[str, Any]]]:
    """Make the searches that are missing, and return the records of all, injection by injection."""
    own = _single(search.config, window)
    place = null_folder(
        replace(search, config=own, windows=(window,)),
        LIMIT_CODE,
        file_hash(sample.run.events),
        parent=sample.run.path / "searches",
        labelled=False,
    )
    numbers = [
        [(float(mean), _APART * size + i) for i in range(search.config.limits.searches)]
        for size, mean in enumerate(injected)
    ]
    # all sizes of the signal come early, should the command be ended
    in_turn = [group[i] for i in range(search.config.limits.searches) for group in numbers]
    missing = [(place, sample.run.events, *each) for each in in_turn if not has_record(injected_record(place, *each))]
    search_missing(
        place, search, run_injected, missing, f"limits: {counted(len(in_turn), 'injected search', 'injected searches')}"
    )
    return [[read_trial(injected_record(place, *each)) for each in group] for group in numbers]


def _single(config: Config, window: Window) -> Config:
    """Return the configuration of one window of a search."""
    windows = {**config.windows.model_dump(mode="json"), "first": window.lo, "last": window.lo}
    # as many events as the data have: the efficiency is learnt on this background
    study = {**config.study.model_dump(mode="json"), "null_events": None}
    return changed_config(config, {"windows": windows, "study": study})


def signals_of(
    records: Sequence[Sequence[dict[str, Any]]],
    edges: FloatArray,
    window: Window,
    signal: SignalSample,
    limits: LimitsConfig,
) -> tuple[SignalAtCut, ...]:
    """Return what injected searches say of a signal at each cut.

    Parameters
    ----------
    records : sequence of sequences of dict
        From :func:`~drapes_hep.studies.injected_searches.search_injected`, by rising size of the signal.
    edges : array, shape (bins + 1,)
        GeV.
    window : Window
        That they searched.
    signal : SignalSample
    limits : LimitsConfig

    Returns
    -------
    tuple of SignalAtCut
    """
    first = records[0][0]
    old = np.asarray(first["edges"])
    inside = window.in_signal_region(0.5 * (old[1:] + old[:-1]))
    every = varied_template(_histogram(signal, edges), edges, limits.scale_error, limits.resolution_error)
    out = [SignalAtCut(every, every, None, None)]
    means = [group[0]["mean"] for group in records]
    for cut in range(1, len(first["windows"][0]["points"])):
        passed = [np.array([record["windows"][0]["points"][cut]["signal"] for record in group]) for group in records]
        shape = np.concatenate(passed).sum(axis=0)
        fractions = np.diff(np.interp(edges, old, np.concatenate([[0.0], np.cumsum(shape / max(shape.sum(), 1e-300))])))
        out.append(
            SignalAtCut(
                every,
                varied_template(fractions, edges, limits.scale_error, limits.resolution_error),
                trained_efficiency(means, [group.sum(axis=1) for group in passed]),
                trained_efficiency(means, [group[:, inside].sum(axis=1) for group in passed]),
            )
        )
    return tuple(out)
