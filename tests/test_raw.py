"""Raw LHC Olympics files and arrays of jets: what they give, and what every defect says."""

from __future__ import annotations

import shutil
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pandas as pd
import pytest

from drapes_hep.errors import InputError
from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.features import invariant_mass
from drapes_hep.events.formats import raw
from drapes_hep.events.formats.columns import BadValuesError
from drapes_hep.events.processing import run
from drapes_hep.events.readers import read, scan

SLOTS = 12
CONSTITUENTS = Reading(constituents=True)


def make_table(n=60, seed=3):
    """Two sprays of up to six particles an event, zero padded: shape (n, 3 SLOTS)."""
    rng = np.random.default_rng(seed)
    table = np.zeros((n, SLOTS, 3))
    for row in table:
        for side in (0, 1):
            k = rng.integers(3, SLOTS // 2 + 1)
            first = int(np.count_nonzero(row[:, 0]))
            eta, phi = rng.normal(0, 1), rng.uniform(-np.pi, np.pi)
            row[first : first + k, 0] = rng.exponential(300, k) + 20
            row[first : first + k, 1] = eta + rng.normal(0, 0.1, k)
            row[first : first + k, 2] = np.remainder(phi + side * np.pi + rng.normal(0, 0.1, k), 2 * np.pi) - np.pi
    return table.reshape(n, 3 * SLOTS)


def write_raw(path: Path, table, labels=None, dtype=np.float64):
    columns = np.asarray(table, dtype=dtype)
    if labels is not None:
        columns = np.column_stack([columns, labels])
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_hdf(path, key="df", mode="w", complib="blosc", complevel=2)
    return path


@pytest.fixture(scope="module")
def table():
    return make_table()


@pytest.fixture(scope="module")
def labels():
    return (np.arange(60) % 7 == 0).astype(float)


def events_of(path, **kwargs):
    reading = Reading(**kwargs)
    (chunk,) = split(scan(path, reading=reading), reading=reading)
    return read(chunk)


def count(events):
    return {"n": len(events)}


def complaint(path, reading=Reading(), blames=None, **kwargs) -> str:  # noqa: B008  frozen
    """What a run says, always one line that begins with the file at fault."""
    with pytest.raises(InputError) as caught:
        run({"data": str(path)}, count, reading=reading, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{blames or path}: ")
    assert "; " in text
    return text


# ---- raw files -------------------------------------------------------------------------------------------------------


def test_real_file(data_dir):
    info = scan(data_dir / "lhco" / "events_anomalydetection_tiny.h5")
    assert (info.layout, info.entries, info.has_labels, info.columns) == (
        "lhco_raw",
        1000,
        True,
        ("particles", "label"),
    )


def test_label_column_and_label_file_give_the_same_events(tmp_path, table, labels):
    inside = write_raw(tmp_path / "inside" / "events.h5", table, labels)
    beside = write_raw(tmp_path / "beside" / "events.h5", table)
    (tmp_path / "beside" / "events.masterkey").write_text("".join(f"{label:.1f}\n" for label in labels))
    one, other = events_of(inside, constituents=True), events_of(beside, constituents=True)
    assert scan(beside).companions == (str(tmp_path / "beside" / "events.masterkey"),)
    assert one.label.tolist() == other.label.tolist() == labels.tolist()
    assert one.event_id.tolist() == other.event_id.tolist()
    assert one.jets.constituents.pt.to_list() == other.jets.constituents.pt.to_list()
    assert one.jets.tau2.to_list() == other.jets.tau2.to_list()


@pytest.mark.parametrize("spelling", ["%d", "%.1f", "%.18e"])
def test_spellings_of_labels(tmp_path, table, labels, spelling):
    path = write_raw(tmp_path / "black.box.h5", table)
    np.savetxt(tmp_path / "black.box.masterkey", labels, fmt=spelling)
    assert events_of(path).label.tolist() == labels.tolist()


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n \n"])
def test_blank_lines_at_the_end_of_labels(tmp_path, table, labels, end):
    path = write_raw(tmp_path / "a.h5", table)
    text = "\n".join(str(label) for label in labels) + end
    path.with_suffix(".masterkey").write_bytes(text.encode())
    np.testing.assert_array_equal(events_of(path).label, labels)


def test_both_kinds_of_signal_are_signal(tmp_path, table, labels):
    """The published labels of the third black box hold 2 as well."""
    path = write_raw(tmp_path / "a.h5", table)
    np.savetxt(tmp_path / "a.masterkey", labels * (1 + np.arange(60) % 2), fmt="%.1f")
    assert "2.0" in (tmp_path / "a.masterkey").read_text()
    assert events_of(path).label.tolist() == labels.tolist()


def test_without_labels(tmp_path, table):
    path = write_raw(tmp_path / "events.h5", table)
    assert not scan(path).has_labels
    assert "label" not in events_of(path).fields


def test_labels_reach_no_particle(tmp_path, table, labels):
    """The last column is the label alone: flipping all labels changes no jet."""
    one = events_of(write_raw(tmp_path / "a.h5", table, labels), constituents=True)
    other = events_of(write_raw(tmp_path / "b.h5", table, 1 - labels), constituents=True)
    for field in ("pt", "eta", "phi", "mass", "tau1", "tau2", "tau3"):
        assert one.jets[field].to_list() == other.jets[field].to_list()
    assert one.jets.constituents.phi.to_list() == other.jets.constituents.phi.to_list()


@pytest.mark.parametrize("labelled", [True, False])
def test_identities_and_labels_alone(tmp_path, table, labels, labelled):
    path = write_raw(tmp_path / "a.h5", table, labels if labelled else None)
    whole, short = events_of(path), events_of(path, jets=False, constituents=True)
    assert short.event_id.tolist() == whole.event_id.tolist()
    assert ak.num(short.jets).to_list() == [0] * 60
    assert ak.num(short.jets.constituents).to_list() == [0] * 60
    if labelled:
        assert short.label.tolist() == labels.tolist()


def test_labels_of_another_type_are_another_block(tmp_path, table, labels):
    frame = pd.DataFrame(table.astype(np.float32))
    frame[3 * SLOTS] = labels.astype(np.int64)
    frame.to_hdf(tmp_path / "a.h5", key="df", mode="w")
    mixed = events_of(tmp_path / "a.h5", constituents=True)
    plain = events_of(write_raw(tmp_path / "b.h5", table.astype(np.float32), labels), constituents=True)
    assert mixed.label.tolist() == labels.tolist()
    assert mixed.jets.constituents.eta.to_list() == plain.jets.constituents.eta.to_list()
    assert events_of(tmp_path / "a.h5", jets=False).label.tolist() == labels.tolist()


def test_more_padding_changes_nothing(tmp_path, table, labels):
    wide = np.concatenate([table, np.zeros((60, 30))], axis=1)
    one = events_of(write_raw(tmp_path / "a.h5", table, labels))
    other = events_of(write_raw(tmp_path / "b.h5", wide, labels))
    for field in ("pt", "tau3"):
        assert one.jets[field].to_list() == other.jets[field].to_list()


def test_rows_are_read_a_few_at_a_time(tmp_path, table, labels, monkeypatch):
    path = write_raw(tmp_path / "a.h5", table, labels)
    whole = events_of(path, constituents=True)
    steps = []
    dense = raw._dense
    monkeypatch.setattr(raw, "_STEP", 7)
    monkeypatch.setattr(raw, "_dense", lambda *a: steps.append(a[-1] - a[-2]) or dense(*a))
    assert events_of(path, constituents=True).jets.constituents.pt.to_list() == whole.jets.constituents.pt.to_list()
    assert max(steps) == 7
    assert sum(steps) == 60


def test_events_of_no_and_of_one_jet(tmp_path, table):
    few = table[:3].copy()
    few[0] = 0
    few[1, 3:] = 0
    jets = events_of(write_raw(tmp_path / "a.h5", few), constituents=True).jets
    assert ak.num(jets).to_list() == [0, 1, 2]
    assert ak.num(jets.constituents, axis=2).to_list()[:2] == [[], [1]]
    assert jets.tau1[1].to_list() == [0]


BAD_PARTICLES = {
    "NaN pt": (4, 0, np.nan, "column 'particles.pt' holds NaN or infinity in 1 row, first in row 20"),
    "NaN eta": (4, 1, np.nan, "column 'particles.eta' holds NaN or infinity in 1 row, first in row 20"),
    "infinite phi": (4, 2, np.inf, "column 'particles.phi' holds NaN or infinity"),
    "infinite pt": (0, 0, np.inf, "column 'particles.pt' holds NaN or infinity"),
    "negative pt": (4, 0, -3.0, "column 'particles.pt' holds a negative transverse momentum"),
    "zero pt": (1, 0, 0.0, "column 'particles.pt' holds no transverse momentum between particles that have some"),
    "forward": (4, 1, 1e4, "column 'particles.eta' holds a pseudorapidity beyond 20"),
    "degrees": (4, 2, 170.0, "column 'particles.phi' holds an azimuth beyond 2 pi (degrees?)"),
    "flipped bit": (0, 0, 1e300, "column 'particles.pt' holds an energy of more than 1e+06 GeV (MeV?)"),
    "MeV": (0, 0, 1.2e6, "column 'particles.pt' holds an energy of more than 1e+06 GeV (MeV?)"),
}


@pytest.mark.parametrize("case", BAD_PARTICLES)
def test_impossible_particles(tmp_path, table, case):
    slot, component, value, words = BAD_PARTICLES[case]
    bad = table.copy()
    bad[20, 3 * slot + component] = value
    assert words in complaint(write_raw(tmp_path / "a.h5", bad), chunksize=13)


def test_padding_between_particles(tmp_path, table):
    bad = table.copy()
    bad[11, 3:6] = 0
    bad[40, 3:6] = 0
    text = complaint(write_raw(tmp_path / "a.h5", bad), chunksize=13)
    assert "no transverse momentum between particles that have some in 2 rows, first in row 11" in text


def test_an_angle_after_the_last_particle(tmp_path, table):
    bad = table.copy()
    bad[5, -1] = 0.5
    assert "no transverse momentum between" in complaint(write_raw(tmp_path / "a.h5", bad))


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, np.nan])
def test_impossible_labels(tmp_path, table, labels, value):
    bad = labels.copy()
    bad[17] = value
    text = complaint(write_raw(tmp_path / "a.h5", table, bad))
    assert "column 'label' holds a label that is neither 0 nor 1 in 1 row, first in row 17" in text
    path = tmp_path / "a.h5"
    assert "neither 0 nor 1" in complaint(path, Reading(jets=False))


