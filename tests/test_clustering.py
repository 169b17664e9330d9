"""Clustering and substructure: against the published features, by hand, and against themselves."""

from __future__ import annotations

import subprocess
import sys
import warnings

import awkward as ak
import fastjet
import numpy as np
import pytest

from drapes_hep.events import clustering
from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.clustering import MIN_JET_PT, cluster_events, make_particles
from drapes_hep.events.features import invariant_mass
from drapes_hep.events.readers import read, scan
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS

KT = Reading(axes="kt", constituents=True)
ONE_PASS = Reading(constituents=True)


def event(*particles):
    """One event of massless particles (pt, eta, phi), or massive ones (pt, eta, phi, mass)."""
    return events([particles])


def events(lists):
    flat = np.array([p if len(p) == 4 else (*p, 0.0) for event in lists for p in event], dtype=float).reshape(-1, 4)
    offsets = np.concatenate([[0], np.cumsum([len(event) for event in lists])]).astype(np.int64)
    return make_particles(offsets, *np.ascontiguousarray(flat.T))


def shuffled(particles, seed=0):
    rng = np.random.default_rng(seed)
    order = ak.argsort(ak.unflatten(rng.random(int(ak.sum(ak.num(particles)))), ak.num(particles)), axis=1)
    return particles[order]


def assert_same(one, other, *, rtol=1e-9, atol=1e-9, skip=()):
    for name in one:
        if name.split("_")[-1] in skip:
            continue
        assert ak.to_list(ak.num(one[name])) == ak.to_list(ak.num(other[name]))
        a, b = (ak.to_numpy(ak.flatten(columns[name], axis=None)) for columns in (one, other))
        if name == "jets_mass":  # a light jet's mass is a small difference of squares
            np.testing.assert_allclose(a**2, b**2, rtol=1e-6, atol=1e-3, err_msg=name)
        elif name == "jets_phi":
            np.testing.assert_allclose(np.sin((a - b) / 2), 0, atol=atol, err_msg=name)
        else:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


# ---- the published features ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw_file(data_dir):
    return data_dir / "lhco" / "events_anomalydetection_tiny.h5"


@pytest.fixture(scope="module")
def real(raw_file):
    (chunk,) = split(scan(raw_file, reading=KT), reading=KT)
    return read(chunk)


@pytest.fixture(scope="module")
def published(data_dir):
    info = scan(data_dir / "lhco" / "events_anomalydetection_first100k.features.h5")
    return read(split(info, chunksize=1000)[0])


def test_real_jets_are_the_published_ones(real, published):
    ours, theirs = real.jets[:, :2], published.jets
    for field in ("pt", "eta", "phi", "mass"):
        ratio = ak.to_numpy(ours[field]) / ak.to_numpy(theirs[field])
        np.testing.assert_allclose(ratio, 1, rtol=1e-6, err_msg=field)
    np.testing.assert_allclose(invariant_mass(ours), invariant_mass(theirs), rtol=1e-9)


def test_real_labels_are_the_published_ones(real, published):
    assert ak.to_numpy(real.label).tolist() == ak.to_numpy(published.label).tolist()
    assert ak.sum(real.label) == 93


def axes_of(jets, number, radius):
    """kT axes of each jet by exclusive clustering: px, py, pz, E, shape (jets, number)."""
    c = jets.constituents
    vectors = ak.zip({name: ak.Array(getattr(c, name)) for name in ("px", "py", "pz")} | {"E": ak.Array(c.energy)})
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, radius)
    with warnings.catch_warnings():  # fastjet's package takes every algorithm for one without exclusive jets
        warnings.simplefilter("ignore", UserWarning)
        axes = fastjet.ClusterSequence(ak.to_packed(vectors), definition).exclusive_jets(n_jets=number)
    return [ak.to_numpy(axes[name]) for name in ("px", "py", "pz", "E")]


def tau_by_hand(jets, number, *, rapidity=True, wrap=True, radius=1000.0):
    """N-subjettiness from its definition."""
    px, py, pz, energy = axes_of(jets, number, radius)
    y = np.arctanh(pz / energy) if rapidity else np.arcsinh(pz / np.hypot(px, py))
    phi = np.arctan2(py, px)
    counts = ak.to_numpy(ak.num(jets.constituents))
    jet = np.repeat(np.arange(len(counts)), counts)
    pt, eta, azimuth = (ak.to_numpy(ak.flatten(jets.constituents[name])) for name in ("pt", "eta", "phi"))
    d_phi = azimuth[:, None] - phi[jet]
    if wrap:
        d_phi = np.remainder(d_phi + np.pi, 2 * np.pi) - np.pi
    nearest = np.hypot(eta[:, None] - y[jet], d_phi).min(axis=1)
    return np.bincount(jet, pt * nearest) / np.bincount(jet, pt)


