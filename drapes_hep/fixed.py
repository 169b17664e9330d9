"""Numbers that no key of the configuration sets, and that several modules need."""

from __future__ import annotations

__all__ = ["JET_HEADS", "LARGEST"]

JET_HEADS = 4
"""Attention heads of ``constituents.kinematics_network: deepsets``."""

LARGEST = 1e30
"""Largest value of a feature: its square overflows nowhere, and no physical quantity in GeV or rad comes near."""
