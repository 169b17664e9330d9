"""The event schema, its readers, features, skims and truth sidecars."""

from __future__ import annotations

import errno
import math
import os
import sys

import awkward as ak
import h5py
import hist
import numpy as np
import pytest
from conftest import ROOT, make_columns

from drapes_hep.errors import ConfigError, DrapesError, InputError, LostEventsError
from drapes_hep.events import skims
from drapes_hep.events.accumulate import ColumnParts, fill_checked
from drapes_hep.events.chunks import file_key, split
from drapes_hep.events.features import FEATURES, check_features, compute_features, invariant_mass, order_by_mass
from drapes_hep.events.formats import arrow
from drapes_hep.events.formats.writers import write_feature_hdf5
from drapes_hep.events.processing import run
from drapes_hep.events.readers import read, scan
from drapes_hep.events.schema import JET_FIELDS
from drapes_hep.events.skims import read_skim, read_truth, write_skim, write_truth

LHCO = "lhco/events_anomalydetection_first100k.features.h5"


def events_of(path, **kwargs):
    (chunk,) = split(scan(path), chunksize=10**9, **kwargs)
    return read(chunk)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def pairs(columns):
    """Jets made by hand, for the features."""
    return ak.zip({name: ak.Array(np.asarray(columns[name], dtype=float)) for name in JET_FIELDS})


def direct_mass(columns):
    """m_JJ from the columns as they are, in extended precision."""
    total = np.zeros((4, len(columns["mj1"])), dtype=np.longdouble)
    for jet in ("j1", "j2"):
        px, py, pz, m = (columns[q + jet].astype(np.longdouble) for q in ("px", "py", "pz", "m"))
        total += np.stack([np.sqrt(px**2 + py**2 + pz**2 + m**2), px, py, pz])
    return np.sqrt(total[0] ** 2 - (total[1:] ** 2).sum(axis=0)).astype(float)


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_every_reader_gives_the_schema(samples, columns, kind):
    info = scan(samples[kind])
    assert info.entries == 3000
    assert info.id == file_key("somewhere/else/events.xyz")
    assert info.has_labels == (kind != "skim")
    events = events_of(samples[kind], dataset="qcd", metadata={"is_data": True})
    assert events.event_id.type.content.primitive == "int64"
    assert events.weight.type.content.primitive == "float64"
    assert ak.all(events.weight == 1)
    assert ak.to_numpy(events.event_id).tolist() == [(info.id << 32) | row for row in range(3000)]
    assert set(JET_FIELDS) <= set(events.jets.fields)
    assert ak.all(ak.num(events.jets) == 2)
    assert events.metadata["dataset"] == "qcd"
    assert events.metadata["is_data"] is True
    # jets are vectors: behaviours work
    np.testing.assert_allclose((events.jets[:, 0] + events.jets[:, 1]).mass, direct_mass(columns), rtol=1e-9)
    np.testing.assert_allclose(events.jets[:, 0].px, columns["pxj1"], rtol=1e-12, atol=1e-9)
    if kind != "skim":
        assert ak.to_numpy(events.label).tolist() == columns["label"].tolist()
    else:
        assert "label" not in events.fields


def test_mass_is_that_of_the_summed_momenta(columns, samples):
    mjj = invariant_mass(events_of(samples["hdf5"]).jets)
    np.testing.assert_allclose(mjj, direct_mass(columns), rtol=1e-12)


def test_mass_of_boosted_pairs(tmp_path):
    """Forward pairs: energies of tens of TeV, where E**2 - p**2 cancels."""
    columns = make_columns(500, seed=3)
    for jet in ("j1", "j2"):
        columns["pz" + jet] = np.hypot(columns["px" + jet], columns["py" + jet]) * np.sinh(4.5 + 0.1 * (jet == "j2"))
    write_feature_hdf5(tmp_path / "a.h5", columns)
    np.testing.assert_allclose(invariant_mass(events_of(tmp_path / "a.h5").jets), direct_mass(columns), rtol=1e-9)


def test_real_events(data_dir):
    path = data_dir / LHCO
    with h5py.File(path) as file:
        names = [name.decode() for name in file["df/block0_items"][:]]
        columns = dict(zip(names, file["df/block0_values"][:].T, strict=True))
    events = events_of(path)
    label = ak.to_numpy(events.label)
    assert (int((label == 0).sum()), int((label == 1).sum())) == (90_941, 9_059)
    mjj = invariant_mass(events.jets)
    np.testing.assert_allclose(mjj, direct_mass(columns), rtol=1e-9)
    window = (mjj >= 3300) & (mjj < 3700)
    assert (int((window & (label == 0)).sum()), int((window & (label == 1)).sum())) == (12_881, 6_908)
    assert int(ak.sum(events.jets.tau1 == 0)) == 12


