"""Stage generate: the templates of a window's models, their closure and calibration samples, and the pseudo-window's.

``template.parquet`` trains the classifiers. With cross-fitting, its column ``model`` is the fold that the model of an
event never saw, and ``calibration.parquet`` holds further events of each model, which set the cuts of that fold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.caller import command
from drapes_hep.config import keys_of
from drapes_hep.errors import FitError, RunDirectoryError, counted
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.folds import Fold
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
from drapes_hep.templates.division import Division, calibration_events, divide, model_name, models_of
from drapes_hep.templates.methods import BackgroundMethod, SampleTask
from drapes_hep.templates.plan import Pool, between, fit_masses, plan_closure, plan_region, pool_of
from drapes_hep.templates.registry import method_of, method_settings
from drapes_hep.templates.tables import EventTable, Planned, Template, joined
from drapes_hep.templates.window_models import (
    check_calibration,
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
    models = [model_name(unseen) for unseen in models_of(context.config)]
    models += [] if pseudo is None else ["pseudo_model"]

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
            "models": len(models_of(context.config)),
            "calibration events": calibration_events(context.config),
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


@dataclass(frozen=True)
class _Generated:
    """What a model has made.

    Attributes
    ----------
    unseen : Fold or None
        Of the model.
    template : Template
    planned : int
        Events of the plan.
    how : mapping
        Rate and seed: all that makes the same events of the same parents again.
    """

    unseen: Fold | None
    template: Template
    planned: int
    how: Mapping[str, Any]


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
    division = divide(events.event_id, config)
    _check_split(folder / "split.parquet", events, division, window)
    simulation = load_parents(context.run.simulation, config) if needs_simulation(context) else None
    sources = _Sources(events, division, simulation)
    samples: dict[str, list[_Generated]] = {"template": [], "calibration": [], "closure": []}
    record: dict[str, Any] = {}
    for unseen in models_of(config):
        model = load_window_model(method, folder / model_name(unseen), window, context.device, unseen=unseen)
        # of one method and configuration: what is recorded of a model is true of all
        record = record or _record(context, window, method, model)
        for name, generated in _of_model(_Maker(context, window, method, model, unseen, events), sources, fit):
            samples[name].append(generated)
        if samples["calibration"]:
            check_calibration(method, samples["template"][-1].template, samples["calibration"][-1].template)
    of_region = record | {"mass_fit": None if method.own_mass else _fitted(fit)}
    records = {"template": of_region, "calibration": of_region, "closure": record}
    written = [_write(context, window, name, samples[name], records[name]) for name in samples if samples[name]]
    if not samples["calibration"]:
        # of another scheme, in the same directory
        (folder / "calibration.parquet").unlink(missing_ok=True)
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        # the masses too come from a fit that saw neither region
        other = fit_masses(config.mass, events.mjj, events.weight, edges, window, pseudo)
        model = load_window_model(method, folder / "pseudo_model", window, context.device, pseudo=pseudo)
        generated = _of_pseudo_window(_Maker(context, window, method, model, None, events), sources, other, pseudo)
        fitted = {"mass_fit": None if method.own_mass else _fitted(other)}
        written.append(_write(context, window, "pseudo", [generated], record | fitted))
    return written


@dataclass(frozen=True)
class _Sources:
    """What templates may start from: data with their division, another simulation."""

    events: EventTable
    division: Division
    simulation: EventTable | None

    def pool(self, window: Window, unseen: Fold | None) -> Pool:
        """Return the pool of a model."""
        return pool_of(window, self.events, self.division, unseen, self.simulation)


def _of_model(make: _Maker, sources: _Sources, fit: SpectrumFit) -> Iterator[tuple[str, _Generated]]:
    """Make the samples of a model: template, calibration and closure sample."""
    config, window, method = make.context.config, make.window, make.method
    pool, region = sources.pool(window, make.unseen), (window.lo, window.hi)
    # a classifier is trained on the data of the other folds
    share = 1.0 if make.unseen is None else 1.0 - 1.0 / make.unseen.folds
    size = share * config.template.oversample * int(window.in_signal_region(sources.events.mjj).sum())
    for name, number, start in (
        ("template", size, pool),
        ("calibration", calibration_events(config), replace(pool, calibrates=True)),
    ):
        if number or name == "template":
            seed, reach = make.seed(name), method.reach(region)
            planned = plan_region(method, config.mass, start, region, number, seed, fit, reach)
            yield name, make(name, planned, functools.partial(between, region=region))
    yield "closure", make("closure", plan_closure(method, pool, make.seed("closure")), window.in_sidebands)


def _of_pseudo_window(make: _Maker, sources: _Sources, fit: SpectrumFit, region: tuple[float, float]) -> _Generated:
    config, method = make.context.config, make.method
    size = max(1.0, config.template.oversample * between(sources.events.mjj, region).sum())
    pool, reach = sources.pool(make.window, None), method.reach(region)
    planned = plan_region(method, config.mass, pool, region, size, make.seed("pseudo"), fit, reach)
    return make("pseudo", planned, functools.partial(between, region=region))


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


def _check_split(path: Path, events: EventTable, division: Division, window: Window) -> None:
    """Refuse to take other events for closure than those that the training left out."""
    columns, outside = division.columns(), window.in_sidebands(events.mjj)
    split = read_skim(path, ("event_id", *columns))
    same = np.array_equal(split["event_id"], events.event_id[outside]) and all(
        np.array_equal(split[name], values[outside]) for name, values in columns.items()
    )
    if not same:
        raise RunDirectoryError(f"{path}: is not the split of these events; run {command('train')} again")


@dataclass(frozen=True)
class _Maker:
    """Makes the samples of a model."""

    context: Context
    window: Window
    method: BackgroundMethod
    model: Any
    unseen: Fold | None
    data: EventTable

    def seed(self, name: str) -> int:
        """Return the seed of a sample."""
        of_model = () if self.unseen is None else (self.unseen.number,)
        return stage_seed(self.context.config.seed, name, self.window.name, *of_model)

    def __call__(self, name: str, planned: Planned, region: Callable[[FloatArray], BoolArray]) -> _Generated:
        """Make the events of a plan that are in a region."""
        context = self.context
        of_model = "" if self.unseen is None else f" without fold {self.unseen.number}"
        with context.reporter.bar(f"{name} {self.window.name}{of_model}", 100) as bar:
            task = SampleTask(
                planned.seed,
                region,
                device=context.device,
                workers=context.workers,
                progress=lambda done, total: bar(100 * done // total),
            )
            template = sample_template(self.method, self.model, planned, task, self.data)
        how = {"rate": planned.rate, "seed": planned.seed}
        return _Generated(self.unseen, template, len(planned.starts.event_id), how)


def _write(
    context: Context, window: Window, name: str, samples: Sequence[_Generated], record: Mapping[str, Any]
) -> Path:
    """Write what the models have made of one kind; returns the file."""
    config, path = context.config, context.run.window(window) / f"{name}.parquet"
    template = joined([sample.template for sample in samples])
    # a table has its own number, whatever the plan's
    generated = len(template.event_id) + sum(template.lost.values())
    columns: dict[str, Any] = {
        "event_id": template.event_id, "parent_id": template.parent_id, "mjj": template.mjj, "weight": template.weight
    }  # fmt: skip
    columns |= {feature: template.x[:, j] for j, feature in enumerate(config.features)}
    if samples[0].unseen is not None:
        numbers = [sample.unseen.number for sample in samples if sample.unseen is not None]
        columns["model"] = np.repeat(np.array(numbers, dtype=np.int8), [len(s.template.event_id) for s in samples])
    if template.jets is not None:
        columns["jets"] = template.jets
    _check_losses(context, window, name, template, sum(sample.planned for sample in samples))
    models = [{"unseen": None if s.unseen is None else s.unseen.number, **s.how} for s in samples]
    account = {"generated": generated, "lost": dict(template.lost), "models": models}
    write_skim(path, columns, {**record, **account, "window": [window.lo, window.hi]})
    return path


def _check_losses(context: Context, window: Window, name: str, template: Template, planned: int) -> None:
    """Report what was generated and left out; raise FitError if that is all."""
    events, of_jets = len(template.event_id), template.jets is not None
    if not events and name == "template" and not of_jets:
        raise FitError(f"window {window.name}: the method made no template event; see template.method")
    if not (of_jets or template.lost):
        return
    reasons = {reason.replace("_", " "): count for reason, count in template.lost.items() if count}
    # as many events as the data have, times a number of the configuration
    hidden = bool(context.hidden)
    losses = ", ".join(reason if hidden else f"{count} {reason}" for reason, count in reasons.items())
    if not events and of_jets:
        how_many = "the" if hidden else planned
        raise FitError(
            f"window {window.name}: none of {how_many} generated events is in {name} ({losses}):"
            " the model is undertrained; use more constituents.epochs, constituents.steps or sideband events"
        )
    if not hidden:
        context.reporter.say(
            f"window {window.name}: {name}: {events} of {events + sum(template.lost.values())} generated events"
            f" kept{f' ({losses})' if losses else ''}"
        )
