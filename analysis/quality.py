"""How far each template is from true background: AUC, without signal.

drapes study quality configs/studies.yaml --set study.data_share=1
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import (
    Entry,
    Row,
    Study,
    auc_panel,
    injected,
    numbers,
    of_template,
    repetitions,
    title_of,
)
from drapes_hep.studies.trials import Trial


def entries(config: Config) -> list[Entry]:
    """Compare each template with the truth, at the study's strength."""
    return [
        Entry(
            Trial("quality", of_template(repetition, method, oversample=1.0), method),
            {"template": title_of(method, config), "seed": repetition.seed},
        )
        for repetition in repetitions(injected(config, 0))
        for method in config.study.templates
    ]


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw the AUC against the network evaluations that it cost."""
    return [
        auc_panel(rows, "evaluations", "Network evaluations a template event", title, column=column, log_x=False)
        for column, title in (("auc", "all features"), ("auc_classifier", "the classifier's features"))
    ]


STUDY = Study("AUC of each template against the truth", entries, numbers, panels)
