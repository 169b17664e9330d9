"""What `drapes limits` writes: a record, a table, and two figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from drapes_hep.bumphunt.signal_limits import CutLimits, Limit
from drapes_hep.config import Config
from drapes_hep.errors import counted
from drapes_hep.files import atomic_path, write_json
from drapes_hep.pipeline.provenance import makers
from drapes_hep.plots.limits import BandPoint, EfficiencyCurve, limit_bands, trained_efficiencies
from drapes_hep.plots.style import Stamp, efficiency_label
from drapes_hep.studies.limits import SignalLimits

__all__ = ["limits_table", "write_limits"]


def write_limits(limits: SignalLimits, folder: Path, config: Config) -> list[Path]:
    """Write the limits of a signal.

    Parameters
    ----------
    limits : SignalLimits
    folder : Path
    config : Config
        Of the search.

    Returns
    -------
    list of Path
        ``limits.json``, and ``limits`` and ``efficiency`` as PNG and PDF.
    """
    files = [folder / "limits.json"]
    write_json(files[0], {**_record(limits), "config": config.model_dump(mode="json"), **makers()})
    stamp = Stamp.from_config(config.plots, config.mass.sqrt_s)
    for name, figure in (("limits", _bands(limits, stamp)), ("efficiency", _efficiencies(limits, stamp))):
        for suffix in ("png", "pdf"):
            files.append(folder / f"{name}.{suffix}")
            with atomic_path(files[-1]) as temporary:
                figure.savefig(temporary, format=suffix, dpi=110)
    return files


def limits_table(limits: SignalLimits) -> str:
    """Write a table of the limits.

    Parameters
    ----------
    limits : SignalLimits

    Returns
    -------
    str
    """
    unit = "signal events" if limits.luminosity is None else "fb"
    lines = [
        f"{counted(limits.selected, 'event')} of the signal selected (acceptance {limits.acceptance:.3g} +-"
        f" {limits.acceptance_error:.1g}), {limits.inside:.0%} in the window {limits.window.name} GeV",
        f"upper limits at 95% CL, {unit}; efficiency from searches with {limits.injected[0]:g} to"
        f" {limits.injected[-1]:g} signal events",
        f"{'cut':>6}  {'observed':>9}  {'expected':>9}  {'68%':>17}  {'count: observed':>15}  {'expected':>9}",
    ]
    for cut in limits.cuts:
        line = f"{cut.background_efficiency:>6g}"
        if cut.fitted is None:
            line += f"  {'-':>9}  {'-':>9}  {'-':>17}"
        else:
            values = [_text(limits, y) for y in (cut.fitted.observed, *cut.fitted.expected)]
            line += f"  {values[0]:>9}  {values[3]:>9}  {f'{values[2]} to {values[4]}':>17}"
        if cut.counted is not None:
            values = [_text(limits, y) for y in (cut.counted.observed, cut.counted.expected[2])]
            line += f"  {values[0]:>15}  {values[1]:>9}"
        lines.append(line + (f"  {cut.reason}" if cut.reason else ""))
    best = limits.best
    if best is None or best.fitted is None:
        lines.append("no limit is expected within the signals that were injected")
    else:
        lines.append(
            f"cut {best.background_efficiency:g} has the lowest expected limit: observed"
            f" {_text(limits, best.fitted.observed)}, expected {_text(limits, best.fitted.expected[2])} {unit}"
        )
        lines += [f"  without {source}: {_text(limits, events)}" for source, events in limits.budget]
    return "\n".join(lines)


def _text(limits: SignalLimits, events: float) -> str:
    if not np.isfinite(events):
        return f">{_scaled(limits, limits.injected[-1]):.3g}"
    bound = "<" if events <= limits.injected[0] else ""
    return f"{bound}{_scaled(limits, events):.3g}"


def _scaled(limits: SignalLimits, events: float) -> float:
    section = limits.cross_section(events)
    return events if section is None else section


def _record(limits: SignalLimits) -> dict[str, Any]:
    best = limits.best
    return {
        "window": [limits.window.lo, limits.window.hi],
        "mass": limits.mass,
        "selected": limits.selected,
        "acceptance": {"value": limits.acceptance, "error": limits.acceptance_error},
        "inside": limits.inside,
        "luminosity": limits.luminosity,
        "injected": list(limits.injected),
        "searches": limits.searches,
        "best": None if best is None else best.background_efficiency,
        "budget": [
            {"without": source, "events": events if np.isfinite(events) else None} for source, events in limits.budget
        ],
        "cuts": [
            {
                "background_efficiency": cut.background_efficiency,
                "events": _both(cut, 1.0),
                "cross_section": None if (fb := limits.cross_section(1.0)) is None else _both(cut, fb),
                "reason": cut.reason,
                "efficiency": None if efficiency is None else [each.tolist() for each in efficiency.trained],
            }
            for cut, efficiency in zip(limits.cuts, limits.efficiencies, strict=True)
        ],
    }


def _both(cut: CutLimits, unit: float) -> dict[str, Any]:
    fitted = _limit(cut.fitted, unit)
    if fitted is not None:
        fitted["expected_error"] = None if cut.fitted_error is None else unit * cut.fitted_error
    return {"spectra": fitted, "count": _limit(cut.counted, unit)}


def _limit(limit: Limit | None, unit: float) -> dict[str, Any] | None:
    """Return a limit; what is beyond the largest injection is null."""
    if limit is None:
        return None
    values = [unit * y if np.isfinite(y) else None for y in (limit.observed, *limit.expected)]
    return {"observed": values[0], "expected": values[1:]}


def _bands(limits: SignalLimits, stamp: Stamp) -> Figure:
    points = []
    for place, cut in enumerate(limits.cuts):
        shown, name = cut.fitted, efficiency_label(cut.background_efficiency)
        other = None if cut.counted is None else _scaled(limits, cut.counted.expected[2])
        if shown is None:
            points.append(BandPoint(place, name, None, (float("nan"),) * 5, other))
        else:
            expected = tuple(_scaled(limits, y) for y in shown.expected)
            points.append(BandPoint(place, name, _scaled(limits, shown.observed), expected, other))
    label = "Signal events after the selection" if limits.luminosity is None else r"$\sigma$ [fb]"
    cut_label = f"Cut in the window {limits.window.name} GeV"
    return limit_bands(points, label, stamp, x_label=cut_label, other="Median expected, count")


def _efficiencies(limits: SignalLimits, stamp: Stamp) -> Figure:
    curves = [
        EfficiencyCurve(cut.background_efficiency, efficiency.injected, np.stack(efficiency.trained))
        for cut, efficiency in zip(limits.cuts, limits.efficiencies, strict=True)
        if efficiency is not None
    ]
    return trained_efficiencies(curves, "Signal events after the selection", stamp)
