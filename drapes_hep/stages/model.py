"""Stages train and generate: the background model of a window, and the template that it gives."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from drapes_hep.config import keys_of
from drapes_hep.cwola.folds import assign_folds, check_folds
from drapes_hep.diffusion.training import Epoch
from drapes_hep.errors import FitError, LeakError, RunDirectoryError, counted, unnumbered
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.keys import part_of
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.stage import Stage
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.mass import SpectrumFit, shape_sources
from drapes_hep.stages.bins import mass_edges
from drapes_hep.stages.derived import needs_simulation, pseudo_window
from drapes_hep.stages.feature_tables import unweighted
from drapes_hep.stages.parents import load_parents
from drapes_hep.stages.simulation import simulation_stage
from drapes_hep.stages.skim import skim_stage
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION, split_sidebands
from drapes_hep.templates.plan import EventTable, Planned, Pool, between, fit_masses, plan_closure, plan_region
from drapes_hep.templates.registry import method_of, method_settings
from drapes_hep.templates.window_models import (
    checkpoints,
    fit_window_model,
    load_window_model,
    model_files,
    sample_template,
    save_window_model,
    training_record,
    unfinished,
)

__all__ = ["generate", "generate_stage", "train", "train_stage"]

_SILENCE = 60.0
"""Seconds that a training may take without a word."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


_TRAINING = ("stages.model",)
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
    _check_resonant(context, events)
    beside = events.take(chosen)
    part = split_sidebands(beside.event_id, config.seed, config.training)
    hidden = [(window.lo, window.hi)]
    written = _fit(context, window, folder / "model", "training.json", beside, part, hidden)
    stems = [_stem(context, folder / "model", hidden)]
    write_skim(folder / "split.parquet", {"event_id": beside.event_id, "part": part.astype(np.int8)})
    written.append(folder / "split.parquet")
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        outside = (beside.mjj < pseudo[0]) | (beside.mjj >= pseudo[1])
        fewer = (beside.take(outside), part[outside])
        all_hidden = [*hidden, pseudo]
        written += _fit(context, window, folder / "pseudo_model", "pseudo_training.json", *fewer, all_hidden)
        stems.append(_stem(context, folder / "pseudo_model", all_hidden))
    # not before the second model is there as well: the first would be trained anew if that training is cut off
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


_FOLLOWS = 0.99
"""Rank correlation with m_JJ from which on a feature is m_JJ under another name."""


