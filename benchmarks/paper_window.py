"""One window at the size of a paper: seconds, processor seconds and memory of each stage.

``python benchmarks/paper_window.py FILE [--events N] [--workers N] [--json FILE]`` resamples the simulated events of a
file (in a layout that the search reads) to a million selected ones, of which an eighth lie in the window, each moved by
a hundredth of the features' widths. The search makes five template events per event of the window and trains ten
classifiers a fold. Resampled events are copies of each other: what the search finds in them says nothing about physics.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from record import cpu, peak

from drapes_hep.parallel import available_cores
from drapes_hep.search import Search

FEATURES = ("m_j1", "delta_m", "tau21_j1", "tau21_j2", "delta_r")
CONFIG = {
    "name": "paper_window",
    "features": list(FEATURES),
    "mass": {"range": [2700, 6000], "sqrt_s": 13000, "fit": "dijet4"},
    "windows": {"width": 400, "step": 400, "first": 3600, "last": 3600},
    "template": {"method": "from_noise", "oversample": 5},
    "training": {"epochs": 10, "ema": 0.995, "pseudo_window": "none"},
    "cwola": {"classifier": "trees", "ensemble": 10, "folds": 5},
    "blind": False,
}
STAGES = ("train", "generate", "classify")


def resampled(path: str, events: int, seed: int) -> dict[str, np.ndarray]:
    """Read the background of a file and resample it."""
    whole = Search({**CONFIG, "data": {"path": path}}, quiet=True).skim().events
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(whole["mjj"]), events)
    columns = {}
    for name in FEATURES:
        values = np.asarray(whole[name])
        columns[name] = values[rows] + 0.01 * values.std() * rng.normal(size=events)
    columns["mjj"] = np.clip(np.asarray(whole["mjj"])[rows] * (1 + 0.002 * rng.normal(size=events)), 2700, 5999)
    for name in ("tau21_j1", "tau21_j2"):
        columns[name] = np.clip(columns[name], 0, 1)
    return columns


def main() -> None:
    """Print a table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    search = Search.of_events(resampled(arguments.file, arguments.events, 1), config=CONFIG, workers=arguments.workers)
    search.skim()
    records = []
    for stage in STAGES:
        began, used = time.perf_counter(), cpu()
        getattr(search, stage)()
        records.append({"stage": stage, "seconds": time.perf_counter() - began, "cpu": cpu() - used})
        records[-1]["peak_mib"] = peak() / 2**20
        print(
            "{stage:9} {seconds:7.1f} s {cpu:7.1f} CPU s, peak {peak_mib:.0f} MiB so far".format(**records[-1]),
            flush=True,
        )
    print(f"in all    {sum(r['seconds'] for r in records):7.1f} s {sum(r['cpu'] for r in records):7.1f} CPU s")
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
