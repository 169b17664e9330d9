"""Does the hunt find nothing where nothing is? Pulls over bootstraps of background events, with a perfect template.

    python analysis/null_bootstraps.py configs/lhco_rd.yaml --set data.path=FILE -o OUT

Every bootstrap splits the background in two and takes one half's window as template, which tests the statistics alone;
``analysis/null_searches.py`` tests whole searches. Each background event is drawn a Poisson number of times. The mean
of that number is the ratio of the fitted to the counted spectrum in the event's mass bin, so that the expected spectrum
is the smooth fit: else every bootstrap would inherit the fluctuation of the one sample that there is. What a cut
selects is not smoothed so, and keeps the sample's own fluctuation beside the bootstrap's: with N of M events
(``--events``), widths grow by sqrt(1 + N / M). Copies of an event share its fold, so none is scored by a model that saw
another.

Writes ``pulls.csv`` (a row a bootstrap and working point; resumed, not repeated) and prints the table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from drapes_hep.bumphunt.selection import count_selected
from drapes_hep.bumphunt.working_points import WorkingPoint, hunt_window
from drapes_hep.config import Config, load_config
from drapes_hep.cwola.classifiers import load_classifier
from drapes_hep.cwola.scores import Sample, out_of_fold_scores
from drapes_hep.events.ranges import in_ranges
from drapes_hep.events.skims import Skim, read_truth
from drapes_hep.folds import assign_folds
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window, parse_window, sliding_windows
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.stages.feature_tables import feature_matrix, load_events
from drapes_hep.stages.skim import skim

COLUMNS = ("bootstrap", "background_efficiency", "observed", "expected", "expected_error", "pull")


@dataclasses.dataclass(frozen=True)
class Events:
    """Background events of one bootstrap."""

    x: np.ndarray
    mjj: np.ndarray
    root: np.ndarray

    def where(self, chosen: np.ndarray) -> Events:
        """Some of them."""
        return Events(self.x[chosen], self.mjj[chosen], self.root[chosen])

    def sample(self, config: Config) -> Sample:
        """As a classifier meets them: folds by the original event."""
        fold = assign_folds(self.root, config.cwola.folds, config.seed)
        indices = [config.features.index(name) for name in config.classifier_features]
        return Sample(self.x[:, indices], np.ones(len(self.x)), fold, self.root)


def background(events: Skim, label: np.ndarray, config: Config) -> Events:
    """The true background of a labelled skim, in the fitted range."""
    chosen = (label == 0) & in_ranges(np.asarray(events["mjj"]), [config.mass.fitted])
    return Events(
        feature_matrix(events, config.features)[chosen],
        np.asarray(events["mjj"])[chosen],
        np.asarray(events["event_id"])[chosen],
    )


def bootstrap(
    events: Events, edges: np.ndarray, config: Config, number: int, size: int | None
) -> tuple[Events, Events]:
    """Draw a bootstrap of one half of the events, and an independent one of the other half."""
    rng = np.random.default_rng(stage_seed(config.seed, "bootstrap", number))
    counts = np.histogram(events.mjj, edges)[0].astype(float)
    fit = fit_spectrum(counts, edges, None, find_shape(config.mass), config.mass.sqrt_s)
    place = np.clip(np.searchsorted(edges, events.mjj, side="right") - 1, 0, len(counts) - 1)
    scale = 0.5 * (1.0 if size is None else size / len(events.mjj))

    def take(half: np.ndarray) -> Events:
        # by the half's own counts: else the random halving would fluctuate on top of the Poisson copies
        own = np.bincount(place[half], minlength=len(counts))
        copies = rng.poisson(scale * fit.expected[place[half]] / own[place[half]])
        return events.where(np.repeat(half, copies))

    first = rng.random(len(events.mjj)) < 0.5
    return take(np.flatnonzero(first)), take(np.flatnonzero(~first))


def working_points(
    data: Events,
    template: Events,
    window: Window,
    edges: np.ndarray,
    config: Config,
    workers: int,
) -> tuple[WorkingPoint, ...]:
    """Classify and hunt in one window."""
    inside, outside = window.in_signal_region(data.mjj), window.in_sidebands(data.mjj)
    scores = out_of_fold_scores(
        load_classifier(config.cwola.classifier, config.cwola.options, folder=config.folder),
        data.where(inside).sample(config),
        template.sample(config),
        {"sidebands": data.where(outside).sample(config)},
        folds=config.cwola.folds,
        ensemble=config.cwola.ensemble,
        seed=config.seed,
        workers=workers,
    )
    tail = np.empty(len(data.mjj))
    tail[inside], tail[outside] = scores["data"].tail, scores["sidebands"].tail
    points = config.hunt.background_efficiencies
    counts = count_selected(data.mjj, tail, edges, points)
    return hunt_window(
        counts, window, shape=find_shape(config.mass), sqrt_s=config.mass.sqrt_s, min_events=config.hunt.min_events
    ).working_points


def rows(number: int, points: tuple[WorkingPoint, ...]) -> Iterator[dict[str, object]]:
    """One row a working point; the pull is over the Poisson error and the fit's together."""
    for point in points:
        pull = None
        if point.observed is not None and point.expected is not None and point.expected_error is not None:
            pull = (point.observed - point.expected) / np.hypot(np.sqrt(point.expected), point.expected_error)
        values = (number, point.background_efficiency, point.observed, point.expected, point.expected_error, pull)
        yield dict(zip(COLUMNS, values, strict=True))


