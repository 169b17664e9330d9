"""GenSR: the data oversampled as well, by a model that learnt them with the sidebands.

arXiv:2312.10130, figure 14. To run it::

    drapes study gensr configs/studies.yaml

GenSR's model saw the data, so both are judged by background and signal that no model ever saw.
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import (
    Entry,
    Row,
    Study,
    curve_lines,
    injected,
    repetitions,
    sic_curve_panels,
    title_of,
    trial_of,
)


def entries(config: Config) -> list[Entry]:
    """Search with the first template, once with the data themselves and once with GenSR in their place."""
    if config.study.data_share == 1:
        return []
    method = config.study.templates[0]
    return [
        Entry(
            trial_of("search", injected(repetition, count), method, gensr=gensr, unseen=True),
            {
                "injected": count,
                "template": title_of(method, config),
                "data": "GenSR" if gensr else "Data",
                "seed": repetition.seed,
            },
        )
        for count in config.study.examples
        for repetition in repetitions(config)
        for gensr in (False, True)
    ]


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw a panel an injection."""
    return sic_curve_panels(rows, config, by="data", title=title_of(config.study.templates[0], config))


STUDY = Study("SIC with the data class oversampled by GenSR", entries, curve_lines, panels)
