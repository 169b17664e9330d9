"""The bump hunt: counts at each working point, expectations from outside the window, p-values, toys."""

from __future__ import annotations

from drapes_hep.bumphunt.background import BackgroundCheck, SpuriousSignal, check_background, spurious_signals
from drapes_hep.bumphunt.extrapolation import Extrapolation, extrapolate
from drapes_hep.bumphunt.pass_fail import Background, PassFailCounts, PassFailFits, fit_pass_fail
from drapes_hep.bumphunt.resonance import ResonancePoint, ResonanceScan, scan_masses, scan_resonances
from drapes_hep.bumphunt.selection import SelectedCounts, count_selected, score_bin, set_overlaps
from drapes_hep.bumphunt.sensitivity import (
    Sensitivity,
    critical_counts,
    expected_spurious_signals,
    signal_needed,
    window_sensitivity,
)
from drapes_hep.bumphunt.signal_shapes import (
    SignalShape,
    crystal_ball,
    find_signal,
    gaussian,
    interpolated_shape,
    sample_shape,
    signal_templates,
)
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
from drapes_hep.bumphunt.working_points import WindowHunt, WorkingPoint, eigen_variations, hunt_window

__all__ = [
    "Background",
    "BackgroundCheck",
    "Extrapolation",
    "GlobalSignificance",
    "LocalSignificance",
    "PassFailCounts",
    "PassFailFits",
    "ResonancePoint",
    "ResonanceScan",
    "SelectedCounts",
    "Sensitivity",
    "SignalShape",
    "SpuriousSignal",
    "ToyModel",
    "WindowHunt",
    "WorkingPoint",
    "background_model",
    "best_working_point",
    "check_background",
    "count_selected",
    "critical_counts",
    "crystal_ball",
    "draw_toys",
    "eigen_variations",
    "expected_spurious_signals",
    "extrapolate",
    "find_signal",
    "fit_pass_fail",
    "gaussian",
    "global_significance",
    "hunt_window",
    "interpolated_shape",
    "local_significance",
    "sample_shape",
    "scan_masses",
    "scan_resonances",
    "score_bin",
    "set_overlaps",
    "signal_needed",
    "signal_templates",
    "spurious_signals",
    "toy_local_p",
    "window_sensitivity",
]
