"""The trees of LightGBM beside those of scikit-learn: seconds, and how well they find the signal, in one window.

``python benchmarks/trees.py RUN [--window 3300-3700] [--significance 1 2 6] [--seeds 5] [--json FILE]`` takes a
finished run on labelled events, such as the quickstart's, and repeats its classification: all folds and members, data
against template, sidebands scored as well. Of the signal in the window, a random choice is injected so that S/sqrt(B)
is as asked, all of it by default; all of it is judged, each event by models that did not see it.

Times are CPU seconds of this process. With ``--json``, what the file holds is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from limits import tree_fit
from record import Benchmark, Sizes, Work, by_events, timed

from drapes_hep.config import make_config
from drapes_hep.cwola.scores import Sample, Scores, equal_size_auc, out_of_fold_scores, ranking
from drapes_hep.cwola.trees import SklearnTrees, Trees
from drapes_hep.events.skims import read_skim, read_truth
from drapes_hep.fixed import QUALITY_ENSEMBLE
from drapes_hep.metrics import auc, roc, sic_at_rejection
from drapes_hep.pipeline.provenance import makers
from drapes_hep.stages.classify import sample_of

ENGINES = {"LightGBM": Trees, "scikit-learn": SklearnTrees}
Record = dict[str, float | str | None]


def load(run: Path, window: str) -> tuple[dict[str, Sample], int, int]:
    """Background and signal of the window, its sidebands and its template; number of folds, and of members."""
    config = make_config(json.loads((run / "manifest.json").read_text())["config"])
    low, high = map(float, window.split("-"))
    names = ("event_id", "weight", "mjj", *config.features)
    events = read_skim(run / "skim" / "events.parquet", names)
    template = read_skim(run / "windows" / window / "template.parquet", (*names, "parent_id"))
    mjj = np.asarray(events["mjj"])
    inside = (mjj >= low) & (mjj < high)
    signal = read_truth(run / "skim" / "truth.parquet").truth_for(np.asarray(events["event_id"])) == 1
    folds, features = config.cwola.folds, config.classifier_features
    parts = {"background": inside & ~signal, "signal": inside & signal, "sidebands": ~inside}
    samples = {name: sample_of(events, features, folds, config.seed, part) for name, part in parts.items()}
    return samples | {"template": sample_of(template, features, folds, config.seed)}, folds, config.cwola.ensemble


def joined(first: Sample, second: Sample) -> Sample:
    """The events of both."""
    return Sample(
        *(
            np.concatenate([getattr(sample, name) for sample in (first, second)])
            for name in ("x", "weight", "fold", "group")
        )
    )


def measure(
    samples: dict[str, Sample], engine: str, significance: float | None, seed: int, folds: int, ensemble: int
) -> Record:
    """Classify the window once with one engine."""
    background, signal = samples["background"], samples["signal"]
    events = len(signal.x) if significance is None else round(significance * np.sqrt(len(background.x)))
    if events > len(signal.x):
        raise SystemExit(f"{events} signal events are asked for, the window has {len(signal.x)}: lower --significance")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(signal.x))[:events])
    data = joined(background, signal.take(chosen))
    seconds, scores = timed(
        lambda: out_of_fold_scores(
            ENGINES[engine],
            data,
            samples["template"],
            {"sidebands": samples["sidebands"], "signal": signal},
            folds=folds,
            ensemble=ensemble,
            seed=seed,
        )
    )
    own = Scores(scores["data"].score[: len(background.x)], scores["data"].tail[: len(background.x)])
    both = Scores(*(np.concatenate([getattr(part, n) for part in (scores["signal"], own)]) for n in ("score", "tail")))
    truth = np.repeat([True, False], [len(signal.x), len(background.x)])
    rank = ranking(both)
    curve = roc(rank, truth)
    points = {f"sic_{rejection}": sic_at_rejection(curve, float(rejection)) for rejection in (100, 1000)}
    return {
        "engine": engine,
        "significance": significance,
        "signal_events": events,
        "seed": seed,
        "cpu_seconds": seconds,
        "auc": auc(rank, truth).value,
        **{name: None if point is None else point.sic for name, point in points.items()},
    }


FOLDS, ENSEMBLE = 5, 3


def drawn(events: int, seed: int, shift: float) -> Sample:
    """Draw events with five features, of which a fifth are shifted."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(events, 5)) + shift * (np.arange(events) % 5 == 0)[:, None]
    # identities of two samples differ
    return Sample(x, np.ones(events), rng.integers(0, FOLDS, events), np.arange(events) + seed * 10**9)


