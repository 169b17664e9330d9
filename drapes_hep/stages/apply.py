"""Stage apply: the selection and the classifiers of a finished search, on events of anybody's.

Events that are not the search's are passed by every fold's classifiers with that fold's own cut, and the fractions that
pass are averaged. Events of the search itself, recognised by their values, are scored by their own fold's classifiers
alone: the others have seen them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from drapes_hep.config import Config, changed_config
from drapes_hep.cwola.classifiers import find_classifier, is_saved, load_classifier, reads_of
from drapes_hep.cwola.trained_folds import TrainedFolds, has_classifiers, load_folds
from drapes_hep.cwola.trees import engine_of
from drapes_hep.errors import ConfigError, RunDirectoryError, counted
from drapes_hep.events.skims import Skim, read_skim, write_skim
from drapes_hep.files import write_json
from drapes_hep.folds import assign_folds
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import check_stage
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.regions import Window
from drapes_hep.stages.classify import CLASSIFIERS, classify_stage
from drapes_hep.stages.feature_tables import feature_matrix, read_record
from drapes_hep.stages.skim import skim
from drapes_hep.stages.skim_table import skim_table

__all__ = ["Applied", "Passed", "applied_config", "apply_search", "trained_folds"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


_SAME = 1e-3
"""Distance within which mass and features, each in its standard deviations, are those of one event.

