"""Distributions of generated jets and constituents in the window against true background, and how far they are.

arXiv:2310.06897, figure 5; the same for the templates of arXiv:2312.10130, section 4.3. To run it (the configuration
says how to make its files)::

    drapes study llv-jets configs/llv_small.yaml
"""

from __future__ import annotations

from drapes_hep.config import Config
from drapes_hep.studies.design import Entry, Study
from drapes_hep.studies.llv import comparisons, jet_figure, jet_lines


def entries(config: Config) -> list[Entry]:
    """Compare each generator's templates in the window."""
    return comparisons(config, "jets", in_sidebands=False)


STUDY = Study("jets and constituents of templates, in the window", entries, jet_lines, None, jet_figure)
