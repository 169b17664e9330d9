"""The cards and table rows of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from markupsafe import Markup, escape

from drapes_hep.errors import counted
from drapes_hep.plots import GlobalP
from drapes_hep.report.extract import best, cutflow, fit_p, overall, split_counts
from drapes_hep.report.format import cut, integer, null, optional_integer, plus_minus, power, sic, signed, step, why
from drapes_hep.report.resonance import best_resonance, significance_text
from drapes_hep.report.run_files import Point, RunFiles, WindowFiles

__all__ = [
    "accounting_cards",
    "cost_rows",
    "cutflow_rows",
    "headline",
    "metric_rows",
    "model_summary",
    "provenance",
    "quality_rows",
    "split_rows",
    "steps_not_applied",
    "version_lines",
    "window_summary",
    "working_point_rows",
]

Row = dict[str, Any]


def _card(what: str, value: Markup | str, more: Markup | str) -> Row:
    return {"what": what, "value": value, "more": more}


def headline(run: RunFiles) -> tuple[list[Row], list[str]]:
    """Return the cards at the top, and the sentences below them."""
    largest, inclusive, whole = best(run), best(run, inclusive=True), overall(run)
    reason = "the run is blinded" if run.blind else "no working point has a p-value" if largest is None else ""
    lines = []
    local: Markup | str = reason
    if largest is not None:
        files, point = largest
        local = Markup("{} GeV at ε<sub>B</sub> = {}; p<sub>local</sub> = {}").format(
            files.title, cut(point), power(float(point["p_local"]))
        )
        several = len(run.windows) > 1
        lines.append(
            f"{counted(len(run.windows), 'window')} with"
            f" {counted(max(len(w.points) for w in run.windows), 'working point')}"
            f" {'each were' if several else 'was'} searched; the local values do not include the look-elsewhere"
            f" effect{'' if whole.p is None else ', the global one does'}."
        )
    fit = best_resonance(run)
    if fit is not None:
        lines.append(
            Markup(
                "The window counts are the primary result, and the global p-value is theirs. The resonance fit assumes"
                " a signal shape; {}."
            ).format(_scan_text(run))
        )
    lines += _quoted_lines(run, whole, largest)
    cards = [_card("window count, largest local significance", _significance(largest), local)]
    if whole.p is None:
        cards.append(_card("global p-value", null(), whole.reason or reason))
    else:
        cards.append(
            _card(f"global p-value, all {'windows and ' if len(run.windows) > 1 else ''}cuts", *_global(whole.p, whole))
        )
        if whole.bound or whole.quotes_extrapolation:
            lines.append(_toys_text(whole))
    calibrated = (run.results.get("global") or {}).get("calibrated")
    if calibrated is not None:
        cards.append(_calibrated_card(calibrated))
    cards.append(
        _card("inclusive search, no classifier", _significance(inclusive), _untrained(largest, inclusive, reason))
    )
    if fit is not None:
        cards.append(_resonance_card(fit))
    lost = (run.results.get("accounting") or {}).get("lost")
    cards.append(_card("events lost", optional_integer(lost), "requested minus processed"))
    return cards, lines


def _quoted_lines(run: RunFiles, whole: GlobalP, largest: tuple[WindowFiles, Point] | None) -> Iterator[str]:
    """Write which p-value is that of the search, and what was injected."""
    calibrated = (run.results.get("global") or {}).get("calibrated") or {}
    if whole.p is not None:
        which = (
            "calibrated with null searches"
            if calibrated.get("p_global") is not None
            else (
                "extrapolated; not calibrated with null searches"
                if whole.quotes_extrapolation
                else "measured with pseudo-experiments; not calibrated with null searches"
            )
        )
        yield f"The p-value of the search is the global one, {which}."
    injected = (run.config.get("signal") or {}).get("inject")
    labelled = (run.config.get("data") or {}).get("labels")
    if run.blind or not labelled:
        return
    among = None if largest is None else largest[0].result.get("n_signal_truth")
    inside = ""
    if largest is not None and among is not None:
        inside = f", of which {integer(among)} in the window {largest[0].title} GeV"
    if injected is None:
        yield f"All labelled signal is among the data{inside}."
    else:
        yield f"Injected: {counted(int(injected), 'signal event')} before the selection{inside}."


def _scan_text(run: RunFiles) -> Markup:
    """Write the global p-value of the resonance fit, or how to have one."""
    resonance = run.results.get("resonance") or {}
    whole = resonance.get("global")
    if whole is None:
        return Markup("it has no global p-value ({})").format(resonance.get("global_reason") or "not computed")
    sign = "at most" if whole["bound"] else "equal to"
    text = Markup(
        "its own global p-value, of all masses and cuts, is {} {} ({} of {} pseudo-experiments as extreme)"
    ).format(sign, power(float(whole["p_global"])), integer(whole["exceeding"]), integer(whole["toys"]))
    beyond = whole["p_global_extrapolated"]
    if beyond is None:
        return text
    return text + Markup(", extrapolated {} with {:.0f} effective trials").format(
        power(float(beyond)), whole["effective_trials"]
    )


def _resonance_card(fit: Mapping[str, Any]) -> Row:
    window = fit.get("window")
    where = "" if window is None else f", window {float(window[0]):g}–{float(window[1]):g} GeV"
    more = Markup("{} GeV at ε<sub>B</sub> = {}{}").format(f"{float(fit['mass']):.0f}", cut(fit), where)
    return _card("resonance fit, largest local significance", Markup("{} σ").format(significance_text(fit)), more)


def _calibrated_card(calibrated: Mapping[str, Any]) -> Row:
    p, difference = calibrated["p_global"], calibrated.get("difference")
    other = f"; null searches with {difference}" if difference else ""
    if p is None:
        return _card("global p-value, calibrated", null(), f"{calibrated['reason']}{other}")
    return _card(
        "global p-value, calibrated",
        Markup("p = {}").format(power(float(p))),
        f"z = {signed(float(calibrated['z_global']))}; {integer(calibrated['nulls'])} null searches, everything trained"
        f" anew; {float(calibrated['trials']):.1f} effective trials{other}",
    )


def _untrained(
    largest: tuple[WindowFiles, Point] | None, inclusive: tuple[WindowFiles, Point] | None, reason: str
) -> str:
    """Return where the inclusive search is largest, and what it says where the search with cuts is."""
    if inclusive is None:
        return reason
    words = f"largest, {inclusive[0].title} GeV"
    if largest is None or largest[0] is inclusive[0]:
        return words
    z = next((p.get("z_local") for p in largest[0].points if float(p["background_efficiency"]) >= 1), None)
    return f"{words}; {largest[0].title} GeV: " + ("–" if z is None else f"{signed(float(z))} σ")


def _global(p: float, whole: GlobalP) -> tuple[Markup, Markup]:
    """Write the global p-value that is quoted, and the other one below it; ``p`` is the measured one."""
    sign, zsign = ("≤", "≥") if whole.bound else ("=", "=")
    value = Markup("p {} {}").format(sign, power(p))
    z = "" if whole.z is None else f"z {zsign} {signed(whole.z)}"
    if whole.extrapolated is None:
        return value, _joined(z, _interval(95, whole.interval))
    beyond = Markup("p = {}").format(power(whole.extrapolated))
    beyond_z = "" if whole.extrapolated_z is None else f"z = {signed(whole.extrapolated_z)}"
    if whole.quotes_extrapolation:
        more = _joined(beyond_z, _interval(68, whole.extrapolated_interval), Markup("measured: {}").format(value), z)
        return Markup("{} <small>extrapolated</small>").format(beyond), more
    more = _joined(z, _interval(95, whole.interval), Markup("extrapolated: {}").format(beyond), beyond_z)
    return Markup("{} <small>measured</small>").format(value), more


def _joined(*parts: Markup | str) -> Markup:
    return Markup("; ").join(part for part in parts if part)


def _interval(percent: int, ends: tuple[float, float] | None) -> Markup | str:
    return "" if ends is None else Markup("{}% interval [{}, {}]").format(percent, power(ends[0]), power(ends[1]))


def _toys_text(whole: GlobalP) -> str:
    """Write what a global p-value rests on where hardly a pseudo-experiment is as extreme as the data."""
    some = "None" if whole.exceeding == 0 else f"Only {integer(whole.exceeding)}"
    few = f"{some} of {integer(whole.toys)} pseudo-experiments {'was' if whole.exceeding < 2 else 'were'}"
    if not whole.quotes_extrapolation or whole.trials is None:
        return f"{few} as extreme as the data: the global p-value is an upper bound, set by their number."
    return (
        f"{few} as extreme as the data: the global p-value is extrapolated from the distribution of their smallest"
        f" p-values, which corresponds to {whole.trials:.1f} independent searches. The measured p-value is"
        f" {'an upper bound, set by their number' if whole.bound else 'listed below it'}."
    )


def _significance(leading: tuple[WindowFiles, Point] | None) -> Markup:
    if leading is None:
        return null()
    z = leading[1].get("z_local")
    return null("p is 1") if z is None else Markup("{} σ").format(signed(float(z)))


def accounting_cards(run: RunFiles) -> list[Row]:
    """Return how many events were asked for, processed and lost."""
    accounting = run.results.get("accounting") or {}
    files = run.skim.get("files") or []
    empty = [PurePath(path).name for path in run.skim.get("empty_files") or []]
    without = (
        f", {len(empty)} without events ({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''})" if empty else ""
    )
    return [
        _card(key, optional_integer(accounting.get(key), "blinded" if run.blind and key != "lost" else ""), more)
        for key, more in (
            ("requested", f"events in {counted(len(files), 'file')}{without}"),
            ("processed", "events"),
            ("lost", "must be 0"),
        )
    ]


def cutflow_rows(run: RunFiles) -> list[Row]:
    """Return the steps of the selection."""
    rows: list[Row] = []
    flow = cutflow(run)
    # without an injection all that is in the files is read
    whole = any(s.name == "in_files" for s in flow)
    first: float | None = None
    before: float | None = None
    for s in flow:
        if s.aside and s.events == 0:
            continue
        # fractions are the selection's: of what it was given
        counts = not s.aside and s.name != "in_files"
        if counts and first is None:
            first = s.events
        name = "in_files" if s.name == "read" and not whole else s.name
        rows.append(
            {
                "name": step(name, run.config),
                "events": integer(s.events),
                "weight": f"{s.weight:.6g}",
                "aside": s.aside,
                "step": f"{100 * s.events / before:.2f}%" if counts and before else null(),
                "all": f"{100 * s.events / first:.2f}%" if counts and first else null(),
            }
        )
        if counts:
            before = s.events
    return rows


def steps_not_applied(run: RunFiles) -> list[Markup | str]:
    """Return the steps of the selection whose hook is not set, which the cut flow leaves out."""
    return [step(str(name), run.config) for name in run.skim.get("not_applied") or ()]


def working_point_rows(run: RunFiles) -> list[Row]:
    """Return every working point of every window."""
    leading = best(run)
    rows = []
    for files in run.windows:
        fit_text = _fit(run, files)
        for i, point in enumerate(files.points):
            p_local, z_local = point.get("p_local"), point.get("z_local")
            rows.append(
                {
                    "first": i == 0,
                    "best": leading is not None and leading[0] is files and leading[1] is point,
                    "window": files.title,
                    "cut": cut(point),
                    "observed": optional_integer(point.get("observed"), why(point, "observed", run.blind)),
                    "expected": _expected(point, run.blind),
                    **{name: _cross_check(point, name) for name in ("direct", "conformal")},
                    "calibrated": _calibrated(point),
                    "p": null(why(point, "p_local", run.blind)) if p_local is None else power(float(p_local)),
                    "z": null(why(point, "z_local", run.blind)) if z_local is None else signed(float(z_local)),
                    "fit": fit_text,
                }
            )
    return rows


def _fit(run: RunFiles, files: WindowFiles) -> Markup:
    fit, p = files.result.get("fit") or {}, fit_p(run, files)
    if fit.get("chi2") is None or fit.get("ndof") is None:
        return null("no fit")
    tail = Markup("") if p is None else Markup(" (p = {})").format(power(p, 1))
    return Markup("{} / {}{}").format(f"{float(fit['chi2']):.1f}", str(int(fit["ndof"])), tail)


def _expected(point: Point, blind: bool) -> Markup:
    expected, error = point.get("expected"), point.get("expected_error")
    if expected is None:
        return null(why(point, "expected", blind))
    digits = 1 if float(expected) < 1000 else 0
    plus = "" if error is None else f" ± {float(error):.{digits}f}"
    return Markup("<span class=whole>{}</span>").format(f"{float(expected):.{digits}f}{plus}")


def _calibrated(point: Point) -> Markup:
    """Write the significance with the pulls of null searches, and their width."""
    calibrated = point.get("calibrated")
    if calibrated is None:
        return null("no null searches")
    z, kappa = calibrated["z_local"], calibrated["kappa"]
    text = null("p is 1") if z is None else signed(float(z))
    return Markup("{} <small class=soft>({:.2f} ± {:.2f})</small>").format(text, kappa["value"], kappa["error"])


def _cross_check(point: Point, name: str) -> Markup:
    """Write what other events than those outside the window expect, and how significant the count then is."""
    check = point.get(name)
    if check is None:
        return null()
    z = null("p is 1") if check["z_local"] is None else Markup("z = ") + signed(float(check["z_local"]))
    text = f"{float(check['expected']):.1f} ± {float(check['expected_error']):.1f}"
    if check["observed"] != point["observed"]:
        text = f"{integer(check['observed'])} on {text}"
    # they break between the expectation and z, nowhere else
    return Markup("<span class=whole>{}</span> <small class='soft whole'>({})</small>").format(text, z)


def quality_rows(run: RunFiles) -> list[Row]:
    """Return the quality of each window's template."""
    return [
        {
            "window": w.title,
            "name": _method_name(w),
            "n": optional_integer(w.template.get("n"), "blinded" if run.blind else ""),
            "truth": plus_minus(w.template.get("auc_vs_truth"), 3, "blinded" if run.blind else "no labels"),
            "sidebands": plus_minus(w.template.get("auc_vs_sideband_closure"), 3, "not measured"),
            "pseudo": _pseudo_window_auc(w),
        }
        for w in run.windows
    ]


