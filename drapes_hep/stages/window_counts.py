"""The scored events of a window, counted as the hunt counts them. Masses in GeV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.selection import SelectedCounts, count_selected
from drapes_hep.events.skims import read_skim
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window
from drapes_hep.stages.bins import mass_edges
from drapes_hep.stages.feature_tables import unweighted
from drapes_hep.templates.parts import met_no_training

__all__ = ["WindowCounts", "window_counts"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WindowCounts:
    """What a window's classifiers make of the events.

    Attributes
    ----------
    mjj : array, shape (n,)
        GeV; every window's table holds the same events in the same order: those in the range.
    tail : array, shape (n,)
        The tightest cut that each event passes, 1 for events that trained the template.
    counts : SelectedCounts
        Without the events that trained the template.
    visible : SelectedCounts
        With them: what figures and histograms show.
    """

    mjj: FloatArray
    tail: FloatArray
    counts: SelectedCounts
    visible: SelectedCounts


def window_counts(context: Context, window: Window) -> WindowCounts:
    """Count the events of a window that was classified.

    Parameters
    ----------
    context : Context
        If it is blinded, no event in any of its windows is counted: one window's sideband is another's signal region.
    window : Window

    Returns
    -------
    WindowCounts

    Raises
    ------
    DrapesError
        If the window was not classified, or the events are weighted.
    """
    config, edges = context.config, mass_edges(context)
    hidden = context.windows if config.blind else ()
    scores = read_skim(context.run.window(window) / "scores.parquet", ("event_id", "mjj", "weight", "tail", "part"))
    unweighted(scores["weight"], f"window {window.name}")
    mjj, tail = np.asarray(scores["mjj"]), np.asarray(scores["tail"])
    points, used = config.hunt.background_efficiencies, met_no_training(scores["part"])
    share = float(scores.metadata["counted_share"])
    return WindowCounts(
        mjj,
        np.where(used, tail, 1.0),
        count_selected(mjj, tail, edges, points, hidden, used, share),
        count_selected(mjj, tail, edges, points, hidden),
    )