def table(path: Path) -> str:
    """Mean and width of the pulls at each working point."""
    with path.open(encoding="utf-8") as stream:
        records = list(csv.DictReader(stream))
    lines = ["background efficiency   bootstraps   mean pull           width"]
    for cut in sorted({float(row["background_efficiency"]) for row in records}, reverse=True):
        pulls = [float(row["pull"]) for row in records if float(row["background_efficiency"]) == cut and row["pull"]]
        if len(pulls) < 2:
            lines.append(f"{cut:<23g} {len(pulls):<12d} too few expectations")
            continue
        width = float(np.std(pulls, ddof=1))
        error = width / np.sqrt(len(pulls))
        spread = width / np.sqrt(2 * (len(pulls) - 1))
        lines.append(
            f"{cut:<23g} {len(pulls):<12d} {np.mean(pulls):+.2f} +- {error:.2f}       {width:.2f} +- {spread:.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--window", default="3300-3700")
    parser.add_argument("--bootstraps", type=int, default=20)
    parser.add_argument("--events", type=int, help="Expected events a bootstrap; as many as the sample has by default.")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    config = load_config(arguments.config, [*arguments.assignments, "signal.inject=0"])
    run = open_run(arguments.output / "events")
    context = Context.of(config, run, workers=arguments.workers, reporter=Reporter())
    skim(context)
    events = load_events(run.events, config.features)
    label = read_truth(run.truth).truth_for(np.asarray(events["event_id"]))
    sample = background(events, label, config)
    window = parse_window(arguments.window, sliding_windows(config))
    edges = spectrum_edges(config.mass.fitted, config.mass.bin_width, [window])
    path = arguments.output / "pulls.csv"
    done: set[int] = set()
    if path.exists():
        with path.open(encoding="utf-8") as stream:
            done = {int(row["bootstrap"]) for row in csv.DictReader(stream)}
    else:
        path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    for number in sorted(set(range(arguments.bootstraps)) - done):
        seeded = config.model_copy(update={"seed": stage_seed(config.seed, "null", number) % 2**31})
        data, other = bootstrap(sample, edges, seeded, number, arguments.events)
        template = other.where(window.in_signal_region(other.mjj))
        points = working_points(data, template, window, edges, seeded, arguments.workers)
        with path.open("a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerows(list(rows(number, points)))
        context.reporter.say(
            f"bootstrap {number}: "
            + ", ".join(f"{row['pull']:+.2f}" if row["pull"] is not None else "-" for row in rows(number, points))
        )
    print(table(path))  # noqa: T201


if __name__ == "__main__":
    main()
