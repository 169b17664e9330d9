"""What the report of a blinded run says of the signal that could be discovered."""

from __future__ import annotations

from typing import Any

from drapes_hep.report.format import cut, null, plus_minus
from drapes_hep.report.run_files import Estimate, RunFiles, estimate

__all__ = ["SENSITIVITY_NOTE", "sensitivity_rows"]

Row = dict[str, Any]

SENSITIVITY_NOTE = (
    "Signal events in the window, after the cut, for which the median local significance after unblinding is 3σ and 5σ,"
    " computed from the events outside all windows. They are those of a signal entirely inside the window; one that"
    " extends into the sidebands raises the expectation and needs more. The error once unblinded is that of the"
    " expected background when only this window is left out of the fit. The errors come from the error of the expected"
    " background above. A cut is better than none for a signal of which a larger fraction passes than the break-even"
    " efficiency."
)


def sensitivity_rows(run: RunFiles) -> list[Row]:
    """Return the sensitivity of each window and cut; nothing if the run is not blinded, or of an earlier version."""
    rows: list[Row] = []
    for files in run.windows if run.blind else ():
        for i, point in enumerate(files.points):
            record = point.get("sensitivity")
            if record is None:
                continue
            ratio = record["break_even_efficiency"]
            rows.append(
                {
                    "first": i == 0,
                    "window": files.title,
                    "cut": cut(point),
                    "error": _events(record["expected_error"], record["reason"]),
                    "z3": _events(record["signal_z3"]),
                    "z5": _events(record["signal_z5"]),
                    "ratio": null() if ratio is None else f"{float(ratio):.2g}",
                }
            )
    return rows


def _events(value: Estimate, reason: str | None = None) -> Any:
    """Write a number of events, large ones without decimals."""
    numbers = estimate(value)
    return plus_minus(value, 1 if numbers is None or numbers[0] < 100 else 0, reason or "")
