"""Significance improvement of partial templates of constituents, against the noise sigma' that they start from.

arXiv:2312.10130, figure 10. To run it (the configuration
says how to make its files)::

    drapes study llv-strength configs/llv_small.yaml
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
    on_features,
    repetitions,
    sic_panels,
    title_of,
)
from drapes_hep.studies.trials import Trial
from drapes_hep.templates.registry import origin_of


def entries(config: Config) -> list[Entry]:
    """Search with each partial template at each strength, on constituents and on features, at the largest example."""
    count = max(config.study.examples)
    out = []
    for own, word in ((config, " LLV"), (on_features(config), "")):
        for repetition in repetitions(injected(own, count)):
            for method in config.study.templates:
                for strength in config.study.strengths if origin_of(method, config.folder).partial else ():
                    labels = {
                        "template": title_of(method, config) + word,
                        "wanted_strength": strength,
                        "seed": repetition.seed,
                    }
                    out.append(
                        Entry(Trial("search", of_template(repetition, method, strength=strength), method), labels)
                    )
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw SIC at two rejections and its maximum."""
    return sic_panels(rows, "strength", r"Noise $\sigma'$", title=f"{max(config.study.examples)} injected")


STUDY = Study("SIC of partial templates of constituents along sigma'", entries, numbers, panels)
