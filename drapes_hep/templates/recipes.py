r"""The templates of Drapes: one reverse diffusion, and five choices of where it starts.

A template event is made by starting at a noise level :math:`\sigma'` and following the flow down to 0 under a mass:

.. math:: x' = x_0 + \sigma' n, \qquad n \sim N(0, 1),

in the scaled features, with :math:`x_0` a parent event, or 0 where there is none (METHOD of Drapes: full noise is
:math:`\sigma' = \sigma_{max}`, beside which any :math:`x_0` is lost). :data:`RECIPES` is the table of the family.

Only the strengths exist that are among the sampler's steps: of N steps with n' left, :math:`\sigma' = \sigma_{N-n'}`.

Identities. A template event is known by its parent and its copy (or by its number, from noise): its own identity, its
noise and, where it is drawn, its mass follow from those alone. A chunk of parents therefore gives the events that all
parents at once would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from drapes_hep.config import TemplateConfig
from drapes_hep.diffusion.schedules import Schedule, strength_steps
from drapes_hep.errors import ConfigError, counted
from drapes_hep.events.schema import NO_PARENT, places_of
from drapes_hep.events.types import AwkwardArray
from drapes_hep.rng import event_keys, event_uniforms, stage_seed
from drapes_hep.templates.model import BackgroundModel

__all__ = ["RECIPES", "Parents", "Recipe", "Starts", "Template", "copies_of", "levels", "make_template", "starts"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """One row of the family.

    Attributes
    ----------
    source : {"noise", "window", "sidebands", "simulation"}
        Where parents come from: none, data of the window, data of the sidebands that trained the model, events of
        another simulation in the window.
    partial : bool
        Whether it starts at the strength sigma' in place of sigma_max.
    own_mass : bool
        Whether the condition is the parent's own m_JJ, or one drawn from the mass fit inside the window.
    title : str
        What papers call it.
    """

    source: Literal["noise", "window", "sidebands", "simulation"]
    partial: bool
    own_mass: bool
    title: str


RECIPES: dict[str, Recipe] = {
    "from_noise": Recipe("noise", partial=False, own_mass=False, title="Drapes 0"),
    "from_low_noise": Recipe("noise", partial=True, own_mass=False, title="Drapes 0 at sigma'"),
    "from_window": Recipe("window", partial=True, own_mass=True, title="Drapes SR"),
    "from_sidebands": Recipe("sidebands", partial=True, own_mass=False, title="Drapes SB"),
    "from_simulation": Recipe("simulation", partial=True, own_mass=True, title="Drapes MC"),
}
"""The family, by the names that ``template.method`` takes."""


@dataclass(frozen=True)
class Parents:
    """Events that a template starts from.

    Attributes
    ----------
    x : array, shape (n, d)
        Features.
    mjj, weight : array, shape (n,)
        GeV, and the weight that each copy inherits.
    event_id : array of int, shape (n,)
    jets : awkward.Array, optional
        n lists of two jets with constituents, where templates are made of them.
    """

    x: FloatArray
    mjj: FloatArray
    weight: FloatArray
    event_id: IntArray
    jets: AwkwardArray | None = None

    def __len__(self) -> int:
        return len(self.event_id)

    def take(self, chosen: npt.NDArray[Any]) -> Parents:
        """Give some of them, by a mask or by rows."""
        jets = None if self.jets is None else self.jets[chosen]
        return Parents(self.x[chosen], self.mjj[chosen], self.weight[chosen], self.event_id[chosen], jets)


@dataclass(frozen=True)
class Starts:
    """Template events before they are made; arrays of shape (n,).

    Attributes
    ----------
    event_id, parent_id : array of int
        ``parent_id`` is :data:`~drapes_hep.events.schema.NO_PARENT` from noise.
    row : array of int
        Row of the parent in :class:`Parents`; -1 from noise.
    root, copy : array of int
        What its random numbers belong to.
    mjj : array
        The mass to generate at, GeV.
    weight : array
    """

    event_id: IntArray
    parent_id: IntArray
    row: IntArray
    root: IntArray
    copy: IntArray
    mjj: FloatArray
    weight: FloatArray

    def take(self, chosen: slice | npt.NDArray[Any]) -> Starts:
        """Give some of them."""
        return replace(self, **{one.name: getattr(self, one.name)[chosen] for one in fields(self)})


@dataclass(frozen=True)
class Template:
    """Made events; arrays of shape (n,) but ``x``, (n, d). ``parent_id`` decides their folds.

    ``jets`` are those of a template of constituents; ``lost`` counts the events of the plan that are not among these,
    by :data:`drapes_hep.templates.events.LOSSES`.
    """

    event_id: IntArray
    parent_id: IntArray
    x: FloatArray
    mjj: FloatArray
    weight: FloatArray
    jets: AwkwardArray | None = None
    lost: Mapping[str, int] = field(default_factory=dict)


def levels(config: TemplateConfig, schedule: Schedule) -> Tensor:
    """Give the falling times that a template's sampler goes through.

    Parameters
    ----------
    config : TemplateConfig
    schedule : Schedule
        The model's path.

    Returns
    -------
    Tensor of float64, shape (n' + 1,)
        All N + 1 from noise, the last n' + 1 for a partial recipe; the first is where the noise has the strength that
        exists: the one nearest to ``template.strength`` in ln(sigma / alpha), or that of ``template.steps_left``.

    Raises
    ------
    ConfigError
        A strength outside the levels, or more steps left than there are.
    """
    every = schedule.sampling_times(config.steps, config.sigma_min, config.sigma_max)
    if not RECIPES[config.method].partial:
        return every
    left = config.steps_left
    if left is None:
        alpha, sigma = schedule(every)
        try:
            left = strength_steps(sigma / alpha, float(config.strength or 0.0))
        except ValueError as error:
            raise ConfigError(f"template.strength: {error}") from None
    if left > config.steps:
        raise ConfigError(f"template.steps_left: {left} of {counted(config.steps, 'step')}")
    return every[-(left + 1) :]


def copies_of(event_id: IntArray, rate: float, seed: int) -> IntArray:
    """Give how many template events each parent has.

    Parameters
    ----------
    event_id : array of int, shape (n,)
    rate : float
        Mean number a parent.
    seed : int

    Returns
    -------
    array of int, shape (n,)
        The whole part of the rate, and one more with the probability of the rest: a function of the identity alone, so
        that a chunk decides as the whole does; the total is the rate times n within sqrt(n) / 2.
    """
    whole = int(np.floor(rate))
    more = event_uniforms(stage_seed(seed, "copies"), event_id)[:, 0] < rate - whole
    return whole + more.astype(np.int64)


def starts(
    recipe: Recipe,
    parents: Parents | None,
    size: float,
    seed: int,
    draw_mass: Callable[[FloatArray], FloatArray] | None,
    first: int = 0,
) -> Starts:
    """List the template events that a recipe makes.

    Parameters
    ----------
    recipe : Recipe
    parents : Parents, optional
        Needed by all but the recipes from noise.
    size : float
        From noise the number of events; else the mean number of copies of each parent.
    seed : int
    draw_mass : callable, optional
        From uniform numbers (n,) to masses in the window, where masses are drawn.
    first : int
        Number of the first event, from noise: a later chunk goes on there.

    Returns
    -------
    Starts
    """
    if recipe.source == "noise":
        number = np.arange(first, first + round(size), dtype=np.int64)
        row, root, copy = np.full(len(number), -1, dtype=np.int64), number, np.zeros(len(number), dtype=np.int64)
        parent = np.full(len(number), NO_PARENT, dtype=np.int64)
        weight = np.ones(len(number))
    else:
        if parents is None:
            raise ValueError(f"{recipe.title} starts from events")
        counts = copies_of(parents.event_id, size, seed)
        row = np.repeat(np.arange(len(counts)), counts)
        copy = places_of(counts)
        root = parent = parents.event_id[row]
        weight = parents.weight[row]
    if recipe.own_mass and parents is not None:
        mjj = parents.mjj[row]
    elif draw_mass is None:
        raise ValueError(f"{recipe.title} draws masses")
    else:
        mjj = draw_mass(event_uniforms(stage_seed(seed, "mass"), root, copy)[:, 0])
    return Starts(event_keys(stage_seed(seed, "template"), root, copy), parent, row, root, copy, mjj, weight)


def make_template(
    model: BackgroundModel,
    config: TemplateConfig,
    plan: Starts,
    parents: Parents | None,
    seed: int,
    *,
    device: str = "cpu",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Template:
    """Make template events.

    Parameters
    ----------
    model : BackgroundModel
    config : TemplateConfig
        Method, steps, strength and solver.
    plan : Starts
        From :func:`starts`.
    parents : Parents, optional
        Those that the plan was made for.
    seed : int
        Of the noise.
    device, workers, progress
        As for :func:`drapes_hep.diffusion.samplers.sample`.

    Returns
    -------
    Template
        In the plan's order.
    """
    start = None if parents is None else model.scaling.forward(parents.x[plan.row], parents.mjj[plan.row])
    x = model.generate(
        plan.mjj,
        plan.root,
        seed,
        levels(config, model.denoiser.schedule),
        copy=plan.copy,
        start=start,
        solver=config.solver,
        device=device,
        workers=workers,
        progress=progress,
    )
    return Template(plan.event_id, plan.parent_id, x, plan.mjj, plan.weight)
