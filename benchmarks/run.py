"""Every stage of a search, each against the machine's own limit in the same run, in one table.

``python benchmarks/run.py [--quick] [--only NAME ...] [-o FILE.json]`` measures cost against the number of events,
windows and working points, and the memory of each. Every measurement runs in a process of its own on one thread. A
larger number of events is left out where the one before says that it would take too long or more memory than is free.
Times are CPU seconds. ``python benchmarks/compare.py OLD.json NEW.json`` compares two such files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from record import Benchmark, Record, Sizes, machine, measure, record_of, write_records

MODULES = (
    *("executors", "chunks", "events", "ragged", "columns", "diffusion", "jagged", "templates", "trees"),
    *("resonance", "pseudo_experiments", "report_page"),
)
"""Modules with benchmarks, in the order of a search."""

FULL = Sizes((10**4, 10**5, 10**6, 10**7), (1, 2, 4, 8, 16), (1, 2, 4))
QUICK = Sizes((10**4, 10**5), (1, 4), (1, 4))
SHARE_OF_MEMORY = 0.7


def named_in(modules: Sequence[str]) -> dict[str, Benchmark]:
    """Return the benchmarks of modules by name."""
    listed = [benchmark for name in modules for benchmark in importlib.import_module(name).BENCHMARKS]
    return {benchmark.name: benchmark for benchmark in listed}


def in_child(benchmark: Benchmark, parameters: Mapping[str, Any], rounds: int) -> Record:
    """Measure in a process of its own, with one thread a library.

    Raises
    ------
    RuntimeError
        With the last line of what it printed, if it fails.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--rounds", str(rounds)]
    command += ["--one", benchmark.make.__module__, benchmark.name, json.dumps(dict(parameters))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    # a library may print lines of its own
    return record_of(json.loads(done.stdout.strip().splitlines()[-1]))


def reason_to_leave_out(before: Record | None, parameters: Mapping[str, Any], most_seconds: float) -> str:
    """Return why a measurement would be too large, from the one with fewer events; nothing where it is not."""
    if before is None or not is_larger(before.parameters, parameters):
        return ""
    growth = parameters["events"] / before.parameters["events"]
    if before.seconds * growth > most_seconds:
        return f"it would take some {before.seconds * growth:.0f} s, more than {most_seconds:.0f}"
    free = SHARE_OF_MEMORY * psutil.virtual_memory().available
    if before.peak_bytes is not None and before.peak_bytes * growth > free:
        return f"it would take some {before.peak_bytes * growth / 2**30:.1f} GiB"
    return ""


def is_larger(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether parameters differ in nothing but more events."""
    same = {name: value for name, value in before.items() if name not in ("events", "clock")}
    return after.get("events", 0) > before.get("events", 0) and same.items() <= after.items()


def collect(
    chosen: Sequence[Benchmark], sizes: Sizes, rounds: int, most_seconds: float
) -> Iterator[tuple[str, Mapping[str, Any], Record | str]]:
    """Yield name, parameters, and the record of each measurement or why there is none."""
    for benchmark in chosen:
        before: Record | None = None
        for parameters in benchmark.grid(sizes):
            reason = reason_to_leave_out(before, parameters, most_seconds)
            if reason:
                yield benchmark.name, parameters, reason
                continue
            try:
                before = in_child(benchmark, parameters, rounds)
            except RuntimeError as error:
                yield benchmark.name, parameters, f"failed: {error}"
                continue
            yield benchmark.name, parameters, before


def words(parameters: Mapping[str, Any]) -> str:
    """Return parameters as text."""
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{name} {value}"
        for name, value in parameters.items()
    )


def line(record: Record) -> str:
    """Return a record as a line of the table."""
    memory = "" if record.peak_bytes is None else f"{record.peak_bytes / record.events:10,.0f}"
    return (
        f"{record.name:22} {words(record.parameters):40} {1e6 * record.cost:12,.3f} {record.ratio:8.3f}"
        f" {memory:10}  {record.limit}"
    )


def arguments_of(words_given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="write the records here, JSON")
    parser.add_argument("--quick", action="store_true", help="up to 100,000 events, and the main benchmarks alone")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benchmarks; --list names all")
    parser.add_argument("--events", type=int, nargs="+", help="numbers of events, in place of the usual ones")
    parser.add_argument("--rounds", type=int, default=3, help="the smallest time of these is given")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="most seconds that one call may be expected to take"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the benchmarks")
    parser.add_argument("--one", nargs=3, metavar=("MODULE", "NAME", "PARAMETERS"), help="used by the rest")
    arguments = parser.parse_args(words_given)
    if arguments.rounds < 1 or min(arguments.events or [1]) < 1:
        parser.error("--rounds and --events must be positive")
    unknown = set(arguments.only or ()) - (named_in(MODULES).keys() if arguments.only else set())
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}: --list names all")
    return arguments


def main(words_given: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON if asked; 1 if a measurement failed."""
    arguments = arguments_of(words_given)
    if arguments.one:
        module, name, parameters = arguments.one
        # this module alone: a process that measures memory imports no more than it needs
        make = named_in([module])[name].make
        print(json.dumps(measure(name, make, json.loads(parameters), arguments.rounds).to_dict()))
        return 0
    every = named_in(MODULES)
    if arguments.list:
        print("\n".join(every))
        return 0
    sizes = QUICK if arguments.quick else FULL
    if arguments.events:
        sizes = Sizes(tuple(sorted(arguments.events)), sizes.windows, sizes.cuts)
    named = arguments.only or [name for name, benchmark in every.items() if benchmark.quick or not arguments.quick]
    origin, records, left_out, failed = machine(), [], [], False
    print(f"{'':22} {'':40} {'us an event':>12} {'of limit':>8} {'bytes each':>10}  limit")
    chosen = [every[name] for name in named]
    for name, parameters, outcome in collect(chosen, sizes, arguments.rounds, arguments.seconds):
        if isinstance(outcome, Record):
            records.append(outcome)
            print(line(outcome), flush=True)
        else:
            left_out.append(f"{name}, {words(parameters)}: {outcome}")
            failed |= outcome.startswith("failed")
            print(f"not measured: {left_out[-1]}", flush=True)
        if arguments.output is not None:
            # after each: what was measured is not lost with what comes next
            write_records(arguments.output, origin, records, left_out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
