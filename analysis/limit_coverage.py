"""Do limits cover? Searches with an injected signal, everything trained anew, whose limits are compared with it.

    python analysis/limit_coverage.py configs/quickstart.yaml SIGNAL -o OUT --set windows.first=3300
        --set windows.last=3300 --set study.null_events=64000 --set signal.inject=0
        --means 40 80 160 320 640 --tested 0 89 178 356 --tests 100

``--means`` are the signal events, on average, of the searches that measure the efficiency (``limits.searches`` with
each); ``--tested`` those of the searches whose limits are computed, ``--tests`` with each. All searches are of events
of their own, from models of the background outside the window. A run that was ended goes on where it was;
``--summary`` only prints, from what is there.

Writes ``coverage.json``, the limits of each test, and prints, for each cut and for that of the lowest expected limit,
from spectra and from counts: how often the injected signal is excluded, with a 95% interval; how often a search without
a signal has its observed limit below its expected median; and how often z_local exceeds 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from drapes_hep.bumphunt.calibrated import NullPulls, PullWidth, added_variance, read_pulls
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_limits import LimitSettings, QuotedCount, SignalAtCut, cut_limits
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.config import Config, load_config
from drapes_hep.errors import DrapesError
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.parallel import in_processes
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.stages.apply import applied_config
from drapes_hep.stages.skim import skim
from drapes_hep.studies.injected_searches import (
    LIMIT_CODE,
    check_sample,
    injected_record,
    load_sample,
    run_injected,
)
from drapes_hep.studies.limits import signals_of
from drapes_hep.studies.null_folder import NullFolder, null_folder, search_missing
from drapes_hep.studies.null_searches import check_nulls
from drapes_hep.studies.records import has_record, read_trial
from drapes_hep.studies.runner import select_events

TESTS = 10_000
"""Number of the first test's null: beyond any replica's."""
Job = tuple[float, int]
"""Mean number of signal events, and number of the null."""


def replicas(means: list[float], searches: int) -> list[Job]:
    """Return the searches that measure the efficiency, all means early."""
    return [(mean, 1000 * k + i) for i in range(searches) for k, mean in enumerate(means)]


def tests(means: list[float], searches: int) -> list[Job]:
    """Return the searches whose limits are computed."""
    return [(mean, number + TESTS) for mean, number in replicas(means, searches)]


def prepare(arguments: argparse.Namespace) -> tuple[Context, NullFolder, Path]:
    """Select the events and the signal."""
    config = load_config(arguments.config, arguments.set)
    check_nulls(config)
    context = Context.of(config, open_run(arguments.output, "study"), workers=arguments.workers, reporter=Reporter())
    select_events(context, labels=config.data.labels)
    run = open_run(arguments.output / "signal", "applied")
    skim(replace(context, config=applied_config(config, {"path": str(arguments.signal)}), run=run))
    return context, null_folder(context, LIMIT_CODE, file_hash(run.events)), run.events


def signal_model(place: NullFolder, signal: Path, jobs: list[Job]) -> tuple[SignalAtCut, ...]:
    """Return what the replicas say of the signal."""
    groups: dict[float, list[dict[str, Any]]] = {}
    for mean, number in jobs:
        groups.setdefault(mean, []).append(read_trial(injected_record(place, mean, number)))
    records = [groups[mean] for mean in sorted(groups)]
    edges = np.asarray(records[0][0]["edges"])
    return signals_of(records, edges, place.windows[0], load_sample(signal, place.config), place.config.limits)


def test_limits(
    config: Config,
    window: Window,
    signals: tuple[SignalAtCut, ...],
    means: list[float],
    pulls: NullPulls | None,
    path: Path,
    target: Path,
) -> None:
    """Compute the limits of one test, and write them."""
    record = read_trial(path)
    [searched] = record["windows"]
    points = searched["points"]
    nested = np.array([point["passed"] for point in points], dtype=np.float64)
    counts = SelectedCounts(
        np.asarray(record["edges"]),
        tuple(point["cut"] for point in points),
        np.concatenate([nested[:-1] - nested[1:], nested[-1:]]),
        np.zeros(nested.shape[1], dtype=np.bool_),
        searched["share"],
    )
    quoted = [
        _quoted(point, None if pulls is None else pulls.points.get((window.name, point["cut"]))) for point in points
    ]
    settings = LimitSettings(find_shape(config.mass), config.mass.sqrt_s, config.hunt.min_events)
    limits = cut_limits(counts, window, signals, quoted, np.asarray(means), settings)
    rows = [
        {
            "cut": cut.background_efficiency,
            "z": _z(count),
            **{
                name: None if limit is None else [_finite(limit.observed), _finite(limit.expected[2])]
                for name, limit in (("spectra", cut.fitted), ("count", cut.counted))
            },
        }
        for cut, count in zip(limits, quoted, strict=True)
    ]
    write_json(target, {"mean": record["mean"], "rows": rows})


def _quoted(point: dict[str, Any], width: PullWidth | None) -> QuotedCount:
    """Return what a search quotes of a cut, with the error that null searches give it."""
    expected, error, added = point["expected"], point["error"], 0.0
    if width is not None and expected is not None and error is not None:
        added = float(np.sqrt(added_variance(expected, error, width.kappa, width.mean)))
        error = float(np.hypot(error, added))
    return QuotedCount(point["observed"], expected, error, added=added)


def _z(count: QuotedCount) -> float | None:
    if count.expected is None or count.error is None:
        return None
    return _finite(float(local_significance([count.observed], [count.expected], [count.error]).z[0]))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def summary(tests_done: list[dict[str, Any]], means: list[float]) -> Iterator[str]:
    """Write what the limits do, cut by cut, and for the cut that each search would quote."""
    yield (
        f"{'signal':>7} {'cut':>6} {'from':>8} {'tests':>6} {'excluded':>9} {'95%':>12} {'obs < exp':>9} {'median':>7}"
        f" {'z > 2':>6}"
    )
    beyond = 10.0 * max(means)
    for mean in sorted({test["mean"] for test in tests_done}):
        tested = [test["rows"] for test in tests_done if test["mean"] == mean]
        for name in ("spectra", "count"):
            for k, first in enumerate(tested[0]):
                yield _line(mean, f"{first['cut']:g}", name, [rows[k] for rows in tested], beyond)
            yield _line(mean, "best", name, [_best(rows, name) for rows in tested], beyond)


def _best(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the cut with the lowest expected limit."""
    quoted = [row for row in rows if row[name] is not None and row[name][1] is not None]
    return min(quoted, key=lambda row: row[name][1], default=rows[0])


