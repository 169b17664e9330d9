"""Displacement |x0 - x'| of signal and background by noising and denoising, and its use as an anomaly score.

arXiv:2312.10130, figures 15 and 16. To run it::

    drapes study displacement configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drapes_hep.config import Config
from drapes_hep.events.features import check_features
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, bands, injected, of_template, repetitions, select
from drapes_hep.studies.trials import Trial

DISTANCE = "distance"
SHOWN = ("m_j1", "tau21_j1")
"""Features whose distributions are drawn before and after."""


def entries(config: Config) -> list[Entry]:
    """Noise and denoise the events in the window, at each strength, with a model of data without signal."""
    return [
        Entry(
            Trial(
                "displacement", of_template(injected(repetition, 0), "from_window", strength=strength), "from_window"
            ),
            {"wanted_strength": strength, "seed": repetition.seed},
        )
        for repetition in repetitions(config)
        for strength in config.study.strengths
    ]


def lines(entry: Entry, record: Mapping[str, Any]) -> list[Row]:
    """Return one line per feature and class, and one for the distance as a score."""
    shared = {**entry.labels, **{name: record[name] for name in ("strength", "steps", "evaluations")}}
    out: list[Row] = []
    for feature in (*entry.trial.config.features, DISTANCE):
        for kind in ("signal", "background"):
            name = f"{feature}_{kind}"
            moved = {"shift": record[name], "shift_error": record[f"{name}_error"]}
            out.append({**shared, "feature": feature, "class": kind.capitalize(), **moved})
    score = {name: value for name, value in record.items() if name.startswith(("auc_", "sic_"))}
    out.append({**shared, "feature": "score", "class": "Distance as a score", **score})
    for feature, shapes in record["shapes"].items():
        for kind, density in shapes.items():
            if kind != "x":
                for x, value in zip(shapes["x"], density, strict=True):
                    point = {"x": x, "density": value}
                    out.append({**shared, "feature": f"shape of {feature}", "class": kind, **point})
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw one panel per feature, the distance in scaled features, and its AUC as an anomaly score."""
    x = r"Noise $\sigma'$"
    out = [
        Panel(
            x,
            rf"Mean $|x_0 - x'|$ of {feature.axis_label}",
            bands(select(rows, feature=feature.name), "strength", "shift", by="class"),
            log_x=True,
        )
        for feature in check_features(config.features, **config.definitions)
    ]
    distance, score = select(rows, feature=DISTANCE), select(rows, feature="score")
    # what becomes of the first two features of the jets' masses and shapes, from little noise to much
    strengths = sorted({float(row["wanted_strength"]) for row in rows})
    chosen = dict.fromkeys((strengths[0], strengths[len(strengths) // 2], strengths[-1]))
    carried = [
        Panel(
            feature.axis_label,
            "Density [1/GeV]" if "GeV" in feature.axis_label else "Density",
            bands(
                select(rows, feature=f"shape of {feature.name}", wanted_strength=strength),
                "x",
                "density",
                "class",
                False,
            ),
            rf"$\sigma' = \mathrm{{{strength:g}}}$",
        )
        for feature in check_features([name for name in SHOWN if name in config.features], **config.definitions)
        for strength in chosen
    ]
    return [
        *out,
        Panel(x, "Mean distance, all scaled features", bands(distance, "strength", "shift", by="class"), log_x=True),
        *carried,
        Panel(
            x,
            "AUC, larger distance for signal",
            bands(score, "strength", "auc_large", by="class"),
            log_x=True,
            level=0.5,
            meaning="No separation",
        ),
    ]


def shapes_of(rows: Sequence[Row], feature: str, strength: float) -> list[Row]:
    """Return the lines of a feature's distributions at a strength."""
    return select(rows, feature=f"shape of {feature}", wanted_strength=strength)


STUDY = Study("Displacement |x0 - x'| of signal and background along sigma'", entries, lines, panels)
