"""Significance improvement against the number of injected signal events.

arXiv:2312.10130, figures 5, 8 and 18. To run it::

    drapes study injection configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, numbers, searches, sic_panels

REFERENCES = ("supervised", "over_idealised", "cwola_hunting")


def entries(config: Config) -> list[Entry]:
    """Search each repetition at each injection, with each template and reference."""
    return searches(config, config.study.injections, *REFERENCES)


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw SIC at two rejections and its maximum."""
    return sic_panels(rows, "injected", "Signal events injected")


STUDY = Study("SIC against the number of injected signal events", entries, numbers, panels)
