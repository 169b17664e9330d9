"""Stages classify and quality: data against template, out-of-fold scores of every event; the template's quality.

Scores are the same whether a run is blinded or not. The quality is measured with what may be seen: in a blinded run
with events outside all windows, so that unblinding measures it again and trains no classifier of the search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.config import keys_of
from drapes_hep.cwola.classifiers import Classifier, find_classifier, is_saved, load_classifier, reads_of
from drapes_hep.cwola.scores import Sample, Scores, equal_size_auc, out_of_fold_scores, ranking
from drapes_hep.cwola.trained_folds import remove_classifiers, save_classifier, seal_classifiers
from drapes_hep.cwola.trees import Trees, engine_of, quality_trees
from drapes_hep.errors import FitError, RunDirectoryError, unnumbered
from drapes_hep.events.ranges import in_ranges
from drapes_hep.events.skims import Skim, read_skim, read_truth, write_skim
from drapes_hep.files import write_json
from drapes_hep.fixed import QUALITY_ENSEMBLE
from drapes_hep.folds import assign_folds, root_of
from drapes_hep.metrics import Estimate, Roc, SicPoint, auc, jackknife_spread, roc, sic_at_rejection, sic_maximum
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.stage import Stage
from drapes_hep.plugins import source_hashes
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.stages.derived import pseudo_window
from drapes_hep.stages.feature_tables import feature_matrix
from drapes_hep.stages.generate import generate_stage
from drapes_hep.stages.resonant import check_resonant, resonance_line
from drapes_hep.templates.parts import CLOSURE

__all__ = ["CLASSIFIERS", "classify", "classify_stage", "quality_stage", "sample_of", "truth_metrics"]

_QUALITY_EVENTS = 20_000
"""Most events a sample in such a comparison: the AUC's uncertainty is then 0.003."""

_ROC_POINTS = 1000

CLASSIFIERS = "classifiers"
"""Folder of a window's trained classifiers."""


def sample_of(
    events: Skim,
    features: Sequence[str] | None,
    folds: int,
    seed: int,
    chosen: npt.NDArray[Any] | None = None,
    *,
    by_model: bool = False,
) -> Sample:
    """Turn an event table into what a classifier is given.

    Parameters
    ----------
    events : Skim
        Data or template; a ``parent_id`` decides the fold where there is one.
    features : sequence of str, optional
        None for a classifier that reads constituents: it is given the events' jets.
    folds : int
    seed : int
        The run's seed.
    chosen : array of bool or int, optional
        Which events; all by default.
    by_model : bool
        Whether the fold of an event is the one that its model never saw (column ``model``).

    Returns
    -------
    Sample
    """
    keep = slice(None) if chosen is None else chosen
    ids = np.asarray(events["event_id"])[keep]
    parent = np.asarray(events["parent_id"])[keep] if "parent_id" in events.columns else None
    root = root_of(ids, parent)
    if features is None:
        # a list of records with one field: chosen and joined like the rows of a matrix
        x = ak.zip({"jets": events["jets"][keep]}, depth_limit=1)
    else:
        x = feature_matrix(events, features)[keep]
    fold = np.asarray(events["model"], dtype=np.int64)[keep] if by_model else assign_folds(root, folds, seed)
    return Sample(x, np.asarray(events["weight"])[keep], fold, root)


def classify_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's scores."""
    config, folder = context.config, context.run.window(window)
    reads = [context.run.events, folder / "template.parquet", folder / "split.parquet"]
    classifier = find_classifier(config.cwola.classifier, config.folder)
    return Stage(
        f"classify.{window.name}",
        config.model_dump(mode="json"),
        keys_of("classify"),
        lambda: [*reads, *_calibration_file(folder)],
        ("stages.classify",),
        other={
            # editing a classifier of one's own makes old scores stale
            "classifier's source": list(source_hashes(classifier)),
            "classifier's features": config.classifier_features,
            # windows that are scored on another machine must not get another library's trees
            "classifier's engine": engine_of(classifier),
        },
        recorded=("cwola.features",),
        after=(generate_stage(context, window),),
    )


def _calibration_file(folder: Path) -> list[Path]:
    """Return the file of what sets the cuts, where a window has a model per fold."""
    path = folder / "calibration.parquet"
    return [path] if path.is_file() else []