def fit_of_fold(first: Sample, second: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return what one classifier is trained on: all folds but one."""
    parts = [sample.x[sample.fold != 0] for sample in (first, second)]
    order = np.random.default_rng(1).permutation(sum(map(len, parts)))
    return np.concatenate(parts)[order], np.repeat([1.0, 0.0], [len(part) for part in parts])[order]


def classify(events: int) -> Work:
    """Classify data against three times as many template events, out of fold, and score twice as many of sidebands."""
    data, template = drawn(events // 4, 1, 1.0), drawn(events - events // 4, 2, 0.0)
    others = {"sidebands": drawn(2 * (events // 4), 3, 0.0)}
    return Work(
        lambda: out_of_fold_scores(Trees, data, template, others, folds=FOLDS, ensemble=ENSEMBLE, seed=1),
        events,
        "plain fits of LightGBM",
        tree_fit(*fit_of_fold(data, template)),
        FOLDS * ENSEMBLE,
    )


def quality(events: int) -> Work:
    """Compute the AUC between two samples of nearly the same events."""
    first, second = drawn(events // 2, 1, 0.1), drawn(events // 2, 2, 0.0)
    options = {"choice": 1, "folds": FOLDS, "ensemble": QUALITY_ENSEMBLE, "seed": 1}
    return Work(
        lambda: equal_size_auc(Trees, first, second, events // 2, **options),
        events,
        "plain fits of LightGBM",
        tree_fit(*fit_of_fold(first, second)),
        FOLDS * QUALITY_ENSEMBLE,
    )


def up_to_its_most(sizes: Sizes) -> list[dict[str, int]]:
    """Return numbers of events up to what a search compares: 20,000 of each sample."""
    return [{"events": min(events, 40_000)} for events in sizes.events[:2]]


BENCHMARKS = (Benchmark("classify", classify, by_events), Benchmark("quality", quality, up_to_its_most))


def spread(values: list[float]) -> str:
    """Mean and its error."""
    error = statistics.stdev(values) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4g}+-{error:.2g}"


def table(records: list[Record]) -> None:
    """Print a line for each engine and strength."""
    columns = ("cpu_seconds", "auc", "sic_100", "sic_1000")
    for strength in dict.fromkeys(record["significance"] for record in records):
        for engine in ENGINES:
            rows = [record for record in records if (record["engine"], record["significance"]) == (engine, strength)]
            numbers = {name: [record[name] for record in rows if record[name] is not None] for name in columns}
            words = "  ".join(f"{name} {spread(values)}" for name, values in numbers.items() if values)
            if rows:
                label = "all signal" if strength is None else f"S/sqrt(B) = {strength:g}"
                print(f"{label}, {rows[0]['signal_events']} events, {len(rows)} seeds, {engine}: {words}")


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--window", default="3300-3700")
    parser.add_argument("--significance", type=float, nargs="*", default=[None])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ensemble", type=int, help="members a fold; the run's by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    samples, folds, ensemble = load(options.run, options.window)
    ensemble = options.ensemble or ensemble
    print({name: len(sample.x) for name, sample in samples.items()}, f"{folds} folds x {ensemble}")
    origin = {"run": str(options.run), "window": options.window, "ensemble": ensemble, **makers()}
    out = {"origin": origin, "records": []}
    if options.json is not None and options.json.exists():
        out["records"] = json.loads(options.json.read_text())["records"]
    done = {(record["engine"], record["significance"], record["seed"]) for record in out["records"]}
    for seed in range(1, options.seeds + 1):
        for strength in options.significance:
            for engine in ENGINES:
                if (engine, strength, seed) in done:
                    continue
                out["records"].append(measure(samples, engine, strength, seed, folds, ensemble))
                if options.json is not None:
                    options.json.write_text(json.dumps(out, indent=1))
    table(out["records"])


if __name__ == "__main__":
    main()
