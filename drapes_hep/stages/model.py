"""Stages train and generate: the background model of a window, and the template that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.code_keys import code_hash
from drapes_hep.config import keys_of
from drapes_hep.cwola.folds import assign_folds, check_folds
from drapes_hep.diffusion.training import Epoch
from drapes_hep.errors import DrapesError, FitError, counted
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.keys import part_of
from drapes_hep.mass import SpectrumFit, fit_spectrum
from drapes_hep.records import Stage
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.stages.bins import mass_edges
from drapes_hep.stages.context import Context
from drapes_hep.stages.derived import needs_simulation, pseudo_window
from drapes_hep.stages.parents import load_parents
from drapes_hep.stages.simulation import simulation_stage
from drapes_hep.stages.skim import skim_stage
from drapes_hep.stages.tables import unweighted
from drapes_hep.stamps import run_stage
from drapes_hep.templates.family import (
    WindowModel,
    checkpoints,
    fit_window_model,
    load_window_model,
    make_window_template,
    mass_source,
    method_sources,
    model_files,
    save_window_model,
    start_level,
    unfinished,
)
from drapes_hep.templates.model import training_record
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION, split_sidebands
from drapes_hep.templates.recipes import RECIPES, Parents, Recipe, Starts, starts

__all__ = ["generate", "generate_stage", "train", "train_stage"]

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
        other={"pseudo-window": pseudo_window(context, window), **method_sources(context.config)},
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
                f"window {window.name}: its {name} sideband, {low:g}-{high:g} GeV, holds no event, so nothing can be"
                " interpolated; see mass.range and the selection"
            )
    folds, inside = config.cwola.folds, event_id[window.in_signal_region(mjj)]
    if not len(inside):
        raise FitError(f"window {window.name}: holds no event, so there is nothing to compare a template with")
    check_folds(f"window {window.name}: data", assign_folds(inside, folds, config.seed), folds)


def _stem(context: Context, folder: Path, hidden: list[tuple[float, float]]) -> Path:
    """Return the stem of a training's checkpoints."""
    config = context.config
    part = part_of(config.model_dump(mode="json"), keys_of("train"))
    # named by all that the training depends on: a killed run resumes, a changed one starts afresh
    key = content_hash([part, method_sources(config), hidden, file_hash(context.run.events), code_hash(*_TRAINING)])
    return folder.parent / f"{folder.name}.{key[:12]}"


