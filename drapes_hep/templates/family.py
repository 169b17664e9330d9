"""One interface to both kinds of background model: of features, and of jets as sets of constituents.

Which of them a search has is decided by the section ``constituents`` of its configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.diffusion.cards import CARD, WEIGHTS
from drapes_hep.diffusion.training import Epoch, TrainingResult
from drapes_hep.errors import ConfigError
from drapes_hep.events.chunks import Reading
from drapes_hep.events.features import domains
from drapes_hep.events.loading import source_hashes
from drapes_hep.mass import SpectrumFit, draw, draw_kernels, expected
from drapes_hep.regions import Window
from drapes_hep.templates.backbones import find_backbone
from drapes_hep.templates.constituents import (
    ConstituentModel,
    constituent_files,
    fit_constituents,
    load_constituent_model,
    save_constituent_model,
)
from drapes_hep.templates.events import constituent_levels, make_constituent_template
from drapes_hep.templates.model import (
    BackgroundModel,
    fit_model,
    load_background_model,
    save_background_model,
)
from drapes_hep.templates.recipes import Parents, Starts, Template, levels, make_template

__all__ = [
    "MassSource",
    "WindowModel",
    "checkpoints",
    "fit_window_model",
    "load_window_model",
    "make_window_template",
    "mass_source",
    "method_sources",
    "model_files",
    "needs_jets",
    "save_window_model",
    "start_level",
    "unfinished",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WindowModel = BackgroundModel | ConstituentModel
"""A window's background model, of either kind."""


def needs_jets(config: Config) -> bool:
    """Say whether templates are made of jets with constituents."""
    return config.constituents is not None


def fit_window_model(
    config: Config,
    events: Parents,
    part: IntArray,
    *,
    hidden: Sequence[tuple[float, float]],
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[str, Epoch], None] | None = None,
) -> tuple[WindowModel, dict[str, TrainingResult]]:
    """Train the model of a window on sideband events.

    Parameters
    ----------
    config : Config
    events : Parents
        Of the sidebands; with their jets for a model of constituents.
    part : array of int, shape (n,)
        From :func:`drapes_hep.templates.model.split_sidebands`.
    hidden : sequence of (float, float)
        Mass intervals that the model must not see.
    seed : int
    device : str
    checkpoint : Path, optional
        Stem of the checkpoints: ``.checkpoint`` and, before it, the training's name are added.
    progress : callable, optional
        Called with the training's name and each epoch.

    Returns
    -------
    model : BackgroundModel or ConstituentModel
    results : dict of str to TrainingResult
        Of "features", or of "jets" and "constituents".

    Raises
    ------
    LeakError
        If an event lies in a hidden interval.
    FitError
        If there are too few events.
    """
    if config.constituents is not None:
        return fit_constituents(
            _jets(events),
            events.event_id,
            events.mjj,
            events.weight,
            part,
            hidden=hidden,
            config=config.constituents,
            training=config.training,
            scaling=config.template.scaling,
            radius=config.data.radius,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            progress=progress,
        )
    model, result = fit_model(
        events.x,
        events.mjj,
        events.weight,
        part,
        features=config.features,
        domain=domains(config.features),
        hidden=hidden,
        training=config.training,
        scaling=config.template.scaling,
        seed=seed,
        device=device,
        checkpoint=None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.checkpoint"),
        progress=None if progress is None else lambda epoch: progress("features", epoch),
    )
    return model, {"features": result}


def checkpoints(stem: Path) -> list[Path]:
    """Find what a training that was cut off has left, by the stem that :func:`fit_window_model` was given."""
    return sorted(stem.parent.glob(f"{stem.name}*.checkpoint"))


def unfinished(stem: Path) -> str:
    """Say which trainings have left a checkpoint; nothing if none has."""
    # NAME.checkpoint of a model of features, NAME.jets.checkpoint and so on of one of constituents
    parts = [path.name.removeprefix(stem.name).split(".")[-2] or "features" for path in checkpoints(stem)]
    return " and ".join(parts)


def _jets(events: Parents) -> Any:  # noqa: ANN401
    if events.jets is None:
        raise ConfigError(
            "constituents: the selected events hold no constituents; take processors/constituents.py:Constituents"
        )
    return events.jets


def save_window_model(folder: Path, model: WindowModel, extra: Mapping[str, Any]) -> list[Path]:
    """Write a model with its cards; gives its files."""
    if isinstance(model, ConstituentModel):
        return save_constituent_model(folder, model, extra)
    save_background_model(folder, model, extra)
    return [folder / WEIGHTS, folder / CARD]


