"""The results of a search, as ``results.json`` holds them: the schema is docs/results.schema.json.

A number that does not exist is None, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drapes_hep.bumphunt.expectation import WindowHunt, WorkingPoint
from drapes_hep.bumphunt.toys import GlobalSignificance

__all__ = ["SCHEMA_VERSION", "global_record", "results_record", "results_schema", "window_record"]

SCHEMA_VERSION = 1


_GLOBAL = (
    "p_global", "z_global", "p_global_interval", "bound", "exceeding", "p_global_extrapolated", "z_global_extrapolated",
    "p_global_extrapolated_interval", "effective_trials", "effective_trials_interval", "best_window",
    "best_background_efficiency",
)  # fmt: skip


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
        "fitted_events": point.fitted_events,
    }


def window_record(hunt: WindowHunt, n_observed: int | None, quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return a window's entry.

    Parameters
    ----------
    hunt : WindowHunt
    n_observed : int or None
        Selected events in the window; None if blind.
    quality : mapping
        What ``quality.json`` of the window holds; in a blinded run nothing that its events decide.

    Returns
    -------
    dict
    """
    fit = hunt.fit
    return {
        "sr": [hunt.sr.lo, hunt.sr.hi],
        "n_observed": n_observed,
        "n_signal_truth": quality["n_signal_truth"],
        "fit": {
            "chi2": _number(fit.chi2),
            "ndof": fit.ndof,
            "p_value": _number(fit.p_value),
            "good": bool(fit.good),
            "parameters": dict(zip(fit.parameter_names, map(float, fit.parameters), strict=True)),
        },
        "template": quality["template"],
        "working_points": [_point(point) for point in hunt.working_points],
        "metrics": quality["metrics"],
    }


def global_record(significance: GlobalSignificance | str, toys: int) -> dict[str, Any]:
    """Return the entry of the whole search; all None where there is none, with the reason."""
    if isinstance(significance, str):
        return {**dict.fromkeys(_GLOBAL), "toys": toys, "reason": significance}
    beyond = significance.extrapolated
    return {
        "p_global": significance.p_global,
        "z_global": _number(significance.z_global),
        "p_global_interval": list(significance.p_global_interval),
        "bound": significance.bound,
        "exceeding": significance.exceeding,
        "p_global_extrapolated": None if beyond is None else beyond.p,
        "z_global_extrapolated": None if beyond is None else _number(beyond.z),
        "p_global_extrapolated_interval": None if beyond is None else list(beyond.p_interval),
        "effective_trials": None if beyond is None else beyond.trials,
        "effective_trials_interval": None if beyond is None else list(beyond.trials_interval),
        "best_window": [significance.best_window.lo, significance.best_window.hi],
        "best_background_efficiency": significance.best_efficiency,
        "toys": significance.toys,
        "reason": None,
    }


