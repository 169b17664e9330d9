"""What weakens a result, pointed out by fixed rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from drapes_hep import plots
from drapes_hep.errors import counted
from drapes_hep.pipeline.execution import mixed_modules
from drapes_hep.report.extract import fit_p, quality_points
from drapes_hep.report.format import cut
from drapes_hep.report.run_files import RunFiles

__all__ = ["checks"]

AUC_TOLERANCE = 0.02
"""Distance of a template's AUC from 0.5 that is pointed out, if it is also three standard errors."""
POOR_FIT = 0.05
LOST = 0.02
"""Part of the generated events whose loss is pointed out."""
SCULPTING = 3.0
"""Standard deviations between the two sidebands' passing fractions that are pointed out."""


def checks(run: RunFiles, passed: Sequence[plots.Passing]) -> list[str | Markup]:
    """Return one sentence for each rule that something breaks.

    Parameters
    ----------
    run : RunFiles
    passed : sequence of Passing
        Of all windows.

    Returns
    -------
    list of str or Markup
    """
    out: list[str | Markup] = []
    accounting = run.results.get("accounting") or {}
    if accounting.get("lost"):
        out.append(f"{counted(accounting['lost'], 'event was', 'events were')} requested and not processed.")
    differ: list[str | Markup] = []
    poor: list[str | Markup] = []
    missing: list[str | Markup] = []
    sculpted: list[str | Markup] = []
    lost: list[str | Markup] = []
    for files, quality in zip(run.windows, quality_points(run), strict=True):
        differ += [f"{files.title} GeV from {words}" for words in _differences(quality)]
        reasons = {name: int(count) for name, count in (files.template.get("lost") or {}).items() if count}
        generated = int(files.template.get("n") or 0) + sum(reasons.values())
        if sum(reasons.values()) > LOST * generated:
            words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in reasons.items())
            lost.append(f"{files.title} GeV, {sum(reasons.values())} of {generated}: {words}")
        p = fit_p(run, files)
        if p is not None and p < POOR_FIT:
            poor.append(f"{files.title} GeV, p = {p:.2g}")
        null = [cut(q) for q in files.points if q.get("p_local") is None]
        if null and not run.blind:
            missing.append(Markup("{} GeV at ε<sub>B</sub> = {}").format(files.title, ", ".join(null)))
        apart = _sculpting([q for q in passed if q.window == files.sr and q.region != "window"])
        if apart:
            sculpted.append(f"{files.title} GeV, {', '.join(apart)}")
    for points, words in (
        (differ, f"The template differs (AUC more than {AUC_TOLERANCE:g} and three standard errors from 0.5)"),
        (lost, "Generated events that are not in the template, whose shape they may bend"),
        (poor, f"Poor inclusive fit (p under {POOR_FIT:g})"),
        (missing, "No p-value"),
        (
            sculpted,
            f"The two sidebands pass a cut unlike each other (by more than {SCULPTING:g}σ), which the fit after the"
            " cut has to take up",
        ),
    ):
        if points:
            out.append(Markup("{}: {}.").format(words, Markup("; ").join(points)))
    dirty = [
        name for git, names in run.made_by("git") if isinstance(git, Mapping) and not git.get("clean") for name in names
    ]
    if dirty:
        which = "this" if len(dirty) == len(run.stages) else ", ".join(dirty)
        out.append(f"The code had uncommitted changes when {which} {'were' if ',' in which else 'was'} run.")
    mixed = mixed_modules(run.directory, list(run.stages))
    if mixed:
        listed = ", ".join(mixed[:3]) + (" and others" if len(mixed) > 3 else "")
        out.append(f"Not all stages were run by the same code: {listed} changed between them.")
    return out


def _differences(quality: plots.QualityPoint) -> list[str]:
    """Name the samples that a classifier tells from the template."""
    out = []
    for area, words in (
        (quality.truth, "true background"),
        (quality.sidebands, "held-out sidebands"),
        (quality.pseudo, "data in the pseudo-window"),
    ):
        if area is None:
            continue
        away, error = abs(area[0] - 0.5), area[1] or 0.0
        if away > AUC_TOLERANCE and away > 3 * error:
            out.append(f"{words}, AUC {area[0]:.3f}")
    return out


def _sculpting(sidebands: Sequence[plots.Passing]) -> list[str]:
    """Name the cuts that a window's two sidebands pass unlike each other."""
    out = []
    for efficiency in sorted({q.background_efficiency for q in sidebands}, reverse=True):
        sides = [q for q in sidebands if q.background_efficiency == efficiency]
        if len(sides) != 2 or min(q.total for q in sides) < 1 or sum(q.passed for q in sides) < 10:
            continue
        pooled = sum(q.passed for q in sides) / sum(q.total for q in sides)
        spread = math.sqrt(max(pooled * (1 - pooled), 1e-300) * sum(1 / q.total for q in sides))
        z = abs(sides[1].passed / sides[1].total - sides[0].passed / sides[0].total) / spread
        if z > SCULPTING:
            out.append(f"{z:.0f}σ at {efficiency:g}")
    return out
