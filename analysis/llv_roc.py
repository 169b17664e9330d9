"""Significance improvement and signal efficiency against rejection, on constituents and on features.

arXiv:2312.10130, figure 9; arXiv:2310.06897, figure 6. To run it (the configuration
says how to make its files)::

    drapes study llv-roc configs/llv_small.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, curve_lines, efficiency_panels, sic_curve_panels
from drapes_hep.studies.llv import llv_searches


def entries(config: Config) -> list[Entry]:
    """Search each repetition with each template and reference, at the injections of ``study.examples``."""
    return llv_searches(config, config.study.examples, "supervised", "over_idealised", "idealised")


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw SIC and signal efficiency, a column an injection."""
    return [*sic_curve_panels(rows, config), *efficiency_panels(rows, config)]


STUDY = Study("ROC and SIC curves on constituents and on features", entries, curve_lines, panels)
