"""How well classifiers tell templates of constituents from true background, in the window and in the sidebands.

arXiv:2310.06897, section IV. To run it (the configuration
says how to make its files)::

    drapes study llv-quality configs/llv_small.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drapes_hep.config import Config
from drapes_hep.plots import Band, Panel
from drapes_hep.studies.design import Entry, Row, Study, numbers, select
from drapes_hep.studies.llv import comparisons


def entries(config: Config) -> list[Entry]:
    """Compare each generator's templates in the window, and those from noise in the sidebands."""
    return [*comparisons(config, "quality", in_sidebands=False), *comparisons(config, "quality", in_sidebands=True)]


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw the AUC of three classifiers, a place a template."""
    names = list(dict.fromkeys(str(row["template"]) for row in rows))
    return [
        Panel(
            "",
            "AUC, template against true background",
            [
                Band(region.capitalize(), *_places(select(rows, region=region), names, column))
                for region in dict.fromkeys(str(row["region"]) for row in rows)
            ],
            title,
            level=0.5,
            meaning="Perfect template",
            names=names,
        )
        for column, title in (
            ("auc_constituents", "classifier on constituents"),
            ("auc_summaries", "trees on 36 numbers of jets"),
            ("auc_classifier", "trees on features"),
        )
    ]


def _places(rows: Sequence[Row], names: Sequence[str], column: str) -> tuple[np.ndarray, ...]:
    """Return places, medians and the range over repetitions, or of a single one its own error."""
    places, ranges = [], []
    for name in dict.fromkeys(str(row["template"]) for row in rows):
        mine = [row for row in rows if row["template"] == name and row.get(column) is not None]
        values = np.array([row[column] for row in mine], dtype=float)
        if not len(values):
            continue
        error = float(mine[0][f"{column}_error"] or 0.0) if len(values) == 1 else 0.0
        places.append(names.index(name))
        ranges.append((np.median(values), values.min() - error, values.max() + error))
    return (np.array(places, dtype=float), *np.array(ranges, dtype=float).reshape(-1, 3).T)


STUDY = Study("AUC of templates of constituents against true background", entries, numbers, panels)
