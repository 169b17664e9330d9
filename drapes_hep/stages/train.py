"""Stage train: the background models of a window, fitted on its sidebands."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drapes_hep.config import keys_of
from drapes_hep.cwola.folds import assign_folds, check_folds
from drapes_hep.errors import FitError, unnumbered
from drapes_hep.events.skims import write_skim
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.keys import part_of
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.stage import Stage
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.stages.derived import pseudo_window
from drapes_hep.stages.feature_tables import unweighted
from drapes_hep.stages.parents import load_parents
from drapes_hep.stages.resonant import check_resonant
from drapes_hep.stages.skim import skim_stage
from drapes_hep.templates.methods import FitTask
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION, split_sidebands
from drapes_hep.templates.registry import method_of, method_settings
from drapes_hep.templates.tables import EventTable
from drapes_hep.templates.window_models import (
    checkpoints,
    fit_window_model,
    save_window_model,
    training_record,
    unfinished,
)
from drapes_hep.training.curves import Epoch

__all__ = ["train", "train_stage"]

_SILENCE = 60.0
"""Seconds that a training may take without a word."""
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
        other={"pseudo-window": pseudo_window(context, window), **method_settings(context.config)},
        recorded=("training.pseudo_window",),
        after=(skim_stage(context),),
    )


def train(context: Context, window: Window) -> None:
    """Train the model of a window on its sidebands, unless it is done.

    Raises
    ------
    DrapesError
        If the skim is missing, or the window or its sidebands hold too few events.
    """
    run_stage(context.run, train_stage(context, window), lambda: _train(context, window), context.reporter)


def _train(context: Context, window: Window) -> list[Path]:
    config, folder = context.config, context.run.window(window)
    events = load_parents(context.run.events, config)
    # a skim may be weighted: it can serve others. Better refused before a training than after it
    unweighted(events.weight, "the selected events")
    chosen = window.in_sidebands(events.mjj)
    _check_sample(context, window, events.mjj, events.event_id)
    sidebands = events.take(chosen)
    # before a training, for the classifier comes hours after it
    columns = [config.features.index(name) for name in config.classifier_features]
    check_resonant(config.classifier_features, sidebands.x[:, columns], sidebands.mjj)
    part = split_sidebands(sidebands.event_id, config.seed, config.training)
    hidden = [(window.lo, window.hi)]
    written = _fit(context, window, folder / "model", "training.json", sidebands, part, hidden)
    stems = [_stem(context, folder / "model", hidden)]
    write_skim(folder / "split.parquet", {"event_id": sidebands.event_id, "part": part.astype(np.int8)})
    written.append(folder / "split.parquet")
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        outside = (sidebands.mjj < pseudo[0]) | (sidebands.mjj >= pseudo[1])
        fewer = (sidebands.take(outside), part[outside])
        all_hidden = [*hidden, pseudo]
        written += _fit(context, window, folder / "pseudo_model", "pseudo_training.json", *fewer, all_hidden)
        stems.append(_stem(context, folder / "pseudo_model", all_hidden))
    # not before the second model is there as well: the first would be trained again if that training is cut off
    for old in (path for stem in stems for path in checkpoints(stem)):
        old.unlink()
    return written


def _check_sample(context: Context, window: Window, mjj: FloatArray, event_id: IntArray) -> None:
    """Refuse, before a training, events that no later stage could make a search of; raises FitError."""
    config = context.config
    for name, low, high in (("lower", window.range_lo, window.lo), ("upper", window.hi, window.range_hi)):
        if not ((mjj >= low) & (mjj < high)).any():
            raise FitError(
                f"window {window.name}: its {name} sideband, {low:g}-{high:g} GeV, has no events, so nothing can be"
                " interpolated; see mass.range and the selection"
            )
    folds, inside = config.cwola.folds, event_id[window.in_signal_region(mjj)]
    if not len(inside):
        raise FitError(f"window {window.name}: has no events, so there is nothing to compare with a template")
    try:
        check_folds(f"window {window.name}: data", assign_folds(inside, folds, config.seed), folds)
    except FitError as error:
        raise FitError(unnumbered(str(error)) if config.blind else str(error)) from error


def _stem(context: Context, folder: Path, hidden: list[tuple[float, float]]) -> Path:
    """Return the stem of a training's checkpoints."""
    config = context.config
    part = part_of(config.model_dump(mode="json"), keys_of("train"))
    # named by all that the training depends on: a killed run resumes, a changed one starts afresh
    key = content_hash([part, method_settings(config), hidden, file_hash(context.run.events), code_hash(*_TRAINING)])
    return folder.parent / f"{folder.name}.{key[:12]}"


def _fit(
    context: Context,
    window: Window,
    folder: Path,
    record: str,
    events: EventTable,
    part: IntArray,
    hidden: list[tuple[float, float]],
) -> list[Path]:
    config, method = context.config, method_of(context.config)
    trainings = method.trainings()
    stem = _stem(context, folder, hidden)
    if training := unfinished(stem):
        what = folder.name.replace("_", " ")
        context.reporter.say(
            f"window {window.name}: the interrupted training of the {what} resumes from the checkpoint of {training}"
        )
    with context.reporter.bar(
        f"train {window.name}", max((training.epochs for training in trainings.values()), default=1)
    ) as bar:
        spoken = time.monotonic()

        def advance(name: str, epoch: Epoch) -> None:
            nonlocal spoken
            total = trainings[name].epochs if name in trainings else epoch.epoch
            bar(epoch.epoch, total)
            # where no bar is drawn, a line now and then says that a long training lives
            if not context.reporter.draws and time.monotonic() - spoken > _SILENCE:
                spoken = time.monotonic()
                context.reporter.say(
                    f"window {window.name}: {name}, epoch {epoch.epoch} of {total}, losses"
                    f" {epoch.train_loss:.4f} and {epoch.validation_loss:.4f} (validation)"
                )

        task = FitTask(
            events,
            part,
            tuple(hidden),
            stage_seed(config.seed, folder.name, window.name),
            device=context.device,
            checkpoint=stem,
            progress=advance,
        )
        model, results = fit_window_model(method, task)
    counts = {name: int((part == value).sum()) for name, value in _PARTS.items()}
    extra = {
        "window": [window.lo, window.hi],
        "seed": config.seed,
        "events_sha256": file_hash(context.run.events),
        "events": counts,
    }
    written = save_window_model(method, folder, model, hidden, extra)
    curves = {name: training_record(result, trainings.get(name)) for name, result in results.items()}
    write_json(folder.parent / record, {"trainings": curves, "events": counts})
    return [*written, folder.parent / record]


_PARTS = {"train": TRAIN, "validation": VALIDATION, "closure": CLOSURE}
