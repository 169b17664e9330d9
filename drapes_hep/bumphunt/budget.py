"""What a local significance is made of: each uncertainty of the expected count, and z with it and all before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.errors import FitError

__all__ = ["BudgetLine", "significance_budget"]


@dataclass(frozen=True)
class BudgetLine:
    """One source of uncertainty.

    Attributes
    ----------
    source : str
    deviation : float
        Standard deviation of observed minus expected that it causes, events.
    z : float or None
        Local significance with this source and all before it; None if p is 1.
    """

    source: str
    deviation: float
    z: float | None


def significance_budget(
    observed: float, expected: float, sources: Sequence[tuple[str, float]]
) -> tuple[BudgetLine, ...]:
    """Add the sources of uncertainty to the Poisson fluctuation of a count one by one.

    Parameters
    ----------
    observed, expected : float
        Events; the expectation is above 0.
    sources : sequence of (str, float)
        Name and standard deviation in events of each independent part of the expectation's error.

    Returns
    -------
    tuple of BudgetLine
        The Poisson fluctuation first.

    Raises
    ------
    FitError
        If a deviation is negative or not finite.
    """
    if not all(np.isfinite(size) and size >= 0 for _, size in sources):
        raise FitError("an uncertainty of the budget is negative or not finite")
    variance = 0.0
    lines: list[BudgetLine] = []
    for source, size in (("Poisson fluctuation", 0.0), *sources):
        variance += size**2
        z = float(local_significance([observed], [expected], [np.sqrt(variance)]).z[0])
        deviation = size if lines else float(np.sqrt(expected))
        lines.append(BudgetLine(source, deviation, z if np.isfinite(z) else None))
    return tuple(lines)
