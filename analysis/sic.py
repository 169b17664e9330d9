"""Significance improvement against background rejection, of templates and references.

arXiv:2312.10130, figures 4 and 17. To run it::

    drapes study sic configs/studies.yaml

The trials are those of the study ``roc``: what one has measured the other need not repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, curve_lines, searches, sic_curve_panels

REFERENCES = ("supervised", "over_idealised", "idealised", "cwola_hunting")


def entries(config: Config) -> list[Entry]:
    """Search each repetition with each template and reference, at two injections."""
    return searches(config, config.study.examples, *REFERENCES)


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw a panel an injection."""
    return sic_curve_panels(rows, config)


STUDY = Study("SIC curves of templates and references, at two injections", entries, curve_lines, panels)
