"""Out-of-fold scores, and their calibration to background efficiency fold by fold.

The models of fold ``f`` are trained without fold ``f`` and score fold ``f`` alone: data in the window, template and
sideband events alike. Sideband events are in no training, yet averaging them over all folds' models would narrow their
scores against those in the window and fake an excess of many sigma, so they carry a fold too.

A raw score means nothing outside its fold. In addition, the *tail* is kept: the weighted fraction of the fold's
own template events that score at least as high. The cut of background efficiency ``e`` is ``tail <= e`` in every fold.

With cross-fitting, an event of the template belongs to a model, and the classifiers of fold ``f`` are trained against
the events of model ``f`` alone: every other model has seen the sideband events of the fold. Further events of model
``f``, in no training, take the place of the fold's own template events.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from drapes_hep.cwola.classifiers import Classifier, Prepares
from drapes_hep.errors import FitError, LeakError, counted
from drapes_hep.folds import check_folds
from drapes_hep.metrics import Estimate, auc
from drapes_hep.rng import stage_seed

__all__ = [
    "Sample",
    "Scores",
    "cross_auc_scores",
    "equal_size_auc",
    "finite_scores",
    "out_of_fold_scores",
    "ranking",
    "tail_probability",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Events as passed to a classifier.

    Attributes
    ----------
    x : array, shape (n, d)
        Features; never m_JJ.
    weight : array, shape (n,)
    fold : array of int, shape (n,)
    group : array of int, shape (n,)
        Events with the same group are never divided between training and validation.
    """

    x: FloatArray
    weight: FloatArray
    fold: IntArray
    group: IntArray

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.weight) == len(self.fold) == len(self.group):
            raise ValueError("a sample's columns differ in length")

    def take(self, rows: IntArray) -> Sample:
        """Return some of the events."""
        return Sample(self.x[rows], self.weight[rows], self.fold[rows], self.group[rows])


@dataclass(frozen=True)
class Scores:
    """Scores of one sample.

    Attributes
    ----------
    score : array, shape (n,)
        Mean score of the ensemble that did not see the event's fold; comparable within a fold only.
    tail : array, shape (n,)
        Fraction of the fold's template that scores at least as high; comparable everywhere.
    """

    score: FloatArray
    tail: FloatArray


def ranking(scores: Scores) -> FloatArray:
    """Return one order of all events, larger meaning more data-like, for ROC curves over all folds.

    Parameters
    ----------
    scores : Scores

    Returns
    -------
    array, shape (n,)
        Rises as the tail falls. Where tails are equal, as for all events that score above a fold's whole template, the
        scores themselves decide: never within reach of another tail, so that folds stay comparable.
    """
    tails, place = np.unique(scores.tail, return_inverse=True)
    low, high = float(scores.score.min(initial=0.0)), float(scores.score.max(initial=0.0))
    inner = (scores.score - low) / (high - low) if high > low else np.zeros_like(scores.score)
    return np.asarray(len(tails) - place + 0.5 * inner, dtype=np.float64)


def tail_probability(score: FloatArray, reference: FloatArray, weight: FloatArray) -> FloatArray:
    """Weighted fraction of reference events that score at least as high.

    Parameters
    ----------
    score : array, shape (n,)
    reference : array, shape (m,)
        Scores of the template events of one fold.
    weight : array, shape (m,)
        Their weights.

    Returns
    -------
    array, shape (n,)
        In [0, 1].
    """
    order = np.argsort(reference, kind="stable")
    above = np.concatenate([np.cumsum(weight[order][::-1])[::-1], [0.0]]) / weight.sum()
    # the sum in another order may be smaller by rounding
    above = np.minimum(above, 1.0)
    return np.asarray(above[np.searchsorted(reference[order], score, side="left")], dtype=np.float64)


@dataclass(frozen=True)
class _Training:
    """What the classifiers of a fold are trained on."""

    x: Any
    y: IntArray
    weight: FloatArray
    group: IntArray