@pytest.fixture(scope="module")
def real_pairs(real):
    return ak.flatten(real.jets[:, :2])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_real_tau_is_that_of_the_definition(real_pairs, number):
    """All 2000 jets: fastjet's kT axes, rapidity, wrapped azimuth."""
    np.testing.assert_allclose(real_pairs[f"tau{number}"], tau_by_hand(real_pairs, number), rtol=1e-9)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_published_tau_differs_in_three_choices_alone(real_pairs, published, number):
    """All 2000 jets: the published tau take the axes' pseudorapidity, do not wrap, and cluster axes with R = 1."""
    theirs = ak.to_numpy(ak.flatten(published.jets[f"tau{number}"]))
    same = tau_by_hand(real_pairs, number, rapidity=False, wrap=False, radius=1.0)
    np.testing.assert_allclose(same, theirs, rtol=1e-9)


@pytest.mark.parametrize(("number", "median", "most"), [(1, 0.02, 0.10), (2, 0.02, 0.10), (3, 0.02, 0.10)])
def test_real_tau_is_near_the_published_where_azimuth_cannot_matter(real_pairs, published, number, median, most):
    """Jets whose constituents all lie on one side of phi = pi: what is left is rapidity against pseudorapidity."""
    theirs = ak.to_numpy(ak.flatten(published.jets[f"tau{number}"]))
    phi = real_pairs.constituents.phi
    untouched = ak.to_numpy(ak.max(phi, axis=1) - ak.min(phi, axis=1)) < np.pi
    assert 0.75 < untouched.mean() < 0.9
    off = np.abs(ak.to_numpy(real_pairs[f"tau{number}"]) / theirs - 1)[untouched]
    assert np.median(off) < median
    assert np.quantile(off, 0.95) < most


def test_one_pass_axes_are_no_worse_than_those_that_they_start_from(raw_file, real):
    reading = Reading()
    (chunk,) = split(scan(raw_file), reading=reading)
    minimised = read(chunk).jets
    for number in (1, 2, 3):
        ratio = ak.to_numpy(ak.flatten(minimised[f"tau{number}"] - real.jets[f"tau{number}"]))
        assert ratio.max() < 1e-6
        assert ratio.mean() < -1e-4


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_two_particles_by_hand():
    """One jet: the sum of four-momenta; tau1 about its own axis, in rapidity; no tau2."""
    (pt1, eta1, phi1), (pt2, eta2, phi2) = (300.0, 0.4, 0.1), (100.0, 0.8, -0.2)
    columns = cluster_events(event((pt1, eta1, phi1), (pt2, eta2, phi2)), KT)
    px = pt1 * np.cos(phi1) + pt2 * np.cos(phi2)
    py = pt1 * np.sin(phi1) + pt2 * np.sin(phi2)
    pz = pt1 * np.sinh(eta1) + pt2 * np.sinh(eta2)
    energy = pt1 * np.cosh(eta1) + pt2 * np.cosh(eta2)
    mass = np.sqrt(2 * pt1 * pt2 * (np.cosh(eta1 - eta2) - np.cos(phi1 - phi2)))
    y, phi = np.arctanh(pz / energy), np.arctan2(py, px)
    tau1 = (pt1 * np.hypot(eta1 - y, phi1 - phi) + pt2 * np.hypot(eta2 - y, phi2 - phi)) / (pt1 + pt2)
    expected = {"pt": np.hypot(px, py), "eta": np.arcsinh(pz / np.hypot(px, py)), "phi": phi, "mass": mass}
    for field, value in (expected | {"tau1": tau1, "tau2": 0.0, "tau3": 0.0}).items():
        assert columns[f"jets_{field}"].to_list() == [[pytest.approx(value, rel=1e-9, abs=1e-12)]], field


def test_minimised_axis_of_two_particles_is_the_harder_one():
    """The weighted sum of distances to two points is least at the heavier point."""
    columns = cluster_events(event((300, 0.4, 0.1), (100, 0.8, -0.2)), ONE_PASS)
    least = 100 * np.hypot(0.4, 0.3) / 400
    assert columns["jets_tau1"][0, 0] == pytest.approx(least, rel=1e-3)
    assert columns["jets_tau1"][0, 0] >= least - 1e-12


