"""Significance improvement against the width of the sidebands that templates are learnt from.

arXiv:2312.10130, figure 12. To run it::

    drapes study sideband-width configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, injected, numbers, repetitions, sic_panels, title_of, trial_of
from drapes_hep.studies.sample import study_window


def entries(config: Config) -> list[Entry]:
    """Search with each template from sidebands of each width, at the larger injection."""
    window, (low, high) = study_window(config), config.mass.range
    ranges = {(max(low, window.lo - width), min(high, window.hi + width)) for width in config.study.sidebands}
    out = []
    for span in sorted({*ranges, (low, high)}):
        total = (window.lo - span[0]) + (span[1] - window.hi)
        for repetition in repetitions(injected(config, max(config.study.examples))):
            study = repetition.study.model_copy(update={"window": (window.lo, window.hi)})
            fitted = max(span[0], config.mass.fitted[0]), min(span[1], config.mass.fitted[1])
            mass = repetition.mass.model_copy(update={"range": span, "fit_range": fitted})
            narrow = repetition.model_copy(update={"mass": mass, "study": study})
            out += [
                Entry(
                    trial_of("search", narrow, method),
                    {"sidebands": total, "template": title_of(method, config), "seed": repetition.seed},
                )
                for method in config.study.templates
            ]
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw SIC at two rejections and its maximum."""
    title = f"{max(config.study.examples)} injected"
    return sic_panels(rows, "sidebands", "Width of both sidebands [GeV]", title=title)


STUDY = Study("SIC against the width of the sidebands", entries, numbers, panels)
