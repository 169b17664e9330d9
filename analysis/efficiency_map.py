"""How much of simulated resonances passes the cuts, over the masses of their daughters.

drapes study efficiency-map CONFIG --set limits.reference=100 \
    --set 'study.signals={a.h5: [3500, 500, 100], b.h5: [3500, 300, 300]}'
"""

from __future__ import annotations

from drapes_hep.studies.signal_grid import SignalGridStudy, check_map, draw_efficiencies

STUDY = SignalGridStudy("Efficiency of the cuts over the masses of B and C", draw_efficiencies, check_map)
