"""What a file is said to be: numbers against the columns that were written, problems with their rows."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import h5py
import jsonschema
import numpy as np
import pytest
import uproot
from conftest import ROOT, make_columns

from drapes_hep import plots
from drapes_hep.data import inspection
from drapes_hep.data.inspection import inspect_file, inspection_schema, spread_runs, text_lines
from drapes_hep.errors import InputError
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS
from drapes_hep.events.skims import write_skim


def masses(columns) -> np.ndarray:
    """m_JJ from the columns, by summing energies and momenta."""
    total = np.zeros((4, len(columns["mj1"])))
    for jet in ("j1", "j2"):
        p = np.stack([columns[q + jet] for q in ("px", "py", "pz")])
        total += np.vstack([np.sqrt((p**2).sum(axis=0) + columns["m" + jet] ** 2), p])
    return np.sqrt(total[0] ** 2 - (total[1:] ** 2).sum(axis=0))


def problems(found) -> dict[str, tuple[str, int, int | None]]:
    return {one.what.split(":")[0]: (one.severity, one.events, one.first_row) for one in found.problems}


def changed(columns, **rows):
    """Copy of columns with some values replaced: ``name={row: value}``."""
    out = {name: values.copy() for name, values in columns.items()}
    for name, values in rows.items():
        for row, value in values.items():
            out[name][row] = value
    return out


@pytest.fixture
def clean() -> dict[str, np.ndarray]:
    """400 events without anything to complain about."""
    columns = make_columns(400, seed=4)
    for jet in ("j1", "j2"):
        columns["tau1" + jet] = np.maximum(columns["tau1" + jet], 0.05)
        columns["tau2" + jet] = 0.5 * columns["tau1" + jet]
        columns["tau3" + jet] = 0.5 * columns["tau2" + jet]
        columns["pz" + jet] *= 0.3
    for name in ("pxj2", "pyj2"):
        columns[name] *= 0.9
    return columns


@pytest.fixture
def written(tmp_path) -> Callable[..., Path]:
    def write(columns, name="events.root") -> Path:
        path = tmp_path / name
        (write_feature_hdf5 if path.suffix == ".h5" else write_feature_root)(path, columns)
        return path

    return write


# ---- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.root", "events.h5"])
def test_numbers_are_those_of_the_columns(clean, written, name):
    found = inspect_file(written(clean, name))
    mjj, pt = masses(clean), np.hypot(clean["pxj1"], clean["pyj1"])
    assert (found.events, found.looked_at, found.unread, found.runs) == (400, 400, 0, [(0, 400)])
    assert found.jets.per_event == {"2": 400}
    # float64 sums in another order
    assert found.mjj.range.low == pytest.approx(mjj.min(), rel=1e-9)
    assert found.mjj.range.median == pytest.approx(np.median(mjj), rel=1e-9)
    assert found.mjj.range.high == pytest.approx(mjj.max(), rel=1e-9)
    assert found.jets.leading_pt.median == pytest.approx(np.median(pt), rel=1e-12)
    assert found.jets.mass.high == max(clean["mj1"].max(), clean["mj2"].max())
    assert found.labels.signal == clean["label"].sum()
    assert found.labels.background == 400 - clean["label"].sum()
    assert found.weights.all_one
    assert found.identity.source == "name and row"
    assert found.constituents is None
    assert set(found.columns) == set(clean)
    assert found.problems == []


def test_the_containers_are_told_apart(samples):
    said = {kind: inspect_file(path) for kind, path in samples.items()}
    assert {kind: (one.container, one.layout) for kind, one in said.items()} == {
        "ttree": ("root", "features"),
        "rntuple": ("root", "features"),
        "hdf5": ("hdf5", "features"),
        "skim": ("parquet", "skim"),
    }


def test_the_same_events_are_said_to_be_the_same(samples):
    found = [inspect_file(path) for path in samples.values()]
    assert len({one.mjj.range for one in found}) == 1
    assert len({tuple(one.mjj.counts) for one in found}) == 1
    assert len({(one.identity.low, one.identity.high) for one in found}) == 1


def test_a_skim_states_its_identities_and_has_no_labels(samples):
    found = inspect_file(samples["skim"])
    assert (found.identity.source, found.labels) == ("file", None)


def test_the_histogram_holds_every_event(clean, written):
    mjj = inspect_file(written(clean)).mjj
    counts, _ = np.histogram(masses(clean), mjj.edges)
    assert mjj.counts == counts.tolist() == mjj.variances
    assert sum(mjj.counts) == 400
    assert sum(mjj.signal) == clean["label"].sum()
    assert len(mjj.counts) <= inspection._BINS
    np.testing.assert_allclose(np.diff(mjj.edges), np.diff(mjj.edges)[0])


@pytest.mark.parametrize(("low", "high"), [(2700.0, 2700.0), (0.0, 9000.0), (2.7e6, 9e6), (1e-3, 2e-3)])
def test_edges_cover_any_range(low, high):
    for events, most in ((1, 10), (400, 43), (10**6, inspection._BINS)):
        edges = inspection._edges(low, high, events)
        assert edges[0] <= low
        assert edges[-1] > high
        assert 1 <= len(edges) - 1 <= most


def test_other_columns_are_named(clean, tmp_path):
    with uproot.recreate(tmp_path / "e.root") as file:
        tree = file.mktree("events", {**{name: array.dtype for name, array in clean.items()}, "trigger": np.int32})
        tree.extend({**clean, "trigger": np.ones(400, dtype=np.int32)})
    assert inspect_file(tmp_path / "e.root").other_columns == ["trigger"]


def test_other_columns_of_a_frame_are_named(clean, written):
    path = written({**clean, "n_vertices": np.arange(400.0)}, "e.h5")
    assert inspect_file(path).other_columns == ["n_vertices"]


def test_weights_are_summed_and_said(clean, written):
    weight = np.linspace(0.5, 1.9, 400)
    found = inspect_file(written({**clean, "weight": weight}))
    assert not found.weights.all_one
    assert found.weights.sum == pytest.approx(weight.sum())
    assert (found.weights.range.low, found.weights.range.high) == (0.5, 1.9)
    assert sum(found.mjj.counts) == pytest.approx(weight.sum())
    assert sum(found.mjj.variances) == pytest.approx((weight**2).sum())
    assert problems(found)["weight other than 1"] == ("warning", 400, 0)


def ragged_skim(path: Path, counts, constituents=None, **extra) -> Path:
    """A skim with that many jets an event, and optionally that many constituents a jet, of equal momenta."""
    rng = np.random.default_rng(7)
    total = int(np.sum(counts))
    flat = {name: rng.uniform(0.1, 0.2, total) for name in JET_FIELDS}
    flat["pt"] = np.sort(rng.uniform(1200, 1500, total))[::-1].copy()
    flat["mass"] = rng.uniform(50, 100, total)
    flat["phi"] = rng.uniform(-3, 3, total)
    flat["tau1"], flat["tau2"], flat["tau3"] = np.full(total, 0.3), np.full(total, 0.2), np.full(total, 0.1)
    jets = ak.zip(flat, depth_limit=1)
    if constituents is not None:
        number = np.asarray(constituents)
        inside = {name: np.zeros(number.sum()) for name in CONSTITUENT_FIELDS}
        inside["pt"] = np.repeat(0.9 * flat["pt"] / np.maximum(number, 1), number)
        inside["phi"] = np.repeat(flat["phi"], number)
        jets = ak.with_field(jets, ak.unflatten(ak.zip(inside, depth_limit=1), number), "constituents")
    ids = extra.get("event_id", np.arange(len(counts)))
    write_skim(path, {"event_id": ids, "weight": np.ones(len(counts)), "jets": ak.unflatten(jets, np.asarray(counts))})
    return path


def test_jets_an_event_are_counted(tmp_path):
    found = inspect_file(ragged_skim(tmp_path / "s.parquet", [2, 0, 3, 1, 2, 0]))
    assert found.jets.per_event == {"0": 2, "1": 1, "2": 2, "3": 1}
    assert found.mjj.events == 3
    assert problems(found)["fewer than two jets"] == ("warning", 3, 1)


def test_constituents_of_the_two_leading_jets(tmp_path):
    found = inspect_file(ragged_skim(tmp_path / "s.parquet", [2, 3], [4, 9, 6, 5, 99]))
    spread = found.constituents.per_jet
    assert (spread.low, spread.median, spread.high) == (4, 5.5, 9)
    # they were made to carry nine tenths of their jet
    assert found.constituents.momentum_fraction.low == pytest.approx(0.9)
    assert found.constituents.momentum_fraction.high == pytest.approx(0.9)


def test_a_jet_without_constituents_is_a_problem(tmp_path):
    found = inspect_file(ragged_skim(tmp_path / "s.parquet", [2, 2], [4, 9, 6, 0]))
    assert problems(found)["a leading jet without constituents"] == ("warning", 1, 1)


def test_a_skim_without_constituents_has_none(tmp_path):
    assert inspect_file(ragged_skim(tmp_path / "s.parquet", [2, 2])).constituents is None


# ---- which events ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entries", "limit"), [(1, 1), (10, 1), (10, 9), (11, 10), (1000, 37), (10**9, 2000), (5, 99)])
def test_runs_are_rising_disjoint_and_of_the_wanted_size(entries, limit):
    runs = spread_runs(entries, limit)
    assert sum(stop - start for start, stop in runs) == min(entries, limit)
    flat = [edge for run in runs for edge in run]
    assert flat == sorted(flat)
    assert all(start < stop for start, stop in runs)
    assert flat[0] == 0
    assert flat[-1] <= entries
    if limit > 1:
        assert flat[-1] == entries


def test_a_limit_looks_at_events_from_first_to_last(clean, written):
    found = inspect_file(written(clean), limit=50)
    rows = np.concatenate([np.arange(*run) for run in found.runs])
    assert (found.looked_at, len(rows), rows[0], rows[-1]) == (50, 50, 0, 399)
    assert found.mjj.range.high == pytest.approx(masses(clean)[rows].max(), rel=1e-9)
    assert found.labels.signal == clean["label"][rows].sum()
    assert dict(text_lines(found))["looked at"] == "50 events in 10 runs spread over the file"


def test_pieces_of_a_long_file_are_put_together(clean, written, monkeypatch):
    path = written(clean)
    whole = inspect_file(path)
    monkeypatch.setattr(inspection, "_CHUNK", 37)
    assert inspect_file(path) == whole


# ---- problems --------------------------------------------------------------------------------------------------------


def test_bad_values_are_problems_and_the_rest_is_described(clean, written):
    bad = changed(clean, mj1={17: -5.0, 200: -7.0}, pxj2={30: np.nan})
    found = inspect_file(written(bad, "e.h5"))
    assert problems(found)["column 'mj1' holds a negative mass"] == ("error", 2, 17)
    assert problems(found)["column 'pxj2' holds NaN or infinity"] == ("error", 1, 30)
    assert found.unread == 3
    good = np.setdiff1d(np.arange(400), [17, 30, 200])
    assert found.mjj.events == 397
    assert found.mjj.range.high == pytest.approx(masses(clean)[good].max(), rel=1e-9)


def test_very_many_bad_values_end_the_search_for_good_events(written):
    columns = make_columns(4000, seed=5)
    columns["mj1"][::2] = -50.0
    columns["mj1"][:100] = 80.0
    found = inspect_file(written(columns, "e.h5"))
    assert problems(found)["column 'mj1' holds a negative mass"] == ("error", 1950, 100)
    assert 1950 <= found.unread < 4000


def test_a_file_without_a_good_event_is_refused(clean, written):
    with pytest.raises(InputError, match="column 'mj1' holds a negative mass in 400 rows"):
        inspect_file(written({**clean, "mj1": np.full(400, -5.0)}, "e.h5"))


def test_rows_that_cannot_be_read_are_a_problem(clean, tmp_path, monkeypatch):
    """A basket that is damaged in the middle of a file; what can be read is described."""
    write_feature_root(tmp_path / "e.root", clean, "ttree", step=100)
    monkeypatch.setattr(inspection, "_CHUNK", 100)
    with uproot.open(tmp_path / "e.root") as file:
        place = int(file["events"]["mj1"].member("fBasketSeek")[2])
    content = bytearray((tmp_path / "e.root").read_bytes())
    content[place + 60 : place + 400] = b"\xff" * 340
    (tmp_path / "e.root").write_bytes(content)
    found = inspect_file(tmp_path / "e.root")
    assert found.unread == 100
    assert found.mjj.events == 300
    (one,) = [one for one in found.problems if one.severity == "error"]
    assert (one.events, one.first_row) == (100, 200)


def test_undefined_tau21_is_a_warning(clean, written):
    bad = changed(clean, tau1j2={8: 0.0}, tau2j2={8: 0.0}, tau3j2={8: 0.0})
    assert problems(inspect_file(written(bad)))["tau1 is 0 or missing in a leading jet"] == ("warning", 1, 8)


def test_a_ratio_above_one_is_a_note(clean, written):
    found = problems(inspect_file(written(changed(clean, tau2j1={9: 9.0}))))
    assert found["tau that grows with the number of axes (ratio above 1)"] == ("note", 1, 9)


def test_jets_out_of_order_are_a_note(clean, written):
    bad = changed(clean, pxj2={3: 3000.0})
    assert problems(inspect_file(written(bad)))["jets not ordered by pT"] == ("note", 1, 3)


def test_rounded_masses_are_a_note(clean, written):
    found = problems(inspect_file(written(changed(clean, mj1={3: -1e-6}, mj2={3: -1e-6}))))
    assert found["masses just below 0 by rounding"] == ("note", 2, None)


def test_jets_in_mev_are_refused(clean, written):
    scaled = {name: array * (1000 if name[0] in "pm" else 1) for name, array in clean.items()}
    with pytest.raises(InputError, match=r"holds an energy of more than 1e\+06 GeV \(MeV\?\) in 400 rows"):
        inspect_file(written(scaled))


def test_mev_are_suspected(clean, written):
    """Of jets too soft to be refused for their energy."""
    scaled = {name: array * (20 if name[0] in "pm" else 1) for name, array in clean.items()}
    assert problems(inspect_file(written(scaled)))["m_JJ above 14000 GeV"] == ("warning", 400, 0)


def test_a_repeated_identity_is_an_error(clean, written):
    ids = np.arange(400)
    ids[[7, 250]] = 5
    assert problems(inspect_file(written({**clean, "event_id": ids})))["repeated event_id"] == (
        "error",
        2,
        7,
    )


def test_the_same_event_twice_is_a_warning(clean, written):
    twice = {name: np.concatenate([array, array[10:13]]) for name, array in clean.items()}
    found = problems(inspect_file(written(twice)))
    assert found["the same jets as an earlier event"] == ("warning", 3, 400)


def test_negative_weights_are_a_warning(clean, written):
    found = problems(inspect_file(written({**clean, "weight": np.where(np.arange(400) == 6, -1.0, 1.0)})))
    assert found["negative weight"] == ("warning", 1, 6)


def test_no_pair_at_all_is_an_error(tmp_path):
    found = inspect_file(ragged_skim(tmp_path / "s.parquet", [1, 0, 1]))
    assert problems(found)["none of the events read has two jets"] == ("error", 3, 0)
    assert (found.mjj.events, found.mjj.range, found.mjj.edges) == (0, None, [])


def test_errors_come_first(clean, written):
    found = inspect_file(written(changed(clean, mj1={3: -5.0}, pxj2={9: 3000.0}, tau1j1={8: 0.0})))
    assert [one.severity for one in found.problems] == ["error", "warning", "note", "note"]


# ---- the record ------------------------------------------------------------------------------------------------------


def test_the_record_is_as_its_schema_says(clean, written, samples, tmp_path):
    for path in (*samples.values(), written(clean), ragged_skim(tmp_path / "s.parquet", [1, 0], [1])):
        record = json.loads(json.dumps(inspect_file(path).to_json(), allow_nan=False))
        jsonschema.validate(record, inspection_schema())


def test_the_schema_refuses_another_record(clean, written):
    record = inspect_file(written(clean)).to_json()
    checker = jsonschema.Draft202012Validator(inspection_schema())
    assert checker.is_valid(json.loads(json.dumps(record)))
    for change in ({"events": "many"}, {"problems": [{"severity": "fatal"}]}, {"mjj": None}):
        assert not checker.is_valid({**record, **change})
    for name in record:
        assert not checker.is_valid({key: value for key, value in record.items() if key != name})


def test_the_schema_is_stable():
    """A name that goes or changes breaks scripts: raise INSPECTION_VERSION with it."""
    assert inspection.INSPECTION_VERSION == 1
    assert set(inspection_schema()["properties"]) >= {
        *("schema_version", "path", "bytes", "container", "layout", "object", "events", "looked_at", "runs", "unread"),
        *("columns", "other_columns", "labels", "identity", "weights", "jets", "constituents", "mjj", "problems"),
    }


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def drapes(drapes, monkeypatch, tmp_path):
    """Run ``drapes inspect`` in a folder of its own; returns status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(drapes, "inspect")