def _training_of(
    fold: int,
    classes: tuple[Sample, Sample],
    targets: Mapping[str, Sample],
    table: Any | None,
    *,
    of_models: bool,
) -> _Training:
    template, data = classes
    keep_t, keep_d = (template.fold == fold) == of_models, data.fold != fold
    group = np.concatenate([template.group[keep_t], data.group[keep_d]])
    scored = [sample.group[sample.fold == fold] for sample in targets.values()]
    if np.isin(np.concatenate(scored), group).any():
        raise LeakError(f"fold {fold}: an event would be scored by a model that saw it or a copy of it")
    if table is None:
        x = np.concatenate([template.x[keep_t], data.x[keep_d]])
    else:
        x = table[np.flatnonzero(np.concatenate([keep_t, keep_d]))]
    y = np.concatenate([np.zeros(keep_t.sum(), np.int64), np.ones(keep_d.sum(), np.int64)])
    weight = np.concatenate([template.weight[keep_t], data.weight[keep_d]])
    return _Training(x, y, weight, group)


def _own(values: Any) -> Any:
    """Return a copy of what a classifier could change in place."""
    return values.copy() if isinstance(values, np.ndarray) else values


def _shared_table(classifier: Classifier, template: Sample, data: Sample) -> Any | None:
    """Return what a classifier makes of all events of both classes, without classes, for all its trainings."""
    if not isinstance(classifier, Prepares):
        return None
    events = len(template.x) + len(data.x)
    x, weight = (np.concatenate([getattr(sample, name) for sample in (template, data)]) for name in ("x", "weight"))
    table = classifier.prepare_table(x, weight)
    if len(table) != events:
        name = type(classifier).__name__
        raise FitError(
            f"the classifier {name} prepared a table of {counted(len(table), 'row')} for {counted(events, 'event')}"
        )
    return table


def finite_scores(model: Classifier, x: Any) -> FloatArray:
    """Score events, and refuse what is not one finite number per event: a NaN would rank above every template event.

    Parameters
    ----------
    model : Classifier
        Trained.
    x : array, shape (n, d), or awkward.Array

    Returns
    -------
    array, shape (n,)

    Raises
    ------
    FitError
        If the scores are of another shape, NaN or infinite.
    """
    events = len(x)
    values = np.asarray(model.score(x), dtype=np.float64)
    name = type(model).__name__
    if values.shape != (events,):
        raise FitError(f"the classifier {name} returned scores of shape {values.shape} for {counted(events, 'event')}")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise FitError(
            f"the classifier {name} returned {counted(bad, 'score that is', 'scores that are')} NaN or infinite"
        )
    return values


def out_of_fold_scores(
    make: Callable[[int], Classifier],
    data: Sample,
    template: Sample,
    others: Mapping[str, Sample],
    *,
    folds: int,
    ensemble: int,
    seed: int,
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
    calibration: Sample | None = None,
    trained: Callable[[int, int, Classifier], None] | None = None,
) -> dict[str, Scores]:
    """Train on data (1) against template (0) fold by fold, and score each event by models that never saw it.

    Parameters
    ----------
    make : callable
        Gives an untrained classifier for a seed.
    data, template : Sample
        The two classes, both inside the window. With a ``calibration``, the fold of a template event is that of its
        model, and the classifiers of fold f are trained against the events of fold f alone; without, against those of
        all other folds.
    others : mapping of str to Sample
        More events to score, such as sidebands; in no training.
    folds : int
        Number of folds; every sample's ``fold`` is in [0, folds).
    ensemble : int
        Classifiers a fold, whose scores are averaged.
    seed : int
        Seeds every classifier.
    workers : int
        Classifiers trained at the same time, one thread each; those on constituents, at most one a fold. The result
        does not depend on it.
    advance : callable
        Called after each trained classifier, for a progress bar.
    calibration : Sample, optional
        Further events of each fold's model, in no training: they define the tails of the fold, as the template's own
        events do without it.
    trained : callable, optional
        Called with fold, member and each classifier once it is trained, in the thread that trained it.

    Returns
    -------
    dict of str to Scores
        For ``"data"``, ``"template"`` (the calibration sample, where there is one) and each of ``others``.

    Raises
    ------
    LeakError
        If an event, or a copy of it, would be scored by a model that saw it.
    FitError
        If a fold lacks one of the classes, or a classifier returns something else than a finite score per event.
    """
    reference = template if calibration is None else calibration
    targets = {"data": data, "template": reference, **others}
    for name, sample in (("data", data), ("template", template), ("template", reference)):
        check_folds(name, sample.fold, folds)
    # classifiers that share a table each make the same of it: any seed will do
    table = _shared_table(make(stage_seed(seed, "classifier", 0, 0)), template, data)

    trainings: dict[int, _Training] = {}
    lock = threading.Lock()

    def score_member(place: tuple[int, int]) -> dict[str, FloatArray]:
        fold, member = place
        with lock:
            if fold not in trainings:
                of_models = calibration is not None
                trainings[fold] = _training_of(fold, (template, data), targets, table, of_models=of_models)
            events = trainings[fold]
        # one thread each: gradient boosting on some 10^5 events scales badly over the threads of one fit
        with threadpool_limits(limits=1, user_api="openmp"):
            model = make(stage_seed(seed, "classifier", fold, member))
            # others of the fold may be at work on the same events
            model.fit(_own(events.x), _own(events.y), _own(events.weight), _own(events.group))
            if trained is not None:
                trained(fold, member, model)
            return {name: finite_scores(model, sample.x[sample.fold == fold]) for name, sample in targets.items()}

    members = [(fold, member) for fold in range(folds) for member in range(ensemble)]
    sums = [
        {name: np.zeros(int((sample.fold == fold).sum())) for name, sample in targets.items()} for fold in range(folds)
    ]
    # networks on constituents take a copy of the events each
    threads = workers if isinstance(data.x, np.ndarray) else min(workers, folds)
    with ThreadPoolExecutor(max_workers=max(threads, 1)) as pool:
        # summed in one order, whichever is ready first
        for (fold, member), scores in zip(members, pool.map(score_member, members), strict=True):
            for name, values in scores.items():
                sums[fold][name] += values
            if member == ensemble - 1:
                with lock:
                    del trainings[fold]
            advance()
    results = [{name: values / ensemble for name, values in fold_sums.items()} for fold_sums in sums]
    return _with_tails(results, targets)


