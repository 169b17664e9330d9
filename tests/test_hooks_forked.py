"""A run with all hooks set, by the command line in forked workers: what one process gives, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys

import awkward as ak
import numpy as np
import pytest
import uproot
import yaml
from conftest import make_columns
from test_stages import SEARCH

from drapes_hep.config import load_config
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.stages.skim import skim

EVENTS = 2500

SOURCE = """
import json
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

from drapes_hep.plugins import load_processor

Dijets = load_processor("processors/dijets.py:Dijets")
CERTIFIED = np.array(json.loads(Path("{folder}/golden.json").read_text())["1"])


def column(events, name):
    chunk = events.metadata
    first, last = chunk["entrystart"], chunk["entrystop"]
    with uproot.open(chunk["filename"]) as file:
        values = file[chunk["treename"]][name].array(entry_start=first, entry_stop=last)
    return values[ak.to_numpy(events.row) - first]


class Mine(Dijets):
    def weights(self, events):
        return ak.to_numpy(column(events, "genWeight"))

    def golden_json(self, events):
        # coffea's LumiMask would be compiled in each process
        run, section = (ak.to_numpy(column(events, name))[:, None] for name in ("run", "luminosityBlock"))
        return np.any((run == 1) & (section >= CERTIFIED[:, 0]) & (section <= CERTIFIED[:, 1]), axis=1)

    def trigger(self, events):
        return ak.to_numpy(column(events, "HLT_A")) | ak.to_numpy(column(events, "HLT_B"))

    def corrections(self, events):
        jets = events.jets
        jets["pt"] = 1.01 * jets.pt
        return jets

    def jet_id(self, events, jets):
        return (column(events, "FatJet_jetId") & 2) != 0
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A file with branches that the hooks read, a golden JSON, a processor and a configuration."""
    folder = tmp_path_factory.mktemp("forked")
    rng = np.random.default_rng(4)
    columns = make_columns(EVENTS, labels=False)
    own = {
        "run": np.ones(EVENTS, dtype=np.uint32),  # as NanoAOD has it
        "luminosityBlock": np.arange(EVENTS, dtype=np.uint32) // 100 + 1,
        "event": np.arange(EVENTS),
        "genWeight": rng.uniform(0.5, 1.5, EVENTS),
        "HLT_A": rng.random(EVENTS) < 0.8,
        "HLT_B": rng.random(EVENTS) < 0.5,
        "FatJet_jetId": ak.from_regular(ak.Array(2 * (rng.random((EVENTS, 2)) < 0.9).astype(np.int64))),
    }
    with uproot.recreate(folder / "events.root") as file:
        file["Events"] = {**columns, **own}
    (folder / "golden.json").write_text(json.dumps({"1": [[1, 5], [8, 20]]}))
    (folder / "mine.py").write_text(SOURCE.format(folder=folder))
    data = {"path": "events.root", "chunksize": 1000}
    (folder / "search.yaml").write_text(
        yaml.safe_dump({**SEARCH, "data": data, "signal": {}, "processor": "mine.py:Mine"})
    )
    return folder, own


def test_hooks_in_forked_workers_give_what_one_process_gives(project):
    folder, own = project
    single, forked = folder / "single" / "skim", folder / "forked" / "skim"
    skim(Context.of(load_config(folder / "search.yaml"), open_run(single.parent), device="cpu", executor="iterative"))
    command = [sys.executable, "-m", "drapes_hep", "skim", "search.yaml", "-o", "forked", "--workers", "2"]
    done = subprocess.run([*command, "--executor", "futures"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("events.parquet", "hists.json", "skim.json"):
        assert (single / name).read_bytes() == (forked / name).read_bytes(), name
    flow = {step["name"]: step for step in read_json(forked / "skim.json")["cutflow"]}
    section, weight = own["luminosityBlock"], own["genWeight"]
    mask = ((section <= 5) | (section >= 8)) & (section <= 20)
    expected = [("read", np.ones(EVENTS, dtype=bool)), ("golden_json", mask)]
    mask = mask & (own["HLT_A"] | own["HLT_B"])
    expected.append(("trigger", mask))
    expected.append(("two_jets", mask & ak.to_numpy(ak.all(own["FatJet_jetId"] == 2, axis=1))))
    for step, passed in expected:
        assert flow[step]["events"] == passed.sum(), step
        assert flow[step]["weight"] == pytest.approx(weight[passed].sum(), rel=1e-12), step