@pytest.mark.parametrize("extra", [2, 5])
def test_wrong_number_of_columns(tmp_path, table, extra):
    wide = np.concatenate([table, np.ones((60, extra))], axis=1)
    assert f"has {36 + extra} numbered columns" in complaint(write_raw(tmp_path / "a.h5", wide))


@pytest.mark.parametrize("width", [1, 2])
def test_too_few_columns(tmp_path, width):
    assert f"has {width} numbered columns" in complaint(write_raw(tmp_path / "a.h5", np.ones((5, width))))


def test_particles_of_another_type(tmp_path, table):
    path = write_raw(tmp_path / "a.h5", np.round(table), dtype=np.int64)
    assert "stores particles as int64, not as real numbers; write them as float32" in complaint(path)


def test_a_missing_column(tmp_path, table):
    pd.DataFrame(table).drop(columns=[4]).to_hdf(tmp_path / "a.h5", key="df", mode="w")
    assert "table 'df' has none of the dijet columns" in complaint(tmp_path / "a.h5")


def test_no_events(tmp_path):
    assert "holds no events" in complaint(write_raw(tmp_path / "a.h5", np.zeros((0, 36))))


@pytest.mark.parametrize("layout", ["features", "simulated"])
def test_asked_for_another_layout(tmp_path, table, layout):
    path = write_raw(tmp_path / "a.h5", table)
    text = complaint(path, Reading(layout=layout))
    assert f"layout '{layout}'" in text
    assert "data.layout can be lhco_raw" in text


