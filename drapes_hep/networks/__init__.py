"""Backbones: what turns (x, noise, condition) into numbers. They know neither schedules nor physics."""

from __future__ import annotations

from drapes_hep.networks.mlp import ResidualMLP

__all__ = ["ResidualMLP"]
