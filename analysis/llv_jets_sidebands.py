"""Distributions of generated jets and constituents in the sidebands against background that trained nothing.

arXiv:2310.06897, figure 4. To run it (the configuration
says how to make its files)::

    drapes study llv-jets-sidebands configs/llv_small.yaml
"""

from __future__ import annotations

from drapes_hep.config import Config
from drapes_hep.studies.design import Entry, Study
from drapes_hep.studies.llv import comparisons, jet_figure, jet_lines


def entries(config: Config) -> list[Entry]:
    """Compare each generator's template from noise in the sidebands."""
    return comparisons(config, "jets", in_sidebands=True)


STUDY = Study("jets and constituents of templates, in the sidebands", entries, jet_lines, None, jet_figure)
