"""The results of a search, as ``results.json`` holds them: the schema is docs/results.schema.json.

A number that does not exist is None, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drapes_hep.bumphunt.background import BackgroundCheck, SpuriousSignal
from drapes_hep.bumphunt.calibrated import CalibratedGlobal, CalibratedPoint
from drapes_hep.bumphunt.cross_checks import CrossCheck, CrossChecks
from drapes_hep.bumphunt.resonance import ASYMPTOTIC, FROM_TOYS, ResonancePoint, ResonanceScan
from drapes_hep.bumphunt.resonance_toys import ResonanceSignificance
from drapes_hep.bumphunt.seed_spread import SeedSpread
from drapes_hep.bumphunt.sensitivity import Sensitivity
from drapes_hep.bumphunt.toys import GlobalSignificance
from drapes_hep.bumphunt.working_points import WindowHunt, WorkingPoint

__all__ = [
    "SCHEMA_VERSION",
    "PointChecks",
    "background_record",
    "global_record",
    "resonance_record",
    "results_record",
    "results_schema",
    "window_record",
]

SCHEMA_VERSION = 1


_GLOBAL = (
    "p_global", "z_global", "p_global_interval", "bound", "exceeding", "p_global_extrapolated", "z_global_extrapolated",
    "p_global_extrapolated_interval", "effective_trials", "effective_trials_interval", "best_window",
    "best_background_efficiency",
)  # fmt: skip


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _point(
    point: WorkingPoint,
    sensitivity: Sensitivity | None,
    calibrated: CalibratedPoint | None,
    checks: CrossChecks | None,
    spread: SeedSpread | None,
) -> dict[str, Any]:
    return {
        "background_efficiency": point.background_efficiency,
        "observed": point.observed,
        "expected": _number(point.expected),
        "expected_error": _number(point.expected_error),
        "p_local": _number(point.p_local),
        "z_local": _number(point.z_local),
        "direct": None if checks is None else _check(checks.direct),
        "conformal": None if checks is None else _check(checks.conformal),
        "seeds": None if spread is None else _spread(spread),
        "degree": point.degree,
        "fitted_events": point.fitted_events,
        "sensitivity": None if sensitivity is None else _sensitivity(sensitivity),
        "calibrated": None if calibrated is None else _calibrated(calibrated),
    }


def _check(check: CrossCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    return {
        "observed": check.observed,
        "expected": check.expected,
        "expected_error": check.error,
        "p_local": check.p_local,
        "z_local": _number(check.z_local),
    }


def _spread(spread: SeedSpread) -> dict[str, Any]:
    return {name: getattr(spread, name) for name in ("searches", "empty", "z_mean", "z_spread", "excess_spread")}


def _calibrated(point: CalibratedPoint) -> dict[str, Any]:
    return {
        "kappa": {"value": point.pulls.kappa, "error": point.pulls.error},
        "mean_pull": point.pulls.mean,
        "expected_error": point.error,
        "p_local": point.p_local,
        "z_local": _number(point.z_local),
    }


def _sensitivity(sensitivity: Sensitivity) -> dict[str, Any]:
    return {
        "expected_error": _estimate(sensitivity.expected_error),
        "signal_z3": _estimate(sensitivity.signal_z3),
        "signal_z5": _estimate(sensitivity.signal_z5),
        "break_even_efficiency": _number(sensitivity.break_even_efficiency),
        "reason": sensitivity.reason,
    }


def _estimate(number: tuple[float, float] | None) -> dict[str, float] | None:
    return None if number is None else {"value": number[0], "error": number[1]}


@dataclass(frozen=True)
class PointChecks:
    """What is quoted beside the working points of a window.

    Attributes
    ----------
    cross_checks : sequence of CrossChecks
        One per working point, or none.
    spreads : mapping of (str, float) to SeedSpread
        By window and cut, of those that have one.
    """

    cross_checks: Sequence[CrossChecks]
    spreads: Mapping[tuple[str, float], SeedSpread]


def window_record(
    hunt: WindowHunt,
    n_observed: int | None,
    quality: Mapping[str, Any],
    sensitivities: Sequence[Sensitivity] = (),
    spurious_unblinded: float | None = None,
    calibrated: Sequence[CalibratedPoint | None] = (),
    checks: PointChecks = PointChecks((), {}),
) -> dict[str, Any]:
    """Return a window's entry.

    Parameters
    ----------
    hunt : WindowHunt
    n_observed : int or None
        Selected events in the window; None if blind.
    quality : mapping
        What ``quality.json`` of the window holds; in a blinded run nothing that its events decide.
    sensitivities : sequence of Sensitivity
        One per working point, or none.
    spurious_unblinded : float or None
        Spurious signal that a blinded window is expected to have.
    calibrated : sequence of CalibratedPoint or None
        One per working point, or none.
    checks : PointChecks

    Returns
    -------
    dict
    """
    fit = hunt.fit
    none = [None] * len(hunt.working_points)
    spreads = [checks.spreads.get((hunt.sr.name, point.background_efficiency)) for point in hunt.working_points]
    parts = (sensitivities or none, calibrated or none, checks.cross_checks or none, spreads)
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
        "spurious_signal": None if hunt.spurious is None else _spurious(hunt.spurious),
        "spurious_signal_unblinded": _number(spurious_unblinded),
        "template": quality["template"],
        "working_points": [_point(*each) for each in zip(hunt.working_points, *parts, strict=True)],
        "metrics": quality["metrics"],
    }


def _spurious(signal: SpuriousSignal) -> dict[str, Any]:
    return {
        "events": _number(signal.events),
        "fraction": _number(signal.fraction),
        "verdict": signal.verdict,
        "shape": signal.shape,
        "alternatives": [
            {
                "shape": alternative.shape,
                "p_value": alternative.p_value,
                "window_included": alternative.window_included,
                "events": _number(alternative.events),
                "fraction": _number(alternative.fraction),
            }
            for alternative in signal.alternatives
        ],
    }


def background_record(check: BackgroundCheck, shape: str) -> dict[str, Any]:
    """Return the entry on the mass shape of a search.

    Parameters
    ----------
    check : BackgroundCheck
    shape : str
        ``mass.fit``.

    Returns
    -------
    dict
    """
    return {
        "shape": shape,
        "f_tests": [
            {"shape": test.shape, "more": test.more, "f": _number(test.f), "p_value": _number(test.p_value)}
            for test in check.f_tests
        ],
        "chosen": check.chosen,
        "lower_edges": [
            {"low": edge.low, "chi2": _number(edge.chi2), "ndof": edge.ndof, "p_value": edge.p_value}
            for edge in check.lower_edges
        ],
        "describes_from": check.describes_from,
    }


def global_record(
    significance: GlobalSignificance | str, toys: int, calibrated: CalibratedGlobal | None = None
) -> dict[str, Any]:
    """Return the entry of the whole search; all None where there is none, with the reason."""
    own = None if calibrated is None else dict(vars(calibrated))
    if isinstance(significance, str):
        return {**dict.fromkeys(_GLOBAL), "toys": toys, "reason": significance, "calibrated": own}
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
        "calibrated": own,
    }


def _resonance_point(point: ResonancePoint) -> dict[str, Any]:
    window = point.window
    return {
        "mass": float(point.mass),
        "resolution": float(point.resolution),
        "window": None if window is None else [window.lo, window.hi],
        "background_efficiency": point.background_efficiency,
        "signal": _number(point.signal),
        "signal_error": _number(point.error),
        "signal_failing": _number(point.signal_failing),
        "z": _number(point.z),
        "p_local": _number(point.p_local),
        "method": point.method,
        "z_asymptotic": _number(point.z_asymptotic),
        "toys": point.toys,
        "exceeding": point.exceeding,
        "background": _number(point.background),
        "degree": point.degree,
        "p_signal": _number(point.p_signal),
        "p_background": _number(point.p_background),
        "reason": point.reason,
    }


def _scan_significance(whole: ResonanceSignificance) -> dict[str, Any]:
    of_toys, beyond, window = whole.of_toys, whole.extrapolated, whole.best.window
    return {
        "p_global": of_toys.p,
        "z_global": _number(of_toys.z),
        "p_global_interval": list(of_toys.interval),
        "bound": of_toys.bound,
        "exceeding": of_toys.exceeding,
        "toys": of_toys.toys,
        "p_global_extrapolated": None if beyond is None else beyond.p,
        "z_global_extrapolated": None if beyond is None else _number(beyond.z),
        "effective_trials": None if beyond is None else beyond.trials,
        "best_mass": float(whole.best.mass),
        "best_window": None if window is None else [window.lo, window.hi],
        "best_background_efficiency": whole.best.background_efficiency,
    }


def resonance_record(scan: ResonanceScan, whole: ResonanceSignificance | str) -> dict[str, Any]:
    """Return the entry of the resonance fits.

    Parameters
    ----------
    scan : ResonanceScan
    whole : ResonanceSignificance or str
        Its global significance, or the reason why there is none.

    Returns
    -------
    dict
    """
    conditional = scan.conditional
    return {
        "shape": scan.title or None,
        "unsearched": [[float(low), float(high)] for low, high in scan.unsearched],
        "points": [_resonance_point(point) for point in scan.points],
        "global": None if isinstance(whole, str) else _scan_significance(whole),
        "global_reason": whole if isinstance(whole, str) else None,
        "conditional": None
        if conditional is None
        else {
            "included": _resonance_point(conditional.included),
            "points": [_resonance_point(point) for point in conditional.points],
        },
        "reason": scan.reason,
    }


def results_record(
    accounting: Mapping[str, int | None],
    windows: Sequence[Mapping[str, Any]],
    whole: Mapping[str, Any],
    resonance: Mapping[str, Any],
    blind: bool,
    *,
    background: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what ``results.json`` holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "blind": blind,
        "accounting": dict(accounting),
        "background": None if background is None else dict(background),
        "windows": list(windows),
        "global": dict(whole),
        "resonance": dict(resonance),
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
        background_efficiency=_field("The cut: the fraction of the template that passes; 1 means no cut.", _EFFICIENCY),
        observed=_field("Events in the window that pass; null if blind.", _COUNT, null=True),
        expected=_field(
            "Background expected among them; null with too few fitted events or a poor fit.", _NUMBER, null=True
        ),
        expected_error=_field("Standard error of the expectation, without Poisson fluctuation.", _NUMBER, null=True),
        p_local=_field(
            "Probability of at least as many events under the background-only hypothesis, including the error of the"
            " expectation; null without an expectation, or if it is below 0.001 events.",
            _PROBABILITY,
            null=True,
        ),
        z_local=_field("p_local in one-sided standard deviations; null where nothing is observed.", _NUMBER, null=True),
        direct=_field(
            "Cross-check, not part of the result: what is expected if the template is the background of the window."
            " null without a cut or if blind, for a template made of events in the window, and with few events.",
            _check_schema(),
            null=True,
        ),
        conformal=_field(
            "Cross-check, not part of the result: events by their conformal p-values among sideband events next to the"
            " window. null without a cut or if blind, and with few events.",
            _check_schema(),
            null=True,
        ),
        seeds=_field(
            "Searches of the same events with other seeds: see hunt.seeds. null without.", _spread_schema(), null=True
        ),
        degree=_field("Degree of the polynomial in the efficiency; null for the inclusive point.", _COUNT, null=True),
        fitted_events=_field(
            "Events outside the window that pass and that this point's fit uses: all for the inclusive point, only"
            " the closure events of the sidebands after a cut. hunt.min_events is its minimum.",
            _COUNT,
        ),
        sensitivity=_field(
            "What this cut can discover: see docs/method.md. null if not computed.", _sensitivity_schema(), null=True
        ),
        calibrated=_field(
            "The same with the pulls of null searches: see hunt.calibration. null without, or where they say nothing.",
            _calibrated_schema(),
            null=True,
        ),
    )


def _calibrated_global_schema() -> dict[str, Any]:
    return _record(
        p_global=_field(
            "1 - (1 - p)^trials of the smallest calibrated p_local; null where reason says why.",
            _PROBABILITY,
            null=True,
        ),
        z_global=_field("It in one-sided standard deviations.", _NUMBER, null=True),
        nulls=_field("Null searches.", _COUNT),
        trials=_field("Effective number of independent windows and cuts.", {"type": "number", "exclusiveMinimum": 0}),
        reason=_field("Why p_global is null; null if it is not.", {"type": "string"}, null=True),
        difference=_field(
            "In what the null searches differ from this search; null if in nothing.", {"type": "string"}, null=True
        ),
    )


def _check_schema() -> dict[str, Any]:
    return _record(
        observed=_field(
            "Events counted: those that pass the cut, or those with a conformal p-value at most that of it.", _COUNT
        ),
        expected=_field("Events expected among those in the window.", _NUMBER),
        expected_error=_field(
            "Standard error, from the events that the expectation is of.", {"type": "number", "minimum": 0}
        ),
        p_local=_field("Probability of at least as many as observed.", _PROBABILITY),
        z_local=_field("It in one-sided standard deviations; null where nothing is observed.", _NUMBER, null=True),
    )


def _spread_schema() -> dict[str, Any]:
    return _record(
        searches=_field("Searches that expect a count here.", _COUNT),
        empty=_field("Of them, those that observe nothing.", _COUNT),
        z_mean=_field(
            "Mean of their z_local; null with fewer than two, or if one observes nothing.", _NUMBER, null=True
        ),
        z_spread=_field("Its standard deviation over them.", _NUMBER, null=True),
        excess_spread=_field("Standard deviation of observed minus expected over them, events.", _NUMBER, null=True),
    )


def _calibrated_schema() -> dict[str, Any]:
    return _record(
        kappa=_field("Width of the pulls of null searches, everything trained anew.", _record(**_value())),
        mean_pull=_field("Their mean.", _NUMBER),
        expected_error=_field("Error of the expectation for which the root mean square of the pulls is 1.", _NUMBER),
        p_local=_field("p_local with this error.", _PROBABILITY),
        z_local=_field("It in one-sided standard deviations; null where nothing is observed.", _NUMBER, null=True),
    )


def _sensitivity_schema() -> dict[str, Any]:
    estimate = _record(**_value())
    return _record(
        expected_error=_field(
            "Error that the expectation will have once unblinded; if the run is not blind, expected_error. null where"
            " reason says why.",
            estimate,
            null=True,
        ),
        signal_z3=_field(
            "Number of signal events in the window, after the cut, for which the median z_local is 3, if the signal is"
            " entirely inside; null where reason says why.",
            estimate,
            null=True,
        ),
        signal_z5=_field("The same for a median of 5.", estimate, null=True),
        break_even_efficiency=_field(
            "signal_z3 divided by that of the inclusive point: a signal of which a larger fraction passes needs fewer"
            " events in the window with this cut than without; null for the inclusive point.",
            {"type": "number", "exclusiveMinimum": 0},
            null=True,
        ),
        reason=_field("Why these numbers are null; null if they are not.", {"type": "string"}, null=True),
    )


def _fit_schema() -> dict[str, Any]:
    return _record(
        chi2=_field(
            "Likelihood ratio 2NLLR (sum of the Poisson deviances of the bins), not a Pearson chi2.", _NUMBER, null=True
        ),
        ndof=_field("Degrees of freedom.", {"type": "integer"}),
        p_value=_field("p-value of the 2NLLR, valid for bins with few events.", _PROBABILITY, null=True),
        good=_field("Whether p_value is at least 0.001; if not, the window has no expectation.", _BOOLEAN),
        parameters=_field(
            "Parameters of the shape: ln_p1 is the logarithm of p_1 in docs/method.md, the others are p_2, ...",
            {"type": "object", "additionalProperties": _NUMBER},
        ),
    )


def _spurious_schema() -> dict[str, Any]:
    text = {"type": "string"}
    alternative = _record(
        shape=_field("The mass shape.", text),
        p_value=_field("Goodness of its fit; 0 if it did not converge.", _PROBABILITY),
        window_included=_field(
            "Whether it was fitted to all bins that may be looked at. If that fit is poor, it is fitted outside the"
            " window.",
            _BOOLEAN,
        ),
        events=_field(
            "Events in the window by which it exceeds the search's shape fitted to it; null if its p_value is at most"
            " 0.05.",
            _NUMBER,
            null=True,
        ),
        fraction=_field("events divided by the standard deviation of the count.", _NUMBER, null=True),
    )
    return _record(
        events=_field(
            "The largest difference, with its sign, included in expected_error (times the efficiency of the cut);"
            " null if not assessed, since no alternative describes the data.",
            _NUMBER,
            null=True,
        ),
        fraction=_field(
            "Its magnitude divided by the standard deviation of the count, Poisson fluctuation and error of the fit.",
            {"type": "number", "minimum": 0},
            null=True,
        ),
        verdict=_field(
            "flagged if fraction is above 0.5, warned above 0.2.",
            {"enum": ["small", "warned", "flagged", "not assessed"]},
        ),
        shape=_field("The alternative of the largest difference.", text, null=True),
        alternatives=_field("All alternatives.", {"type": "array", "items": alternative}),
    )


def _background_schema() -> dict[str, Any]:
    text = {"type": "string"}
    test = _record(
        shape=_field("The shape.", text),
        more=_field("The shape with one parameter more.", text),
        f=_field("F of docs/method.md; null if a fit did not converge.", {"type": "number", "minimum": 0}, null=True),
        p_value=_field("Its p-value; above 0.05, the parameter is not needed.", _PROBABILITY, null=True),
    )
    edge = _record(
        low=_field("Lower edge of the fit, GeV.", _NUMBER),
        chi2=_field("2NLLR.", _NUMBER, null=True),
        ndof=_field("Degrees of freedom.", {"type": "integer"}),
        p_value=_field("p-value of the 2NLLR; 0 if the fit did not converge.", _PROBABILITY),
    )
    return _record(
        shape=_field("The shape of the search: mass.fit.", text),
        f_tests=_field("F-tests from dijet3 to dijet5, as far as they went.", {"type": "array", "items": test}),
        chosen=_field("The shape at which they ended; null if a fit did not converge.", text, null=True),
        lower_edges=_field("Fits of the search's shape from rising lower edges.", {"type": "array", "items": edge}),
        describes_from=_field(
            "The lowest of these edges with a p_value above 0.05, GeV; null if there is none.", _NUMBER, null=True
        ),
    )


def _template_schema() -> dict[str, Any]:
    estimate, pseudo = _record(**_value()), _record(**_value(), window=_field("The pseudo-window, GeV.", _INTERVAL))
    return _record(
        name=_field("Template method: template.method.", {"type": "string"}),
        n=_field("Number of template events; null if blind.", _COUNT, null=True),
        strength=_field("Noise sigma / alpha at which generation starts; null for full noise.", _NUMBER, null=True),
        steps_left=_field("Remaining sampler steps at that noise; null for full noise.", _COUNT, null=True),
        lost=_field(
            "For templates of constituents, generated events that are not part of it, by reason: see"
            " docs/run-directory.md; null for templates of features, or if blind.",
            {"type": "object", "additionalProperties": _COUNT},
            null=True,
        ),
        auc_vs_truth=_field(
            "AUC against true background in the window, with cross-fitting the mean over the models, each compared by"
            " itself; null without labels or if blind.",
            estimate,
            null=True,
        ),
        auc_vs_truth_spread=_field(
            "With cross-fitting, spread of these AUCs over the models (delete-a-group jackknife); the models share most"
            " of their data, so it is no independent uncertainty.",
            _NUMBER,
            null=True,
        ),
        auc_vs_truth_mixture=_field(
            "With cross-fitting, the same AUC with the events of all models mixed.", estimate, null=True
        ),
        auc_vs_sideband_closure=_field(
            "AUC against held-out sideband events, generated at their masses; if blind, those outside all windows.",
            estimate,
            null=True,
        ),
        auc_vs_pseudo_window=_field(
            "AUC against data in the pseudo-window (if blind, outside all windows); null where there is none.",
            pseudo,
            null=True,
        ),
        models_spread=_field(
            "With cross-fitting and a template from noise, spread over the models (delete-a-group jackknife) of the"
            " mean of each feature in the window, in its standard deviations, less that of the numbers of events.",
            {"type": "object", "additionalProperties": _NUMBER},
            null=True,
        ),
    )


def _metrics_schema() -> dict[str, Any]:
    estimate = _record(**_value())
    sic = _record(
        **_value(),
        signal_efficiency=_field("Efficiency of the cut for true signal in the window.", _PROBABILITY),
        background_efficiency=_field("Efficiency of the cut for true background in the window.", _PROBABILITY),
    )
    return _record(
        auc=_field("AUC of true signal against true background in the window.", estimate, null=True),
        sic_100=_field(
            "Signal efficiency divided by the square root of background efficiency, at rejection 100.", sic, null=True
        ),
        sic_1000=_field("The same at rejection 1000.", sic, null=True),
        sic_max=_field("The maximum over cuts that enough background events pass.", sic, null=True),
    )


def _window_schema() -> dict[str, Any]:
    return _record(
        sr=_field("The window, GeV.", _INTERVAL),
        n_observed=_field("Selected events in it; null if blind.", _COUNT, null=True),
        n_signal_truth=_field("True signal among them; null without labels or if blind.", _COUNT, null=True),
        fit=_field("The inclusive fit outside the window (outside all windows if blind).", _fit_schema()),
        spurious_signal=_field(
            "Difference between the mass shape and the alternatives that describe the spectrum too; null if"
            " hunt.spurious_signal is false.",
            _spurious_schema(),
            null=True,
        ),
        spurious_signal_unblinded=_field(
            "Events: the root mean square that spurious_signal.events will have once unblinded, included in"
            " sensitivity.expected_error; null if not blind or if hunt.spurious_signal is false, and if not assessed:"
            " sensitivity is then without it.",
            {"type": "number", "minimum": 0},
            null=True,
        ),
        template=_field("Its background template.", _template_schema()),
        working_points=_field(
            "Working points from loose to tight; the first is inclusive.",
            {"type": "array", "items": _point_schema(), "minItems": 1},
        ),
        metrics=_field("Metrics from labels; null without labels or if blind.", _metrics_schema(), null=True),
    )


def _global_schema() -> dict[str, Any]:
    return _record(
        p_global=_field(
            "(k + 1)/(n + 1), if k of n pseudo-experiments are at least as extreme as the data; null without them, if"
            " blind, or if not all windows were hunted.",
            _PROBABILITY,
            null=True,
        ),
        z_global=_field("One-sided standard deviations of p_global; null if p_global is 1.", _NUMBER, null=True),
        p_global_interval=_field("95% interval of k/n (Clopper and Pearson).", _INTERVAL, null=True),
        bound=_field("Whether k is 0: p_global is then an upper bound, z_global a lower one.", _BOOLEAN, null=True),
        exceeding=_field("k, the pseudo-experiments at least as extreme as the data.", _COUNT, null=True),
        p_global_extrapolated=_field(
            "From the distribution of the smallest p-values of the pseudo-experiments, 1 - (1 -"
            " p_local)^effective_trials; to be quoted if k is small. null if p_global is, or if none of them has a"
            " p-value.",
            _PROBABILITY,
            null=True,
        ),
        z_global_extrapolated=_field("p_global_extrapolated in one-sided standard deviations.", _NUMBER, null=True),
        p_global_extrapolated_interval=_field(
            "Its 68% interval, from the number of pseudo-experiments only.", _INTERVAL, null=True
        ),
        effective_trials=_field(
            "Number of independent searches whose smallest p-value has the same distribution.",
            {"type": "number", "exclusiveMinimum": 0},
            null=True,
        ),
        effective_trials_interval=_field("Its 68% interval.", _INTERVAL, null=True),
        best_window=_field("The window of the smallest p_local, GeV.", _INTERVAL, null=True),
        best_background_efficiency=_field("The cut of the smallest p_local.", _EFFICIENCY, null=True),
        toys=_field("n, the number of pseudo-experiments.", _COUNT),
        reason=_field("Why p_global is null; null if it is not.", {"type": "string"}, null=True),
        calibrated=_field(
            "The significance with the pulls of null searches; null without hunt.calibration, or if blind.",
            _calibrated_global_schema(),
            null=True,
        ),
    )


def _resonance_point_schema() -> dict[str, Any]:
    return _record(
        mass=_field("Mass of the resonance, GeV.", _NUMBER),
        resolution=_field("Its standard deviation, GeV.", {"type": "number", "exclusiveMinimum": 0}),
        window=_field("The window whose classifier the cut is of; null without a cut.", _INTERVAL, null=True),
        background_efficiency=_field("The cut; 1 means no cut.", _EFFICIENCY),
        signal=_field(
            "Signal events that pass, of all masses, inside the fitted range or not; null where reason says why.",
            _NUMBER,
            null=True,
        ),
        signal_error=_field("Its standard error.", {"type": "number", "minimum": 0}, null=True),
        signal_failing=_field("Signal events that fail the cut; null without one.", _NUMBER, null=True),
        z=_field(
            "Local significance of the signal that passes, with its sign, in one-sided standard deviations; null where"
            " reason says why.",
            _NUMBER,
            null=True,
        ),
        p_local=_field(
            "Its p-value, of an excess: above 0.5 where z is negative.",
            _PROBABILITY,
            null=True,
        ),
        method=_field(
            "How z was obtained: from the asymptotic distribution of the likelihood ratio, or from pseudo-experiments,"
            " where background is below 10 and z_asymptotic beyond 1 or -1.",
            {"enum": [ASYMPTOTIC, FROM_TOYS]},
            null=True,
        ),
        z_asymptotic=_field("Signed square root of the likelihood ratio q0.", _NUMBER, null=True),
        toys=_field(
            "Pseudo-experiments, half of them with the fitted signal and weighted; null if z is asymptotic.",
            _COUNT,
            null=True,
        ),
        exceeding=_field(
            "Those at least as extreme as the data, or without a converged fit, each counted as 1.", _COUNT, null=True
        ),
        background=_field(
            "Fitted background that passes within two resolutions of the mass, an included resonance among it.",
            {"type": "number", "minimum": 0},
            null=True,
        ),
        degree=_field("Degree of the polynomial in the efficiency; null without a cut.", _COUNT, null=True),
        p_signal=_field("Goodness of the fit with the signal (p-value of its deviance).", _PROBABILITY, null=True),
        p_background=_field("Goodness of the fit without a signal that passes.", _PROBABILITY, null=True),
        reason=_field("Why there is no result; null if there is one.", {"type": "string"}, null=True),
    )


def _scan_significance_schema() -> dict[str, Any]:
    return _record(
        p_global=_field("(k + 1)/(n + 1), if k of n pseudo-experiments have a z at least as large.", _PROBABILITY),
        z_global=_field("It in one-sided standard deviations; null if it is 1.", _NUMBER, null=True),
        p_global_interval=_field("95% interval of k/n (Clopper and Pearson).", _INTERVAL),
        bound=_field("Whether k is 0: p_global is then an upper bound.", _BOOLEAN),
        exceeding=_field("k, the pseudo-experiments with a z at least as large.", _COUNT),
        toys=_field("n, all of them.", _COUNT),
        p_global_extrapolated=_field(
            "From the distribution of their largest z; null with fewer than 30.", _PROBABILITY, null=True
        ),
        z_global_extrapolated=_field("It in one-sided standard deviations.", _NUMBER, null=True),
        effective_trials=_field(
            "Number of independent fits whose largest z has the same distribution.",
            {"type": "number", "exclusiveMinimum": 0},
            null=True,
        ),
        best_mass=_field("Mass of the largest z of the data, GeV.", _NUMBER),
        best_window=_field("The window of its cut, GeV; null without a cut.", _INTERVAL, null=True),
        best_background_efficiency=_field("Its cut.", _EFFICIENCY),
    )


def _resonance_schema() -> dict[str, Any]:
    return _record(
        shape=_field("Shape of the signal (hunt.signal); null if nothing was fitted.", {"type": "string"}, null=True),
        unsearched=_field(
            "Parts of the fitted range that are in no window, GeV: no cut is applied there.",
            {"type": "array", "items": _INTERVAL},
        ),
        points=_field(
            "Fits: without a cut, then window by window and cut by cut, each by rising mass. No look-elsewhere effect"
            " is included.",
            {"type": "array", "items": _resonance_point_schema()},
        ),
        **{
            "global": _field(
                "Significance of the largest z of all masses, windows and cuts; null where global_reason says why.",
                _scan_significance_schema(),
                null=True,
            )
        },
        global_reason=_field("Why global is null; null if it is not.", {"type": "string"}, null=True),
        conditional=_field(
            "The same fits with the resonance of largest z included, free with and without the signal; null if that z"
            " is at most 5.",
            _record(
                included=_field("The resonance, at a mass between those of the scan.", _resonance_point_schema()),
                points=_field("As points.", {"type": "array", "items": _resonance_point_schema()}),
            ),
            null=True,
        ),
        reason=_field("Why there are no fits; null if there are.", {"type": "string"}, null=True),
    )


def results_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of ``results.json``, every field with its meaning."""
    accounting = _record(
        requested=_field("Events in the files; null if blind.", _COUNT, null=True),
        processed=_field(
            "Events passed to the selection or set aside as not injected; null if blind.",
            _COUNT,
            null=True,
        ),
        lost=_field("The difference: always 0, otherwise the skim stops.", _COUNT),
    )
    top = _record(
        schema_version=_field("Version of this layout.", {"const": SCHEMA_VERSION}),
        blind=_field("Whether data inside the windows are hidden.", _BOOLEAN),
        accounting=_field("Accounting of the events.", accounting),
        background=_field(
            "Tests of the mass shape on all of the fitted range (outside all windows if blind); null if"
            " hunt.spurious_signal is false.",
            _background_schema(),
            null=True,
        ),
        windows=_field("Windows, from low to high mass.", {"type": "array", "items": _window_schema(), "minItems": 1}),
        **{"global": _field("The search as a whole.", _global_schema())},
        resonance=_field("Fits of a resonance, window included; see docs/method.md.", _resonance_schema()),
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of a drapes-hep search",
        "description": "Masses in GeV. Numbers that do not exist are null.",
        **top,
    }