def quality_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides the quality of a window's template, and the metrics of its scores."""
    config, folder, pseudo = context.config, context.run.window(window), pseudo_window(context, window)
    names = ["template.parquet", "closure.parquet", "split.parquet", "scores.parquet"]
    reads = [context.run.events, *(folder / name for name in names)]
    if pseudo is not None:
        reads.append(folder / "pseudo.parquet")
    if config.data.labels and not config.blind:
        reads.append(context.run.truth)
    return Stage(
        f"quality.{window.name}",
        config.model_dump(mode="json"),
        keys_of("quality"),
        lambda: [*reads, *_calibration_file(folder)],
        ("stages.classify",),
        other={
            "pseudo-window": pseudo,
            "hidden windows": [list(edges) for edges in context.hidden],
            "trees' engine": Trees.engine(),
        },
        after=(classify_stage(context, window),),
    )


def classify(context: Context, window: Window) -> None:
    """Score a window, its sidebands and its template, and measure the template's quality, unless it is done.

    Raises
    ------
    DrapesError
        If a file of an earlier stage is missing or a fold stays empty.
    """
    run_stage(context.run, classify_stage(context, window), lambda: _classify(context, window), context.reporter)
    run_stage(context.run, quality_stage(context, window), lambda: _quality(context, window), context.reporter)


def _classify(context: Context, window: Window) -> list[Path]:
    config, folder = context.config, context.run.window(window)
    cwola = config.cwola
    reads_jets = reads_of(find_classifier(cwola.classifier, config.folder)) == "constituents"
    features = None if reads_jets else config.classifier_features
    columns = ("event_id", "weight", "mjj", *config.features, *(("jets",) if reads_jets else ()))
    events = read_skim(context.run.events, columns)
    background, calibration, scored = _template_samples(context, window, columns, features)
    reference = background if calibration is None else calibration
    mjj = np.asarray(events["mjj"])
    inside, outside = window.in_signal_region(mjj), window.in_sidebands(mjj)
    data = sample_of(events, features, cwola.folds, config.seed, inside)
    sidebands = sample_of(events, features, cwola.folds, config.seed, outside)
    resonance = None
    if features is not None:
        # what the classifier sees may have changed since the training
        resonance = check_resonant(features, sidebands.x, mjj[outside])
        if line := resonance_line(features, resonance):
            context.reporter.say(f"window {window.name}: {line}")
    scores, saved = _scored(context, window, (data, background, sidebands), calibration)
    split = read_skim(folder / "split.parquet", ("event_id", "part"))
    # every sideband event is counted after a cut, or those of a hold-out
    share = config.training.closure if calibration is None else 1.0
    record = {"mass_r2": resonance, "counted_share": share}
    _write_scores(folder, events, (inside, outside), (data, sidebands), scores, split, record)
    template_columns = {name: scored[name] for name in ("event_id", "parent_id", "mjj", "weight")}
    template_columns |= {"fold": reference.fold, "score": scores["template"].score, "tail": scores["template"].tail}
    write_skim(folder / "template_scores.parquet", template_columns)
    return [folder / "scores.parquet", folder / "template_scores.parquet", *saved]


def _scored(
    context: Context, window: Window, samples: tuple[Sample, Sample, Sample], calibration: Sample | None
) -> tuple[dict[str, Scores], list[Path]]:
    """Train data against template, score both and the sidebands, and write the classifiers where they can be."""
    config, cwola = context.config, context.config.cwola
    data, background, sidebands = samples
    classifier = find_classifier(cwola.classifier, config.folder)
    folder, saved = context.run.window(window) / CLASSIFIERS, list[Path]()
    _check_reference(window, background if calibration is None else calibration, cwola.folds)

    def trained(fold: int, member: int, model: Classifier) -> None:
        if is_saved(classifier):
            saved.extend(save_classifier(folder, fold, member, model))

    remove_classifiers(folder)
    with context.reporter.bar(f"classify {window.name}", cwola.folds * cwola.ensemble) as bar:
        count = itertools.count(1)
        try:
            scores = out_of_fold_scores(
                load_classifier(cwola.classifier, cwola.options, lambda: context.device, config.folder),
                data,
                background,
                {"sidebands": sidebands},
                folds=cwola.folds,
                ensemble=cwola.ensemble,
                seed=stage_seed(config.seed, "cwola", window.name),
                workers=context.workers,
                advance=lambda: bar(next(count)),
                calibration=calibration,
                trained=trained,
            )
        except FitError as error:
            # the number of events that are too few is that of the window
            message = unnumbered(str(error)) if config.blind else str(error)
            raise FitError(f"window {window.name}: {message}") from error
    return scores, seal_classifiers(folder, saved) if saved else []


