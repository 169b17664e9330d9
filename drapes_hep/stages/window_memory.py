"""What a window's stages take of memory, before they run: how many windows fit side by side."""

from __future__ import annotations

from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window

__all__ = ["window_memory"]


def window_memory(context: Context, window: Window) -> int:
    """Estimate the memory of a window's worker process in bytes."""
    return 2**28