LABEL_FILES = {
    "short": (b"0.0\n" * 59, "holds 59 labels for the 60 events of a.h5"),
    "long": (b"0.0\n" * 61, "holds 61 labels for the 60 events of a.h5"),
    "empty": (b"", "holds 0 labels for the 60 events of a.h5"),
    "other value": (b"0.0\n" * 30 + b"3.0\n" + b"1\n" * 29, "holds '3.0' in line 31"),
    "NaN": (b"0.0\n" * 58 + b"nan\n0\n", "holds 'nan' in line 59"),
    "two a line": (b"0.0 1.0\n" * 30, "holds 2 values in line 1; write one label per line"),
    "two in a later line": (b"0.0\n" * 10 + b"0.0\t1.0\n" + b"1.0\n" * 48, "holds 2 values in line 11"),
    "blank between": (b"0.0\n" * 10 + b" \n" + b"1.0\n" * 50, "holds nothing in line 11"),
    "text": (b"0.0\n" * 10 + b"signal\n" + b"1.0\n" * 49, "holds 'signal' in line 11"),
    "binary": (b"\xff\xfe\n" * 60, "in line 1; a label is 0 (background), 1 or 2 (signal)"),
}


@pytest.mark.parametrize("case", LABEL_FILES)
def test_bad_label_files(tmp_path, table, case):
    content, words = LABEL_FILES[case]
    path = write_raw(tmp_path / "a.h5", table)
    path.with_suffix(".masterkey").write_bytes(content)
    assert words in complaint(path, blames=path.with_suffix(".masterkey"))


