"""What weakens a result, pointed out by fixed rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from markupsafe import Markup

from drapes_hep import plots
from drapes_hep.errors import counted
from drapes_hep.fixed import MASS_R2
from drapes_hep.pipeline.execution import mixed_modules
from drapes_hep.report.extract import fit_p, quality_points
from drapes_hep.report.format import cut
from drapes_hep.report.mass_shape import mass_shape_points
from drapes_hep.report.resonance import inclusive_goodness, unsearched_text
from drapes_hep.report.run_files import RunFiles, WindowFiles

__all__ = ["checks"]

AUC_TOLERANCE = 0.02
"""Distance of a template's AUC from 0.5 that is pointed out, if it is also three standard errors."""
SPREAD = 0.04
"""Spread of a feature's mean over the models of the folds, in its standard deviations, that is pointed out.

A shift of a normal feature by as much gives an AUC of 0.511.
"""
POOR_FIT = 0.05
LOST = 0.02
"""Fraction of the generated events whose loss is pointed out."""
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
    lost = (run.results.get("accounting") or {}).get("lost")
    if lost:
        out.append(f"{counted(lost, 'event was', 'events were')} requested but not processed.")
    pairs = list(zip(run.windows, quality_points(run), strict=True))
    of_windows: tuple[tuple[str, Iterable[str | Markup]], ...] = (
        (
            f"The template differs (AUC more than {AUC_TOLERANCE:g} and three standard errors from 0.5)",
            (f"{files.title} GeV from {words}" for files, quality in pairs for words in _differences(quality)),
        ),
        (
            f"The models of the folds disagree (mean of a feature in the window: spread above {SPREAD:g} of its"
            " standard deviation), so the template is not to be trusted there",
            (words for files, _ in pairs for words in _disagreements(files)),
        ),
        (
            "Generated events rejected from the template, which may bias its shape",
            (words for files, _ in pairs for words in _losses(files)),
        ),
        (
            f"Poor inclusive fit (p under {POOR_FIT:g})",
            (words for files, _ in pairs for words in _poor_fit(run, files)),
        ),
        ("No p-value", (words for files, _ in pairs for words in _missing(run, files))),
        (
            "The classifier's features give m_JJ away, so it can learn the window and its cuts sculpt the spectrum"
            " (fraction of the variance of ln m_JJ in the sidebands that they explain)",
            (words for files, _ in pairs for words in _resonant(files)),
        ),
        (
            f"The two sidebands pass a cut unlike each other (by more than {SCULPTING:g}σ), which the fit after the"
            " cut has to take up",
            (words for files, _ in pairs for words in _sculpted(files, passed)),
        ),
    )
    for rule, broken in of_windows:
        if windows := Markup("; ").join(broken):
            out.append(Markup("{}: {}.").format(rule, windows))
    return [*out, *mass_shape_points(run), *_unsearched(run), *_remarks(run), *_uncommitted(run), *_mixed(run)]


def _resonant(files: WindowFiles) -> Iterator[Markup]:
    r2 = files.scored.get("mass_r2")
    if r2 is not None and r2 > MASS_R2:
        yield Markup("{} GeV, R<sup>2</sup> = {:.2f}").format(files.title, r2)


def _remarks(run: RunFiles) -> Iterator[str]:
    """Yield each remark of the templates' method once, with its windows."""
    titles: dict[str, list[str]] = {}
    for files in run.windows:
        for remark in files.template_record.get("remarks") or ():
            titles.setdefault(str(remark), []).append(files.title)
    for remark, windows in titles.items():
        yield f"{'; '.join(windows)} GeV: {remark}."


def _disagreements(files: WindowFiles) -> Iterator[str]:
    for feature, spread in ((files.quality.get("template") or {}).get("models_spread") or {}).items():
        if spread > SPREAD:
            yield f"{files.title} GeV, {feature}: {spread:.3f}"


def _losses(files: WindowFiles) -> Iterator[str]:
    reasons = {name: int(count) for name, count in (files.template.get("lost") or {}).items() if count}
    lost = sum(reasons.values())
    generated = int(files.template.get("n") or 0) + lost
    if lost > LOST * generated:
        words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in reasons.items())
        yield f"{files.title} GeV, {lost} of {generated}: {words}"


def _poor_fit(run: RunFiles, files: WindowFiles) -> Iterator[str]:
    p = fit_p(run, files)
    if p is not None and p < POOR_FIT:
        signal = inclusive_goodness(run)
        yield f"{files.title} GeV, p = {p:.2g}{f' ({signal})' if signal else ''}"


def _unsearched(run: RunFiles) -> Iterator[str]:
    """Yield what part of the fitted range is not searched with a cut."""
    if ranges := unsearched_text(run):
        fit = "nothing searches it" if run.blind else "only the resonance fit without a cut searches it"
        yield f"A part of the fitted range is in no window, {ranges} GeV: {fit}."


def _missing(run: RunFiles, files: WindowFiles) -> Iterator[Markup]:
    null = [cut(q) for q in files.points if q.get("p_local") is None]
    if null and not run.blind:
        yield Markup("{} GeV at ε<sub>B</sub> = {}").format(files.title, ", ".join(null))


def _sculpted(files: WindowFiles, passed: Sequence[plots.Passing]) -> Iterator[str]:
    apart = _sculpting([q for q in passed if q.window == files.sr and q.region != "window"])
    if apart:
        yield f"{files.title} GeV, {', '.join(apart)}"


def _uncommitted(run: RunFiles) -> Iterator[str]:
    dirty = [
        name for git, names in run.made_by("git") if isinstance(git, Mapping) and not git.get("clean") for name in names
    ]
    if dirty:
        which = "this" if len(dirty) == len(run.stages) else ", ".join(dirty)
        yield f"The code had uncommitted changes when {which} {'were' if ',' in which else 'was'} run."


def _mixed(run: RunFiles) -> Iterator[str]:
    mixed = mixed_modules(run.directory, list(run.stages))
    if mixed:
        listed = ", ".join(mixed[:3]) + (" and others" if len(mixed) > 3 else "")
        yield f"Not all stages were run by the same code: {listed} changed between them."


def _differences(quality: plots.QualityPoint) -> list[str]:
    """Name the samples that a classifier tells from the template."""
    out = []
    for auc, words in (
        (quality.truth, "true background"),
        (quality.sidebands, "held-out sidebands"),
        (quality.pseudo, "data in the pseudo-window"),
    ):
        if auc is None:
            continue
        away, error = abs(auc[0] - 0.5), auc[1] or 0.0
        if away > AUC_TOLERANCE and away > 3 * error:
            out.append(f"{words}, AUC {auc[0]:.3f}")
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