def results_record(
    accounting: Mapping[str, int | None], windows: Sequence[Mapping[str, Any]], whole: Mapping[str, Any], blind: bool
) -> dict[str, Any]:
    """Return what ``results.json`` holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "blind": blind,
        "accounting": dict(accounting),
        "windows": list(windows),
        "global": dict(whole),
    }


_NUMBER, _COUNT = {"type": "number"}, {"type": "integer", "minimum": 0}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_EFFICIENCY = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_INTERVAL = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_BOOLEAN = {"type": "boolean"}


def _record(**properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _field(meaning: str, schema: Mapping[str, Any], null: bool = False) -> dict[str, Any]:
    return {"description": meaning, **({"anyOf": [schema, {"type": "null"}]} if null else schema)}


def _value() -> dict[str, Any]:
    error = _field("Its standard error.", {"type": "number", "minimum": 0})
    return {"value": _field("The number.", _NUMBER), "error": error}


def _point_schema() -> dict[str, Any]:
    return _record(
        background_efficiency=_field("The cut: the part of the template that passes; 1 is no cut.", _EFFICIENCY),
        observed=_field("Events in the window that pass; null if blind.", _COUNT, null=True),
        expected=_field(
            "Background expected among them; null with too few fitted events or a poor fit.", _NUMBER, null=True
        ),
        expected_error=_field(
            "Standard error of the expectation alone, without Poisson fluctuation.", _NUMBER, null=True
        ),
        p_local=_field(
            "Probability of at least as many events under background alone, the expectation's error included; null"
            " without an expectation, or with one below 0.001 events.",
            _PROBABILITY,
            null=True,
        ),
        z_local=_field(
            "The same in one-sided standard deviations; null where nothing is observed.", _NUMBER, null=True
        ),
        expected_template=_field(
            "Cross-check, no part of the result: the expectation if the template were perfect, its efficiency times the"
            " inclusive expectation; null if blind.",
            _NUMBER,
            null=True,
        ),
        expected_template_error=_field("Its standard error.", _NUMBER, null=True),
        degree=_field("Degree of the polynomial in the efficiency; null for the inclusive point.", _COUNT, null=True),
        fitted_events=_field(
            "Events outside the window that pass and that this point's fit uses: all for the inclusive point, those of"
            " the sidebands' closure part after a cut. hunt.min_events is a limit on it.",
            _COUNT,
        ),
    )


def _fit_schema() -> dict[str, Any]:
    return _record(
        chi2=_field(
            "Likelihood ratio 2NLLR (sum of the bins' Poisson deviances), no Pearson chi2.", _NUMBER, null=True
        ),
        ndof=_field("Degrees of freedom.", {"type": "integer"}),
        p_value=_field("Of the 2NLLR, bins with few events allowed for.", _PROBABILITY, null=True),
        good=_field("Whether p_value is at least 0.001; a window of which it is not carries no expectation.", _BOOLEAN),
        parameters=_field(
            "Of the shape: ln_p1 is the logarithm of p_1 in docs/method.md, the others p_2, ...",
            {"type": "object", "additionalProperties": _NUMBER},
        ),
    )


def _template_schema() -> dict[str, Any]:
    estimate, pseudo = _record(**_value()), _record(**_value(), window=_field("The pseudo-window, GeV.", _INTERVAL))
    return _record(
        name=_field("How it was made: template.method.", {"type": "string"}),
        n=_field("Its events; null if blind.", _COUNT, null=True),
        strength=_field("Noise sigma / alpha that it started at; null from full noise.", _NUMBER, null=True),
        steps_left=_field("Steps of the sampler that were left there; null from full noise.", _COUNT, null=True),
        lost=_field(
            "Of a template of constituents, events that were generated and are none of it, by reason: see"
            " docs/run-directory.md; null for one of features, or if blind.",
            {"type": "object", "additionalProperties": _COUNT},
            null=True,
        ),
        auc_vs_truth=_field(
            "AUC against true background in the window; null without labels or if blind.", estimate, null=True
        ),
        auc_vs_sideband_closure=_field(
            "AUC, made at their masses, against held-out sideband events; if blind, those outside all windows.",
            estimate,
            null=True,
        ),
        auc_vs_pseudo_window=_field(
            "AUC against data in the pseudo-window (if blind, outside all windows); null where there is none.",
            pseudo,
            null=True,
        ),
    )


def _metrics_schema() -> dict[str, Any]:
    estimate = _record(**_value())
    sic = _record(
        **_value(),
        signal_efficiency=_field("Of the cut, true signal of the window.", _PROBABILITY),
        background_efficiency=_field("Of the cut, true background of the window.", _PROBABILITY),
    )
    return _record(
        auc=_field("Of true signal against true background in the window.", estimate, null=True),
        sic_100=_field("Signal efficiency over the root of background efficiency, at rejection 100.", sic, null=True),
        sic_1000=_field("The same at rejection 1000.", sic, null=True),
        sic_max=_field("The largest of cuts that enough background events pass.", sic, null=True),
    )


def _window_schema() -> dict[str, Any]:
    return _record(
        sr=_field("The window, GeV.", _INTERVAL),
        n_observed=_field("Selected events in it; null if blind.", _COUNT, null=True),
        n_signal_truth=_field("True signal among them; null without labels or if blind.", _COUNT, null=True),
        fit=_field("The inclusive fit outside the window (outside all windows if blind).", _fit_schema()),
        template=_field("Its background template.", _template_schema()),
        working_points=_field(
            "From loose to tight; the first is inclusive.", {"type": "array", "items": _point_schema(), "minItems": 1}
        ),
        metrics=_field("From labels; null without them or if blind.", _metrics_schema(), null=True),
    )


def _global_schema() -> dict[str, Any]:
    return _record(
        p_global=_field(
            "(k + 1)/(n + 1), if k of n pseudo-experiments are as extreme as the data; null without them, if blind, or"
            " for a part of the search.",
            _PROBABILITY,
            null=True,
        ),
        z_global=_field("One-sided standard deviations of p_global; null if p_global is 1.", _NUMBER, null=True),
        p_global_interval=_field("95% interval of k/n (Clopper and Pearson).", _INTERVAL, null=True),
        bound=_field("Whether k is 0: p_global is then an upper bound, z_global a lower one.", _BOOLEAN, null=True),
        exceeding=_field("k, the pseudo-experiments that are as extreme as the data.", _COUNT, null=True),
        p_global_extrapolated=_field(
            "From the distribution of the pseudo-experiments' smallest p-values, 1 - (1 - p_local)^effective_trials;"
            " what to quote where k is small. null where p_global is, or none of them has a p-value.",
            _PROBABILITY,
            null=True,
        ),
        z_global_extrapolated=_field("The same in one-sided standard deviations.", _NUMBER, null=True),
        p_global_extrapolated_interval=_field(
            "Its 68% interval, from the number of pseudo-experiments alone.", _INTERVAL, null=True
        ),
        effective_trials=_field(
            "Independent searches whose smallest p-value would be distributed like theirs.",
            {"type": "number", "exclusiveMinimum": 0},
            null=True,
        ),
        effective_trials_interval=_field("Its 68% interval.", _INTERVAL, null=True),
        best_window=_field("The window of the smallest p_local, GeV.", _INTERVAL, null=True),
        best_background_efficiency=_field("Its cut.", _EFFICIENCY, null=True),
        toys=_field("n, the pseudo-experiments.", _COUNT),
        reason=_field("Why p_global is null; null where it is not.", {"type": "string"}, null=True),
    )


def results_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of ``results.json``, every field with its meaning."""
    accounting = _record(
        requested=_field("Events in the files; null if blind.", _COUNT, null=True),
        processed=_field(
            "Events that the selection was given or that were set aside as not injected; null if blind.",
            _COUNT,
            null=True,
        ),
        lost=_field("The difference: 0, or the skim stops.", _COUNT),
    )
    top = _record(
        schema_version=_field("Of this layout.", {"const": SCHEMA_VERSION}),
        blind=_field("Whether data inside the windows were left uncounted.", _BOOLEAN),
        accounting=_field("Where the events went.", accounting),
        windows=_field("From low to high mass.", {"type": "array", "items": _window_schema(), "minItems": 1}),
        **{"global": _field("The search as a whole.", _global_schema())},
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of a drapes-hep search",
        "description": "Masses in GeV. A number that does not exist is null.",
        **top,
    }
