"""What a trial measures. Truth is read here and nowhere before: in the references, and in the metrics.

Folds are those of a search: by identity, a template event's by its parent's. Background and signal that are not in the
data are scored like sideband events, by the one fold that is theirs, so that a cut's efficiencies are counted on more
events than the data hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.cwola.classifiers import find_classifier, load_classifier, reads_of
from drapes_hep.cwola.scores import Sample, Scores, equal_size_auc, out_of_fold_scores, ranking
from drapes_hep.cwola.trees import quality_trees
from drapes_hep.errors import ConfigError, FitError
from drapes_hep.events.features import check_features
from drapes_hep.events.ranges import in_ranges
from drapes_hep.fixed import QUALITY_ENSEMBLE
from drapes_hep.folds import assign_folds, root_of
from drapes_hep.metrics import Roc, SicPoint, auc, roc, sic_at_rejection, sic_maximum
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.studies.trials import REFERENCES, Trial, TrialContext
from drapes_hep.templates.comparison import compare_jets, summaries
from drapes_hep.templates.methods import SampleTask
from drapes_hep.templates.parts import CLOSURE
from drapes_hep.templates.plan import starts
from drapes_hep.templates.tables import EventTable, Template

__all__ = ["MEASURES", "REJECTIONS"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Record = dict[str, Any]

_MOST_SIGNAL = 20_000
"""Signal events that are scored, or that the supervised reference is given: the efficiency's error is below 1%."""

REJECTIONS = np.geomspace(1.0, 1e4, 81)
"""Background rejections at which curves are kept."""


def _sample(context: TrialContext, events: EventTable | Template, features: tuple[str, ...] | None = None) -> Sample:
    """Return events as the search's classifier takes them, or their features of these names."""
    config = context.config
    if features is None and reads_of(find_classifier(config.cwola.classifier, config.folder)) == "constituents":
        return _with_jets(context, events)
    columns = [config.features.index(name) for name in (features or config.classifier_features)]
    return _as_sample(context, events, events.x[:, columns])


def _classifier(context: TrialContext) -> Any:
    cwola = context.config.cwola
    return load_classifier(cwola.classifier, cwola.options, lambda: context.device, cwola.folder)


def _with_jets(context: TrialContext, events: EventTable | Template) -> Sample:
    """Return events as a classifier takes them that reads constituents."""
    return _as_sample(context, events, ak.zip({"jets": events.jets}, depth_limit=1))


def _as_sample(context: TrialContext, events: EventTable | Template, x: Any) -> Sample:
    root = root_of(events.event_id, events.parent_id if isinstance(events, Template) else None)
    fold = assign_folds(root, context.config.cwola.folds, context.config.seed)
    return Sample(x, events.weight, fold, root)


def _classes(context: TrialContext, trial: Trial) -> tuple[Sample, Sample]:
    """Return what the classifier is trained on: data (1), and template or reference (0)."""
    draw, inside = context.draw, context.inside
    if trial.subject == "supervised":
        signal = context.thinned(context.sample.is_signal & inside, _MOST_SIGNAL, "supervised")
        return _sample(context, context.chosen(signal)), _sample(context, context.chosen(draw.background & inside))
    data = _sample(context, context.oversampled() if trial.gensr else context.data())
    if trial.subject == "over_idealised":
        return data, _sample(context, context.chosen(draw.background & inside))
    if trial.subject == "idealised":
        rest, n_data = draw.background & inside, int((draw.data & inside).sum())
        if rest.sum() < n_data:
            raise FitError(
                f"idealised: {int(rest.sum())} background events are left for {n_data} data; lower study.data_share"
            )
        mask = context.thinned(rest, n_data, "idealised")
        return data, _sample(context, context.chosen(mask))
    if trial.subject == "cwola_hunting":
        window, mjj = context.window, context.sample.events.mjj
        # as wide as the window together, next to it: there the features have drifted least
        half = 0.5 * (window.hi - window.lo)
        near_sidebands = context.outside & (mjj >= window.lo - half) & (mjj < window.hi + half)
        return data, _sample(context, context.chosen(draw.data & near_sidebands))
    return data, _sample(context, context.template())


def _scored(
    context: TrialContext, classes: tuple[Sample, Sample], others: Mapping[str, Sample], training: int = 0
) -> dict[str, Scores]:
    cwola = context.config.cwola
    again = (training,) if training else ()
    return out_of_fold_scores(
        _classifier(context),
        *classes,
        others,
        folds=cwola.folds,
        ensemble=cwola.ensemble,
        seed=stage_seed(context.config.seed, "study", "cwola", context.window.name, *again),
    )


