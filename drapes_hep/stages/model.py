"""Stages train and generate: the background model of a window, and the template that it gives."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import DrapesError
from drapes_hep.events.skims import Skim, read_skim, write_skim
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.mass import SpectrumFit, draw, fit_spectrum, spectrum_edges
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.stages.context import Context, domain, feature_matrix, load_events, unweighted
from drapes_hep.stages.simulation import needs_simulation, simulation_stage
from drapes_hep.stages.skim import skim_stage
from drapes_hep.stamps import Stage, code_hash, run_stage
from drapes_hep.templates.model import (
    CLOSURE,
    TRAIN,
    VALIDATION,
    BackgroundModel,
    fit_model,
    load_background_model,
    save_background_model,
    split_sidebands,
    training_record,
)
from drapes_hep.templates.recipes import RECIPES, Parents, Recipe, Starts, levels, make_template, starts

__all__ = ["generate", "generate_stage", "mass_edges", "pseudo_window", "train", "train_stage"]

IntArray = npt.NDArray[np.int64]


def mass_edges(context: Context) -> npt.NDArray[np.float64]:
    """Give the bins of the search, GeV."""
    config = context.config
    return spectrum_edges(config.mass.range, config.mass.bin_width, context.windows)


def pseudo_window(context: Context, window: Window) -> tuple[float, float] | None:
    """Give the pseudo-window of a window: as wide, in the nearest place with sidebands around, or None.

    It lies half a width above the window, or below where the range ends.
    """
    which = context.config.training.pseudo_window
    if which == "none" or (which == "one" and window != context.windows[len(context.windows) // 2]):
        return None
    width = window.hi - window.lo
    above = (window.hi + 0.5 * width, window.hi + 1.5 * width)
    below = (window.lo - 1.5 * width, window.lo - 0.5 * width)
    if above[1] + 0.5 * width <= window.range_hi:
        return above
    return below if below[0] - 0.5 * width >= window.range_lo else None


def train_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's model."""
    return Stage(
        f"train.{window.name}",
        context.config.model_dump(mode="json"),
        ("training", "features", "seed", "template.scaling", "mass.range"),
        lambda: [context.run.events],
        other={"pseudo-window": pseudo_window(context, window)},
        after=(skim_stage(context),),
    )


def train(context: Context, window: Window) -> None:
    """Train the model of a window on its sidebands, unless it is done.

    Raises
    ------
    DrapesError
        If the skim is missing or the sidebands hold too few events.
    """
    run_stage(context.run, train_stage(context, window), lambda: _train(context, window), context.reporter)


def _train(context: Context, window: Window) -> list[Path]:
    config, folder = context.config, context.run.window(window)
    events = load_events(context.run.events, config.features)
    # a skim may be weighted: it can serve others. Better refused before a training than after it
    unweighted(events["weight"], "the selected events")
    chosen = window.in_sidebands(events["mjj"])
    if not chosen.any():
        raise DrapesError(f"window {window.name}: its sidebands hold no event; see mass.range and the selection")
    x = feature_matrix(events, config.features)[chosen]
    ids, mjj, weight = (np.asarray(events[name])[chosen] for name in ("event_id", "mjj", "weight"))
    part = split_sidebands(ids, config.seed, config.training)
    hidden = [(window.lo, window.hi)]
    _fit(context, window, folder / "model", "training.json", x, mjj, weight, part, hidden)
    written = [folder / "model" / "model.safetensors", folder / "model" / "card.json", folder / "training.json"]
    write_skim(folder / "split.parquet", {"event_id": ids, "part": part.astype(np.int8)})
    written.append(folder / "split.parquet")
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        outside = (mjj < pseudo[0]) | (mjj >= pseudo[1])
        arrays = (x[outside], mjj[outside], weight[outside], part[outside])
        _fit(context, window, folder / "pseudo_model", "pseudo_training.json", *arrays, [*hidden, pseudo])
        written += [folder / "pseudo_model" / "model.safetensors", folder / "pseudo_model" / "card.json"]
        written.append(folder / "pseudo_training.json")
    return written