def _check_reference(window: Window, reference: Sample, folds: int) -> None:
    """Refuse a fold whose cuts nothing defines; one without any events is refused later, for what it lacks."""
    weights = np.bincount(reference.fold, reference.weight, minlength=folds)
    empty = np.flatnonzero((np.bincount(reference.fold, minlength=folds) > 0) & (weights <= 0))
    if len(empty):
        raise FitError(f"window {window.name}: the template has no weight in fold {empty[0]}, whose cuts it defines")


def _template_samples(
    context: Context, window: Window, columns: Sequence[str], features: Sequence[str] | None
) -> tuple[Sample, Sample | None, Skim]:
    """Read what classifiers are trained against, what sets their cuts, and the table of those that do."""
    config, folder = context.config, context.run.window(window)
    crossed = bool(_calibration_file(folder))
    names = (*columns, "parent_id", *(("model",) if crossed else ()))
    tables = [read_skim(folder / f"{name}.parquet", names) for name in ("template", *(("calibration",) * crossed))]
    samples = [sample_of(table, features, config.cwola.folds, config.seed, by_model=crossed) for table in tables]
    return samples[0], samples[1] if crossed else None, tables[-1]


def _write_scores(
    folder: Path,
    events: Skim,
    regions: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
    samples: tuple[Sample, Sample],
    scores: dict[str, Scores],
    split: Skim,
    record: dict[str, Any],
) -> None:
    inside, outside = regions
    in_window_or_sidebands = inside | outside
    columns: dict[str, Any] = {
        name: np.asarray(events[name])[in_window_or_sidebands] for name in ("event_id", "mjj", "weight")
    }
    columns["region"] = inside[in_window_or_sidebands].astype(np.int8)
    place = columns["region"] == 1
    if not np.array_equal(columns["event_id"][columns["region"] == 0], np.asarray(split["event_id"])):
        raise RunDirectoryError(f"{folder / 'split.parquet'}: does not belong to these events; run train again")
    columns["part"] = np.full(len(columns["region"]), -1, dtype=np.int8)
    columns["part"][columns["region"] == 0] = np.asarray(split["part"])
    columns["fold"] = np.where(place, 0, 0)
    columns["fold"][place], columns["fold"][~place] = samples[0].fold, samples[1].fold
    for name in ("score", "tail"):
        column = np.empty(len(place))
        column[place], column[~place] = getattr(scores["data"], name), getattr(scores["sidebands"], name)
        columns[name] = column
    write_skim(folder / "scores.parquet", columns, record)


def _two_sample_auc(
    context: Context, window: Window, name: str, first: Sample, second: Sample
) -> dict[str, float] | None:
    """AUC between two samples at equal size; None where folds would stay empty."""
    config = context.config
    size = min(len(first.x), len(second.x), _QUALITY_EVENTS)
    if size < 20 * config.cwola.folds:
        return None
    area = equal_size_auc(
        quality_trees,
        first,
        second,
        size,
        choice=stage_seed(config.seed, "equal size", name, window.name),
        folds=config.cwola.folds,
        ensemble=QUALITY_ENSEMBLE,
        seed=stage_seed(config.seed, name, window.name),
        workers=context.workers,
    )
    return {"value": area.value, "error": area.error}


