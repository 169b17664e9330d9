"""Figures: functions that take arrays, histograms or small dataclasses and return a figure.

Nothing is saved or shown here, nothing is computed that a result holds, and pyplot and the session's ``rcParams`` are
left alone: ``figure.savefig(path)`` is the caller's.
"""

from drapes_hep.plots.control import Cell, control_cells, control_grid, control_histogram
from drapes_hep.plots.jets import JetShape, jet_grid, jet_shapes
from drapes_hep.plots.performance import Passing, passing_fraction, roc_curve, score_distribution, sic_curve
from drapes_hep.plots.preview import MassPreview, mass_preview
from drapes_hep.plots.resonance import FittedMass, resonance_scan
from drapes_hep.plots.scan import GlobalP, LocalP, local_p_scan, toy_distribution
from drapes_hep.plots.spectra import Spectrum, merge_bins, selected_spectra, spectrum
from drapes_hep.plots.split import SplitCounts, data_split
from drapes_hep.plots.studies import Band, Panel, study_panels
from drapes_hep.plots.style import PALETTE, HepFigure, Stamp, can_be_typeset, figure_style, poisson_interval
from drapes_hep.plots.templates import (
    Closure,
    QualityPoint,
    TrainingCurve,
    feature_closure,
    feature_grid,
    make_closure,
    template_quality,
    training_loss,
)

__all__ = [
    "PALETTE",
    "Band",
    "Cell",
    "Closure",
    "FittedMass",
    "GlobalP",
    "HepFigure",
    "JetShape",
    "LocalP",
    "MassPreview",
    "Panel",
    "Passing",
    "QualityPoint",
    "Spectrum",
    "SplitCounts",
    "Stamp",
    "TrainingCurve",
    "can_be_typeset",
    "control_cells",
    "control_grid",
    "control_histogram",
    "data_split",
    "feature_closure",
    "feature_grid",
    "figure_style",
    "jet_grid",
    "jet_shapes",
    "local_p_scan",
    "make_closure",
    "mass_preview",
    "merge_bins",
    "passing_fraction",
    "poisson_interval",
    "resonance_scan",
    "roc_curve",
    "score_distribution",
    "selected_spectra",
    "sic_curve",
    "spectrum",
    "study_panels",
    "template_quality",
    "toy_distribution",
    "training_loss",
]
