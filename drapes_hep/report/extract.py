"""What the page quotes and the figures draw, taken from the files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep import plots
from drapes_hep.errors import FitError, RunDirectoryError
from drapes_hep.events.skims import read_skim
from drapes_hep.metrics import Roc
from drapes_hep.report.run_files import Point, RunFiles, WindowFiles, estimate, optional_array, read_columns
from drapes_hep.spectrum.poisson import deviance_p_value
from drapes_hep.templates.comparison import compare_jets

__all__ = [
    "Step",
    "best",
    "closure_jets",
    "closures",
    "cutflow",
    "fit_p",
    "leading_window",
    "overall",
    "passing",
    "quality_points",
    "roc",
    "spectra",
    "split_counts",
]

CLOSURE = 2
"""``part`` of the sideband events that the model they are compared with never saw."""


_JETS = 2000
"""Events of a side whose jets are compared at most: about two seconds a window."""


@dataclass(frozen=True)
class Step:
    """A line of the cut flow.

    Attributes
    ----------
    name : str
        As ``skim.json`` spells it; ``in_files`` is all that was processed.
    events, weight : float
        That are left after it; of an ``aside``, that it is about.
    aside : bool
        It counts events and is not a step: values that are undefined are dropped, or replaced, by a step of their own,
        and signal that is not injected is dropped before all steps.
    """

    name: str
    events: float
    weight: float
    aside: bool = False


def cutflow(run: RunFiles) -> list[Step]:
    """Return the cut flow in the order in which events go: what is in the files and is not injected comes first."""
    # these count events and are not steps: another step drops undefined values, or gives them one, and events whose
    # jets lose constituents, or have none, stay events
    aside = {"not_injected", "no_constituents", "cut_off_constituents"}
    steps = [
        Step(name, float(s["events"]), float(s["weight"]), name in aside or "undefined_" in name)
        for s in run.skim["cutflow"]
        for name in (str(s["name"]),)
    ]
    remaining = [s for s in steps if s.name != "not_injected"]
    set_aside = [s for s in steps if s.name == "not_injected" and s.events > 0]
    if not set_aside or not remaining:
        return remaining
    whole = [remaining[0], *set_aside]
    processed = run.skim["accounting"]["processed"]
    events = sum(s.events for s in whole) if processed is None else float(processed)
    return [Step("in_files", events, sum(s.weight for s in whole)), *set_aside, *remaining]


def best(run: RunFiles, inclusive: bool = False) -> tuple[WindowFiles, Point] | None:
    """Find the most significant working point that is quoted, among the inclusive ones if asked."""
    quoted = [
        (w, p)
        for w in run.windows
        for p in w.points
        if p.get("p_local") is not None and (not inclusive or float(p["background_efficiency"]) >= 1)
    ]
    # equal where p underflows: z decides
    return min(quoted, key=lambda x: (x[1]["p_local"], -(x[1].get("z_local") or 0.0)), default=None)


def leading_window(run: RunFiles) -> WindowFiles | None:
    """Return the window that the page shows first: that of the most significant working point, or else the lowest."""
    leading = best(run)
    return leading[0] if leading else next(iter(run.windows), None)


def overall(run: RunFiles) -> plots.GlobalP:
    """Return the significance of the whole search."""
    g = run.results.get("global") or {}

    def number(name: str) -> float | None:
        return None if g.get(name) is None else float(g[name])

    def interval(name: str) -> tuple[float, float] | None:
        ends = g.get(name)
        return None if ends is None or None in ends else (float(ends[0]), float(ends[1]))

    return plots.GlobalP(
        number("p_global"),
        number("z_global"),
        interval("p_global_interval"),
        bool(g.get("bound") or False),
        int(g.get("toys") or 0),
        exceeding=int(g.get("exceeding") or 0),
        extrapolated=number("p_global_extrapolated"),
        extrapolated_z=number("z_global_extrapolated"),
        extrapolated_interval=interval("p_global_extrapolated_interval"),
        trials=number("effective_trials"),
        reason=str(g.get("reason") or ""),
    )


def fit_p(run: RunFiles, files: WindowFiles) -> float | None:
    """Return the probability of the inclusive fit's deviance, as the hunt judges it, sparse bins allowed for."""
    quoted = (files.result.get("fit") or {}).get("p_value")
    if quoted is not None:
        return float(quoted)
    for point in files.hunt["working_points"]:
        if float(point["background_efficiency"]) < 1 or point.get("chi2") is None or not point.get("ndof"):
            continue
        expected = optional_array(point.get("expected"))
        if expected is None:
            return None
        used = ~files.window.in_signal_region(0.5 * (run.edges[1:] + run.edges[:-1]))
        if run.blind:
            used &= np.array([c is not None for c in point["counts"]], dtype=np.bool_)
        parameters = int(used.sum()) - int(point["ndof"])
        return float(deviance_p_value(np.array([float(point["chi2"])]), expected[used], parameters)[0])
    return None


