"""Readers: cycles of trees, nested records, HDF5 locks, what pandas writes, files without events, odd types."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import awkward as ak
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
from conftest import make_columns

from drapes_hep.config import check_config
from drapes_hep.data.inspection import inspect_file
from drapes_hep.errors import DrapesError
from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.processing import run
from drapes_hep.events.readers import narrowed, read, scan
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS
from drapes_hep.files import read_json
from drapes_hep.report.sections import accounting_cards
from drapes_hep.stages.skim import skim_stage

FIRST, SECOND = make_columns(20, seed=1), make_columns(12, seed=2)


def total(events):
    return {"events": len(events), "pt": float(ak.sum(ak.Array(events.jets.pt)))}


def expected(columns):
    pt = sum(np.hypot(columns["px" + jet], columns["py" + jet]).sum() for jet in ("j1", "j2"))
    return {"events": len(columns["mj1"]), "pt": pytest.approx(pt, rel=1e-12)}


def complaint(path, object_path=None, reading=None):
    reading = reading or Reading()
    with pytest.raises(DrapesError) as caught:
        read_all(path, object_path, reading)
    return str(caught.value)


def read_all(path, object_path, reading):
    for chunk in split(scan(path, object_path, reading), reading=reading):
        read(chunk)


def events_of(path, constituents=False, chunksize=17):
    """Jets, identities and constituents as a processor sees them."""
    reading = Reading(constituents=constituents)
    parts = [read(chunk) for chunk in split(scan(path, reading=reading), "", chunksize, None, reading)]
    out = {
        "event_id": np.concatenate([ak.to_numpy(one.event_id) for one in parts]),
        "jets": ak.concatenate(
            [ak.zip({n: ak.Array(one.jets[n]) for n in JET_FIELDS}, depth_limit=2) for one in parts]
        ),
    }
    if constituents:
        inside = [one.jets.constituents for one in parts]
        out["constituents"] = ak.concatenate(
            [ak.zip({name: ak.Array(one[name]) for name in CONSTITUENT_FIELDS}, depth_limit=3) for one in inside]
        )
    return out


def assert_same(found, reference):
    for name in ("jets", "constituents"):
        if name in found:
            assert ak.array_equal(found[name], reference[name]), name
    # what has no numbers of its own is known by its file's name
    assert (found["event_id"] & 0xFFFFFFFF == reference["event_id"] & 0xFFFFFFFF).all()


# ---- cycles of a tree ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ttree", "rntuple"])
def cycles(request, tmp_path_factory):
    """A file with two cycles of one tree, of other contents, at the top and in a directory."""
    path = tmp_path_factory.mktemp("cycles") / f"{request.param}.root"
    with uproot.recreate(path) as file:
        for name in ("Events", "dir/Events") if request.param == "ttree" else ("Events",):
            for columns in (FIRST, SECOND):
                make = file.mktree if request.param == "ttree" else file.mkrntuple
                make(name, {key: values.dtype for key, values in columns.items()}).extend(columns)
    return path


@pytest.mark.parametrize(
    ("tree", "columns"), [("Events", SECOND), ("Events;2", SECOND), ("Events;1", FIRST), ("/Events;1", FIRST)]
)
def test_a_named_cycle_is_read(cycles, tree, columns):
    assert run({"a": {cycles: tree}}, total, chunksize=7)[0] == expected(columns)
    assert inspect_file(cycles, object_path=tree).events == len(columns["mj1"])


def test_a_cycle_in_a_directory(cycles):
    if "ttree" in cycles.name:
        for tree, columns in (("dir/Events;1", FIRST), ("dir/Events;2", SECOND), ("dir/Events", SECOND)):
            assert run({"a": {cycles: tree}}, total)[0] == expected(columns)
    assert "no tree 'dri/Events' in it; did you mean" in complaint(cycles, "dri/Events;1")


def test_a_cycle_that_does_not_exist_names_those_that_do(cycles):
    assert "no cycle 3 of tree 'Events' in it; it holds Events;2, Events;1" in complaint(cycles, "Events;3")


def test_cycles_of_different_size_are_said(cycles):
    (said,) = [one.what for one in inspect_file(cycles, object_path="Events").problems if "cycles" in one.what]
    assert said == "several cycles of one tree: Events;2 has 12 events, Events;1 has 20 events; Events;2 is read"


def test_identities_of_two_cycles_collide_loudly(cycles):
    with pytest.raises(DrapesError, match="is listed with 'Events;1' and with 'Events;2'"):
        run({"a": {cycles: "Events;1"}, "b": {cycles: "Events;2"}}, total)


def test_the_skim_is_made_again_for_another_cycle():
    def trees(first, second):
        config = check_config({"name": "c", "data": {"path": {"a.root": first, "b.root": second}}}, "c.yaml")
        return skim_stage(SimpleNamespace(config=config, hidden=(), table=None), []).other["trees"]

    assert trees("E;1", "E;2") == trees("E;1", "E;2")
    assert len({str(trees(*one)) for one in (("E;1", "E;2"), ("E;2", "E;1"), ("E;1", "E;1"), ("E", "E"))}) == 4


# ---- nested records --------------------------------------------------------------------------------------------------


def nest(columns, depth_limit):
    return ak.zip(columns, depth_limit=depth_limit)


@pytest.fixture(scope="module")
def cms():
    """Events of PFNano: event numbers, jets, candidates and links between them, column by column."""
    rng = np.random.default_rng(5)
    n = 50
    jets, candidates = rng.integers(0, 4, n), rng.integers(0, 7, n)
    candidates[jets == 0] = 0

    def ragged(counts, draw):
        return ak.unflatten(draw(int(counts.sum())), counts)

    def vectors(counts):
        return {
            "pt": ragged(counts, lambda k: rng.uniform(20, 900, k)),
            "eta": ragged(counts, lambda k: rng.normal(0, 1, k)),
            "phi": ragged(counts, lambda k: rng.uniform(-3, 3, k)),
            "mass": ragged(counts, lambda k: rng.uniform(1, 9, k)),
        }

    tau = {f"tau{i}": ragged(jets, lambda k: rng.uniform(0, 1, k)) for i in (1, 2, 3)}
    link = ragged(candidates, lambda k: (rng.integers(0, 99, k) % np.repeat(jets, candidates)).astype(np.int16))
    place = ragged(candidates, lambda k: np.arange(k))
    first = np.repeat(np.cumsum(candidates) - candidates, candidates)
    groups = {
        "FatJet": vectors(jets) | tau,
        "PFCands": vectors(candidates),
        # last candidate first: an index that is not followed would be seen
        "FatJetPFCands": {
            "jetIdx": link,
            "pFCandsIdx": ak.unflatten(np.repeat(candidates, candidates) - 1 - (ak.flatten(place) - first), candidates),
        },
    }
    event = {
        "run": np.full(n, 3, np.uint32),
        "luminosityBlock": np.full(n, 2, np.uint32),
        "event": np.arange(n, dtype=np.uint64),
    }
    return event, groups


def flat_names(event, groups):
    return event | {f"{group}_{name}": values for group, columns in groups.items() for name, values in columns.items()}


def type_of(values):
    return values.type.content if isinstance(values, ak.Array) else values.dtype


def write_tree(path, columns, separator="_"):
    with uproot.recreate(path) as file:
        tree = file.mktree(
            "Events",
            {name: type_of(values) for name, values in columns.items()},
            field_name=lambda outer, inner: inner if outer == "" else outer + separator + inner,
        )
        tree.extend(columns)
    return path


def write_ntuple(path, columns):
    with uproot.recreate(path) as file:
        file["Events"] = columns
    return path


def write_ntuple_in_steps(path, columns):
    with uproot.recreate(path) as file:
        ntuple = file.mkrntuple("Events", {name: values[:20] for name, values in columns.items()})
        ntuple.extend({name: values[20:] for name, values in columns.items()})
    return path


def write_parquet(path, columns):
    ak.to_parquet(nest(columns, 1), path, row_group_size=20)
    return path


WAYS = {
    "flat ntuple": lambda event, groups, path: write_ntuple(path, flat_names(event, groups)),
    "collections": lambda event, groups, path: write_ntuple(path, event | {k: nest(v, 2) for k, v in groups.items()}),
    "records of lists": lambda e, groups, path: write_ntuple(path, e | {k: nest(v, 1) for k, v in groups.items()}),
    "in steps": lambda e, groups, path: write_ntuple_in_steps(path, e | {k: nest(v, 2) for k, v in groups.items()}),
    "with counters": lambda e, groups, path: write_ntuple(
        path, e | {"nFatJet": ak.num(groups["FatJet"]["pt"])} | {k: nest(v, 2) for k, v in groups.items()}
    ),
    "half nested": lambda e, groups, path: write_ntuple(
        path,
        flat_names(e, {"FatJet": groups["FatJet"]}) | {k: nest(v, 2) for k, v in groups.items() if k != "FatJet"},
    ),
    "one array": lambda e, groups, path: write_ntuple(path, nest(e | {k: nest(v, 2) for k, v in groups.items()}, 1)),
    "one record": lambda e, groups, path: write_ntuple(
        path, {"all": nest(e | {k: nest(v, 2) for k, v in groups.items()}, 1)}
    ),
    "dots in names": lambda e, groups, path: write_ntuple(
        path, {name.replace("_", "."): values for name, values in flat_names(e, groups).items()}
    ),
    "tree": lambda e, groups, path: write_tree(path, e | {k: nest(v, 2) for k, v in groups.items()}),
    "tree with dots": lambda e, groups, path: write_tree(path, e | {k: nest(v, 2) for k, v in groups.items()}, "."),
    "flat parquet": lambda e, groups, path: write_parquet(path, flat_names(e, groups)),
    "parquet": lambda e, groups, path: write_parquet(path, e | {k: nest(v, 2) for k, v in groups.items()}),
    "parquet of lists": lambda e, groups, path: write_parquet(path, e | {k: nest(v, 1) for k, v in groups.items()}),
}


@pytest.fixture(scope="module")
def flat_cms(cms, tmp_path_factory):
    return events_of(write_tree(tmp_path_factory.mktemp("flat") / "events.root", flat_names(*cms)), constituents=True)


@pytest.mark.parametrize("way", WAYS)
def test_nested_records_are_the_flat_ones(tmp_path, cms, flat_cms, way):
    path = WAYS[way](*cms, tmp_path / "events.root")
    found = events_of(path, constituents=True)
    assert_same(found, flat_cms)
    assert (found["event_id"] == flat_cms["event_id"]).all()
    assert ak.count(found["constituents"].pt) > 100


def test_nested_jets_without_candidates_are_nanoaod(tmp_path, cms, flat_cms):
    event, groups = cms
    path = write_ntuple(tmp_path / "events.root", event | {"FatJet": nest(groups["FatJet"], 2)})
    assert scan(path).layout == "nanoaod"
    assert_same(events_of(path), flat_cms)


def test_an_exact_name_is_preferred(tmp_path, cms, flat_cms):
    event, groups = cms
    other = nest({name: values * 0 + 1 for name, values in groups["FatJet"].items()}, 2)
    columns = flat_names(event, {"FatJet": groups["FatJet"]}) | {"FatJet": other}
    assert_same(events_of(write_ntuple(tmp_path / "events.root", columns)), flat_cms)


def test_two_fields_of_one_spelling_are_refused(tmp_path, cms):
    event, groups = cms
    columns = event | {
        "FatJet": nest({name: values for name, values in groups["FatJet"].items() if name != "pt"}, 1),
        "FatJet.pt": groups["FatJet"]["pt"],
        "FatJet/pt": groups["FatJet"]["pt"],
    }
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({name: ak.to_arrow(values, extensionarray=False) for name, values in columns.items()}), path
    )
    assert "column 'FatJet_pt' is spelled by several fields: FatJet.pt, FatJet/pt" in complaint(path)


@pytest.mark.parametrize("how", ["records", "one record", "record of records"])
def test_features_in_records(tmp_path, how):
    jets = {
        jet: nest({name[:-2]: values for name, values in FIRST.items() if name.endswith(jet)}, 1)
        for jet in ("j1", "j2")
    }
    columns = {
        "records": jets | {"label": FIRST["label"]},
        "one record": {"event": nest(FIRST, 1)},
        "record of records": {"event": nest(jets | {"label": FIRST["label"]}, 1)},
    }[how]
    write_feature_root(tmp_path / "a.root", FIRST, "ttree")
    path = write_ntuple(tmp_path / "b.root", columns)
    assert scan(path).has_labels
    assert_same(events_of(path), events_of(tmp_path / "a.root"))


@pytest.mark.parametrize("way", ["collections", "records of lists", "tree", "parquet", "parquet of lists"])
def test_skims_by_other_writers(tmp_path, cms, flat_cms, way):
    _, groups = cms
    event = {"event_id": flat_cms["event_id"], "weight": np.ones(50)}
    assert_same(events_of(WAYS[way](event, {"jets": groups["FatJet"]}, tmp_path / "s.root")), flat_cms)


@pytest.mark.parametrize("depth", [1, 2])
def test_constituents_in_records(tmp_path, cms, depth):
    _, groups = cms
    counts = ak.num(groups["FatJet"]["pt"])
    inside = {name: ak.unflatten(np.arange(1, 2 * ak.sum(counts) + 1) / 100, 2) for name in CONSTITUENT_FIELDS}
    inside = {name: ak.unflatten(ak.from_regular(values), counts) for name, values in inside.items()}
    jets = nest(groups["FatJet"] | {"constituents": nest(inside, depth + 1)}, depth)
    path = write_ntuple(tmp_path / "s.root", {"event_id": np.arange(50), "weight": np.ones(50), "jets": jets})
    found = events_of(path, constituents=True)
    for name in CONSTITUENT_FIELDS:
        assert ak.array_equal(found["constituents"][name], inside[name]), name


def test_records_of_delphes(tmp_path):
    rng = np.random.default_rng(3)
    counts = np.full(10, 30)
    columns = {
        name: {key: ak.unflatten(rng.uniform(1, 60, 300) if key in ("PT", "ET") else rng.normal(0, 1, 300), counts)
               for key in (momentum, "Eta", "Phi")}
        for name, momentum in (("EFlowTrack", "PT"), ("EFlowPhoton", "ET"), ("EFlowNeutralHadron", "ET"))
    }  # fmt: skip
    flat = {f"{name}.{key}": values for name, one in columns.items() for key, values in one.items()}
    reference = events_of(write_tree(tmp_path / "a.root", flat), constituents=True)
    found = events_of(
        write_ntuple(tmp_path / "b.root", {name: nest(one, 2) for name, one in columns.items()}), constituents=True
    )
    assert ak.count(reference["constituents"].pt) > 100
    assert_same(found, reference)


def test_fixed_arrays_in_records(tmp_path):
    tau = ak.to_regular(ak.Array([[[0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.5, 0.4, 0.3, 0.2]]] * 5), axis=-1)
    jets = {"PT": ak.Array([[300.0, 200.0]] * 5), "Eta": ak.Array([[0.1, 0.2]] * 5), "Phi": ak.Array([[1.0, 2.0]] * 5)}
    path = write_ntuple(tmp_path / "a.root", {"FatJet": nest(jets | {"Mass": jets["Phi"], "Tau": tau}, 2)})
    found = events_of(path)["jets"]
    assert scan(path).layout == "delphes_jets"
    assert found.tau2.tolist() == [[0.2, 0.5]] * 5


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"FatJet": nest({name: [[1.0]] for name in ("pt", "eta", "phi", "mass")}, 2)},
            "lacks columns 'FatJet_tau1', 'FatJet_tau2', 'FatJet_tau3' of layout 'nanoaod', the nearest",
        ),
        (
            {"EFlowTrack": nest({"PT": [[1.0]], "Eta": [[1.0]], "Phi": [[1.0]]}, 2)},
            "'EFlowPhoton.ET', 'EFlowPhoton.Eta', 'EFlowPhoton.Phi', 'EFlowNeutralHadron.ET' and 2 more",
        ),
        ({"x": np.ones(1)}, "expected the columns of a layout: "),
    ],
)
@pytest.mark.parametrize("write", [write_ntuple, write_parquet])
def test_the_hint_names_the_nearest_layout(tmp_path, columns, words, write):
    columns = {name: ak.Array(values) for name, values in columns.items()}
    assert words in complaint(write(tmp_path / "a.root", columns))


# ---- HDF5: locks -----------------------------------------------------------------------------------------------------

WRITER = """
import sys, h5py
mode, path = sys.argv[1:]
if mode == "append":
    file = h5py.File(path, "a")
