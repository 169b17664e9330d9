"""Tables and records of earlier stages, read as the later ones take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import DrapesError, RunDirectoryError, counted
from drapes_hep.events.features import refuse_resonant
from drapes_hep.events.skims import Skim, read_skim
from drapes_hep.files import read_json
from drapes_hep.fixed import LARGEST

__all__ = ["check_values", "feature_matrix", "load_events", "read_record", "unweighted"]


def load_events(path: Path, features: Sequence[str]) -> Skim:
    """Read the columns of an event table that the models use."""
    return read_skim(path, ("event_id", "weight", "mjj", *features))


def check_values(
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
            good = np.abs(column) <= LARGEST
        check_values(where, name, column, good, f"NaN, infinity or a value beyond {LARGEST:g}")
    return np.stack(columns, axis=1)


def unweighted(weights: npt.ArrayLike, where: str) -> None:
    """Refuse weighted events, since the hunt counts: better before a training than after it.

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
        raise DrapesError(f"{where}: the hunt needs unweighted events; use data, or simulation with weights of 1")
