"""The uncertainties of the headline's significance, beside it."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from drapes_hep.bumphunt.budget import significance_budget
from drapes_hep.report.extract import best
from drapes_hep.report.format import cut, null, signed
from drapes_hep.report.run_files import Point, RunFiles, WindowFiles

__all__ = ["budget_rows", "budget_title"]

Row = dict[str, Any]

_NULLS = "template and trainings, from null searches"
_UNMEASURED = "drapes study calibration measures it"
_SEEDS = "other seeds: no error of the expectation, in no z above"
_ONE_SEED = "drapes study seeds measures it"


def budget_title(run: RunFiles) -> str | None:
    """Return what the budget is of; None where no count is quoted."""
    leading = best(run)
    if leading is None:
        return None
    return f"Window {leading[0].title} GeV, background efficiency {cut(leading[1])}"


def budget_rows(run: RunFiles) -> list[Row]:
    """Return the sources of uncertainty of the largest local significance, each with z up to it."""
    leading = best(run)
    if leading is None:
        return []
    files, point = leading
    spurious = _spurious(files, point)
    error, calibrated = float(point["expected_error"]), point.get("calibrated")
    fit = math.sqrt(max(error**2 - (spurious or 0.0) ** 2, 0.0))
    sources = [("fit of the mass spectrum and of the cut's efficiency", fit)]
    if spurious is not None:
        sources.append(("mass function (spurious signal)", spurious))
    if calibrated is not None:
        sources.append((_NULLS, math.sqrt(max(float(calibrated["expected_error"]) ** 2 - error**2, 0.0))))
    lines = significance_budget(float(point["observed"]), float(point["expected"]), sources)
    rows = [
        {
            "source": line.source,
            "deviation": f"{line.deviation:.1f}",
            "z": null("p is 1") if line.z is None else signed(line.z),
        }
        for line in lines
    ]
    if spurious is None:
        rows.append({"source": "mass function (spurious signal)", "deviation": null("not assessed"), "z": null()})
    if calibrated is None:
        rows.append({"source": _NULLS, "deviation": null(_UNMEASURED), "z": null()})
    return [*rows, _over_seeds(point)]


def _over_seeds(point: Point) -> Row:
    """Return what searches of the same events with other seeds gave."""
    spread = point.get("seeds")
    if float(point["background_efficiency"]) >= 1:
        return {"source": _SEEDS, "deviation": null("nothing is trained without a cut"), "z": null()}
    if spread is None or spread["excess_spread"] is None:
        return {"source": _SEEDS, "deviation": null(_ONE_SEED), "z": null()}
    z = null(f"{spread['empty']} of {spread['searches']} observe nothing")
    if spread["z_mean"] is not None:
        z = Markup(
            f"{signed(float(spread['z_mean']))} ± {float(spread['z_spread']):.2f} in {spread['searches']} searches"
        )
    return {"source": _SEEDS, "deviation": f"{float(spread['excess_spread']):.1f}", "z": z}


def _spurious(files: WindowFiles, point: Point) -> float | None:
    """Return the spurious signal at a cut, in events; None if it is not assessed."""
    signal = files.result.get("spurious_signal")
    if signal is None or signal["events"] is None:
        return None
    inclusive = files.points[0].get("expected")
    return abs(float(signal["events"])) * float(point["expected"]) / float(inclusive) if inclusive else None
