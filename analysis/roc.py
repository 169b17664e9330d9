"""Background rejection against signal efficiency, of templates and references.

arXiv:2312.10130, figures 4 and 17. To run it::

    drapes study roc configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, bands, curve_lines, searches, select

REFERENCES = ("supervised", "over_idealised", "idealised", "cwola_hunting")


def entries(config: Config) -> list[Entry]:
    """Search each repetition with each template and reference, at two injections."""
    return searches(config, config.study.examples, *REFERENCES)


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw a panel an injection."""
    return [
        Panel(
            r"Background rejection $1/\epsilon_B$",
            r"Signal efficiency $\epsilon_S$",
            bands(select(rows, injected=count), "background_rejection", "signal_efficiency", marked=False),
            f"{count} injected",
            log_x=True,
        )
        for count in config.study.examples
    ]


STUDY = Study("ROC curves of templates and references, at two injections", entries, curve_lines, panels)
