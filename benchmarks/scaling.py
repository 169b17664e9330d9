"""Events per second, on one core, of what surrounds the network of a template: noise, scaling, four-momenta of jets.

``python benchmarks/scaling.py [--json FILE]`` measures each part beside the same maps as numpy computes them, in passes
over arrays, and beside two limits of the machine in the same run: copying the part's inputs and results, and taking the
exponentials that an event's curves need. Memory is the peak of what numpy's arrays take, the result included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from columns import FEATURES, scaling_of, table
from record import timed

from drapes_hep.compiled import exponentials
from drapes_hep.events.scaling import Scaling
from drapes_hep.rng import event_normals
from drapes_hep.templates.constituents.conserve import conserve


def knots(scaling: Scaling, mjj: np.ndarray, feature: int) -> np.ndarray:
    """Compute all quantiles at each mass, shape (n, 31)."""
    curves = scaling.curves[feature]
    basis = np.polynomial.legendre.legvander(scaling.condition(mjj)[:, 0] / 3.0, len(curves) - 1)
    values = basis @ curves
    steps = np.exp(values[:, 1:])
    low = values[:, :1] - np.cumsum(steps[:, 14::-1], axis=1)[:, ::-1]
    return np.concatenate([low, values[:, :1], values[:, :1] + np.cumsum(steps[:, 15:], axis=1)], axis=1)


def in_passes(scaling: Scaling, x: np.ndarray, mjj: np.ndarray, *, back: bool) -> np.ndarray:
    """Scale features, or map them back, in passes over arrays; inside the outer knots as the package does."""
    maps, out, row = scaling.maps, np.empty_like(x), np.arange(len(x))
    for j in range(x.shape[1]):
        rows = knots(scaling, mjj, j)
        first = (maps.fine, maps.levels[j]) if back else maps.even[j]
        last = maps.even[j, ::-1] if back else (maps.levels[j], maps.fine)
        value = np.interp(x[:, j], *first)
        place = np.broadcast_to(maps.units, rows.shape) if back else rows
        k = np.clip((place <= value[:, None]).sum(axis=1) - 1, 0, rows.shape[1] - 2)
        xp, fp = (place, rows) if back else (rows, np.broadcast_to(maps.units, rows.shape))
        slope = (fp[row, k + 1] - fp[row, k]) / (xp[row, k + 1] - xp[row, k])
        out[:, j] = np.interp(fp[row, k] + (value - xp[row, k]) * slope, *last)
    return out


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Measure CPU time; the first call, which may compile, does not count."""
    call()
    return statistics.median(timed(call)[0] for _ in range(rounds))


def peak(call: Callable[[], object]) -> int:
    """Measure the bytes that a call takes beyond its inputs."""
    tracemalloc.start()
    call()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def jets(n: int) -> tuple[np.ndarray, ...]:
    """Draw n jets of 40 constituents, and the four-momenta that they are to have."""
    rng = np.random.default_rng(3)
    delta = rng.normal(0, 0.2, (40 * n, 2))
    wanted = (rng.uniform(1200, 2000, n), rng.uniform(-2, 2, n), rng.uniform(-3, 3, n), rng.uniform(100, 600, n))
    return rng.exponential(1, 40 * n), delta, 40 * np.arange(n + 1), np.stack(wanted, axis=1)


def measure(n: int, rounds: int) -> list[dict[str, float | str]]:
    """Measure every part."""
    scaling, (x, mjj), ids = scaling_of(), table(n, 2), np.arange(n)
    z = scaling.forward(x, mjj)
    # distances between the median and the event's own place, one at least; the last map moves it little
    interval = np.clip(np.searchsorted(scaling.maps.units, z, side="right") - 1, 0, 29)
    terms = float(np.where(interval >= 15, interval - 14, 15 - interval).mean()) * x.shape[1]
    some, of_jets = np.random.default_rng(0).uniform(-3, 0, 4096), jets(max(n // 20, 1))
    room, copied = np.empty_like(some), np.empty_like(x)
    exponential = seconds(lambda: [exponentials(some, 0.0, room) for _ in range(50)], rounds) / (50 * len(some))
    copy = seconds(lambda: [np.copyto(copied, x) for _ in range(20)], rounds) / (20 * n)
    parts: list[tuple[str, int, Callable[[], object], Callable[[], object] | None, float]] = [
        ("noise", n, lambda: event_normals(1, ids, size=FEATURES), None, 0.0),
        ("scaling", n, lambda: scaling.forward(x, mjj), lambda: in_passes(scaling, x, mjj, back=False), terms),
        ("scaling back", n, lambda: scaling.inverse(z, mjj), lambda: in_passes(scaling, z, mjj, back=True), terms),
        ("jets of 40", len(of_jets[3]), lambda: conserve(*of_jets), None, 0.0),
    ]
    rows: list[dict[str, float | str]] = []
    for name, number, call, passes, exponentials_each in parts:
        wall = seconds(call, rounds) / number
        row: dict[str, float | str] = {"part": name, "per_s": 1.0 / wall, "bytes": peak(call) / number}
        if passes is not None:
            row["ratio"] = seconds(passes, rounds) / number / wall
            row["bytes_in_passes"] = peak(passes) / number
            row["share_of_exponentials"] = exponentials_each * exponential / wall
            row["share_of_copy"] = copy / wall
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3, help="the median of these is given")
    arguments = parser.parse_args()
    rows = measure(arguments.events, arguments.rounds)
    columns = ("per_s", "ratio", "bytes", "bytes_in_passes", "share_of_exponentials", "share_of_copy")
    titles = ("per second", "of passes", "bytes each", "in passes", "exponentials", "copy")
    print(f"{'part':14}" + "".join(f"{title:>14}" for title in titles))
    for row in rows:
        values = [row.get(name, "") for name in columns]
        formats = (",.0f", ".1f", ",.0f", ",.0f", ".2f", ".3f")
        cells = ["" if value == "" else format(value, form) for value, form in zip(values, formats, strict=True)]
        print(f"{row['part']:14}" + "".join(f"{cell:>14}" for cell in cells))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