def test_real_events_through_the_processor(data_dir):
    from drapes_hep.plugins import load_processor

    dijets = load_processor("processors/dijets.py:Dijets", [ROOT])
    processor = dijets({"mass_range": (0, 13_000), "features": ("tau21_j1", "tau21_j2")})
    out, report = run({"lhco": data_dir / LHCO}, processor)
    flow = out["cutflow"]["lhco"]
    assert report.requested == report.processed == flow["read"]["events"] == 100_000
    jets_without_tau1 = flow["undefined_tau21_j1"]["events"] + flow["undefined_tau21_j2"]["events"]
    assert jets_without_tau1 == 12
    assert flow["defined"]["events"] == len(out["skim"]) == 100_000 - 12
    assert report.seconds < 60


def test_identities_do_not_depend_on_the_chunks(samples):
    whole = ak.to_numpy(events_of(samples["ttree"]).event_id)
    parts = [ak.to_numpy(read(chunk).event_id) for chunk in split(scan(samples["ttree"]), chunksize=777)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_stated_identities_and_weights_are_kept(tmp_path, columns):
    ids = np.random.default_rng(5).permutation(10_000)[:3000]
    write_feature_hdf5(tmp_path / "a.h5", {**columns, "event_id": ids, "weight": np.linspace(0, 2, 3000)})
    events = events_of(tmp_path / "a.h5")
    assert ak.to_numpy(events.event_id).tolist() == ids.tolist()
    np.testing.assert_array_equal(events.weight, np.linspace(0, 2, 3000))


def test_padding_is_an_absent_jet(tmp_path, columns):
    padded = {name: values.copy() for name, values in columns.items()}
    for q in ("px", "py", "pz", "m"):
        padded[f"{q}j2"][10:20] = 0
    write_feature_hdf5(tmp_path / "a.h5", padded)
    counts = ak.to_numpy(ak.num(events_of(tmp_path / "a.h5").jets))
    assert counts[10:20].tolist() == [1] * 10
    assert counts.sum() == 6000 - 10


def test_tiny_negative_masses_are_clipped_and_counted(tmp_path, columns):
    odd = {**columns, "mj1": columns["mj1"].copy()}
    odd["mj1"][[5, 6]] = -1e-5
    write_feature_hdf5(tmp_path / "a.h5", odd)
    _, report = run({"a": tmp_path / "a.h5"}, lambda events: {"n": len(events)}, chunksize=1000)
    assert report.clipped_masses == 2
    assert ak.min(events_of(tmp_path / "a.h5").jets.mass) == 0


def test_rounding_of_a_mass_grows_with_the_energy(tmp_path, columns):
    """E**2 - p**2 of massless jets in single precision: what comes out below zero is no error of the file."""
    odd = {name: values.copy() for name, values in columns.items()}
    momentum = [odd[f"{q}j1"].astype(np.float32) for q in ("px", "py", "pz")]
    squares = [p * p for p in momentum]
    energy = np.sqrt(squares[0] + squares[1] + squares[2])
    rounded = energy * energy - squares[2] - squares[1] - squares[0]
    odd["mj1"] = (np.sign(rounded) * np.sqrt(np.abs(rounded))).astype(np.float64)
    assert odd["mj1"].min() < -0.1
    write_feature_hdf5(tmp_path / "a.h5", odd)
    _, report = run({"a": tmp_path / "a.h5"}, lambda events: {"n": len(events)})
    assert report.clipped_masses == np.sum(odd["mj1"] < 0) > 0


@pytest.mark.parametrize("labelled", [True, False])
def test_pandas_reads_what_we_write_and_we_read_pandas(tmp_path, columns, labelled):
    pytest.importorskip("tables")
    pandas = pytest.importorskip("pandas")
    written = columns if labelled else {name: v for name, v in columns.items() if name != "label"}
    write_feature_hdf5(tmp_path / "ours.h5", written)
    frame = pandas.read_hdf(tmp_path / "ours.h5", "df")
    for name, values in written.items():
        np.testing.assert_array_equal(frame[name], values)
    pandas.DataFrame(written).to_hdf(tmp_path / "theirs.h5", key="df", format="fixed", complib="blosc", complevel=5)
    theirs, ours = events_of(tmp_path / "theirs.h5"), events_of(tmp_path / "ours.h5")
    assert ak.array_equal(ak.Array(theirs.jets.pt), ak.Array(ours.jets.pt))
    assert ("label" in theirs.fields) == labelled


# ---- features --------------------------------------------------------------------------------------------------------


def one_event(**fields):
    base = {name: [[1.0, 1.0]] for name in JET_FIELDS}
    return pairs({**base, **fields})


def test_jets_are_ordered_by_mass():
    heavier, lighter = order_by_mass(one_event(mass=[[80.0, 500.0]], pt=[[1500.0, 1400.0]]))
    assert (heavier.mass.tolist(), heavier.pt.tolist(), lighter.pt.tolist()) == ([500.0], [1400.0], [1500.0])


def test_features_of_one_event_by_hand():
    jets = one_event(
        mass=[[100.0, 500.0]],
        eta=[[0.5, -0.5]],
        phi=[[3.1, -3.1]],
        tau1=[[0.4, 0.5]],
        tau2=[[0.2, 0.1]],
        tau3=[[0.1, 0.08]],
    )
    values = {name: float(values[0]) for name, values in compute_features(tuple(FEATURES), jets).items()}
    expected = {
        "m_j1": 500.0,
        "m_j2": 100.0,
        "delta_m": 400.0,
        "tau21_j1": 0.2,
        "tau21_j2": 0.5,
        "tau32_j1": 0.8,
        "tau32_j2": 0.5,
        "delta_r": math.hypot(1.0, 2 * math.pi - 6.2),
    }
    assert values == pytest.approx(expected, rel=1e-12)


def test_undefined_ratio_is_nan_without_a_warning():
    values = compute_features(("tau21_j1",), one_event(tau1=[[0.0, 0.0]]))
    assert np.isnan(values["tau21_j1"]).all()


@pytest.mark.parametrize("name", ["m_jj", "mjj", "m_JJ", "MJJ"])
def test_the_resonant_mass_is_no_feature(name):
    with pytest.raises(ConfigError, match="resonant mass m_JJ cannot be a feature"):
        check_features(["m_j1", name])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tau21j1"], "unknown feature 'tau21j1'; did you mean 'tau21_j1'?"),
        (["m_j1", "m_j1"], "feature 'm_j1' is listed twice"),
        ([], "must list at least one feature"),
    ],
)
def test_bad_feature_lists(names, message):
    with pytest.raises(ConfigError) as caught:
        check_features(names)
    assert message in str(caught.value)


