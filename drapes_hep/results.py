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


def results_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of ``results.json``, every field with its meaning."""

    def record(**properties: object) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
        return {"anyOf": [schema, {"type": "null"}]}

    def field(meaning: str, schema: Mapping[str, Any], null: bool = False) -> dict[str, Any]:
        return {"description": meaning, **(nullable(schema) if null else schema)}

    number, count = {"type": "number"}, {"type": "integer", "minimum": 0}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    efficiency = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    interval = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    boolean = {"type": "boolean"}
    error = field("Its standard error.", {"type": "number", "minimum": 0})
    value = {"value": field("The number.", number), "error": error}
    estimate = record(**value)
    pseudo = record(**value, window=field("The pseudo-window, GeV.", interval))
    sic = record(
        **value,
        signal_efficiency=field("Efficiency of the cut for true signal in the window.", probability),
        background_efficiency=field("Efficiency of the cut for true background in the window.", probability),
    )
    point = record(
        background_efficiency=field("The cut: the fraction of the template that passes; 1 means no cut.", efficiency),
        observed=field("Events in the window that pass; null if blind.", count, null=True),
        expected=field(
            "Background expected among them; null with too few fitted events or a poor fit.", number, null=True
        ),
        expected_error=field("Standard error of the expectation, without Poisson fluctuation.", number, null=True),
        p_local=field(
            "Probability of at least as many events under the background-only hypothesis, including the error of the"
            " expectation; null without an expectation, or if it is below 0.001 events.",
            probability,
            null=True,
        ),
        z_local=field("p_local in one-sided standard deviations; null where nothing is observed.", number, null=True),
        expected_template=field(
            "Cross-check, not part of the result: the expectation if the template were perfect, its efficiency times"
            " the inclusive expectation; null if blind.",
            number,
            null=True,
        ),
        expected_template_error=field("Its standard error.", number, null=True),
        degree=field("Degree of the polynomial in the efficiency; null for the inclusive point.", count, null=True),
        fitted_events=field(
            "Events outside the window that pass and that this point's fit uses: all for the inclusive point, only"
            " the closure events of the sidebands after a cut. hunt.min_events is its minimum.",
            count,
        ),
    )
    fit = record(
        chi2=field(
            "Likelihood ratio 2NLLR (sum of the Poisson deviances of the bins), not a Pearson chi2.", number, null=True
        ),
        ndof=field("Degrees of freedom.", {"type": "integer"}),
        p_value=field("p-value of the 2NLLR, valid for bins with few events.", probability, null=True),
        good=field("Whether p_value is at least 0.001; if not, the window has no expectation.", boolean),
        parameters=field(
            "Parameters of the shape: ln_p1 is the logarithm of p_1 in docs/method.md, the others are p_2, ...",
            {"type": "object", "additionalProperties": number},
        ),
    )
    template = record(
        name=field("Template method: template.method.", {"type": "string"}),
        n=field("Number of template events; null if blind.", count, null=True),
        strength=field("Noise sigma / alpha at which generation starts; null for full noise.", number, null=True),
        steps_left=field("Remaining sampler steps at that noise; null for full noise.", count, null=True),
        lost=field(
            "For templates of constituents, generated events that are not part of it, by reason: see"
            " docs/run-directory.md; null for templates of features, or if blind.",
            {"type": "object", "additionalProperties": count},
            null=True,
        ),
        auc_vs_truth=field(
            "AUC against true background in the window; null without labels or if blind.", estimate, null=True
        ),
        auc_vs_sideband_closure=field(
            "AUC against held-out sideband events, generated at their masses; if blind, those outside all windows.",
            estimate,
            null=True,
        ),
        auc_vs_pseudo_window=field(
            "AUC against data in the pseudo-window (if blind, outside all windows); null where there is none.",
            pseudo,
            null=True,
        ),
    )
    metrics = record(
        auc=field("AUC of true signal against true background in the window.", estimate, null=True),
        sic_100=field(
            "Signal efficiency divided by the square root of background efficiency, at rejection 100.", sic, null=True
        ),
        sic_1000=field("The same at rejection 1000.", sic, null=True),
        sic_max=field("The maximum over cuts that enough background events pass.", sic, null=True),
    )
    window = record(
        sr=field("The window, GeV.", interval),
        n_observed=field("Selected events in it; null if blind.", count, null=True),
        n_signal_truth=field("True signal among them; null without labels or if blind.", count, null=True),
        fit=field("The inclusive fit outside the window (outside all windows if blind).", fit),
        template=field("Its background template.", template),
        working_points=field(
            "Working points from loose to tight; the first is inclusive.",
            {"type": "array", "items": point, "minItems": 1},
        ),
        metrics=field("Metrics from labels; null without labels or if blind.", metrics, null=True),
    )
    whole = record(
        p_global=field(
            "(k + 1)/(n + 1), if k of n pseudo-experiments are at least as extreme as the data; null without them, if"
            " blind, or if not all windows were hunted.",
            probability,
            null=True,
        ),
        z_global=field("One-sided standard deviations of p_global; null if p_global is 1.", number, null=True),
        p_global_interval=field("95% interval of k/n (Clopper and Pearson).", interval, null=True),
        bound=field("Whether k is 0: p_global is then an upper bound, z_global a lower one.", boolean, null=True),
        exceeding=field("k, the pseudo-experiments at least as extreme as the data.", count, null=True),
        p_global_extrapolated=field(
            "From the distribution of the smallest p-values of the pseudo-experiments, 1 - (1 -"
            " p_local)^effective_trials; to be quoted if k is small. null if p_global is, or if none of them has a"
            " p-value.",
            probability,
            null=True,
        ),
        z_global_extrapolated=field("p_global_extrapolated in one-sided standard deviations.", number, null=True),
        p_global_extrapolated_interval=field(
            "Its 68% interval, from the number of pseudo-experiments only.", interval, null=True
        ),
        effective_trials=field(
            "Number of independent searches whose smallest p-value has the same distribution.",
            {"type": "number", "exclusiveMinimum": 0},
            null=True,
        ),
        effective_trials_interval=field("Its 68% interval.", interval, null=True),
        best_window=field("The window of the smallest p_local, GeV.", interval, null=True),
        best_background_efficiency=field("The cut of the smallest p_local.", efficiency, null=True),
        toys=field("n, the number of pseudo-experiments.", count),
        reason=field("Why p_global is null; null if it is not.", {"type": "string"}, null=True),
    )
    accounting = record(
        requested=field("Events in the files; null if blind.", count, null=True),
        processed=field(
            "Events passed to the selection or set aside as not injected; null if blind.",
            count,
            null=True,
        ),
        lost=field("The difference: always 0, otherwise the skim stops.", count),
    )
    top = record(
        schema_version=field("Version of this layout.", {"const": SCHEMA_VERSION}),
        blind=field("Whether data inside the windows are hidden.", boolean),
        accounting=field("Accounting of the events.", accounting),
        windows=field("Windows, from low to high mass.", {"type": "array", "items": window, "minItems": 1}),
        **{"global": field("The search as a whole.", whole)},
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of a drapes-hep search",
        "description": "Masses in GeV. Numbers that do not exist are null.",
        **top,
    }
