"""Significance improvement of partial templates, against the noise sigma' that they start from.

arXiv:2312.10130, figures 7 and 19. To run it::

    drapes study strength-sic configs/studies.yaml
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
    select,
    sic_panels,
    title_of,
)
from drapes_hep.studies.trials import Trial
from drapes_hep.templates.registry import origin_of


def entries(config: Config) -> list[Entry]:
    """Search with each partial template at each strength, at two injections."""
    out = []
    for count in config.study.examples:
        for repetition in repetitions(config):
            for method in config.study.templates:
                for strength in config.study.strengths if origin_of(method, config.folder).partial else ():
                    changed = of_template(injected(repetition, count), method, strength=strength)
                    labels = {
                        "injected": count,
                        "template": title_of(method, config),
                        "wanted_strength": strength,
                        "seed": repetition.seed,
                    }
                    out.append(Entry(Trial("search", changed, method), labels))
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw SIC at 1000 and its maximum, a column an injection."""
    return [
        panel
        for column in ("sic_1000", "sic_max")
        for count in config.study.examples
        for panel in sic_panels(
            select(rows, injected=count),
            "strength",
            r"Noise $\sigma'$",
            title=f"{count} injected",
            columns=[column],
        )
    ]


STUDY = Study("SIC of partial templates along sigma', at two injections", entries, numbers, panels)
