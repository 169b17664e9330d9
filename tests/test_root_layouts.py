"""ROOT files of experiments and of Delphes: jets, constituents, identities, and what is said of bad ones."""

from __future__ import annotations

import functools

import awkward as ak
import numpy as np
import pytest
import uproot
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from drapes_hep.errors import InputError
from drapes_hep.events.accumulate import ColumnParts, chunk_key
from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.formats.columns import collision_ids, negative_masses
from drapes_hep.events.processing import run
from drapes_hep.events.readers import read, scan
from drapes_hep.events.schema import CONSTITUENT_FIELDS, IDENTITY_FIELDS, JET_FIELDS
from drapes_hep.events.skims import write_skim
from drapes_hep.plugins import load_processor

pytestmark = pytest.mark.usefixtures("real_files_stay_open")

WITH = Reading(constituents=True)
SETTINGS = {"leading_pt": 0, "abs_eta_max": 5, "mass_range": (1, 20_000)}


@functools.cache
def scanned(path, reading=Reading()):  # noqa: B008  frozen
    """A file's description: a tree of 1800 branches takes uproot more than a second."""
    return scan(path, reading=reading)


@functools.cache
def events_of(path, reading=WITH):
    """All events of a file; nobody changes them, so that each file is read once."""
    return [read(chunk) for chunk in split(scanned(path, reading), reading=reading)]


@functools.cache
def stored(path):
    """The tree as uproot has it."""
    return uproot.open(path)["Delphes" if path.name == "delphes.root" else "Events"]


def kept(path, reading=WITH, **how):
    """What a processor sees of a file that is run over."""
    return run({"a": path}, everything, reading=reading, **how)[0].columns()


def seen(path, reading=WITH):
    """The same of the file read at once, without coffea's executors."""
    (events,) = events_of(path, reading)
    return everything(events).columns()


def everything(events):
    """A processor that keeps all that a processor can see."""
    jets = ak.zip({name: ak.Array(events.jets[name]) for name in JET_FIELDS}, depth_limit=2)
    columns = {"event_id": ak.to_numpy(events.event_id), "weight": ak.to_numpy(events.weight), "jets": jets}
    columns |= {name: ak.to_numpy(events[name]) for name in IDENTITY_FIELDS if name in events.fields}
    if "constituents" in events.jets.fields:
        inside = events.jets.constituents
        columns["constituents"] = ak.zip({name: ak.Array(inside[name]) for name in CONSTITUENT_FIELDS}, depth_limit=3)
    return ColumnParts({chunk_key(events.metadata): columns})


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        same = ak.array_equal(found[name], values) if isinstance(values, ak.Array) else (found[name] == values).all()
        assert same, name


def summed(events):
    """Sums of the constituents' four-momenta: pt and mass."""
    return added(*(ak.Array(events.jets.constituents[name]) for name in CONSTITUENT_FIELDS))


def added(pt, eta, phi, mass):
    px, py, pz = (ak.sum(pt * part, axis=-1) for part in (np.cos(phi), np.sin(phi), np.sinh(eta)))
    energy = ak.sum(np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2), axis=-1)
    return np.hypot(px, py), np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0))


# ---- real CMS files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "events", "jets"),
    [
        ("pfnano.root", "pfnano", 10, 24),
        ("pfnano_rntuple.root", "pfnano", 10, 24),
        ("nano_tt_v15.root", "nanoaod_pf", 200, 64),
    ],
)
def test_real_files_are_recognised(data_dir, name, layout, events, jets):
    info = scanned(data_dir / "cms" / name)
    assert (info.layout, info.entries, info.has_labels, info.has_event_ids) == (layout, events, False, True)
    (found,) = events_of(data_dir / "cms" / name)
    assert ak.array_equal(ak.num(found.jets), ak.num(stored(data_dir / "cms" / name)["FatJet_pt"].array()))
    assert ak.sum(ak.num(found.jets)) == jets


def test_tree_and_ntuple_hold_the_same_events(data_dir):
    tree, ntuple = (seen(data_dir / "cms" / name) for name in PFNANO)
    # simulation: identities follow from the names of the files, too
    assert not set(tree["event_id"]) & set(ntuple["event_id"])
    tree, ntuple = ({key: one[key] for key in one if key != "event_id"} for one in (tree, ntuple))
    assert_same(ntuple, tree)


PFNANO = ("pfnano.root", "pfnano_rntuple.root")