def _pseudo_window_auc(files: WindowFiles) -> Markup:
    """Write the AUC in the pseudo-window, and where that is."""
    text = plus_minus((files.quality.get("template") or {}).get("auc_vs_pseudo_window"), 3, "one window only")
    if files.pseudo_window is None:
        return text
    low, high = (f"{edge:g}" for edge in files.pseudo_window)
    return Markup("{} <small class=soft>in {}–{} GeV</small>").format(text, low, high)


def metric_rows(run: RunFiles) -> list[Row]:
    """Return the metrics of each window; nothing if no window has metrics."""
    metrics = [w.result.get("metrics") or {} for w in run.windows]
    if not any(metrics):
        return []
    return [
        {
            "window": w.title,
            "signal": optional_integer(w.result.get("n_signal_truth"), "no labels"),
            "auc": plus_minus(m.get("auc"), 3, "no signal"),
            **{k: sic(m.get(k)) for k in ("sic_100", "sic_1000", "sic_max")},
        }
        for w, m in zip(run.windows, metrics, strict=True)
    ]


def window_summary(files: WindowFiles) -> Markup | str:
    """Describe the figures of a window in one line."""
    quoted = [p for p in files.points if p.get("p_local") is not None]
    if not quoted:
        return "no working point is quoted"
    top = min(quoted, key=lambda p: float(p["p_local"]))
    z = top.get("z_local")
    return Markup("smallest p<sub>local</sub> at ε<sub>B</sub> = {}, z<sub>local</sub> = {}").format(
        cut(top), "–" if z is None else signed(float(z))
    )


