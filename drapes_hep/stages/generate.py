"""Stage generate: the template of a window, its closure sample and that of its pseudo-window."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.caller import command
from drapes_hep.config import keys_of
from drapes_hep.errors import FitError, RunDirectoryError, counted
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.stage import Stage
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.fit import SpectrumFit
from drapes_hep.spectrum.shapes import shape_sources
from drapes_hep.stages.bins import mass_edges
from drapes_hep.stages.derived import needs_simulation, pseudo_window
from drapes_hep.stages.parents import load_parents
from drapes_hep.stages.simulation import simulation_stage
from drapes_hep.stages.train import train_stage
from drapes_hep.templates.methods import BackgroundMethod, SampleTask
from drapes_hep.templates.parts import split_sidebands
from drapes_hep.templates.plan import Pool, between, fit_masses, plan_closure, plan_region
from drapes_hep.templates.registry import method_of, method_settings
from drapes_hep.templates.tables import EventTable, Planned
from drapes_hep.templates.window_models import (
    load_window_model,
    model_files,
    sample_template,
)

__all__ = ["generate", "generate_stage"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
        ("stages.generate",),
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
        second = load_window_model(method, folder / "pseudo_model", window, context.device, pseudo=pseudo)
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
    record["kept"], record["remarks"] = list(method.kept(model)), list(method.remarks(model))
    for remark in record["remarks"]:
        context.reporter.say(f"window {window.name}: {remark}")
    if method.partial:
        strength, steps = sampler["strength"], sampler["steps"]
        record |= {"strength": strength, "steps_left": steps}
        context.reporter.say(f"window {window.name}: strength {strength:.4g}, {counted(steps, 'step')} left")
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
        raise RunDirectoryError(f"{path}: is not the split of these events; run {command('train')} again")


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
        template = sample_template(*of, planned, task, data)
    # a table has its own number, whatever the plan's
    generated = len(template.event_id) + sum(template.lost.values())
    columns: dict[str, Any] = {
        "event_id": template.event_id, "parent_id": template.parent_id, "mjj": template.mjj, "weight": template.weight
    }  # fmt: skip
    columns |= {name: template.x[:, j] for j, name in enumerate(config.features)}
    if template.jets is not None:
        columns["jets"] = template.jets
    if not len(template.event_id) and path.stem == "template" and template.jets is None:
        raise FitError(f"window {window.name}: the method made no template event; see template.method")
    if template.jets is not None or template.lost:
        reasons = {name.replace("_", " "): count for name, count in template.lost.items() if count}
        # as many events as the data have, times a number of the configuration
        hidden = bool(context.hidden)
        losses = ", ".join(name if hidden else f"{count} {name}" for name, count in reasons.items())
        if not len(template.event_id) and template.jets is not None:
            how_many = "the" if hidden else len(plan.event_id)
            raise FitError(
                f"window {window.name}: none of {how_many} generated events is in {path.stem} ({losses}):"
                " the model is undertrained; use more constituents.epochs, constituents.steps or sideband events"
            )
        if not hidden:
            context.reporter.say(
                f"window {window.name}: {path.stem}: {len(template.event_id)} of {generated} generated events"
                f" kept{f' ({losses})' if losses else ''}"
            )
    account = {"generated": generated, "lost": dict(template.lost)}
    write_skim(path, columns, {**record, **account, "window": [window.lo, window.hi]})
