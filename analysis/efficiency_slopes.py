"""How steep may the efficiency of a cut be? Pulls of pseudo-experiments whose passing fraction follows exp(a u).

    python analysis/efficiency_slopes.py RUN --window 3000-3400 --window 3900-4300

u goes from -1 to 1 over the fitted range; a is varied. RUN is a finished run that is not blinded: its inclusive fit is
the background, its closure events the counted fraction of the sidebands. Inside the window, a cut has on average its
nominal efficiency. Prints one line per window, cut and slope: how much more often the cut passes in the upper than in
the lower sideband, the pulls' mean and width, and in how many pseudo-experiments the cut is not quoted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.working_points import hunt_window
from drapes_hep.files import read_json
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.regions import Window

SLOPES = (0.0, 1.5, -1.5, 3.0, -3.0)


def pulls(
    mean: np.ndarray,
    edges: np.ndarray,
    window: Window,
    cut: float,
    slope: float,
    share: float,
    draws: int,
    rng: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """Hunt in pseudo-experiments with one true efficiency.

    Parameters
    ----------
    mean : array, shape (bins,)
        Expected events before the cut.
    edges : array, shape (bins + 1,)
        GeV.
    window : Window
    cut : float
        Background efficiency in the window.
    slope : float
        Of the logarithm of the efficiency, over half the range.
    share : float
        Part of the sidebands that the cut's counts use.
    draws : int
        Pseudo-experiments.
    rng : numpy.random.Generator

    Returns
    -------
    ratio : float
        Of the passing fractions in the upper and the lower sideband.
    pulls : array
        (observed - expected) over the Poisson error and the expectation's together, where the cut is quoted.
    """
    centre = 0.5 * (edges[1:] + edges[:-1])
    u = (2 * centre - edges[0] - edges[-1]) / (edges[-1] - edges[0])
    inside, below = (centre > window.lo) & (centre < window.hi), centre < window.lo
    above = ~inside & ~below
    passing = np.exp(slope * u)
    passing = np.clip(passing * cut * mean[inside].sum() / (mean * passing)[inside].sum(), 0, 1)
    low, high = ((mean * passing)[side].sum() / mean[side].sum() for side in (below, above))
    out = []
    for _ in range(draws):
        events = rng.poisson(mean)
        counted = np.where(inside, events, rng.binomial(events, share))
        selected = rng.binomial(counted, passing).astype(float)
        counts = SelectedCounts(
            edges, (1.0, cut), np.stack([events - selected, selected]), np.zeros(len(mean), dtype=bool), share
        )
        point = hunt_window(counts, window).working_points[1]
        if point.expected is not None:
            out.append((point.observed - point.expected) / np.hypot(np.sqrt(point.expected), point.expected_error))
    return float(high / low), np.array(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--window", action="append", required=True, metavar="LO-HI")
    parser.add_argument("--draws", type=int, default=100)
    arguments = parser.parse_args()
    run = RunDirectory(arguments.run)
    record, config = read_json(run.hunt), read_json(run.manifest)["config"]
    edges, mean = np.array(record["edges"]), np.array(record["global_background"]["expected"])
    rng = np.random.default_rng(1)
    for name in arguments.window:
        window = Window(*map(float, name.split("-")), edges[0], edges[-1])
        for cut in (point for point in config["hunt"]["background_efficiencies"] if point < 1):
            for slope in SLOPES:
                ratio, all_pulls = pulls(
                    mean, edges, window, cut, slope, config["training"]["closure"], arguments.draws, rng
                )
                text = "pull -"
                if len(all_pulls) > 1:
                    width = all_pulls.std(ddof=1)
                    text = f"pull {all_pulls.mean():+.2f} ± {width / np.sqrt(len(all_pulls)):.2f}, width {width:.2f}"
                left_out = arguments.draws - len(all_pulls)
                print(f"{name} {cut:g} upper/lower {ratio:.2f}: {text}, not quoted {left_out}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
