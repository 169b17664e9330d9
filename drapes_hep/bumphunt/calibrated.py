r"""Calibrated p-values: local ones with the width and mean of the pulls that null searches have, and a global one.

Null searches (``drapes study calibration``, :mod:`drapes_hep.studies.calibration`) measure the width :math:`\kappa` and
the mean b of the pulls of every window and cut, with everything trained anew. The calibrated p-value is the local one
with the error

.. math:: s_{cal}^2 = s^2 + [\max(\kappa^2 - 1, 0) + b^2]\,(\mu + s^2),

s the error of the expectation :math:`\mu`, spurious signal included. A width below 1 makes no error smaller. That of
the whole search is :math:`1 - (1 - p_{min})^{N_{eff}}` with the smallest calibrated p-value of all windows and cuts and
the effective trials of the nulls' smallest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.bumphunt.working_points import WindowHunt, WorkingPoint
from drapes_hep.errors import InputError, RunDirectoryError
from drapes_hep.files import read_json

__all__ = [
    "CalibratedGlobal",
    "CalibratedPoint",
    "NullPulls",
    "PullWidth",
    "added_variance",
    "calibrated_global",
    "calibrated_points",
    "read_pulls",
]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PullWidth:
    """Pulls of one window and cut over null searches.

    Attributes
    ----------
    kappa, error : float
        Their width, and its standard error.
    mean : float
    """

    kappa: float
    error: float
    mean: float


@dataclass(frozen=True)
class NullPulls:
    """What null searches say.

    Attributes
    ----------
    nulls : int
    trials : float
        Effective number of independent windows and cuts, calibrated.
    points : mapping of (str, float) to PullWidth
        By window and cut; those that the nulls hardly ever quote are left out.
    events : float or None
        Of a null inside the first window, on average.
    config : mapping
        Of the study.
    """

    nulls: int
    trials: float
    points: Mapping[tuple[str, float], PullWidth]
    events: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibratedPoint:
    """The calibrated significance of one window and cut.

    Attributes
    ----------
    pulls : PullWidth
    error : float
        Of the expectation, calibrated.
    p_local : float
    z_local : float or None
        None where nothing is observed.
    """

    pulls: PullWidth
    error: float
    p_local: float
    z_local: float | None


@dataclass(frozen=True)
class CalibratedGlobal:
    """The calibrated significance of the whole search.

    Attributes
    ----------
    p_global, z_global : float or None
        None where ``reason`` says why.
    nulls : int
    trials : float
    reason : str or None
    difference : str or None
        In what the null searches differ from this search.
    """

    p_global: float | None
    z_global: float | None
    nulls: int
    trials: float
    reason: str | None
    difference: str | None = None


def added_variance(
    expected: npt.ArrayLike, error: npt.ArrayLike, kappa: npt.ArrayLike, mean: npt.ArrayLike
) -> FloatArray:
    """Compute what is added to the square of an expectation's error.

    Parameters
    ----------
    expected, error : array_like
    kappa, mean : array_like
        Of the pulls.

    Returns
    -------
    array
    """
    mu, s, k, b = (np.asarray(values, dtype=np.float64) for values in (expected, error, kappa, mean))
    return np.asarray((np.maximum(k**2 - 1.0, 0.0) + b**2) * (mu + s**2))


def read_pulls(path: str | Path) -> NullPulls:
    """Read the record of the study calibration.

    Parameters
    ----------
    path : str or Path
        ``calibration.json``.

    Returns
    -------
    NullPulls

    Raises
    ------
    InputError
        If it is no such record.
    """
    try:
        record = read_json(path)
        points = {
            (str(point["window"]), float(point["cut"])): PullWidth(
                float(point["kappa"]), float(point["kappa_error"]), float(point["mean_pull"])
            )
            for point in record["points"]
            if point["kappa"] is not None
        }
        events = record.get("events")
        pulls = NullPulls(
            int(record["nulls"]),
            float(record["calibrated_trials"]),
            points,
            None if events is None else float(events),
            dict(record.get("config") or {}),
        )
    except (RunDirectoryError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            str(path), "is no record of the study calibration", "name its calibration.json in hunt.calibration"
        ) from error
    values = [value for width in points.values() for value in (width.kappa, width.error, width.mean)]
    if not points or not np.isfinite([pulls.trials, *values]).all():
        raise InputError(
            str(path),
            "holds a width or mean that is not finite",
            "search more nulls, or leave out cuts that are silent",
        )
    return pulls


def calibrated_points(hunt: WindowHunt, pulls: NullPulls) -> tuple[CalibratedPoint | None, ...]:
    """Calibrate the working points of a window.

    Parameters
    ----------
    hunt : WindowHunt
    pulls : NullPulls

    Returns
    -------
    tuple of CalibratedPoint or None
        None for a point that quotes nothing, or of which the nulls say nothing.
    """
    return tuple(
        _calibrated(point, pulls.points.get((hunt.sr.name, point.background_efficiency)))
        for point in hunt.working_points
    )


def _calibrated(point: WorkingPoint, width: PullWidth | None) -> CalibratedPoint | None:
    if width is None or point.observed is None or point.expected is None or point.expected_error is None:
        return None
    if point.p_local is None:
        return None
    added = added_variance(point.expected, point.expected_error, width.kappa, width.mean)
    error = float(np.sqrt(point.expected_error**2 + added))
    local = local_significance(point.observed, point.expected, error)
    z = float(local.z)
    return CalibratedPoint(width, error, float(local.p), z if np.isfinite(z) else None)


def calibrated_global(
    hunts: Sequence[WindowHunt],
    points: Sequence[Sequence[CalibratedPoint | None]],
    pulls: NullPulls,
    difference: str | None = None,
) -> CalibratedGlobal:
    """Calibrate the whole search.

    Parameters
    ----------
    hunts : sequence of WindowHunt
        All windows of the search.
    points : sequence of sequences
        From :func:`calibrated_points`, a window each.
    pulls : NullPulls
    difference : str, optional
        In what the null searches differ from this search.

    Returns
    -------
    CalibratedGlobal
    """
    searched = {(hunt.sr.name, point.background_efficiency) for hunt in hunts for point in hunt.working_points}
    if searched != set(pulls.points):
        return CalibratedGlobal(
            None,
            None,
            pulls.nulls,
            pulls.trials,
            "the null searches do not calibrate all windows and cuts of this search",
            difference,
        )
    quoted = [point.p_local for window in points for point in window if point is not None]
    if not quoted:
        reason = "no working point has a p-value"
        return CalibratedGlobal(None, None, pulls.nulls, pulls.trials, reason, difference)
    log_rest = pulls.trials * float(np.log1p(-min(min(quoted), 1.0 - 1e-16)))
    p = float(-np.expm1(log_rest))
    # p and 1 - p, from the smaller of them
    z = -float(special.ndtri(p)) if p < 0.5 else float(special.ndtri(np.exp(log_rest)))
    return CalibratedGlobal(p, z, pulls.nulls, pulls.trials, None, difference)
