r"""Drapes on features: templates by the reverse diffusion of a model of the event's features.

Memory: a copy of the template's features for each stage of the solver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from drapes_hep.config import Config, TemplateConfig
from drapes_hep.diffusion.samplers import evaluations
from drapes_hep.diffusion.schedules import Schedule, angle_steps, strength_steps
from drapes_hep.errors import ConfigError, counted
from drapes_hep.events.features import domains
from drapes_hep.templates.drapes_family import RECIPES, Recipe
from drapes_hep.templates.feature_model import (
    BackgroundModel,
    fit_model,
    load_background_model,
    save_background_model,
)
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.tables import EventTable, Plan, Template
from drapes_hep.training.curves import TrainingCurve

__all__ = ["Drapes", "describe_sampler", "levels", "make_template"]

FloatArray = npt.NDArray[np.float64]


def levels(config: TemplateConfig, schedule: Schedule) -> Tensor:
    """Compute the falling times that a template's sampler goes through.

    Parameters
    ----------
    config : TemplateConfig
    schedule : Schedule
        The model's path.

    Returns
    -------
    Tensor of float64, shape (n' + 1,)
        All N + 1 from noise, the last n' + 1 for a partial recipe; the first is where the noise has the strength that
        exists: the one nearest to ``template.strength`` in ln(sigma / alpha), or that of ``template.steps_left``. For
        the solver ``angle`` 2 N + 1, the middle of each step among them, from ``template.strength`` itself.

    Raises
    ------
    ConfigError
        A strength outside the levels, or more steps left than there are.
    """
    every = schedule.sampling_times(config.steps, config.sigma_min, config.sigma_max)
    partial = RECIPES[config.method].partial
    if config.solver == "angle":
        strength = float(config.strength or 0.0) if partial else _ratio(schedule, every[0])
        return angle_steps(schedule, config.steps, strength)
    if not partial:
        return every
    steps = config.steps_left
    if steps is None:
        alpha, sigma = schedule(every)
        try:
            steps = strength_steps(sigma / alpha, float(config.strength or 0.0))
        except ValueError as error:
            raise ConfigError(f"template.strength: {error}") from None
    if steps > config.steps:
        raise ConfigError(f"template.steps_left: {steps} of {counted(config.steps, 'step')}")
    return every[-(steps + 1) :]


def describe_sampler(times: Tensor, schedule: Schedule, solver: str) -> dict[str, Any]:
    """Return strength, steps and network evaluations of a sampler."""
    steps = (len(times) - 1) // (2 if solver == "angle" else 1)
    # pure noise of flow matching has no sigma / alpha
    strength = ratio if math.isfinite(ratio := _ratio(schedule, times[0])) else None
    return {"strength": strength, "steps": steps, "evaluations": evaluations(solver, steps)}


def _ratio(schedule: Schedule, time: Tensor) -> float:
    """Return sigma / alpha at a time."""
    alpha, sigma = (float(part) for part in schedule(time))
    return sigma / alpha if alpha > 0 else math.inf


def make_template(
    model: BackgroundModel, config: TemplateConfig, plan: Plan, parents: EventTable | None, task: SampleTask
) -> Template:
    """Make template events of features.

    Parameters
    ----------
    model : BackgroundModel
    config : TemplateConfig
        Method, steps, strength and solver.
    plan : Plan
    parents : EventTable, optional
        Those that the plan was made for; each is scaled at its own mass, and denoised at the plan's.
    task : SampleTask

    Returns
    -------
    Template
        In the plan's order.
    """
    start = None if parents is None else model.scaling.forward(parents.x[plan.row], parents.mjj[plan.row])
    x = model.generate(
        plan.mjj,
        plan.root,
        task.seed,
        levels(config, model.denoiser.schedule),
        copy=plan.copy,
        start=start,
        solver=config.solver,
        device=task.device,
        workers=task.workers,
        progress=task.progress,
    )
    return plan.template(x)


class Drapes(BackgroundMethod):
    """Drapes 0, SR, SB and MC, of features (arXiv:2312.10130).

    Parameters
    ----------
    config : Config
        Its ``template.method`` is one of :data:`~drapes_hep.templates.drapes_family.RECIPES`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        recipe: Recipe = RECIPES[config.template.method]
        self.title, self.source = recipe.title, recipe.source
        self.own_mass, self.partial = recipe.own_mass, recipe.partial

    def fit(self, task: FitTask) -> tuple[BackgroundModel, Mapping[str, TrainingCurve]]:
        """Train the model of features."""
        config, progress, events = self.config, task.progress, task.events
        model, result = fit_model(
            events.x,
            events.mjj,
            events.weight,
            task.part,
            features=config.features,
            domain=domains(config.features, **config.definitions),
            hidden=task.hidden,
            training=config.training,
            scaling=config.template.scaling,
            seed=task.seed,
            device=task.device,
            checkpoint=None
            if task.checkpoint is None
            else task.checkpoint.with_name(f"{task.checkpoint.name}.checkpoint"),
            progress=None if progress is None else lambda epoch: progress("features", epoch),
        )
        return model, {"features": result}

    def trainings(self) -> Mapping[str, Training]:
        """Return the one training."""
        return {"features": Training(self.config.training.epochs)}

    def save(self, folder: Path, model: BackgroundModel) -> Sequence[Path]:
        """Write denoiser and scaling."""
        return save_background_model(folder, model)

    def load(self, folder: Path, device: str) -> BackgroundModel:
        """Read denoiser and scaling."""
        return load_background_model(folder, device)

    def sample(self, model: BackgroundModel, plan: Plan, parents: EventTable | None, task: SampleTask) -> Template:
        """Follow the flow down from the parents' noised features, or from noise alone."""
        return make_template(model, self.config.template, plan, parents, task)

    def describe(self, model: BackgroundModel) -> Mapping[str, Any]:
        """Return strength, steps and evaluations of the sampler."""
        config, schedule = self.config.template, model.denoiser.schedule
        return describe_sampler(levels(config, schedule), schedule, config.solver)

    def scaled(self, model: BackgroundModel, x: FloatArray, mjj: FloatArray) -> FloatArray:
        """Return features, shape (n, d), in the coordinates that noise is added in."""
        return model.scaling.forward(x, mjj)