def quality_points(run: RunFiles) -> list[plots.QualityPoint]:
    """Return how well a classifier separates template and background in each window."""
    return [
        plots.QualityPoint(
            w.sr,
            estimate(w.template.get("auc_vs_truth")),
            estimate(w.template.get("auc_vs_sideband_closure")),
            estimate((w.quality.get("template") or {}).get("auc_vs_pseudo_window")),
            w.pseudo_window,
        )
        for w in run.windows
    ]


def spectra(run: RunFiles, files: WindowFiles) -> list[plots.Spectrum]:
    """Return a window's spectra, from the loosest cut to the tightest."""
    results = {float(p["background_efficiency"]): p for p in files.points}
    out = []
    for point in sorted(files.hunt["working_points"], key=lambda p: -float(p["background_efficiency"])):
        cut = float(point["background_efficiency"])
        counts = optional_array(point["counts"])
        if counts is None or len(counts) != len(run.edges) - 1:
            raise ValueError(f"counts of window {files.window.name} do not fit the edges")
        result = results.get(cut, {})
        out.append(
            plots.Spectrum(
                run.edges,
                counts,
                optional_array(point.get("expected")),
                optional_array(point.get("expected_bin_error")),
                files.sr,
                cut,
                chi2=point.get("chi2"),
                ndof=point.get("ndof"),
                fit_p=fit_p(run, files) if cut >= 1 else None,
                observed=result.get("observed"),
                total=result.get("expected"),
                total_error=result.get("expected_error"),
                z_local=result.get("z_local"),
            )
        )
    return out


def closures(run: RunFiles, files: WindowFiles) -> list[plots.Closure]:
    """Compare each feature of the held-out sideband events with the template made at their masses.

    Raises
    ------
    RunDirectoryError
        If the files do not belong together.
    """
    template = read_columns(files.folder / "closure.parquet", ("mjj", "weight", *run.features))
    events = run.events
    at = _held_out(files, events["event_id"])
    reference = {name: values[at] for name, values in events.items()}
    if run.blind:
        # sidebands of one window hold other windows' data
        visible = ~run.covered(reference["mjj"])
        reference = {name: values[visible] for name, values in reference.items()}
        visible = ~run.covered(template["mjj"])
        template = {name: values[visible] for name, values in template.items()}
    if not len(reference["mjj"]) or not len(template["mjj"]):
        return []
    return [
        plots.make_closure(
            run.labels.get(name, name),
            reference[name],
            template[name],
            reference_weight=reference["weight"],
            template_weight=template["weight"],
        )
        for name in run.features
    ]


