"""How well does a blinded search predict the unblinded one? A finished run hunted blind, and pseudo-experiments of it.

    python analysis/blind_sensitivity.py RUN [--toys 200] [--no-spurious] [-o OUT]

RUN is a finished run that is not blinded. Its scores are counted with and without the events in its windows, and what
the blinded hunt expects is compared with the unblinded one: the error of the expectation, and the signal in the window
that half of all experiments see with 3 sigma.

Pseudo-experiments have the run's fitted background: inclusive counts from its fit of the full spectrum, and at a cut a
binomial part of the counted events. Each is hunted blind and open. Then as many signal events as the blinded hunt asks
for are added to the window's count, a Poisson number, and it is judged by the open expectation: the median z has to
be 3.

Writes ``blind-sensitivity.csv`` (a row per window and cut of the run) and ``blind-sensitivity-toys.csv`` (the same for
the pseudo-experiments) to OUT, by default RUN/blind-sensitivity.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt import (
    SelectedCounts,
    Sensitivity,
    WindowHunt,
    count_selected,
    expected_spurious_signals,
    hunt_window,
    local_significance,
    spurious_signals,
    window_sensitivity,
)
from drapes_hep.config import Config
from drapes_hep.errors import DrapesError, RunDirectoryError
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json, write_bytes
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.regions import Window, blinded, sliding_windows
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.studies.study import csv_text
from drapes_hep.templates.parts import met_no_training

FloatArray = npt.NDArray[np.float64]
Row = dict[str, Any]
SEED = 1


@dataclass(frozen=True)
class Search:
    """What hunts an experiment.

    Attributes
    ----------
    windows : tuple of Window
        That are hunted.
    hidden : tuple of Window
        That a blinded search hides.
    shape : str
        A key of ``SHAPES``.
    sqrt_s : float
        GeV.
    min_events : int
    spurious : bool
        Whether errors include the spurious signal.
    """

    windows: tuple[Window, ...]
    hidden: tuple[Window, ...]
    shape: str
    sqrt_s: float
    min_events: int
    spurious: bool

    def hunt(self, counts: Sequence[SelectedCounts]) -> tuple[list[WindowHunt], list[tuple[Sensitivity, ...]]]:
        """Hunt in the counts of each window, hidden bins or not."""
        blind = bool(counts[0].hidden.any())
        signals = spurious_signals(counts[0], self.windows, self.shape, self.sqrt_s) if self.spurious else None
        hunts = [
            hunt_window(
                count,
                window,
                shape=self.shape,
                sqrt_s=self.sqrt_s,
                min_events=self.min_events,
                blind=blind,
                spurious=None if signals is None else signals[i],
            )
            for i, (count, window) in enumerate(zip(counts, self.windows, strict=True))
        ]
        missed: Sequence[float | None] = [None] * len(hunts)
        if blind and self.spurious:
            missed = expected_spurious_signals(counts[0], hunts[0].fit, self.windows)
        return hunts, [
            window_sensitivity(count, hunted, spurious=size, min_events=self.min_events)
            for count, hunted, size in zip(counts, hunts, missed, strict=True)
        ]

    def hide(self, counts: Sequence[SelectedCounts]) -> list[SelectedCounts]:
        """Hide all windows."""
        centre = 0.5 * (counts[0].edges[1:] + counts[0].edges[:-1])
        hidden = blinded(centre, self.hidden)
        return [replace(count, counts=np.where(hidden, np.nan, count.counts), hidden=hidden) for count in counts]


def compare(search: Search, counts: Sequence[SelectedCounts]) -> list[Row]:
    """Hunt blinded and unblinded, and list both.

    Parameters
    ----------
    search : Search
    counts : sequence of SelectedCounts
        One per window, nothing hidden.

    Returns
    -------
    list of dict
        One per window and cut; what does not exist is None.
    """
    (seen, predicted), (hunts, reached) = search.hunt(search.hide(counts)), search.hunt(counts)
    rows = []
    for window, *parts in zip(search.windows, seen, predicted, hunts, reached, strict=True):
        for blind, before, point, after in zip(
            parts[0].working_points, parts[1], parts[2].working_points, parts[3], strict=True
        ):
            error, error_error = before.expected_error or (None, None)
            needed, needed_error = before.signal_z3 or (None, None)
            rows.append(
                {
                    "window_lo_gev": window.lo,
                    "window_hi_gev": window.hi,
                    "background_efficiency": point.background_efficiency,
                    "expected_blind": blind.expected,
                    "expected_error_blind": blind.expected_error,
                    "expected": point.expected,
                    "expected_error": point.expected_error,
                    "predicted_error": error,
                    "predicted_error_error": error_error,
                    "signal_z3": None if after.signal_z3 is None else after.signal_z3[0],
                    "predicted_signal_z3": needed,
                    "predicted_signal_z3_error": needed_error,
                }
            )
    return rows


def draw(
    mean: FloatArray, efficiency: FloatArray, counts: Sequence[SelectedCounts], rng: np.random.Generator
) -> list[SelectedCounts]:
    """Draw the counts of a search: an inclusive spectrum, and what passes each window's cuts.

    Parameters
    ----------
    mean : array, shape (bins,)
        Of the inclusive counts.
    efficiency : array, shape (windows, working points, bins)
        Of each cut relative to the one before it, share of the counted events included.
    counts : sequence of SelectedCounts
        One per window; bins, cuts and shares are theirs.
    rng : Generator

    Returns
    -------
    list of SelectedCounts
    """
    inclusive = rng.poisson(mean)
    out = []
    for count, fractions in zip(counts, efficiency, strict=True):
        nested = [inclusive]
        for fraction in fractions[1:]:
            nested.append(rng.binomial(nested[-1], fraction))
        disjoint = np.array(nested, dtype=np.float64)
        disjoint[:-1] -= disjoint[1:]
        out.append(replace(count, counts=disjoint))
    return out


def background(search: Search, counts: Sequence[SelectedCounts]) -> tuple[FloatArray, FloatArray]:
    """Return the mean of the inclusive spectrum of a run, and the efficiency of each cut as :func:`draw` takes it."""
    fit = fit_spectrum(counts[0].nested[0], counts[0].edges, None, search.shape, search.sqrt_s)
    hunts, _ = search.hunt(counts)
    centre = 0.5 * (fit.edges[1:] + fit.edges[:-1])
    out = np.zeros((len(counts), len(counts[0].efficiencies), len(centre)))
    for w, (count, hunted) in enumerate(zip(counts, hunts, strict=True)):
        share = np.where(hunted.sr.in_signal_region(centre), 1.0, count.share)
        before = fit.expected
        for i, point in enumerate(hunted.working_points[1:], 1):
            if point.spectrum is None:
                break
            passing = share * point.spectrum * fit.expected / hunted.fit.expected
            out[w, i] = np.clip(passing / before, 0.0, 1.0)
            before = passing
    return fit.expected, out


def toy_rows(search: Search, counts: Sequence[SelectedCounts], toys: int, rng: np.random.Generator) -> list[Row]:
    """Hunt blinded and unblinded in pseudo-experiments, and summarise both.

    Parameters
    ----------
    search : Search
    counts : sequence of SelectedCounts
        Of the run, one per window.
    toys : int
    rng : Generator

    Returns
    -------
    list of dict
        One per window and cut.
    """
    mean, efficiency = background(search, counts)
    every = []
    for _ in range(toys):
        drawn = draw(mean, efficiency, counts, rng)
        rows = compare(search, drawn)
        cuts = len(rows) // len(drawn)
        for i, row in enumerate(rows):
            window = search.windows[i // cuts]
            inside = window.in_signal_region(0.5 * (drawn[0].edges[1:] + drawn[0].edges[:-1]))
            row["observed"] = float(drawn[i // cuts].nested[i % cuts][inside].sum())
        every.append(rows)
    return [_summary([rows[i] for rows in every], rng) for i in range(len(every[0]))]


def _summary(rows: Sequence[Row], rng: np.random.Generator) -> Row:
    """Summarise one window and cut."""
    names = ("expected", "expected_error", "predicted_error", "predicted_error_error", "signal_z3")
    used = [row for row in rows if all(row[name] is not None for name in (*names, "predicted_signal_z3"))]
    out: Row = {key: rows[0][key] for key in ("window_lo_gev", "window_hi_gev", "background_efficiency")}
    out |= {"pseudo_experiments": len(rows), "quoted": len(used)}
    if len(used) < 2:
        return out
    column = {key: np.array([row[key] for row in used], dtype=np.float64) for key in used[0]}
    error = np.log(column["predicted_error"] / column["expected_error"])
    needed = np.log(column["predicted_signal_z3"] / column["signal_z3"])
    pull = (column["predicted_signal_z3"] - column["signal_z3"]) / column["predicted_signal_z3_error"]
    count = column["observed"] + rng.poisson(column["predicted_signal_z3"])
    z = local_significance(count, column["expected"], column["expected_error"]).z
    return out | {
        "expected": float(np.median(column["expected"])),
        "error": float(np.median(column["expected_error"])),
        "error_ratio": float(np.exp(np.median(error))),
        "error_spread": float(error.std(ddof=1)),
        "signal_z3": float(np.median(column["signal_z3"])),
        "signal_ratio": float(np.exp(np.median(needed))),
        "signal_spread": float(needed.std(ddof=1)),
        "signal_pull_width": float(pull.std(ddof=1)),
        "median_z": float(np.nanmedian(z)),
        "fraction_above_3": float((z >= 3.0).mean()),
    }


def read_search(run: Path) -> tuple[Search, list[SelectedCounts]]:
    """Read what hunted in a run, and its counts.

    Raises
    ------
    RunDirectoryError
        If the run has no hunt, or is blinded.
    """
    directory = RunDirectory(run)
    record = read_json(directory.hunt)
    if any(count is None for count in record["counts"]):
        raise RunDirectoryError(
            f"{directory.hunt}: is of a blinded run, which has nothing to compare; unblind it first"
        )
    config = Config.model_validate(read_json(directory.manifest)["config"])
    edges, mass, hunt = np.array(record["edges"], dtype=np.float64), config.mass, config.hunt
    windows = tuple(
        Window(lo, hi, float(edges[0]), float(edges[-1])) for lo, hi in (w["sr"] for w in record["windows"])
    )
    counts = []
    for window in windows:
        scores = read_skim(directory.window(window) / "scores.parquet", ("event_id", "mjj", "tail", "part"))
        used = met_no_training(scores["part"])
        mjj, tail = np.asarray(scores["mjj"]), np.asarray(scores["tail"])
        points = hunt.background_efficiencies
        counts.append(count_selected(mjj, tail, edges, points, (), used, float(scores.metadata["counted_share"])))
    return Search(
        windows, sliding_windows(config), mass.fit, mass.sqrt_s, hunt.min_events, hunt.spurious_signal
    ), counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--toys", type=int, default=200, help="pseudo-experiments; 0 for the run alone")
    parser.add_argument("--no-spurious", action="store_true", help="leave the spurious signal out of the errors")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or arguments.run / "blind-sensitivity"
    try:
        search, counts = read_search(arguments.run)
        if arguments.no_spurious:
            search = replace(search, spurious=False)
        tables = {"blind-sensitivity.csv": compare(search, counts)}
        if arguments.toys:
            rng = np.random.default_rng(SEED)
            tables["blind-sensitivity-toys.csv"] = toy_rows(search, counts, arguments.toys, rng)
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            write_bytes(out / name, csv_text(rows).encode())
            print(out / name)  # noqa: T201
    except DrapesError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