else:
    with h5py.File(path, "r") as old:
        arrays = {name: old[name][:] for name in old}
    file = h5py.File(path, "w", libver="earliest" if mode == "write" else "latest")
    for name, values in arrays.items():
        file.create_dataset(name, data=values, chunks=values.shape, maxshape=(None, *values.shape[1:]))
    file.flush()
    if mode == "swmr":
        file.swmr_mode = True
print("ready", flush=True)
sys.stdin.readline()
import os
os._exit(0)
"""


@pytest.mark.parametrize("kept", [(), ("area",)])
@pytest.mark.parametrize("less", [{}, {"constituents": False}, {"constituents": False, "jets": False}], ids=str)
def test_a_scan_serves_readings_of_less(cms, tmp_path, kept, less):
    event, groups = cms
    area = ak.ones_like(groups["FatJet"]["pt"])
    path = write_tree(tmp_path / "a.root", flat_names(event, {**groups, "FatJet": {**groups["FatJet"], "area": area}}))
    full = Reading(constituents=True, keep=kept)
    wanted = dataclasses.replace(full, **less)
    assert narrowed(scan(path, reading=full), wanted) == scan(path, reading=wanted)


@pytest.fixture
def writer(tmp_path):
    """Hold a file open for writing in a second process."""
    processes = []

    def start(mode, path):
        command = [sys.executable, "-c", WRITER, mode, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.communicate("\n")


def write_arrays(path, n=20):
    jets = np.zeros((n, 2, 4))
    jets[:, :, 0], jets[:, :, 3] = 1000 + np.arange(n)[:, None], 5
    with h5py.File(path, "w") as file:
        file["jets"], file["tau"] = jets, np.full((n, 2, 3), 0.1)
    return path


PT = 2 * (20 * 1000 + 190.0)


@pytest.mark.parametrize("mode", ["write", "append", "swmr"])
def test_a_file_open_for_writing_is_read_and_said(tmp_path, writer, mode):
    path = write_arrays(tmp_path / "a.h5")
    writer(mode, path)
    assert run({"a": path}, total)[0] == {"events": 20, "pt": PT}
    assert scan(path).remarks == ("is open for writing in another process: its content may change",)
    assert "is open for writing in another process" in inspect_file(path).problems[0].what


def test_flags_of_an_open_file_are_no_damage(tmp_path, writer):
    path = write_arrays(tmp_path / "a.h5")
    process = writer("latest", path)
    said = "is open for writing in another process, or was not closed by the one that wrote it; wait until it is closed"
    assert said in complaint(path)
    process.communicate("\n")  # it ends without closing the file: the flags stay
    assert said in complaint(path)


def test_a_lock_that_is_asked_for_is_respected(tmp_path, writer):
    path = write_arrays(tmp_path / "a.h5")
    writer("append", path)
    code = "import sys; from drapes_hep.events.formats.hdf5_files import open_hdf5; open_hdf5(sys.argv[1]).__enter__()"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(
        command, env=os.environ | {"HDF5_USE_FILE_LOCKING": "TRUE"}, capture_output=True, text=True, check=False
    )
    assert "is locked by another process; HDF5_USE_FILE_LOCKING in the environment asks for locks" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    path, real = write_arrays(tmp_path / "a.h5"), h5py.File

    def without_locks(*args, locking=None, **kwargs):
        if locking is not False:
            raise OSError(f"Unable to synchronously open file (unable to lock file, errno = {number}, error message)")
        return real(*args, locking=locking, **kwargs)

    monkeypatch.setattr("drapes_hep.events.formats.hdf5_files.h5py.File", without_locks)
    assert run({"a": path}, total)[0] == {"events": 20, "pt": PT}
    assert scan(path).remarks == ()


# ---- HDF5: what is in no file ----------------------------------------------------------------------------------------


def replace_jets(path, how):
    with h5py.File(path, "a") as file:
        jets = file["jets"][:]
        del file["jets"]
        if how == "never written":
            file.create_dataset("jets", jets.shape, jets.dtype)
        elif how == "partly written":
            file.create_dataset("jets", jets.shape, jets.dtype, chunks=(5, 2, 4))[:10] = jets[:10]
        elif how.startswith("virtual"):
            with h5py.File(path.with_name("source.h5"), "w") as source:
                source["x"] = jets
            layout = h5py.VirtualLayout(jets.shape, jets.dtype)
            covered = slice(0, 10 if "half" in how else None)
            layout[covered] = h5py.VirtualSource("source.h5", "x", jets.shape)[covered]
            file.create_virtual_dataset("jets", layout)
            if "missing" in how:
                path.with_name("source.h5").unlink()
        else:
            raw = path.with_name("raw.bin")
            file.create_dataset("jets", jets.shape, jets.dtype, external=[(str(raw), 0, jets.nbytes)])
            raw.write_bytes(jets.tobytes()[: 400 if "short" in how else None])
            if "missing" in how:
                raw.unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("never written", "holds only part of '/jets'"),
        ("partly written", "holds only part of '/jets'"),
        ("virtual, missing", "source.h5 is missing"),
        ("virtual, half", "some of '/jets' is in none of the files that it is made of"),
        ("external, short", "too short for it"),
        ("external, missing", "raw.bin, which is missing"),
    ],
)
def test_fill_values_are_no_events(tmp_path, how, words):
    path = write_arrays(tmp_path / "a.h5")
    replace_jets(path, how)
    assert words in complaint(path)


@pytest.mark.parametrize("how", ["virtual", "external"])
def test_datasets_of_other_files(tmp_path, how):
    path = write_arrays(tmp_path / "a.h5")
    replace_jets(path, how)
    assert run({"a": path}, total)[0] == {"events": 20, "pt": PT}


def test_labels_that_were_never_written_are_said(tmp_path):
    path = write_arrays(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("label", (20,), "i8")
    assert scan(path).remarks == ("some of its labels were never written, and are read as 0",)


# ---- HDF5: pandas ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame():
    pytest.importorskip("tables")
    return pytest.importorskip("pandas").DataFrame(FIRST)


@pytest.mark.parametrize(
    ("change", "how", "words"),
    [
        (lambda df: df, {"format": "table"}, "was written by pandas with format='table'"),
        (lambda df: df["mj1"], {}, "is a pandas Series, one column"),
        (lambda df: df["mj1"], {"format": "table"}, "is a pandas Series, one column"),
        (
            lambda df: df.T.set_index([[*"ab" * 7, "c"], list("abcdefghijklmno")]).T,
            {},
            "has columns of several names each",
        ),
        (lambda df: df.rename(columns={"label": 7}), {}, "has column names of several types"),
        (lambda df: df.assign(weight=df["mj1"].astype(object)), {}, "column 'weight' of 'df' holds Python objects"),
        (lambda df: df.assign(label=df["label"].astype(object)), {}, "column 'label' of 'df' holds Python objects"),
        (lambda df: df.assign(weight=1j), {}, "column 'weight' of 'df' holds Python objects"),
        (lambda df: df.assign(weight=df["label"].astype("datetime64[ns]")), {}, "column 'weight' of 'df' holds"),
        (lambda df: df.assign(pxj1=df["pxj1"].astype(str)), {}, "column 'pxj1' of 'df' holds Python objects, text"),
        (lambda df: df.assign(kind=df["label"].astype("category")), {"format": "table"}, "format='table'"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_pandas_writes_and_is_refused(tmp_path, frame, change, how, words):
    change(frame).to_hdf(tmp_path / "a.h5", key="df", **how)
    assert words in complaint(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda df: df.set_index([np.arange(20), np.arange(20) // 2]), {}),
        (lambda df: df.set_index(np.array([*"abcdefghijklmnopqrst"])), {}),
        (lambda df: df.assign(note="text"), {}),
        (lambda df: df.assign(label=df["label"].astype(bool)), {}),
        (lambda df: df.astype({"tau1j1": "float64", "label": "uint8"}), {}),
        (lambda df: df, {"complib": "blosc:zstd", "complevel": 5}),
        (lambda df: df, {"complib": "bzip2", "complevel": 5}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_pandas_writes_and_is_read(tmp_path, frame, change, how):
    change(frame).to_hdf(tmp_path / "a.h5", key="df", **how)
    write_feature_hdf5(tmp_path / "b.h5", FIRST)
    assert scan(tmp_path / "a.h5").has_labels
    assert_same(events_of(tmp_path / "a.h5"), events_of(tmp_path / "b.h5"))


@pytest.mark.filterwarnings("ignore")
def test_a_frame_among_others(tmp_path, frame):
    for key, one, kind in (("a", frame["mj1"], "fixed"), ("b", frame, "table"), ("c", frame, "fixed")):
        one.to_hdf(tmp_path / "a.h5", key=key, format=kind)
    assert scan(tmp_path / "a.h5").object_path == "c"
    assert "table 'b' was written by pandas with format='table'" in complaint(tmp_path / "a.h5", "b")


# ---- files without events --------------------------------------------------------------------------------------------

NO_EVENTS = {name: values[:0] for name, values in FIRST.items()}


def write_empty(path, kind):
    if kind == "hdf5":
        write_feature_hdf5(path, NO_EVENTS)
    elif kind == "arrays":
        write_arrays(path, 0)
    elif kind == "parquet":
        pq.ParquetWriter(path, pa.table(NO_EVENTS).schema).close()
    elif kind == "ttree":
        with uproot.recreate(path) as file:
            file.mktree("events", {name: values.dtype for name, values in NO_EVENTS.items()})
    else:
        write_feature_root(path, NO_EVENTS, kind)
    return path


@pytest.mark.parametrize("kind", ["hdf5", "arrays", "parquet", "ttree", "rntuple"])
def test_a_file_without_events_is_passed_over(tmp_path, kind):
    write_feature_hdf5(tmp_path / "full.h5", FIRST)
    empty = write_empty(tmp_path / "empty", kind)
    output, report = run({"a": [empty, tmp_path / "full.h5"]}, total)
    assert output == expected(FIRST)
    assert [(one.path, one.requested) for one in report.files] == [(str(empty), 0), (str(tmp_path / "full.h5"), 20)]
    found = inspect_file(empty)
    assert (found.events, found.problems[-1].severity) == (0, "note")
    assert json.dumps(found.to_json(), allow_nan=False)
    assert "holds no events; remove it from the list" in complaint(empty, reading=Reading(empty="error"))


def test_inspect_of_an_empty_file(tmp_path, drapes):
    status, out, _ = drapes("inspect", write_empty(tmp_path / "a.root", "ttree"))
    assert status == 0
    assert "holds no events" in out


def test_a_data_set_without_events_is_an_error(tmp_path):
    write_feature_hdf5(tmp_path / "full.h5", FIRST)
    files = [write_empty(tmp_path / name, "parquet") for name in ("a", "b")]
    with pytest.raises(DrapesError, match="holds no events, and neither does any other file of its data set"):
        run({"a": files, "b": tmp_path / "full.h5"}, total)


def test_a_file_of_no_bytes_or_without_a_tree_is_an_error(tmp_path):
    (tmp_path / "a.root").write_bytes(b"")
    assert "is empty; copy or make it again" in complaint(tmp_path / "a.root")
    uproot.recreate(tmp_path / "b.root").close()
    assert "holds no TTree or RNTuple (it holds nothing)" in complaint(tmp_path / "b.root")
    assert "a job that selected none may have written no tree" in complaint(tmp_path / "b.root")


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A folder with good, empty and bad files, and a configuration that lists those asked for."""
    monkeypatch.chdir(tmp_path)
    write_feature_hdf5(tmp_path / "good.h5", make_columns(3000))
    write_feature_hdf5(tmp_path / "unlabelled.h5", make_columns(20, seed=3, labels=False))
    write_feature_root(tmp_path / "other.root", make_columns(20, seed=4), "ttree")
    write_empty(tmp_path / "empty1.root", "ttree")
    write_empty(tmp_path / "empty2.root", "ttree")
    (tmp_path / "copy.h5").write_bytes((tmp_path / "good.h5").read_bytes())
    (tmp_path / "zero.h5").write_bytes(b"")
    (tmp_path / "text.root").write_text("no events")

    def write(*names, more=""):
        (tmp_path / "c.yaml").write_text(f"name: c\ndata: {{path: [{', '.join(names)}], labels: true{more}}}\n")
        return "c.yaml"

    return write


