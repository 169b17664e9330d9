"""Significance improvement on constituents and on features against the number of injected signal events.

arXiv:2312.10130, figure 11; arXiv:2310.06897, figure 7. To run it (the configuration
says how to make its files)::

    drapes study llv-injection configs/llv_small.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, numbers, sic_panels
from drapes_hep.studies.llv import llv_searches


def entries(config: Config) -> list[Entry]:
    """Search each repetition at each injection, with each template and reference."""
    return llv_searches(config, config.study.injections, "supervised", "idealised")


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw SIC at two rejections and its maximum."""
    return sic_panels(rows, "injected", "Signal events injected")


STUDY = Study("SIC on constituents and features against the number of injected signal events", entries, numbers, panels)
