"""A finished window's template, made again from any chunk of the events that it starts from.

Everything about a template event follows from its parent's identity, so the chunks together give the template of the
run, event by event, whatever their size and order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drapes_hep.config import Config, check_config
from drapes_hep.errors import ConfigError, RunDirectoryError
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.pipeline.execution import check_current
from drapes_hep.pipeline.run_directory import RunDirectory, open_run
from drapes_hep.regions import Window, parse_window, sliding_windows
from drapes_hep.spectrum.fit import Density
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.templates.methods import BackgroundMethod, SampleTask
from drapes_hep.templates.parts import split_sidebands
from drapes_hep.templates.plan import Pool, plan_chunk
from drapes_hep.templates.registry import method_of
from drapes_hep.templates.tables import EventTable, Template
from drapes_hep.templates.window_models import load_window_model, model_files, sample_template

__all__ = ["ChunkTemplate", "load_chunk_template"]


@dataclass(frozen=True)
class ChunkTemplate:
    """What makes template events of a chunk.

    Attributes
    ----------
    config : Config
        Of the run.
    window : Window
    method : BackgroundMethod
    model
        The method's own.
    rate : float
        Mean number of template events per parent.
    seed : int
        Of the template.
    density : Density or None
        What masses are drawn from; None where they are the parents' own.
    """

    config: Config
    window: Window
    method: BackgroundMethod
    model: Any
    rate: float
    seed: int
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
        part = split_sidebands(events.event_id, config.seed, config.training)
        pool = Pool(window, events, part, events if self.method.source == "simulation" else None)
        planned = plan_chunk(self.method, pool, self.rate, self.seed, self.density)
        assert planned.parents is not None
        # the run has compared its template with the data; parents that are data are no template events
        nothing = events.take(np.zeros(len(events), dtype=bool))
        task = SampleTask(self.seed, window.in_signal_region)
        return planned.parents, sample_template(self.method, self.model, planned, task, nothing)


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
    files = (folder / "template.parquet", *model_files(folder / "model"), directory.manifest)
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
        rate, seed = float(record["rate"]), int(record["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{run.window(window)}: its template does not say how it was made; generate it again"
        ) from error
    model = load_window_model(method, run.window(window) / "model", window)
    return ChunkTemplate(config, window, method, model, rate, seed, density)