def _with_tails(results: Sequence[Mapping[str, FloatArray]], targets: Mapping[str, Sample]) -> dict[str, Scores]:
    """Put the scores of folds together, with the tails that the template of the same fold defines."""
    reference = targets["template"]
    scores = {name: Scores(*np.full((2, len(sample.x)), np.nan)) for name, sample in targets.items()}
    for fold, result in enumerate(results):
        own = reference.weight[reference.fold == fold]
        for name, sample in targets.items():
            in_fold = sample.fold == fold
            scores[name].score[in_fold] = result[name]
            scores[name].tail[in_fold] = tail_probability(result[name], result["template"], own)
    return scores


def cross_auc_scores(
    make: Callable[[int], Classifier],
    first: Sample,
    second: Sample,
    *,
    folds: int,
    ensemble: int,
    seed: int,
    workers: int = 1,
) -> tuple[FloatArray, FloatArray]:
    """Score two samples by classifiers trained between them, out of fold: the input of a two-sample AUC.

    Parameters
    ----------
    make, folds, ensemble, seed, workers
        As for :func:`out_of_fold_scores`.
    first, second : Sample
        Classes 1 and 0, such as true background and template.

    Returns
    -------
    tuple of array
        Tail probabilities turned to ``1 - tail`` so that larger is more like ``first``; shapes (n,) and (m,).

    Notes
    -----
    Pooling folds needs comparable scores, so the calibrated ones are used. Within a fold their order is that of the raw
    scores up to ties between neighbouring template events.
    """
    scores = out_of_fold_scores(make, first, second, {}, folds=folds, ensemble=ensemble, seed=seed, workers=workers)
    return 1.0 - scores["data"].tail, 1.0 - scores["template"].tail


def equal_size_auc(
    make: Callable[[int], Classifier],
    first: Sample,
    second: Sample,
    size: int,
    *,
    choice: int,
    folds: int,
    ensemble: int,
    seed: int,
    workers: int = 1,
) -> Estimate:
    """Return the AUC between equally many events of two samples, scored out of fold.

    Parameters
    ----------
    make, first, second, folds, ensemble, seed, workers
        As for :func:`cross_auc_scores`.
    size : int
        How many events of each.
    choice : int
        Seeds which ones: a random choice, since the order of the events may have information.

    Returns
    -------
    Estimate
        0.5 if they are indistinguishable.
    """
    rng = np.random.default_rng(choice)
    a, b = (scores.take(rng.permutation(len(scores.x))[:size]) for scores in (first, second))
    scores = cross_auc_scores(make, a, b, folds=folds, ensemble=ensemble, seed=seed, workers=workers)
    truth = np.repeat([True, False], [len(scores[0]), len(scores[1])])
    return auc(np.concatenate(scores), truth, np.concatenate([a.weight, b.weight]))
