"""How far templates are from true background, against the noise sigma' that they start from.

arXiv:2312.10130, figure 6. To run it::

    drapes study strength-auc configs/studies.yaml

Without signal, on the data's share of the background: study.data_share=1 takes all of it.
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
from drapes_hep.templates.registry import origin_of


def methods(config: Config) -> list[str]:
    """Return the partial templates of the study, and the one that starts from low noise."""
    return list(
        dict.fromkeys(
            ["from_low_noise", *(name for name in config.study.templates if origin_of(name, config.folder).partial)]
        )
    )


def entries(config: Config) -> list[Entry]:
    """Compare each partial template with the truth at each strength."""
    out = []
    for repetition in repetitions(injected(config, 0)):
        for method in methods(config):
            for strength in config.study.strengths:
                changed = of_template(repetition, method, strength=strength, oversample=1.0)
                trial = Trial("quality", changed, method)
                out.append(
                    Entry(
                        trial,
                        {"template": title_of(method, config), "wanted_strength": strength, "seed": repetition.seed},
                    )
                )
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw the AUC of all templates, and closer of those that start from events."""
    closer = [row for row in rows if row["template"] != title_of("from_low_noise", config)]
    return [
        auc_panel(chosen, "strength", r"Noise $\sigma'$", title, column=column)
        for chosen, column, title in (
            (rows, "auc", "all features"),
            (closer, "auc", "all features"),
            (closer, "auc_classifier", "the classifier's features"),
        )
    ]


STUDY = Study("AUC of partial templates against the truth, along sigma'", entries, numbers, panels)