def _fit(
    context: Context,
    window: Window,
    folder: Path,
    record: str,
    x: npt.NDArray[np.float64],
    mjj: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
    part: IntArray,
    hidden: list[tuple[float, float]],
) -> None:
    config = context.config
    # named by all that the training depends on: a killed run goes on, a changed one starts afresh
    settings = config.model_dump(mode="json", include={"training", "features", "seed", "template"})
    key = content_hash([settings, hidden, file_hash(context.run.events), code_hash()])
    checkpoint = folder.parent / f"{folder.name}.{key[:12]}.checkpoint"
    with context.reporter.bar(f"train {window.name}", config.training.epochs) as bar:
        model, result = fit_model(
            x,
            mjj,
            weight,
            part,
            features=config.features,
            domain=domain(config.features),
            hidden=hidden,
            training=config.training,
            scaling=config.template.scaling,
            seed=stage_seed(config.seed, folder.name, window.name),
            device=context.device,
            checkpoint=checkpoint,
            progress=lambda epoch: bar(epoch.epoch),
        )
    counts = {name: int((part == value).sum()) for name, value in _PARTS.items()}
    extra = {
        "window": [window.lo, window.hi],
        "seed": config.seed,
        "events_sha256": file_hash(context.run.events),
        "events": counts,
    }
    save_background_model(folder, model, extra)
    write_json(folder.parent / record, {**training_record(result), "events": counts})
    for old in folder.parent.glob(f"{folder.name}.*.checkpoint"):
        old.unlink()


_PARTS = {"train": TRAIN, "validation": VALIDATION, "closure": CLOSURE}