def _line(mean: float, cut: str, name: str, rows: list[dict[str, Any]], beyond: float) -> str:
    quoted = [row for row in rows if row[name] is not None]
    observed, expected = (
        np.array([beyond if row[name][i] is None else row[name][i] for row in quoted]) for i in (0, 1)
    )
    out, n = int((observed < mean).sum()), len(quoted)
    low, high = stats.binomtest(out, n).proportion_ci(method="exact") if n else (0.0, 1.0)
    above = sum(row["z"] is not None and row["z"] > 2 for row in rows)
    median = np.median(expected) if n else np.nan
    return (
        f"{mean:>7g} {cut:>6} {name:>8} {n:>6} {out:>9} {f'{low:.3f}-{high:.3f}':>12}"
        f" {int((observed < expected).sum()):>9} {median:>7.0f} {above:>6}"
    )


def main(arguments: argparse.Namespace) -> None:
    """Make what is missing, and print the summary."""
    context, place, signal = prepare(arguments)
    check_sample(load_sample(signal, context.config), max(*arguments.means, *arguments.tested), str(arguments.signal))
    if arguments.folder is not None:
        place = replace(place, folder=arguments.folder)
    measured = replicas(arguments.means, context.config.limits.searches)
    wanted = [*measured, *tests(arguments.tested, arguments.tests)]
    missing = [(place, signal, *job) for job in wanted if not has_record(injected_record(place, *job))]
    if not arguments.summary:
        search_missing(place, context, run_injected, missing, f"{len(wanted)} injected searches")
    signals = signal_model(place, signal, measured)
    values = [efficiency.values.tolist() for at_cut in signals if (efficiency := at_cut.passes)]
    decides = [
        values,
        arguments.means,
        context.config.limits.model_dump(mode="json"),
        None if arguments.calibration is None else file_hash(arguments.calibration),
        code_hash("bumphunt.signal_limits"),
    ]
    key = content_hash(decides)[:12]
    pulls = None if arguments.calibration is None else read_pulls(arguments.calibration)
    jobs, targets = [], []
    for job in tests(arguments.tested, arguments.tests):
        if has_record(injected_record(place, *job)):
            targets.append(arguments.output / "limits" / key / f"{job[0]:g}_{job[1]}.json")
            if not has_record(targets[-1]):
                path = injected_record(place, *job)
                jobs.append((context.config, place.windows[0], signals, arguments.means, pulls, path, targets[-1]))
    for _ in in_processes(test_limits, jobs, context.workers):
        pass
    rows = [read_trial(target) for target in targets]
    write_json(arguments.output / "coverage.json", rows)
    sys.stdout.write("\n".join(summary(rows, arguments.means)) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("signal", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--means", type=float, nargs="+", required=True)
    parser.add_argument("--tested", type=float, nargs="+", required=True)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the records; the one that belongs to this code by default")
    parser.add_argument("--calibration", type=Path, help="record of null searches: limits with calibrated errors")
    parser.add_argument("--summary", action="store_true")
    try:
        main(parser.parse_args())
    except DrapesError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