@pytest.mark.parametrize("name", [*PFNANO, "nano_tt_v15.root"])
def test_constituents_add_up_to_the_uncorrected_jet(data_dir, name):
    """Momenta are stored with about ten bits of mantissa; a jet that the file gives no candidates is left out."""
    (events,) = events_of(data_dir / "cms" / name)
    raw = 1 - stored(data_dir / "cms" / name)["FatJet_rawFactor"].array()
    pt, mass = summed(events)
    has = ak.num(events.jets.constituents, axis=-1) > 0
    assert ak.sum(has) >= 20
    np.testing.assert_allclose(ak.flatten(pt[has]), ak.flatten((events.jets.pt * raw)[has]), rtol=3e-3)
    np.testing.assert_allclose(ak.flatten(mass[has]), ak.flatten((events.jets.mass * raw)[has]), rtol=3e-3)


def test_puppi_weights_matter(data_dir):
    """Without them leading jets would miss the tolerance above by far."""
    tree = stored(data_dir / "cms" / "pfnano.root")
    index, jet = tree["FatJetPFCands_pFCandsIdx"].array(), tree["FatJetPFCands_jetIdx"].array()
    _, mass = added(*(tree[f"PFCands_{name}"].array()[index[jet == 0]] for name in CONSTITUENT_FIELDS))
    raw = (tree["FatJet_mass"].array() * (1 - tree["FatJet_rawFactor"].array()))[:, 0]
    assert ak.sum(mass > 1.03 * raw) >= 3
    (events,) = events_of(data_dir / "cms" / "pfnano.root")
    weights = tree["PFCands_puppiWeight"].array()[index]
    assert ak.sum(ak.num(events.jets.constituents, axis=-1)) == ak.sum(weights > 0)


def test_constituents_fall_in_pt(data_dir):
    for name in (*PFNANO, "nano_tt_v15.root"):
        (events,) = events_of(data_dir / "cms" / name)
        pt = events.jets.constituents.pt
        assert ak.all(pt[..., 1:] <= pt[..., :-1], axis=None)


def test_jets_are_as_stored(data_dir):
    for name in PFNANO:
        tree = stored(data_dir / "cms" / name)
        (events,) = events_of(data_dir / "cms" / name, Reading())
        for field in JET_FIELDS:
            assert ak.array_equal(
                ak.Array(events.jets[field]), ak.values_astype(tree[f"FatJet_{field}"].array(), float)
            )
        assert "constituents" not in events.jets.fields


def test_identities_and_weights_are_the_files(data_dir):
    tree = stored(data_dir / "cms" / "nano_tt_v15.root")
    (events,) = events_of(data_dir / "cms" / "nano_tt_v15.root")
    for name in IDENTITY_FIELDS:
        np.testing.assert_array_equal(events[name], tree[name].array())
    np.testing.assert_array_equal(events.weight, tree["genWeight"].array())
    assert len(np.unique(events.event_id)) == 200


def test_features_alone_where_asked_for(data_dir):
    path = data_dir / "cms" / "nano_tt_v15.root"
    assert scan(path, reading=Reading(layout="nanoaod")).layout == "nanoaod"
    with pytest.raises(InputError, match=r"holds no constituents of jets \(layout 'nanoaod'\)"):
        scan(path, reading=Reading(layout="nanoaod", constituents=True))


def test_candidates_are_read_only_where_wanted(data_dir):
    without, with_ = (scanned(data_dir / "cms" / "pfnano.root", Reading(constituents=c)) for c in (False, True))
    assert not any("PFCands" in name for name in without.columns)
    assert "PFCands_puppiWeight" in with_.columns
    identities = scanned(data_dir / "cms" / "pfnano.root", Reading(jets=False))
    assert not any(name.startswith("FatJet_") for name in identities.columns)


def test_identities_alone_are_the_same(data_dir):
    path = data_dir / "cms" / "pfnano.root"
    (full,), (bare,) = events_of(path), events_of(path, Reading(jets=False))
    np.testing.assert_array_equal(full.event_id, bare.event_id)
    assert ak.sum(ak.num(bare.jets)) == 0


@pytest.mark.parametrize(("name", "chunksize"), [("pfnano.root", 4), ("pfnano_rntuple.root", 3)])
def test_chunks_do_not_matter(data_dir, name, chunksize):
    path = data_dir / "cms" / name
    assert_same(kept(path, chunksize=chunksize), seen(path))


