"""Parts of the sidebands: what a model is trained on, what stops its training, and what it never sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from drapes_hep.config import TrainingConfig
from drapes_hep.rng import event_uniforms, stage_seed

__all__ = ["CLOSURE", "TRAIN", "VALIDATION", "met_no_training", "split_sidebands"]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

TRAIN, VALIDATION, CLOSURE = 0, 1, 2
"""Parts of the sidebands: disjoint, by event identity."""


def split_sidebands(event_id: IntArray, seed: int, config: TrainingConfig, closure: float | None = None) -> IntArray:
    """Assign each sideband event to train, validate or close.

    Parameters
    ----------
    event_id : array of int, shape (n,)
    seed : int
        The run's seed.
    config : TrainingConfig
        Its ``validation`` and ``closure`` fractions.
    closure : float, optional
        In place of that of ``config``.

    Returns
    -------
    array of int, shape (n,)
        :data:`TRAIN`, :data:`VALIDATION` or :data:`CLOSURE`; a function of the identity alone.
    """
    u = event_uniforms(stage_seed(seed, "split"), event_id)[:, 0]
    share = config.closure if closure is None else closure
    part = np.full(len(u), TRAIN, dtype=np.int64)
    part[u < config.validation + share] = VALIDATION
    part[u < share] = CLOSURE
    return part


def met_no_training(part: npt.ArrayLike) -> BoolArray:
    """Whether an event may be counted after a cut: those of the window, and sideband events that no training met.

    Parameters
    ----------
    part : array_like of int
        Of ``scores.parquet``: -1 in the window, a part of the sidebands elsewhere.

    Returns
    -------
    array of bool, shaped as ``part``
    """
    return np.isin(np.asarray(part), (-1, CLOSURE))
