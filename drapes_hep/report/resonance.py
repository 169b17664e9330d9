"""The resonance fit on the page: figures, rows, sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from drapes_hep import plots
from drapes_hep.report.format import cut, null, power, signed
from drapes_hep.report.pictures import Album, Picture
from drapes_hep.report.run_files import RunFiles, optional_array, reading

__all__ = [
    "best_resonance",
    "inclusive_goodness",
    "resonance_figures",
    "resonance_note",
    "resonance_points",
    "resonance_rows",
    "unsearched_text",
]

Fit = Mapping[str, Any]
"""A point of ``resonance`` in results.json."""


def resonance_points(run: RunFiles) -> list[Fit]:
    """Return the fits; none in a run of an earlier version, or if blind."""
    return [] if run.blind else list((run.results.get("resonance") or {}).get("points") or ())


def _largest(run: RunFiles) -> list[Fit]:
    """Return the fit of largest z of each window and cut that has one, in the order of the fits."""
    best: dict[tuple[tuple[float, ...] | None, float], Fit] = {}
    for fit in resonance_points(run):
        window = fit.get("window")
        key = None if window is None else tuple(map(float, window)), float(fit["background_efficiency"])
        if fit.get("z") is not None and (key not in best or float(fit["z"]) > float(best[key]["z"])):
            best[key] = fit
    return list(best.values())


def best_resonance(run: RunFiles, inclusive: bool = False) -> Fit | None:
    """Return the fit of largest z, among those without a cut if asked."""
    fits = [fit for fit in _largest(run) if not inclusive or fit.get("window") is None]
    return max(fits, key=lambda fit: float(fit["z"]), default=None)


def inclusive_goodness(run: RunFiles) -> str:
    """Write how well the inclusive spectrum is described with a signal, for a window where it is not without."""
    fits = [f for f in resonance_points(run) if f.get("window") is None and f.get("p_signal") is not None]
    if not fits:
        return ""
    best = max(fits, key=lambda fit: float(fit["p_signal"]))
    return f"with a signal of {float(best['mass']):.0f} GeV, p = {float(best['p_signal']):.2g}"


def _window(fit: Fit) -> str:
    window = fit.get("window")
    return "–" if window is None else f"{float(window[0]):g}–{float(window[1]):g}"


def unsearched_text(run: RunFiles) -> str:
    """Write the parts of the fitted range that are in no window; empty if there are none."""
    ranges = (run.results.get("resonance") or {}).get("unsearched") or ()
    return " and ".join(f"{float(low):g}–{float(high):g}" for low, high in ranges)


def resonance_note(run: RunFiles) -> Markup:
    """Describe the fit, or say why there is none."""
    record = run.results.get("resonance")
    if record is None:
        return Markup("This run is of a version without resonance fits.")
    if record.get("reason"):
        return Markup("No resonance was fitted: {}.").format(record["reason"])
    return Markup(
        "A signal ({}) is fitted together with the background over the whole fitted range, window included: to the"
        " inclusive spectrum, and to the events that pass and fail each cut. The significance is local and relies on"
        " the assumed shape. The window count above is the primary result."
    ).format(record.get("shape"))


def resonance_rows(run: RunFiles) -> list[dict[str, Any]]:
    """Return the fit of largest z of each window and cut, and the reason where none is quoted."""
    quoted = {(_window(fit), float(fit["background_efficiency"])): fit for fit in _largest(run)}
    every = dict.fromkeys((_window(fit), float(fit["background_efficiency"])) for fit in resonance_points(run))
    leading = best_resonance(run)
    rows: list[dict[str, Any]] = []
    for window, efficiency in every:
        fit = quoted.get((window, efficiency))
        row = {"window": window, "cut": cut({"background_efficiency": efficiency}), "best": False}
        if fit is None:
            names = ("mass", "signal", "z", "p_signal", "p_background")
            reasons = {
                str(f.get("reason"))
                for f in resonance_points(run)
                if (_window(f), float(f["background_efficiency"])) == (window, efficiency)
            }
            alone = reasons.pop() if len(reasons) == 1 else "see results.json"
            row |= {name: null(alone if name == "z" else "") for name in names}
        else:
            row |= {
                "best": fit is leading,
                "mass": f"{float(fit['mass']):.0f}",
                "signal": f"{signed(float(fit['signal']), 0)} ± {float(fit['signal_error']):.0f}",
                "z": signed(float(fit["z"])),
                **{name: power(float(fit[name])) for name in ("p_signal", "p_background")},
            }
        rows.append(row)
    return rows


def resonance_figures(run: RunFiles, album: Album) -> list[Picture]:
    """Draw z and the signal against mass, and the spectra of the largest z without and with a cut."""
    points = [
        plots.FittedMass(
            float(fit["mass"]),
            None if fit.get("window") is None else (float(fit["window"][0]), float(fit["window"][1])),
            float(fit["background_efficiency"]),
            *(None if fit.get(name) is None else float(fit[name]) for name in ("z", "signal", "signal_error")),
        )
        for fit in resonance_points(run)
    ]
    if all(point.z is None for point in points):
        return []
    ranges = [(float(low), float(high)) for low, high in run.results["resonance"].get("unsearched") or ()]
    figures = [
        album.add(
            "resonance_scan",
            plots.resonance_scan(points, run.stamp, unsearched=ranges),
            "Resonance fit against mass",
            "Masses in steps of half the resolution. Lines break where no result is quoted. A mass in several windows"
            " has a fit for each. No look-elsewhere effect is included.",
            ("results.json",),
            wide=True,
        )
    ]
    quoted = _largest(run)
    without = [fit for fit in quoted if fit.get("window") is None]
    cuts = [fit for fit in quoted if fit.get("window") is not None]
    for slug, title, fits in (
        ("resonance_inclusive", "Fit of the inclusive spectrum", without),
        ("resonance_selected", "Fit after a cut", cuts),
    ):
        drawn = _spectrum(run, max(fits, key=lambda fit: float(fit["z"]))) if fits else None
        if drawn is not None:
            words = "The largest significance; background and signal are fitted together, over the whole range."
            if slug == "resonance_selected":
                words += " All events are shown; in the sidebands, the fit uses only the closure events."
            sources = ("hunt.json", "results.json")
            figures.append(album.add(slug, plots.spectrum(drawn, run.stamp), title, words, sources))
    return figures


def _same(fit: Fit, other: Fit) -> bool:
    return all(fit.get(key) == other.get(key) for key in ("window", "background_efficiency", "mass"))


def _spectrum(run: RunFiles, fit: Fit) -> plots.Spectrum | None:
    """Return data and fit of a point of the scan, where its spectra were written."""
    with reading(run.directory.hunt):
        fitted = next((s for s in run.hunt.get("resonance") or () if _same(s, fit)), None)
        background, peak = (None if fitted is None else optional_array(fitted[k]) for k in ("background", "signal"))
        counts = _counts(run.hunt, fit)
    if background is None or peak is None or counts is None:
        return None
    notes = (
        rf"$m = \mathrm{{{float(fit['mass']):.0f}}}$ GeV, {float(fit['signal']):.0f} ± "
        f"{float(fit['signal_error']):.0f} signal events pass",
        rf"$z = \mathrm{{{float(fit['z']):.2f}}}$ (local)",
    )
    return plots.Spectrum(
        np.asarray(run.edges),
        counts,
        background + peak,
        background_efficiency=float(fit["background_efficiency"]),
        fit_p=fit.get("p_signal"),
        peak=peak,
        notes=notes,
    )


def _counts(hunt: Mapping[str, Any], fit: Fit) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return the counts that a fit is drawn with."""
    if fit.get("window") is None:
        return optional_array(hunt["counts"])
    windows: Sequence[Mapping[str, Any]] = hunt["windows"]
    for window in windows:
        for point in window["working_points"]:
            if window["sr"] == fit["window"] and point["background_efficiency"] == fit["background_efficiency"]:
                return optional_array(point["counts"])
    return None
