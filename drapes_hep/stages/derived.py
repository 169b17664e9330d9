"""What follows from the configuration of a search for several stages: pseudo-windows, another simulation."""

from __future__ import annotations

from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window

__all__ = ["needs_simulation", "pseudo_window"]


def needs_simulation(context: Context) -> bool:
    """Whether the template starts from another simulation: the configuration names its files then, and only then."""
    return context.config.template.source is not None


def pseudo_window(context: Context, window: Window) -> tuple[float, float] | None:
    """Return the pseudo-window of a window: as wide, in the nearest place with sidebands around, or None.

    It is half a width above the window, or below where the range ends; inside the fitted range, as its masses are drawn
    from the fit.
    """
    which = context.config.training.pseudo_window
    if which == "none" or (which == "one" and window != context.windows[len(context.windows) // 2]):
        return None
    width = window.hi - window.lo
    above = (window.hi + 0.5 * width, window.hi + 1.5 * width)
    below = (window.lo - 1.5 * width, window.lo - 0.5 * width)
    low, high = context.config.mass.fitted
    if above[1] <= high and above[1] + 0.5 * width <= window.range_hi:
        return above
    return below if below[0] >= low and below[0] - 0.5 * width >= window.range_lo else None