def _search(context: TrialContext, trial: Trial) -> Record:
    """Train data against template, and measure how well the scores find the signal."""
    draw, inside, is_signal = context.draw, context.inside, context.sample.is_signal
    judged = inside & ~draw.data if trial.unseen else inside
    signal = context.thinned(judged & is_signal, _MOST_SIGNAL, "judged signal")
    background = judged & ~is_signal
    if not signal.any() or not background.any():
        raise FitError(f"window {context.window.name}: no signal or no background is left to evaluate the scores")
    classes = _classes(context, trial)
    judges = {
        "signal": _sample(context, context.chosen(signal)),
        "background": _sample(context, context.chosen(background)),
    }
    results = [_separation(_scored(context, classes, judges, training), judges) for training in range(trial.trainings)]
    sampler_steps = {} if trial.subject in REFERENCES else _steps(context)
    if trial.subject not in REFERENCES and not context.method.own_mass:
        # a poor fit draws the template's masses from a wrong shape
        sampler_steps |= {"mass_fit_p_value": context.mass_fit.p_value, "mass_fit_good": context.mass_fit.good}
    injected, rest = int((draw.data & inside & is_signal).sum()), int((draw.data & inside & ~is_signal).sum())
    return {
        "n_data": len(classes[0].x),
        "n_template": len(classes[1].x),
        "n_signal_in_window": injected,
        "n_background_in_window": rest,
        "significance": injected / np.sqrt(rest),
        "n_judged_signal": int(signal.sum()),
        "n_judged_background": int(background.sum()),
        **sampler_steps,
        **results[0],
        # of further trainings of the classifier, on the same events
        "trainings": results[1:],
    }


def _separation(scores: Mapping[str, Scores], judges: Mapping[str, Sample]) -> Record:
    """Measure how well scores tell the judging signal from the judging background."""
    both = Scores(*(np.concatenate([getattr(scores[name], part) for name in judges]) for part in ("score", "tail")))
    truth = np.repeat([True, False], [len(judges["signal"].x), len(judges["background"].x)])
    rank = ranking(both)
    curve = roc(rank, truth)
    area = auc(rank, truth)
    return {
        "auc": area.value,
        "auc_error": area.error,
        **_sic("sic_100", sic_at_rejection(curve, 100.0)),
        **_sic("sic_1000", sic_at_rejection(curve, 1000.0)),
        **_sic("sic_max", sic_maximum(curve)),
        "curve": _curve(curve),
    }


def _sic(name: str, point: SicPoint | None) -> Record:
    if point is None:
        return {name: None, f"{name}_error": None}
    return {name: point.sic, f"{name}_error": point.error}


def _curve(curve: Roc) -> list[float | None]:
    """Signal efficiency at each of :data:`REJECTIONS`; None where no background event passes so tight a cut."""
    points = (sic_at_rejection(curve, rejection) for rejection in REJECTIONS)
    return [None if point is None else point.signal_efficiency for point in points]


def _truth_and_template(context: TrialContext, trial: Trial) -> tuple[EventTable, Template]:
    """Return true background and the template that is held against it: of the window, or next to it."""
    if trial.in_sidebands:
        return context.sideband_truth, context.sideband_template()
    return context.chosen(context.draw.data & context.inside & ~context.sample.is_signal), context.template()


def _quality(context: TrialContext, trial: Trial) -> Record:
    """Compare the template with true background, at equal size: that of the data in the window, or next to it."""
    config = context.config
    truth, template = _truth_and_template(context, trial)
    out: Record = {
        "n_truth": len(truth),
        "n_template": len(template.event_id),
        **_steps(context),
        **_lost_counts(template),
    }

    def area(column: str, make: Any, of: Callable[[EventTable | Template], Sample], ensemble: int) -> None:
        area_estimate = equal_size_auc(
            make,
            of(truth),
            of(template),
            min(len(truth), len(template.event_id)),
            choice=stage_seed(config.seed, "study", "equal size"),
            folds=config.cwola.folds,
            ensemble=ensemble,
            seed=stage_seed(config.seed, "study", column),
        )
        out.update({column: area_estimate.value, f"{column}_error": area_estimate.error})

    if template.jets is not None:
        own = _classifier(context)
        # the search's own, if it reads constituents
        own = own if reads_of(own) == "constituents" else load_classifier("constituents", device=lambda: context.device)
        area("auc_constituents", own, lambda events: _with_jets(context, events), 1)
        area(
            "auc_summaries",
            quality_trees,
            lambda events: _as_sample(context, events, summaries(events.jets)),
            QUALITY_ENSEMBLE,
        )
    area("auc", quality_trees, lambda events: _sample(context, events, config.features), QUALITY_ENSEMBLE)
    if config.classifier_features == config.features:
        return out | {"auc_classifier": out["auc"], "auc_classifier_error": out["auc_error"]}
    area(
        "auc_classifier",
        quality_trees,
        lambda events: _sample(context, events, config.classifier_features),
        QUALITY_ENSEMBLE,
    )
    return out


