"""Stage hunt: counts, expectations, local and global significances, results and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.background import SpuriousSignal, check_background, spurious_signals
from drapes_hep.bumphunt.calibrated import (
    CalibratedGlobal,
    CalibratedPoint,
    NullPulls,
    calibrated_global,
    calibrated_points,
    read_pulls,
)
from drapes_hep.bumphunt.exceedance import Exceedance
from drapes_hep.bumphunt.extrapolation import Extrapolation
from drapes_hep.bumphunt.resonance import ResonanceScan, largest, leading_point, scan_resonances
from drapes_hep.bumphunt.seed_spread import SeedSpread, check_same_search, read_spreads
from drapes_hep.bumphunt.selection import SelectedCounts, set_overlaps
from drapes_hep.bumphunt.sensitivity import Sensitivity, expected_spurious_signals, window_sensitivity
from drapes_hep.bumphunt.signal_shapes import find_signal, signal_source
from drapes_hep.bumphunt.toys import GlobalSignificance, ToyModel, background_model, global_significance
from drapes_hep.bumphunt.working_points import WindowHunt, hunt_window
from drapes_hep.config import keys_of
from drapes_hep.errors import DrapesError, FitError, counted
from drapes_hep.files import write_json
from drapes_hep.keys import first_difference, value_text
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.stage import Stage
from drapes_hep.regions import Window, uncovered
from drapes_hep.results import (
    PointChecks,
    background_record,
    global_record,
    resonance_record,
    results_record,
    window_record,
)
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.spectrum.shapes import find_shape, shape_sources
from drapes_hep.stages.bins import mass_edges
from drapes_hep.stages.classify import quality_stage
from drapes_hep.stages.cross_checks import window_cross_checks
from drapes_hep.stages.feature_tables import read_record
from drapes_hep.stages.histograms import write_histograms
from drapes_hep.stages.resonance_toys import scan_significance
from drapes_hep.stages.window_counts import window_counts

__all__ = ["hunt", "hunt_stage"]

FloatArray = npt.NDArray[np.float64]

_NO_TOYS = "hunt.toys is 0: no pseudo-experiments"


def hunt_stage(context: Context, windows: Sequence[Window]) -> Stage:
    """Describe the stage: what decides the results."""
    directory = context.run
    reads = [directory.events, directory.skim_info, directory.skim_hists]
    for window in windows:
        folder = directory.window(window)
        reads += [folder / name for name in ("scores.parquet", "quality.json")]
        if not context.config.blind:  # nothing is made of a hidden window's template
            reads += [folder / name for name in ("template_scores.parquet", "template.parquet")]
    if not context.config.blind:
        named = context.config.hunt.calibration, context.config.hunt.seeds
        reads += [Path(path) for path in named if path is not None]
    config = context.config.model_dump(mode="json")
    return Stage(
        "hunt",
        config,
        keys_of("hunt"),
        lambda: reads,
        ("stages.hunt",),
        other={
            "windows": [[window.lo, window.hi] for window in windows],
            "search": [[window.lo, window.hi] for window in context.windows],
            "mass bins": mass_edges(context).tolist(),
            "mass shape's source": shape_sources(context.config.mass),
            # a blinded hunt fits no resonance
            "signal sample": None if context.config.blind else signal_source(context.config.hunt.signal),
        },
        # all earlier stages were checked against this configuration; the skim checks where the data are
        recorded=tuple(name for name in config if name != "data"),
        after=tuple(quality_stage(context, window) for window in windows),
        cheap=True,
    )


def hunt(context: Context, windows: Sequence[Window] | None = None) -> None:
    """Hunt for bumps in the windows that were classified, unless it is done.

    Parameters
    ----------
    context : Context
    windows : sequence of Window, optional
        All by default.

    Raises
    ------
    DrapesError
        If a window was not classified, or the data are weighted.
    """
    chosen = tuple(windows or context.windows)
    run_stage(context.run, hunt_stage(context, chosen), lambda: _hunt(context, chosen), context.reporter)


def _hunt(context: Context, windows: tuple[Window, ...]) -> list[Path]:
    config, directory = context.config, context.run
    edges = mass_edges(context)
    masses: FloatArray | None = None
    spurious: tuple[SpuriousSignal, ...] = ()
    tails: list[FloatArray] = []
    counts: list[SelectedCounts] = []
    visible_counts: list[SelectedCounts] = []
    hunts: list[WindowHunt] = []
    for window in windows:
        counted_window = window_counts(context, window)
        masses = counted_window.mjj
        tails.append(counted_window.tail)
        counts.append(counted_window.counts)
        visible_counts.append(counted_window.visible)
        if config.hunt.spurious_signal and not spurious:
            # of the inclusive counts, the same for every window's scores
            spurious = spurious_signals(counts[0], windows, find_shape(config.mass), config.mass.sqrt_s)
        hunts.append(
            hunt_window(
                counts[-1],
                window,
                shape=find_shape(config.mass),
                sqrt_s=config.mass.sqrt_s,
                min_events=config.hunt.min_events,
                blind=config.blind,
                spurious=spurious[len(hunts)] if spurious else None,
            )
        )
    if masses is None:
        raise DrapesError("the search has no window")
    model = _toy_model(context, hunts, counts, masses, tails)
    outcome = model if isinstance(model, str) else _global(context, hunts, model)
    significance = None if isinstance(outcome, str) else outcome
    scan = _resonances(context, windows, counts, edges)
    of_scan = model if isinstance(model, str) else scan_significance(context, model, scan)
    if not isinstance(of_scan, str):
        text = _global_text(of_scan.of_toys, of_scan.extrapolated)
        context.reporter.say(f"global significance of the resonance fit: {text}")
    hunted = _hunt_record(context, edges, visible_counts, hunts, significance)
    write_json(directory.hunt, {**hunted, "resonance": _resonance_spectra(scan)})
    record = _results(context, hunts, counts, outcome, resonance_record(scan, of_scan))
    write_json(directory.results, record)
    return [directory.hunt, directory.results, *write_histograms(context, windows, visible_counts, hunts, scan)]


def _toy_model(
    context: Context,
    hunts: Sequence[WindowHunt],
    counts: Sequence[SelectedCounts],
    masses: FloatArray,
    tails: Sequence[FloatArray],
) -> ToyModel | str:
    """Return what pseudo-experiments of the whole search are drawn from, or the reason why there are none."""
    config, windows = context.config, tuple(hunted.sr for hunted in hunts)
    if config.blind:
        return "the run is blinded"
    if windows != context.windows:
        # a p-value of a part of the search would not pay for the choice of that part
        few = counted(len(windows), "window was", "windows were")
        return f"only {few} hunted; the search has {len(context.windows)}"
    if config.hunt.toys == 0 and config.hunt.resonance_toys == 0:
        return _NO_TOYS
    overlaps = set_overlaps(masses, np.stack(tails), counts[0].edges, config.hunt.background_efficiencies)
    try:
        return background_model(
            windows,
            counts,
            overlaps,
            shape=find_shape(config.mass),
            sqrt_s=config.mass.sqrt_s,
            min_events=config.hunt.min_events,
            spurious=[hunted.spurious for hunted in hunts if hunted.spurious is not None],
        )
    except FitError as error:
        context.reporter.say(f"no global significance: {error}")
        return str(error)


def _global(context: Context, hunts: Sequence[WindowHunt], model: ToyModel) -> GlobalSignificance | str:
    """Return the significance of the whole search, or the reason why there is none."""
    config = context.config
    if config.hunt.toys == 0:
        return _NO_TOYS
    rng = np.random.default_rng(stage_seed(config.seed, "toys"))
    with context.reporter.bar("pseudo-experiments", config.hunt.toys) as bar:
        significance = global_significance(
            hunts, model, config.hunt.toys, rng, threads=context.workers, progress=lambda done, _: bar(done)
        )
    if significance is None:
        return "no working point has a p-value"
    context.reporter.say(f"global significance: {_global_text(significance.of_toys, significance.extrapolated)}")
    return significance


def _resonances(
    context: Context, windows: tuple[Window, ...], counts: Sequence[SelectedCounts], edges: FloatArray
) -> ResonanceScan:
    """Fit resonances over the whole range, unless the run is blinded."""
    config = context.config
    if config.blind:
        ranges = uncovered((float(edges[0]), float(edges[-1])), windows)
        return ResonanceScan("", (), ranges, "the run is blinded")
    scan = scan_resonances(
        windows,
        counts,
        find_signal(config.hunt.signal),
        shape=find_shape(config.mass),
        sqrt_s=config.mass.sqrt_s,
        min_events=config.hunt.min_events,
        seed=stage_seed(config.seed, "resonance"),
    )
    best = leading_point(scan.points)
    if best is None:
        context.reporter.say(f"resonance fit: no result{f' ({scan.reason})' if scan.reason else ''}")
    else:
        cut = f"background efficiency {best.background_efficiency:g}" + (
            "" if best.window is None else f" in window {best.window.name}"
        )
        context.reporter.say(f"resonance fit: largest local z = {best.z:.2f} at {best.mass:.0f} GeV, {cut}")
    return scan


def _resonance_spectra(scan: ResonanceScan) -> list[dict[str, Any]]:
    """Return the fitted spectra of the largest z of each window and cut."""
    return [
        {
            "window": None if point.window is None else [point.window.lo, point.window.hi],
            "background_efficiency": point.background_efficiency,
            "mass": point.mass,
            "background": _nullable(point.spectrum),
            "signal": _nullable(point.peak),
        }
        for point in largest(scan.points)
        if point.spectrum is not None and point.peak is not None
    ]


def _global_text(result: Exceedance, beyond: Extrapolation | None) -> str:
    """Write both global p-values in a line."""
    sign = "<=" if result.bound else "="
    text = f"p {sign} {result.p:.2g} (as extreme: {result.exceeding} of {result.toys} pseudo-experiments)"
    if beyond is None:
        return text
    return f"{text}; extrapolated p = {beyond.p:.2g}, z = {beyond.z:.2f} ({beyond.trials:.1f} effective trials)"


def _nullable(values: FloatArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _hunt_record(
    context: Context,
    edges: FloatArray,
    counts: Sequence[SelectedCounts],
    hunts: Sequence[WindowHunt],
    significance: GlobalSignificance | None,
) -> dict[str, Any]:
    config = context.config
    everywhere: dict[str, Any] | None = None
    if not config.blind:
        fit = fit_spectrum(counts[0].nested[0], edges, None, find_shape(config.mass), config.mass.sqrt_s)
        everywhere = {"expected": _nullable(fit.expected), "chi2": fit.chi2, "ndof": fit.ndof, "good": bool(fit.good)}
    windows = []
    for count, hunted in zip(counts, hunts, strict=True):
        points = []
        for row, point in zip(count.nested, hunted.working_points, strict=True):
            points.append(
                {
                    "background_efficiency": point.background_efficiency,
                    "counts": _nullable(row),
                    "expected": None if point.spectrum is None else _nullable(point.spectrum),
                    "expected_bin_error": None if point.spectrum_error is None else _nullable(point.spectrum_error),
                    "degree": point.degree,
                    "chi2": point.chi2,
                    "ndof": point.ndof,
                }
            )
        windows.append({"sr": [hunted.sr.lo, hunted.sr.hi], "working_points": points})
    toys = None
    if significance is not None:
        smallest = np.maximum(np.exp(significance.toy_log_p), np.finfo(np.float64).tiny)
        toys = {"smallest_p": smallest.tolist(), "observed": significance.p_smallest}
    return {
        "edges": edges.tolist(),
        "shape": find_shape(config.mass).title,
        "counts": _nullable(counts[0].nested[0]),
        "windows": windows,
        "toys": toys,
        "global_background": everywhere,
    }


def _results(
    context: Context,
    hunts: Sequence[WindowHunt],
    counts: Sequence[SelectedCounts],
    significance: GlobalSignificance | str,
    resonance: Mapping[str, Any],
) -> dict[str, Any]:
    config, directory = context.config, context.run
    spurious = _unblinded_spurious(context, hunts, counts[0])
    records = []
    sensitivities = []
    points, whole_calibrated = _calibrated(context, hunts)
    spreads = _spreads(context, hunts)
    for hunted, count, missed, calibrated in zip(hunts, counts, spurious, points, strict=True):
        quality = read_record(directory.window(hunted.sr) / "quality.json", "template", "metrics", "n_signal_truth")
        observed = None if config.blind else hunted.working_points[0].observed
        sensitivities.append(window_sensitivity(count, hunted, spurious=missed, min_events=config.hunt.min_events))
        checks = PointChecks(() if config.blind else window_cross_checks(context, hunted.sr), spreads)
        records.append(window_record(hunted, observed, quality, sensitivities[-1], missed, calibrated, checks))
    if config.blind:
        context.reporter.say(f"expected sensitivity: {_sensitivity_text(hunts, sensitivities)}")
    accounting = read_record(directory.skim_info, "accounting")["accounting"]
    background = None
    if config.hunt.spurious_signal:
        check = check_background(counts[0], find_shape(config.mass), config.mass.sqrt_s)
        background = background_record(check, config.mass.fit)
    whole = global_record(significance, config.hunt.toys, whole_calibrated)
    return results_record(accounting, records, whole, resonance, config.blind, background=background)


def _calibrated(
    context: Context, hunts: Sequence[WindowHunt]
) -> tuple[Sequence[Sequence[CalibratedPoint | None]], CalibratedGlobal | None]:
    """Calibrate local and global p-values with null searches, where the configuration names some."""
    path = context.config.hunt.calibration
    if path is None or context.config.blind:
        return [()] * len(hunts), None
    pulls = read_pulls(path)
    points = [calibrated_points(hunted, pulls) for hunted in hunts]
    if tuple(hunted.sr for hunted in hunts) != context.windows:
        return points, None
    difference = _of_other_searches(context, hunts, pulls)
    if difference is not None:
        context.reporter.say(f"calibration: the null searches differ from this search: {difference}")
    whole = calibrated_global(hunts, points, pulls, difference)
    if whole.p_global is None:
        context.reporter.say(f"calibration: no global p-value: {whole.reason}")
    else:
        context.reporter.say(
            f"calibrated with {whole.nulls} null searches: global p = {whole.p_global:.2g}, z = {whole.z_global:.2f}"
        )
    return points, whole


_DECIDE_PULLS = ("features", "define", "mass", "template", "training", "cwola")
"""Sections that decide what a search makes of events; the training's pseudo-window does not."""
_DECIDE_Z = ("min_events", "spurious_signal")
"""Keys of the hunt that decide a significance, too."""
_LIKE_AS_MANY = 0.2
"""Relative difference in numbers of events that is no difference."""


