"""What docs/how-to.md shows is run here, on files that the tests write."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pandas as pd
import pytest
import torch
import uproot
import yaml
from conftest import ROOT, make_columns
from references import from_low_level
from test_constituents import write_events
from test_docs import FENCE

from drapes_hep.config import Config, load_config
from drapes_hep.events.features import check_features
from drapes_hep.events.processing import run
from drapes_hep.events.ragged import KINEMATICS, leading, pack_nested
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plugins import load_processor
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.stages.skim import skim

EVENTS = 600


def example(words):
    """The one Python block of the page that holds these words."""
    (body,) = [
        body
        for kind, body in FENCE.findall((ROOT / "docs" / "how-to.md").read_text(encoding="utf-8"))
        if kind == "python" and words in body
    ]
    return body


@pytest.fixture(scope="module")
def jetht(tmp_path_factory):
    """The processor of the page, in a file as a user has it, and a file with the columns that its hooks read."""
    folder = tmp_path_factory.mktemp("jetht")
    (folder / "jetht.py").write_text(example("LumiMask"), encoding="utf-8")
    columns = make_columns(EVENTS, labels=False)
    rng = np.random.default_rng(5)
    more = {
        "run": np.repeat(np.array([1, 2, 3], dtype=np.uint32), EVENTS // 3),
        "luminosityBlock": rng.integers(1, 100, EVENTS).astype(np.uint32),
        "HLT_PFHT1050": rng.random(EVENTS) < 0.4,
        "HLT_AK8PFJet500": rng.random(EVENTS) < 0.4,
        "FatJet_jetId": rng.choice(np.array([0, 2, 6], dtype=np.int32), (EVENTS, 2)),
    }
    with uproot.recreate(folder / "events.root") as file:
        lists = {"FatJet_jetId": ak.unflatten(more["FatJet_jetId"].ravel(), np.full(EVENTS, 2))}
        file["Events"] = {**columns, **more, **lists}
    # run 2 is certified from section 10 to 50, run 3 wholly
    (folder / "golden.json").write_text(json.dumps({"2": [[10, 50]], "3": [[1, 1000]]}))
    return folder, more


@pytest.fixture
def made(jetht, monkeypatch):
    monkeypatch.chdir(jetht[0])
    mine = load_processor("jetht.py:JetHT")
    return mine({"leading_pt": 0, "mass_range": (0, 13000), "abs_eta_max": 10, "undefined": -1.0})


@pytest.mark.parametrize("chunksize", [10_000, 123])
def test_the_hooks_of_the_example_select_what_they_say(jetht, made, chunksize):
    folder, columns = jetht
    out, _ = run({"a": folder / "events.root"}, made, chunksize=chunksize)
    section = columns["luminosityBlock"]
    certified = (columns["run"] == 3) | ((columns["run"] == 2) & (section >= 10) & (section <= 50))
    fired = certified & (columns["HLT_PFHT1050"] | columns["HLT_AK8PFJet500"])
    good = fired & (columns["FatJet_jetId"] > 0).all(axis=1)
    flow = {step: count["events"] for step, count in out["cutflow"]["a"].items()}
    assert (flow["golden_json"], flow["trigger"]) == (certified.sum(), fired.sum())
    np.testing.assert_array_equal(out["skim"].columns()["event_id"] & 0xFFFFFFFF, np.flatnonzero(good))


def test_the_corrections_of_the_example_reach_the_mass(jetht, made):
    plain = load_processor("processors/dijets.py:Dijets", [ROOT])(made.settings)
    skims = []
    for processor in (made, plain):
        out, _ = run({"a": jetht[0] / "events.root"}, processor)
        skims.append(out["skim"].columns())
    passes = np.isin(skims[1]["event_id"], skims[0]["event_id"])
    np.testing.assert_allclose(skims[0]["mjj"], 1.01 * skims[1]["mjj"][passes], rtol=1e-12)


def test_the_example_works_in_worker_processes(jetht, made):
    serial, _ = run({"a": jetht[0] / "events.root"}, made)
    two, _ = run({"a": jetht[0] / "events.root"}, made, executor="futures", workers=2, chunksize=200)
    assert two["cutflow"] == serial["cutflow"]
    np.testing.assert_array_equal(two["skim"].columns()["mjj"], serial["skim"].columns()["mjj"])


def test_constituents_of_a_skim_reach_torch(tmp_path):
    table = write_events(tmp_path / "skim.parquet", make_columns(50, labels=False), most=200)
    names: dict = {}
    exec(example("low_level"), names)
    sets, events = names["constituents_of"](tmp_path / "skim.parquet")
    assert sets.lengths.max() == 128
    assert events.tolist() == list(range(0, 101, 2))
    some = names["batch"](sets, torch.tensor([7, 3]))
    jets = ak.flatten(read_skim(tmp_path / "skim.parquet", ("jets",))["jets"])
    axes = torch.tensor([[jets[name][i] for name in KINEMATICS] for i in (7, 3)])
    back = from_low_level(some, axes).values[:, 0]
    every, _ = pack_nested(table["constituents"], KINEMATICS)
    expected = leading(names["batch"](every, torch.tensor([7, 3])), 128).values[:, 0]
    torch.testing.assert_close(back, expected, rtol=1e-6, atol=0)


def test_the_command_that_keeps_constituents(tmp_path, monkeypatch):
    """As typed."""
    from drapes_hep.cli import app

    write_events(tmp_path / "constituents.parquet", make_columns(300, labels=False))
    monkeypatch.chdir(tmp_path)
    (command,) = [
        body
        for kind, body in FENCE.findall((ROOT / "docs" / "how-to.md").read_text(encoding="utf-8"))
        if kind == "bash" and "max_constituents" in body
    ]
    words = command.replace("\\\n", " ").split()[1:]
    words[words.index("configs/quickstart.yaml")] = str(ROOT / "configs" / "quickstart.yaml")
    app([*words, "--quiet"], standalone_mode=False)
    jets = read_skim(tmp_path / "runs" / "constituents" / "skim" / "events.parquet", ("jets",))["jets"]
    assert ak.sum(ak.num(jets.constituents, axis=2)) > 0
    assert read_json(tmp_path / "runs" / "constituents" / "skim" / "hists.json").keys() >= {"jet_cut_off"}


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Write the page's examples beside a configuration, and return how to select events with its changes."""
    for name, words in {"counting": "class Counting", "shapes": "class Exponential", "mine": "def balance"}.items():
        (tmp_path / f"{name}.py").write_text(example(words), encoding="utf-8")
    pd.DataFrame(make_columns(EVENTS, labels=False)).to_hdf(tmp_path / "events.h5", key="df")
    (tmp_path / "search.yaml").write_text(
        "{name: x, data: {path: events.h5}, selection: {leading_pt: 0, abs_eta_max: 20}, blind: false,"
        " features: [m_j1, tau21_j1], mass: {range: [1000, 9000]}}"
    )
    monkeypatch.chdir(tmp_path)

    def select(*changes):
        config = load_config("search.yaml", changes)
        context = Context.of(config, open_run(tmp_path / f"run{len(list(tmp_path.glob('run*')))}"), device="cpu")
        skim(context)
        return context, read_skim(context.run.events)

    return select


