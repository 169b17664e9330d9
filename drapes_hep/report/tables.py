"""The page's tables as CSV: full precision, empty where a number does not exist."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from drapes_hep.files import atomic_path
from drapes_hep.report.extract import cutflow, quality_points
from drapes_hep.report.resonance import conditional_points, included_resonance, resonance_points
from drapes_hep.report.run_files import RunFiles, estimate

__all__ = ["write_tables"]


def write_tables(run: RunFiles, folder: Path) -> None:
    """Write working points, template quality, metrics (where there are labels), cut flow and costs.

    Parameters
    ----------
    run : RunFiles
    folder : Path
    """
    keys = ("background_efficiency", "observed", "expected", "expected_error", "p_local", "z_local")
    _write_csv(
        folder / "working_points.csv",
        ("window_lo_gev", "window_hi_gev", *keys),
        [(*w.sr, *(p.get(k) for k in keys)) for w in run.windows for p in w.points],
    )
    _write_resonances(run, folder / "resonance.csv")
    _write_sensitivities(run, folder / "sensitivity.csv")
    names = ("truth", "sidebands", "pseudo")
    _write_csv(
        folder / "template_quality.csv",
        (
            "window_lo_gev",
            "window_hi_gev",
            *_with_errors(f"auc_{n}" for n in names),
            "pseudo_window_lo_gev",
            "pseudo_window_hi_gev",
        ),
        [
            (
                *q.window,
                *(x for n in names for x in (getattr(q, n) or (None, None))),
                *(q.pseudo_window or (None, None)),
            )
            for q in quality_points(run)
        ],
    )
    measures = ("auc", "sic_100", "sic_1000", "sic_max")
    # shown by an earlier report but not by this one, which is blinded
    (folder / "metrics.csv").unlink(missing_ok=True)
    labelled = [w for w in run.windows if w.result.get("metrics")]
    if labelled:
        _write_csv(
            folder / "metrics.csv",
            ("window_lo_gev", "window_hi_gev", "n_signal_truth", *_with_errors(measures)),
            [
                (
                    *w.sr,
                    w.result.get("n_signal_truth"),
                    *(x for m in measures for x in (estimate(w.result["metrics"].get(m)) or (None, None))),
                )
                for w in labelled
            ],
        )
    _write_csv(
        folder / "cutflow.csv",
        ("step", "events", "weight"),
        [(s.name, int(s.events), s.weight) for s in cutflow(run)],
    )
    _write_csv(
        folder / "stages.csv",
        ("stage", "seconds", "peak_memory_mib"),
        [(name, s.get("seconds"), s.get("peak_memory_mib")) for name, s in run.stages.items()],
    )


def _write_resonances(run: RunFiles, path: Path) -> None:
    """Write every fit of a resonance; none of a blinded run."""
    # shown by an earlier report but not by this one, which is blinded
    path.unlink(missing_ok=True)
    columns = (
        "mass", "resolution", "background_efficiency", "signal", "signal_error", "signal_failing", "z", "p_local",
        "method", "z_asymptotic", "toys", "exceeding", "background", "p_signal", "p_background", "reason",
    )  # fmt: skip
    if fits := resonance_points(run):
        included = included_resonance(run)
        tagged = [(None, fit) for fit in fits]
        if included is not None:
            tagged += [(included["mass"], fit) for fit in conditional_points(run)]
        rows = [(*(fit.get("window") or (None, None)), mass, *(fit.get(k) for k in columns)) for mass, fit in tagged]
        _write_csv(path, ("window_lo_gev", "window_hi_gev", "included_mass", *columns), rows)


def _write_sensitivities(run: RunFiles, path: Path) -> None:
    """Write what each cut can discover; nothing of a run of an earlier version."""
    path.unlink(missing_ok=True)
    names = ("expected_error", "signal_z3", "signal_z5")
    rows = [
        (
            *files.sr,
            point["background_efficiency"],
            *(x for name in names for x in (estimate(record[name]) or (None, None))),
            record["break_even_efficiency"],
            record["reason"],
        )
        for files in run.windows
        for point in files.points
        if (record := point.get("sensitivity")) is not None
    ]
    header = ("window_lo_gev", "window_hi_gev", "background_efficiency")
    if rows:
        _write_csv(path, (*header, *_with_errors(names), "break_even_efficiency", "reason"), rows)


def _with_errors(names: Iterable[str]) -> list[str]:
    return [f"{name}{ending}" for name in names for ending in ("", "_error")]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None else v for v in row] for row in rows])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
