"""Constituents from a skim to torch: packed values and offsets against padding, on the same jets in the same run.

``python benchmarks/ragged.py [--data FILE] [--events N] [--json FILE]`` prints time and memory of three ways, and their
ratios to the packed one:

- packed: values and offsets, :mod:`drapes_hep.events.ragged`;
- padded by awkward: ``pad_none``, ``fill_none``, ``to_numpy``, stacked, with a mask;
- padded by scatter: the packed columns written into a dense array, the fastest padding that we know.

All end with the low-level variables in float32, of at most 128 constituents per jet. Each way runs in a process of its
own, in turn, so that peaks of memory do not mix. FILE is HDF5 with ``jets`` (n, 2, 4: pt, eta, phi, mass),
``const_offset`` (2n + 1) and ``const_pt``, ``const_deta``, ``const_dphi`` (relative to the jet); by default
``simulated/qcd_constituents.h5`` in the folder DRAPES_HEP_DATA, or jets drawn at random where there is none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import h5py
import numpy as np
import torch
from limits import copy
from record import Benchmark, Work, by_events, fresh_peak, peak

from drapes_hep.events.ragged import KINEMATICS, low_level, pack, pack_nested
from drapes_hep.events.schema import nested, offsets_of, ragged
from drapes_hep.events.skims import read_skim, write_skim

MOST = 128
JET = ("pt", "eta", "phi", "mass")


def simulated(path: Path, events: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Jets (n, 2, 4), offsets and absolute pt, eta, phi of the first events of a file."""
    with h5py.File(path) as file:
        jets = file["jets"][:events]
        offsets = file["const_offset"][: 2 * len(jets) + 1]
        pt, eta, phi = (file[f"const_{name}"][: offsets[-1]].astype(np.float32) for name in ("pt", "deta", "dphi"))
    axis = np.repeat(jets.reshape(-1, 4), np.diff(offsets), axis=0)
    return jets, offsets, [pt, eta + axis[:, 1], phi + axis[:, 2]]


