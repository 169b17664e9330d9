"""Two files of records side by side: what became slower, and what faster.

``python benchmarks/compare.py OLD.json NEW.json [--tolerance 0.2]`` prints a table and exits 1 if something became
slower by more than the tolerance, 2 if the files cannot be compared. On the same processor, both the cost an event and
the cost in units of the machine's limit must have grown by more than that: a machine that is busy slows the limit as
well, and a limit that was measured badly leaves the cost as it is. On another processor only the second means anything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from record import Record, read_records

Key = tuple[str, str]


def key_of(record: Record) -> Key:
    """Return what two records of the same measurement share."""
    return record.name, json.dumps(dict(record.parameters), sort_keys=True)


def slowdown(old: Record, new: Record, same_processor: bool) -> float:
    """Return by which factor a measurement became slower."""
    to_limit = old.ratio / new.ratio
    return min(new.cost / old.cost, to_limit) if same_processor else to_limit


def row(old: Record, new: Record, factor: float, tolerance: float) -> str:
    """Return a line of the table."""
    parameters = ", ".join(f"{name} {value}" for name, value in new.parameters.items())
    faster = "faster" if factor < 1 / (1 + tolerance) else ""
    verdict = "slower" if factor > 1 + tolerance else faster
    memory = "-"
    if old.peak_bytes and new.peak_bytes:
        memory = f"{(new.peak_bytes / new.events) / (old.peak_bytes / old.events):.2f}"
    return (
        f"{new.name:22} {parameters:40} {1e6 * old.cost:12,.3f} {1e6 * new.cost:12,.3f} {new.cost / old.cost:8.2f}"
        f" {old.ratio:8.3f} {new.ratio:8.3f} {memory:>8}  {verdict}"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; 1 if something became slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.2, help="0.2: slower by more than 20 %%")
    arguments = parser.parse_args(words)
    if not arguments.tolerance >= 0:
        parser.error("--tolerance must be 0 or more")
    (old_origin, old_records), (new_origin, new_records) = map(read_records, (arguments.old, arguments.new))
    old, new = ({key_of(record): record for record in records} for records in (old_records, new_records))
    common = [key for key in old if key in new]
    if not common:
        print(f"{arguments.old} and {arguments.new} have no measurement in common", file=sys.stderr)
        return 2
    processors = [origin.get("cpu") for origin in (old_origin, new_origin)]
    same = processors[0] == processors[1] and processors[0] is not None
    print(f"processors: {processors[0]}" if same else f"processors: {processors[0]} and {processors[1]}")
    print(f"{'':22} {'':40} {'us an event':>12} {'now':>12} {'new/old':>8} {'of limit':>8} {'now':>8} {'memory':>8}")
    factors = {key: slowdown(old[key], new[key], same) for key in common}
    for key in common:
        print(row(old[key], new[key], factors[key], arguments.tolerance))
    for path, own, others in ((arguments.old, old, new), (arguments.new, new, old)):
        for name, parameters in own.keys() - others.keys():
            print(f"only in {path}: {name} {parameters}")
    slower = [key for key in common if factors[key] > 1 + arguments.tolerance]
    print(f"{len(slower)} of {len(common)} measurements slower by more than {arguments.tolerance:.0%}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