def _spreads(context: Context, hunts: Sequence[WindowHunt]) -> dict[tuple[str, float], SeedSpread]:
    """Read what other seeds gave, where the configuration names a record of it."""
    path = context.config.hunt.seeds
    if path is None or context.config.blind:
        return {}
    record = read_spreads(path)
    check_same_search(hunts, record, _difference(context, record.config, _DECIDE_Z))
    return dict(record.spreads)


def _of_other_searches(context: Context, hunts: Sequence[WindowHunt], pulls: NullPulls) -> str | None:
    """Return the first thing in which null searches differ from the search, in words."""
    if (difference := _difference(context, pulls.config)) is not None:
        return difference
    observed = hunts[0].working_points[0].observed
    if pulls.events is not None and observed is not None and abs(pulls.events - observed) > _LIKE_AS_MANY * observed:
        return f"{pulls.events:.0f} events in the window {hunts[0].sr.name}, here {observed}"
    return None


def _difference(context: Context, config: Mapping[str, Any], hunt: Sequence[str] = ()) -> str | None:
    """Return the first key in which the configuration of other searches differs from that of this one, in words."""
    own = context.config.model_dump(mode="json")
    was, now = (
        {name: tree[name] for name in _DECIDE_PULLS if name in config and name in tree} for tree in (config, own)
    )
    for tree, whole in ((was, config), (now, own)):
        tree["hunt"] = {key: whole["hunt"][key] for key in hunt if key in config.get("hunt", {})}
        if "training" in tree:
            tree["training"] = {key: value for key, value in tree["training"].items() if key != "pseudo_window"}
    difference = first_difference(was, now)
    if difference is None:
        return None
    key, of_others, of_search = difference
    return f"{key} {value_text(of_others)}, here {value_text(of_search)}"


def _unblinded_spurious(
    context: Context, hunts: Sequence[WindowHunt], counts: SelectedCounts
) -> Sequence[float | None]:
    """Return the spurious signal that each window of a blinded search will have once unblinded."""
    config, fit = context.config, hunts[0].fit
    if not (config.blind and config.hunt.spurious_signal and fit.good):
        return [None] * len(hunts)
    # all windows are hidden from every fit, so each has the same
    return expected_spurious_signals(counts, fit, [hunted.sr for hunted in hunts])


def _sensitivity_text(hunts: Sequence[WindowHunt], sensitivities: Sequence[Sequence[Sensitivity]]) -> str:
    """Write the signal events that each cut needs, from the best window to the worst."""
    parts = []
    for i, point in enumerate(hunts[0].working_points):
        needed = [estimate[0] for window in sensitivities if (estimate := window[i].signal_z3) is not None]
        where = "without a cut" if point.background_efficiency >= 1 else f"at {point.background_efficiency:g}"
        numbers = "no result" if not needed else " to ".join(dict.fromkeys(f"{f(needed):.0f}" for f in (min, max)))
        parts.append(f"{numbers} {where}")
    return f"signal events in a window for a local z of 3 in half of all experiments: {', '.join(parts)}"
