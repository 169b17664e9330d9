"""Where the generator of nulls and the records of their searches are: every process finds both there again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from drapes_hep.config import Config
from drapes_hep.cwola.classifiers import find_classifier
from drapes_hep.cwola.trees import engine_of
from drapes_hep.diffusion.checkpoints import CARD
from drapes_hep.errors import ConfigError, counted
from drapes_hep.events.skims import read_truth
from drapes_hep.files import content_hash, file_hash
from drapes_hep.kernels import kernel_threads
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.plugins import source_hashes
from drapes_hep.regions import Window
from drapes_hep.spectrum.shapes import shape_sources
from drapes_hep.stages.feature_tables import feature_matrix, load_events, unweighted
from drapes_hep.studies.null_events import NullGenerator, null_generator, train_null_model
from drapes_hep.studies.null_searches import searched_as
from drapes_hep.studies.runner import run_tasks
from drapes_hep.templates.feature_model import load_background_model, save_background_model
from drapes_hep.templates.registry import method_settings

__all__ = [
    "NullFolder",
    "load_background",
    "load_generator",
    "null_folder",
    "search_missing",
    "train_model",
]

FloatArray = npt.NDArray[np.float64]

_DECIDE_NOTHING = ("name", "data", "signal", "plots", "study", "limits", "blind")
"""Sections that decide no null search: of the data, what they select does."""


@dataclass(frozen=True)
class NullFolder:
    """What a process needs to make nulls, and to leave what it found in them.

    Attributes
    ----------
    config : Config
        Of the search.
    windows : tuple of Window
        That are searched.
    events, truth : Path, Path or None
        The selected events, and their labels where the background alone is the model.
    folder : Path
        Of the generator and the records.
    device : str
        "cpu" or "cuda".
    outside : bool
        Whether masses are fitted outside the windows, of events that may hold a signal.
    """

    config: Config
    windows: tuple[Window, ...]
    events: Path
    truth: Path | None
    folder: Path
    device: str
    outside: bool = False

    def model(self, window: Window, number: int) -> Path:
        """Folder of one of the generator's models."""
        return self.folder / "generator" / window.name / f"model_{number}"

    def null(self, number: int) -> Path:
        """Record of one null's search."""
        return self.folder / "nulls" / f"{number}.json"


def null_folder(
    context: Context,
    code: Sequence[str],
    decides: Any,
    *,
    parent: Path | None = None,
    labelled: bool = True,
    of_data: bool = False,
) -> NullFolder:
    """Name the folder by all that decides what is found in nulls.

    Parameters
    ----------
    context : Context
        Its events are selected; its windows are those searched.
    code : sequence of str
        Where the code that makes records begins.
    decides : JSON value
        What else decides them.
    parent : Path, optional
        Where it is; ``nulls`` of the run directory by default.
    labelled : bool
        Whether labels, where there are some, take the signal out. If not, events may hold a signal.
    of_data : bool
        Whether the selected events themselves are searched, with the spurious signal: no generator decides anything.

    Returns
    -------
    NullFolder
    """
    config, run = context.config, context.run
    tree = searched_as(config, spurious=of_data).model_dump(mode="json")
    generator = [] if of_data else [config.study.null_events, config.study.null_models]
    tree = {name: value for name, value in tree.items() if name not in _DECIDE_NOTHING}
    classifier = find_classifier(config.cwola.classifier, config.folder)
    truth = run.truth if labelled and config.data.labels else None
    key = content_hash(
        [
            tree,
            [*generator, labelled, decides],
            [file_hash(path) for path in (run.events, *([] if truth is None else [truth]))],
            [
                list(source_hashes(classifier)),
                engine_of(classifier),
                shape_sources(config.mass),
                method_settings(config),
            ],
            code_hash(*code),
        ]
    )
    folder = (run.path / "nulls" if parent is None else parent) / key[:20]
    return NullFolder(config, context.windows, run.events, truth, folder, context.device, outside=not labelled)


def load_background(place: NullFolder) -> tuple[FloatArray, FloatArray]:
    """Read features and masses of the selected events; where labels say so, of the background alone.

    Parameters
    ----------
    place : NullFolder

    Returns
    -------
    array, shape (n, d)
    array, shape (n,)
        GeV.

    Raises
    ------
    ConfigError
        If labels say that there is no background.
    DrapesError
        If the events are weighted.
    """
    events = load_events(place.events, place.config.features)
    unweighted(events["weight"], "null searches")
    x, mjj = feature_matrix(events, place.config.features), np.asarray(events["mjj"])
    if place.truth is None:
        return x, mjj
    label = read_truth(place.truth).truth_for(np.asarray(events["event_id"]))
    if not (label == 0).any():
        raise ConfigError("null searches need background events: labels say that there are none")
    return x[label == 0], mjj[label == 0]


def _missing_models(place: NullFolder) -> list[tuple[NullFolder, Window, int]]:
    """Return the arguments of :func:`train_model` for the generator's models that are not trained yet.

    Parameters
    ----------
    place : NullFolder

    Returns
    -------
    list of tuple

    Raises
    ------
    ConfigError
        If the mass shape does not describe the events: before any training.
    """
    null_generator(place.config, load_background(place)[1], place.windows, (), outside=place.outside)
    return [
        (place, window, number)
        for window in place.windows
        for number in range(place.config.study.null_models)
        if not (place.model(window, number) / CARD).is_file()
    ]


def train_model(place: NullFolder, window: Window, number: int) -> None:
    """Train one model of the generator, and write it.

    Parameters
    ----------
    place : NullFolder
    window : Window
    number : int
        Which bootstrap.
    """
    with threadpool_limits(limits=1), kernel_threads(1):
        save_background_model(
            place.model(window, number), train_null_model(place.config, *load_background(place), window, number)
        )


_GENERATORS: dict[Path, NullGenerator] = {}


def load_generator(place: NullFolder) -> NullGenerator:
    """Read the generator, once its models are trained; a process keeps the last one.

    Parameters
    ----------
    place : NullFolder

    Returns
    -------
    NullGenerator
    """
    if place.folder not in _GENERATORS:
        _, mjj = load_background(place)
        models = tuple(
            tuple(
                load_background_model(place.model(window, number)) for number in range(place.config.study.null_models)
            )
            for window in place.windows
        )
        _GENERATORS.clear()
        _GENERATORS[place.folder] = null_generator(place.config, mjj, place.windows, models, outside=place.outside)
    return _GENERATORS[place.folder]


def search_missing(
    place: NullFolder,
    context: Context,
    search: Callable[..., None],
    missing: Sequence[tuple[Any, ...]],
    title: str,
) -> None:
    """Train the models of the generator that are missing, then make the searches that are.

    Parameters
    ----------
    place : NullFolder
    context : Context
        Says on how many cores, and hears of the progress.
    search : callable
        Makes one search and writes its record.
    missing : sequence of tuple
        Its arguments for each search.
    title : str
        Of the bar and the line that says what is to do.

    Raises
    ------
    DrapesError
        If a model or a search fails; those that are done stay.
    """
    models = _missing_models(place) if missing else []
    reporter, total = context.reporter, len(models) + len(missing)
    reporter.say(
        f"{title}; {counted(len(models), 'model')} of the generator and {counted(len(missing), 'search', 'searches')}"
        " to do"
    )
    with reporter.bar(title, max(total, 1)) as bar:
        run_tasks(((train_model, models), (search, missing)), context, lambda done, _: bar(done))