def test_validate_names_all_that_is_wrong(search, drapes):
    config = search("good.h5", "copy.h5", "zero.h5", "text.root", "unlabelled.h5", "empty1.root")
    status, _, said = drapes("validate", "--files", config)
    lines = said.splitlines()
    assert status == 2
    for words in (
        "zero.h5: is empty",
        "text.root: is not a ROOT, HDF5 or Parquet file",
        "good.h5: holds the same bytes as",
        "unlabelled.h5: carries no column 'label'",
    ):
        assert len([line for line in lines if words in line]) == 1, words
    assert lines[-1] == "drapes: c.yaml: 4 problems with the files of data.path"
    assert len(lines) == 5


def test_validate_says_what_a_run_accepts(search, drapes):
    status, out, _ = drapes("validate", "--files", search("good.h5", "other.root", "empty1.root", "empty2.root"))
    assert status == 0
    assert "2 of 4 files hold no events and are passed over: " in out
    assert "several layouts" not in out


def test_empty_files_are_recorded(search, drapes, tmp_path):
    config = search("good.h5", "empty1.root", "empty2.root")
    status, _, said = drapes("skim", config, "-o", "r", "--unblind")
    assert status == 0, said
    assert said.count("2 of 3 files hold no events and are passed over") == 1
    record = read_json(tmp_path / "r" / "skim" / "skim.json")
    assert [one.rpartition("/")[2] for one in record["empty_files"]] == ["empty1.root", "empty2.root"]
    assert sorted(one["requested"] for one in record["files"]) == [0, 0, 3000]


