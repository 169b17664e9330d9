"""Choices for the template and the classifier, changed one at a time.

To run it::

    drapes study ablation configs/studies.yaml

Evaluated only on simulated events: AUC against true background without signal, and SIC at the smaller injection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, bands, injected, numbers, repetitions, trial_of

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "as configured": {},
    "standard scaling": {"template": {"scaling": "standard"}},
    "40% of sidebands held out": {"training": {"closure": 0.4}},
    "half the epochs": {"training": {"epochs": 0.5}},
    "twice the width": {"training": {"width": 2.0}},
    "no weight average": {"training": {"ema": 0.0}},
    "one classifier a fold": {"cwola": {"ensemble": 1}},
    "ten classifiers a fold": {"cwola": {"ensemble": 10}},
    "with delta_r": {"cwola": {"features": None}},
}
"""Changed keys by section; of epochs and width the factor."""


def changed(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """Return the configuration with some choices changed."""
    sections: dict[str, Any] = {}
    for name, values in changes.items():
        section = getattr(config, name)
        new = {
            key: round(getattr(section, key) * value) if key in {"epochs", "width"} else value
            for key, value in values.items()
        }
        if "features" in new:
            new["features"] = config.features
        sections[name] = section.model_copy(update=new)
    return config.model_copy(update=sections)


def entries(config: Config) -> list[Entry]:
    """Measure each variant with the first template of the study."""
    method = config.study.templates[0]
    out = []
    for place, (variant, changes) in enumerate(VARIANTS.items()):
        for repetition in repetitions(config):
            labels = {"variant": variant, "place": place, "seed": repetition.seed}
            varied = changed(repetition, changes)
            searched = injected(varied, min(config.study.examples))
            out.append(Entry(trial_of("search", searched, method), {"measure": "search", **labels}))
            if "cwola" not in changes:
                # the classifier takes no part in the template's quality
                quality = trial_of("quality", injected(varied, 0), method)
                out.append(Entry(quality, {"measure": "quality", **labels}))
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw AUC and SIC, one position on the axis per variant."""
    out = []
    for measure, column, label in (
        ("quality", "auc", "AUC, template against true background"),
        ("search", "sic_1000", r"SIC at $1/\epsilon_B = \mathrm{1000}$"),
        ("search", "sic_100", r"SIC at $1/\epsilon_B = \mathrm{100}$"),
    ):
        mine: list[Row] = [{**row, "all": "Each variant"} for row in rows if row["measure"] == measure]
        names = list(dict.fromkeys(str(row["variant"]) for row in mine))
        placed: list[Row] = [{**row, "place": names.index(str(row["variant"]))} for row in mine]
        title = "no signal" if measure == "quality" else f"{min(config.study.examples)} injected"
        out.append(Panel("", label, bands(placed, "place", column, by="all"), title, names=names))
    return out


STUDY = Study("One choice of training or classifier changed at a time", entries, numbers, panels)
