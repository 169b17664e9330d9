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
    injected,
    numbers,
    repetitions,
    sic_panels,
    title_of,
    trial_of,
)

CLASSIFIERS = {"trees": "Trees", "mlp": "MLP"}


def entries(config: Config) -> list[Entry]:
    """Search with each classifier at each injection of the study."""
    subjects = [config.study.templates[0], *(["over_idealised"] if config.study.data_share < 1 else [])]
    out = []
    for count in config.study.examples:
        for repetition in repetitions(injected(config, count)):
            for name, title in CLASSIFIERS.items():
                # options are those of the classifier that is configured
                options = repetition.cwola.options if name == repetition.cwola.classifier else {}
                cwola = repetition.cwola.model_copy(update={"classifier": name, "options": options})
                changed = repetition.model_copy(update={"cwola": cwola})
                for subject in subjects:
                    labels = {
                        "injected": count,
                        "template": title_of(subject, config),
                        "classifier": f"{title}, {title_of(subject, config)}",
                        "seed": repetition.seed,
                    }
                    out.append(Entry(trial_of("search", changed, subject), labels))
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw SIC at two rejections and its maximum."""
    return sic_panels(rows, "injected", "Signal events injected", by="classifier")


STUDY = Study("SIC of boosted trees and of the small network", entries, numbers, panels)
