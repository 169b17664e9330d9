"""Diffusion models: schedules, denoisers, samplers, training, model checkpoints. Independent of physics."""

from __future__ import annotations
