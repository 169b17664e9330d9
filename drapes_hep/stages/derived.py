"""What follows from the configuration of a search for several stages: pseudo-windows, models, another simulation."""

from __future__ import annotations

from typing import Any

from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window
from drapes_hep.templates.division import calibration_events, models_of

__all__ = ["models_key", "needs_simulation", "pseudo_window"]


def models_key(context: Context) -> dict[str, Any]:
    """Return what decides which models a window has, and what sets the cuts, beside the keys of a stage."""
    models = models_of(context.config)
    return {"models": len(models), "calibration events": calibration_events(context.config)}


def needs_simulation(context: Context) -> bool:
    """Whether the template starts from another simulation: the configuration names its files then, and only then."""
    return context.config.template.source is not None


def pseudo_window(context: Context, window: Window) -> tuple[float, float] | None:
    """Return the pseudo-window of a window: as wide, in the nearest place with sidebands around, or None.

    It is half a width above the window, or below where the range ends.
    """
    which = context.config.training.pseudo_window
    if which == "none" or (which == "one" and window != context.windows[len(context.windows) // 2]):
        return None
    width = window.hi - window.lo
    above = (window.hi + 0.5 * width, window.hi + 1.5 * width)
    below = (window.lo - 1.5 * width, window.lo - 0.5 * width)
    if above[1] + 0.5 * width <= window.range_hi:
        return above
    return below if below[0] - 0.5 * width >= window.range_lo else None
