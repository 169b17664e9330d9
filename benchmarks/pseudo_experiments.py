"""Pseudo-experiments per second of the global p-value, and their memory, on background events with shared scores.

``python benchmarks/pseudo_experiments.py [--toys N] [--threads N ...] [--searches 8x4 3x4 8x2] [--json FILE]`` prints,
for each number of windows and cuts, the rate and the processor time of a pseudo-experiment, the part of it that drawing
alone takes in the same run, and the peak of the memory that the numpy arrays of the run held.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
from columns import CUTS, RANGE
from record import Benchmark, Work, timed
from resonance import TRUTH, by_windows_and_cuts
from scipy import special

from drapes_hep.bumphunt import (
    ToyModel,
    WindowHunt,
    background_model,
    count_selected,
    draw_toys,
    global_significance,
    hunt_window,
    set_overlaps,
    spurious_signals,
)
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.drawing import draw


def make(events: int, count: int, cuts: int, share: float) -> tuple[list[WindowHunt], ToyModel]:
    """Hunt in background events, with scores that the windows share in part, and make the model of the toys."""
    rng = np.random.default_rng(1)
    mjj = draw(TRUTH, *RANGE, rng.uniform(size=events))
    step = 200.0 if count <= 8 else 20.0 * (2600 // (20 * (count - 1)))
    windows = [Window(2900.0 + step * i, 3300.0 + step * i, *RANGE) for i in range(count)]
    edges = spectrum_edges(RANGE, 20.0, windows)
    shared, drift = rng.normal(size=events), 0.1 * (mjj - 3500.0) / 1000.0
    tails = special.ndtr((shared + rng.normal(size=(count, events))) / np.sqrt(2.0) + drift)
    closure = rng.uniform(size=events) < share
    counts = []
    for i, window in enumerate(windows):
        used = window.in_signal_region(mjj) | closure
        counts.append(count_selected(mjj, tails[i], edges, CUTS[:cuts], (), used, share))
    spurious = spurious_signals(counts[0], windows)
    hunts = [hunt_window(c, w, spurious=s) for c, w, s in zip(counts, windows, spurious, strict=True)]
    model = background_model(
        windows, counts, set_overlaps(mjj, tails, edges, CUTS[:cuts]), min_events=10, spurious=spurious
    )
    return hunts, model


def draw_all(model: ToyModel, toys: int) -> None:
    """Draw pseudo-experiments and nothing else."""
    for _ in draw_toys(model, toys, np.random.default_rng(1)):
        pass


def pseudo_experiments(windows: int, cuts: int, toys: int = 2000) -> Work:
    """Compute the global p-value by pseudo-experiments."""
    hunts, model = make(64_000, windows, cuts, 0.4)
    return Work(
        lambda: global_significance(hunts, model, toys, np.random.default_rng(1), threads=1),
        toys,
        "drawing alone",
        lambda: draw_all(model, toys),
    )


BENCHMARKS = (Benchmark("pseudo-experiments", pseudo_experiments, by_windows_and_cuts),)


def measure(hunts: list[WindowHunt], model: ToyModel, toys: int, threads: int) -> dict[str, float]:
    """Measure the rate, the processor time, and the part of drawing."""
    global_significance(hunts, model, 100, np.random.default_rng(1))  # tables of the module are made once
    began = time.perf_counter()
    used, _ = timed(lambda: global_significance(hunts, model, toys, np.random.default_rng(1), threads=threads))
    wall = time.perf_counter() - began
    drawing, _ = timed(lambda: draw_all(model, toys))
    tracemalloc.start()
    global_significance(hunts, model, min(toys, 4000), np.random.default_rng(1), threads=threads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "windows": len(model.windows),
        "cuts": len(model.efficiencies),
        "threads": threads,
        "toys_per_second": toys / wall,
        "cpu_us": 1e6 * used / toys,
        "drawing_us": 1e6 * drawing / toys,
        "peak_mb": peak / 1e6,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--toys", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=64_000)
    parser.add_argument("--share", type=float, default=0.4, help="part of the sidebands that the cuts count")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--searches", nargs="+", default=["8x4", "3x4", "8x2"], help="windows x cuts")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    rows = []
    for search in arguments.searches:
        count, cuts = (int(x) for x in search.split("x"))
        hunts, model = make(arguments.events, count, cuts, arguments.share)
        for threads in arguments.threads:
            row = measure(hunts, model, arguments.toys, threads)
            rows.append(row)
            print(
                f"{count} windows x {cuts} cuts, threads {threads}: {row['toys_per_second']:6.0f}/s,"
                f" {row['cpu_us']:6.0f} us of processor time each, {row['drawing_us']:4.0f} of them drawing;"
                f" {row['peak_mb']:.0f} MB; load {row['load']:.1f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
