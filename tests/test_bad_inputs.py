"""Every bad input is one line that says which file, what is wrong and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pytest
import uproot
from conftest import make_columns

from drapes_hep.errors import InputError
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.paths import expand
from drapes_hep.events.processing import run
from drapes_hep.events.readers import scan
from drapes_hep.events.skims import read_skim, read_truth, write_skim, write_truth


def count(events):
    return {"n": len(events)}


def complaint(path, **kwargs) -> str:
    """What a run over a file says; always one line that begins with the file."""
    fileset = path if isinstance(path, dict) else {"data": path}
    with pytest.raises(InputError) as caught:
        run(fileset, count, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    if not isinstance(path, dict):
        assert text.startswith(f"{path}: ")
        assert text.count("; ") >= 1
    return text


def write(path: Path, columns, kind: str) -> Path:
    if kind == "hdf5":
        write_feature_hdf5(path, columns)
    else:
        write_feature_root(path, columns, kind)
    return path


KINDS = ["ttree", "rntuple", "hdf5"]


# ---- the file itself -------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    (tmp_path / "events.root").touch()
    assert "no such file; did you mean 'events.root'?" in complaint(tmp_path / "event.root")
    assert "no such file; check the path" in complaint(tmp_path / "nowhere" / "x.h5")


def test_folder(tmp_path):
    assert "is a folder; name files, or a pattern such as 'folder/*.root'" in complaint(tmp_path)


def test_patterns(tmp_path, samples):
    folder = samples["hdf5"].parent.parent
    assert len(expand([folder / "*" / "events.root", samples["hdf5"], samples["hdf5"]])) == 3
    with pytest.raises(InputError, match="no file matches this pattern; check the folder"):
        expand(tmp_path / "*.root")


def test_empty_file(tmp_path):
    (tmp_path / "a.root").touch()
    assert "is empty; copy or make it again" in complaint(tmp_path / "a.root")


def test_no_permission(tmp_path, samples, monkeypatch):
    path = tmp_path / "a.h5"
    path.write_bytes(samples["hdf5"].read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def refuse(self, *args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    assert "no permission to read it" in complaint(path)


@pytest.mark.parametrize("name", ["a.root", "a.h5", "a.parquet", "a.txt"])
def test_text_under_any_name(tmp_path, name):
    (tmp_path / name).write_text("pxj1,pyj1\n1,2\n" * 1000)
    assert "is not a ROOT, HDF5 or Parquet file" in complaint(tmp_path / name)


def test_content_decides_not_the_name(tmp_path, samples):
    for kind, path in samples.items():
        (tmp_path / f"{kind}.dat").write_bytes(path.read_bytes())
        assert scan(tmp_path / f"{kind}.dat").entries == 3000


def test_user_block_before_hdf5(tmp_path, samples):
    with h5py.File(samples["hdf5"]) as source, h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as target:
        source.copy("df", target)
    with (tmp_path / "a.h5").open("r+b") as file:
        file.write(b"a comment")
    assert scan(tmp_path / "a.h5").entries == 3000


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_truncated(tmp_path, samples, kind, part):
    whole = samples[kind].read_bytes()
    path = tmp_path / samples[kind].name
    path.write_bytes(whole[: int(part * len(whole))])
    assert "truncated" in complaint(path)


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_damaged_in_the_middle(tmp_path, samples, kind):
    raw = bytearray(samples[kind].read_bytes())
    raw[len(raw) // 4 : len(raw) // 2] = bytes(len(raw) // 2 - len(raw) // 4)
    path = tmp_path / samples[kind].name
    path.write_bytes(raw)
    text = complaint(path, chunksize=1000)
    assert any(words in text for words in ("cannot be read", "zero events", "holds", "lacks", "has none"))


# ---- another layout --------------------------------------------------------------------------------------------------


def test_a_type_that_numpy_has_not_is_no_damage(tmp_path, samples):
    """PyTables' dates: of another dataset they do not matter, of one that is read they are named."""

    def dates(path: Path, name: str) -> Path:
        with h5py.File(path, "a") as file:
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.UNIX_D64LE, h5py.h5s.create_simple((3,)))
        return path

    path = tmp_path / "a.h5"
    path.write_bytes(samples["hdf5"].read_bytes())
    output, _ = run({"a": dates(path, "when")}, count)
    assert output == {"n": 3000}
    assert "not a table written by pandas (it holds when)" in complaint(dates(tmp_path / "b.h5", "when"))
    assert "'jets' cannot be read as numbers" in complaint(dates(tmp_path / "c.h5", "jets"))