def synthetic(events: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Jets and constituents drawn at random; 56 a jet on average, some more than 128, ordered by momentum."""
    rng = np.random.default_rng(1)
    pt = 1200 + rng.exponential(200, (events, 2))
    eta, phi = rng.normal(0, 0.8, pt.shape), rng.uniform(-math.pi, math.pi, pt.shape)
    jets = np.stack([pt, eta, phi, rng.gamma(2, 60, pt.shape)], axis=2).astype(np.float32)
    lengths = rng.negative_binomial(5, 5 / 61, 2 * events)
    offsets = offsets_of(lengths)
    axis = np.repeat(jets.reshape(-1, 4), lengths, axis=0)
    momenta = rng.exponential(20, offsets[-1])
    order = np.lexsort((-momenta, np.repeat(np.arange(2 * events), lengths)))
    spread = rng.normal(0, 0.2, (2, offsets[-1]))
    return (
        jets,
        offsets,
        [v.astype(np.float32) for v in (momenta[order], axis[:, 1] + spread[0], axis[:, 2] + spread[1])],
    )


def write_sample(path: Path, jets: np.ndarray, offsets: np.ndarray, content: list[np.ndarray]) -> None:
    """Write them as a skim with constituents."""
    outer = np.arange(0, 2 * len(jets) + 1, 2)
    fields: dict[str, Any] = {name: ragged(jets[:, :, i].ravel(), outer) for i, name in enumerate(JET)}
    inside = {name: nested(values, offsets, outer) for name, values in zip(KINEMATICS, content, strict=True)}
    table = ak.zip({**fields, "constituents": ak.zip(inside)}, depth_limit=2)
    write_skim(path, {"event_id": np.arange(len(jets)), "jets": table})


Tensors = dict[str, torch.Tensor]


def packed(jets: ak.Array) -> Tensors:
    """Values and offsets."""
    sets, _ = pack_nested(jets["constituents"], KINEMATICS)
    low = low_level(sets, pack(jets, KINEMATICS).values, MOST)
    return {"values": low.values, "offsets": low.offsets}


def _dense_low_level(values: torch.Tensor, mask: torch.Tensor, jets: ak.Array) -> Tensors:
    axes = pack(jets, KINEMATICS).values
    values[:, :, 0] /= axes[:, None, 0]
    values[:, :, 1] -= axes[:, None, 1]
    dphi = values[:, :, 2] - axes[:, None, 2]
    values[:, :, 2] = dphi - 2 * math.pi * torch.round(dphi / (2 * math.pi))
    values[~mask] = 0
    return {"values": values, "mask": mask}


def padded_by_awkward(jets: ak.Array) -> Tensors:
    """Dense values and mask, by awkward's own functions."""
    sets = ak.flatten(jets["constituents"])
    columns = [
        ak.to_numpy(ak.fill_none(ak.pad_none(sets[n], MOST, clip=True), 0), allow_missing=False) for n in KINEMATICS
    ]
    values = torch.from_numpy(np.stack(columns, axis=2).astype(np.float32))
    mask = torch.arange(MOST) < torch.from_numpy(ak.to_numpy(ak.num(sets)))[:, None]
    return _dense_low_level(values, mask, jets)


def padded_by_scatter(jets: ak.Array) -> Tensors:
    """Dense values and mask, written at once."""
    sets = ak.flatten(jets["constituents"])[:, :MOST]
    mask = torch.arange(MOST) < torch.from_numpy(ak.to_numpy(ak.num(sets)))[:, None]
    values = torch.zeros(len(mask), MOST, len(KINEMATICS))
    for i, name in enumerate(KINEMATICS):
        values[:, :, i][mask] = torch.from_numpy(ak.to_numpy(ak.flatten(sets[name])))
    return _dense_low_level(values, mask, jets)


WAYS: dict[str, Callable[[ak.Array], Tensors]] = {
    "packed": packed,
    "padded by awkward": padded_by_awkward,
    "padded by scatter": padded_by_scatter,
}


def to_torch(events: int) -> Work:
    """Bring the constituents of drawn jets from a skim's columns to torch, against a copy of the tensors."""
    with tempfile.TemporaryDirectory() as temporary:
        skim = Path(temporary) / "skim.parquet"
        write_sample(skim, *synthetic(events))
        jets = read_skim(skim, ("jets",))["jets"]
    nbytes = sum(tensor.nbytes for tensor in packed(jets).values())
    return Work(lambda: packed(jets), events, "copy of the tensors", copy(nbytes))


BENCHMARKS = (Benchmark("constituents to torch", to_torch, by_events),)


def measure(way: str, skim: Path) -> dict[str, float]:
    """One way, once, in this process."""
    began = time.perf_counter()
    jets = read_skim(skim, ("jets",))["jets"]
    read = time.perf_counter()
    before = fresh_peak()
    tensors = WAYS[way](jets)
    done = time.perf_counter()
    n_constituents = int(tensors["mask"].sum()) if "mask" in tensors else len(tensors["values"])
    return {
        "reading_s": read - began,
        "to_torch_s": done - read,
        "tensors_mib": sum(tensor.nbytes for tensor in tensors.values()) / 2**20,
        "peak_growth_mib": (peak() - before) / 2**20,
        "constituents": n_constituents,
        "sum_of_fractions": float(tensors["values"][..., 0].double().sum()),
    }


def main() -> None:
    """Measure, print, and write JSON if asked."""
    folder = Path(os.environ.get("DRAPES_HEP_DATA", "."))
    default = folder / "simulated" / "qcd_constituents.h5"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=default if default.is_file() else None, help="HDF5, see above")
    parser.add_argument("--events", type=int, default=70_000, help="at most")
    parser.add_argument("--rounds", type=int, default=3, help="the median of these is given")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SKIM"), help="measure one way of one skim; used by the rest")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], Path(arguments.one[1]))))
        return
    sample = synthetic(arguments.events) if arguments.data is None else simulated(arguments.data, arguments.events)
    table: dict[str, Any] = {
        "sample": "synthetic" if arguments.data is None else arguments.data.name,
        "jets": 2 * len(sample[0]),
    }
    table["constituents"] = len(sample[2][0])
    with tempfile.TemporaryDirectory() as temporary:
        skim = Path(temporary) / "skim.parquet"
        write_sample(skim, *sample)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way, results in runs.items():
                command = [sys.executable, __file__, "--one", way, str(skim)]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for way, results in runs.items():
        table[way] = {key: statistics.median(result[key] for result in results) for key in results[0]}
    same = [table[way] for way in WAYS]
    if (
        len({row["constituents"] for row in same}) != 1
        or max(abs(row["sum_of_fractions"] / same[0]["sum_of_fractions"] - 1) for row in same) > 1e-5
    ):
        sys.exit("the ways do not hold the same constituents: the comparison means nothing")
    print(
        f"{table['sample']}: {table['jets']:,} jets, {table['constituents']:,} constituents,"
        f" {same[0]['constituents']:,.0f} kept"
    )
    print(f"{'':20s}{'reading s':>12s}{'to torch s':>12s}{'tensors MiB':>13s}{'peak + MiB':>12s}")
    keys = ("reading_s", "to_torch_s", "tensors_mib", "peak_growth_mib")
    for way in WAYS:
        print(f"{way:20s}" + "".join(f"{table[way][key]:12.2f}" for key in keys))
    for way in list(WAYS)[1:]:
        ratios = {key: table[way][key] / table["packed"][key] for key in keys[1:]}
        table[f"{way} / packed"] = ratios
        print(f"{way} / packed: " + ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
