"""Pulls of whole searches without a signal, in both schemes of training.

    python analysis/null_searches.py configs/quickstart.yaml -o OUT [--window 3300-3700] [--nulls 200] [--events 64000]

Every null is generated anew: masses from the inclusive fit of the configuration's background events, features from
models trained on bootstraps of their sidebands (``drapes_hep/studies/null_events.py``). Each is searched twice, with
cross-fitted templates and with held-out sidebands, in one window, everything trained again.

Writes ``nulls_PART.json``, a row a null, scheme and cut; a run that was ended goes on where it was.
``--parts 2 --part 0`` makes every second null, so that two processes share the work. Prints, for each scheme and cut,
mean and width of the pulls (observed - expected) / sqrt(expected + error^2), the mean error of the expectation, and the
product of error and kappa, which says what an expectation is worth: kappa is the width of the pulls, or 1 where that is
smaller. The ratio of the products has an error from bootstraps of the nulls, which the schemes share. ``--summary``
only prints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from drapes_hep.config import Config, load_config
from drapes_hep.diffusion.checkpoints import CARD
from drapes_hep.errors import ConfigError, DrapesError
from drapes_hep.events.skims import read_truth
from drapes_hep.files import read_json, write_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window, parse_window, sliding_windows
from drapes_hep.rng import stage_seed
from drapes_hep.search import Search
from drapes_hep.stages.feature_tables import feature_matrix, load_events
from drapes_hep.stages.skim import skim
from drapes_hep.studies.null_events import NullGenerator, fit_null_masses, train_null_model
from drapes_hep.templates.feature_model import load_background_model, save_background_model

FloatArray = npt.NDArray[np.float64]
SCHEMES = ("cross_fit", "hold_out")
COLUMNS = ("null", "scheme", "cut", "observed", "expected", "error", "z_local")


def generator(config: Config, window: Window, folder: Path, bootstraps: int, reporter: Reporter) -> NullGenerator:
    """Select the configuration's background events; fit the generator to them, or read its models back."""
    run = open_run(folder / "events")
    skim(Context.of(config, run, workers=1, reporter=reporter))
    events = load_events(run.events, config.features)
    label = read_truth(run.truth).truth_for(np.asarray(events["event_id"]))
    if not (label == 0).any():
        raise ConfigError("null searches need background events: labels say that there are none")
    x, mjj = feature_matrix(events, config.features)[label == 0], np.asarray(events["mjj"])[label == 0]
    models = []
    for number in range(bootstraps):
        place = folder / "generator" / f"model_{number}"
        if not (place / CARD).exists():
            save_background_model(place, train_null_model(config, x, mjj, window, number))
            reporter.say(f"generator: model {number + 1} of {bootstraps}")
        models.append(load_background_model(place))
    return NullGenerator(config, fit_null_masses(config, mjj, (window,)), tuple(models))


def search_null(
    config: Config, window: Window, number: int, events: dict[str, FloatArray], scheme: str
) -> Iterator[dict[str, Any]]:
    """Search one null in one scheme; yield a row a cut."""
    search = Search.of_events(
        events,
        config=config,
        workers=1,
        quiet=True,
        seed=stage_seed(config.seed, "null search", number) % 2**31,
        signal={"inject": None},
        training={"scheme": scheme},
        windows={"width": window.hi - window.lo, "step": window.hi - window.lo, "first": window.lo, "last": window.lo},
        hunt={"toys": 1, "spurious_signal": False},
        blind=False,
    )
    for point in search.run().windows[0].working_points:
        values = (point.observed, point.expected, point.expected_error, point.z_local)
        yield dict(zip(COLUMNS, (number, scheme, point.background_efficiency, *values), strict=True))