def test_other_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["jets"] = np.zeros((5, 2, 4))
    assert "the file lacks column 'tau' of layout 'simulated', the nearest" in complaint(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["energies"] = np.zeros((5, 2, 4))
    assert "is HDF5, but not a table written by pandas (it holds energies)" in complaint(tmp_path / "b.h5")


def test_pandas_table_format(tmp_path, samples):
    path = tmp_path / "a.h5"
    path.write_bytes(samples["hdf5"].read_bytes())
    with h5py.File(path, "r+") as file:
        file["df"].attrs["pandas_type"] = np.bytes_(b"frame_table")
    assert "was written by pandas with format='table'" in complaint(path)


def test_several_frames(tmp_path, columns):
    write_feature_hdf5(tmp_path / "a.h5", columns)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.copy("df", "other")
    assert "several tables fit: df, other; choose one: {path: table}" in complaint(tmp_path / "a.h5")
    _, report = run({"a": {tmp_path / "a.h5": "other"}}, count)
    assert report.processed == 3000
    assert "contains no frame 'nope'" in complaint({"a": {tmp_path / "a.h5": "nope"}})


def test_root_without_a_tree(tmp_path, data_dir):
    path = data_dir / "cms" / "JetHT_run2016_red_cert_scan.root"
    assert "holds no TTree or RNTuple" in complaint(path) or "has none of the dijet columns" in complaint(path)


def test_root_of_another_layout(data_dir):
    text = complaint(data_dir / "reference" / "pybumphunter_toy.root")
    assert "has none of the dijet columns" in text


def test_wrong_and_several_trees(tmp_path, columns):
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        for name in ("first", "second"):
            file.mktree(name, {key: values.dtype for key, values in columns.items()}).extend(columns)
    assert "several trees fit: first, second; choose one with data.path: {a.root: first}" in complaint(path)
    assert "no tree 'frist' in it; did you mean 'first'?" in complaint({"a": {path: "frist"}})
    _, report = run({"a": {path: "second"}}, count)
    assert report.processed == 3000


def test_jagged_branch(tmp_path, columns):
    path, n = tmp_path / "a.root", 10
    types = dict.fromkeys(columns, "float64") | {"mj1": "var * float64"}
    with uproot.recreate(path) as file:
        tree = file.mktree("events", types)
        tree.extend({name: v[:n].astype(float) for name, v in columns.items()} | {"mj1": ak.Array([[1.0, 2.0]] * n)})
    assert "column 'mj1' is" in complaint(path)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_column_names_the_closest(tmp_path, columns, kind):
    renamed = {("tau_1j1" if name == "tau1j1" else name): values for name, values in columns.items()}
    text = complaint(write(tmp_path / "a", renamed, kind))
    assert "lacks column 'tau1j1' (closest present: 'tau_1j1')" in text


@pytest.mark.parametrize("kind", KINDS)
def test_zero_events(tmp_path, kind):
    text = complaint(write(tmp_path / "a", make_columns(0), kind))
    assert "holds no events; name files that hold some" in text


def test_zero_events_as_pandas_writes_them(tmp_path):
    pytest.importorskip("tables")
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(make_columns(0)).to_hdf(tmp_path / "a.h5", key="df", format="fixed")
    assert "holds no events" in complaint(tmp_path / "a.h5")


def test_zero_events_in_a_skim(tmp_path, samples):
    skim = read_skim(samples["skim"])
    write_skim(tmp_path / "a.parquet", {name: values[:0] for name, values in skim.columns.items()})
    assert "holds no events" in complaint(tmp_path / "a.parquet")


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [50_000, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity(tmp_path, columns, kind, chunksize):
    bad = {name: values.copy() for name, values in columns.items()}
    bad["tau2j2"][[17, 1800, 2999]] = [np.nan, np.inf, -np.inf]
    text = complaint(write(tmp_path / "a", bad, kind), chunksize=chunksize)
    assert "column 'tau2j2' holds NaN or infinity in 3 rows, first in row 17 (counted from 0);" in text


def test_several_bad_columns(tmp_path, columns):
    bad = {name: values.copy() for name, values in columns.items()}
    bad["pxj2"][5] = bad["mj1"][2000] = bad["tau1j1"][7] = np.nan
    for chunksize in (50_000, 100):
        text = complaint(write(tmp_path / "a.h5", bad, "hdf5"), chunksize=chunksize)
        expected = (
            "column 'mj1' holds NaN or infinity in 1 row, first in row 2000 (counted from 0) (and so do pxj2, tau1j1)"
        )
        assert expected in text


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("mj2", -5.0, "column 'mj2' holds a negative mass in 1 row, first in row 4"),
        ("tau2j1", -0.1, "column 'tau2j1' holds a negative value in 1 row, first in row 4"),
        ("pyj1", 1e8, "column 'pxj1' holds an energy of more than 1e+06 GeV (MeV?) in 1 row, first in row 4"),
        ("mj2", 2e6, "column 'pxj2' holds an energy of more than 1e+06 GeV (MeV?) in 1 row, first in row 4"),
        ("label", 2, "column 'label' holds a label that is neither 0 nor 1 in 1 row, first in row 4"),
        ("pxj1", 1.7e308, "column 'pxj1' holds an energy of more than 1e+06 GeV (MeV?) in 1 row, first in row 4"),
        ("tau3j2", 1e7, "column 'tau3j2' holds a value of more than 1e+06 in 1 row, first in row 4"),
        ("weight", -1e61, "column 'weight' holds a weight beyond 1e+60 in 1 row, first in row 4"),
        ("weight", 3e-319, "column 'weight' holds a weight that is not 0 and within 1e-60 of it in 1 row, first"),
        ("weight", np.nan, "column 'weight' holds NaN or infinity in 1 row, first in row 4"),
        ("event_id", -1, "column 'event_id' holds an identity that is not an integer from 0 to 2**63 - 1 in 1 row"),
    ],
)
def test_impossible_values(tmp_path, columns, column, value, message):
    bad = {**columns, "weight": np.ones(3000), "event_id": np.arange(3000)}
    bad[column] = bad[column].copy()
    bad[column][4] = value
    assert message in complaint(write(tmp_path / "a.h5", bad, "hdf5"))


