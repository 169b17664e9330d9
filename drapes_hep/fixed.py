"""Numbers that no key of the configuration sets, and that several modules need."""

from __future__ import annotations

__all__ = ["JET_HEADS", "LARGEST", "MASS_R2"]

JET_HEADS = 4
"""Attention heads of ``constituents.kinematics_network: deepsets``."""

LARGEST = 1e30
"""Largest value of a feature: its square overflows nowhere, and no physical quantity in GeV or rad comes near."""

MASS_R2 = 0.75
"""Fraction of the variance of ln m_JJ from which on the classifier's features give m_JJ away: see
:mod:`drapes_hep.stages.resonant`."""
