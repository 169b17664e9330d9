"""Pulls of whole searches without a signal, in both schemes of training.

    python analysis/null_searches.py configs/quickstart.yaml -o OUT [--window 3300-3700] [--nulls 200] [--events 64000]

Every null is generated anew: masses from the inclusive fit of the configuration's background events, features from
models trained on bootstraps of their sidebands (``drapes_hep/studies/null_events.py``). Each is searched twice, with
cross-fitted templates and with held-out sidebands, in one window, everything trained again. Nulls of one of the
generator's ``--models`` share its truth.

Writes ``nulls_PART.json``, a row a null, scheme and cut; a run that was ended goes on where it was.
``--parts 2 --part 0`` makes every second null: start the others when the generator is trained. Prints, for each scheme
and cut, over the nulls in which both schemes quote an expectation:

- mean and width of the pulls (observed - expected) / sqrt(expected + error^2), and how often z_local exceeds 2 and 3;
- the p-value that the mean pulls of all cuts are 0 (Hotelling), and that those of the generator's models are alike;
- what an expectation is worth: its mean error times kappa, the root mean square of the pulls where that is above 1,
  and the root mean square of observed - expected. Their ratios between the schemes have errors from bootstraps of the
  nulls, which the schemes share;
- what one half of the nulls says of the p-values of the other half (``drapes_hep/studies/calibration.py``).

``--summary`` only prints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from drapes_hep.config import Config, changed_config, load_config
from drapes_hep.diffusion.checkpoints import CARD
from drapes_hep.errors import ConfigError, DrapesError
from drapes_hep.events.skims import read_truth
from drapes_hep.files import file_hash, read_json, write_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import RunDirectory, open_run
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window, parse_window, sliding_windows
from drapes_hep.stages.feature_tables import feature_matrix, load_events, unweighted
from drapes_hep.stages.skim import skim
from drapes_hep.studies.calibration import calibrate
from drapes_hep.studies.calibration import nulls_of as calibration_nulls
from drapes_hep.studies.null_events import NullGenerator, null_generator, train_null_model
from drapes_hep.studies.null_searches import check_nulls, search_null
from drapes_hep.templates.feature_model import load_background_model, save_background_model

FloatArray = npt.NDArray[np.float64]
SCHEMES = ("cross_fit", "hold_out")
COLUMNS = ("cut", "observed", "expected", "error", "z_local")


def check(config: Config, arguments: argparse.Namespace) -> None:
    """Refuse what no null can be made or searched of; raises ConfigError."""
    check_nulls(config)
    if min(arguments.models, arguments.parts, arguments.nulls) < 1 or not 0 <= arguments.part < arguments.parts:
        raise ConfigError("--models, --parts and --nulls must be at least 1, --part at least 0 and less than --parts")
    if arguments.events is not None and not arguments.events > 0:
        raise ConfigError(f"--events must be positive, got {arguments.events:g}")


def background(config: Config, run: RunDirectory) -> tuple[FloatArray, FloatArray]:
    """Return features and masses of the selected background events."""
    events = load_events(run.events, config.features)
    unweighted(events["weight"], "null searches")
    label = read_truth(run.truth).truth_for(np.asarray(events["event_id"]))
    if not (label == 0).any():
        raise ConfigError("null searches need background events: labels say that there are none")
    return feature_matrix(events, config.features)[label == 0], np.asarray(events["mjj"])[label == 0]


def generator(
    config: Config,
    window: Window,
    events: tuple[FloatArray, FloatArray],
    folder: Path,
    bootstraps: int,
    reporter: Reporter,
) -> NullGenerator:
    """Fit the generator to background events, or read its models back."""
    x, mjj = events
    # a spectrum that the shape does not describe is refused before any training
    source = null_generator(config, mjj, (window,), ())
    models = []
    for number in range(bootstraps):
        place = folder / "generator" / f"model_{number}"
        if not (place / CARD).exists():
            save_background_model(place, train_null_model(config, x, mjj, window, number))
            reporter.say(f"generator: model {number + 1} of {bootstraps}")
        models.append(load_background_model(place))
    return replace(source, models=(tuple(models),))


def search_scheme(
    config: Config, window: Window, number: int, events: dict[str, FloatArray], scheme: str, model: int = 0
) -> Iterator[dict[str, Any]]:
    """Search one null of one of the generator's models in one scheme; yield a row a cut."""
    tree = config.model_dump(mode="json")
    width = window.hi - window.lo
    own = changed_config(
        config,
        {
            "training": {**tree["training"], "scheme": scheme},
            "windows": {**tree["windows"], "width": width, "step": width, "first": window.lo, "last": window.lo},
        },
    )
    for row in search_null(own, number, events):
        yield {"null": number, "model": model, "scheme": scheme, **{name: row[name] for name in COLUMNS}}


