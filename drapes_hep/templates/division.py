"""Which events each model of a window may see, and which are counted after a cut.

``training.scheme`` names the rule:

``cross_fit``
    As many models as folds. Model f sees the sideband events of all folds but f, and classifier f trains against a
    template of model f alone. The events of fold f, scored by classifier f, met neither, so that every sideband event
    measures how often a cut passes. Cuts are set by further events of model f.
``hold_out``
    One model. A fraction of the sidebands (``training.closure``) trains nothing and measures how often a cut passes.

Folds follow from an event's identity, as for the classifier (:mod:`drapes_hep.folds`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.folds import Fold, assign_folds
from drapes_hep.templates.parts import CLOSURE, VALIDATION, split_sidebands
from drapes_hep.templates.registry import find_method

__all__ = [
    "Division",
    "calibration_events",
    "divide",
    "is_cross_fitted",
    "model_name",
    "models_of",
]

IntArray = npt.NDArray[np.int64]


def is_cross_fitted(config: Config) -> bool:
    """Whether a window has a model per fold: where it is asked for, and the method fits models at all."""
    return config.training.scheme == "cross_fit" and bool(getattr(find_method(config), "cross_fits", True))


def models_of(config: Config) -> tuple[Fold | None, ...]:
    """Return the fold that each model of a window never sees; None for the one model of a hold-out."""
    if not is_cross_fitted(config):
        return (None,)
    return tuple(Fold(number, config.cwola.folds, config.seed) for number in range(config.cwola.folds))


def model_name(fold: Fold | None) -> str:
    """Return the name of a model's folder."""
    return "model" if fold is None else f"model_{fold.number}"


def calibration_events(config: Config) -> int:
    """Return how many events of each model set the cuts of its fold; 0 where the template itself does."""
    if not is_cross_fitted(config):
        return 0
    return math.ceil(config.cwola.calibration / min(config.hunt.background_efficiencies))


@dataclass(frozen=True)
class Division:
    """What events may be used for.

    Attributes
    ----------
    part : array of int, shape (n,)
        :data:`~drapes_hep.templates.parts.TRAIN` or ``VALIDATION`` for the models that may see an event; ``CLOSURE``
        for those of a hold-out.
    fold : array of int, shape (n,), optional
        With cross-fitting, the fold of each event, whose model may not see it.
    """

    part: IntArray
    fold: IntArray | None

    def of_model(self, fold: Fold | None) -> IntArray:
        """Return the parts of the events, shape (n,), for one model; those that it never sees are closure events."""
        if fold is None or self.fold is None:
            return self.part
        return np.where(self.fold == fold.number, CLOSURE, self.part)

    @property
    def counted(self) -> IntArray:
        """Parts of the events, shape (n,), where those that may be counted after a cut are closure events."""
        return self.part if self.fold is None else np.full(len(self.part), CLOSURE, dtype=np.int64)

    def columns(self) -> dict[str, npt.NDArray[np.int8]]:
        """Return what ``split.parquet`` holds beside the identities."""
        out = {"part": self.counted.astype(np.int8)}
        if self.fold is not None:
            out |= {"fold": self.fold.astype(np.int8), "validates": (self.part == VALIDATION).astype(np.int8)}
        return out


def divide(event_id: IntArray, config: Config) -> Division:
    """Divide events among the models of a window.

    Parameters
    ----------
    event_id : array of int, shape (n,)
    config : Config

    Returns
    -------
    Division
        A function of the identities alone; of data in the window only the folds are used.
    """
    if not is_cross_fitted(config):
        return Division(split_sidebands(event_id, config.seed, config.training), None)
    part = split_sidebands(event_id, config.seed, config.training, closure=0.0)
    return Division(part, assign_folds(event_id, config.cwola.folds, config.seed))
