"""Limits on simulated resonances along a line of masses.

drapes study limits-by-mass CONFIG --set limits.reference=100 \
    --set 'study.signals={3200.h5: [3200, 500, 100], 3500.h5: [3500, 500, 100]}'
"""

from __future__ import annotations

from drapes_hep.studies.signal_grid import SignalGridStudy, check_line, draw_limits

STUDY = SignalGridStudy("Limits on simulated resonances along a line of masses", draw_limits, check_line)
