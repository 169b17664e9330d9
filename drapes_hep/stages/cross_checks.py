"""What the template and the weighted sidebands of a window say of its counts: cross-checks without a mass fit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.cross_checks import CrossCheck, CrossChecks, ScoredEvents, compare_counts
from drapes_hep.events.skims import Skim, read_skim
from drapes_hep.folds import root_of
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window

__all__ = ["window_cross_checks"]

_RATIO = "density_ratio"


def window_cross_checks(context: Context, window: Window) -> tuple[CrossChecks, ...]:
    """Compare the counts of a window that was classified with those of other events; never of a blinded run.

    Parameters
    ----------
    context : Context
    window : Window

    Returns
    -------
    tuple of CrossChecks
        One per working point.

    Raises
    ------
    DrapesError
        If the window was not classified.
    """
    folder, config = context.run.window(window), context.config
    template = read_skim(folder / "template_scores.parquet", ("event_id", "parent_id", "tail", "fold", "weight"))
    scores = read_skim(folder / "scores.parquet")
    root = np.asarray(scores["event_id"])
    inside = np.asarray(scores["region"]) == 1
    points, folds = config.hunt.background_efficiencies, config.cwola.folds
    data = _events(scores, np.ones(len(root)), root, inside)
    template_root = root_of(np.asarray(template["event_id"]), np.asarray(template["parent_id"]))
    direct = compare_counts(data, _events(template, np.asarray(template["weight"]), template_root), points, folds)
    conformal: tuple[CrossCheck | None, ...] = (None,) * len(points)
    if _RATIO in scores.columns:
        ratio = np.asarray(scores[_RATIO])
        conformal = compare_counts(data, _events(scores, ratio, root, ratio > 0), points, folds)
    return tuple(CrossChecks(*each) for each in zip(direct, conformal, strict=True))


def _events(
    table: Skim, weight: npt.NDArray[np.float64], root: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_] | None = None
) -> ScoredEvents:
    keep = slice(None) if rows is None else rows
    tail, fold = np.asarray(table["tail"]), np.asarray(table["fold"], dtype=np.int64)
    return ScoredEvents(tail[keep], fold[keep], weight[keep], root[keep])
