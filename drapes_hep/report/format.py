"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from drapes_hep.report.run_files import Estimate, Point, estimate

__all__ = ["cut", "integer", "null", "optional_integer", "plus_minus", "power", "sic", "signed", "step", "why"]


def null(reason: str = "") -> Markup:
    """Write a number that does not exist."""
    note = Markup(" <small>{}</small>").format(reason) if reason else Markup("")
    return Markup('<span class="null">–{}</span>').format(note)


def power(value: float, digits: int = 2) -> Markup:
    """Write a number, a large or small one in powers of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return Markup(escape(f"{value:.{digits + 1}g}" if abs(value) < 1000 else f"{value:.0f}"))
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa, str(int(exponent)).replace("-", "−"))


def signed(value: float, digits: int = 2) -> str:
    """Write a number that may be negative, with a minus instead of a hyphen."""
    return f"{value:.{digits}f}".replace("-", "−")


def integer(value: float) -> str:
    """Write a count, with a narrow no-break space between thousands, as the SI wants it."""
    return f"{value:,.0f}".replace(",", "\u202f")


def optional_integer(value: float | None, reason: str = "") -> Markup | str:
    """Write a count that may not exist."""
    return null(reason) if value is None else integer(float(value))


def plus_minus(value: Estimate, digits: int = 3, reason: str = "") -> Markup:
    """Write a number with its uncertainty."""
    numbers = estimate(value)
    if numbers is None:
        return null(reason)
    error = "" if numbers[1] is None else f" ± {numbers[1]:.{digits}f}"
    return Markup(escape(f"{numbers[0]:.{digits}f}{error}"))


def sic(value: Estimate) -> Markup:
    """Write a significance improvement and the signal efficiency that it is for."""
    text = plus_minus(value, 1, "too few background events")
    if isinstance(value, Mapping) and value.get("value") is not None and value.get("signal_efficiency") is not None:
        efficiency = float(value["signal_efficiency"])
        return Markup("{} <small class=soft>(ε<sub>S</sub> {})</small>").format(text, f"{efficiency:.2f}")
    return text


def cut(point: Point) -> str:
    """Name a working point by its background efficiency."""
    efficiency = float(point["background_efficiency"])
    return "1 (inclusive)" if efficiency >= 1 else f"{efficiency:g}"


def step(name: str, config: Mapping[str, Any]) -> Markup | str:
    """Name a step of the cut flow, those of ``processors/dijets.py`` with their thresholds.

    Parameters
    ----------
    name : str
        As ``skim.json`` spells it; one that is not known (a user's own) is given as it is.
    config : mapping
        The run's configuration.
    """
    selection, mass = config.get("selection") or {}, (config.get("mass") or {}).get("range")
    pt, eta, undefined = (selection.get(key) for key in ("leading_pt", "abs_eta_max", "undefined"))
    texts: dict[str, Markup | str] = {
        "in_files": "in the files",
        "not_injected": "signal not injected",
        "read": "before the selection",
        "golden_json": "golden JSON",
        "trigger": "trigger",
        "two_jets": "two jets",
        "defined": "all features defined",
    }
    if pt is not None:
        texts["leading_pt"] = Markup("leading jet p<sub>T</sub> &gt; {} GeV").format(f"{float(pt):g}")
    if eta is not None:
        texts["abs_eta"] = f"both jets |η| < {float(eta):g}"
    if mass is not None:
        low, high = (f"{float(edge):g}" for edge in mass)
        texts["mass_range"] = Markup("{} ≤ m<sub>JJ</sub> &lt; {} GeV").format(low, high)
    if isinstance(undefined, int | float):
        texts["defined"] = f"undefined features set to {undefined:g}"
    if name.startswith("undefined_"):
        return Markup("<code>{}</code> undefined").format(name.removeprefix("undefined_"))
    return texts.get(name, name.replace("_", " "))


def why(point: Point, key: str, blind: bool) -> str:
    """Return why a number of a working point is null, if known."""
    if key == "observed":
        return "blinded" if blind else ""
    if point.get("expected") is None:
        return "too few events outside the window, or a poor inclusive fit"
    if key in {"p_local", "z_local"}:
        if point.get("observed") is None:
            return "blinded" if blind else "no observed value is quoted"
        if key == "z_local" and point.get("p_local") is not None:
            return "p is 1"
    return ""
