"""Cost of the scan of the resonance fit: windows, cuts and masses, on background events with random scores.

``python benchmarks/resonance.py [--events N] [--windows N] [--masses N] [--every] [--json FILE]`` prints the seconds.
``--every`` fits each mass in each window, as if all windows contained it: the upper bound of the cost.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from columns import CUTS, RANGE
from record import Benchmark, Sizes, Work

from drapes_hep.bumphunt import SelectedCounts, count_selected, gaussian, scan_masses, scan_resonances
from drapes_hep.bumphunt.pass_fail import Background, PassFailCounts, fit_pass_fail
from drapes_hep.bumphunt.signal_shapes import SignalShape, signal_templates
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import Density, bin_model
from drapes_hep.spectrum.shapes import SHAPES

SHARE = 0.4
TRUTH = Density(SHAPES["dijet4"], 13_000.0, (0.0, 10.0, -5.0, 0.2))


def make(events: int, count: int, cuts: int = len(CUTS)) -> tuple[list[Window], list[SelectedCounts]]:
    """Draw background events, and count them with random scores in windows 400 GeV wide."""
    rng = np.random.default_rng(1)
    mjj = draw(TRUTH, *RANGE, rng.uniform(size=events))
    windows = [Window(lo, lo + 400.0, *RANGE) for lo in np.linspace(2900.0, 4900.0, count).round()]
    edges = spectrum_edges(RANGE, 20.0, windows)
    counts = []
    for window in windows:
        used = window.in_signal_region(mjj) | (rng.uniform(size=events) < SHARE)
        counts.append(count_selected(mjj, rng.uniform(size=events), edges, CUTS[:cuts], (), used, SHARE))
    return windows, counts


def every_fit(windows: list[Window], counts: list[SelectedCounts], signal: SignalShape, masses: int) -> int:
    """Fit every mass in every window at every cut; returns the number of fits."""
    edges = counts[0].edges
    mu, gradient = bin_model("dijet4", 13_000.0, edges, np.array(TRUTH.parameters))
    mu *= counts[0].nested[0].sum() / mu.sum()
    centre = 0.5 * (edges[1:] + edges[:-1])
    background = Background(mu, gradient, (2.0 * centre - edges[0] - edges[-1]) / (edges[-1] - edges[0]))
    templates = signal_templates(signal, np.linspace(*RANGE, masses + 2)[1:-1], edges)
    rows = []
    for window, count in zip(windows, counts, strict=True):
        share = np.where(window.in_signal_region(centre), 1.0, count.share)
        rows += [(row, count.nested[0] - row, share, t) for row in count.nested[1:] for t in templates]
    ones = np.ones_like(templates)
    fit_pass_fail(background, PassFailCounts(counts[0].nested[0] * ones, None, ones, templates))
    fit_pass_fail(background, PassFailCounts(*(np.stack(column) for column in zip(*rows, strict=True))))
    return len(templates) + len(rows)


def signal_of(masses: int) -> SignalShape:
    """Return a resonance as wide that so many masses cover the range, half a resolution between them."""
    return gaussian(2.0 * float(np.log(RANGE[1] / RANGE[0])) / masses)


def resonance_scan(windows: int, cuts: int, events: int = 100_000, masses: int = 70) -> Work:
    """Fit the resonance at every mass of every window, with every cut."""
    hunted, counts = make(events, windows, cuts)
    signal = signal_of(masses)
    fits = len(scan_resonances(hunted, counts, signal).points)
    mu = np.random.default_rng(1).uniform(1.0, 2.0, (fits, len(counts[0].edges) - 1))
    return Work(
        lambda: scan_resonances(hunted, counts, signal),
        fits,
        "the likelihood of each fit, once",
        lambda: (mu * np.log(mu) - mu).sum(axis=1),
    )


def by_windows_and_cuts(sizes: Sizes) -> list[dict[str, int]]:
    """Return every number of windows with all cuts, then every number of cuts with the most windows of a few."""
    all_cuts, few = sizes.cuts[-1], min(4, sizes.windows[-1])
    return [{"windows": n, "cuts": all_cuts} for n in sizes.windows] + [
        {"windows": few, "cuts": cuts} for cuts in sizes.cuts[:-1]
    ]


BENCHMARKS = (Benchmark("resonance scan", resonance_scan, by_windows_and_cuts),)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--masses", type=int, default=70)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    windows, counts = make(arguments.events, arguments.windows)
    signal = signal_of(arguments.masses)
    began = time.perf_counter()
    if arguments.every:
        fits, masses = every_fit(windows, counts, signal, arguments.masses), arguments.masses
    else:
        fits = len(scan_resonances(windows, counts, signal).points)
        masses = len(scan_masses(signal, *RANGE))
    seconds = time.perf_counter() - began
    print(f"{arguments.windows} windows, {len(CUTS)} cuts, {masses} masses: {fits} pairs of fits in {seconds:.1f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"fits": fits, "masses": masses, "seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main()