def test_a_folder_for_a_label_file(tmp_path, table):
    path = write_raw(tmp_path / "a.h5", table)
    path.with_suffix(".masterkey").mkdir()
    assert "cannot be read (Is a directory)" in complaint(path, blames=path.with_suffix(".masterkey"))


@pytest.fixture(scope="module")
def tiny(data_dir):
    return (data_dir / "lhco" / "events_anomalydetection_tiny.h5").read_bytes()


@pytest.mark.parametrize("part", [0.001, 0.02, 0.3, 0.7, 0.999])
def test_truncated_raw_file(tmp_path, tiny, part):
    path = tmp_path / "a.h5"
    path.write_bytes(tiny[: int(part * len(tiny))])
    assert "truncated" in complaint(path)


def test_damaged_raw_file(tmp_path, tiny):
    """Compressed data that were overwritten: blosc notices, and no number comes out."""
    damaged = bytearray(tiny)
    damaged[len(tiny) // 2 : len(tiny) // 2 + 200_000] = bytes(200_000)
    path = tmp_path / "a.h5"
    path.write_bytes(damaged)
    assert "cannot be read as HDF5" in complaint(path)


# ---- arrays of jets --------------------------------------------------------------------------------------------------


def make_arrays(n=50, seed=5):
    """Jets that are the sums of their constituents, in the layout of the simulation."""
    rng = np.random.default_rng(seed)
    jets = np.zeros((n, 2, 4))
    jets[..., 0] = np.sort(rng.exponential(300, (n, 2)) + 1200, axis=1)[:, ::-1]
    jets[..., 1] = rng.normal(0, 1, (n, 2))
    jets[..., 2] = rng.uniform(-np.pi, np.pi, (n, 2))
    jets[..., 3] = rng.gamma(2, 60, (n, 2))
    sizes = rng.integers(1, 9, 2 * n)
    total = int(sizes.sum())
    return {
        "jets": jets.astype("f4"),
        "tau": np.sort(rng.uniform(0.01, 0.5, (n, 2, 3)), axis=2)[:, :, ::-1].astype("f4"),
        "label": (np.arange(n) % 5 == 0).astype("i1"),
        "mjj": np.zeros(n, "f4"),
        "const_offset": np.concatenate([[0], np.cumsum(sizes)]),
        "const_pt": rng.exponential(100, total).astype("f4") + 1,
        "const_deta": rng.normal(0, 0.3, total).astype("f2"),
        "const_dphi": rng.normal(0, 0.3, total).astype("f2"),
        "const_q": np.zeros(total, "i1"),
    }


def write_arrays(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


@pytest.fixture
def arrays():
    return make_arrays()


def test_arrays_of_jets(tmp_path, arrays):
    path = write_arrays(tmp_path / "a.h5", arrays)
    events = events_of(path)
    assert scan(path).layout == "simulated"
    for i, field in enumerate(("pt", "eta", "phi", "mass")):
        assert np.array_equal(ak.to_numpy(events.jets[field]), arrays["jets"][..., i])
    for number in (1, 2, 3):
        assert np.array_equal(ak.to_numpy(events.jets[f"tau{number}"]), arrays["tau"][..., number - 1])
    assert events.label.tolist() == arrays["label"].tolist()
    assert set(events.weight.tolist()) == {1.0}


def test_arrays_of_jets_with_weights(tmp_path, arrays):
    weight = np.linspace(0.1, 2, 50)
    events = events_of(write_arrays(tmp_path / "a.h5", arrays | {"weight": weight}))
    assert events.weight.tolist() == weight.tolist()


@pytest.mark.parametrize("chunksize", [50, 7])
def test_constituents_of_arrays(tmp_path, arrays, chunksize):
    path = write_arrays(tmp_path / "a.h5", arrays)
    chunks = split(scan(path, reading=CONSTITUENTS), chunksize=chunksize, reading=CONSTITUENTS)
    found = [read(chunk).jets.constituents for chunk in chunks]
    flat = {
        f: np.concatenate([ak.to_numpy(ak.flatten(one[f], axis=None)) for one in found]) for f in ("pt", "eta", "phi")
    }
    sizes = np.diff(arrays["const_offset"])
    jet = np.repeat(np.arange(100), sizes)
    order = np.lexsort((-arrays["const_pt"], jet))
    axis = arrays["jets"].reshape(100, 4).astype(float)[jet]
    assert np.concatenate([ak.to_numpy(ak.flatten(ak.num(one, axis=2))) for one in found]).tolist() == sizes.tolist()
    assert np.array_equal(flat["pt"], arrays["const_pt"][order])
    np.testing.assert_allclose(flat["eta"], (axis[:, 1] + arrays["const_deta"])[order], rtol=1e-12)
    assert np.abs(flat["phi"]).max() <= np.pi
    np.testing.assert_allclose(np.sin((flat["phi"] - (axis[:, 2] + arrays["const_dphi"])[order]) / 2), 0, atol=1e-12)


def test_real_arrays(data_dir):
    """The file's own m_JJ, and constituents that add up to their jet within the rounding of the file (half floats)."""
    path = data_dir / "simulated" / "qcd_alt_constituents.h5"
    chunk = split(scan(path, reading=CONSTITUENTS), chunksize=500, reading=CONSTITUENTS)[0]
    events = read(chunk)
    with h5py.File(path) as file:
        np.testing.assert_allclose(invariant_mass(events.jets), file["mjj"][:500], rtol=1e-5)
    total = events.jets.constituents.sum(axis=-1)
    np.testing.assert_allclose(ak.to_numpy(ak.flatten(total.pt / events.jets.pt)), 1, atol=2e-3)
    np.testing.assert_allclose(ak.to_numpy(ak.flatten(total.mass - events.jets.mass)), 0, atol=1.0)


def test_an_absent_jet(tmp_path, arrays):
    for name in ("jets", "tau"):
        arrays[name][3, 1] = 0
    sizes = np.diff(arrays["const_offset"])
    keep = np.repeat(np.arange(100) != 7, sizes)
    for name in ("const_pt", "const_deta", "const_dphi"):
        arrays[name] = arrays[name][keep]
    sizes[7] = 0
    arrays["const_offset"] = np.concatenate([[0], np.cumsum(sizes)])
    events = events_of(write_arrays(tmp_path / "a.h5", arrays), constituents=True)
    assert ak.num(events.jets).to_list() == [2] * 3 + [1] + [2] * 46
    assert ak.num(events.jets.constituents, axis=2)[3].to_list() == [sizes[6]]


BAD_ARRAYS = {
    "jets of three numbers": ({"jets": np.ones((50, 2, 3))}, "'jets' has shape (50, 2, 3), not (events, jets, 4)"),
    "other tau": ({"tau": np.ones((50, 2, 2))}, "'tau' has shape (50, 2, 2), not (50, 2, 3)"),
    "short tau": ({"tau": np.ones((49, 2, 3))}, "'tau' has shape (49, 2, 3), not (50, 2, 3)"),
    "short label": ({"label": np.zeros(49)}, "'label' has shape (49,), not (50,)"),
    "text": ({"label": np.full(50, b"qcd")}, "'label' holds |S3, not numbers"),
    "other label": ({"label": np.full(50, 3)}, "a label that is neither 0 nor 1 in 50 rows"),
    "offsets that fall": ({"const_offset": np.arange(101)[::-1]}, "'const_offset' does not increase from 0"),
    "offsets of half of it": ({"const_offset": np.arange(51)}, "'const_offset' is int64 (51,), not integers (101,)"),
    "offsets beyond": ({"const_offset": np.arange(101) * 1000}, "'const_offset' does not increase from 0"),
    "real offsets": ({"const_offset": np.arange(101.0)}, "'const_offset' is float64 (101,), not integers (101,)"),
    "jagged": ({"const_deta": np.ones(3)}, "its columns of constituents differ in length (const_pt ("),
    "NaN weight": ({"weight": np.full(50, np.nan)}, "column 'weight' holds NaN or infinity in 50 rows"),
    "no events": (
        {"jets": np.ones((0, 2, 4)), "tau": np.ones((0, 2, 3)), "label": [], "const_offset": np.zeros(1, int)}
        | {name: np.zeros(0) for name in ("const_pt", "const_deta", "const_dphi")},
        "holds no events",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit(tmp_path, arrays, case):
    changed, words = BAD_ARRAYS[case]
    assert words in complaint(write_arrays(tmp_path / "a.h5", arrays | changed), CONSTITUENTS)


BAD_VALUES = {
    "NaN jet": ("jets", (8, 1, 3), np.nan, "column 'jets' holds NaN or infinity in 1 row, first in row 8"),
    "infinite tau": ("tau", (8, 0, 1), np.inf, "column 'tau' holds NaN or infinity in 1 row, first in row 8"),
    "negative tau": ("tau", (8, 0, 1), -0.1, "column 'tau' holds a negative value in 1 row, first in row 8"),
    "negative mass": ("jets", (8, 1, 3), -80, "column 'jets' holds a negative mass in 1 row, first in row 8"),
    "negative pt": ("jets", (8, 1, 0), -80, "column 'jets' holds a transverse momentum that is not positive in 1 row"),
    "no pt": ("jets", (8, 1, 0), 0, "column 'jets' holds a transverse momentum that is not positive in 1 row"),
    "forward": ("jets", (8, 1, 1), 1e3, "column 'jets' holds a pseudorapidity beyond 20 in 1 row"),
    "energy": ("jets", (8, 1, 0), 1e30, "column 'jets' holds an energy of more than 1e+06 GeV (MeV?) in 1 row"),
    "degrees": ("jets", (8, 1, 2), 170, "column 'jets' holds an azimuth beyond 2 pi (degrees?) in 1 row"),
    "mass of an energy": (
        "jets",
        (8, 1, 3),
        5e6,
        "column 'jets' holds an energy of more than 1e+06 GeV (MeV?) in 1 row",
    ),
    "constituent's energy": (
        "const_pt",
        5,
        1e30,
        "column 'constituents' holds an energy of more than 1e+06 GeV (MeV?)",
    ),
    "constituent in degrees": ("const_dphi", 5, 170, "column 'constituents' holds an azimuth beyond 2 pi"),
    "forward constituent": ("const_deta", 5, 60, "column 'constituents' holds a pseudorapidity beyond 20"),
    "NaN constituent": ("const_deta", 5, np.nan, "column 'constituents' holds NaN, infinity or no transverse"),
    "negative constituent": ("const_pt", 5, -1, "column 'constituents' holds NaN, infinity or no transverse"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_impossible_values_in_arrays(tmp_path, arrays, case):
    name, place, value, words = BAD_VALUES[case]
    arrays[name][place] = value
    path = write_arrays(tmp_path / "a.h5", arrays)
    assert words in complaint(path, CONSTITUENTS, chunksize=9)
    (chunk,) = split(scan(path, reading=CONSTITUENTS), reading=CONSTITUENTS)
    with pytest.raises(BadValuesError):
        read(chunk)


def test_particles_of_an_absent_jet(tmp_path, arrays):
    arrays["jets"][3, 1] = 0
    text = complaint(write_arrays(tmp_path / "a.h5", arrays), CONSTITUENTS)
    assert "column 'constituents' holds particles of an absent jet in 1 row, first in row 3" in text


def test_constituents_that_are_not_there(tmp_path, arrays):
    del arrays["const_dphi"]
    path = write_arrays(tmp_path / "a.h5", arrays)
    assert "holds no constituents of jets (no 'const_dphi')" in complaint(path, CONSTITUENTS)
    assert len(events_of(path)) == 50


def test_arrays_asked_for_as_another_layout(tmp_path, arrays):
    path = write_arrays(tmp_path / "a.h5", arrays)
    assert "is not of layout 'features' but 'simulated'" in complaint(path, Reading(layout="features"))


@pytest.mark.parametrize("part", [0.05, 0.4, 0.9])
def test_truncated_arrays(tmp_path, arrays, part):
    whole = write_arrays(tmp_path / "whole.h5", arrays).read_bytes()
    path = tmp_path / "a.h5"
    path.write_bytes(whole[: int(part * len(whole))])
    assert "truncated" in complaint(path)


def test_the_same_file_under_another_name(tmp_path, table, labels):
    """Content decides: no suffix, no name of the official files."""
    path = write_raw(tmp_path / "a.h5", table, labels)
    shutil.copy(path, tmp_path / "events.dat")
    assert scan(tmp_path / "events.dat").layout == "lhco_raw"
