"""Do the classifier's features, and its scores, know the mass? Upper against lower half of the window, without signal.

drapes study mass-halves configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, bands, injected, repetitions, subjects, title_of, trial_of

WHAT = {
    "auc_score": "score",
    "auc_classifier": "classifier's features",
    "auc_without_delta_r": "without delta_r",
    "auc_with_delta_r": "with delta_r",
}
"""What is compared, by its column."""


def entries(config: Config) -> list[Entry]:
    """Compare the halves of background, scored against each template and against true background in its place."""
    return [
        Entry(
            trial_of("mass_halves", injected(repetition, 0), subject),
            {"template": title_of(subject, config), "seed": repetition.seed},
        )
        for repetition in repetitions(config)
        for subject in subjects(config, "over_idealised")
    ]


def lines(entry: Entry, record: Mapping[str, Any]) -> list[Row]:
    """Return one line per thing compared; features do not depend on the template."""
    counts = {name: record[name] for name in ("n_lower", "n_upper", "middle")}
    return [
        {
            **entry.labels,
            "compared": title,
            "place": place,
            "auc": record[column],
            "auc_error": record[f"{column}_error"],
            **counts,
        }
        for place, (column, title) in enumerate(WHAT.items())
        if column in record
    ]


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw the AUC of each."""
    return [
        Panel(
            "",
            "AUC, upper against lower half in mass",
            bands(rows, "place", "auc"),
            level=0.5,
            meaning="Mass not known",
            names=tuple(WHAT.values()),
        )
    ]


STUDY = Study("What knows the mass: upper against lower half of the window", entries, lines, panels)
