"""Numbers that no key of the configuration sets, and that both its checks and a network need."""

from __future__ import annotations

__all__ = ["JET_HEADS"]

JET_HEADS = 4
"""Attention heads of ``constituents.kinematics_network: deepsets``."""
