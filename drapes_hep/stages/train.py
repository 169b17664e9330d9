"""Stage train: the background models of a window, fitted on its sidebands."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.config import keys_of
from drapes_hep.errors import FitError, unnumbered
from drapes_hep.events.skims import write_skim
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.folds import Fold, assign_folds, check_folds
from drapes_hep.keys import part_of
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stages
from drapes_hep.pipeline.stage import Stage
from drapes_hep.progress import Progressed, Reporter
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.stages.derived import pseudo_window
from drapes_hep.stages.feature_tables import unweighted
from drapes_hep.stages.parents import load_parents
from drapes_hep.stages.resonant import check_resonant
from drapes_hep.stages.skim import skim_stage
from drapes_hep.templates.division import Division, divide, model_name, models_of
from drapes_hep.templates.methods import FitTask, Training
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION
from drapes_hep.templates.registry import method_of, method_settings
from drapes_hep.templates.tables import EventTable
from drapes_hep.templates.window_models import (
    CARD,
    checkpoints,
    fit_window_models,
    save_window_model,
    training_record,
    unfinished,
)
from drapes_hep.training.curves import Epoch, TrainingCurve

__all__ = ["train", "train_stage", "train_windows"]

_PSEUDO = "pseudo_model"
_SILENCE = 60.0
"""Seconds that a training may take without a word."""
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


_TRAINING = ("stages.train",)
"""Where the code of a training begins."""


def train_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's model."""
    return Stage(
        f"train.{window.name}",
        context.config.model_dump(mode="json"),
        keys_of("train"),
        lambda: [context.run.events],
        _TRAINING,
        other={
            "pseudo-window": pseudo_window(context, window),
            "models": len(models_of(context.config)),
            **method_settings(context.config),
        },
        recorded=("training.pseudo_window",),
        after=(skim_stage(context),),
    )


def train(context: Context, window: Window) -> None:
    """Train the model of a window on its sidebands, unless it is done; raises as :func:`train_windows` does."""
    train_windows(context, [window])


def train_windows(context: Context, windows: Sequence[Window]) -> None:
    """Train the models of windows on their sidebands, those that are not done, as many at once as suits the method.

    No model depends on which others are trained with it.

    Raises
    ------
    DrapesError
        If the skim is missing, or a window or its sidebands hold too few events.
    """
    if not windows:
        return
    size = method_of(context.config).together(context.device, len(windows))
    for first in range(0, len(windows), size):
        _train_some(context, windows[first : first + size])


def _train_some(context: Context, windows: Sequence[Window]) -> None:
    stages, fits = [train_stage(context, window) for window in windows], list[_Fit]()

    def work(due: Sequence[int]) -> list[list[Path]]:
        fits.extend(_fits(context, [windows[i] for i in due]))
        return _train(context, fits)

    run_stages(context.run, stages, work, context.reporter)
    # not before all are stamped: what ends meanwhile would train some again from their start
    for fit in fits:
        for old in checkpoints(fit.stem):
            old.unlink()


@dataclass(frozen=True)
class _Fit:
    """One model that is to be fitted: of a window, or of its closure test."""

    window: Window
    folder: Path
    record: str
    events: EventTable
    division: Division
    hidden: tuple[tuple[float, float], ...]
    unseen: Fold | None
    stem: Path
    """Of the trainings' checkpoints."""

    @property
    def part(self) -> IntArray:
        """Parts of the events for this model."""
        return self.division.of_model(self.unseen)


def _train(context: Context, fits: Sequence[_Fit]) -> list[list[Path]]:
    """Train models; returns the files of each window."""
    results = _fit(context, fits)
    _remove_other_models(context, fits)
    files: dict[str, list[Path]] = {}
    records: dict[Path, dict[str, Any]] = {}
    for fit, (model, curves) in zip(fits, results, strict=True):
        name, record = fit.window.name, fit.folder.parent / fit.record
        if name not in files:
            # a window's own models come first; the closure test's has fewer sidebands
            split = context.run.window(fit.window) / "split.parquet"
            write_skim(split, {"event_id": fit.events.event_id, **fit.division.columns()})
            files[name] = [split]
        files[name] += _write_model(context, fit, model)
        of_window = records.setdefault(record, {"trainings": {}, "events": _counts(fit)})
        of_window["trainings"] |= _curves(context, fit, curves)
        if record not in files[name]:
            files[name].append(record)
    for path, content in records.items():
        write_json(path, content)
    return list(files.values())