def _check_resonant(context: Context, events: EventTable) -> None:
    """Refuse a feature of the classifier that follows m_JJ, whatever it is called; raises LeakError."""
    config = context.config
    for name in config.classifier_features:
        values = events.x[:, config.features.index(name)]
        if len(np.unique(values)) > 1 and abs(r := float(spearmanr(values, events.mjj).statistic)) > _FOLLOWS:
            raise LeakError(
                f"feature '{name}': follows m_JJ (rank correlation {r:.3f}), so the classifier would learn the window;"
                " remove it from cwola.features"
            )


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
    if left := unfinished(stem):
        what = folder.name.replace("_", " ")
        context.reporter.say(
            f"window {window.name}: the interrupted training of the {what} resumes from the checkpoint of {left}"
        )
    with context.reporter.bar(
        f"train {window.name}", max((one.epochs for one in trainings.values()), default=1)
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


def generate_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's template."""
    folder, pseudo = context.run.window(window), pseudo_window(context, window)
    models = ["model"] if pseudo is None else ["model", "pseudo_model"]

    def reads() -> list[Path]:
        files = [path for model in models for path in model_files(folder / model)]
        other = [context.run.simulation] if needs_simulation(context) else []
        return [context.run.events, folder / "split.parquet", *files, *other]

    after = [train_stage(context, window)]
    if needs_simulation(context):
        after.append(simulation_stage(context))
    return Stage(
        f"generate.{window.name}",
        context.config.model_dump(mode="json"),
        keys_of("generate"),
        reads,
        ("stages.model",),
        other={
            "pseudo-window": pseudo,
            "mass bins": mass_edges(context).tolist(),
            "mass shape's source": shape_sources(context.config.mass),
            # weights may stay the same where a network is evaluated otherwise
            **method_settings(context.config),
        },
        # the method decides whether there is a source
        recorded=("template.source", "template.path"),
        after=tuple(after),
    )


def generate(context: Context, window: Window) -> None:
    """Generate a window's template, and the closure samples, unless it is done.

    Raises
    ------
    DrapesError
        If the model is missing, or the mass fit cannot be done.
    """
    run_stage(context.run, generate_stage(context, window), lambda: _generate(context, window), context.reporter)


def _generate(context: Context, window: Window) -> list[Path]:
    config, folder, method = context.config, context.run.window(window), method_of(context.config)
    events, edges = load_parents(context.run.events, config), mass_edges(context)
    fit = fit_masses(config.mass, events.mjj, events.weight, edges, window)
    # in a blinded run a fit that other hidden windows take part in is judged by the hunt, which leaves them out
    others = set(context.hidden) - {(window.lo, window.hi)}
    if not fit.good and not others:
        context.reporter.say(
            f"window {window.name}: the mass fit is poor (2NLLR {fit.chi2:.1f} for {fit.ndof}), "
            "its template's masses and significance are not to be trusted"
        )
    model = load_window_model(method, folder / "model", window, context.device)
    record = _record(context, window, method, model)
    part = split_sidebands(events.event_id, config.seed, config.training)
    _check_split(folder / "split.parquet", events, part, window)
    simulation = load_parents(context.run.simulation, config) if needs_simulation(context) else None
    pool = Pool(window, events, part, simulation)

    def sample(name: str, model: Any, region: tuple[float, float], size: float, fit: SpectrumFit) -> Path:
        path, seed = folder / f"{name}.parquet", stage_seed(config.seed, name, window.name)
        planned = plan_region(method, config.mass, pool, region, size, seed, fit, method.reach(region))
        # all that makes the same events of the same parents again
        how = {"rate": planned.rate, "seed": seed, "mass_fit": None if method.own_mass else _fitted(fit)}
        inside = functools.partial(between, region=region)
        _write_sample(context, window, path, planned, (method, model), record | how, inside, events)
        return path

    size = config.template.oversample * int(window.in_signal_region(events.mjj).sum())
    written = [sample("template", model, (window.lo, window.hi), size, fit), folder / "closure.parquet"]
    planned = plan_closure(method, pool, stage_seed(config.seed, "closure", window.name))
    _write_sample(context, window, written[1], planned, (method, model), record, window.in_sidebands, events)
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        second = load_window_model(method, folder / "pseudo_model", window, context.device)
        size = max(1.0, config.template.oversample * between(events.mjj, pseudo).sum())
        # the masses too come from a fit that saw neither region
        other = fit_masses(config.mass, events.mjj, events.weight, edges, window, pseudo)
        written.append(sample("pseudo", second, pseudo, size, other))
    return written


def _fitted(fit: SpectrumFit) -> dict[str, Any]:
    """Return what masses are drawn from, as a template's metadata hold it."""
    return {"sqrt_s": fit.sqrt_s, "parameters": [float(value) for value in fit.parameters]}


def _record(context: Context, window: Window, method: BackgroundMethod, model: Any) -> dict[str, Any]:
    """Return what is recorded with each of a window's samples, and say how far parents are noised."""
    config, sampler = context.config, method.describe(model)
    record: dict[str, Any] = {"template": config.template.method, "strength": None, "steps_left": None}
    record |= {"title": method.title, "source": method.source, "summary": method.summary()}
    record["kept"] = list(method.kept(model))
    if method.partial:
        strength, left = sampler["strength"], sampler["steps"]
        record |= {"strength": strength, "steps_left": left}
        context.reporter.say(f"window {window.name}: strength {strength:.4g}, {counted(left, 'step')} left")
    if config.mass.draw == "kde" and not method.own_mass:
        context.reporter.say(
            f"window {window.name}: the template's masses follow those of the data in the window, a signal's included"
        )
    return record


def _check_split(path: Path, events: EventTable, part: IntArray, window: Window) -> None:
    """Refuse to take other events for closure than those that the training left out."""
    split, outside = read_skim(path, ("event_id", "part")), window.in_sidebands(events.mjj)
    same = np.array_equal(split["event_id"], events.event_id[outside]) and np.array_equal(split["part"], part[outside])
    if not same:
        raise RunDirectoryError(f"{path}: is not the split of these events; run `drapes train` again")


def _write_sample(
    context: Context,
    window: Window,
    path: Path,
    planned: Planned,
    of: tuple[BackgroundMethod, Any],
    record: Mapping[str, Any],
    region: Callable[[FloatArray], BoolArray],
    data: EventTable,
) -> None:
    config, plan = context.config, planned.starts
    with context.reporter.bar(f"{path.stem} {window.name}", 100) as bar:
        task = SampleTask(
            planned.seed,
            region,
            device=context.device,
            workers=context.workers,
            progress=lambda done, total: bar(100 * done // total),
        )
        found = sample_template(*of, planned, task, data)
    # a table has its own number, whatever the plan's
    generated = len(found.event_id) + sum(found.lost.values())
    columns: dict[str, Any] = {
        "event_id": found.event_id, "parent_id": found.parent_id, "mjj": found.mjj, "weight": found.weight
    }  # fmt: skip
    columns |= {name: found.x[:, j] for j, name in enumerate(config.features)}
    if found.jets is not None:
        columns["jets"] = found.jets
    if not len(found.event_id) and path.stem == "template" and found.jets is None:
        raise FitError(f"window {window.name}: the method made no template event; see template.method")
    if found.jets is not None or found.lost:
        reasons = {name.replace("_", " "): count for name, count in found.lost.items() if count}
        # as many events as the data have, times a number of the configuration
        hidden = bool(context.hidden)
        counted = ", ".join(name if hidden else f"{count} {name}" for name, count in reasons.items())
        if not len(found.event_id) and found.jets is not None:
            wanted = "the" if hidden else len(plan.event_id)
            raise FitError(
                f"window {window.name}: none of {wanted} generated events is in {path.stem} ({counted}):"
                " the model is undertrained; use more constituents.epochs, constituents.steps or sideband events"
            )
        if not hidden:
            context.reporter.say(
                f"window {window.name}: {path.stem}: {len(found.event_id)} of {generated} generated events"
                f" kept{f' ({counted})' if counted else ''}"
            )
    account = {"generated": generated, "lost": dict(found.lost)}
    write_skim(path, columns, {**record, **account, "window": [window.lo, window.hi]})