def read_nulls(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of all nulls, in order of number."""
    rows = [row for file in sorted(folder.glob("nulls_*.json")) for row in read_json(file)]
    return sorted(rows, key=lambda row: int(row["null"]))


@dataclass(frozen=True)
class Nulls:
    """What nulls of a scheme gave, shape (nulls, cuts); NaN where one of the schemes quotes nothing."""

    observed: FloatArray
    expected: FloatArray
    error: FloatArray
    z: FloatArray

    @property
    def pulls(self) -> FloatArray:
        """Over Poisson fluctuation and the error of the expectation."""
        return np.asarray((self.observed - self.expected) / np.sqrt(self.expected + self.error**2))

    def take(self, rows: npt.NDArray[np.intp]) -> Nulls:
        """Return some of the nulls."""
        return Nulls(self.observed[rows], self.expected[rows], self.error[rows], self.z[rows])

    def worth(self) -> FloatArray:
        """Compute mean error times kappa of each cut."""
        kappa = np.sqrt(np.nanmean(self.pulls**2, axis=0))
        return np.asarray(np.nanmean(self.error, axis=0) * np.maximum(kappa, 1.0))

    def deviation(self) -> FloatArray:
        """Compute the root mean square of observed - expected of each cut."""
        return np.asarray(np.sqrt(np.nanmean((self.observed - self.expected) ** 2, axis=0)))


def nulls_of(rows: list[dict[str, Any]]) -> tuple[FloatArray, npt.NDArray[np.int64], dict[str, Nulls]]:
    """Return the cuts, the generator's model of each null, and the nulls of each scheme."""
    cuts = np.array(sorted({row["cut"] for row in rows}, reverse=True))
    models = {row["null"]: row["model"] for row in rows}
    place = {(row["null"], row["scheme"], row["cut"]): row for row in rows}
    columns = {
        scheme: [
            np.array([[place[n, scheme, cut][name] for cut in cuts] for n in models], dtype=float)
            for name in ("observed", "expected", "error", "z_local")
        ]
        for scheme in SCHEMES
    }
    silent = np.any([~np.isfinite(values) for scheme in SCHEMES for values in columns[scheme]], axis=0)
    nulls = {scheme: Nulls(*(np.where(silent, np.nan, values) for values in columns[scheme])) for scheme in SCHEMES}
    return cuts, np.array(list(models.values())), nulls


def mean_p_value(pulls: FloatArray) -> float:
    """Compute Hotelling's p-value of the mean pulls of all cuts, whose correlation is that of the pulls."""
    whole = pulls[np.isfinite(pulls).all(axis=1)]
    n, k = whole.shape
    if n <= k + 1:
        return float("nan")
    mean, covariance = whole.mean(axis=0), np.cov(whole.T)
    t2 = n * float(mean @ np.linalg.solve(covariance, mean))
    return float(stats.f.sf(t2 * (n - k) / (k * (n - 1)), k, n - k))


def models_p_value(pulls: FloatArray, model: npt.NDArray[np.int64]) -> float:
    """Compute the p-value that the generator's models have the same mean pull, of the cut where it is smallest.

    Times the number of cuts: they are not independent.
    """
    p = []
    for column in pulls.T:
        groups = [column[(model == m) & np.isfinite(column)] for m in np.unique(model)]
        groups = [group for group in groups if len(group) > 1]
        p.append(float(stats.f_oneway(*groups).pvalue) if len(groups) > 1 else float("nan"))
    return min(1.0, float(np.nanmin(p)) * len(p)) if np.isfinite(p).any() else float("nan")


def calibration_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Write what one half of the nulls of a scheme says of the p-values of the other half."""
    by_null: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_null.setdefault(row["null"], []).append({"window": "", **row})
    try:
        halves = calibrate(calibration_nulls(list(by_null.values())), 1 + max(int(row["model"]) for row in rows))
    except ConfigError:
        return []  # too few
    lines = [
        f"  {cut:<6g} first half: b {mean:+.2f}, kappa {kappa:.2f} +- {error:.2f}; other half: kappa {other:.2f},"
        f" uniform local p {local:.2g}, calibrated {calibrated:.2g}"
        for (_, cut), mean, kappa, error, other, local, calibrated in zip(
            halves.points, halves.mean, halves.kappa, halves.kappa_error, halves.test_kappa, halves.local_ks,
            halves.calibrated_ks, strict=True,
        )
    ]  # fmt: skip
    whole = f"{halves.whole_ks:.2g}, calibrated {halves.calibrated_whole_ks:.2g}"
    trials = f"{halves.trials:.2f}, calibrated {halves.calibrated_trials:.2f}"
    return [*lines, f"  whole search: effective trials {trials}; other half: uniform p {whole}"]


def summary(folder: Path, bootstraps: int = 1000) -> str:
    """Write the table of both schemes."""
    rows = read_nulls(folder)
    n = len({row["null"] for row in rows})
    if n < 10:
        return f"{n} nulls: too few for a summary"
    cuts, model, nulls = nulls_of(rows)
    rng = np.random.default_rng(1)
    draws = [rng.integers(n, size=n) for _ in range(bootstraps)]
    lines = [f"{n} nulls of {len(np.unique(model))} models"]
    for scheme, own in nulls.items():
        pulls = own.pulls
        lines.append(
            f"{scheme}: p-value of the mean pulls {mean_p_value(pulls):.3g}, that models agree"
            f" {models_p_value(pulls, model):.2g}"
        )
        for i, cut in enumerate(cuts):
            quoted = pulls[np.isfinite(pulls[:, i]), i]
            width = quoted.std(ddof=1)
            z = own.z[np.isfinite(pulls[:, i]), i]
            lines.append(
                f"  {cut:<6g} quoted {len(quoted):<4d} mean {quoted.mean():+.3f} +- {width / len(quoted) ** 0.5:.3f}"
                f"  width {width:.3f} +- {width / (2 * len(quoted)) ** 0.5:.3f}  z > 2, 3: {(z > 2).sum()},"
                f" {(z > 3).sum()}  error {np.nanmean(own.error[:, i]):.2f}  times kappa {own.worth()[i]:.2f}"
                f"  rms deviation {own.deviation()[i]:.2f}"
            )
        lines += calibration_lines([row for row in rows if row["scheme"] == scheme])
    ours, other = (nulls[scheme] for scheme in SCHEMES)
    for name, of in (("error times kappa", Nulls.worth), ("rms deviation", Nulls.deviation)):
        ratio = of(ours) / of(other)
        spread = np.nanstd([of(ours.take(d)) / of(other.take(d)) for d in draws], axis=0)
        values = ", ".join(f"{r:.3f} +- {s:.3f} at {cut:g}" for r, s, cut in zip(ratio, spread, cuts, strict=True))
        lines.append(f"{name}, {SCHEMES[0]} / {SCHEMES[1]}: {values}")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Make the nulls that are not there yet."""
    config = load_config(arguments.config, [*arguments.assignments, "signal.inject=0"])
    check(config, arguments)
    reporter, folder = Reporter(), arguments.output
    window = parse_window(arguments.window, sliding_windows(config))
    events_run = open_run(folder / "events")
    skim(Context.of(config, events_run, workers=1, reporter=reporter))
    settings = {
        "config": config.model_dump(mode="json"),
        "window": window.name,
        "events": arguments.events,
        "models": arguments.models,
        "data": file_hash(events_run.events),
    }
    settings_file = folder / "settings.json"
    if settings_file.exists() and read_json(settings_file) != settings:
        raise ConfigError(f"{folder}: holds nulls of other events or another configuration; choose another folder")
    write_json(settings_file, settings)
    source = generator(config, window, background(config, events_run), folder, arguments.models, reporter)
    done = {row["null"] for row in read_nulls(folder)}
    file = folder / f"nulls_{arguments.part}.json"
    for number in range(arguments.part, arguments.nulls, arguments.parts):
        if number in done:
            continue
        events, model = source.events(number, arguments.events), number % arguments.models
        rows = [row for scheme in SCHEMES for row in search_scheme(config, window, number, events, scheme, model)]
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
    parser.add_argument(
        "--events", type=float, help="Mean number of events in the fitted range; as many as the sample has by default."
    )
    parser.add_argument("--models", type=int, default=8, help="Models of the generator.")
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
