"""What the template and the sidebands of a window say of its counts: cross-checks without a mass fit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.cross_checks import CrossChecks, ScoredEvents, conformal_counts, direct_counts
from drapes_hep.events.skims import Skim, read_skim
from drapes_hep.folds import root_of
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window
from drapes_hep.templates.parts import met_no_training

__all__ = ["window_cross_checks"]


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
    names = ("event_id", "mjj", "tail", "fold", "weight")
    template = read_skim(folder / "template_scores.parquet", (*names, "parent_id"))
    scores = read_skim(folder / "scores.parquet", (*names, "region", "part"))
    root = np.asarray(scores["event_id"])
    inside = np.asarray(scores["region"]) == 1
    data = _events(scores, root, inside)
    sidebands = _events(scores, root, ~inside & met_no_training(scores["part"]))
    reference = _events(template, root_of(np.asarray(template["event_id"]), np.asarray(template["parent_id"])))
    points, folds = config.hunt.background_efficiencies, config.cwola.folds
    direct = direct_counts(data, reference, points, folds)
    conformal = conformal_counts(data, sidebands, window, points, folds)
    return tuple(CrossChecks(*each) for each in zip(direct, conformal, strict=True))


def _events(table: Skim, root: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_] | None = None) -> ScoredEvents:
    keep = np.arange(len(root)) if rows is None else np.flatnonzero(rows)
    mjj, tail, weight = (np.asarray(table[name], dtype=np.float64)[keep] for name in ("mjj", "tail", "weight"))
    return ScoredEvents(mjj, tail, np.asarray(table["fold"], dtype=np.int64)[keep], weight, root[keep])