def _method_name(files: WindowFiles) -> str:
    """Return what makes a template: its title, with its name in the configuration."""
    name, title = files.template.get("name") or "–", files.template_record.get("title")
    return f"{title} ({name})" if title else str(name)


def split_rows(run: RunFiles) -> list[Row]:
    """Return which events of each window's search do what."""
    rows = []
    for files in run.windows:
        counts = split_counts(run, files)
        rows.append(
            {
                "window": files.title,
                "train": optional_integer(counts.train),
                "validation": optional_integer(counts.validation),
                "closure": optional_integer(counts.closure),
                "template": optional_integer(counts.template, "blinded" if run.blind else ""),
                "data": optional_integer(counts.in_window, "blinded" if run.blind else ""),
            }
        )
    return rows


def model_summary(run: RunFiles) -> str:
    """Return the description of the background model, if the method has one."""
    return next(
        (str(files.template_record["summary"]) for files in run.windows if files.template_record.get("summary")), ""
    )


def provenance(run: RunFiles) -> list[tuple[str, Any]]:
    """Return where the numbers come from: date, seeds, code, machine."""
    seeds = f"run {run.config.get('seed')}"
    injected = run.config.get("signal") or {}
    if injected.get("inject") is not None:
        seeds += f"; signal injection {injected.get('seed')} ({injected['inject']} events before the selection)"
    return [
        ("created", run.manifest.get("created") or null()),
        ("seeds", seeds),
        ("blind", "yes" if run.blind else "no"),
        ("processor", _processor(run.manifest.get("processor") or {})),
        ("files that the processor reads", _read_files(run.manifest.get("processor") or {})),
        ("git", _by_stage(run, "git", _git, "not run from a checkout")),
        ("code hash", _by_stage(run, "code", str)),
        ("platform", _by_stage(run, "platform", str)),
    ]


