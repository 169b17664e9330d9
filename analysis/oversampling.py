"""Significance improvement against the number of template events for each event in the window.

arXiv:2312.10130, figure 13. To run it::

    drapes study oversampling configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import (
    Entry,
    Row,
    Study,
    injected,
    numbers,
    of_template,
    repetitions,
    sic_panels,
    title_of,
)
from drapes_hep.studies.trials import Trial


def entries(config: Config) -> list[Entry]:
    """Search with the first template of the study at each size, at two injections."""
    method = config.study.templates[0]
    return [
        Entry(
            Trial("search", of_template(injected(repetition, count), method, oversample=size), method),
            {
                "injected": f"{count} injected",
                "template": title_of(method, config),
                "oversample": size,
                "seed": repetition.seed,
            },
        )
        for count in config.study.examples
        for repetition in repetitions(config)
        for size in config.study.oversamples
    ]


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw SIC at two rejections and its maximum, a line an injection."""
    name, label = title_of(config.study.templates[0], config), "Template events an event in the window"
    return sic_panels(rows, "oversample", label, by="injected", title=name, log_x=False, level=False)


STUDY = Study("SIC against the oversampling of the template", entries, numbers, panels)