def test_fractional_identities(tmp_path, columns):
    bad = {**columns, "event_id": np.arange(3000) + 0.5}
    assert "identity that is not an integer" in complaint(write(tmp_path / "a.root", bad, "ttree"))


def test_jet_along_the_beam(tmp_path, columns):
    bad = {name: values.copy() for name, values in columns.items()}
    bad["pxj1"][3] = bad["pyj1"][3] = 0
    assert "column 'pxj1' holds no transverse momentum in 1 row" in complaint(write(tmp_path / "a.h5", bad, "hdf5"))


def test_jet_almost_along_the_beam(tmp_path, columns):
    bad = {name: values.copy() for name, values in columns.items()}
    bad["pxj1"][3], bad["pyj1"][3], bad["pzj1"][3] = 1e-8, 0, 5000
    assert "column 'pzj1' holds a pseudorapidity beyond 20 in 1 row" in complaint(write(tmp_path / "a.h5", bad, "hdf5"))


@pytest.mark.parametrize("px", [1e-8, 1e-290, 5e-324])
def test_the_smallest_momentum_is_refused_whatever_overflows(tmp_path, columns, px):
    bad = {name: values.copy() for name, values in columns.items()}
    bad["pxj1"][3], bad["pyj1"][3] = px, 0
    assert "column 'pzj1' holds a pseudorapidity beyond 20 in 1 row" in complaint(write(tmp_path / "a.h5", bad, "hdf5"))


