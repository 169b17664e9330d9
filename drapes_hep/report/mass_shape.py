"""What the report says of the mass shape: a table, lines below it, and points to check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

from drapes_hep.bumphunt.background import ALTERNATIVE_LEVEL, CHAIN, DESCRIBES_LEVEL, F_LEVEL, FLAGGED, WARNED
from drapes_hep.report.format import null, power, signed
from drapes_hep.report.run_files import RunFiles, WindowFiles

__all__ = ["mass_shape_lines", "mass_shape_points", "mass_shape_rows"]

Row = dict[str, Any]


def mass_shape_rows(run: RunFiles) -> list[Row]:
    """Return the spurious signal of each window; nothing for a run without them."""
    return [
        {
            "window": files.title,
            "events": null("no alternative fits") if signal["events"] is None else signed(float(signal["events"]), 0),
            "unblinded": _unblinded(files),
            "fraction": null() if signal["fraction"] is None else f"{float(signal['fraction']):.2f}",
            "shape": null() if signal["shape"] is None else escape(signal["shape"]),
            "alternatives": Markup("; ").join(map(_alternative, signal["alternatives"])),
        }
        for files, signal in _signals(run)
    ]


def _unblinded(files: WindowFiles) -> str | Markup:
    """Write the spurious signal that a blinded window will have once unblinded."""
    size = files.result.get("spurious_signal_unblinded")
    return null() if size is None else f"{float(size):.0f}"


def mass_shape_lines(run: RunFiles) -> list[Markup]:
    """Return the F-tests and the lower edge in a line each; nothing for a run without them."""
    record = run.results.get("background")
    if not record:
        return []
    tests = [
        Markup("{} → {}: {}").format(
            test["shape"],
            test["more"],
            "a fit did not converge"
            if test["p_value"] is None
            else Markup("F = {:.2f}, p = {}").format(float(test["f"]), power(float(test["p_value"]))),
        )
        for test in record["f_tests"]
    ]
    where = "outside all windows" if run.blind else "in the fitted range"
    lines = [
        Markup("F-tests {} (a p-value above {:g} ends the chain): {}. ").format(
            where, F_LEVEL, Markup("; ").join(tests)
        )
        + ("" if record["chosen"] is None else Markup("They end at {}.").format(record["chosen"]))
    ]
    edges = [
        Markup("{:g} GeV: {}").format(float(edge["low"]), power(float(edge["p_value"])))
        for edge in record["lower_edges"]
    ]
    lines.append(
        Markup("Goodness of fit (p-value) of {} by lower edge of the fit: {}.").format(
            record["shape"], Markup("; ").join(edges)
        )
    )
    return lines


def mass_shape_points(run: RunFiles) -> Iterator[Markup]:
    """Yield a sentence for each rule on the mass shape that something breaks."""
    signals = list(_signals(run))
    result = "blinded expectation" if run.blind else "result"
    rules = (
        ("flagged", f"The mass shape decides the {result} (spurious signal above {FLAGGED:g} standard deviations)"),
        ("warned", f"The mass shape weakens the {result} (spurious signal above {WARNED:g} standard deviations)"),
    )
    for verdict, rule in rules:
        windows = [
            Markup("{} GeV, {:.2f} ({})").format(files.title, float(signal["fraction"]), signal["shape"])
            for files, signal in signals
            if signal["verdict"] == verdict
        ]
        if windows:
            yield Markup("{}: {}.").format(rule, Markup("; ").join(windows))
    unassessed = [files.title for files, signal in signals if signal["verdict"] == "not assessed"]
    if unassessed:
        yield Markup("Spurious signal not assessed (no other mass shape has p above {:g}): {} GeV.").format(
            ALTERNATIVE_LEVEL, "; ".join(unassessed)
        )
    if record := run.results.get("background"):
        yield from _tests(record, float(run.edges[0]), blind=run.blind)


def _signals(run: RunFiles) -> Iterator[tuple[WindowFiles, Mapping[str, Any]]]:
    """Yield the windows that have a spurious signal, or the statement that it is not assessed."""
    for files in run.windows:
        signal = files.result.get("spurious_signal")
        if signal:
            yield files, signal


def _alternative(alternative: Mapping[str, Any]) -> Markup:
    """Write an alternative with its goodness of fit, and where it was fitted."""
    where = "" if alternative["window_included"] else " outside the window"
    return Markup("{}{}: p = {}").format(alternative["shape"], where, power(float(alternative["p_value"]), 1))


def _tests(record: Mapping[str, Any], low: float, *, blind: bool) -> Iterator[Markup]:
    shape, chosen = record["shape"], record["chosen"]
    resonance = "" if blind else ", unless a resonance is in the spectrum"
    if chosen is None:
        yield Markup("The F-tests of the mass shape have no result: a fit did not converge.")
    elif shape in CHAIN and CHAIN.index(chosen) > CHAIN.index(shape):
        p = next(float(t["p_value"]) for t in record["f_tests"] if t["shape"] == shape)
        yield Markup("The F-test prefers {} to the mass shape {} (p = {}){}.").format(
            chosen, shape, power(p), resonance
        )
    start = record["describes_from"]
    if start is None:
        yield Markup("The mass shape {} describes the spectrum from no lower edge (p at most {:g}){}.").format(
            shape, DESCRIBES_LEVEL, resonance
        )
    elif float(start) > low:
        yield Markup("The mass shape {} describes the spectrum (p above {:g}) only from {:g} GeV{}.").format(
            shape, DESCRIBES_LEVEL, float(start), resonance
        )
