"""The processor that keeps constituents: the selection of dijets, every constituent counted, and a whole search."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pytest
import yaml
from conftest import ROOT, make_columns
from test_running import SETTINGS, assert_same, result
from test_stages import SEARCH, cut_sample

from drapes_hep.cli import app
from drapes_hep.config import load_config
from drapes_hep.errors import ConfigError, InputError
from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.formats.writers import write_feature_hdf5
from drapes_hep.events.processing import run
from drapes_hep.events.ragged import KINEMATICS, pack_nested
from drapes_hep.events.readers import read, scan
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS, nested
from drapes_hep.events.skims import read_skim, write_skim, write_truth
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plugins import load_processor
from drapes_hep.stages.skim import skim

pytestmark = pytest.mark.usefixtures("few_trees")

PROCESSOR = "processors/constituents.py:Constituents"
READING = Reading(constituents=True)


@pytest.fixture(scope="module")
def constituents():
    return load_processor(PROCESSOR, [ROOT])


@pytest.fixture(scope="module")
def dijets():
    return load_processor("processors/dijets.py:Dijets", [ROOT])


def write_events(path, columns, most=8, seed=4):
    """Feature events as a skim, each jet with up to ``most`` massless constituents in no order; some have none."""
    write_feature_hdf5(path.with_suffix(".h5"), {k: v for k, v in columns.items() if k != "label"})
    (chunk,) = split(scan(path.with_suffix(".h5")), chunksize=10**6)
    events = read(chunk)
    path.with_suffix(".h5").unlink()
    jets = {name: ak.Array(events.jets[name]) for name in JET_FIELDS}
    outer = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(jets["pt"])))]).astype(np.int64)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most + 1, outer[-1])
    inner = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pt, eta, phi = (np.repeat(ak.to_numpy(ak.flatten(jets[name])), lengths) for name in KINEMATICS)
    spread = rng.normal(0, 0.2, (2, inner[-1]))
    content = {
        "pt": pt * rng.uniform(0.001, 0.5, inner[-1]),
        "eta": eta + spread[0],
        "phi": np.remainder(phi + spread[1] + np.pi, 2 * np.pi) - np.pi,
        "mass": np.zeros(inner[-1]),
    }
    lists = ak.zip({name: nested(content[name].astype(np.float32), inner, outer) for name in CONSTITUENT_FIELDS})
    table = ak.zip({**jets, "constituents": lists}, depth_limit=2)
    write_skim(path, {"event_id": events.event_id, "weight": events.weight, "jets": table})
    return table


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("constituents") / "events.parquet"
    return path, write_events(path, make_columns(1500))


@pytest.fixture(scope="module")
def reference(sample, constituents, tmp_path_factory):
    processor = constituents({**SETTINGS, "max_constituents": 5})
    return result({"qcd": sample[0]}, processor, tmp_path_factory.mktemp("reference"), reading=READING)


@pytest.mark.parametrize(
    "how", [{"chunksize": 400}, {"chunksize": 77}, {"executor": "futures", "workers": 2, "chunksize": 300}], ids=str
)
def test_executors_and_chunk_sizes_give_the_same_bytes(sample, constituents, reference, tmp_path, warm_workers, how):
    processor = constituents({**SETTINGS, "max_constituents": 5})
    assert_same(result({"qcd": sample[0]}, processor, tmp_path, reading=READING, **how), reference)


def test_selection_and_features_are_those_of_dijets(sample, dijets, reference):
    out, _ = run({"qcd": sample[0]}, dijets(SETTINGS))
    found, expected = reference[3]["skim"].columns(), out["skim"].columns()
    for name in set(expected) - {"jets"}:
        np.testing.assert_array_equal(found[name], expected[name])
    for name in JET_FIELDS:
        assert ak.array_equal(found["jets"][name], expected["jets"][name])
    for name, histogram in out["hists"].items():
        assert reference[0][name] == histogram
    for step, count in out["cutflow"]["qcd"].items():
        assert reference[1]["qcd"][step] == count


def expected_constituents(sample, skim):
    """Of the selected events, by falling momentum; jets as the selection orders them."""
    jets = sample[1][np.asarray(skim["event_id"] & 0xFFFFFFFF)]
    jets = jets[ak.argsort(jets.pt, axis=1, ascending=False, stable=True)]
    inside = jets.constituents
    return inside[ak.argsort(inside.pt, axis=2, ascending=False, stable=True)]


@pytest.mark.parametrize("most", [None, 1, 5, 100])
def test_the_skim_holds_the_leading_constituents(sample, constituents, most):
    out, _ = run({"qcd": sample[0]}, constituents({**SETTINGS, "max_constituents": most}), reading=READING)
    skim = out["skim"].columns()
    expected = expected_constituents(sample, skim)[:, :, :most]
    for name in CONSTITUENT_FIELDS:
        assert ak.array_equal(skim["jets"].constituents[name], expected[name], dtype_exact=True)


def test_what_is_cut_off_at_equal_momenta_does_not_depend_on_the_file(sample, constituents, tmp_path):
    table = sample[1]
    inside = table.constituents
    # whole momenta of 100 GeV: many are equal
    inside = ak.with_field(inside, 100 * np.ceil(inside.pt / 100), "pt")
    kept = []
    for name, some in (("one", inside), ("other", inside[:, :, ::-1])):
        write_skim(tmp_path / f"{name}.parquet", {"event_id": np.arange(len(table)), "jets": with_inside(table, some)})
        processor = constituents({**SETTINGS, "max_constituents": 3})
        out, _ = run({"qcd": tmp_path / f"{name}.parquet"}, processor, reading=READING)
        found = out["skim"].columns()["jets"].constituents
        kept.append(
            [sorted(zip(*(jet[field] for field in KINEMATICS), strict=True)) for jet in ak.flatten(found)[:500]]
        )
    assert kept[0] == kept[1]


def with_inside(table, inside):
    return ak.with_field(table, ak.values_astype(inside, np.float32), "constituents")


def test_constituents_reach_torch_exactly(sample, reference, tmp_path):
    write_skim(tmp_path / "skim.parquet", reference[3]["skim"].columns())
    jets = read_skim(tmp_path / "skim.parquet", ("jets",))["jets"]
    sets, events = pack_nested(jets["constituents"], KINEMATICS)
    expected = expected_constituents(sample, reference[3]["skim"].columns())[:, :, :5]
    flat = np.stack([ak.to_numpy(ak.flatten(expected[name], axis=None)) for name in KINEMATICS], axis=1)
    assert sets.values.numpy().tobytes() == flat.tobytes()
    assert len(sets) == 2 * (len(events) - 1)


def test_a_skim_with_constituents_is_read_again(reference, constituents, tmp_path):
    """Skimming a skim changes nothing but what was cut off."""
    write_skim(tmp_path / "skim.parquet", reference[3]["skim"].columns())
    processor = constituents({**SETTINGS, "max_constituents": 5})
    again, _ = run({"qcd": tmp_path / "skim.parquet"}, processor, reading=READING)
    write_skim(tmp_path / "again.parquet", again["skim"].columns())
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "skim.parquet").read_bytes()
    assert again["cutflow"]["qcd"]["cut_off_constituents"]["events"] == 0


def test_what_is_cut_off_is_counted(sample, reference):
    found = expected_constituents(sample, reference[3]["skim"].columns())
    counts = ak.to_numpy(ak.num(found, axis=2))
    flow = reference[1]["qcd"]["cut_off_constituents"]
    assert flow["events"] == flow["weight"] == (counts > 5).any(axis=1).sum() > 0
    after = reference[0]["jet_cut_off"][{"selection": "after", "dataset": sum}]
    for position, column in (("leading", 0), ("subleading", 1)):
        histogram = after[{"jet": position}]
        expected = np.bincount(np.maximum(counts[:, column] - 5, 0), minlength=200)
        np.testing.assert_array_equal(histogram.values(), expected)
        numbers = reference[0]["jet_constituents"][{"selection": "after", "dataset": sum, "jet": position}]
        assert numbers.sum(flow=True).value == len(counts)


def test_jets_without_constituents_are_counted(sample, reference):
    """Their events stay selected."""
    counts = ak.to_numpy(ak.num(expected_constituents(sample, reference[3]["skim"].columns()), axis=2))
    flow = reference[1]["qcd"]["no_constituents"]
    assert flow["events"] == flow["weight"] == (counts == 0).any(axis=1).sum() > 0
    assert reference[1]["qcd"]["defined"]["events"] == len(counts)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pt", -1.0, "a transverse momentum that is not positive"),
        ("pt", 1e8, "an energy of more than 1e+06 GeV (MeV?)"),
        ("eta", 25.0, "a pseudorapidity beyond 20"),
        ("phi", 170.0, "an azimuth beyond 2 pi (degrees?)"),
        ("mass", -80.0, "a negative mass"),
    ],
)
def test_impossible_constituents_in_a_skim(sample, tmp_path, field, value, message):
    path, row = spoiled(sample, tmp_path, field, value)
    with pytest.raises(InputError) as caught:
        run({"qcd": path}, len, reading=READING)
    assert f"column 'jets.constituents.{field}' holds {message} in 1 row, first in row {row} (" in str(caught.value)


def test_rounded_masses_of_constituents_in_a_skim_are_counted(sample, tmp_path):
    path, _ = spoiled(sample, tmp_path, "mass", -1e-4)
    _, report = run({"qcd": path}, lambda events: {"n": len(events)}, reading=READING)
    assert report.clipped_masses == 1


def spoiled(sample, folder, field, value):
    """The sample with another value of its 1000th constituent, and the row of it."""
    skim, jets = read_skim(sample[0]), sample[1]
    counts = ak.num(jets.constituents, axis=2)
    inner = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.flatten(counts)))]).astype(np.int64)
    outer = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(jets)))]).astype(np.int64)
    flat = {name: ak.to_numpy(ak.flatten(jets.constituents[name], axis=None)).copy() for name in CONSTITUENT_FIELDS}
    flat[field][1000] = value
    lists = ak.zip({name: nested(values, inner, outer) for name, values in flat.items()})
    table = ak.zip({**{name: jets[name] for name in JET_FIELDS}, "constituents": lists}, depth_limit=2)
    write_skim(folder / "a.parquet", {**skim.columns, "jets": table})
    return folder / "a.parquet", int(np.searchsorted(inner[outer], 1000, side="right") - 1)


def test_histograms_hold_every_constituent(sample, reference, constituents):
    skim = reference[3]["skim"].columns()
    kept = ak.sum(ak.num(skim["jets"].constituents, axis=2))
    every = ak.sum(ak.num(sample[1].constituents, axis=2)[ak.num(sample[1]) >= 2])
    for name in ("pt_fraction", "delta_eta", "delta_phi"):
        histogram = reference[0][f"constituent_{name}"]
        assert histogram[{"selection": "after"}].sum(flow=True).value == kept
        assert histogram[{"selection": "before"}].sum(flow=True).value == every


def test_histograms_are_relative_to_the_jet(sample, constituents):
    """All constituents are drawn from 0.2 around the axis and at most half the momentum, across the cut at pi too."""
    out, _ = run({"qcd": sample[0]}, constituents(SETTINGS), reading=READING)
    for name, largest in (("pt_fraction", 0.5), ("delta_eta", 1.1), ("delta_phi", 1.1)):
        histogram = out["hists"][f"constituent_{name}"][{"selection": "before", "dataset": sum, "jet": sum}]
        edges = histogram.axes[0].edges
        inside = (edges[1:] > -largest - 1e-9) & (edges[:-1] < largest + 1e-9)
        assert histogram.values()[inside].sum() == histogram.sum(flow=True).value > 0


def test_weights_reach_the_histograms_of_constituents(sample, constituents):
    class Weighted(constituents):
        def weights(self, events):
            return np.full(len(events), 0.25)

    plain, _ = run({"a": sample[0]}, constituents(SETTINGS), reading=READING)
    weighted, _ = run({"a": sample[0]}, Weighted(SETTINGS), reading=READING)
    for name in ("constituent_pt_fraction", "jet_constituents"):
        expected = 0.25 * plain["hists"][name].values(flow=True)
        np.testing.assert_array_equal(weighted["hists"][name].values(flow=True), expected)


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_files_without_constituents_are_refused(samples, constituents):
    for kind in ("hdf5", "ttree"):
        with pytest.raises(InputError, match="holds no constituents of jets"):
            run({"a": samples[kind]}, constituents(SETTINGS), reading=READING)


def test_a_skim_without_constituents_is_refused(samples, constituents):
    with pytest.raises(InputError, match="its jets have no constituents"):
        run({"a": samples["skim"]}, constituents(SETTINGS), reading=READING)


def test_constituents_have_to_be_asked_for(sample, constituents):
    with pytest.raises(ConfigError, match=r"needs constituents: run it with Reading\(constituents=True\)"):
        run({"a": sample[0]}, constituents(SETTINGS))


@pytest.mark.parametrize("most", [0, -3])
def test_too_few_constituents(constituents, most):
    with pytest.raises(ConfigError, match="max_constituents must be at least 1"):
        constituents({"max_constituents": most})


# ---- the stages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    columns = cut_sample(1200, 60)
    write_events(folder / "events.parquet", columns)
    ids = read_skim(folder / "events.parquet", ("event_id",))["event_id"]
    write_truth(folder / "truth.parquet", ids, columns["label"])
    search = {
        **SEARCH,
        "data": {"path": "events.parquet", "labels": True, "truth": "truth.parquet"},
        "signal": {"inject": 60},
        "windows": {"width": 400, "step": 300, "first": 3300, "last": 3300},
        "processor": PROCESSOR,
        "selection": {"max_constituents": 5},
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(search))
    return folder


def stage(project, run, *changes, overwrite=False):
    config = load_config(project / "search.yaml", changes)
    context = Context.of(config, open_run(run, overwrite=overwrite), device="cpu", workers=1)
    skim(context)
    return context.run


def test_the_stage_writes_constituents(project, tmp_path):
    run = stage(project, tmp_path / "run")
    counts = ak.num(read_skim(run.events, ("jets",))["jets"].constituents, axis=2)
    assert ak.max(counts) == 5
    flow = {step["name"]: step["events"] for step in json.loads(run.skim_info.read_text())["cutflow"]}
    assert 0 < flow["cut_off_constituents"] < flow["defined"]


def test_the_number_of_constituents_is_part_of_the_stage(project, tmp_path):
    run = stage(project, tmp_path / "run")
    before = run.events.read_bytes()
    stage(project, tmp_path / "run", "selection.max_constituents=null", overwrite=True)
    assert ak.max(ak.num(read_skim(run.events, ("jets",))["jets"].constituents, axis=2)) == 8
    assert run.events.read_bytes() != before


def test_a_processor_without_constituents_refuses_the_setting(project, tmp_path):
    with pytest.raises(ConfigError, match="unknown setting 'max_constituents'"):
        stage(project, tmp_path / "run", "processor=processors/dijets.py:Dijets")


def test_an_edit_of_what_it_builds_on_repeats_the_stage(project, tmp_path):
    for name in ("dijets", "constituents"):
        source = (ROOT / "processors" / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    mine = f"processor={tmp_path}/constituents.py:Constituents"
    run = stage(project, tmp_path / "run", mine)
    stamp = tmp_path / "run" / "stages" / "skim.json"
    first = stamp.stat().st_mtime_ns
    stage(project, tmp_path / "run", mine)
    assert stamp.stat().st_mtime_ns == first
    dijets = tmp_path / "dijets.py"
    dijets.write_text(dijets.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    stage(project, tmp_path / "run", mine)
    assert stamp.stat().st_mtime_ns > first
    assert run.events.is_file()


def test_a_whole_search_on_constituents(project, tmp_path, unrendered):
    config, output = str(project / "search.yaml"), str(tmp_path / "run")
    app(["run", config, "-o", output, "--device", "cpu", "--workers", "1", "--quiet"], standalone_mode=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["accounting"] == {"requested": 1260, "processed": 1260, "lost": 0}
    assert results["windows"][0]["working_points"][0]["observed"] > 0
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert "cut off constituents" in page
    assert "<svg" in page or "<img" in page
