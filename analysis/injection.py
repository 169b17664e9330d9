"""Significance improvement against the number of injected signal events.

arXiv:2312.10130, figures 5, 8 and 18. To run it::

    drapes study injection configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import (
    Entry,
    Row,
    Study,
    bands,
    injected,
    numbers,
    repetitions,
    subjects,
    title_of,
    trial_of,
)

REFERENCES = ("supervised", "over_idealised", "cwola_hunting")


def entries(config: Config) -> list[Entry]:
    """Search each repetition at each injection, with each template and reference."""
    return [
        Entry(
            trial_of("search", injected(one, count), subject),
            {"injected": count, "template": title_of(subject), "seed": one.seed},
        )
        for count in config.study.injections
        for one in repetitions(config)
        for subject in subjects(config, *REFERENCES)
    ]


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw SIC at two rejections and its maximum."""
    return [
        Panel(
            "Signal events injected",
            r"Significance improvement $\epsilon_S\,/\,√\epsilon_B$",
            bands(rows, "injected", column),
            title,
            log_x=True,
            level=1.0,
            meaning="No improvement",
            from_zero=True,
        )
        for column, title in (
            ("sic_1000", r"$1/\epsilon_B = \mathrm{1000}$"),
            ("sic_100", r"$1/\epsilon_B = \mathrm{100}$"),
            ("sic_max", "maximum"),
        )
    ]


STUDY = Study("SIC against the number of injected signal events", entries, numbers, panels)