def _remove_other_models(context: Context, fits: Sequence[_Fit]) -> None:
    """Remove the models of another scheme, or of more folds, from the folders of windows."""
    current = {fit.folder for fit in fits}
    for window in {fit.window for fit in fits}:
        for card in context.run.window(window).glob(f"model*/{CARD}"):
            if card.parent not in current:
                shutil.rmtree(card.parent)


def _fits(context: Context, windows: Sequence[Window]) -> list[_Fit]:
    """Return what is to be fitted for windows: the model of each, and the closure test's where it has one."""
    events = load_parents(context.run.events, context.config)
    # a skim may be weighted: it can serve others. Better refused before a training than after it
    unweighted(events.weight, "the selected events")
    return [fit for window in windows for fit in _fits_of(context, window, events)]


def _fits_of(context: Context, window: Window, events: EventTable) -> list[_Fit]:
    config, folder = context.config, context.run.window(window)
    _check_sample(context, window, events.mjj, events.event_id)
    sidebands = events.take(window.in_sidebands(events.mjj))
    # before a training, for the classifier comes hours after it
    columns = [config.features.index(name) for name in config.classifier_features]
    check_resonant(config.classifier_features, sidebands.x[:, columns], sidebands.mjj)

    def fit(name: str, record: str, events: EventTable, hidden: tuple[tuple[float, float], ...], unseen: Any) -> _Fit:
        stem = _stem(context, folder / name, hidden, unseen)
        return _Fit(window, folder / name, record, events, divide(events.event_id, config), hidden, unseen, stem)

    hidden = ((window.lo, window.hi),)
    fits = [fit(model_name(unseen), "training.json", sidebands, hidden, unseen) for unseen in models_of(context.config)]
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        outside = sidebands.take((sidebands.mjj < pseudo[0]) | (sidebands.mjj >= pseudo[1]))
        # one model: no classifier of the search is trained on its template
        fits.append(fit(_PSEUDO, "pseudo_training.json", outside, (*hidden, pseudo), None))
    return fits


def _check_sample(context: Context, window: Window, mjj: FloatArray, event_id: IntArray) -> None:
    """Refuse, before a training, events that no later stage could make a search of; raises FitError."""
    config = context.config
    least, largest = config.mass.fitted
    for side, low, high in (("lower", least, window.lo), ("upper", window.hi, largest)):
        if not ((mjj >= low) & (mjj < high)).any():
            raise FitError(
                f"window {window.name}: its {side} sideband, {low:g}-{high:g} GeV, has no events, so nothing can be"
                f" interpolated; see {config.mass.fitted_key} and the selection"
            )
    folds, inside = config.cwola.folds, event_id[window.in_signal_region(mjj)]
    if not len(inside):
        raise FitError(f"window {window.name}: has no events, so there is nothing to compare with a template")
    try:
        check_folds(f"window {window.name}: data", assign_folds(inside, folds, config.seed), folds)
    except FitError as error:
        raise FitError(unnumbered(str(error)) if config.blind else str(error)) from error


def _stem(context: Context, folder: Path, hidden: tuple[tuple[float, float], ...], unseen: Fold | None) -> Path:
    """Return the stem of a training's checkpoints."""
    config = context.config
    part = part_of(config.model_dump(mode="json"), keys_of("train"))
    # named by all that the training depends on: a killed run resumes, a changed one starts afresh
    never_saw = [[list(interval) for interval in hidden], unseen and list(unseen)]
    key = content_hash([part, method_settings(config), never_saw, file_hash(context.run.events), code_hash(*_TRAINING)])
    return folder.parent / f"{folder.name}.{key[:12]}"