def _fit(
    context: Context,
    window: Window,
    folder: Path,
    record: str,
    events: Parents,
    part: IntArray,
    hidden: list[tuple[float, float]],
) -> list[Path]:
    config = context.config
    lengths = {"features": config.training.epochs, "jets": config.training.epochs}
    if config.constituents is not None:
        lengths["constituents"] = config.constituents.epochs
    stem = _stem(context, folder, hidden)
    if left := unfinished(stem):
        what = folder.name.replace("_", " ")
        context.reporter.say(
            f"window {window.name}: the training of the {what} that was cut off goes on from the checkpoint of {left}"
        )
    with context.reporter.bar(f"train {window.name}", config.training.epochs) as bar:

        def told(name: str, epoch: Epoch) -> None:
            bar(epoch.epoch, lengths[name])
            # where no bar is drawn, a line now and then says that a long training lives
            if name == "constituents" and not context.reporter.draws and epoch.epoch % max(lengths[name] // 10, 1) == 0:
                context.reporter.say(
                    f"window {window.name}: constituents, epoch {epoch.epoch} of {lengths[name]}, losses"
                    f" {epoch.train_loss:.4f} and {epoch.validation_loss:.4f} (validation)"
                )

        model, results = fit_window_model(
            config,
            events,
            part,
            hidden=hidden,
            seed=stage_seed(config.seed, folder.name, window.name),
            device=context.device,
            checkpoint=stem,
            progress=told,
        )
    counts = {name: int((part == value).sum()) for name, value in _PARTS.items()}
    extra = {
        "window": [window.lo, window.hi],
        "seed": config.seed,
        "events_sha256": file_hash(context.run.events),
        "events": counts,
    }
    written = save_window_model(folder, model, extra)
    # the last training's curve is the one that is drawn: of features, or of constituents
    *others, last = results
    records = {name: training_record(results[name]) for name in others}
    write_json(folder.parent / record, {**training_record(results[last]), **records, "events": counts})
    return [*written, folder.parent / record]


_PARTS = {"train": TRAIN, "validation": VALIDATION, "closure": CLOSURE}


def generate_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's template."""
    folder, pseudo = context.run.window(window), pseudo_window(context, window)
    models = ["model"] if pseudo is None else ["model", "pseudo_model"]
    reads = [context.run.events, folder / "split.parquet"]
    reads += [path for model in models for path in model_files(context.config, folder / model)]
    after = [train_stage(context, window)]
    if needs_simulation(context):
        reads.append(context.run.simulation)
        after.append(simulation_stage(context))
    return Stage(
        f"generate.{window.name}",
        context.config.model_dump(mode="json"),
        keys_of("generate"),
        lambda: reads,
        ("stages.model",),
        other={
            "pseudo-window": pseudo,
            "mass bins": mass_edges(context).tolist(),
            # weights may stay the same where a network is evaluated otherwise
            **method_sources(context.config),
        },
        # the manifest's method and source belong together
        recorded=("template.source",),
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
    config, folder = context.config, context.run.window(window)
    recipe = RECIPES[config.template.method]
    events = load_parents(context.run.events, config)
    mjj, weight = events.mjj, events.weight
    edges = mass_edges(context)
    counts = np.histogram(mjj, edges, weights=weight)[0]
    variance = np.histogram(mjj, edges, weights=weight**2)[0]
    shape = (config.mass.fit, config.mass.sqrt_s)
    fit = fit_spectrum(counts, edges, (window.lo, window.hi), *shape, variance=variance)
    # in a blinded run a fit that other hidden windows take part in is judged by the hunt, which leaves them out
    others = set(context.hidden) - {(window.lo, window.hi)}
    if not fit.good and not others:
        context.reporter.say(
            f"window {window.name}: the mass fit is poor (2NLLR {fit.chi2:.1f} for {fit.ndof}), "
            "its template's masses and significance are not to be trusted"
        )
    split = read_skim(folder / "split.parquet", ("event_id", "part"))
    model = load_window_model(config, folder / "model", window, context.device)
    made: dict[str, Any] = {"template": config.template.method, "strength": None, "steps_left": None}
    if recipe.partial:
        strength, left = start_level(config, model)
        made |= {"strength": strength, "steps_left": left}
        context.reporter.say(f"window {window.name}: strength {strength:.4g}, {counted(left, 'step')} left")
    if config.mass.draw == "kde" and not recipe.own_mass:
        context.reporter.say(
            f"window {window.name}: the template's masses follow those of the data in the window, a signal's included"
        )
    written = [folder / "template.parquet", folder / "closure.parquet"]
    inside = window.in_signal_region(mjj)
    closing = np.isin(events.event_id, np.asarray(split["event_id"])[np.asarray(split["part"]) == CLOSURE])
    # sideband events that close nothing: those that close measure how often a cut passes, and parent no template
    used = ~inside & ~closing
    simulation = load_parents(context.run.simulation, config) if recipe.source == "simulation" else None
    size = config.template.oversample * int(inside.sum())

    def sample(model: WindowModel, path: Path, fit: SpectrumFit, region: tuple[float, float], size: float) -> None:
        here = (mjj >= region[0]) & (mjj < region[1])
        parents = _parents(recipe, events, simulation, here, used, region)
        source = None if recipe.own_mass else mass_source(config, fit, mjj, region)
        size *= 1.0 if source is None else source.more
        rate = size if parents is None else size / len(parents)
        seed = stage_seed(config.seed, path.stem, window.name)
        plan = starts(recipe, parents, rate, seed, None if source is None else source.draw)
        # all that makes the same events of the same parents again
        how = {"rate": rate, "seed": seed, "mass_fit": None if recipe.own_mass else fit.density._asdict()}

        def there(masses: FloatArray) -> BoolArray:
            return np.asarray((masses >= region[0]) & (masses < region[1]))

        _write_sample(context, window, model, path, plan, parents, seed, made | how, there)

    sample(model, written[0], fit, (window.lo, window.hi), size)
    _write_closure(context, window, model, written[1], recipe, events, simulation, (closing, used), made)
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        second = load_window_model(config, folder / "pseudo_model", window, context.device)
        there = (mjj >= pseudo[0]) & (mjj < pseudo[1])
        used &= ~there
        # the masses too come from a fit that saw neither region
        apart = (edges[1:] <= pseudo[0]) | (edges[:-1] >= pseudo[1])
        other = fit_spectrum(counts, edges, (window.lo, window.hi), *shape, variance=variance, fitted=apart)
        sample(second, folder / "pseudo.parquet", other, pseudo, max(1.0, config.template.oversample * there.sum()))
        written.append(folder / "pseudo.parquet")
    return written


def _parents(
    recipe: Recipe,
    events: Parents,
    simulation: Parents | None,
    here: BoolArray,
    used: BoolArray,
    region: tuple[float, float],
) -> Parents | None:
    """Give the events that a recipe starts from to make a template of a mass region; None from noise."""
    if recipe.source == "noise":
        return None
    if simulation is not None:
        found = simulation.take((simulation.mjj >= region[0]) & (simulation.mjj < region[1]))
    else:
        found = events.take(here if recipe.source == "window" else used)
    if not len(found):
        raise DrapesError(
            f"{recipe.title} finds no event to start from between {region[0]:g} and {region[1]:g} GeV; see"
            f" {'template.source' if simulation is not None else 'the skim'}"
        )
    return found


def _write_closure(
    context: Context,
    window: Window,
    model: WindowModel,
    path: Path,
    recipe: Recipe,
    events: Parents,
    simulation: Parents | None,
    parts: tuple[BoolArray, BoolArray],
    made: Mapping[str, Any],
) -> None:
    """Make the recipe's template of the sideband events that the model never met: as many, at their masses."""
    closing, used = parts
    seed = stage_seed(context.config.seed, path.stem, window.name)
    mjj = events.mjj[closing]
    if recipe.source == "noise":
        parents = None
    elif recipe.source == "window":
        parents = events.take(closing)
    elif simulation is None:
        parents = events.take(used)
    else:
        parents = simulation.take(~window.in_signal_region(simulation.mjj))
    if parents is None or recipe.source == "window":
        plan = starts(recipe, parents, len(mjj) if parents is None else 1.0, seed, lambda _: mjj)
    else:
        plan = starts(recipe, parents, len(mjj) / len(parents), seed, lambda u: np.quantile(mjj, u))
    _write_sample(context, window, model, path, plan, parents, seed, made, window.in_sidebands)


def _write_sample(
    context: Context,
    window: Window,
    model: WindowModel,
    path: Path,
    plan: Starts,
    parents: Parents | None,
    seed: int,
    made: Mapping[str, Any],
    region: Callable[[FloatArray], BoolArray],
) -> None:
    config = context.config
    with context.reporter.bar(f"{path.stem} {window.name}", 100) as bar:
        found = make_window_template(
            model,
            config,
            plan,
            parents,
            seed,
            region=region,
            device=context.device,
            workers=context.workers,
            progress=lambda done, total: bar(100 * done // total),
        )
    columns: dict[str, Any] = {
        "event_id": found.event_id, "parent_id": found.parent_id, "mjj": found.mjj, "weight": found.weight
    }  # fmt: skip
    columns |= {name: found.x[:, j] for j, name in enumerate(config.features)}
    if found.jets is not None:
        columns["jets"] = found.jets
        reasons = {name.replace("_", " "): count for name, count in found.lost.items() if count}
        # as many events as the data have, times a number of the configuration
        hidden = bool(context.hidden)
        counted = ", ".join(name if hidden else f"{count} {name}" for name, count in reasons.items())
        if not len(found.event_id):
            wanted = "the" if hidden else len(plan.event_id)
            raise FitError(
                f"window {window.name}: none of {wanted} generated events is in {path.stem} ({counted}):"
                " the model has learnt too little; take more constituents.epochs, constituents.steps or sideband events"
            )
        if not hidden:
            context.reporter.say(
                f"window {window.name}: {path.stem}: {len(found.event_id)} of {len(plan.event_id)} generated events"
                f" kept{f' ({counted})' if counted else ''}"
            )
    account = {"generated": len(plan.event_id), "lost": dict(found.lost)}
    write_skim(path, columns, {**made, **account, "window": [window.lo, window.hi]})