Files round: the bundled sample is off by 2e-4 from the events that it is made of. In 170,000 events of five features no
other is nearer than 1e-2.
"""


@dataclass(frozen=True)
class Passed:
    """How much of a sample passes one cut, inside one window.

    Attributes
    ----------
    window : Window
    background_efficiency : float
        The cut.
    events : int
        In the window, before the cut.
    weight : float
        Their sum of weights.
    fraction, error : float or None
        Of that weight, the part that passes, averaged over the folds, and its statistical error; None without events.
    folds : tuple of float or None
        The same with the classifiers of each fold; None for a fold that scored none of the events.
    """

    window: Window
    background_efficiency: float
    events: int
    weight: float
    fraction: float | None
    error: float | None
    folds: tuple[float | None, ...]


@dataclass(frozen=True)
class Applied:
    """A sample passed through a search.

    Attributes
    ----------
    read : int or None
        Events in the files; None if the search is blinded.
    selected : int
        Of them, those that the selection keeps within the mass range.
    own : int
        Of these, events of the search itself.
    passed : tuple of Passed
        Window by window, from loose to tight.
    """

    read: int | None
    selected: int
    own: int
    passed: tuple[Passed, ...]


def applied_config(config: Config, data: Mapping[str, Any]) -> Config:
    """Return the configuration that selects other events as a search does.

    Parameters
    ----------
    config : Config
        Of the search.
    data : mapping
        The section ``data`` for these events; what it leaves out has its default. No label is read.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        If the section is wrong.
    """
    own = {"labels": False, "truth": None, "layout": None}
    return changed_config(config, {
        **config.model_dump(mode="json"),
        "data": {**config.data.model_dump(mode="json"), **own, **data},
        "signal": {**config.signal.model_dump(mode="json"), "inject": None},
        # what is written of the search's own events, before they are refused, shows no more than the search does
        "blind": config.blind,
    })  # fmt: skip


def trained_folds(context: Context, window: Window) -> TrainedFolds:
    """Read the classifiers of a window of a finished search.

    Parameters
    ----------
    context : Context
        Of the search.
    window : Window

    Returns
    -------
    TrainedFolds

    Raises
    ------
    RunDirectoryError
        If the window was not classified, was since trained again, or its classifiers were not written.
    """
    config, folder = context.config, context.run.window(window)
    check_stage(context.run, classify_stage(context, window), "apply")
    cwola = config.cwola
    if not has_classifiers(folder / CLASSIFIERS):
        classifier, why = find_classifier(cwola.classifier, config.folder), "classify again"
        if not is_saved(classifier):
            own = engine_of(classifier) is not None
            needs = "scikit-learn grows its trees, which have no form as text" if own else "it needs save and load"
            why = f"the classifier {cwola.classifier} writes none: {needs}"
        raise RunDirectoryError(f"{folder}: holds no trained classifiers; {why}")
    scores = read_skim(folder / "template_scores.parquet", ("score", "weight", "fold"))
    return load_folds(
        load_classifier(cwola.classifier, cwola.options, lambda: context.device, config.folder),
        folder / CLASSIFIERS,
        (np.asarray(scores["score"]), np.asarray(scores["weight"]), np.asarray(scores["fold"])),
        folds=cwola.folds,
        ensemble=cwola.ensemble,
    )


def apply_search(search: Context, sample: Context) -> Applied:
    """Pass a sample through a finished search.

    Parameters
    ----------
    search : Context
        Its windows were classified.
    sample : Context
        Of the sample: its configuration is :func:`applied_config`'s, its run directory takes the selected events,
        ``applied.json`` and ``applied.parquet``.

    Returns
    -------
    Applied

    Raises
    ------
    DrapesError
        If a file is bad, the search is unfinished, or its classifiers were not written; of a blinded search also if the
        sample holds events of it.
    """
    config, run = search.config, sample.run
    # before the selection, which may take long
    folds = {window: trained_folds(search, window) for window in search.windows}
    # none of the other simulation: no template is made
    (skim if sample.table is None else skim_table)(sample)
    jets = reads_of(find_classifier(config.cwola.classifier, config.folder)) == "constituents"
    columns = ("event_id", "mjj", "weight", *config.features, *(("jets",) if jets else ()))
    events = read_skim(run.events, columns)
    own_fold = _own_folds(search, events)
    own = int((own_fold >= 0).sum())
    if own and config.blind:
        raise ConfigError(f"{run.path}: the sample holds events of the search, which is blinded; unblind it first")
    x = ak.zip({"jets": events["jets"]}, depth_limit=1) if jets else feature_matrix(events, config.classifier_features)
    passed: list[Passed] = []
    out = {name: np.asarray(events[name]) for name in ("event_id", "mjj", "weight")} | {"own": own_fold >= 0}
    for window in search.windows:
        with search.reporter.bar(f"apply {window.name}", config.cwola.folds) as bar:
            tails = np.full((config.cwola.folds, len(events)), np.nan)
            for fold in range(config.cwola.folds):
                scored = (own_fold < 0) | (own_fold == fold)
                tails[fold, scored] = folds[window].tails(x[scored], fold)
                bar(fold + 1)
        inside = window.in_signal_region(out["mjj"])
        for efficiency in sorted({1.0, *config.hunt.background_efficiencies}, reverse=True):
            share = _share(tails, efficiency)
            out[f"pass_{window.name}_{efficiency:g}"] = share.mean
            passed.append(_passed(window, efficiency, out["weight"][inside], share.take(inside)))
    account = read_record(run.skim_info, "accounting")["accounting"]
    applied = Applied(account["processed"], len(events), own, tuple(passed))
    write_skim(run.path / "applied.parquet", out)
    write_json(run.path / "applied.json", _record(search.run, applied))
    return applied


def applied_table(applied: Applied) -> str:
    """Write a table of what passes.

    Parameters
    ----------
    applied : Applied

    Returns
    -------
    str
    """
    lines = [
        ("" if applied.read is None else f"{counted(applied.read, 'event')} read, ")
        + f"{applied.selected} selected"
        + (f", of them {applied.own} of the search itself" if applied.own else ""),
        f"{'window':>11}  {'cut':>6}  {'in window':>10}  passing",
    ]
    for point in applied.passed:
        share = "-" if point.fraction is None else f"{point.fraction:.4g} +- {point.error:.2g}"
        lines.append(f"{point.window.name:>11}  {point.background_efficiency:>6g}  {point.events:>10}  {share}")
    return "\n".join(lines)


def _own_folds(search: Context, events: Skim) -> IntArray:
    """Return the fold of each event that is the search's, whose classifiers have not seen it; -1 for other events.

    Mass and features tell, not the identity: that rests on the file's name.
    """
    config = search.config
    ours = read_skim(search.run.events, ("event_id", "mjj", *config.features))
    theirs, mine = (
        np.stack([np.asarray(table[name], dtype=np.float64) for name in ("mjj", *config.features)], axis=1)
        for table in (ours, events)
    )
    deviation = theirs.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    distance, place = KDTree(theirs / scale).query(mine / scale, distance_upper_bound=_SAME)
    fold = assign_folds(np.asarray(ours["event_id"]), config.cwola.folds, config.seed)
    # an event judged by one fold alone, as it resembles one of the search by chance, is judged well
    return np.where(np.isfinite(distance), fold[np.minimum(place, len(fold) - 1)], -1)


@dataclass(frozen=True)
class _Share:
    """Of each event, the folds that scored it, shape (folds, n), and those that it passes."""

    scored: BoolArray
    passes: BoolArray

    @property
    def mean(self) -> FloatArray:
        """Part of the folds that scored an event which it passes, shape (n,)."""
        return np.asarray(self.passes.sum(axis=0) / self.scored.sum(axis=0))

    def take(self, rows: BoolArray) -> _Share:
        """Return the same of some events."""
        return _Share(self.scored[:, rows], self.passes[:, rows])


def _share(tails: FloatArray, efficiency: float) -> _Share:
    scored = np.isfinite(tails)
    return _Share(scored, scored & (tails <= efficiency))


def _passed(window: Window, efficiency: float, weight: FloatArray, share: _Share) -> Passed:
    total = float(weight.sum())
    if not total > 0:
        return Passed(window, efficiency, len(weight), total, None, None, (None,) * len(share.scored))
    each = share.mean
    fraction = float(weight @ each) / total
    error = float(np.sqrt(weight**2 @ (each - fraction) ** 2)) / total
    folds = [
        float(weight[scored] @ passes[scored]) / float(weight[scored].sum()) if weight[scored].sum() > 0 else None
        for scored, passes in zip(share.scored, share.passes, strict=True)
    ]
    return Passed(window, efficiency, len(weight), total, fraction, error, tuple(folds))


def _record(search: RunDirectory, applied: Applied) -> dict[str, Any]:
    points = [{**asdict(point), "window": [point.window.lo, point.window.hi]} for point in applied.passed]
    return {
        "search": str(search.path),
        "read": applied.read,
        "selected": applied.selected,
        "own": applied.own,
        "passed": points,
    }
