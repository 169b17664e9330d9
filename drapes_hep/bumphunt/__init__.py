"""The bump hunt: counts at each working point, expectations from outside the window, p-values, toys."""

from __future__ import annotations

from drapes_hep.bumphunt.background import BackgroundCheck, SpuriousSignal, check_background, spurious_signals
from drapes_hep.bumphunt.expectation import WindowHunt, WorkingPoint, eigen_variations, hunt_window
from drapes_hep.bumphunt.extrapolation import Extrapolation, extrapolate
from drapes_hep.bumphunt.selection import SelectedCounts, count_selected, score_bin, set_overlaps
from drapes_hep.bumphunt.significance import LocalSignificance, local_significance
from drapes_hep.bumphunt.toys import (
    GlobalSignificance,
    ToyModel,
    background_model,
    best_working_point,
    draw_toys,
    global_significance,
    toy_local_p,
)

__all__ = [
    "BackgroundCheck",
    "Extrapolation",
    "GlobalSignificance",
    "LocalSignificance",
    "SelectedCounts",
    "SpuriousSignal",
    "ToyModel",
    "WindowHunt",
    "WorkingPoint",
    "background_model",
    "best_working_point",
    "check_background",
    "count_selected",
    "draw_toys",
    "eigen_variations",
    "extrapolate",
    "global_significance",
    "hunt_window",
    "local_significance",
    "score_bin",
    "set_overlaps",
    "spurious_signals",
    "toy_local_p",
]