# ---- histograms and columns ------------------------------------------------------------------------------------------


def test_fill_is_guarded_against_lost_entries():
    """boost-histogram issue 960: this order of axes loses the whole call when its first entry is out of range."""
    bad = hist.Hist(hist.axis.Regular(10, 0, 1, name="x", flow=False), hist.axis.StrCategory(["a"], name="dataset"))
    with pytest.raises(LostEventsError, match="a histogram took"):
        fill_checked(bad, x=np.array([5.0, 0.5, 0.6]), dataset="a")
    good = hist.Hist(hist.axis.StrCategory(["a"], name="dataset"), hist.axis.Regular(10, 0, 1, name="x"))
    fill_checked(good, x=np.array([5.0, 0.5, np.nan]), dataset="a")
    assert good.sum(flow=True) == 3


def test_column_parts_merge_in_any_order():
    def part(start):
        return ColumnParts({("a", 1, "f", start): {"x": np.arange(start, start + 2)}})

    forward, backward = part(0) + part(2) + part(4), part(4) + part(0) + part(2)
    assert forward.columns()["x"].tolist() == backward.columns()["x"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(LostEventsError, match="counted twice"):
        forward + part(2)


# ---- skims and truth -------------------------------------------------------------------------------------------------


def skim_columns(n=100):
    counts = np.arange(n) % 3 + 1
    flat = np.random.default_rng(0).normal(size=counts.sum())
    jets = ak.unflatten(ak.zip({name: flat + i for i, name in enumerate(JET_FIELDS)}), counts)
    return {"event_id": np.arange(n), "weight": np.ones(n), "mjj": np.linspace(2700, 6000, n), "jets": jets}


def test_skim_round_trip_and_bytes(tmp_path):
    columns = skim_columns()
    for name in ("a", "b"):
        write_skim(tmp_path / f"{name}.parquet", columns, {"inputs": {"x.root": "abc"}})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    back = read_skim(tmp_path / "a.parquet")
    assert back.metadata["inputs"] == {"x.root": "abc"}
    assert back.metadata["schema_version"] == skims.SKIM_VERSION
    for name in ("event_id", "weight", "mjj"):
        np.testing.assert_array_equal(back[name], columns[name])
    assert ak.array_equal(back["jets"], columns["jets"])
    assert "option" not in str(back["jets"].type)
    assert "?" not in str(back["jets"].type)
    assert listing(tmp_path) == ["a.parquet", "b.parquet"]
    only = read_skim(tmp_path / "a.parquet", ("mjj",))
    assert list(only.columns) == ["mjj"]


@pytest.mark.parametrize("rows", [[], [0], [3, 39, 40, 41, 99], range(100)])
def test_some_rows_of_a_skim(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(arrow, "_ROW_GROUP", 40)
    columns = skim_columns()
    write_skim(tmp_path / "a.parquet", columns)
    some = read_skim(tmp_path / "a.parquet", rows=np.array(rows, dtype=np.int64))
    np.testing.assert_array_equal(some["mjj"], columns["mjj"][list(rows)])
    assert ak.array_equal(some["jets"], columns["jets"][list(rows)])


def test_empty_skim(tmp_path):
    write_skim(tmp_path / "a.parquet", {name: values[:0] for name, values in skim_columns().items()})
    assert len(read_skim(tmp_path / "a.parquet")) == 0


def test_skims_never_carry_labels(tmp_path):
    with pytest.raises(ValueError, match="must not contain truth labels"):
        write_skim(tmp_path / "a.parquet", {**skim_columns(), "label": np.zeros(100)})


def test_newer_skims_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(skims, "SKIM_VERSION", 99)
    write_skim(tmp_path / "a.parquet", skim_columns())
    monkeypatch.undo()
    with pytest.raises(InputError, match="is a skim of version 99, this release reads 1"):
        read_skim(tmp_path / "a.parquet")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    write_skim(tmp_path / "a.parquet", skim_columns())
    before = (tmp_path / "a.parquet").read_bytes()

    def full(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(skims.pq, "write_table", full)
    with pytest.raises(DrapesError) as caught:
        write_skim(tmp_path / "a.parquet", skim_columns(50))
    assert str(caught.value) == f"{tmp_path / 'a.parquet'}: cannot be written (No space left on device)"
    assert listing(tmp_path) == ["a.parquet"]
    assert (tmp_path / "a.parquet").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_real_write_error_leaves_nothing_behind(tmp_path):
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(DrapesError, match="cannot be written"):
            write_skim(tmp_path / "a.parquet", skim_columns())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert listing(tmp_path) == []


def test_truth_sidecar(tmp_path):
    ids, labels = np.array([30, 10, 20]), np.array([1, 0, 0])
    write_truth(tmp_path / "t.parquet", ids, labels)
    truth = read_truth(tmp_path / "t.parquet")
    assert truth.truth_for([10, 30, 10]).tolist() == [0, 1, 0]
    with pytest.raises(InputError, match=r"has no label for 1 of 2 events, e\.g\. event_id 99"):
        truth.truth_for([10, 99])


def test_repeated_truth_is_refused(tmp_path):
    write_truth(tmp_path / "t.parquet", [1, 1], [0, 1])
    with pytest.raises(InputError, match="holds 1 repeated event ids"):
        read_truth(tmp_path / "t.parquet")


def test_bundled_sample():
    """Order and identity carry no truth; both files together stay small; every event is above the threshold."""
    folder = ROOT / "configs" / "data"
    root, sidecar = folder / "quickstart.root", folder / "quickstart.truth.parquet"
    assert root.stat().st_size + sidecar.stat().st_size < 10_000_000
    info = scan(root)
    assert not info.has_labels
    assert info.has_event_ids
    events, truth = events_of(root), read_truth(sidecar)
    label = truth.truth_for(ak.to_numpy(events.event_id))
    assert int(label.sum()) == 2000
    assert len(label) >= 162_000
    assert invariant_mass(events.jets).min() > 2700
    ids = ak.to_numpy(events.event_id)
    for order in (np.arange(len(ids)), ids):
        # mean rank of the signal within 4 standard deviations of that of a random choice
        ranks = order[label == 1] / len(order)
        assert abs(ranks.mean() - 0.5) < 4 / math.sqrt(12 * 2000)