def _git(state: Mapping[str, Any]) -> str:
    return f"{state.get('commit')}, {'clean' if state.get('clean') else 'with uncommitted changes'}"


def _processor(named: Mapping[str, Any]) -> Markup:
    files = [f"{path} (SHA-256 {digest})" for path, digest in (named.get("files") or {}).items()]
    return escape("; ".join([str(named["class"]), *files])) if "class" in named else null()


def _read_files(named: Mapping[str, Any]) -> Markup:
    files = [f"{path} (SHA-256 {digest})" for path, digest in (named.get("reads") or {}).items()]
    files += [
        f"{path} ({f'SHA-256 {digest}' if digest else 'absent'}; not declared)"
        for path, digest in (named.get("opened") or {}).items()
    ]
    return escape("; ".join(files)) if files else null("none")


def _by_stage(run: RunFiles, what: str, text: Callable[[Any], str], absent: str = "") -> Markup:
    """Return what made the stages; where it is not the same for all, with the stages."""
    by_value = run.made_by(what)
    texts = [null(absent) if value is None else escape(text(value)) for value, _ in by_value]
    if len(by_value) < 2:
        return texts[0] if texts else null(absent)
    return Markup("; ").join(
        Markup("{} ({})").format(line, ", ".join(stages)) for line, (_, stages) in zip(texts, by_value, strict=True)
    )


def version_lines(run: RunFiles) -> list[str]:
    """Return the versions that the stages ran with, a line for each environment."""
    by_value = [(value, stages) for value, stages in run.made_by("versions") if value]
    lines = [", ".join(f"{name} {version}" for name, version in sorted(value.items())) for value, _ in by_value]
    if len(by_value) < 2:
        return lines
    return [f"{', '.join(stages)}: {line}" for line, (_, stages) in zip(lines, by_value, strict=True)]


def cost_rows(run: RunFiles) -> list[Row]:
    """Return wall time and memory of each stage and of all."""
    costs = [(name, float(s.get("seconds") or 0), s.get("peak_memory_mib")) for name, s in run.stages.items()]
    if costs:
        _, seconds, memory = zip(*costs, strict=True)
        costs.append(("all (sum; largest)", sum(seconds), max((m for m in memory if m is not None), default=None)))
    return [
        {"stage": name, "seconds": f"{s:.1f}", "memory": null() if m is None else f"{float(m):.0f}"}
        for name, s, m in costs
    ]