def test_empty_files_can_be_an_error(search, drapes):
    config = search("good.h5", "empty1.root", more=", empty: error")
    status, _, said = drapes("skim", config, "-o", "r")
    assert status == 2
    assert "empty1.root: holds no events; remove it from the list, or set data.empty to skip" in said


def test_empty_files_are_in_the_report():
    # a blinded run has no numbers of events
    skim = {"files": [{"path": "a.root"}, {"path": "job/b.root"}], "empty_files": ["job/b.root"]}
    for blind in (False, True):
        run = SimpleNamespace(results={"accounting": {"requested": 5}}, skim=skim, blind=blind)
        assert accounting_cards(run)[0]["more"] == "events in 2 files, 1 without events (b.root)"


# ---- types of columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
def test_identities_that_a_type_cannot_hold_apart(tmp_path, kind):
    """Both are even, so that rounding alone makes them neighbours."""
    largest = 2**53 if kind == "<f8" else 2**24
    ids = np.arange(largest - 2, largest + 38, 2).astype(kind)
    path = tmp_path / "a.h5"
    with h5py.File(write_arrays(path), "a") as file:
        file["event_id"] = ids
    assert "cannot tell from its neighbours in 19 rows, first in row 1" in complaint(path)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("weight", pa.array(["1"] * 20), "column 'weight' is string, not numbers"),
        ("weight", pa.nulls(20), "column 'weight' is null, not numbers"),
        ("weight", pa.array(np.arange(20)).cast(pa.timestamp("s")), "column 'weight' is timestamp"),
        ("weight", pa.array([None, *[1.0] * 19]), "column 'weight' has 1 missing values"),
        ("weight", pa.array([[1.0]] * 20), "not one number an event"),
        ("mj1", pa.array([1.0] * 20), "has several columns 'mj1'"),
    ],
)
def test_parquet_columns_that_are_refused(tmp_path, name, values, words):
    pq.write_table(pa.table(FIRST).append_column(name, values), tmp_path / "a.parquet")
    assert words in complaint(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.dictionary_encode(),
        lambda values: values.cast(pa.decimal128(20, 0)),
        lambda values: values.cast(pa.bool_()),
        lambda values: values.cast(pa.uint8()),
        lambda values: values.cast(pa.float32()),
    ],
)
def test_parquet_columns_that_are_read(tmp_path, change):
    table = pa.table(FIRST)
    place = table.schema.get_field_index("label")
    pq.write_table(table.set_column(place, "label", change(pa.array(FIRST["label"]))), tmp_path / "a.parquet")
    labels = [ak.to_numpy(read(chunk).label) for chunk in split(scan(tmp_path / "a.parquet"), "", 7)]
    assert np.concatenate(labels).tolist() == FIRST["label"].tolist()


def test_missing_values_of_an_ntuple(tmp_path):
    path = write_ntuple(tmp_path / "a.root", FIRST | {"weight": ak.Array([None, *[1.0] * 19])})
    assert "column 'weight' has 1 missing values" in complaint(path)
    whole = ak.mask(np.full(20, 2.0), np.ones(20, dtype=bool))
    (chunk,) = split(scan(write_ntuple(tmp_path / "b.root", FIRST | {"weight": whole})))
    assert ak.to_numpy(read(chunk).weight).tolist() == [2.0] * 20
