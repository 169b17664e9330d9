"""Speed from raw events to features, and what part of it is fastjet's own.

``python benchmarks/events.py RAW.h5 [--events N] [--rounds N] [--axes onepass_kt] [--json FILE]`` takes a raw LHC
Olympics file, repeats its events to ``--events`` in a temporary file of the same compression, and measures on one core:

- the whole way as ``drapes skim`` goes it: scan, read, check, cluster, substructure, selection, features, histograms;
- each step of it alone;
- fastjet alone, called with four-momenta that lie ready: anti-kT and its constituents, then N-subjettiness.

Times are CPU seconds of this process, so that other work on the machine counts little (where two hardware threads
share a core it still does); the median of the rounds is given, and each round measures everything once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import fastjet
import h5py
import hdf5plugin
import numpy as np
from record import Benchmark, Sizes, Work, peak, timed

from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.clustering import AXES, MIN_JET_PT, cluster_events
from drapes_hep.events.formats.hdf5 import Hdf5Reader
from drapes_hep.events.processing import run
from drapes_hep.events.readers import convert, scan
from drapes_hep.events.schema import offsets_of, ragged

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from processors.dijets import Dijets


def repeated(source: Path, target: Path, events: int) -> None:
    """Copy a raw file, its rows repeated until there are so many."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        old.copy("df", new)
        group, rows = new["df"], np.arange(events) % len(old["df/axis1"])
        for name in ("block0_values", "axis1"):
            attributes = dict(group[name].attrs)
            del group[name]
            copied = group.create_dataset(
                name,
                data=old[f"df/{name}"][:][rows],
                chunks=old["df/block0_values"].chunks if name == "block0_values" else True,
                **hdf5plugin.Blosc(cname="blosclz", clevel=5),
            )
            copied.attrs.update(attributes)


def lists(offsets: np.ndarray, momenta: np.ndarray) -> ak.Array:
    """Four-momenta as fastjet takes them."""
    record = ak.contents.RecordArray(
        [ak.contents.NumpyArray(component) for component in momenta], ["px", "py", "pz", "E"]
    )
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), record))


def momenta_of(particles: Any) -> ak.Array:
    """Four-momenta of lists of massless particles."""
    offsets = offsets_of(ak.to_numpy(ak.num(particles)))
    pt, eta, phi = (ak.to_numpy(ak.flatten(particles[name])) for name in ("pt", "eta", "phi"))
    return lists(offsets, np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)]))


def anti_kt(particles: ak.Array, radius: float) -> None:
    """Jets and their constituents."""
    sequence = fastjet.ClusterSequence(particles, fastjet.JetDefinition(fastjet.antikt_algorithm, radius))
    sequence.inclusive_jets(MIN_JET_PT)
    sequence.constituent_index(MIN_JET_PT)


def subjettiness(jets: ak.Array, reading: Reading) -> None:
    """tau1-3 of every jet."""
    sequence = fastjet.ClusterSequence(jets, fastjet.JetDefinition(fastjet.cambridge_algorithm, 1e-3))
    sequence.njettiness(
        measure_definition="NormalizedMeasure",
        axes_definition=AXES[reading.axes],
        njets=[1, 2, 3],
        beta=1.0,
        R0=reading.radius,
    )


def two_jets(events: int) -> ak.Array:
    """Draw events of two jets of 60 particles and 80 soft ones, as clustering takes them."""
    rng = np.random.default_rng(1)
    sizes = (60, 60, 80)
    phi = rng.uniform(-np.pi, np.pi, (events, 1))
    eta = rng.normal(0.0, 0.8, (events, 2))
    jets = [
        (rng.exponential(25.0, (events, 60)), eta[:, [i]], phi + i * np.pi, rng.normal(0.0, 0.2, (2, events, 60)))
        for i in range(2)
    ]
    soft = (
        rng.exponential(1.0, (events, 80)),
        rng.uniform(-2.5, 2.5, (events, 80)),
        rng.uniform(-3.1, 3.1, (events, 80)),
    )
    columns = {
        "pt": np.concatenate([*(jet[0] for jet in jets), soft[0]], axis=1),
        "eta": np.concatenate([*(jet[1] + jet[3][0] for jet in jets), soft[1]], axis=1),
        "phi": np.concatenate([*(jet[2] + jet[3][1] for jet in jets), soft[2]], axis=1),
    }
    columns["phi"] = np.arctan2(np.sin(columns["phi"]), np.cos(columns["phi"]))
    columns["mass"] = np.zeros_like(columns["pt"])
    offsets = np.arange(events + 1) * sum(sizes)
    return ak.zip({name: ragged(values.ravel(), offsets) for name, values in columns.items()})


