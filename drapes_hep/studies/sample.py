"""The labelled events of a study, and the draw that makes a data sample of them.

Each repetition of a study redraws which background events stand as data (``study.data_share``), and which signal
events are hidden among them (``signal.inject``, counted before the selection). The background that is left is the
references' truth; with the signal that is left it also takes part in the metrics, scored fold by fold like the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError
from drapes_hep.events.injection import choose_signal
from drapes_hep.events.skims import read_skim, read_truth
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.regions import Window, sliding_windows
from drapes_hep.rng import event_uniforms, stage_seed
from drapes_hep.stages.feature_tables import unweighted
from drapes_hep.stages.parents import load_parents
from drapes_hep.templates.tables import EventTable

__all__ = ["Draw", "StudySample", "check_signal", "draw_data", "load_masses", "load_sample", "study_window"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StudySample:
    """All selected events with their truth.

    Attributes
    ----------
    events : EventTable
        Background and signal, n events.
    is_signal : array of bool, shape (n,)
    signal_id : array of int
        Identities of all signal events in the files, selected or not.
    simulation : EventTable or None
        Selected events of the other simulation.
    """

    events: EventTable
    is_signal: BoolArray
    signal_id: IntArray
    simulation: EventTable | None


@dataclass(frozen=True)
class Draw:
    """The use of the events; masks of shape (n,), disjoint.

    Attributes
    ----------
    data : array of bool
        What the search is given: background and the injected signal.
    background, signal : array of bool
        What is left of either.
    """

    data: BoolArray
    background: BoolArray
    signal: BoolArray


def study_window(config: Config) -> Window:
    """Return the window that is studied: ``study.window``, or the middle one of the scan."""
    if config.study.window is not None:
        return Window(*config.study.window, *config.mass.range)
    windows = sliding_windows(config)
    return windows[len(windows) // 2]


def load_sample(run: RunDirectory, config: Config) -> StudySample:
    """Read the sample that a study's first stages wrote.

    Parameters
    ----------
    run : RunDirectory
    config : Config

    Returns
    -------
    StudySample

    Raises
    ------
    DrapesError
        If a file is missing or damaged, or the events are weighted.
    """
    events = load_parents(run.events, config)
    unweighted(events.weight, "the selected events")
    label = read_truth(run.truth).truth_for(events.event_id)
    every = read_truth(run.labels)
    other = None
    if config.study.source is not None:
        other = load_parents(run.simulation, config)
    return StudySample(events, label == 1, every.event_id[every.label == 1], other)


def draw_data(sample: StudySample, config: Config) -> Draw:
    """Draw the data of one repetition: a function of the identities, ``seed``, ``signal`` and ``study.data_share``.

    Raises
    ------
    ConfigError
        If there is less signal than is to be injected.
    """
    ids = sample.events.event_id
    uniform = event_uniforms(stage_seed(config.seed, "study data"), ids)[:, 0]
    background = ~sample.is_signal
    chosen_background = background & (uniform < config.study.data_share)
    if config.signal.inject is not None:
        check_signal(config.signal.inject, len(sample.signal_id))
    injected = sample.is_signal & np.isin(ids, _injected(sample.signal_id, config))
    return Draw(chosen_background | injected, background & ~chosen_background, sample.is_signal & ~injected)


def _injected(signal_id: IntArray, config: Config) -> IntArray:
    """Return the identities of the signal events that are hidden among the data."""
    inject = config.signal.inject
    return signal_id if inject is None else choose_signal(signal_id, inject, config.signal.seed)


def load_masses(run: RunDirectory, config: Config) -> FloatArray:
    """Read the masses of the configuration's data: of all selected events, but for signal that is not injected.

    Parameters
    ----------
    run : RunDirectory
        With the selected events; if ``signal.inject`` is a number, also with all labels.
    config : Config

    Returns
    -------
    array, shape (n,)
        GeV.

    Raises
    ------
    DrapesError
        If a file is missing or damaged, the events are weighted, or there is less signal than is to be injected.
    """
    events = read_skim(run.events, ("event_id", "weight", "mjj"))
    unweighted(events["weight"], "the selected events")
    mjj, ids = np.asarray(events["mjj"], dtype=np.float64), np.asarray(events["event_id"])
    if config.signal.inject is None:
        return mjj
    every = read_truth(run.labels)
    signal_id = every.event_id[every.label == 1]
    return mjj[~np.isin(ids, signal_id) | np.isin(ids, _injected(signal_id, config))]


def check_signal(requested: int, available: int) -> None:
    """Refuse to inject more signal than there is; raises ConfigError."""
    if requested > available:
        raise ConfigError(
            f"{requested} signal events are requested, the sample has {available}; lower"
            " study.injections and study.examples"
        )
