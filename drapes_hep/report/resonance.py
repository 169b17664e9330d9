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
    "conditional_points",
    "included_resonance",
    "inclusive_goodness",
    "resonance_figures",
    "resonance_note",
    "resonance_points",
    "resonance_rows",
    "significance_text",
    "unsearched_text",
]

Fit = Mapping[str, Any]
"""A point of ``resonance`` in results.json."""


def resonance_points(run: RunFiles) -> list[Fit]:
    """Return the fits; none in a run of an earlier version, or if blind."""
    return [] if run.blind else list((run.results.get("resonance") or {}).get("points") or ())


def included_resonance(run: RunFiles) -> Fit | None:
    """Return the resonance that the second scan includes; None without one."""
    conditional = None if run.blind else (run.results.get("resonance") or {}).get("conditional")
    return None if conditional is None else conditional["included"]


def conditional_points(run: RunFiles) -> list[Fit]:
    """Return the fits with that resonance included; none without one."""
    return [] if included_resonance(run) is None else list(run.results["resonance"]["conditional"]["points"])


def _rank(fit: Fit) -> tuple[float, float]:
    return float(fit["z"]), float(fit.get("z_asymptotic") or 0.0)


def _key(fit: Fit) -> tuple[str, float]:
    return _window(fit), float(fit["background_efficiency"])


def _largest(fits: Sequence[Fit]) -> dict[tuple[str, float], Fit]:
    """Return the fit of largest z of each window and cut that has one, in the order of the fits."""
    best: dict[tuple[str, float], Fit] = {}
    for fit in fits:
        if fit.get("z") is not None and (_key(fit) not in best or _rank(fit) > _rank(best[_key(fit)])):
            best[_key(fit)] = fit
    return best


def significance_text(fit: Fit) -> Markup:
    """Write z, and how it was obtained if not from its asymptotic distribution."""
    if fit.get("toys") is None:
        return Markup(signed(float(fit["z"])))
    asymptotic = signed(float(fit["z_asymptotic"]))
    return Markup("{} (pseudo-experiments; asymptotic {})").format(signed(float(fit["z"])), asymptotic)


def best_resonance(run: RunFiles, inclusive: bool = False) -> Fit | None:
    """Return the fit of largest z, among those without a cut if asked."""
    fits = [f for f in _largest(resonance_points(run)).values() if not inclusive or f.get("window") is None]
    return max(fits, key=_rank, default=None)


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
    note = Markup(
        "A signal ({}) is fitted together with the background over the whole fitted range, window included: to the"
        " inclusive spectrum, and to the events that pass and fail each cut. The significance is local and relies on"
        " the assumed shape. The window count above is the primary result."
    ).format(record.get("shape"))
    included = included_resonance(run)
    if included is None:
        return note
    return note + Markup(
        " Fits of other masses do not have the resonance of {} GeV (z = {}) in their model: they show deficits beside"
        " it, or do not describe the spectrum and are not quoted. The last column and the dashed lines are from fits"
        " that include it, with and without the signal."
    ).format(f"{float(included['mass']):.0f}", significance_text(included))


def resonance_rows(run: RunFiles) -> list[dict[str, Any]]:
    """Return the fit of largest z of each window and cut, and the reason where none is quoted."""
    points, leading = resonance_points(run), best_resonance(run)
    quoted, included = _largest(points), _largest(conditional_points(run))
    every = dict.fromkeys(_key(fit) for fit in points)
    rows: list[dict[str, Any]] = []
    for window, efficiency in every:
        fit = quoted.get((window, efficiency))
        row = {"window": window, "cut": cut({"background_efficiency": efficiency}), "best": False}
        second = included.get((window, efficiency))
        row["included"] = null() if second is None else _with_mass(second)
        if fit is None:
            row |= _silent([f for f in points if _key(f) == (window, efficiency)])
        else:
            row |= {
                "best": fit is leading,
                "mass": f"{float(fit['mass']):.0f}",
                "signal": f"{signed(float(fit['signal']), 0)} ± {float(fit['signal_error']):.0f}",
                "z": significance_text(fit),
                **{name: power(float(fit[name])) for name in _GOODNESS},
            }
        rows.append(row)
    return rows


def _with_mass(fit: Fit) -> Markup:
    return Markup("{} at {} GeV").format(significance_text(fit), f"{float(fit['mass']):.0f}")


def _silent(fits: Sequence[Fit]) -> dict[str, Any]:
    """Return the cells of a window and cut without a result: the reason, and the best of the fits."""
    assessed = [fit for fit in fits if fit.get("p_signal") is not None]
    if not assessed:
        reasons = {str(fit.get("reason")) for fit in fits}
        alone = reasons.pop() if len(reasons) == 1 else "see results.json"
        return {name: null(alone if name == "z" else "") for name in ("mass", "signal", "z", *_GOODNESS)}
    best = max(assessed, key=lambda fit: float(fit["p_signal"]))
    poor = null("no mass describes the spectrum; the best is shown")
    goodness = {name: null() if best.get(name) is None else power(float(best[name])) for name in _GOODNESS}
    return {"mass": f"{float(best['mass']):.0f}", "signal": null(), "z": poor, **goodness}


_GOODNESS = ("p_signal", "p_background")


def resonance_figures(run: RunFiles, album: Album) -> list[Picture]:
    """Draw z and the signal against mass, and the spectra of the largest z without and with a cut."""
    included = {(*_key(fit), float(fit["mass"])): _optional(fit, "z") for fit in conditional_points(run)}
    points = [
        plots.FittedMass(
            float(fit["mass"]),
            None if fit.get("window") is None else (float(fit["window"][0]), float(fit["window"][1])),
            float(fit["background_efficiency"]),
            z=_optional(fit, "z"),
            signal=_optional(fit, "signal"),
            error=_optional(fit, "signal_error"),
            z_included=included.get((*_key(fit), float(fit["mass"]))),
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
            " has a fit for each. No look-elsewhere effect is included."
            + (" Dashed: with the strongest resonance included in the background." if included else ""),
            ("results.json",),
            wide=True,
        )
    ]
    quoted = _largest(resonance_points(run)).values()
    without = [fit for fit in quoted if fit.get("window") is None]
    cuts = [fit for fit in quoted if fit.get("window") is not None]
    for slug, title, fits in (
        ("resonance_inclusive", "Fit of the inclusive spectrum", without),
        ("resonance_selected", "Fit after a cut", cuts),
    ):
        drawn = _spectrum(run, max(fits, key=_rank)) if fits else None
        if drawn is not None:
            words = "The largest significance; background and signal are fitted together, over the whole range."
            if slug == "resonance_selected":
                words += " All events are shown; in the sidebands, the fit uses only the closure events."
            sources = ("hunt.json", "results.json")
            figures.append(album.add(slug, plots.spectrum(drawn, run.stamp), title, words, sources))
    return figures


def _optional(fit: Fit, name: str) -> float | None:
    return None if fit.get(name) is None else float(fit[name])


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