def read_nulls(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of all nulls, in order of number."""
    rows = [row for file in sorted(folder.glob("nulls_*.json")) for row in read_json(file)]
    return sorted(rows, key=lambda row: int(row["null"]))


def pulls_of(rows: list[dict[str, Any]]) -> tuple[FloatArray, dict[str, FloatArray], dict[str, FloatArray]]:
    """Return the cuts, and of each scheme pulls and errors, shape (nulls, cuts); NaN where nothing is expected."""
    cuts = np.array(sorted({row["cut"] for row in rows}, reverse=True))
    nulls = sorted({row["null"] for row in rows})
    place = {(row["null"], row["scheme"], row["cut"]): row for row in rows}
    pulls, errors = {}, {}
    for scheme in SCHEMES:
        observed, expected, error = (
            np.array([[place[n, scheme, cut][name] for cut in cuts] for n in nulls], dtype=float)
            for name in ("observed", "expected", "error")
        )
        pulls[scheme], errors[scheme] = (observed - expected) / np.sqrt(expected + error**2), error
    return cuts, pulls, errors


def mean_p_value(pulls: FloatArray) -> float:
    """Compute Hotelling's p-value of the mean pulls of all cuts, whose correlation is that of the pulls."""
    whole = pulls[np.isfinite(pulls).all(axis=1)]
    n, k = whole.shape
    if n <= k + 1:
        return float("nan")
    mean, covariance = whole.mean(axis=0), np.cov(whole.T)
    t2 = n * float(mean @ np.linalg.solve(covariance, mean))
    return float(stats.f.sf(t2 * (n - k) / (k * (n - 1)), k, n - k))


def worth(pulls: FloatArray, errors: FloatArray) -> FloatArray:
    """Compute error times kappa of each cut."""
    return np.asarray(np.nanmean(errors, axis=0) * np.maximum(np.nanstd(pulls, axis=0, ddof=1), 1.0))


def summary(folder: Path, bootstraps: int = 1000) -> str:
    """Write the table of both schemes."""
    rows = read_nulls(folder)
    cuts, pulls, errors = pulls_of(rows)
    n = len(pulls[SCHEMES[0]])
    if n < 2 * len(cuts):
        return f"{n} nulls: too few for a summary"
    rng = np.random.default_rng(1)
    draws = [rng.integers(n, size=n) for _ in range(bootstraps)]
    lines = [f"{n} nulls"]
    for scheme in SCHEMES:
        p, e = pulls[scheme], errors[scheme]
        lines.append(f"{scheme}: p-value of the mean pulls {mean_p_value(p):.3g}")
        for i, cut in enumerate(cuts):
            good = p[np.isfinite(p[:, i]), i]
            width = good.std(ddof=1)
            lines.append(
                f"  {cut:<7g} quoted {len(good):<5d} mean {good.mean():+.3f} +- {width / len(good) ** 0.5:.3f}"
                f"   width {width:.3f} +- {width / (2 * len(good)) ** 0.5:.3f}   error {np.nanmean(e[:, i]):.2f}"
                f"   error x kappa {worth(p, e)[i]:.2f}"
            )
    ours, other = ((pulls[scheme], errors[scheme]) for scheme in SCHEMES)
    ratio = worth(*ours) / worth(*other)
    spread = np.std([worth(ours[0][d], ours[1][d]) / worth(other[0][d], other[1][d]) for d in draws], axis=0)
    for i, cut in enumerate(cuts):
        lines.append(f"error x kappa, {SCHEMES[0]} / {SCHEMES[1]} at {cut:g}: {ratio[i]:.3f} +- {spread[i]:.3f}")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Make the nulls that are not there yet."""
    config = load_config(arguments.config, [*arguments.assignments, "signal.inject=0"])
    reporter, folder = Reporter(), arguments.output
    window = parse_window(arguments.window, sliding_windows(config))
    settings = {"config": config.model_dump(mode="json"), "window": window.name, "events": arguments.events}
    settings_file = folder / "settings.json"
    if settings_file.exists() and read_json(settings_file) != settings:
        raise ConfigError(f"{folder}: holds nulls of another configuration; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(settings_file, settings)
    source = generator(config, window, folder, arguments.models, reporter)
    done = {row["null"] for row in read_nulls(folder)}
    file = folder / f"nulls_{arguments.part}.json"
    for number in range(arguments.part, arguments.nulls, arguments.parts):
        if number in done:
            continue
        events = source.events(number, arguments.events)
        rows = [row for scheme in SCHEMES for row in search_null(config, window, number, events, scheme)]
        write_json(file, [*(read_json(file) if file.exists() else ()), *rows])
        reporter.say(
            f"null {number}: z " + ", ".join("-" if row["z_local"] is None else f"{row['z_local']:.2f}" for row in rows)
        )


def main() -> None:
    """Run the study, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--window", default="3300-3700")
    parser.add_argument("--nulls", type=int, default=200)
    parser.add_argument("--events", type=float, help="Mean number of events; as many as the sample has by default.")
    parser.add_argument("--models", type=int, default=5, help="Models of the generator.")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--summary", action="store_true", help="Print the table of what is there.")
    arguments = parser.parse_args()
    if not arguments.summary:
        run(arguments)
    print(summary(arguments.output))  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except DrapesError as error:
        sys.exit(f"{error}")