def test_skims_of_every_way_are_the_same_bytes(data_dir, tmp_path, warm_workers):
    """Tree and RNTuple, chunks and workers; the experiment's numbers travel with the selected events."""
    dijets = load_processor("processors/dijets.py:Dijets", [ROOT])
    skims = []
    named_alike(data_dir, tmp_path)
    for name, how in (
        ("pfnano_rntuple.root", {}),
        ("pfnano_rntuple.root", {"chunksize": 4}),
        ("pfnano.root", {"executor": "futures", "workers": 2, "chunksize": 5}),
    ):
        out, report = run({"a": tmp_path / name / "events.root"}, dijets(SETTINGS), **how)
        assert report.processed == 10
        columns = out["skim"].columns()
        write_skim(tmp_path / "a.parquet", columns)
        skims.append(((tmp_path / "a.parquet").read_bytes(), out["cutflow"], out["hists"]))
    assert skims[1][:2] == skims[2][:2] == skims[0][:2]
    assert all(skims[1][2][name] == skims[2][2][name] == one for name, one in skims[0][2].items())
    tree = stored(data_dir / "cms" / "pfnano.root")
    for name in IDENTITY_FIELDS:
        assert set(columns[name]) == set(tree[name].array(library="np").tolist())
    (again,) = events_of(tmp_path / "a.parquet", Reading())
    np.testing.assert_array_equal(again.event, columns["event"])


def named_alike(data_dir, folder):
    """Link the files under one name, which identities of simulated events follow from."""
    for name in PFNANO:
        (folder / name).mkdir()
        (folder / name / "events.root").symlink_to(data_dir / "cms" / name)


def test_an_event_in_two_files_is_named(data_dir, tmp_path):
    named_alike(data_dir, tmp_path)
    with pytest.raises(InputError) as caught:
        run({"a": [tmp_path / name / "events.root" for name in PFNANO]}, everything)
    assert "(run:lumi:event 1:17359:17358" in str(caught.value)
    assert "stands for more than one event (10 repeated in all files)" in str(caught.value)


# ---- identities ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)), st.integers(0, 2))
def test_identities_follow_from_all_three_numbers(numbers, place):
    one = [np.array([number]) for number in numbers]
    other = [array ^ 1 if i == place else array for i, array in enumerate(one)]
    assert collision_ids(*one)[0] >= 0
    assert collision_ids(*one)[0] != collision_ids(*other)[0]


