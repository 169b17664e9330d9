"""Wall time of the iterative executor against worker processes, on the same events in the same run.

``python benchmarks/executors.py [--data FILE] [--processor NAME] [--workers N] [--json FILE]`` prints the ratio of wall
times, and what limits it: the start of the workers (they import everything again), the processor time that the parent
spends while workers work, and how busy the machine was with other things. Without FILE, the bundled sample is repeated
until it is large.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uproot

from drapes_hep.events.chunks import Reading
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.processing import run
from drapes_hep.events.types import Events
from drapes_hep.plugins import load_processor, starter_folder


def write_repeated(path: Path, times: int) -> None:
    """Write the bundled events several times; without identities, which must not repeat."""
    with uproot.open(starter_folder() / "configs" / "data" / "quickstart.root") as file:
        columns = file["events"].arrays(library="np")
    write_feature_root(path, {k: np.tile(v, times) for k, v in columns.items() if k != "event_id"})


def count(events: Events) -> dict[str, int]:
    """As little work as there can be."""
    return {"events": len(events)}


def measure(
    path: Path, processor: Any, reading: Reading, executor: str, workers: int, chunksize: int
) -> dict[str, float]:
    """One run."""
    began, cpu = time.perf_counter(), time.process_time()
    _, report = run({"a": path}, processor, executor=executor, workers=workers, chunksize=chunksize, reading=reading)
    wall, spent = time.perf_counter() - began, time.process_time() - cpu
    return {"wall_s": wall, "parent_cpu_s": spent, "events": report.processed}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="events; by default the bundled ones, repeated")
    parser.add_argument("--repeat", type=int, default=20, help="how often the bundled events are repeated")
    parser.add_argument("--processor", default="processors/dijets.py:Dijets")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chunksize", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3, help="the median of these is given")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    processor_class = load_processor(arguments.processor)
    reading = Reading(constituents=bool(getattr(processor_class, "reads_constituents", False)))
    ways = {"iterative": ("iterative", 1), "futures": ("futures", arguments.workers)}
    with tempfile.TemporaryDirectory() as temporary:
        path = arguments.data
        if path is None:
            path = Path(temporary) / "events.root"
            write_repeated(path, arguments.repeat)
        start = measure(path, count, reading, "futures", arguments.workers, 10**9)["wall_s"]
        start -= measure(path, count, reading, "iterative", 1, 10**9)["wall_s"]
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, (executor, workers) in ways.items():
                runs[way].append(measure(path, processor_class(), reading, executor, workers, arguments.chunksize))
    table: dict[str, Any] = {
        way: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for way, results in runs.items()
    }
    table |= {
        "workers": arguments.workers,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "start_s": start,
        "ratio": table["iterative"]["wall_s"] / table["futures"]["wall_s"],
    }
    for way in ways:
        medians = table[way]
        print(
            f"{way:10s} {medians['events']:,.0f} events, {medians['wall_s']:.2f} s,"
            f" {medians['events'] / medians['wall_s']:,.0f} events/s,"
            f" parent's processor time {medians['parent_cpu_s']:.2f} s"
        )
    print(f"start of the workers: {start:.2f} s")
    print(f"ratio of wall times with {arguments.workers} workers: {table['ratio']:.2f}")
    print(f"{table['cores']} cores, load {table['load']:.1f} (more than the workers: others slow this down)")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
