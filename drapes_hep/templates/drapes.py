"""Drapes on features: templates by the reverse diffusion of a model of the event's features.

Models and samplers are imported where they are used: torch takes seconds to load, and a configuration is checked, and a
report written, without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.events.features import domains
from drapes_hep.templates.drapes_family import RECIPES, Recipe
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.tables import EventTable, Plan, Template
from drapes_hep.training.curves import TrainingCurve

if TYPE_CHECKING:
    from drapes_hep.templates.feature_model import BackgroundModel

__all__ = ["Drapes"]

FloatArray = npt.NDArray[np.float64]


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
        from drapes_hep.templates.feature_model import fit_model

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
        from drapes_hep.templates.feature_model import save_background_model

        return save_background_model(folder, model)

    def load(self, folder: Path, device: str) -> BackgroundModel:
        """Read denoiser and scaling."""
        from drapes_hep.templates.feature_model import load_background_model

        return load_background_model(folder, device)

    def sample(self, model: BackgroundModel, plan: Plan, parents: EventTable | None, task: SampleTask) -> Template:
        """Follow the flow down from the parents' noised features, or from noise alone."""
        from drapes_hep.templates.feature_templates import make_template

        return make_template(model, self.config.template, plan, parents, task)

    def describe(self, model: BackgroundModel) -> Mapping[str, Any]:
        """Return strength, steps and evaluations of the sampler."""
        from drapes_hep.templates.feature_templates import describe_sampler, levels

        config, schedule = self.config.template, model.denoiser.schedule
        return describe_sampler(levels(config, schedule), schedule, config.solver)

    def scaled(self, model: BackgroundModel, x: FloatArray, mjj: FloatArray) -> FloatArray:
        """Return features, shape (n, d), in the coordinates that noise is added in."""
        return model.scaling.forward(x, mjj)
