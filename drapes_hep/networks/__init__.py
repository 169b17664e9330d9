"""Backbones: what turns (x, noise, condition) into numbers. Independent of schedules and physics."""

from __future__ import annotations

from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.epic import EPiC
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.networks.transformer import SetTransformer

__all__ = ["AttentiveDeepSets", "EPiC", "ResidualMLP", "SetTransformer"]
