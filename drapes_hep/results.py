"""The results of a search, as ``results.json`` holds them: the schema is docs/results.schema.json.

A number that does not exist is None, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drapes_hep.bumphunt.expectation import WindowHunt, WorkingPoint
from drapes_hep.bumphunt.toys import GlobalSignificance

__all__ = ["SCHEMA_VERSION", "blinded_results", "global_record", "results_record", "results_schema", "window_record"]

SCHEMA_VERSION = 1


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _point(point: WorkingPoint) -> dict[str, Any]:
    return {
        "background_efficiency": point.background_efficiency,
        "observed": point.observed,
        "expected": _number(point.expected),
        "expected_error": _number(point.expected_error),
        "p_local": _number(point.p_local),
        "z_local": _number(point.z_local),
        "expected_template": _number(point.expected_template),
        "expected_template_error": _number(point.expected_template_error),
        "degree": point.degree,
        "sideband_events": point.sideband_events,
    }


def window_record(hunt: WindowHunt, n_observed: int | None, quality: Mapping[str, Any]) -> dict[str, Any]:
    """Give a window's entry.

    Parameters
    ----------
    hunt : WindowHunt
    n_observed : int or None
        Selected events in the window; None if blind.
    quality : mapping
        What ``quality.json`` of the window holds.

    Returns
    -------
    dict
    """
    fit = hunt.fit
    blind = n_observed is None
    template = {**quality["template"], "n": None} if blind else quality["template"]
    return {
        "sr": [hunt.sr.lo, hunt.sr.hi],
        "n_observed": n_observed,
        # the size of the template and the truth would tell what blinding hides
        "n_signal_truth": None if blind else quality["n_signal_truth"],
        "fit": {
            "chi2": _number(fit.chi2),
            "ndof": fit.ndof,
            "p_value": _number(fit.p_value),
            "good": bool(fit.good),
            "parameters": dict(zip(fit.parameter_names, map(float, fit.parameters), strict=True)),
        },
        "template": template,
        "working_points": [_point(point) for point in hunt.working_points],
        "metrics": None if blind else quality["metrics"],
    }


def global_record(found: GlobalSignificance | None, toys: int) -> dict[str, Any]:
    """Give the entry of the whole search; all None where there is none."""
    if found is None:
        names = ("p_global", "z_global", "p_global_interval", "bound", "best_window", "best_background_efficiency")
        return {**dict.fromkeys(names), "toys": toys}
    return {
        "p_global": found.p_global,
        "z_global": _number(found.z_global),
        "p_global_interval": list(found.p_global_interval),
        "bound": found.bound,
        "best_window": [found.best_window.lo, found.best_window.hi],
        "best_background_efficiency": found.best_efficiency,
        "toys": found.toys,
    }


def results_record(
    accounting: Mapping[str, int], windows: Sequence[Mapping[str, Any]], whole: Mapping[str, Any], blind: bool
) -> dict[str, Any]:
    """Give what ``results.json`` holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "blind": blind,
        "accounting": dict(accounting),
        "windows": list(windows),
        "global": dict(whole),
    }


def blinded_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Take out of results what blinding hides: counts in the windows, and all that follows from them.

    Parameters
    ----------
    results : mapping
        As :func:`results_record` gives it.

    Returns
    -------
    dict
        Of the same schema.
    """
    hidden = dict.fromkeys(("observed", "p_local", "z_local"))
    windows = [
        {
            **window,
            **dict.fromkeys(("n_observed", "n_signal_truth", "metrics")),
            "template": {**window["template"], "n": None},
            "working_points": [{**point, **hidden} for point in window["working_points"]],
        }
        for window in results["windows"]
    ]
    whole = {**dict.fromkeys(results["global"]), "toys": results["global"]["toys"]}
    return {**results, "blind": True, "windows": windows, "global": whole}


def results_schema() -> dict[str, Any]:
    """Give the JSON schema (draft 2020-12) of ``results.json``."""

    def record(**properties: object) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
        return {"anyOf": [schema, {"type": "null"}]}

    number, count = {"type": "number"}, {"type": "integer", "minimum": 0}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    efficiency = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    interval = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    estimate = nullable(record(value=number, error={"type": "number", "minimum": 0}))
    sic = nullable(
        record(value=number, error={"type": "number", "minimum": 0}, signal_efficiency=probability,
               background_efficiency=probability)
    )  # fmt: skip
    pseudo = nullable(record(value=number, error={"type": "number", "minimum": 0}, window=interval))
    point = record(
        background_efficiency=efficiency, observed=nullable(count), expected=nullable(number),
        expected_error=nullable(number), p_local=nullable(probability), z_local=nullable(number),
        expected_template=nullable(number), expected_template_error=nullable(number), degree=nullable(count),
        sideband_events=count,
    )  # fmt: skip
    window = record(
        sr=interval,
        n_observed=nullable(count),
        n_signal_truth=nullable(count),
        fit=record(
            chi2=nullable(number), ndof={"type": "integer"}, p_value=nullable(probability), good={"type": "boolean"},
            parameters={"type": "object", "additionalProperties": number},
        ),
        template=record(
            name={"type": "string"}, n=nullable(count), auc_vs_truth=estimate, auc_vs_sideband_closure=estimate,
            auc_vs_pseudo_window=pseudo,
        ),
        working_points={"type": "array", "items": point, "minItems": 1},
        metrics=nullable(record(auc=estimate, sic_100=sic, sic_1000=sic, sic_max=sic)),
    )  # fmt: skip
    whole = record(
        p_global=nullable(probability), z_global=nullable(number), p_global_interval=nullable(interval),
        bound=nullable({"type": "boolean"}), best_window=nullable(interval),
        best_background_efficiency=nullable(efficiency), toys=count,
    )  # fmt: skip
    top = record(
        schema_version={"const": SCHEMA_VERSION},
        blind={"type": "boolean"},
        accounting=record(requested=count, processed=count, lost=count),
        windows={"type": "array", "items": window, "minItems": 1},
        **{"global": whole},
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of a drapes-hep search",
        "description": "Masses in GeV. A number that does not exist is null.",
        **top,
    }