def jets_of(particles: ak.Array) -> ak.Array:
    """Four-momenta of the constituents of every jet, as fastjet takes them."""
    clustered = cluster_events(particles, Reading(axes="kt", constituents=True))
    return momenta_of(ak.zip({name: ak.flatten(clustered[f"constituents_{name}"]) for name in ("pt", "eta", "phi")}))


def clustering(events: int) -> Work:
    """Cluster particles into jets with substructure, against fastjet with its input ready."""
    particles, reading = two_jets(events), Reading()
    momenta, jets = momenta_of(particles), jets_of(particles)
    return Work(
        lambda: cluster_events(particles, reading),
        events,
        "fastjet alone",
        lambda: (anti_kt(momenta, reading.radius), subjettiness(jets, reading)),
    )


def tenth(sizes: Sizes) -> list[dict[str, int]]:
    """Return a tenth of the numbers of events: a thousand take a second."""
    return [{"events": max(events // 10, 10)} for events in sizes.events]


BENCHMARKS = (Benchmark("cluster", clustering, tenth),)


def measure(path: Path, rounds: int, chunksize: int, axes: str) -> dict[str, float]:
    """Rates and the split by step."""
    reading = Reading(axes=axes)
    processor = Dijets()
    collected: dict[str, list[float]] = {}
    events = 0
    for number in range(rounds + 1):
        table: dict[str, float] = {}

        def note(name: str, action: Callable[[], Any], table: dict[str, float] = table) -> Any:
            spent, out = timed(action)
            table[name] = table.get(name, 0.0) + spent
            return out

        wall = time.perf_counter()
        _, report = note("whole", lambda: run({"raw": str(path)}, processor, chunksize=chunksize, reading=reading))
        table["wall"] = time.perf_counter() - wall
        events = report.processed
        info = note("scan", lambda: scan(path, reading=reading))
        for chunk in split(info, "raw", chunksize, reading=reading):
            columns = note("read", lambda chunk=chunk: Hdf5Reader().columns(chunk))
            converted = note("check, cluster, build", lambda c=columns, chunk=chunk: convert(c, chunk))
            note("select, features, histograms", lambda converted=converted: processor.process(converted))
            # fastjet's input is prepared outside of its time
            particles = momenta_of(columns["particles"])
            jets = jets_of(columns["particles"])
            note("fastjet: anti-kT", lambda p=particles: anti_kt(p, reading.radius))
            note("fastjet: N-subjettiness", lambda j=jets: subjettiness(j, reading))
        if number:  # the first round also imports and fills caches
            for name, spent in table.items():
                collected.setdefault(name, []).append(spent)
    times = {name: statistics.median(values) for name, values in collected.items()}
    alone = times["fastjet: anti-kT"] + times["fastjet: N-subjettiness"]
    spread = sorted(events / duration for duration in collected["whole"])
    return {
        **{f"ms an event, {name}": 1e3 * spent / events for name, spent in times.items()},
        "ms an event, check and build": 1e3 * (times["check, cluster, build"] - alone) / events,
        "events/s a core": events / times["whole"],
        "events/s a core, slowest round": spread[0],
        "events/s a core, fastest round": spread[-1],
        "events/s a core, fastjet alone": events / alone,
        "share of fastjet in the whole": alone / times["whole"],
        "share of anti-kT": times["fastjet: anti-kT"] / times["whole"],
        "share of N-subjettiness": times["fastjet: N-subjettiness"] / times["whole"],
        "share of reading": times["read"] / times["whole"],
        "share of features": times["select, features, histograms"] / times["whole"],
        "events": events,
        "rounds": rounds,
        "processes that wait for a core": os.getloadavg()[0],
        "peak_rss_mib": peak() / 2**20,
    }


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("raw", type=Path, help="a raw LHC Olympics file")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--events", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5, help="the median of these is given")
    parser.add_argument("--chunksize", type=int, default=50_000)
    parser.add_argument("--axes", choices=sorted(AXES), default="onepass_kt")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.h5"
        repeated(arguments.raw, path, arguments.events)
        table = measure(path, arguments.rounds, arguments.chunksize, arguments.axes)
    for key, value in table.items():
        print(f"{key:44s}{value:12,.3f}")
    print(f"{'targets: events/s a core, share of fastjet':44s}{1000:12,.0f}{0.6:8.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