def test_the_coffea_processor_of_the_page_selects_as_dijets_does(search):
    _, mine = search("processor=counting.py:Counting")
    _, dijets = search()
    for name in ("event_id", "mjj", "m_j1", "tau21_j1"):
        np.testing.assert_array_equal(mine[name], dijets[name])


def test_the_function_of_the_page_is_a_feature(search):
    define = "define={balance: {function: mine.py:balance}, ratio: pt_j2 / pt_j1}"
    _, columns = search(define, "features=[m_j1, balance, ratio]")
    np.testing.assert_array_equal(columns["balance"], columns["ratio"])


def test_the_shape_of_the_page_is_one(search):
    context, _ = search("mass.fit=shapes.py:Exponential")
    assert find_shape(context.config.mass).title == "exponential of a parabola"


def test_the_definitions_of_the_page_are_features():
    (body,) = [
        body
        for kind, body in FENCE.findall((ROOT / "docs" / "how-to.md").read_text(encoding="utf-8"))
        if kind == "yaml" and "define:" in body
    ]
    config = Config.model_validate(yaml.safe_load(body))
    labels = [feature.axis_label for feature in check_features(config.features, **config.definitions)]
    assert labels[2:] == ["pt_ratio", "$m_{SD}^{J_1}$ [GeV]", "$D_{Xbb}^{J_1}$"]