def generate_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's template."""
    folder, pseudo = context.run.window(window), pseudo_window(context, window)
    models = ["model"] if pseudo is None else ["model", "pseudo_model"]
    reads = [context.run.events, folder / "split.parquet"]
    reads += [folder / model / name for model in models for name in ("card.json", "model.safetensors")]
    after = [train_stage(context, window)]
    if needs_simulation(context):
        reads.append(context.run.simulation)
        after.append(simulation_stage(context))
    return Stage(
        f"generate.{window.name}",
        context.config.model_dump(mode="json"),
        ("template", "features", "mass", "seed"),
        lambda: reads,
        other={"pseudo-window": pseudo, "mass bins": mass_edges(context).tolist()},
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
    events = load_events(context.run.events, config.features)
    mjj = np.asarray(events["mjj"])
    weight = np.asarray(events["weight"])
    edges = mass_edges(context)
    counts = np.histogram(mjj, edges, weights=weight)[0]
    variance = np.histogram(mjj, edges, weights=weight**2)[0]
    shape = (config.mass.fit, config.mass.sqrt_s)
    fit = fit_spectrum(counts, edges, (window.lo, window.hi), *shape, variance=variance)
    if not fit.good:
        context.reporter.say(
            f"window {window.name}: the mass fit is poor (2NLLR {fit.chi2:.1f} for {fit.ndof}), "
            "its template's masses and significance are not to be trusted"
        )
    split = read_skim(folder / "split.parquet", ("event_id", "part"))
    model = load_background_model(folder / "model", window, context.device)
    made: dict[str, Any] = {"template": config.template.method, "strength": None, "steps_left": None}
    if recipe.partial:
        times = levels(config.template, model.denoiser.schedule)
        alpha, sigma = (float(part) for part in model.denoiser.schedule(times[0]))
        made |= {"strength": sigma / alpha, "steps_left": len(times) - 1}
        context.reporter.say(f"window {window.name}: strength {sigma / alpha:.4g}, {len(times) - 1} steps left")
    written = [folder / "template.parquet", folder / "closure.parquet"]
    inside = window.in_signal_region(mjj)
    if not inside.any():
        raise DrapesError(f"window {window.name}: holds no event, so there is nothing to compare a template with")
    closing = np.isin(events["event_id"], np.asarray(split["event_id"])[np.asarray(split["part"]) == CLOSURE])
    # sideband events that close nothing: those that close measure how often a cut passes, and parent no template
    used = ~inside & ~closing
    simulation = load_events(context.run.simulation, config.features) if recipe.source == "simulation" else None
    size = config.template.oversample * int(inside.sum())

    def sample(model: BackgroundModel, path: Path, fit: SpectrumFit, region: tuple[float, float], size: float) -> None:
        here = (mjj >= region[0]) & (mjj < region[1])
        parents = _parents(context, recipe, events, simulation, here, used, region)
        draw_mass = None if recipe.own_mass else functools.partial(draw, fit, *region)
        rate = size if parents is None else size / len(parents)
        seed = stage_seed(config.seed, path.stem, window.name)
        plan = starts(recipe, parents, rate, seed, draw_mass)
        # all that makes the same events of the same parents again
        how = {"rate": rate, "seed": seed, "mass_fit": None if recipe.own_mass else fit.density._asdict()}
        _write_sample(context, window, model, path, plan, parents, seed, made | how)

    sample(model, written[0], fit, (window.lo, window.hi), size)
    _write_closure(context, window, model, written[1], recipe, events, simulation, (closing, used), made)
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        second = load_background_model(folder / "pseudo_model", window, context.device)
        there = (mjj >= pseudo[0]) & (mjj < pseudo[1])
        used &= ~there
        # the masses too come from a fit that saw neither region
        apart = (edges[1:] <= pseudo[0]) | (edges[:-1] >= pseudo[1])
        other = fit_spectrum(counts, edges, (window.lo, window.hi), *shape, variance=variance, fitted=apart)
        sample(second, folder / "pseudo.parquet", other, pseudo, max(1.0, config.template.oversample * there.sum()))
        written.append(folder / "pseudo.parquet")
    return written


def _rows(context: Context, events: Skim, chosen: npt.NDArray[np.bool_]) -> Parents:
    x = feature_matrix(events, context.config.features)[chosen]
    mjj, weight, ids = (np.asarray(events[name])[chosen] for name in ("mjj", "weight", "event_id"))
    return Parents(x, mjj, weight, ids)


def _parents(
    context: Context,
    recipe: Recipe,
    events: Skim,
    simulation: Skim | None,
    here: npt.NDArray[np.bool_],
    used: npt.NDArray[np.bool_],
    region: tuple[float, float],
) -> Parents | None:
    """Give the events that a recipe starts from to make a template of a mass region; None from noise."""
    if recipe.source == "noise":
        return None
    if simulation is not None:
        mjj = np.asarray(simulation["mjj"])
        found = _rows(context, simulation, (mjj >= region[0]) & (mjj < region[1]))
    else:
        found = _rows(context, events, here if recipe.source == "window" else used)
    if not len(found):
        raise DrapesError(
            f"{recipe.title} finds no event to start from between {region[0]:g} and {region[1]:g} GeV; see"
            f" {'template.source' if simulation is not None else 'the skim'}"
        )
    return found


def _write_closure(
    context: Context,
    window: Window,
    model: BackgroundModel,
    path: Path,
    recipe: Recipe,
    events: Skim,
    simulation: Skim | None,
    parts: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
    made: Mapping[str, Any],
) -> None:
    """Make the recipe's template of the sideband events that the model never met: as many, at their masses."""
    closing, used = parts
    seed = stage_seed(context.config.seed, path.stem, window.name)
    mjj = np.asarray(events["mjj"])[closing]
    if recipe.source == "noise":
        parents = None
    elif recipe.source == "window":
        parents = _rows(context, events, closing)
    elif simulation is None:
        parents = _rows(context, events, used)
    else:
        masses = np.asarray(simulation["mjj"])
        inside = window.in_signal_region(masses)
        parents = _rows(context, simulation, ~inside)
    if parents is None or recipe.source == "window":
        plan = starts(recipe, parents, len(mjj) if parents is None else 1.0, seed, lambda _: mjj)
    else:
        plan = starts(recipe, parents, len(mjj) / len(parents), seed, lambda u: np.quantile(mjj, u))
    _write_sample(context, window, model, path, plan, parents, seed, made)


def _write_sample(
    context: Context,
    window: Window,
    model: BackgroundModel,
    path: Path,
    plan: Starts,
    parents: Parents | None,
    seed: int,
    made: Mapping[str, Any],
) -> None:
    config = context.config
    with context.reporter.bar(f"{path.stem} {window.name}", 100) as bar:
        found = make_template(
            model,
            config.template,
            plan,
            parents,
            seed,
            device=context.device,
            workers=context.workers,
            progress=lambda done, total: bar(100 * done // total),
        )
    columns: dict[str, Any] = {
        "event_id": found.event_id, "parent_id": found.parent_id, "mjj": found.mjj, "weight": found.weight
    }  # fmt: skip
    columns |= {name: found.x[:, j] for j, name in enumerate(config.features)}
    write_skim(path, columns, {**made, "window": [window.lo, window.hi]})