def test_tau_is_divided_by_the_radius():
    pair = event((300, 0.4, 0.1), (100, 0.5, 0.0))
    wide, narrow = (cluster_events(pair, Reading(radius=r, axes="kt")) for r in (1.0, 0.8))
    assert narrow["jets_tau1"][0, 0] == pytest.approx(wide["jets_tau1"][0, 0] / 0.8, rel=1e-12)


def test_the_radius_decides_what_is_merged():
    pair = event((300, 0.0, 0.0), (100, 0.9, 0.0))
    assert ak.num(cluster_events(pair, Reading(radius=1.0))["jets_pt"])[0] == 1
    assert ak.num(cluster_events(pair, Reading(radius=0.8))["jets_pt"])[0] == 2


def test_azimuth_wraps_in_jets_and_in_tau():
    across, inside = (event((300, 0.1, phi), (200, 0.2, phi + 0.2)) for phi in (np.pi - 0.1, 0.5))
    wrapped, unwrapped = (cluster_events(particles, KT) for particles in (across, inside))
    assert ak.num(wrapped["jets_pt"]).to_list() == [1]
    assert_same(wrapped, unwrapped, skip=("phi",))
    assert -np.pi <= wrapped["jets_phi"][0, 0] <= np.pi


def test_a_massive_particle_keeps_its_mass():
    columns = cluster_events(event((500, 1.0, 0.3, 80.4)), ONE_PASS)
    assert columns["jets_mass"][0, 0] == pytest.approx(80.4, rel=1e-6)
    assert columns["jets_eta"][0, 0] == pytest.approx(1.0, rel=1e-12)


def test_constituents_add_up_to_the_jet(real):
    total = real.jets.constituents.sum(axis=-1)
    for field in ("px", "py", "pz", "energy"):
        ours, summed = (ak.to_numpy(ak.flatten(getattr(jets, field))) for jets in (real.jets, total))
        np.testing.assert_allclose(ours, summed, rtol=1e-9, atol=1e-6, err_msg=field)


def test_jets_and_constituents_fall_in_pt(real):
    assert ak.all(real.jets.pt[:, 1:] <= real.jets.pt[:, :-1])
    pt = real.jets.constituents.pt
    assert ak.all(pt[:, :, 1:] <= pt[:, :, :-1])
    assert ak.all(ak.num(pt, axis=2) > 0)


def test_every_jet_kept_has_its_substructure():
    """A processor may take the third jet: its tau is computed as that of the first."""
    lead = [(1000, 0, 0), (400, 0.3, 0.1)]
    third = [(60, -2, 1.5), (30, -2.3, 1.7), (20, -2.2, 1.1)]
    together = cluster_events(event(*lead, (900, 0, 3.1), (100, 0.1, 2.8), *third), ONE_PASS)
    alone = cluster_events(event(*third), ONE_PASS)
    assert ak.num(together["jets_pt"]).to_list() == [3]
    for number in (1, 2):
        assert together[f"jets_tau{number}"][0, 2] == pytest.approx(alone[f"jets_tau{number}"][0, 0], rel=1e-12)
        assert together[f"jets_tau{number}"][0, 2] > 0


def test_soft_jets_are_left_out():
    columns = cluster_events(event((MIN_JET_PT + 0.1, 0, 0), (MIN_JET_PT - 0.1, 0, 3)), ONE_PASS)
    assert columns["jets_pt"].to_list() == [[pytest.approx(MIN_JET_PT + 0.1)]]


# ---- few particles ---------------------------------------------------------------------------------------------------


def test_events_of_few_particles():
    lists = [[], [(100, 0.5, 1.0)], [], [(100, 0, 0), (90, 0, 3)], [(1, 0, 0)], []]
    columns = cluster_events(events(lists), ONE_PASS)
    assert ak.num(columns["jets_pt"]).to_list() == [0, 1, 0, 2, 0, 0]
    for number in (1, 2, 3):
        assert ak.flatten(columns[f"jets_tau{number}"]).to_list() == [0, 0, 0]
    assert ak.flatten(columns["jets_mass"]).to_list() == pytest.approx([0, 0, 0], abs=1e-4)
    assert columns["constituents_pt"].to_list() == [[], [[100]], [], [[100], [90]], [], []]


@pytest.mark.parametrize("lists", [[], [[]], [[], []], [[(1, 0, 0)]], [[(0, 0, 0), (0, 0, 0)]]])
@pytest.mark.parametrize("jets", [True, False])
def test_nothing_to_cluster(lists, jets):
    columns = cluster_events(events(lists), Reading(constituents=True, jets=jets))
    assert set(columns) == {f"jets_{f}" for f in JET_FIELDS} | {f"constituents_{f}" for f in CONSTITUENT_FIELDS}
    for values in columns.values():
        assert values.to_list() == [[]] * len(lists)


