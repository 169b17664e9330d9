"""A finished window's template, made again from any chunk of the events that it starts from.

Everything about a template event follows from its parent's identity, so the chunks together give the template of the
run, event by event, whatever their size and order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drapes_hep.config import Config, check_config
from drapes_hep.errors import ConfigError, RunDirectoryError
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.folds import Fold
from drapes_hep.pipeline.execution import check_current
from drapes_hep.pipeline.run_directory import RunDirectory, open_run
from drapes_hep.regions import Window, parse_window, sliding_windows
from drapes_hep.spectrum.fit import Density
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.templates.division import divide, model_name, models_of
from drapes_hep.templates.methods import BackgroundMethod, SampleTask
from drapes_hep.templates.plan import plan_chunk, pool_of
from drapes_hep.templates.registry import method_of
from drapes_hep.templates.tables import EventTable, Template, joined
from drapes_hep.templates.window_models import load_window_model, model_files, sample_template

__all__ = ["ChunkTemplate", "ModelOfChunks", "load_chunk_template"]


class ModelOfChunks(NamedTuple):
    """One of the models that made a template.

    Attributes
    ----------
    model
        The method's own.
    unseen : Fold or None
        With cross-fitting, the fold that it never saw.
    rate : float
        Mean number of template events per parent.
    seed : int
        Of the template.
    """

    model: Any
    unseen: Fold | None
    rate: float
    seed: int


@dataclass(frozen=True)
class ChunkTemplate:
    """What makes template events of a chunk.

    Attributes
    ----------
    config : Config
        Of the run.
    window : Window
    method : BackgroundMethod
    models : tuple of ModelOfChunks
    density : Density or None
        What masses are drawn from; None where they are the parents' own.
    """

    config: Config
    window: Window
    method: BackgroundMethod
    models: tuple[ModelOfChunks, ...]
    density: Density | None

    def __call__(self, events: EventTable) -> tuple[EventTable, Template]:
        """Make the template events that start from a chunk.

        Parameters
        ----------
        events : EventTable
            Selected events; those that the template does not start from are left out.

        Returns
        -------
        parents : EventTable
            Those that it starts from.
        template : Template
        """
        window, config = self.window, self.config
        division = divide(events.event_id, config)
        simulation = events if self.method.source == "simulation" else None
        # the run has compared its template with the data; parents that are data are not template events
        nothing = events.take(np.zeros(len(events), dtype=bool))
        parents, templates = [], []
        for model in self.models:
            pool = pool_of(window, events, division, model.unseen, simulation)
            planned = plan_chunk(self.method, pool, model.rate, model.seed, self.density)
            assert planned.parents is not None
            task = SampleTask(model.seed, window.in_signal_region)
            parents.append(planned.parents.event_id)
            templates.append(sample_template(self.method, model.model, planned, task, nothing))
        template = joined(templates)
        if self.models[0].unseen is not None:
            numbers = [model.unseen.number for model in self.models if model.unseen is not None]
            sizes = [len(part.event_id) for part in templates]
            template = replace(template, model=np.repeat(np.array(numbers, dtype=np.int64), sizes))
        return events.take(np.isin(events.event_id, np.concatenate(parents))), template


def load_chunk_template(run: str | Path, window: str) -> ChunkTemplate:
    """Read what a finished run's template was made with.

    Parameters
    ----------
    run : str or Path
        Its directory.
    window : str
        ``LO-HI`` in GeV.

    Returns
    -------
    ChunkTemplate

    Raises
    ------
    ConfigError
        If there is no such window, or the template starts from noise: no event is its parent.
    RunDirectoryError
        If the run is not that far, or damaged.
    """
    directory = open_run(run)
    parsed = parse_window(window, sliding_windows(_config(directory)))
    folder = directory.window(parsed)
    # read again once anything was made again, in a process that lives longer than that
    models = [model_name(unseen) for unseen in models_of(_config(directory))]
    files = (
        folder / "template.parquet",
        *(path for name in models for path in model_files(folder / name)),
        directory.manifest,
    )
    return _load(directory, parsed, tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files))


def _config(run: RunDirectory) -> Config:
    return check_config(read_json(run.manifest)["config"], run.manifest)


@functools.lru_cache(8)
def _load(run: RunDirectory, window: Window, _: tuple[int, ...]) -> ChunkTemplate:
    # a model that was trained again since makes another template than the one whose numbers are read below
    check_current(run, f"generate.{window.name}")
    config, folder = _config(run), run.window(window)
    method = method_of(config)
    if method.source == "noise":
        raise ConfigError(f"{run.path}: {method.title} starts from noise, so no chunk of events holds its parents")
    if config.mass.draw == "kde" and not method.own_mass:
        raise ConfigError(
            f"{run.path}: its masses follow the data of its window (mass.draw: kde), which no chunk holds"
        )
    record = read_skim(folder / "template.parquet", ("event_id",)).metadata
    try:
        density = None if method.own_mass else Density(find_shape(config.mass), **record["mass_fit"])
        how = [(float(model["rate"]), int(model["seed"])) for model in record["models"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{run.window(window)}: its template does not say how it was made; generate it again"
        ) from error
    folds = models_of(config)
    if len(folds) != len(how):
        raise RunDirectoryError(f"{folder}: its template has other models than its configuration; generate it again")
    models = tuple(
        ModelOfChunks(load_window_model(method, folder / model_name(unseen), window, unseen=unseen), unseen, *numbers)
        for unseen, numbers in zip(folds, how, strict=True)
    )
    return ChunkTemplate(config, window, method, models, density)
