"""Diffusion models: schedules, denoisers, samplers, training, model cards. Nothing here knows physics."""

from __future__ import annotations
