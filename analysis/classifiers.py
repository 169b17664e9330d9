"""Boosted trees against the papers' small network, with the first template and with true background.

drapes study classifiers configs/studies.yaml
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
    title_of,
    trial_of,
)

CLASSIFIERS = {"trees": "Trees", "mlp": "MLP"}


def entries(config: Config) -> list[Entry]:
    """Search with each classifier at each injection of the study."""
    subjects = [config.study.templates[0], *(["over_idealised"] if config.study.data_share < 1 else [])]
    out = []
    for count in config.study.examples:
        for one in repetitions(injected(config, count)):
            for name, title in CLASSIFIERS.items():
                changed = one.model_copy(update={"cwola": one.cwola.model_copy(update={"classifier": name})})
                for subject in subjects:
                    labels = {
                        "injected": count,
                        "template": title_of(subject),
                        "classifier": f"{title}, {title_of(subject)}",
                        "seed": one.seed,
                    }
                    out.append(Entry(trial_of("search", changed, subject), labels))
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw SIC at two rejections and its maximum."""
    return [
        Panel(
            "Signal events injected",
            r"Significance improvement $\epsilon_S\,/\,√\epsilon_B$",
            bands(rows, "injected", column, by="classifier"),
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


STUDY = Study("SIC of boosted trees and of the small network", entries, numbers, panels)