def _quality(context: Context, window: Window) -> list[Path]:
    config, folder = context.config, context.run.window(window)
    columns = ("event_id", "mjj", "weight", *config.features)
    events = read_skim(context.run.events, columns)
    crossed = bool(_calibration_file(folder))
    template = read_skim(folder / "template.parquet", (*columns, "parent_id", *(("model",) if crossed else ())))
    # hidden events take part in nothing below, and no number of the template's may say how many they are
    blind = config.blind

    def visible(table: Skim) -> npt.NDArray[np.bool_]:
        return ~in_ranges(table["mjj"], context.hidden)

    # the folds of the search are those of the models: a template of one model has no parents in one of them
    seed = stage_seed(config.seed, "quality")

    def sample(table: Skim, chosen: npt.NDArray[Any] | None = None) -> Sample:
        return sample_of(table, config.features, config.cwola.folds, seed, chosen)

    def against(
        name: str, chosen: npt.NDArray[np.bool_], generated: Skim, of_model: npt.NDArray[np.bool_] | None = None
    ) -> dict[str, float] | None:
        rows = visible(generated) if of_model is None else visible(generated) & of_model
        return _two_sample_auc(context, window, name, sample(events, chosen & visible(events)), sample(generated, rows))

    split = read_skim(folder / "split.parquet", ("event_id", "part"))
    held_out = np.isin(events["event_id"], np.asarray(split["event_id"])[np.asarray(split["part"]) == CLOSURE])
    quality: dict[str, Any] = {
        "template": {
            "name": config.template.method,
            "n": None if blind else len(template),
            "strength": template.metadata.get("strength"),
            "steps_left": template.metadata.get("steps_left"),
            "lost": None if blind else template.metadata.get("lost") or None,
            "auc_vs_truth": None,
            "auc_vs_truth_spread": None,
            "auc_vs_truth_mixture": None,
            "auc_vs_sideband_closure": _closure_auc(context, window, against, held_out),
            "auc_vs_pseudo_window": None,
            "models_spread": _models_spread(context, window) if crossed else None,
        },
        "metrics": None,
        "roc": None,
        "n_signal_truth": None,
    }
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        generated = read_skim(folder / "pseudo.parquet", (*columns, "parent_id"))
        pseudo_auc = against("pseudo", in_ranges(events["mjj"], [pseudo]), generated)
        quality["template"]["auc_vs_pseudo_window"] = (
            None if pseudo_auc is None else {**pseudo_auc, "window": list(pseudo)}
        )
    if config.data.labels and not blind:
        model = np.asarray(template["model"]) if crossed else None
        quality |= _truth_quality(context, window, events, quality["template"], sample(template), model)
    write_json(folder / "quality.json", quality)
    return [folder / "quality.json"]


def _closure_auc(
    context: Context, window: Window, against: Callable[..., dict[str, float] | None], held_out: npt.NDArray[np.bool_]
) -> dict[str, float] | None:
    """Compare the closure sample with the sideband events that its model never saw.

    Each model by itself: of all together, most have trained most of the models.
    """
    config, folder = context.config, context.run.window(window)
    columns, crossed = ("event_id", "parent_id", "mjj", "weight", *config.features), bool(_calibration_file(folder))
    generated = read_skim(folder / "closure.parquet", (*columns, *(("model",) if crossed else ())))
    if not crossed:
        return against("closure", held_out, generated)
    ids = np.asarray(read_skim(context.run.events, ("event_id",))["event_id"])
    fold, model = assign_folds(ids, config.cwola.folds, config.seed), np.asarray(generated["model"])
    areas = [
        against(f"closure {number}", held_out & (fold == number), generated, model == number)
        for number in range(config.cwola.folds)
    ]
    measured = [area for area in areas if area is not None]
    if len(measured) < len(areas):
        return None
    errors = np.array([area["error"] for area in measured])
    # of different events
    mean = float(np.mean([area["value"] for area in measured]))
    return {"value": mean, "error": float(np.sqrt((errors**2).sum()) / len(errors))}


def _models_spread(context: Context, window: Window) -> dict[str, float] | None:
    """Measure how much the models of the folds disagree: spread of the means of features, per standard deviation.

    What the numbers of generated events alone would give is subtracted. None where the events start from others: each
    model has other parents, whose fluctuations are not the models'; and where other windows are hidden.
    """
    features = context.config.features
    table = read_skim(context.run.window(window) / "calibration.parquet", (*features, "model", "weight"))
    # models of this window have seen the events of the other hidden ones
    others = set(context.hidden) - {(window.lo, window.hi)}
    if table.metadata["source"] != "noise" or others:
        return None
    model, weight = np.asarray(table["model"]), np.asarray(table["weight"])
    out = {}
    for name, x in zip(features, feature_matrix(table, features).T, strict=True):
        sums = np.bincount(model, weight)
        means, variance = np.bincount(model, weight * x) / sums, float(np.cov(x, aweights=weight))
        # of K independent means of variance v: (K - 1)^2 / K v
        of_sampling = variance * float(np.mean(np.bincount(model, weight**2) / sums**2)) * (len(sums) - 1) ** 2
        spread = jackknife_spread(means) ** 2 - of_sampling / len(sums)
        out[name] = float(np.sqrt(max(spread, 0.0) / variance)) if variance > 0 else 0.0
    return out


