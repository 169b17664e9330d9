"""What a window's stages take of memory, estimated before they run: it decides how many windows fit side by side.

A worker process shares the imported libraries with the others. Of its own it has what it changes of them, and copies of
columns in double precision: of all events in the mass range, most of them in the training, and of the template's, most
of them in the sampler. Measured on the quickstart (170,000 events, five features), as private memory of a worker: 147
MiB at its start; at most 303 MiB in a window with 50,000 events and 151,000 template events, in ``generate``; at most
221 MiB in one with 9000 and 26,000, in ``train``. The numbers below give 382 and 275 MiB, a quarter more.
"""

from __future__ import annotations

import numpy as np

from drapes_hep.errors import DrapesError
from drapes_hep.events.skims import read_skim
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window
from drapes_hep.stages.derived import needs_simulation
from drapes_hep.templates.division import calibration_events, models_of

__all__ = ["window_memory"]

_FIXED = 170 * 2**20
"""Bytes of a process whatever its events."""
_COPIES, _TEMPLATE_COPIES, _SAMPLED_COPIES = 8, 14, 4
"""Copies of the columns of an event, of a template event that a model is making, and of one that is made."""


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
        events = len(mjj)
        if needs_simulation(context):
            events += len(read_skim(context.run.simulation, ("mjj",)))
    except DrapesError:  # the stages say what is wrong with the skim, or that there is none
        return _FIXED
    config = context.config
    models, calibration = len(models_of(config)), calibration_events(config)
    share = 1.0 if models == 1 else 1.0 - 1.0 / models
    template = share * config.template.oversample * int(window.in_signal_region(mjj).sum())
    # mass, weight and identity, too
    row = 8 * (len(config.features) + 3)
    sampled = _SAMPLED_COPIES * models * (template + calibration) + _TEMPLATE_COPIES * max(template, calibration)
    return _FIXED + int(row * (_COPIES * events + sampled))