def test_identities_do_not_collide_in_a_run():
    event = np.arange(300_000)
    ids = collision_ids(event // 100_000 + 355_000, event // 1000, event)
    assert len(np.unique(ids)) == len(event)
    # every bit is set half of the time
    bits = (ids[:, None] >> np.arange(63)) & 1
    np.testing.assert_allclose(bits.mean(axis=0), 0.5, atol=0.005)


def test_identities_stay_as_they_are():
    """Stored skims and truth sidecars are keyed by them."""
    assert collision_ids(np.array([1]), np.array([17359]), np.array([1735814]))[0] == 2187320564149533537


# ---- written here: the older PFNano ----------------------------------------------------------------------------------


def make_pfnano(n=30, seed=1, old=True, puppi=False):
    """Events of two massive jets of a few candidates each, whose momenta add up to the jets'."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, (n, 2))
    jet = np.repeat(np.tile([0, 1], n), counts.ravel())
    per_event = counts.sum(axis=1)
    total = int(per_event.sum())
    axis_eta, axis_phi = rng.normal(0, 1, (n, 2)), rng.uniform(-3, 3, (n, 2))
    # candidates of an event are shuffled, so that a jet's are not in one piece
    order = np.argsort(np.repeat(np.arange(n), per_event) + rng.uniform(0, 0.9, total))
    jet = jet[order]
    event = np.repeat(np.arange(n), per_event)
    pt, mass = rng.exponential(80, total) + 1, rng.choice([0.0, 0.14], total)
    eta = axis_eta[event, jet] + rng.normal(0, 0.1, total)
    phi = axis_phi[event, jet] + rng.normal(0, 0.1, total)
    weight = rng.choice([0.0, 0.5, 1.0], total, p=[0.2, 0.2, 0.6]) if puppi else np.ones(total)
    sums = np.zeros((4, n, 2))
    parts = (pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2))
    for i, part in enumerate(parts):
        np.add.at(sums[i], (event, jet), part * weight)
    jet_pt = np.hypot(sums[0], sums[1])
    # a jet may lose all its candidates to weights of zero; it still has a momentum
    empty = jet_pt == 0
    jet_pt[empty] = 30.0
    jets = {
        "pt": jet_pt,
        "eta": np.arcsinh(sums[2] / jet_pt),
        "phi": np.arctan2(sums[1], sums[0]),
        "mass": np.sqrt(np.maximum(sums[3] ** 2 - (sums[:3] ** 2).sum(axis=0), 0)),
        "tau1": np.full((n, 2), 0.3),
        "tau2": np.full((n, 2), 0.2),
        "tau3": np.full((n, 2), 0.1),
    }
    table = "FatJetPFCands" if old else "PFCands"
    columns = {f"FatJet_{name}": ak.Array(values.tolist()) for name, values in jets.items()}
    flat = {"pt": pt, "eta": eta, "phi": phi, "mass": mass} | ({"puppiWeight": weight} if puppi else {})
    columns |= {f"{table}_{name}": ak.unflatten(values, per_event) for name, values in flat.items()}
    columns["FatJetPFCands_jetIdx"] = ak.unflatten(jet.astype(np.int32), per_event)
    if not old:
        columns["FatJetPFCands_pFCandsIdx"] = ak.local_index(columns["PFCands_pt"])
    columns["run"], columns["luminosityBlock"] = np.full(n, 355_100, np.uint32), np.arange(n, dtype=np.uint32) // 7
    columns["event"] = np.arange(n, dtype=np.uint64) + 10**10
    return columns


def write(path, columns, kind="ttree", name="Events"):
    """Write columns with counters of their own, as uproot does."""
    columns = {key: ak.Array(values) for key, values in columns.items()}
    with uproot.recreate(path) as file:
        # not their text: awkward builds its parser anew for each, thirty milliseconds a column
        types = {key: values.type.content for key, values in columns.items()}
        out = file.mktree(name, types) if kind == "ttree" else file.mkrntuple(name, types)
        if len(next(iter(columns.values()))):
            out.extend(columns)
    return path


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("puppi", [True, False])
def test_written_pfnano_adds_up(tmp_path, kind, old, puppi):
    path = write(tmp_path / "a.root", make_pfnano(old=old, puppi=puppi), kind)
    assert scan(path).layout == ("pfnano_old" if old else "pfnano")
    (events,) = events_of(path)
    pt, mass = summed(events)
    has = ak.num(events.jets.constituents, axis=-1) > 0
    np.testing.assert_allclose(ak.flatten(pt[has]), ak.flatten(events.jets.pt[has]), rtol=1e-12)
    np.testing.assert_allclose(ak.flatten(mass[has]), ak.flatten(events.jets.mass[has]), rtol=1e-6, atol=1e-4)
    out, _ = run({"a": path}, everything, reading=WITH)
    parts, _ = run({"a": path}, everything, reading=WITH, chunksize=4)
    assert_same(parts.columns(), out.columns())


def test_order_of_candidates_does_not_matter(tmp_path):
    """Both the table of candidates and the links may stand in any order."""
    columns = make_pfnano(old=False, puppi=True)
    (reference,) = events_of(write(tmp_path / "a.root", columns))
    rng = np.random.default_rng(3)
    counts = ak.num(columns["PFCands_pt"])
    shuffle = ak.argsort(ak.unflatten(rng.random(ak.sum(counts)), counts))
    where = ak.argsort(shuffle)
    moved = {name: values[shuffle] if name.startswith("PFCands_") else values for name, values in columns.items()}
    moved["FatJetPFCands_pFCandsIdx"] = where[columns["FatJetPFCands_pFCandsIdx"]]
    again = ak.argsort(ak.unflatten(rng.random(ak.sum(counts)), counts))
    for name in ("FatJetPFCands_pFCandsIdx", "FatJetPFCands_jetIdx"):
        moved[name] = moved[name][again]
    (events,) = events_of(write(tmp_path / "b.root", moved))
    for field in CONSTITUENT_FIELDS:
        assert ak.array_equal(
            ak.Array(events.jets.constituents[field]), ak.Array(reference.jets.constituents[field])
        ), field


def test_simulated_samples_that_number_their_events_alike_are_read_together(tmp_path):
    """QCD in bins of HT: run 1, and the same luminosity sections and events in each."""
    for name in ("HT500", "HT700"):
        write(tmp_path / f"{name}.root", {**make_pfnano(), "genWeight": np.ones(30, np.float32)})
    paths = [tmp_path / "HT500.root", tmp_path / "HT700.root"]
    out, report = run({"a": paths}, everything, reading=WITH)
    columns = out.columns()
    assert report.processed == len(np.unique(columns["event_id"])) == 60
    assert len(np.unique(columns["event"])) == 30
    (jets,), (bare,) = events_of(paths[0]), events_of(paths[0], Reading(jets=False))
    np.testing.assert_array_equal(jets.event_id, bare.event_id)


def test_a_repeated_number_in_one_simulated_file_is_an_error(tmp_path):
    columns = {**make_pfnano(), "genWeight": np.ones(30, np.float32)}
    columns["event"][4], columns["luminosityBlock"][4] = columns["event"][3], columns["luminosityBlock"][3]
    path = write(tmp_path / "a.root", columns)
    with pytest.raises(InputError, match="stands for more than one event"):
        run({"a": path}, everything, reading=WITH)


def test_data_that_is_in_two_files_is_an_error(tmp_path):
    paths = [write(tmp_path / f"{name}.root", make_pfnano()) for name in "ab"]
    with pytest.raises(InputError, match="30 repeated in all files"):
        run({"a": paths}, everything, reading=WITH)


def test_the_file_names_of_data_do_not_matter(tmp_path):
    columns = make_pfnano()
    (one,), (other,) = (events_of(write(tmp_path / f"{name}.root", columns)) for name in "ab")
    np.testing.assert_array_equal(one.event_id, other.event_id)


def test_without_numbers_an_event_is_its_file_and_row(tmp_path):
    columns = {name: values for name, values in make_pfnano().items() if name != "luminosityBlock"}
    info = scan(write(tmp_path / "a.root", columns))
    assert not info.has_event_ids
    (events,) = events_of(tmp_path / "a.root")
    np.testing.assert_array_equal(ak.to_numpy(events.event_id) & 0xFFFFFFFF, np.arange(30))


def test_subjettiness_that_was_not_computed_is_undefined(tmp_path):
    columns = make_pfnano()
    tau = ak.to_numpy(columns["FatJet_tau2"]).copy()
    tau[4, 1] = -1
    write(tmp_path / "a.root", {**columns, "FatJet_tau2": ak.Array(tau.tolist())})
    dijets = load_processor("processors/dijets.py:Dijets", [ROOT])
    out, _ = run({"a": tmp_path / "a.root"}, dijets(SETTINGS))
    flow = out["cutflow"]["a"]
    assert flow["undefined_tau21_j1"]["events"] + flow["undefined_tau21_j2"]["events"] == 1
    assert flow["defined"]["events"] == 29


@pytest.mark.parametrize("keep", [0, 1])
def test_events_of_too_few_jets_are_counted(tmp_path, keep):
    columns = make_pfnano(old=False)
    cut = {name: values[:, :keep] if name.startswith("FatJet_") else values for name, values in columns.items()}
    inside = columns["FatJetPFCands_jetIdx"] < keep
    for name in ("FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx"):
        cut[name] = columns[name][inside]
    path = write(tmp_path / "a.root", cut)
    out, report = run({"a": path}, load_processor("processors/dijets.py:Dijets", [ROOT])(SETTINGS))
    assert (report.processed, out["cutflow"]["a"]["two_jets"]["events"]) == (30, 0)
    (events,) = events_of(path)
    assert ak.all(ak.num(events.jets) == keep)


# ---- Delphes ---------------------------------------------------------------------------------------------------------


def test_delphes_is_recognised(data_dir):
    info = scanned(data_dir / "delphes" / "delphes.root")
    assert (info.layout, info.entries, info.has_event_ids) == ("delphes", 25, False)


def test_our_jets_are_those_of_delphes(data_dir):
    """Delphes clusters the same objects, but keeps the rest energy of tracks that lost all their momentum."""
    path = data_dir / "delphes" / "delphes.root"
    tree = stored(path)
    clean = ~ak.any(tree["EFlowTrack.PT"].array() == 0, axis=1)
    assert 10 <= ak.sum(clean) < 25
    (ours,) = events_of(path, Reading(radius=0.8))
    (theirs,) = events_of(path, Reading(layout="delphes_jets08"))
    compared = 0
    for i in np.flatnonzero(clean):
        a, b = ours.jets[i], theirs.jets[i]
        a = a[a.pt > 1.01 * ak.min(b.pt)] if len(b) else a[:0]
        b = b[: len(a)]
        compared += len(a)
        for field in ("pt", "mass", "tau1", "tau2", "tau3"):
            np.testing.assert_allclose(a[field], b[field], rtol=2e-4, atol=2e-4, err_msg=f"{i} {field}")
    assert compared >= 20


@pytest.mark.parametrize("layout", ["delphes", "delphes_towers"])
def test_clustered_jets_are_the_sums_of_their_constituents(data_dir, layout):
    (events,) = events_of(data_dir / "delphes" / "delphes.root", Reading(layout=layout, constituents=True))
    pt, mass = summed(events)
    np.testing.assert_allclose(ak.flatten(pt), ak.flatten(events.jets.pt), rtol=1e-9)
    np.testing.assert_allclose(ak.flatten(mass), ak.flatten(events.jets.mass), rtol=1e-6, atol=1e-4)


def test_delphes_weights(data_dir):
    path = data_dir / "delphes" / "delphes.root"
    (events,) = events_of(path, Reading())
    np.testing.assert_array_equal(
        events.weight, ak.flatten(stored(path)["Event.Weight"].array()).to_numpy().astype(float)
    )


@pytest.mark.parametrize("layout", ["delphes", "delphes_jets08"])
def test_delphes_in_chunks(data_dir, layout):
    path = data_dir / "delphes" / "delphes.root"
    reading = Reading(layout=layout, constituents=layout == "delphes")
    assert_same(kept(path, reading, chunksize=13), seen(path, reading))


def test_delphes_jets_have_no_constituents(data_dir):
    with pytest.raises(InputError, match="holds no constituents of jets"):
        scan(data_dir / "delphes" / "delphes.root", reading=Reading(layout="delphes_jets08", constituents=True))


def test_a_layout_that_does_not_fit_names_those_that_do(data_dir):
    with pytest.raises(InputError) as caught:
        scan(data_dir / "delphes" / "delphes.root", reading=Reading(layout="delphes_jets"))
    assert "does not fit layout 'delphes_jets': it lacks columns 'FatJet.PT'" in str(caught.value)
    assert "data.layout can be delphes, delphes_towers, delphes_jets02" in str(caught.value)


def make_delphes(n=8, seed=2):
    """Two sprays of objects, back to back, as the three particle-flow collections."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name, pt in (("EFlowTrack", "PT"), ("EFlowPhoton", "ET"), ("EFlowNeutralHadron", "ET")):
        counts = rng.integers(1, 6, n)
        total = int(counts.sum())
        phi = rng.integers(0, 2, total) * np.pi + rng.normal(0, 0.1, total)
        values = {pt: rng.exponential(100, total) + 1, "Eta": rng.normal(0, 0.2, total), "Phi": phi}
        columns |= {f"{name}.{field}": ak.unflatten(array, counts) for field, array in values.items()}
    return columns


def test_tracks_without_a_mass_are_massless(tmp_path):
    path = write(tmp_path / "a.root", make_delphes(), name="Delphes")
    (events,) = events_of(path)
    assert ak.all(events.jets.constituents.mass == 0, axis=None)
    assert ak.all(events.weight == 1)
    assert ak.all(ak.num(events.jets) >= 1)


# ---- bad files -------------------------------------------------------------------------------------------------------


def complaint(path, reading=WITH, **kwargs):
    with pytest.raises(InputError) as caught:
        run({"a": path}, everything, reading=reading, **kwargs)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def changed(columns, name, event, values):
    """One event's list replaced."""
    lists = ak.to_list(columns[name])
    lists[event] = values(lists[event])
    return {**columns, name: ak.Array(lists)}


def spoil(value):
    return lambda values: [value, *values[1:]]


BAD_LISTS = [
    ("FatJet_pt", spoil(float("nan")), "NaN or infinity"),
    ("FatJet_mass", spoil(-5.0), "a negative mass"),
    ("FatJet_pt", spoil(-5.0), "a transverse momentum that is not positive"),
    ("FatJet_eta", spoil(1e30), "a pseudorapidity beyond 20"),
    ("FatJet_phi", spoil(170.0), "an azimuth beyond 2 pi (degrees?)"),
    ("FatJet_pt", spoil(1e30), "an energy of more than 1e+06 GeV (MeV?)"),
    ("PFCands_phi", spoil(170.0), "an azimuth beyond 2 pi (degrees?)"),
    ("FatJet_tau2", spoil(float("inf")), "NaN or infinity"),
    ("FatJet_eta", lambda values: values[:1], "lists of another length than column 'FatJet_pt'"),
    ("FatJetPFCands_jetIdx", spoil(2), "an index outside the jets of its event"),
    ("FatJetPFCands_jetIdx", spoil(-1), "an index outside the jets of its event"),
    ("FatJetPFCands_pFCandsIdx", spoil(10_000), "an index outside the candidates of its event"),
    ("FatJetPFCands_pFCandsIdx", spoil(-1), "an index outside the candidates of its event"),
    ("FatJetPFCands_pFCandsIdx", lambda values: values[1:], "lists of another length than column"),
    ("PFCands_phi", lambda values: [*values, 1.0], "lists of another length than column 'PFCands_pt'"),
    ("PFCands_pt", spoil(float("nan")), "NaN or infinity"),
    ("PFCands_mass", spoil(-1.0), "a negative mass"),
    ("PFCands_pt", spoil(-1.0), "a transverse momentum that is not positive"),
    ("PFCands_puppiWeight", spoil(1.5), "a weight outside 0 to 1"),
    ("PFCands_puppiWeight", spoil(float("nan")), "NaN or infinity"),
]


@pytest.mark.parametrize(("name", "values", "message"), BAD_LISTS)
def test_bad_values(tmp_path, name, values, message):
    columns = changed(make_pfnano(old=False, puppi=True), name, 11, values)
    text = complaint(write(tmp_path / "a.root", columns), chunksize=9)
    assert f"column '{name}' holds {message}" in text
    assert "in 1 row, first in row 11 (counted from 0)" in text


def light(old, mass, weight=1.0):
    """One candidate as a real file has it, its mass below zero by rounding: 1.9 MeV at an energy of 11.6 GeV."""
    columns, table = make_pfnano(old=old, puppi=True), "FatJetPFCands" if old else "PFCands"
    for name, value in {"pt": 5.14, "eta": 1.4485, "mass": mass, "puppiWeight": weight}.items():
        columns = changed(columns, f"{table}_{name}", 11, spoil(value))
    return columns


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(("weight", "clipped"), [(1.0, 1), (0.0, 0)])
def test_rounded_masses_of_candidates_are_clipped_and_counted(tmp_path, old, weight, clipped):
    path = write(tmp_path / "a.root", light(old, -1.8615723e-3, weight))
    out, report = run({"a": path}, everything, reading=WITH, chunksize=9)
    assert report.clipped_masses == clipped
    assert ak.min(out.columns()["constituents"].mass, axis=None) == 0


def test_masses_beyond_rounding_are_refused(tmp_path):
    """Half a permille of 11.6 GeV is 5.8 MeV."""
    run({"a": write(tmp_path / "a.root", light(False, -5.7e-3))}, everything, reading=WITH)
    assert "a negative mass in 1 row" in complaint(write(tmp_path / "b.root", light(False, -5.9e-3)))


def test_real_candidates_of_negative_mass_are_rounding(data_dir):
    """Whether or not a jet holds them: no candidate of the real file is refused."""
    tree = stored(data_dir / "cms" / "pfnano.root")
    pt, eta, mass = (
        ak.to_numpy(ak.flatten(tree[f"PFCands_{name}"].array())).astype(float) for name in ("pt", "eta", "mass")
    )
    assert mass.min() < -1e-3
    assert not negative_masses(mass, pt * np.cosh(eta)).any()


def test_rounded_masses_of_tracks_are_clipped_and_counted(tmp_path):
    columns = make_delphes()
    columns["EFlowTrack.Mass"] = ak.full_like(columns["EFlowTrack.PT"], 0.14)
    columns = changed(columns, "EFlowTrack.Mass", 4, spoil(-5e-4))
    out, report = run({"a": write(tmp_path / "a.root", columns, name="Delphes")}, everything, reading=WITH)
    assert report.clipped_masses == 1
    assert ak.min(out.columns()["constituents"].mass, axis=None) == 0


@pytest.mark.parametrize("name", ["nFatJet", "nPFCands", "nFatJetPFCands"])
def test_counters_that_disagree(tmp_path, name):
    columns = make_pfnano(old=False)
    of = {"nFatJet": "FatJet_pt", "nPFCands": "PFCands_pt", "nFatJetPFCands": "FatJetPFCands_jetIdx"}[name]
    counter = ak.to_numpy(ak.num(columns[of])).astype(np.int32)
    write(tmp_path / "good.root", {**columns, name: counter})
    run({"a": tmp_path / "good.root"}, everything, reading=WITH)
    counter[5] += 1
    text = complaint(write(tmp_path / "a.root", {**columns, name: counter}))
    assert f"column '{name}' holds a number other than column '{of}' has in 1 row, first in row 5" in text


def test_old_pfnano_with_an_index_outside(tmp_path):
    columns = changed(make_pfnano(), "FatJetPFCands_jetIdx", 3, spoil(7))
    assert "an index outside the jets of its event in 1 row, first in row 3" in complaint(
        write(tmp_path / "a.root", columns)
    )


def test_jets_that_are_no_lists(tmp_path):
    columns = {**make_pfnano(), "FatJet_mass": np.ones(30)}
    text = complaint(write(tmp_path / "a.root", columns))
    assert "column 'FatJet_mass' is double, not a list of numbers" in text


def test_event_numbers_that_are_lists(tmp_path):
    columns = {**make_pfnano(), "event": ak.Array([[1, 2]] * 30)}
    assert "column 'event' is int64_t[], not one number an event" in complaint(write(tmp_path / "a.root", columns))


def test_indices_that_are_no_integers(tmp_path):
    columns = make_pfnano()
    columns["FatJetPFCands_jetIdx"] = columns["FatJetPFCands_jetIdx"] + 0.25
    assert "an index outside the jets of its event in 30 rows" in complaint(write(tmp_path / "a.root", columns))


@pytest.mark.parametrize("name", ["FatJet_pt", "FatJet_tau3"])
def test_a_missing_branch(tmp_path, name):
    columns = {key: values for key, values in make_pfnano().items() if key != name}
    assert f"lacks column '{name}'" in complaint(write(tmp_path / "a.root", columns))


def test_missing_candidates(tmp_path):
    columns = {key: values for key, values in make_pfnano().items() if key != "FatJetPFCands_phi"}
    assert "holds no constituents of jets (layout 'nanoaod')" in complaint(write(tmp_path / "a.root", columns))


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_no_events(tmp_path, kind):
    path = write(tmp_path / "a.root", {name: values[:0] for name, values in make_pfnano().items()}, kind)
    assert "holds no events" in complaint(path)


def test_repeated_events(tmp_path):
    columns = make_pfnano()
    columns["event"][9], columns["luminosityBlock"][9] = columns["event"][2], columns["luminosityBlock"][2]
    text = complaint(write(tmp_path / "a.root", columns), chunksize=5)
    assert "(run:lumi:event 355100:0:10000000002) stands for more than one event (1 repeated in all files)" in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("EFlowTrack.PT", float("nan"), "NaN or infinity"),
        ("EFlowPhoton.ET", -3.0, "a negative transverse momentum"),
        ("EFlowNeutralHadron.Eta", 1e20, "a pseudorapidity beyond 20"),
    ],
)
def test_bad_particles(tmp_path, name, value, message):
    path = write(tmp_path / "a.root", changed(make_delphes(), name, 4, spoil(value)), name="Delphes")
    assert f"{message} in 1 row, first in row 4" in complaint(path)