def test_any_weight_of_single_precision_is_read(tmp_path, columns):
    weight = np.ones(3000, dtype=np.float32)
    weight[:6] = np.float32([0, -1, 1e-45, -1e-45, 3.4e38, -3.4e38])
    path = write(tmp_path / "a.h5", {**columns, "weight": weight}, "hdf5")
    output, _ = run({"a": path}, lambda events: {"weight": events.weight.to_numpy()[:6]})
    np.testing.assert_array_equal(output["weight"], weight[:6].astype(np.float64))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pt", -900.0, "a transverse momentum that is not positive"),
        ("pt", 0.0, "a transverse momentum that is not positive"),
        ("pt", 1e-7, "a transverse momentum below 1e-06 GeV"),
        ("pt", 1e8, "an energy of more than 1e+06 GeV (MeV?)"),
        ("eta", 25.0, "a pseudorapidity beyond 20"),
        ("phi", 170.0, "an azimuth beyond 2 pi (degrees?)"),
        ("mass", -80.0, "a negative mass"),
        ("tau3", -0.1, "a negative value"),
        ("tau3", 1e7, "a value of more than 1e+06"),
    ],
)
def test_impossible_jets_in_a_skim(tmp_path, samples, field, value, message):
    skim = read_skim(samples["skim"])
    jets = skim["jets"]
    flat = ak.to_numpy(ak.flatten(jets[field])).copy()
    flat[21] = value
    jets[field] = ak.unflatten(flat, ak.num(jets))
    write_skim(tmp_path / "a.parquet", {**skim.columns, "jets": jets})
    assert f"column 'jets.{field}' holds {message} in 1 row, first in row 10" in complaint(tmp_path / "a.parquet")


def test_bad_values_in_a_skim(tmp_path, samples):
    skim = read_skim(samples["skim"])
    jets = skim["jets"]
    eta = ak.to_numpy(ak.flatten(jets.eta)).copy()
    eta[21] = np.nan
    jets["eta"] = ak.unflatten(eta, ak.num(jets))
    write_skim(tmp_path / "a.parquet", {**skim.columns, "jets": jets})
    assert "column 'jets.eta' holds NaN or infinity in 1 row, first in row 10" in complaint(tmp_path / "a.parquet")


# ---- identities ------------------------------------------------------------------------------------------------------


def test_two_files_of_one_name(tmp_path, columns):
    first = write(tmp_path / "x" / "a.h5", columns, "hdf5")
    second = write(tmp_path / "y" / "a.root", columns, "ttree")
    text = complaint({"one": first, "two": second})
    assert f"{second}: has the same name as {first}, and events without an 'event_id' column" in text
    assert "is listed twice" in complaint({"one": [first, first]})
    # with stated identities, names do not matter
    for i, path in enumerate((first, second)):
        write(path, {**columns, "event_id": np.arange(3000) + 3000 * i}, "hdf5")
    _, report = run({"one": first, "two": second}, count)
    assert report.processed == 6000


@pytest.mark.parametrize("chunksize", [50_000, 1000])
def test_repeated_identities(tmp_path, columns, chunksize):
    ids = np.arange(3000)
    ids[2999] = 5
    path = write(tmp_path / "a.root", {**columns, "event_id": ids}, "ttree")
    text = complaint(path, chunksize=chunksize)
    assert "event_id 5 belongs to more than one event (1 repeated in all files)" in text


def test_a_skim_beside_its_own_source(samples):
    text = complaint({"a": samples["skim"], "b": {"files": samples["hdf5"]}})
    assert "has the same name as" in text or "belongs to more than one event (3000 repeated" in text


def test_a_renamed_skim_beside_its_own_source(tmp_path, samples):
    (tmp_path / "other.parquet").write_bytes(samples["skim"].read_bytes())
    text = complaint({"a": tmp_path / "other.parquet", "b": samples["hdf5"]})
    assert "belongs to more than one event (3000 repeated in all files)" in text


# ---- truth -----------------------------------------------------------------------------------------------------------


def test_truth_is_not_events_and_events_are_not_truth(tmp_path, samples):
    write_truth(tmp_path / "t.parquet", [1, 2], [0, 1])
    assert "is a truth sidecar, not events; set it as data.truth" in complaint(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="is not a truth sidecar: it lacks column 'label'"):
        read_truth(samples["skim"])
    with pytest.raises(InputError, match="no such file"):
        read_truth(tmp_path / "none.parquet")


def test_missing_feature_in_a_skim(samples):
    with pytest.raises(InputError, match="lacks column 'tau32_j1'"):
        read_skim(samples["skim"], ("tau32_j1",))