def _steps(context: TrialContext) -> Record:
    """Return how a template is sampled: the strength that exists, and what it costs; None where nothing is denoised."""
    return dict.fromkeys(("strength", "steps", "evaluations")) | dict(context.method.describe(context.model()))


def _lost_counts(template: Template) -> Record:
    """Return how many generated events are not template events."""
    return {f"lost_{name}": count for name, count in template.lost.items()}


def _jets(context: TrialContext, trial: Trial) -> Record:
    """Compare generated jets with true ones: distances and distributions."""
    # the data are the parents of some templates; the rest is the same truth, in number too, for all of them
    truth = context.sideband_truth if trial.in_sidebands else context.chosen(context.draw.background & context.inside)
    template = context.sideband_template() if trial.in_sidebands else context.template()
    # in the sidebands, masses are those of what the template is held against
    preserved = context.method.kept(context.model()) or (("mjj",) if trial.in_sidebands else ())
    comparison = compare_jets(truth.jets, template.jets, stage_seed(context.config.seed, "study", "jets"), preserved)
    numbers: Record = {"n_truth": len(truth), "n_template": len(template.event_id)}
    return {**numbers, **_steps(context), **_lost_counts(template), **comparison}


def _displacement(context: TrialContext, trial: Trial) -> Record:  # noqa: ARG001
    """Measure how far noising and denoising carries events of the window: |x0 - x'|, signal and background apart."""
    config, is_signal = context.config, context.sample.is_signal
    chosen = (context.inside & ~is_signal) | context.thinned(context.inside & is_signal, _MOST_SIGNAL, "displacement")
    events, signal = context.chosen(chosen), is_signal[chosen]
    if not signal.any() or signal.all():
        raise FitError(f"window {context.window.name}: the displacement of signal and background needs both")
    model, method = context.model(), context.method
    if not hasattr(method, "scaled"):
        raise ConfigError(f"displacement: {method.title} has no scaled features that noise is added to")
    copies = max(1, round(config.template.oversample))
    seed = stage_seed(config.seed, "study", "displacement", context.window.name)
    plan = starts(method, events, copies, seed, None)
    task = SampleTask(seed, context.window.in_signal_region, device=context.device)
    # every event is carried, signal as well as background, so the data are among them
    generated = method.sample(model, plan, events, task)
    shift = np.abs(generated.x - events.x[plan.row])
    before, after = (method.scaled(model, x, generated.mjj) for x in (events.x[plan.row], generated.x))
    length = np.linalg.norm(after - before, axis=1)
    # copies of an event are one after the other
    shift, distance = shift.reshape(len(events), copies, -1).mean(axis=1), length.reshape(-1, copies).mean(axis=1)
    out: Record = {"n_signal": int(signal.sum()), "n_background": int((~signal).sum()), **_steps(context)}
    for name, mask in (("signal", signal), ("background", ~signal)):
        values = {**{f: shift[mask, j] for j, f in enumerate(config.features)}, "distance": distance[mask]}
        for feature, value in values.items():
            out[f"{feature}_{name}"] = float(value.mean())
            out[f"{feature}_{name}_error"] = float(value.std() / np.sqrt(mask.sum()))
    out["shapes"] = _shapes(context, events.x, generated.x, signal, plan.row)
    area = auc(distance, signal)
    out |= {"auc_large": area.value, "auc_large_error": area.error}
    # one expects the signal to be carried farther, and the papers find the opposite: both directions are given
    for direction, score in (("large", distance), ("small", -distance)):
        curve = roc(score, signal)
        out |= _sic(f"sic_100_{direction}", sic_at_rejection(curve, 100.0))
        out |= _sic(f"sic_max_{direction}", sic_maximum(curve))
    return out


_SHAPE_BINS = 40


