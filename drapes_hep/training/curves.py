"""How a training went: one line per epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Epoch", "TrainingCurve"]


class Epoch(NamedTuple):
    """One line of the history: number (from 1), mean losses, and the rate of the epoch's last step."""

    epoch: int
    train_loss: float
    validation_loss: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """How a training went.

    Parameters
    ----------
    history : tuple of Epoch
        One entry per epoch.
    best_epoch : int
        Number of the epoch whose weights are used.
    stopped_early : bool
        Whether patience ended it.
    seconds : float
        Wall time, over all the runs of a resumed training.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool = False
    seconds: float = 0.0
