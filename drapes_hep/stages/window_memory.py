"""What a window's stages take of memory, estimated before they run: it decides how many windows fit side by side.

A worker process shares the imported libraries with the others. Of its own it has what it changes of them and buffers
of fixed size, a few columns of all events in the mass range, and more of the template's: states of the sampler in
double precision, features, scores, the bins of the classifier.
"""

from __future__ import annotations

import numpy as np

from drapes_hep.errors import DrapesError
from drapes_hep.events.skims import read_skim
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window

__all__ = ["window_memory"]

_FIXED = 250 * 2**20
"""Bytes of a process whatever its events."""
_PER_VALUE = 20 * 8
"""Bytes for each column of an event, or of a template event: about 20 copies in double precision."""


def window_memory(context: Context, window: Window) -> int:
    """Estimate the most memory that the process of a window needs for itself.

    Parameters
    ----------
    context : Context
        After the skim.
    window : Window

    Returns
    -------
    int
        Bytes.
    """
    try:
        mjj = np.asarray(read_skim(context.run.events, ("mjj",))["mjj"])
    except DrapesError:  # the stages say what is wrong with the skim, or that there is none
        return _FIXED
    template = context.config.template.oversample * int(window.in_signal_region(mjj).sum())
    # mass, weight and identity, too
    columns = len(context.config.features) + 3
    return _FIXED + int(_PER_VALUE * columns * (len(mjj) + template))
