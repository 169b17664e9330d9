"""How much of a result is the luck of one training? The same events searched with other seeds.

drapes study seeds CONFIG --set study.seeds=10
"""

from __future__ import annotations

from drapes_hep.studies.seed_searches import SeedStudy

STUDY = SeedStudy("Spread of the results over seeds, of the same events")