def test_delphes_lists_that_disagree(tmp_path):
    columns = changed(make_delphes(), "EFlowTrack.Phi", 4, lambda values: [*values, 0.0])
    path = write(tmp_path / "a.root", columns, name="Delphes")
    assert "column 'EFlowTrack.Phi' holds lists of another length than column 'EFlowTrack.PT' in 1 row" in complaint(
        path
    )


def test_two_weights_of_an_event(tmp_path):
    path = write(tmp_path / "a.root", {**make_delphes(), "Event.Weight": ak.Array([[1.0]] * 7 + [[1.0, 2.0]])})
    assert "column 'Event.Weight' holds none or several weights in 1 row, first in row 7" in complaint(path)


REAL = {
    "tree": ("cms", "pfnano.root"),
    "ntuple": ("cms", "pfnano_rntuple.root"),
    "delphes": ("delphes", "delphes.root"),
}


@pytest.mark.parametrize("part", [0.001, 0.2, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("which", REAL)
def test_truncated(data_dir, tmp_path, which, part):
    content = data_dir.joinpath(*REAL[which]).read_bytes()
    path = tmp_path / "a.root"
    path.write_bytes(content[: int(len(content) * part)])
    text = complaint(path)
    assert any(words in text for words in ("truncated", "cannot be read as ROOT"))


@pytest.mark.parametrize(("which", "column"), [("tree", "FatJet_pt"), ("delphes", "EFlowTrack.PT")])
def test_flipped_bits_in_a_basket(data_dir, tmp_path, which, column):
    """What a compressed basket holds is garbage after a flip; whichever part of it says so, it is one line."""
    source = data_dir.joinpath(*REAL[which])
    branch = stored(source)[column]
    start, size = int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0])
    content = bytearray(source.read_bytes())
    for place in range(start + 80, start + size - 5, 7):
        content[place] ^= 0x55
    path = tmp_path / "a.root"
    path.write_bytes(content)
    complaint(path)