def model_files(config: Config, folder: Path) -> list[Path]:
    """Give the files of a model; it is whole where all of them are."""
    return constituent_files(folder) if needs_jets(config) else [folder / CARD, folder / WEIGHTS]


def load_window_model(
    config: Config, folder: Path, window: Window, device: str = "cpu", *, saw_window: bool = False
) -> WindowModel:
    """Read a window's model back; raises as :func:`drapes_hep.templates.model.load_background_model`."""
    if needs_jets(config):
        # the configuration may name a network of the user's, a model's card may not
        network = None if config.constituents is None else find_backbone(config.constituents.network)
        return load_constituent_model(folder, window, device, network)
    return load_background_model(folder, window, device, saw_window=saw_window)


def start_level(config: Config, model: WindowModel) -> tuple[float | None, int]:
    """Give where the sampler of a template starts: sigma / alpha (None for pure noise of flow matching), steps left."""
    schedule = model.denoiser.schedule
    if config.constituents is None:
        times = levels(config.template, schedule)
    else:
        times = constituent_levels(config.template, config.constituents, schedule)
    alpha, sigma = (float(part) for part in schedule(times[0]))
    return (sigma / alpha if alpha > 0 else None), len(times) - 1


@dataclass(frozen=True)
class MassSource:
    """What template events' masses are drawn from.

    Attributes
    ----------
    draw : callable
        From uniform numbers (n,) to masses, GeV.
    more : float
        How many events to generate for each that is wanted in the region: above 1 where masses are drawn around it.
    """

    draw: Callable[[FloatArray], FloatArray]
    more: float


def mass_source(config: Config, fit: SpectrumFit, masses: FloatArray, region: tuple[float, float]) -> MassSource:
    """Give what turns uniform numbers into the masses of template events.

    Parameters
    ----------
    config : Config
        Its ``mass.draw``; and where the jets' kinematics are ``free``, the masses that they are generated at reach
        beyond the region by ``constituents.margin``, so that as many events migrate in as out.
    fit : SpectrumFit
    masses : array
        Of the data, GeV: for ``kde``.
    region : (float, float)
        GeV.
    """
    low, high = region
    if config.constituents is not None and config.constituents.kinematics == "free":
        margin = config.constituents.margin
        low, high = max(low * (1 - margin), config.mass.range[0]), min(high * (1 + margin), config.mass.range[1])
    if config.mass.draw == "kde":
        inside, around = (((masses >= a) & (masses < b)).sum() for a, b in (region, (low, high)))
        source = functools.partial(draw_kernels, masses, config.mass.kde_bandwidth, low, high)
        return MassSource(source, float(around) / max(float(inside), 1.0))
    more = expected(fit, low, high)[0] / expected(fit, *region)[0] if (low, high) != region else 1.0
    return MassSource(functools.partial(draw, fit, low, high), more)


def method_sources(config: Config) -> dict[str, list[str]]:
    """Return what decides a model beyond the keys of the configuration: the hashes of a user's network."""
    if config.constituents is None:
        return {}
    # an edited file of this name is another network; the package's own are in the code's hash
    return {"network's source": list(source_hashes(find_backbone(config.constituents.network)))}


def make_window_template(
    model: WindowModel,
    config: Config,
    plan: Starts,
    parents: Parents | None,
    seed: int,
    *,
    region: Callable[[FloatArray], npt.NDArray[np.bool_]],
    device: str = "cpu",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Template:
    """Make template events of either kind.

    Parameters
    ----------
    model : BackgroundModel or ConstituentModel
    config : Config
    plan : Starts
        From :func:`drapes_hep.templates.recipes.starts`.
    parents : Parents, optional
        Those that the plan was made for.
    seed : int
        Of the noise.
    region : callable
        From masses (n,) to whether they lie where the template is wanted: a template of constituents may leave it.
    device, workers, progress
        As for :func:`drapes_hep.diffusion.samplers.sample`.

    Returns
    -------
    Template
        In the plan's order, less the events counted in ``lost``.
    """
    if isinstance(model, ConstituentModel):
        if config.constituents is None:
            raise ValueError("a model of constituents needs their section of the configuration")
        return make_constituent_template(
            model,
            config.template,
            config.constituents,
            plan,
            parents,
            seed,
            features=config.features,
            reading=Reading(radius=config.data.radius, axes=config.data.axes),
            region=region,
            device=device,
            workers=workers,
            progress=progress,
        )
    return make_template(model, config.template, plan, parents, seed, device=device, workers=workers, progress=progress)