def _shapes(
    context: TrialContext, before: FloatArray, after: FloatArray, signal: BoolArray, row: IntArray
) -> dict[str, dict[str, list[float]]]:
    """Return the distributions of events before and after they were carried, as densities in each feature's range."""
    out: dict[str, dict[str, list[float]]] = {}
    for j, feature in enumerate(check_features(context.config.features, **context.config.definitions)):
        edges = np.linspace(*feature.range, _SHAPE_BINS + 1)
        values = {
            "Signal": before[signal, j],
            "Background": before[~signal, j],
            "Signal, carried": after[signal[row], j],
            "Background, carried": after[~signal[row], j],
        }
        # per unit of the feature; what is outside the range counts in the norm, so no shape is stretched
        width = np.diff(edges)
        densities = {name: np.histogram(x, edges)[0] / (len(x) * width) for name, x in values.items()}
        out[feature.name] = {"x": (0.5 * (edges[1:] + edges[:-1])).tolist()}
        out[feature.name] |= {name: density.tolist() for name, density in densities.items()}
    return out


_SCULPTING_WIDTH = 50.0
"""Width of the bins that passing events are counted in, GeV: figures merge them as they need."""


def _sculpting(context: TrialContext, trial: Trial) -> Record:
    """Count what each cut passes along the spectrum of background: data in the window, held-out data next to it."""
    config, window = context.config, context.window
    mjj, draw = context.sample.events.mjj, context.draw
    background = draw.data & ~context.sample.is_signal
    # sideband events that trained the template bias a cut's efficiency there; references trained nothing on them
    sidebands = background & context.outside & in_ranges(mjj, [config.mass.fitted])
    if trial.models:
        sidebands &= context.part == CLOSURE
    classes = _classes(context, trial)
    in_window = background & context.inside
    judges = {
        "window": _sample(context, context.chosen(in_window)),
        "sidebands": _sample(context, context.chosen(sidebands)),
    }
    scores = _scored(context, classes, judges)
    # the window's edges are bin edges: no bin mixes the window with its sidebands
    edges = spectrum_edges(config.mass.fitted, _SCULPTING_WIDTH, (window,))
    masses = {"window": mjj[in_window], "sidebands": mjj[sidebands]}
    cuts = {}
    for cut in config.hunt.background_efficiencies:
        passing = {name: scores[name].tail <= cut for name in judges}
        bins = {name: np.histogram(masses[name][passing[name]], edges)[0].tolist() for name in judges}
        cuts[f"{cut:g}"] = {f"{name}_passing": int(passing[name].sum()) for name in judges} | {"bins": bins}
    return {
        "edges": edges.tolist(),
        "window": [window.lo, window.hi],
        "window_events": int(in_window.sum()),
        "sidebands_events": int(sidebands.sum()),
        "cuts": cuts,
    }


def _mass_halves(context: TrialContext, trial: Trial) -> Record:
    """Measure what tells the upper half of the window's masses from the lower: features, and the search's scores.

    A classifier that can read the mass from its features shapes the spectrum that it selects. Only background is
    compared; the AUC of the scores is above 0.5 where they rise with the mass.
    """
    config = context.config
    in_window = context.draw.data & context.inside & ~context.sample.is_signal
    background, mjj = context.chosen(in_window), context.sample.events.mjj[in_window]
    upper = mjj >= np.median(mjj)
    out: Record = {"n_lower": int((~upper).sum()), "n_upper": int(upper.sum()), "middle": float(np.median(mjj))}
    chosen = [name for name in config.features if name != "delta_r"]
    sets = {"classifier": config.classifier_features, "without_delta_r": tuple(chosen)}
    sets |= {"with_delta_r": config.features} if "delta_r" in config.features else {}
    areas: dict[tuple[str, ...], Any] = {}
    for name, features in sets.items():
        if features not in areas:
            areas[features] = equal_size_auc(
                quality_trees,
                _sample(context, background.take(upper), features),
                _sample(context, background.take(~upper), features),
                min(out["n_lower"], out["n_upper"]),
                choice=stage_seed(config.seed, "study", "equal size"),
                folds=config.cwola.folds,
                ensemble=QUALITY_ENSEMBLE,
                seed=stage_seed(config.seed, "study", "mass halves"),
            )
        out |= {f"auc_{name}": areas[features].value, f"auc_{name}_error": areas[features].error}
    scores = _scored(context, _classes(context, trial), {"background": _sample(context, background)})["background"]
    area = auc(ranking(scores), upper)
    return out | {"auc_score": area.value, "auc_score_error": area.error}


MEASURES: dict[str, Callable[[TrialContext, Trial], Record]] = {
    "search": _search,
    "quality": _quality,
    "displacement": _displacement,
    "sculpting": _sculpting,
    "jets": _jets,
    "mass_halves": _mass_halves,
}
"""What can be measured, by the kinds of :class:`~drapes_hep.studies.trials.Trial`."""
