"""The spread of a result over searches of the same events with other seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from drapes_hep.bumphunt.working_points import WindowHunt
from drapes_hep.errors import InputError, RunDirectoryError
from drapes_hep.files import read_json

__all__ = ["SeedRecord", "SeedSpread", "check_same_search", "read_spreads", "seed_spreads"]


@dataclass(frozen=True)
class SeedSpread:
    """Of one window and cut.

    Attributes
    ----------
    window : str
    cut : float
    searches : int
        That expect a count there.
    empty : int
        Of them, those that observe nothing, whose z has no value.
    z_mean, z_spread : float or None
        Mean and standard deviation; None with fewer than two searches, or if one observes nothing.
    excess_spread : float or None
        Standard deviation of observed minus expected, events; None with fewer than two searches.
    inside : int
        Events in the window without a cut: the same in all.
    """

    window: str
    cut: float
    searches: int
    empty: int
    z_mean: float | None
    z_spread: float | None
    excess_spread: float | None
    inside: int


def seed_spreads(records: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[SeedSpread, ...]:
    """Summarise searches.

    Parameters
    ----------
    records : sequence of sequences of mapping
        Rows of each search, at least one: ``window``, ``cut`` (1 among them), ``observed``, ``expected``, ``z_local``.

    Returns
    -------
    tuple of SeedSpread
        One for each window and cut, in their order in the first search.
    """
    inside = {row["window"]: int(row["observed"]) for row in records[0] if row["cut"] == 1.0}
    out = []
    for point in records[0]:
        place = point["window"], point["cut"]
        rows = [row for record in records for row in record if (row["window"], row["cut"]) == place]
        rows = [row for row in rows if row["expected"] is not None]
        z = np.array([row["z_local"] for row in rows if row["z_local"] is not None])
        excess = np.array([row["observed"] - row["expected"] for row in rows])
        empty, several = len(rows) - len(z), len(rows) > 1
        mean, spread = (float(z.mean()), float(z.std(ddof=1))) if several and not empty else (None, None)
        out.append(
            SeedSpread(
                *place, len(rows), empty, mean, spread, float(excess.std(ddof=1)) if several else None,
                inside[point["window"]],
            )
        )  # fmt: skip
    return tuple(out)


class _Record(pydantic.BaseModel, frozen=True, strict=True, allow_inf_nan=False):
    """What is read of ``seeds.json``."""

    points: tuple[SeedSpread, ...] = pydantic.Field(min_length=1)
    config: dict[str, Any]


@dataclass(frozen=True)
class SeedRecord:
    """What the study seeds found.

    Attributes
    ----------
    spreads : mapping of (str, float) to SeedSpread
        By window and cut.
    config : mapping
        Of the study.
    path : str
    """

    spreads: Mapping[tuple[str, float], SeedSpread]
    config: Mapping[str, Any]
    path: str


def read_spreads(path: str | Path) -> SeedRecord:
    """Read the record of the study seeds.

    Parameters
    ----------
    path : str or Path
        ``seeds.json``.

    Returns
    -------
    SeedRecord

    Raises
    ------
    InputError
        If it is no such record.
    """
    if not Path(path).is_file():
        raise InputError(str(path), "does not exist", "run drapes study seeds, and name its seeds.json in hunt.seeds")
    try:
        # as JSON: a list is then a tuple, a whole number a float
        record = _Record.model_validate_json(json.dumps(read_json(path)), strict=True)
    except (RunDirectoryError, pydantic.ValidationError, ValueError) as error:
        raise InputError(str(path), "is no record of the study seeds", "name its seeds.json in hunt.seeds") from error
    if any((each.z_mean is None) != (each.z_spread is None) for each in record.points):
        raise InputError(str(path), "has a mean without a spread", "name a seeds.json of the study seeds")
    return SeedRecord({(each.window, each.cut): each for each in record.points}, record.config, str(path))


def check_same_search(hunts: Sequence[WindowHunt], record: SeedRecord, difference: str | None) -> None:
    """Refuse the record of another search.

    Parameters
    ----------
    hunts : sequence of WindowHunt
    record : SeedRecord
    difference : str or None
        In what the configurations differ, in words.

    Raises
    ------
    InputError
        If they do, a window had another number of events, or the record is of other windows and cuts.
    """
    remedy = "run drapes study seeds with this configuration"
    if difference is not None:
        raise InputError(record.path, f"is of another search: {difference}", remedy)
    observed = {hunt.sr.name: hunt.working_points[0].observed for hunt in hunts}
    points = [each for each in record.spreads.values() if each.window in observed]
    for each in points:
        if each.inside != observed[each.window]:
            problem = f"is of other events: {each.inside} in the window {each.window}, here {observed[each.window]}"
            raise InputError(record.path, problem, remedy)
    searched = {(hunt.sr.name, point.background_efficiency) for hunt in hunts for point in hunt.working_points}
    if not searched <= set(record.spreads):
        raise InputError(record.path, "is not of all windows and cuts of this search", remedy)