def _truth_quality(
    context: Context,
    window: Window,
    events: Skim,
    quality: dict[str, Any],
    template: Sample,
    model: npt.NDArray[np.int8] | None,
) -> dict[str, Any]:
    """Measure what labels allow in the window: the template against true background, and the scores' metrics."""
    config, folder = context.config, context.run.window(window)
    inside = window.in_signal_region(events["mjj"])
    label = read_truth(context.run.truth).truth_for(np.asarray(events["event_id"])[inside])
    seed = stage_seed(config.seed, "quality")
    background = sample_of(events, config.features, config.cwola.folds, seed, np.flatnonzero(inside)[label == 0])
    out: dict[str, Any] = {
        "template": {**quality, **_truth_aucs(context, window, background, template, model)},
        "n_signal_truth": int(label.sum()),
    }
    if 0 < label.sum() < len(label):
        scores = read_skim(folder / "scores.parquet", ("region", "score", "tail"))
        rows = np.asarray(scores["region"]) == 1
        score = ranking(Scores(np.asarray(scores["score"])[rows], np.asarray(scores["tail"])[rows]))
        weight = np.asarray(events["weight"])[inside]
        curve = roc(score, label == 1, weight)
        out |= {"metrics": truth_metrics(curve, auc(score, label == 1, weight)), "roc": _thinned(curve)}
    return out


def _truth_aucs(
    context: Context, window: Window, background: Sample, template: Sample, model: npt.NDArray[np.int8] | None
) -> dict[str, Any]:
    """Compare the template with true background: that of each model, which is what a classifier sees, and all of them.

    Models share most of their data, and each is compared with the same background: the error is that of one.
    """
    mixture = _two_sample_auc(context, window, "truth", background, template)
    if model is None:
        return {"auc_vs_truth": mixture}
    areas = [
        _two_sample_auc(context, window, f"truth {fold}", background, template.take(np.flatnonzero(model == fold)))
        for fold in range(context.config.cwola.folds)
    ]
    measured = [area for area in areas if area is not None]
    if len(measured) < len(areas):
        return {"auc_vs_truth_mixture": mixture}
    values = np.array([area["value"] for area in measured])
    mean = {"value": float(values.mean()), "error": float(np.mean([area["error"] for area in measured]))}
    return {
        "auc_vs_truth": mean,
        "auc_vs_truth_spread": jackknife_spread(values),
        "auc_vs_truth_mixture": mixture,
    }


def truth_metrics(curve: Roc, area: Estimate) -> dict[str, dict[str, float] | None]:
    """Return AUC and SIC with uncertainties, as ``results.json`` holds them."""

    def point(optimum: SicPoint | None) -> dict[str, float] | None:
        if optimum is None:
            return None
        return {
            "value": optimum.sic,
            "error": optimum.error,
            "signal_efficiency": optimum.signal_efficiency,
            "background_efficiency": optimum.background_efficiency,
        }

    return {
        "auc": {"value": area.value, "error": area.error},
        "sic_100": point(sic_at_rejection(curve, 100.0)),
        "sic_1000": point(sic_at_rejection(curve, 1000.0)),
        "sic_max": point(sic_maximum(curve)),
    }


def _thinned(curve: Roc) -> dict[str, list[float]]:
    """Keep every cut of the tight end, where each counts, and an even choice of the rest."""
    cuts = len(curve.background_efficiency)
    chosen = np.unique(
        np.concatenate([np.arange(min(cuts, _ROC_POINTS)), np.linspace(0, cuts - 1, _ROC_POINTS).astype(int)])
    )
    return {
        "signal_efficiency": curve.signal_efficiency[chosen].tolist(),
        "background_efficiency": curve.background_efficiency[chosen].tolist(),
    }