def closure_jets(run: RunFiles, files: WindowFiles) -> Mapping[str, Any] | None:
    """Compare the jets of the held-out sideband events with those of the template made at their masses.

    Returns
    -------
    mapping or None
        As :func:`drapes_hep.templates.comparison.compare_jets` gives it; None without enough events, or with weighted
        ones.

    Raises
    ------
    RunDirectoryError
        If the files do not belong together.
    """
    path = files.folder / "closure.parquet"
    events = read_columns(run.directory.events, ("event_id", "weight", "mjj"))
    template = read_columns(path, ("mjj", "weight"))
    held_out, every = _held_out(files, events["event_id"]), np.arange(len(template["mjj"]))
    jets = []
    for source, columns, rows in ((run.directory.events, events, held_out), (path, template, every)):
        # sidebands of one window hold other windows' data
        visible = rows[~run.covered(columns["mjj"][rows])] if run.blind else rows
        if len(np.unique(columns["weight"][visible])) > 1:
            return None
        # evenly over the file, whatever its order
        chosen = visible[np.linspace(0, len(visible), min(_JETS, len(visible)), endpoint=False).astype(np.int64)]
        jets.append(read_skim(source, ("jets",), chosen)["jets"])
    try:
        # the template is made at the masses of these events
        return compare_jets(jets[0], jets[1], seed=1, preserved=("mjj", *(files.template_record.get("kept") or ())))
    except FitError:
        return None


def _held_out(files: WindowFiles, event_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rows of the sideband events that their model never saw, in increasing order."""
    split = read_columns(files.folder / "split.parquet", ("event_id", "part"))
    closure_ids = split["event_id"][split["part"] == CLOSURE]
    rows = np.flatnonzero(np.isin(event_id, closure_ids))
    if len(rows) != len(closure_ids):
        raise RunDirectoryError(
            f"{files.folder / 'split.parquet'}: contains events that are not in the skim; run again"
        )
    return rows


def roc(run: RunFiles, files: WindowFiles) -> Roc | None:
    """Return a window's ROC curve, where labels allow one."""
    curve = files.quality.get("roc")
    if not curve or not curve.get("signal_efficiency"):
        return None
    signal = files.quality.get("n_signal_truth")
    # the template's size is no help: the background of a ROC curve is the window's
    inside = float((files.scores["region"] == 1).sum())
    n_signal = math.nan if signal is None else float(signal)
    return Roc(
        np.asarray(curve["signal_efficiency"], dtype=np.float64),
        np.asarray(curve["background_efficiency"], dtype=np.float64),
        n_signal,
        math.nan if run.blind else inside - n_signal,
    )


def passing(run: RunFiles, files: WindowFiles) -> list[plots.Passing]:
    """Count the fitted data that pass each cut of a window's classifier, in the window and on either side."""
    s = files.scores
    # sideband events not used for the template: it follows the fluctuations of the others, and so does a cut
    outside = files.window.in_sidebands(s["mjj"]) & (s["part"] == CLOSURE)
    regions = {
        "lower sideband": outside & (s["mjj"] < files.window.lo),
        "window": s["region"] == 1,
        "upper sideband": outside & (s["mjj"] >= files.window.lo),
    }
    if run.blind:
        del regions["window"]
        visible = ~run.covered(s["mjj"])
        regions = {name: mask & visible for name, mask in regions.items()}
    return [
        plots.Passing(files.sr, name, float(p["background_efficiency"]), float(passed.sum()), float(mask.sum()))
        for p in files.points
        if float(p["background_efficiency"]) < 1
        for name, mask in regions.items()
        for passed in (mask & (s["tail"] <= float(p["background_efficiency"])),)
    ]


def split_counts(run: RunFiles, files: WindowFiles) -> plots.SplitCounts:
    """Count which events of a window's search do what."""
    parts = (files.training or {}).get("events") or {}
    folds = (run.config.get("cwola") or {}).get("folds")
    low, high = run.config["mass"]["range"]
    crossed = (files.folder / "calibration.parquet").exists()
    if run.blind and parts:
        # sidebands of one window hold other windows' data
        split = read_columns(files.folder / "split.parquet", ("event_id", "part"))
        events = run.events
        visible_parts = split["part"][np.isin(split["event_id"], events["event_id"][~run.covered(events["mjj"])])]
        parts = {name: int((visible_parts == i).sum()) for i, name in enumerate(("train", "validation", "closure"))}
        if crossed:
            # closure events all, of the model of their fold
            parts = {"train": None, "validation": None, "closure": parts["closure"]}
    return plots.SplitCounts(
        files.sr,
        (float(low), float(high)),
        parts.get("train"),
        parts.get("validation"),
        parts.get("closure"),
        files.result.get("n_observed"),
        files.template.get("n"),
        folds,
        folds if crossed and folds else 1,
    )
