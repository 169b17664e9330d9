"""Wall time of the iterative executor against worker processes, on the same events in the same run.

``python benchmarks/executors.py [--data FILE] [--processor NAME] [--workers N] [--json FILE]`` prints the ratio of wall
times, and what limits it: the start of the workers (they import everything again), the processor time that the parent
spends while workers work, and how busy the machine was with other things. Without FILE, the bundled sample is repeated
until it is large.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uproot
from record import Benchmark, Work, by_events, timed

from drapes_hep.events.chunks import Reading
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.processing import run
from drapes_hep.events.types import Events
from drapes_hep.plugins import load_processor, starter_folder

DIJETS = "processors/dijets.py:Dijets"


def bundled_columns() -> dict[str, np.ndarray]:
    """Return the bundled events; without identities, which must not repeat."""
    with uproot.open(starter_folder() / "configs" / "data" / "quickstart.root") as file:
        columns = file["events"].arrays(library="np")
    return {name: values for name, values in columns.items() if name != "event_id"}


def repeated_columns(events: int) -> dict[str, np.ndarray]:
    """Return the bundled events, repeated until there are so many."""
    return {name: np.resize(values, events) for name, values in bundled_columns().items()}


def write_repeated(path: Path, events: int) -> None:
    """Write them as ROOT."""
    write_feature_root(path, repeated_columns(events))


def count(events: Events) -> dict[str, int]:
    """As little work as there can be."""
    return {"events": len(events)}


def measure(
    path: Path, processor: Any, reading: Reading, executor: str, workers: int, chunksize: int
) -> dict[str, float]:
    """One run."""
    began = time.perf_counter()
    spent, (_, report) = timed(
        lambda: run({"a": path}, processor, executor=executor, workers=workers, chunksize=chunksize, reading=reading),
        time.process_time,
    )
    return {"wall_s": time.perf_counter() - began, "parent_cpu_s": spent, "events": report.processed}


def sample_file(events: int, folder: str) -> Path:
    """Write the bundled events, repeated, in a folder of their own, which the process removes when it ends."""
    place = tempfile.TemporaryDirectory(prefix=f"drapes-{folder}-")
    atexit.register(place.cleanup)
    path = Path(place.name) / "events.root"
    write_repeated(path, events)
    return path


def skim(events: int, chunksize: int = 50_000) -> Work:
    """Select events with the processor of two jets, chunk by chunk."""
    path, processor = sample_file(events, "skim"), load_processor(DIJETS)

    def read_alone() -> None:
        with uproot.open(path) as file:
            for _ in file["events"].iterate(library="np", step_size=chunksize):
                pass

    return Work(
        lambda: run({"a": path}, processor(), chunksize=chunksize), events, "uproot alone reads the columns", read_alone
    )


def with_executor(events: int, workers: int) -> Work:
    """Select events in worker processes, against this process alone, wall time: the ratio is the gain."""
    path, processor = sample_file(events, "executors"), load_processor(DIJETS)
    return Work(
        lambda: run({"a": path}, processor(), executor="futures", workers=workers, chunksize=50_000),
        events,
        "one process",
        lambda: run({"a": path}, processor(), chunksize=50_000),
        clock=time.perf_counter,
    )


BENCHMARKS = (
    Benchmark("skim", skim, by_events),
    Benchmark(
        "skim in two processes",
        with_executor,
        lambda sizes: [{"events": n, "workers": 2} for n in sizes.events],
        quick=False,
    ),
)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="events; by default the bundled ones, repeated")
    parser.add_argument("--repeat", type=int, default=20, help="how often the bundled events are repeated")
    parser.add_argument("--processor", default=DIJETS)
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
            write_repeated(path, arguments.repeat * len(next(iter(bundled_columns().values()))))
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
