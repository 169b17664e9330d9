"""Are the p-values what they say? Whole searches of generated events without a signal, everything trained anew.

drapes study calibration CONFIG --set study.nulls=200
"""

from __future__ import annotations

from drapes_hep.studies.calibration import CalibrationStudy

STUDY = CalibrationStudy("Calibration of local and global p-values with retrained null searches")