def test_text_has_one_line_a_fact(clean, written, drapes):
    written(changed(clean, mj1={17: -5.0}))
    status, out, err = drapes("events.root")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    names = [line.split()[0] for line in out.splitlines()]
    assert names[:3] == ["path", "layout", "events"]
    assert "error         column 'mj1' holds a negative mass (1 event, first in row 17)" in out.splitlines()


def test_several_files_give_a_list(clean, written, drapes):
    written(clean, "a.root")
    written(clean, "b.h5")
    _, out, _ = drapes("*.root", "b.h5", "--json")
    assert [record["path"] for record in json.loads(out)] == ["a.root", "b.h5"]


def test_a_bad_file_among_good_ones_is_one_line_and_status_2(clean, written, drapes, tmp_path):
    written(clean, "a.root")
    (tmp_path / "b.root").write_bytes(b"nothing")
    status, out, err = drapes("a.root", "b.root", "--json")
    assert (status, len(err.splitlines())) == (2, 1)
    assert err.startswith("drapes: b.root: is not a ROOT")
    assert [record["path"] for record in json.loads(out)] == ["a.root"]


def test_more_events_on_request(clean, written, drapes, monkeypatch):
    monkeypatch.setattr(inspection, "_MANY", 30)
    written(clean)
    assert json.loads(drapes("events.root", "--json")[1])["looked_at"] == 30
    assert json.loads(drapes("events.root", "--json", "--events", 60)[1])["looked_at"] == 60
    assert json.loads(drapes("events.root", "--json", "--all")[1])["looked_at"] == 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--all", "--events", "3"], "--all and --events exclude each other"),
        (["--events", "0"], "--events"),
        (["--figure", "x.txt"], "--figure draws one file, as .png, .pdf or .svg"),
        (["--figure", "x.png", "events.root", "b.root"], "--figure draws one file"),
        (["--layout", "feature"], "unknown layout 'feature'; did you mean 'features'?"),
    ],
)
def test_mistyped_options_are_one_line(clean, written, drapes, words, said, tmp_path):
    written(clean)
    status, out, err = drapes("events.root", *words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert {path.name for path in tmp_path.iterdir()} == {"events.root"}


@pytest.mark.parametrize(("name", "head"), [("m.png", b"\x89PNG"), ("m.pdf", b"%PDF"), ("m.svg", b"<?xml")])
def test_a_figure_is_drawn(clean, written, drapes, tmp_path, name, head):
    written(clean)
    assert drapes("events.root", "--figure", name)[0] == 0
    assert (tmp_path / name).read_bytes().startswith(head)


def test_no_figure_without_a_pair(drapes, tmp_path):
    ragged_skim(tmp_path / "s.parquet", [1, 0])
    status, _, err = drapes("s.parquet", "--figure", "m.png")
    assert status == 2
    assert "no event has two jets: m_JJ cannot be drawn" in err
    assert not (tmp_path / "m.png").exists()


def test_the_figure_shows_every_event_with_units(clean, written):
    mjj = inspect_file(written(clean)).mjj
    data = plots.MassPreview(
        *(np.asarray(x) for x in (mjj.edges, mjj.counts, mjj.variances, mjj.signal)), "some events"
    )
    (ax,) = plots.mass_preview(data, plots.Stamp("events.root", sqrt_s=None)).axes
    assert ax.get_xlabel() == "$m_{JJ}$ [GeV]"
    assert ax.get_ylabel() == f"Events / {mjj.edges[1] - mjj.edges[0]:g} GeV"
    points = ax.containers[0].lines[0]
    np.testing.assert_array_equal(points.get_ydata(), [x for x in mjj.counts if x])
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {
        *("labelled background", "labelled signal", "all events"),
    }


# ---- real files ------------------------------------------------------------------------------------------------------


def test_the_published_features(data_dir):
    found = inspect_file(data_dir / "lhco" / "events_anomalydetection_first100k.features.h5")
    assert (found.layout, found.events, found.looked_at) == ("features", 100_000, 100_000)
    assert (found.labels.signal, found.labels.background) == (9059, 90_941)
    assert problems(found)["tau1 is 0 or missing in a leading jet"][:2] == ("warning", 12)
    assert not [one for one in found.problems if one.severity == "error"]


def test_the_raw_events_are_clustered_to_the_published_ones(data_dir):
    found = inspect_file(data_dir / "lhco" / "events_anomalydetection_tiny.h5", limit=100)
    assert (found.layout, found.events, found.looked_at) == ("lhco_raw", 1000, 100)
    rows = np.concatenate([np.arange(*run) for run in found.runs])
    with h5py.File(data_dir / "lhco" / "events_anomalydetection_first100k.features.h5") as file:
        names = [name.decode() for name in file["df/block0_items"][:]]
        columns = dict(zip(names, file["df/block0_values"][:1000][rows].T, strict=True))
    mjj = masses(columns)
    # jets that are clustered again agree to the rounding of the sum of some hundred particles
    assert found.mjj.range.low == pytest.approx(mjj.min(), rel=1e-9)
    assert found.mjj.range.high == pytest.approx(mjj.max(), rel=1e-9)
    assert found.constituents.momentum_fraction.low == pytest.approx(1, abs=1e-9)
    assert found.constituents.momentum_fraction.high == pytest.approx(1, abs=1e-9)
    assert (found.columns, found.other_columns) == (["particles", "label"], [])


def test_cms_events_are_described_as_stored(data_dir, real_files_stay_open):
    """Known of this file: ten events, leading pT 1256 to 1752 GeV, m_JJ 2.58 to 3.38 TeV."""
    for name in ("pfnano.root", "pfnano_rntuple.root"):
        found = inspect_file(data_dir / "cms" / name)
        assert (found.layout, found.events, found.mjj.events, found.identity.source) == ("pfnano", 10, 10, "file")
        assert [round(x) for x in (found.jets.leading_pt.low, found.jets.leading_pt.high)] == [1256, 1752]
        assert [round(x, -1) for x in (found.mjj.range.low, found.mjj.range.high)] == [2580, 3380]
        # PUPPI leaves a part of the stored jets' momentum to corrections that were applied after clustering
        assert 0.8 < found.constituents.momentum_fraction.low < found.constituents.momentum_fraction.high < 1
        assert "PFCands_pdgId" in found.other_columns


def test_delphes_events_are_clustered(data_dir, real_files_stay_open):
    found = inspect_file(data_dir / "delphes" / "delphes.root")
    assert (found.layout, found.events, found.labels) == ("delphes", 25, None)
    assert found.constituents.momentum_fraction.low == pytest.approx(1, abs=1e-6)
    assert "EFlowTrack" not in found.other_columns
    assert "Tower" in found.other_columns


def test_arrays_of_jets_with_constituents(tmp_path):
    """Four events of two jets with 1, 2, ... 8 constituents; one dataset that nothing reads."""
    sizes = np.arange(1, 9)
    jets = np.zeros((4, 2, 4))
    jets[..., 0], jets[..., 3] = [1500.0, 1400.0], 90.0
    jets[:, 1, 2] = np.pi - np.linspace(0, 0.3, 4)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["jets"], file["tau"] = jets, np.tile([0.3, 0.2, 0.1], (4, 2, 1))
        file["label"] = np.array([0, 1, 0, 0])
        file["const_offset"] = np.concatenate([[0], np.cumsum(sizes)])
        file["const_pt"] = np.repeat(jets[..., 0].ravel() / sizes, sizes)
        file["const_deta"] = file["const_dphi"] = np.zeros(sizes.sum())
        file["const_q"] = np.zeros(sizes.sum(), dtype=np.int8)
    found = inspect_file(tmp_path / "s.h5")
    assert (found.layout, found.events, found.other_columns) == ("simulated", 4, ["const_q"])
    spread = found.constituents.per_jet
    assert (spread.low, spread.median, spread.high) == (1, 4.5, 8)
    assert found.constituents.momentum_fraction.median == pytest.approx(1)
    assert (found.labels.signal, found.labels.background) == (1, 3)
    assert found.problems == []


def test_help_loads_none_of_the_heavy_libraries():
    """`drapes inspect --help` answers at once: readers, coffea and pooch load when they are needed."""
    code = (
        "import sys\nfrom drapes_hep import cli\n"
        "assert not {'torch', 'coffea', 'uproot', 'h5py', 'pooch', 'requests'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_hdf5_that_is_no_frame_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["numbers"] = np.arange(3)
    with pytest.raises(InputError, match="not a table written by pandas"):
        inspect_file(tmp_path / "x.h5")
