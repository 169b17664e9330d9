"""Stage hunt: counts, expectations, local and global significances, results and histograms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hist
import numpy as np
import numpy.typing as npt
import uhi.io.json
import uproot

from drapes_hep.bumphunt.expectation import WindowHunt, hunt_window
from drapes_hep.bumphunt.selection import SelectedCounts, count_selected, set_overlaps
from drapes_hep.bumphunt.toys import GlobalSignificance, background_model, global_significance
from drapes_hep.errors import DrapesError, FitError, RunDirectoryError
from drapes_hep.events.features import check_features
from drapes_hep.events.skims import Skim, read_skim
from drapes_hep.files import atomic_path, write_json
from drapes_hep.mass import fit_spectrum
from drapes_hep.regions import Window
from drapes_hep.results import global_record, results_record, window_record
from drapes_hep.rng import stage_seed
from drapes_hep.stages.classify import classify_stage
from drapes_hep.stages.context import Context, load_events, read_record, unweighted
from drapes_hep.stages.model import mass_edges
from drapes_hep.stamps import Stage, run_stage
from drapes_hep.templates.model import CLOSURE

__all__ = ["hunt", "hunt_stage"]

FloatArray = npt.NDArray[np.float64]


def hunt_stage(context: Context, windows: Sequence[Window]) -> Stage:
    """Describe the stage: what decides the results."""
    directory = context.run
    reads = [directory.events, directory.skim_info, directory.skim_hists]
    for window in windows:
        folder = directory.window(window)
        reads += [folder / name for name in ("scores.parquet", "template_scores.parquet", "quality.json")]
        reads.append(folder / "template.parquet")
    config = context.config.model_dump(mode="json")
    return Stage(
        "hunt",
        config,
        ("hunt", "mass", "blind", "seed", "features", "template", "training"),
        lambda: reads,
        other={
            "windows": [[window.lo, window.hi] for window in windows],
            "search": [[window.lo, window.hi] for window in context.windows],
            "mass bins": mass_edges(context).tolist(),
        },
        # all that stands before it was checked against this configuration; where the data lie is the skim's to say
        noted=tuple(name for name in config if name != "data"),
        after=tuple(classify_stage(context, window) for window in windows),
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
    # a blinded search counts nothing inside any window: an overlapping window's sideband is another's signal region
    # (all of the search, those that are not hunted now included)
    hidden = context.windows if config.blind else ()
    masses: FloatArray | None = None
    tails: list[FloatArray] = []
    counts: list[SelectedCounts] = []
    # figures and histograms show every event
    shown: list[SelectedCounts] = []
    hunts: list[WindowHunt] = []
    for window in windows:
        scores = read_skim(directory.window(window) / "scores.parquet", ("event_id", "mjj", "weight", "tail", "part"))
        unweighted(scores["weight"], f"window {window.name}")
        mjj, tail = np.asarray(scores["mjj"]), np.asarray(scores["tail"])
        template = read_skim(directory.window(window) / "template_scores.parquet", ("event_id", "fold"))
        # every window's table holds the same events in the same order: those in the range
        masses = mjj
        points = config.hunt.background_efficiencies
        # window events, and sideband events that the template's training never met
        counted = np.isin(np.asarray(scores["part"]), (-1, CLOSURE))
        tails.append(np.where(counted, tail, 1.0))
        counts.append(count_selected(mjj, tail, edges, points, hidden, counted, config.training.closure))
        shown.append(count_selected(mjj, tail, edges, points, hidden))
        hunts.append(
            hunt_window(
                counts[-1],
                window,
                shape=config.mass.fit,
                sqrt_s=config.mass.sqrt_s,
                min_events=config.hunt.min_events,
                template_sizes=np.bincount(np.asarray(template["fold"])).tolist(),
                blind=config.blind,
            )
        )
    if masses is None:
        raise DrapesError("the search has no window")
    # a p-value of a part of the search would not pay for the choice of that part
    whole = windows == context.windows and not config.blind
    found = None if not whole else _global(context, windows, counts, hunts, masses, tails, edges)
    write_json(directory.hunt, _hunt_record(context, edges, shown, hunts, found))
    record = _results(context, hunts, found)
    write_json(directory.results, record)
    return [directory.hunt, directory.results, *_write_histograms(context, windows, shown, hunts)]


def _global(
    context: Context,
    windows: tuple[Window, ...],
    counts: Sequence[SelectedCounts],
    hunts: Sequence[WindowHunt],
    masses: FloatArray,
    tails: Sequence[FloatArray],
    edges: FloatArray,
) -> GlobalSignificance | None:
    config = context.config
    if config.hunt.toys == 0:
        return None
    overlaps = set_overlaps(masses, np.stack(tails), edges, config.hunt.background_efficiencies)
    try:
        model = background_model(
            windows,
            counts,
            overlaps,
            shape=config.mass.fit,
            sqrt_s=config.mass.sqrt_s,
            min_events=config.hunt.min_events,
        )
    except FitError as error:
        context.reporter.say(f"no global significance: {error}")
        return None
    rng = np.random.default_rng(stage_seed(config.seed, "toys"))
    with context.reporter.bar("pseudo-experiments", config.hunt.toys) as bar:
        significance = global_significance(hunts, model, config.hunt.toys, rng, progress=lambda done, _: bar(done))
    if significance is not None:
        context.reporter.say(f"global significance: {_global_text(significance)}")
    return significance


def _global_text(result: GlobalSignificance) -> str:
    """Write both global p-values in a line."""
    sign = "<=" if result.bound else "="
    text = f"p {sign} {result.p_global:.2g} (as extreme: {result.exceeding} of {result.toys} pseudo-experiments)"
    beyond = result.extrapolated
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
    found: GlobalSignificance | None,
) -> dict[str, Any]:
    config = context.config
    everywhere: dict[str, Any] | None = None
    if not config.blind:
        fit = fit_spectrum(counts[0].nested[0], edges, None, config.mass.fit, config.mass.sqrt_s)
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
    if found is not None:
        smallest = np.maximum(np.exp(found.toy_log_p), np.finfo(np.float64).tiny)
        toys = {"smallest_p": smallest.tolist(), "observed": found.p_smallest}
    return {
        "edges": edges.tolist(),
        "counts": _nullable(counts[0].nested[0]),
        "windows": windows,
        "toys": toys,
        "global_background": everywhere,
    }


def _results(context: Context, hunts: Sequence[WindowHunt], found: GlobalSignificance | None) -> dict[str, Any]:
    config, directory = context.config, context.run
    records = []
    for hunted in hunts:
        quality = read_record(directory.window(hunted.sr) / "quality.json", "template", "metrics", "n_signal_truth")
        observed = hunted.working_points[0].observed
        records.append(window_record(hunted, None if config.blind else observed, quality))
    accounting = read_record(directory.skim_info, "accounting")["accounting"]
    return results_record(accounting, records, global_record(found, config.hunt.toys), config.blind)


def _write_histograms(
    context: Context,
    windows: Sequence[Window],
    counts: Sequence[SelectedCounts],
    hunts: Sequence[WindowHunt],
) -> list[Path]:
    """Write every histogram twice: as TH1 and TH2 for ROOT users, as uhi JSON for everybody else."""
    directory = context.run
    hists: dict[str, hist.Hist] = {}
    for name, record in read_record(directory.skim_hists).items():
        control = _control(directory.skim_hists, name, record)
        for selection in ("before", "after"):
            parts = _without_categories(f"control_{name}_{selection}", control[{"selection": selection}])
            if name == "mjj" and context.config.blind:
                parts = {f"{key}_blinded": _blinded(one, context.windows) for key, one in parts.items()}
            hists |= parts
    features = check_features(context.config.features)
    for window, count, hunted in zip(windows, counts, hunts, strict=True):
        key = window.name.replace("-", "_")
        template = load_events(directory.window(window) / "template.parquet", context.config.features)
        for row, point in zip(count.nested, hunted.working_points, strict=True):
            cut = f"{point.background_efficiency:g}"
            blinded = "_blinded" if count.hidden.any() else ""
            hists[f"mjj_{key}_eff{cut}{blinded}"] = _mass_histogram(count.edges, row, row)
            if point.spectrum is not None and point.spectrum_error is not None:
                hists[f"mjj_expected_{key}_eff{cut}"] = _mass_histogram(
                    count.edges, point.spectrum, point.spectrum_error**2
                )
        for feature in features:
            axis = hist.axis.Regular(feature.bins, *feature.range, name=feature.name, label=feature.axis_label)
            one = hist.Hist(axis, storage="weight")
            one.fill(np.asarray(template[feature.name]), weight=np.asarray(template["weight"]))
            hists[f"template_{key}_{feature.name}"] = one
        hists[f"template_{key}_mjj_{features[0].name}"] = _plane(template, features[0].name, window)
    with atomic_path(directory.path / "hists.root") as temporary, uproot.recreate(temporary) as file:
        for name, one in hists.items():
            file[name.replace(".", "p")] = one
    records = {name: json.loads(json.dumps(one, default=uhi.io.json.default)) for name, one in hists.items()}
    with atomic_path(directory.path / "hists.json") as temporary:
        temporary.write_text(json.dumps(records), encoding="utf-8")
    return [directory.path / "hists.root", directory.path / "hists.json"]


def _control(path: Path, name: str, record: Mapping[str, Any]) -> hist.Hist:
    try:
        return hist.Hist(json.loads(json.dumps(record), object_hook=uhi.io.json.object_hook))
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(f"{path}: '{name}' is no histogram; delete it and run `drapes skim` again") from error


def _without_categories(name: str, one: hist.Hist) -> dict[str, hist.Hist]:
    """Split a histogram over its category axes, which ROOT has no word for."""
    for axis in one.axes:
        if isinstance(axis, hist.axis.StrCategory):
            parts: dict[str, hist.Hist] = {}
            for value in axis:
                # one dataset needs no name of its own
                suffix = f"_{value}" if len(axis) > 1 or axis.name != "dataset" else ""
                parts |= _without_categories(name + suffix, one[{axis.name: value}])
            return parts
    return {name: one}


def _blinded(one: hist.Hist, windows: Sequence[Window]) -> hist.Hist:
    """Empty every bin that a window touches."""
    edges = one.axes[0].edges
    hidden = np.any([(edges[1:] > window.lo) & (edges[:-1] < window.hi) for window in windows], axis=0)
    copy = one.copy()
    view = copy.view()
    view["value"][hidden] = 0.0
    view["variance"][hidden] = 0.0
    return copy


def _mass_histogram(edges: FloatArray, values: FloatArray, variances: FloatArray) -> hist.Hist:
    one = hist.Hist(hist.axis.Variable(edges, name="mjj", label=r"$m_{JJ}$ [GeV]"), storage="weight")
    # hidden bins were never counted: they stay empty
    view = one.view()
    view["value"], view["variance"] = np.nan_to_num(values), np.nan_to_num(variances)
    return one


def _plane(template: Skim, name: str, window: Window) -> hist.Hist:
    feature = check_features([name])[0]
    one = hist.Hist(
        hist.axis.Regular(40, window.lo, window.hi, name="mjj", label=r"$m_{JJ}$ [GeV]"),
        hist.axis.Regular(feature.bins, *feature.range, name=name, label=feature.axis_label),
        storage="weight",
    )
    one.fill(
        mjj=np.asarray(template["mjj"]), weight=np.asarray(template["weight"]), **{name: np.asarray(template[name])}
    )
    return one