@pytest.mark.parametrize("axes", ["kt", "onepass_kt"])
def test_identical_particles_have_no_width(axes):
    """All axes coincide: a distance of zero, which a minimisation that divides by it must survive."""
    columns = cluster_events(event(*[(100, 0.3, 0.2)] * 5), Reading(axes=axes))
    for number in (1, 2, 3):
        assert columns[f"jets_tau{number}"][0, 0] == pytest.approx(0, abs=1e-9)


def test_readings_that_make_no_sense():
    with pytest.raises(ValueError, match="unknown axes 'wta'"):
        cluster_events(event((1, 0, 0)), Reading(axes="wta"))
    with pytest.raises(ValueError, match="radius must be positive"):
        cluster_events(event((1, 0, 0)), Reading(radius=0.0))


# ---- invariances -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some(real):
    """The particles of the jets of 150 real events."""
    c = real.jets[:150].constituents
    flat = {field: ak.to_packed(ak.flatten(ak.Array(c[field]), axis=2)) for field in CONSTITUENT_FIELDS}
    return ak.zip(flat)


@pytest.mark.parametrize("reading", [KT, ONE_PASS], ids=["kt", "onepass"])
def test_the_order_of_particles_does_not_matter(some, reading):
    # the minimisation stops at its own accuracy, not at that of the arithmetic
    assert_same(cluster_events(some, reading), cluster_events(shuffled(some), reading), rtol=1e-7, atol=1e-7)


def test_padding_does_not_matter(some):
    padded = ak.concatenate([some[:, :0], events([[(0, 0, 0)] * 7] * len(some)), some], axis=1)
    assert_same(cluster_events(some, ONE_PASS), cluster_events(padded, ONE_PASS), rtol=0, atol=0)


@pytest.mark.parametrize("reading", [KT, ONE_PASS], ids=["kt", "onepass"])
def test_blocks_do_not_matter(some, reading, monkeypatch):
    whole = cluster_events(some, reading)
    monkeypatch.setattr(clustering, "_BLOCK", 500)
    assert_same(whole, cluster_events(some, reading), rtol=0, atol=0)


def test_chunks_do_not_matter(raw_file, real):
    info = scan(raw_file, reading=KT)
    parts = [read(chunk) for chunk in split(info, chunksize=333, reading=KT)]
    for field in JET_FIELDS:
        assert ak.concatenate([ak.Array(part.jets[field]) for part in parts]).to_list() == real.jets[field].to_list()
    together = ak.concatenate([ak.Array(part.jets.constituents.pt) for part in parts])
    assert together.to_list() == real.jets.constituents.pt.to_list()
    assert np.concatenate([part.event_id for part in parts]).tolist() == ak.to_list(real.event_id)


@pytest.mark.parametrize("angle", [0.7, 3.0, -5.0])
def test_rotation_about_the_beam(some, angle):
    turned = ak.with_field(some, some.phi + angle, "phi")
    original, other = cluster_events(some, KT), cluster_events(turned, KT)
    np.testing.assert_allclose(
        np.sin((ak.flatten(other["jets_phi"]) - ak.flatten(original["jets_phi"]) - angle).to_numpy() / 2), 0, atol=1e-9
    )
    assert_same(original, other, skip=("phi",), rtol=1e-8)


def test_boost_along_the_beam(some):
    """Massless particles shift in pseudorapidity; pt, mass and tau of jets stay."""
    boosted = ak.with_field(some, some.eta + 0.8, "eta")
    assert_same(cluster_events(some, KT), cluster_events(boosted, KT), skip=("eta",), rtol=1e-8)


def test_constituents_change_no_jet(some):
    with_constituents, other = (
        cluster_events(some, Reading(constituents=constituents)) for constituents in (True, False)
    )
    assert set(other) == {f"jets_{field}" for field in JET_FIELDS}
    for name, values in other.items():
        assert values.to_list() == with_constituents[name].to_list()


# ---- output ----------------------------------------------------------------------------------------------------------


def test_fastjet_prints_nothing():
    code = (
        "import numpy as np\n"
        "from drapes_hep.events.chunks import Reading\n"
        "from drapes_hep.events.clustering import cluster_events, make_particles\n"
        "one = np.array([100.0, 50.0])\n"
        "cluster_events(make_particles(np.array([0, 2]), one, one / 1000, one / 500), Reading(constituents=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