def _fit(context: Context, fits: Sequence[_Fit]) -> list[tuple[Any, Mapping[str, TrainingCurve]]]:
    """Fit models; returns each with the curves of its trainings."""
    config, method = context.config, method_of(context.config)
    trainings = method.trainings()
    for fit in fits:
        if training := unfinished(fit.stem):
            what = fit.folder.name.replace("_", " ")
            context.reporter.say(
                f"window {fit.window.name}: the interrupted training of the {what} resumes from the checkpoint of"
                f" {training}"
            )
    names = ", ".join(dict.fromkeys(fit.window.name for fit in fits))
    progress = _Progress(context.reporter, fits, trainings)
    with context.reporter.bar(f"train {names}", progress.total) as bar:
        tasks = [
            FitTask(
                fit.events,
                fit.part,
                fit.hidden,
                stage_seed(config.seed, fit.folder.name, fit.window.name),
                device=context.device,
                checkpoint=fit.stem,
                progress=progress.watch(i, bar),
                unseen=fit.unseen,
            )
            for i, fit in enumerate(fits)
        ]
        try:
            return fit_window_models(method, tasks)
        except FitError as error:
            raise FitError(f"window {names}: {error}") from error


class _Progress:
    """The epochs of several models' trainings on one bar, and a line now and then where none is drawn."""

    def __init__(self, reporter: Reporter, fits: Sequence[_Fit], trainings: Mapping[str, Training]) -> None:
        self._reporter, self._fits, self._trainings = reporter, fits, trainings
        self.total = max(len(fits) * sum(training.epochs for training in trainings.values()), 1)
        self._epochs: dict[tuple[int, str], int] = {}
        self._spoken = time.monotonic()

    def watch(self, place: int, bar: Progressed) -> Callable[[str, Epoch], None]:
        """Return what the trainings of a model report to."""

        def advance(name: str, epoch: Epoch) -> None:
            self._epochs[place, name] = epoch.epoch
            done = sum(self._epochs.values())
            bar(done, max(self.total, done))
            if not self._reporter.draws and time.monotonic() - self._spoken > _SILENCE:
                self._spoken = time.monotonic()
                epochs = self._trainings[name].epochs if name in self._trainings else epoch.epoch
                self._reporter.say(
                    f"window {self._fits[place].window.name}: {name}, epoch {epoch.epoch} of {epochs}, losses"
                    f" {epoch.train_loss:.4f} and {epoch.validation_loss:.4f} (validation)"
                )

        return advance


def _write_model(context: Context, fit: _Fit, model: Any) -> list[Path]:
    """Write a model; returns the files."""
    config, window = context.config, fit.window
    extra = {
        "window": [window.lo, window.hi],
        "seed": config.seed,
        "events_sha256": file_hash(context.run.events),
        "events": {name: int((fit.part == value).sum()) for name, value in _PARTS.items()},
    }
    return save_window_model(method_of(config), fit.folder, model, fit.hidden, extra, fit.unseen)


def _counts(fit: _Fit) -> dict[str, int]:
    """Return how many sideband events do what; with cross-fitting, each closes one model and is used by the others."""
    parts, counted = fit.division.part, fit.division.counted
    return {
        "train": int((parts == TRAIN).sum()),
        "validation": int((parts == VALIDATION).sum()),
        "closure": int((counted == CLOSURE).sum()) if fit.folder.name != _PSEUDO else int((parts == CLOSURE).sum()),
    }


def _curves(context: Context, fit: _Fit, results: Mapping[str, TrainingCurve]) -> dict[str, Any]:
    """Return the record of each training, by its name and, with cross-fitting, the fold that it never saw."""
    trainings = method_of(context.config).trainings()
    records = {}
    for name, result in results.items():
        record = training_record(result, trainings.get(name))
        if fit.unseen is not None:
            record["title"] += f", without fold {fit.unseen.number}"
        records[name if fit.unseen is None else f"{name}_{fit.unseen.number}"] = record
    return records


_PARTS = {"train": TRAIN, "validation": VALIDATION, "closure": CLOSURE}
