"""Folds: which models may see an event, and which may score it.

A fold belongs to an event's identity, so it is the same whatever else is in the sample, in which order, and in which
window. A template event that was made from a data event takes its parent's fold: otherwise a near copy of the event
would be trained on (at small strength the null AUC is then 0.46 instead of 0.5).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import FitError, counted
from drapes_hep.events.schema import NO_PARENT
from drapes_hep.rng import event_uniforms, stage_seed

__all__ = ["Fold", "assign_folds", "check_folds", "root_of"]


class Fold(NamedTuple):
    """One of the folds.

    Attributes
    ----------
    number : int
        In [0, folds).
    folds : int
    seed : int
        The run's seed.
    """

    number: int
    folds: int
    seed: int

    def holds(self, event_id: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether events, shape (n,), are in it."""
        return np.asarray(assign_folds(event_id, self.folds, self.seed) == self.number)


def root_of(event_id: npt.NDArray[np.int64], parent_id: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """Return the identity that decides an event's fold: its parent's where it has one, else its own."""
    return event_id if parent_id is None else np.where(parent_id == NO_PARENT, event_id, parent_id)


def assign_folds(
    event_id: npt.NDArray[np.int64], folds: int, seed: int, parent_id: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Assign each event a fold.

    Parameters
    ----------
    event_id : array of int64, shape (n,)
        Identity of each event.
    folds : int
        How many folds.
    seed : int
        The run's seed.
    parent_id : array of int64, shape (n,), optional
        The event that each one was made from, :data:`~drapes_hep.events.schema.NO_PARENT` for none.

    Returns
    -------
    array of int64, shape (n,)
        In ``[0, folds)``.
    """
    uniform = event_uniforms(stage_seed(seed, "folds"), root_of(event_id, parent_id))[:, 0]
    return np.minimum((uniform * folds).astype(np.int64), folds - 1)


def check_folds(name: str, fold: npt.NDArray[np.int64], folds: int) -> None:
    """Refuse a sample that leaves a fold empty: its models could not be calibrated, or would see one class alone.

    Parameters
    ----------
    name : str
        Of the sample, for the message.
    fold : array of int64, shape (n,)
        From :func:`assign_folds`.
    folds : int

    Raises
    ------
    FitError
    """
    present = np.bincount(fold, minlength=folds)
    if len(present) > folds or (present == 0).any():
        raise FitError(
            f"{name}: {counted(len(fold), 'event does', 'events do')} not fill {counted(folds, 'fold')}; use fewer"
            " folds, a wider window or a larger template"
        )
