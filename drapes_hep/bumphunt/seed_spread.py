"""The spread of a result over searches of the same events with other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drapes_hep.bumphunt.working_points import WindowHunt
from drapes_hep.errors import InputError, RunDirectoryError
from drapes_hep.files import read_json

__all__ = ["SeedSpread", "check_same_events", "read_spreads", "seed_spreads"]


@dataclass(frozen=True)
class SeedSpread:
    """Of one window and cut.

    Attributes
    ----------
    window : str
    cut : float
    searches : int
        That quote a z there.
    z_mean, z_spread : float or None
        Mean and standard deviation; None with fewer than two.
    excess_spread : float or None
        Standard deviation of observed minus expected, events.
    inside : int
        Events in the window without a cut: the same in all.
    """

    window: str
    cut: float
    searches: int
    z_mean: float | None
    z_spread: float | None
    excess_spread: float | None
    inside: int


def seed_spreads(records: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[SeedSpread, ...]:
    """Summarise searches.

    Parameters
    ----------
    records : sequence of sequences of mapping
        Rows of each search: ``window``, ``cut``, ``observed``, ``expected`` and ``z_local``.

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
        z = np.array([row["z_local"] for row in rows if row["z_local"] is not None])
        excess = np.array([row["observed"] - row["expected"] for row in rows if row["z_local"] is not None])
        several = len(z) > 1
        out.append(
            SeedSpread(
                *place,
                len(z),
                float(z.mean()) if several else None,
                float(z.std(ddof=1)) if several else None,
                float(excess.std(ddof=1)) if several else None,
                inside[point["window"]],
            )
        )
    return tuple(out)


def read_spreads(path: str | Path) -> dict[tuple[str, float], SeedSpread]:
    """Read the record of the study seeds.

    Parameters
    ----------
    path : str or Path
        ``seeds.json``.

    Returns
    -------
    dict of (str, float) to SeedSpread
        By window and cut.

    Raises
    ------
    InputError
        If it is no such record.
    """
    try:
        record = read_json(path)
        spreads = [_spread(point) for point in record["points"]]
    except (RunDirectoryError, KeyError, TypeError, ValueError) as error:
        raise InputError(str(path), "is no record of the study seeds", "name its seeds.json in hunt.seeds") from error
    return {(spread.window, spread.cut): spread for spread in spreads}


def _spread(point: Mapping[str, Any]) -> SeedSpread:
    mean, spread, excess = (
        None if point[name] is None else float(point[name]) for name in ("z_mean", "z_spread", "excess_spread")
    )
    return SeedSpread(
        str(point["window"]), float(point["cut"]), int(point["searches"]), mean, spread, excess, int(point["inside"])
    )


def check_same_events(
    hunts: Sequence[WindowHunt], spreads: Mapping[tuple[str, float], SeedSpread], path: str | Path
) -> None:
    """Refuse spreads of other events.

    Parameters
    ----------
    hunts : sequence of WindowHunt
    spreads : mapping of (str, float) to SeedSpread
    path : str or Path
        Of them, for the message.

    Raises
    ------
    InputError
        If a window had another number of events.
    """
    for hunt in hunts:
        observed = hunt.working_points[0].observed
        for (window, _), spread in spreads.items():
            if window == hunt.sr.name and spread.inside != observed:
                raise InputError(
                    str(path),
                    f"is of other events: {spread.inside} in the window {window}, here {observed}",
                    "run drapes study seeds with this configuration",
                )
