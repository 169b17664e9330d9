"""Background rejection against signal efficiency, of templates and references.

arXiv:2312.10130, figures 4 and 17. To run it::

    drapes study roc configs/studies.yaml
"""

from __future__ import annotations

from drapes_hep.config import Config
from drapes_hep.studies.design import Entry, Study, curve_lines, efficiency_panels, searches

REFERENCES = ("supervised", "over_idealised", "idealised", "cwola_hunting")


def entries(config: Config) -> list[Entry]:
    """Search each repetition with each template and reference, at two injections."""
    return searches(config, config.study.examples, *REFERENCES)


STUDY = Study("ROC curves of templates and references, at two injections", entries, curve_lines, efficiency_panels)
