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
    from drapes_hep.templates.feature_model import BackgroundModel, FeatureTraining

__all__ = ["Drapes"]

FloatArray = npt.NDArray[np.float64]


def _training(task: FitTask) -> FeatureTraining:
    """Return what a model of features is trained on."""
    from drapes_hep.templates.feature_model import FeatureTraining

    events, stem, progress = task.events, task.checkpoint, task.progress
    return FeatureTraining(
        x=events.x,
        mjj=events.mjj,
        weight=events.weight,
        part=task.part,
        hidden=task.hidden,
        seed=task.seed,
        checkpoint=None if stem is None else stem.with_name(f"{stem.name}.checkpoint"),
        progress=None if progress is None else lambda epoch: progress("features", epoch),
    )


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
        return self.fit_many([task])[0]

    def fit_many(self, tasks: Sequence[FitTask]) -> list[tuple[BackgroundModel, Mapping[str, TrainingCurve]]]:
        """Train the models of features of several windows in stacks."""
        from drapes_hep.templates.feature_model import fit_models

        config = self.config
        results = fit_models(
            [_training(task) for task in tasks],
            features=config.features,
            domain=domains(config.features, **config.definitions),
            training=config.training,
            scaling=config.template.scaling,
            device=tasks[0].device,
        )
        return [(model, {"features": result}) for model, result in results]

    def together(self, device: str, models: int) -> int:
        """Return how many models fit one stack."""
        from drapes_hep.diffusion.training import stack_size

        return stack_size(device, models)

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
        return describe_sampler(levels(config, schedule), schedule, config.sampler[0])

    def scaled(self, model: BackgroundModel, x: FloatArray, mjj: FloatArray) -> FloatArray:
        """Return features, shape (n, d), in the coordinates that noise is added in."""
        return model.scaling.forward(x, mjj)
