"""Numbers that no key of the configuration sets, and that several modules need."""

from __future__ import annotations

__all__ = ["JET_HEADS", "LARGEST", "MASS_R2", "MOST_CALIBRATION", "QUALITY_ENSEMBLE"]

JET_HEADS = 4
"""Attention heads of ``constituents.kinematics_network: deepsets``."""

LARGEST = 1e30
"""Largest value of a feature: its square overflows nowhere, and no physical quantity in GeV or rad comes near."""

MASS_R2 = 0.75
"""Fraction of the variance of ln m_JJ from which on the classifier's features give m_JJ away: see
:mod:`drapes_hep.stages.resonant`."""

MOST_CALIBRATION = 10_000_000
"""Most events of a model that set cuts: they are held in memory, some 100 bytes each."""

QUALITY_ENSEMBLE = 2
"""Classifiers a fold where a template is compared with true events. On two windows of 13,000 to 20,000 events each,
where the AUC's uncertainty is 0.003, a third raises it by 0.0007, eight by up to 0.0016, and a single one lowers it by
0.002 to 0.003. Fewer trees or leaves save no more than a sixth of the seconds, as the boosting stops early."""
