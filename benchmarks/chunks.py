"""Cost of a chunk: many small chunks against one large one, on the same events in the same run.

``python benchmarks/chunks.py [--events N] [--chunksize N] [--processor NAME] [--json FILE]`` prints the milliseconds
and the memory that a chunk adds, for each kind of file, and the ratio of wall times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from executors import DIJETS, repeated_columns, sample_file
from record import Benchmark, Work, timed

from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.processing import run
from drapes_hep.events.readers import scan
from drapes_hep.plugins import load_processor, starter_folder


def write(folder: Path, events: int) -> list[Path]:
    """Write the bundled events as ROOT and HDF5."""
    columns = repeated_columns(events)
    paths = [folder / "events.root", folder / "events.h5"]
    write_feature_root(paths[0], columns)
    write_feature_hdf5(paths[1], columns)
    return paths


def chunks(events: int, chunksize: int) -> Work:
    """Select events in many chunks, against one."""
    path, processor = sample_file(events, "chunks"), load_processor(DIJETS)
    return Work(
        lambda: run({"a": path}, processor(), chunksize=chunksize),
        events,
        "one chunk",
        lambda: run({"a": path}, processor(), chunksize=events),
    )


BENCHMARKS = (
    Benchmark(
        "skim in chunks",
        chunks,
        lambda sizes: [{"events": sizes.events[0], "chunksize": max(sizes.events[0] // 100, 1)}],
        quick=False,
    ),
)


def measure(path: Path, processor: Any, chunksize: int) -> tuple[float, float]:
    """Return wall time in seconds and the memory that stays with the result, in MiB."""
    process = psutil.Process()
    before = process.memory_info().rss
    wall, output = timed(lambda: run({"a": path}, processor, chunksize=chunksize), time.perf_counter)
    after = process.memory_info().rss
    del output
    return wall, (after - before) / 2**20


def compare(path: Path, make: Callable[[], Any], events: int, chunksize: int) -> dict[str, float]:
    """Measure one file."""
    measure(path, make(), events)  # imports and caches
    single_time, single_memory = measure(path, make(), events)
    many, more = measure(path, make(), chunksize)
    chunks = -(-events // chunksize)
    return {
        "one_s": single_time,
        "many_s": many,
        "ratio": many / single_time,
        "chunks": chunks,
        "ms_per_chunk": 1e3 * (many - single_time) / (chunks - 1),
        "mib_per_chunk": (more - single_memory) / (chunks - 1),
    }


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--chunksize", type=int, default=1)
    parser.add_argument("--processor", default=DIJETS)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    processor = load_processor(arguments.processor, [starter_folder()])
    table = {}
    with tempfile.TemporaryDirectory() as temporary:
        for path in write(Path(temporary), arguments.events):
            events = scan(path).entries
            table[path.suffix] = row = compare(path, processor, events, arguments.chunksize)
            print(
                f"{path.suffix:6s} {events} events in {row['chunks']} chunks: {row['many_s']:.1f} s, {row['ratio']:.1f}"
                f" times one chunk; {row['ms_per_chunk']:.1f} ms and {row['mib_per_chunk']:.4f} MiB per chunk"
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
