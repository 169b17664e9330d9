"""What every stage is given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import torch

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, DrapesError, RunDirectoryError, counted
from drapes_hep.events.features import check_classifier_features, refuse_resonant
from drapes_hep.events.skims import Skim, read_skim
from drapes_hep.files import read_json
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window, sliding_windows
from drapes_hep.rundir import RunDirectory
from drapes_hep.templates.plan import Parents
from drapes_hep.templates.registry import method_of

__all__ = ["Context", "choose_device", "feature_matrix", "load_events", "load_parents", "read_record", "unweighted"]


@dataclass(frozen=True)
class Context:
    """A search, where it writes, and what it runs on.

    Attributes
    ----------
    config : Config
    run : RunDirectory
    windows : tuple of Window
        All windows of the search.
    device : str
        "cpu" or "cuda".
    executor : str
        Of coffea: "iterative" or "futures".
    workers : int
        Processes or threads.
    reporter : Reporter
    """

    config: Config
    run: RunDirectory
    windows: tuple[Window, ...]
    device: str
    executor: str
    workers: int
    reporter: Reporter

    @classmethod
    def of(
        cls,
        config: Config,
        run: RunDirectory,
        *,
        device: str = "auto",
        executor: str = "iterative",
        workers: int | None = None,
        reporter: Reporter | None = None,
    ) -> Context:
        """Fill in what follows from the configuration and the machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = cores if workers is None else workers
        if count < 1:
            raise ConfigError(f"--workers {count}: at least 1")
        check_classifier_features(config.features, config.classifier_features, **config.definitions)
        return cls(
            config,
            run,
            sliding_windows(config),
            choose_device(device),
            executor,
            count,
            reporter or Reporter(quiet=True),
        )

    @property
    def hidden(self) -> tuple[tuple[float, float], ...]:
        """The windows that blinding hides, as edges in GeV: all of the search, or none."""
        return tuple((window.lo, window.hi) for window in self.windows) if self.config.blind else ()


def choose_device(name: str) -> str:
    """Turn ``auto`` into a device; refuse one that is not there.

    Raises
    ------
    ConfigError
        If CUDA is asked for and not available.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name == "cuda" and not available:
        raise ConfigError("--device cuda: this machine offers no CUDA device; use --device cpu")
    if name not in {"cpu", "cuda"}:
        raise ConfigError(f"--device {name}: choose auto, cpu or cuda")
    return name


def load_events(path: Path, features: Sequence[str]) -> Skim:
    """Read the columns of an event table that the models use."""
    return read_skim(path, ("event_id", "weight", "mjj", *features))


def load_parents(path: Path, config: Config) -> Parents:
    """Read the events of a table as a template's model takes them: with their jets if the method reads them.

    Raises
    ------
    ConfigError
        If it does, and the events were selected by a processor that keeps no constituents.
    DrapesError
        If a mass, a weight or a feature is not one.
    """
    columns = method_of(config).columns
    table = read_skim(path, ("event_id", "weight", "mjj", *config.features, *columns))
    mjj, weight, ids = (np.asarray(table[name]) for name in ("mjj", "weight", "event_id"))
    _check_values(path, "mjj", mjj, np.isfinite(mjj) & (mjj > 0), "a mass that is not positive and finite")
    _check_values(path, "weight", weight, np.isfinite(weight), "a weight that is not finite")
    pairs = table["jets"] if "jets" in columns else None
    if pairs is not None and "constituents" not in ak.fields(pairs):
        raise ConfigError(
            f"constituents: {path} holds no constituents; set processor: processors/constituents.py:Constituents"
        )
    return Parents(feature_matrix(table, config.features, path), mjj, weight, ids, pairs)


def _check_values(
    where: str | Path, name: str, values: npt.NDArray[np.float64], good: npt.NDArray[np.bool_], problem: str
) -> None:
    """Refuse a column with values that no later stage can use; raises DrapesError."""
    bad = np.flatnonzero(~good)
    if len(bad):
        raise DrapesError(
            f"{where}: {counted(len(bad), 'event has', 'events have')} {problem} in '{name}', the first in row {bad[0]}"
            f" ({values[bad[0]]:g}); drop such events in the processor"
        )


def read_record(path: Path, *names: str) -> dict[str, Any]:
    """Read a JSON record that an earlier stage wrote.

    Raises
    ------
    RunDirectoryError
        If it is damaged or lacks one of the names.
    """
    record = read_json(path)
    absent = [name for name in names if not isinstance(record, dict) or name not in record]
    if absent:
        raise RunDirectoryError(f"{path}: holds no '{absent[0]}'; delete it and run its stage again")
    return record  # type: ignore[no-any-return]


_LARGEST = 1e30
"""Largest value of a feature: its square overflows nowhere, and no physical quantity in GeV or rad comes near."""


def feature_matrix(
    events: Skim, features: Sequence[str], where: str | Path = "an event table"
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Stack features to shape (n, d); the resonant mass can never be among them.

    Raises
    ------
    DrapesError
        If a value is not finite, or so large that its square is not. Trees would sort it with the others and say
        nothing.
    """
    refuse_resonant(features)
    columns = [np.asarray(events[name], dtype=np.float64) for name in features]
    for name, column in zip(features, columns, strict=True):
        with np.errstate(invalid="ignore"):
            good = np.abs(column) <= _LARGEST
        _check_values(where, name, column, good, f"NaN, infinity or a value beyond {_LARGEST:g}")
    return np.stack(columns, axis=1)


def unweighted(weights: npt.ArrayLike, where: str) -> None:
    """Refuse weighted events, for the hunt counts: better before a training than after it.

    Parameters
    ----------
    weights : array_like, shape (n,)
    where : str
        What they are, for the message.

    Raises
    ------
    DrapesError
        If a weight is not 1.
    """
    if not np.all(np.asarray(weights) == 1.0):
        raise DrapesError(
            f"{where}: the hunt counts events, and these are weighted; take data, or simulation with weights of 1"
        )
