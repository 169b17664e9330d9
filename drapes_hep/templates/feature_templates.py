"""Templates of features: the times of the sampler, and the reverse diffusion of a model along them.

Memory: the template's features, and what :meth:`BackgroundModel.generate` says for a block of events.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from drapes_hep.config import TemplateConfig
from drapes_hep.diffusion.samplers import evaluations
from drapes_hep.diffusion.schedules import Schedule, angle_steps, strength_steps
from drapes_hep.errors import ConfigError, counted
from drapes_hep.templates.drapes_family import RECIPES
from drapes_hep.templates.feature_model import BackgroundModel
from drapes_hep.templates.methods import SampleTask
from drapes_hep.templates.tables import EventTable, Plan, Template

__all__ = ["describe_sampler", "levels", "make_template"]


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
    solver, number = config.sampler
    every = schedule.sampling_times(number, config.sigma_min, config.sigma_max)
    partial = RECIPES[config.method].partial
    if solver == "angle":
        strength = float(config.strength or 0.0) if partial else _ratio(schedule, every[0])
        return angle_steps(schedule, number, strength)
    if not partial:
        return every
    steps = config.steps_left
    if steps is None:
        alpha, sigma = schedule(every)
        try:
            steps = strength_steps(sigma / alpha, float(config.strength or 0.0))
        except ValueError as error:
            raise ConfigError(f"template.strength: {error}") from None
    if steps > number:
        raise ConfigError(f"template.steps_left: {steps} of {counted(number, 'step')}")
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
    start = None if parents is None else lambda part: (parents.x[plan.row[part]], parents.mjj[plan.row[part]])
    x = model.generate(
        plan.mjj,
        plan.root,
        task.seed,
        levels(config, model.denoiser.schedule),
        copy=plan.copy,
        parents=start,
        solver=config.sampler[0],
        device=task.device,
        workers=task.workers,
        progress=task.progress,
    )
    return plan.template(x)
