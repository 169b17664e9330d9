"""Simulated events: what Pythia is told, the detector against its formulas, blocks that survive kills, files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pytest
from scipy.stats import norm

from analysis.simulation_fidelity import load, separability
from drapes_hep.cli import main
from drapes_hep.config import load_config
from drapes_hep.errors import ConfigError, DrapesError, InputError, LostEventsError
from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.features import compute_features, invariant_mass
from drapes_hep.events.formats.writers import raw_metadata, write_raw_hdf5
from drapes_hep.events.readers import read, scan, simulation_order
from drapes_hep.events.skims import read_skim, read_truth
from drapes_hep.simulation import blocks
from drapes_hep.simulation import write_sample as generate
from drapes_hep.simulation.blocks import Account, block_seeds, leading_objects
from drapes_hep.simulation.detector import DETECTORS, Objects, propagate, respond
from drapes_hep.simulation.processes import Process, pythia_settings
from drapes_hep.simulation.pythia import Generator, Particles
from drapes_hep.simulation.write_sample import Order, sidecar, simulate, truth_file
from drapes_hep.stages.simulation import check_sources
from drapes_hep.stages.skim import examine_files

SIGNAL = Process("resonance", masses=(3500, 500, 100))
QCD = Process("qcd")


@pytest.fixture(scope="session")
def pythia():
    return pytest.importorskip("pythia8mc", reason="no pythia8mc: pip install '.[sim]'")


def command(*words: str) -> list[str]:
    return ["drapes", "simulate", *words]


def complaint(words, monkeypatch, capfd) -> str:
    """Run ``drapes`` and give its one line on standard error."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("drapes: ")
    return err


# ---- options --------------------------------------------------------------------------------------------------------

MASSES = ("--masses", "3500", "500", "100")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ttbar",), "process 'ttbar': choose qcd or resonance"),
        (("resonance",), "a resonance needs --masses A B C"),
        (("resonance", "--masses", "500", "400", "100"), "A of 500 GeV cannot decay to B and C of 500 GeV together"),
        (("resonance", "--masses", "-3500", "500", "100"), "masses must be positive"),
        (("resonance", "--masses", "3500", "500", "0"), "masses must be positive"),
        (("resonance", "--masses", "3500", "nan", "100"), "masses must be positive"),
        (("resonance", "--masses", "inf", "500", "100"), "masses must be positive"),
        (("resonance", "--masses", "13500", "500", "100"), "the protons collide with 13000 GeV"),
        (("resonance", "--masses", "3500", "500", "5"), "at least 10 GeV"),
        (("resonance", "--masses", "3500", "500", "heavy"), "Invalid value for '--masses'"),
        (("resonance", *MASSES, "--prongs", "4"), "--prongs 4: choose 2 or 3"),
        (("resonance", *MASSES, "--width", "0"), "--width 0: above 0"),
        (("resonance", *MASSES, "--width", "1000"), "at most a fifth"),
        (("qcd", *MASSES), "--masses is not used by qcd"),
        (("qcd", "--prongs", "2"), "--prongs is not used by qcd"),
        (("qcd", "--width", "3"), "--width is not used by qcd"),
        (("qcd", "--shower", "herwig"), "--shower 'herwig': choose default or alternative"),
        (("qcd", "--events", "0"), "--events 0: at least 1"),
        (("qcd", "--events", "-5"), "--events -5: at least 1"),
        (("qcd", "--events", "1e3"), "Invalid value for '--events'"),
        (("qcd", "--seed", "-1"), "--seed -1: from 0"),
        (("qcd", "--workers", "0"), "--workers 0: at least 1"),
        (("qcd", "--format", "root"), "--format 'root': choose raw or skim"),
        (("qcd", "--leading-pt", "20"), "--leading-pt 20: from 100"),
        (("qcd", "--leading-pt", "nan"), "--leading-pt nan: from 100"),
        (("qcd", "--tune", "4"), "No such option"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(words, says, tmp_path, monkeypatch, capfd):
    assert says in complaint(command(*words, "-o", str(tmp_path / "x.h5")), monkeypatch, capfd)
    assert list(tmp_path.iterdir()) == []


def test_without_pythia_one_line_names_the_extra(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "pythia8mc", None)
    says = complaint(command("qcd", "-o", str(tmp_path / "x.h5")), monkeypatch, capfd)
    assert "pip install 'drapes-hep[sim]'" in says
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(pythia, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    says = complaint(command("qcd", "-o", str(tmp_path / "file" / "x.h5")), monkeypatch, capfd)
    assert "cannot be written" in says


def test_a_folder_is_no_output(pythia, tmp_path, monkeypatch, capfd):
    assert "is a folder" in complaint(command("qcd", "-o", str(tmp_path)), monkeypatch, capfd)


@pytest.mark.parametrize("kind", ["raw", "skim"])
def test_a_file_of_other_origin_is_not_overwritten(kind, pythia, tmp_path, monkeypatch, capfd):
    (tmp_path / "x.h5").write_text("precious")
    words = command("qcd", "-o", str(tmp_path / "x.h5"), "--format", kind)
    assert "exists and was not written by this command" in complaint(words, monkeypatch, capfd)
    assert (tmp_path / "x.h5").read_text() == "precious"


def test_truth_of_other_origin_is_not_overwritten(pythia, tmp_path):
    truth_file(tmp_path / "x.parquet").write_text("precious")
    with pytest.raises(DrapesError, match=r"x\.truth\.parquet: exists and was not written by this command"):
        simulate(Order(QCD, 10, format="skim"), tmp_path / "x.parquet")


# ---- what Pythia is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shower", ["default", "alternative"])
@pytest.mark.parametrize("process", [QCD, SIGNAL, replace(SIGNAL, prongs=3)], ids=["qcd", "two", "three"])
def test_events_conserve_four_momentum_before_the_detector(process, shower, pythia):
    """To rounding: the generator stores single events in double precision, sums of 13 TeV."""
    particles = Generator(replace(process, shower=shower), 1).batch(10)
    assert len(particles) >= 8  # a lost hadronisation now and then is the generator's right
    total = [np.bincount(particles.event, getattr(particles, name)) for name in ("px", "py", "pz", "energy")]
    np.testing.assert_allclose(np.array(total[:3]), 0, atol=0.01)
    np.testing.assert_allclose(total[3], 13_000, atol=0.01)


def test_what_pythia_prints_does_not_reach_the_user(pythia, capfd):
    Generator(replace(QCD, shower="alternative"), 1).batch(2)
    assert capfd.readouterr() == ("", "")


def test_pythias_refusal_is_one_line(pythia, monkeypatch):
    monkeypatch.setattr(
        "drapes_hep.simulation.pythia.pythia_settings", lambda _: (*pythia_settings(QCD), "HardQCD:none = on")
    )
    with pytest.raises(DrapesError, match=r"^Pythia refuses this process: HardQCD:none = on$"):
        Generator(QCD, 1)


def test_settings_follow_the_process():
    lines = pythia_settings(Process("resonance", masses=(2000, 300, 90), width=40, prongs=3))
    assert {"34:m0 = 2000", "34:mWidth = 40", "24:m0 = 300", "23:m0 = 90"} <= set(lines)
    assert [line for line in lines if "oneChannel" in line] == [
        "24:oneChannel = 1 1. 103 2 -1 21",
        "23:oneChannel = 1 1. 103 1 -1 21",
    ]
    assert "PhaseSpace:pTHatMin = 900.0" in pythia_settings(QCD)
    assert "PartonShowers:model = 2" in pythia_settings(replace(QCD, shower="alternative"))


@pytest.mark.parametrize("prongs", [2, 3])
def test_both_showers_radiate_from_the_decays(prongs, pythia):
    """Without radiation, decays make a quarter fewer particles; each mean of 40 events is known to 4%."""
    counts = [
        np.diff(Generator(replace(SIGNAL, prongs=prongs, shower=shower), 2).batch(40).offsets).mean()
        for shower in ("default", "alternative")
    ]
    assert 0.85 < counts[1] / counts[0] < 1.15


def test_no_two_blocks_or_processes_share_a_seed():
    processes = (QCD, SIGNAL, replace(SIGNAL, prongs=3), replace(QCD, shower="alternative"))
    seeds = [block_seeds(seed, process, i) for seed in (1, 2) for process in processes for i in range(500)]
    assert len({one % 900_000_000 for one, _ in seeds}) == len({two for _, two in seeds}) == len(seeds)


# ---- the detector ---------------------------------------------------------------------------------------------------


def gun(pdg: int, pt: float, eta: float = 0.2, n: int = 20_000, mass: float = 0.0) -> Particles:
    """One particle an event, from the origin."""
    phi = np.random.default_rng(5).uniform(-np.pi, np.pi, n)
    columns = np.full(n, pt), np.full(n, pt * np.sinh(eta))
    energy = np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2)
    zero = np.zeros(n)
    px, py = columns[0] * np.cos(phi), columns[0] * np.sin(phi)
    return Particles(np.arange(n + 1), np.full(n, pdg), px, py, columns[1], np.full(n, energy), zero, zero, zero)


def shoot(particles: Particles, detector: str = "default", seed: int = 3) -> Objects:
    return respond(particles, DETECTORS[detector], np.random.default_rng(seed))


def assert_mean_and_width(values, mean, width):
    """Within five standard errors; those of the width for distributions close to normal."""
    n = len(values)
    assert abs(values.mean() - mean) < 5 * width / np.sqrt(n)
    assert abs(values.std() - width) < 5 * width / np.sqrt(2 * n)


@pytest.mark.parametrize(("eta", "constant", "slope"), [(0.2, 0.01, 1e-4), (1.0, 0.015, 1.5e-4), (2.0, 0.025, 3.5e-4)])
def test_muons_are_tracks_of_the_stated_resolution_and_efficiency(eta, constant, slope):
    objects = shoot(gun(13, 200.0, eta))
    assert_mean_and_width(objects.pt, 200, 200 * np.hypot(constant, slope * 200))
    np.testing.assert_allclose(objects.eta, eta, rtol=1e-12)
    efficiency = 0.99 if eta < 1.5 else 0.98
    assert abs(len(objects.pt) / 20_000 - efficiency) < 5 * np.sqrt(efficiency * (1 - efficiency) / 20_000)


def test_muons_keep_their_azimuth_although_the_field_bends_them():
    particles = gun(-13, 5.0)
    objects = shoot(particles)
    found = np.diff(objects.offsets) == 1
    truth = np.arctan2(particles.py, particles.px)[found]
    turned = np.remainder(objects.phi - truth + np.pi, 2 * np.pi) - np.pi
    np.testing.assert_allclose(turned, 0, atol=1e-9)


def test_photons_have_the_resolution_of_the_electromagnetic_calorimeter():
    objects = shoot(gun(22, 50.0, 0.0))
    # cells are wide: the object's eta is spread over one, its energy is what is measured
    energy = objects.pt * np.cosh(objects.eta)
    assert_mean_and_width(energy, 50, np.sqrt((0.008 * 50) ** 2 + 0.11**2 * 50 + 0.4**2))
    assert np.ptp(objects.eta) < 0.0175


def test_neutral_hadrons_have_the_resolution_of_the_hadronic_calorimeter():
    objects = shoot(gun(130, 400.0, 0.0, mass=0.4976))
    width = np.sqrt((0.05 * 400) ** 2 + 1.5**2 * 400)
    assert_mean_and_width(objects.pt * np.cosh(objects.eta), 400, width)


@pytest.mark.parametrize("name", ["default", "alternative"])
def test_soft_neutral_hadrons_pass_the_threshold_as_often_as_the_log_normal_says(name):
    """E > S sigma(E) with sigma^2 = (0.05 E)^2 + 2.25 E, for the measured energy E around 5 GeV."""
    energy, significance = 5.0, DETECTORS[name].hcal_significance
    spread = np.sqrt(np.log1p((0.05**2 * energy**2 + 2.25 * energy) / energy**2))
    least = max(1.0, 2.25 * significance**2 / (1 - (0.05 * significance) ** 2))
    expected = norm.sf((np.log(least / energy) + 0.5 * spread**2) / spread)
    found = np.diff(shoot(gun(130, energy, 0.0), name).offsets).mean()
    assert abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 20_000)


def test_hadrons_with_a_track_keep_their_energy_on_average_and_gain_resolution():
    """Of one particle, track and tower are two measurements: their weighted mean is narrower than the tower alone."""
    objects = shoot(gun(211, 30.0, 0.0, mass=0.1396))
    total = np.bincount(np.repeat(np.arange(20_000), np.diff(objects.offsets)), objects.pt, minlength=20_000)
    tower = np.sqrt((0.05 * 30) ** 2 + 1.5**2 * 30)
    assert abs(np.median(total[total > 0]) - 30) < 2
    assert total.std() < tower


def test_neutrinos_and_what_is_far_forward_leave_nothing():
    for particles in (gun(14, 500.0), gun(22, 50.0, 2.9), gun(211, 50.0, 3.5), gun(22, 50.0, 4.5)):
        assert len(shoot(particles).pt) == 0


def test_events_without_particles_keep_their_place():
    particles = gun(13, 100.0, n=50)
    offsets = np.concatenate([[0, 0], np.arange(1, 51), [50]])
    objects = shoot(replace(particles, offsets=offsets))
    assert len(objects) == 52
    assert np.diff(objects.offsets)[[0, -1]].tolist() == [0, 0]


def test_one_seed_one_response():
    particles = gun(211, 20.0, n=300)
    first, again, other = shoot(particles), shoot(particles), shoot(particles, seed=4)
    assert np.array_equal(first.pt, again.pt)
    assert not np.array_equal(first.pt, other.pt)


@pytest.mark.parametrize("charge", [-1, 1])
def test_a_helix_turns_by_the_angle_that_geometry_gives(charge):
    """From the origin to radius R on a circle of radius rho, the azimuth changes by asin(R / 2 rho)."""
    pt = np.array([1.0, 2.0, 10.0, 100.0])
    zero = np.zeros(4)
    place = propagate(np.full(4, charge), pt, zero, 0.3 * pt, zero, zero, zero)
    rho = pt / (0.299792458 * 3.8)
    turn = np.arcsin(1.29 / (2 * rho))
    np.testing.assert_allclose(place.phi, -charge * turn, rtol=1e-12)
    np.testing.assert_allclose(np.sinh(place.eta), 0.3 * 2 * turn * rho / 1.29, rtol=1e-12)


def test_neutral_particles_fly_straight_from_their_vertex():
    one = np.ones(1)
    place = propagate(np.zeros(1, dtype=np.int64), 5 * one, 0 * one, 1 * one, 0.2 * one, 0.3 * one, 0.1 * one)
    x = np.sqrt(1.29**2 - 0.3**2)
    np.testing.assert_allclose(place.phi, np.arctan2(0.3, x))
    np.testing.assert_allclose(np.sinh(place.eta) * 1.29, 0.1 + (x - 0.2) / 5)


def test_loopers_leave_through_the_end():
    """Below 0.73 GeV a track from the origin turns inside the barrel."""
    one = np.ones(1)
    place = propagate(np.ones(1, dtype=np.int64), 0.5 * one, 0 * one, 0.5 * one, 0 * one, 0 * one, 0 * one)
    assert place.reached.all()
    # at z = 3 m, no further from the beam than the circle's diameter
    assert np.sinh(place.eta[0]) >= 3.0 / (2 * 0.5 / (0.299792458 * 3.8))


# ---- blocks ---------------------------------------------------------------------------------------------------------


def test_at_most_700_objects_are_kept_the_hardest_and_the_rest_is_counted():
    rng = np.random.default_rng(1)
    pt = np.concatenate([-np.sort(-rng.exponential(10, n)) for n in (900, 5)])
    objects = Objects(np.array([0, 900, 905]), pt, rng.normal(size=905), rng.uniform(-np.pi, np.pi, 905))
    kept, dropped = leading_objects(objects)
    assert dropped.tolist() == [200, 0]
    assert kept.offsets.tolist() == [0, 700, 705]
    np.testing.assert_allclose(kept.pt, np.concatenate([pt[:700], pt[900:]]), rtol=1e-7)


def test_rounding_leaves_azimuths_below_pi():
    """The nearest single-precision number to pi is larger than pi."""
    one = np.ones(2)
    kept, _ = leading_objects(Objects(np.array([0, 2]), one, one, np.array([np.pi, -np.pi])))
    assert np.all(np.abs(kept.phi) < np.pi)
    assert np.array_equal(kept.phi, kept.phi.astype(np.float32))


def test_an_account_that_does_not_add_up_is_an_error():
    good = Account(tried=10, vetoed=3, failed=1, filtered=2, surplus=1, written=3)
    assert good.check() is good
    for bad in (replace(good, tried=11), replace(good, written=2), replace(good, failed=-1, filtered=4)):
        with pytest.raises(LostEventsError):
            bad.check()


@pytest.mark.parametrize("process", [replace(QCD, leading_pt=600), SIGNAL], ids=["qcd", "signal"])
def test_pythia_counts_what_was_counted(process, pythia):
    generator = Generator(process, 3)
    returned = sum(len(generator.batch(30)) for _ in range(2))
    selected, accepted = generator.pythias_counts()
    assert accepted == returned == generator.returned == 60
    assert selected == generator.showered == generator.vetoed + 60
    assert generator.vetoed > 0
    generator.check()


@pytest.mark.parametrize(
    ("selected", "accepted", "says"),
    [
        (0, 1, r"Pythia accepted \d+ events, \d+ of them arrived"),
        (0, -1, r"Pythia accepted \d+ events, \d+ of them arrived"),
        (1, 0, r"Pythia selected \d+ hard processes, but"),
        (-1, 0, r"Pythia selected \d+ hard processes, but"),
    ],
)
def test_a_block_that_differs_from_pythias_counts_is_an_error(selected, accepted, says, pythia, monkeypatch):
    counts = Generator.pythias_counts

    def others(generator):
        found = counts(generator)
        return found[0] + selected, found[1] + accepted

    monkeypatch.setattr(Generator, "pythias_counts", others)
    with pytest.raises(LostEventsError, match=says):
        blocks.make_block(SIGNAL, 1, 0, 3)


def test_an_event_that_the_detector_loses_is_an_error(pythia, monkeypatch):
    def lossy(particles, *words):
        objects = respond(particles, *words)
        end = objects.offsets[-2]
        return Objects(objects.offsets[:-1], objects.pt[:end], objects.eta[:end], objects.phi[:end])

    monkeypatch.setattr(blocks, "respond", lossy)
    with pytest.raises(LostEventsError, match="are accounted for"):
        blocks.make_block(SIGNAL, 1, 0, 3)


def test_cross_sections_of_blocks_are_averaged_by_their_events():
    account = Account.total(
        Account(tried=n, written=n // 2, filtered=n - n // 2, weighted_sigma=s * n, weighted_variance=(e * n) ** 2)
        for n, s, e in ((100, 2.0, 0.2), (300, 4.0, 0.1))
    )
    sigma = account.cross_section()
    assert sigma["after_veto"] == pytest.approx(3.5)
    assert sigma["after_veto_error"] == pytest.approx(np.hypot(100 * 0.2, 300 * 0.1) / 400)
    assert sigma["selected"] == pytest.approx(1.75)
    assert sigma["selected_error"] == pytest.approx(np.hypot(0.5 * np.hypot(20, 30) / 400, 3.5 * 0.5 / 20))


def test_a_hopeless_process_is_one_line(pythia, monkeypatch):
    monkeypatch.setattr("drapes_hep.simulation.pythia.PATIENCE", 30)
    with pytest.raises(DrapesError, match=r"hardly any of \d+ simulated events has a jet above 1200 GeV"):
        blocks.make_block(Process("resonance", masses=(500, 100, 80)), 1, 0, 5)


# ---- samples --------------------------------------------------------------------------------------------------------


def events_of(path, constituents=False):
    reading = Reading(constituents=constituents)
    (chunk,) = split(scan(path, reading=reading), reading=reading)
    return read(chunk)


@pytest.fixture(scope="module")
def samples(pythia, tmp_path_factory) -> dict[str, Path]:
    """Small files: name to path."""
    folder = tmp_path_factory.mktemp("simulated")
    orders = {
        "two": Order(SIGNAL, 60),
        "three": Order(replace(SIGNAL, prongs=3), 60),
        "qcd": Order(QCD, 20, format="skim"),
    }
    for name, order in orders.items():
        simulate(order, folder / f"{name}.h5")
    return {name: folder / f"{name}.h5" for name in orders}


def test_the_dijet_mass_peaks_at_the_resonance(samples):
    """Median of 60 events with a core of 3%; neutrinos and what leaves the jets take a little."""
    mjj = invariant_mass(events_of(samples["two"]).jets[:, :2])
    assert 3300 < np.median(mjj) < 3600


def test_jets_have_the_masses_of_the_daughters(samples):
    features = compute_features(("m_j1", "m_j2"), events_of(samples["two"]).jets[:, :2])
    assert 430 < np.median(features["m_j1"]) < 540
    assert 80 < np.median(features["m_j2"]) < 130


def test_prongs_show_in_the_substructure(samples):
    """J1, whose opening angle is large; the statistical error of each median is about 0.03."""
    tau = {
        name: compute_features(("tau21_j1", "tau32_j1"), events_of(samples[name]).jets[:, :2])
        for name in ("two", "three", "qcd")
    }
    median = {name: {key: np.median(values) for key, values in one.items()} for name, one in tau.items()}
    assert median["two"]["tau21_j1"] < median["qcd"]["tau21_j1"] - 0.15
    assert median["three"]["tau32_j1"] < median["two"]["tau32_j1"] - 0.1
    assert median["three"]["tau21_j1"] > median["two"]["tau21_j1"] + 0.1


def test_every_event_is_accounted_for(samples):
    for name, path in samples.items():
        record = json.loads(sidecar(path).read_text())
        account = record["accounting"]
        parts = ("vetoed", "failed", "filtered", "surplus", "written")
        assert account["tried"] == sum(account[part] for part in parts), name
        assert account["written"] == scan(path).entries == record["order"]["events"]
        assert 0 < record["cross_section_pb"]["selected_error"] < record["cross_section_pb"]["selected"]
        assert record["file"]["bytes"] == path.stat().st_size


def test_the_file_says_how_it_was_made(samples):
    record = json.loads(sidecar(samples["two"]).read_text())
    record.pop("file")
    with h5py.File(samples["two"]) as file:
        assert raw_metadata(file) == record
    skim = read_skim(samples["qcd"], ("event_id",)).metadata["simulation"]
    assert skim["order"]["kind"] == "qcd"
    assert skim["accounting"]["written"] == 20


def test_the_raw_file_is_padded_sorted_and_labelled(samples):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_hdf(samples["two"], "df")
    assert frame.shape == (60, 2101)
    assert (frame[2100] == 1).all()
    table = frame.to_numpy()[:, :2100].reshape(60, 700, 3)
    pt = table[:, :, 0]
    assert (np.diff(pt, axis=1) <= 0).all()
    assert (table[pt == 0] == 0).all()
    assert ((pt > 0).sum(axis=1) > 30).all()
    assert (abs(table[:, :, 1]) < 2.5).all()
    assert np.array_equal(
        ak.num(events_of(samples["two"], constituents=True).jets.constituents.pt, axis=2)[:, 0] > 0, [True] * 60
    )


def test_the_selection_holds_when_the_file_is_read_again(samples):
    for name in ("two", "three"):
        jets = events_of(samples[name]).jets
        assert ak.all(ak.num(jets) >= 2)
        assert ak.all(jets.pt[:, 0] > 1200)


def test_background_is_labelled_beside_the_skim(samples):
    truth = read_truth(truth_file(samples["qcd"]))
    assert (truth.truth_for(read_skim(samples["qcd"])["event_id"]) == 0).all()


def test_raw_and_skim_hold_the_same_events(pythia, tmp_path):
    orders = {kind: Order(SIGNAL, 12, format=kind) for kind in ("raw", "skim")}
    events = {}
    for kind, order in orders.items():
        simulate(order, tmp_path / kind / "events.h5")
        events[kind] = events_of(tmp_path / kind / "events.h5", constituents=True)
    raw, skim = events["raw"], events["skim"]
    assert ak.all(raw.event_id == skim.event_id)
    for name in ("pt", "eta", "phi", "mass", "tau1", "tau2", "tau3"):
        assert ak.all(raw.jets[name] == skim.jets[name]), name
    for name in ("pt", "eta", "phi", "mass"):
        assert ak.all(raw.jets.constituents[name] == skim.jets.constituents[name]), name


def search(folder, *paths):
    """A configuration that reads these files."""
    (folder / "a.yaml").write_text(
        f"name: a\ndata: {{path: {json.dumps([str(path) for path in paths])}}}\nmass: {{range: [2000, 8000]}}\n"
    )
    return load_config(folder / "a.yaml")


def like_simulated(path, **order):
    """A small file with the record of a simulation; none where there is no order."""
    rng = np.random.default_rng(len(path.name) + len(order))
    table = np.tile([1500.0, 0.1, 0.2, 1400.0, -0.1, -3.0, 0.0], (3, 1))
    table[:, 0] += rng.uniform(0, 9, 3)
    write_raw_hdf5(path, [table], 3, 7, {"order": {**SMALL.record(), **order}} if order else None)
    return path


@pytest.mark.parametrize("other", [{"events": 9}, {"block": 7}, {"format": "skim"}, {"versions": {}}], ids=str)
def test_two_files_of_one_process_and_seed_are_refused(tmp_path, other):
    one = like_simulated(tmp_path / "one.h5", seed=7)
    other = like_simulated(tmp_path / "other.h5", seed=7, **other)
    (error,) = examine_files(search(tmp_path, one, other)).problems
    assert isinstance(error, InputError)
    assert f"{tmp_path}/other.h5: was simulated with the process and the seed 7 of {tmp_path}/one.h5" in str(error)
    assert str(error).endswith("simulate more events with another --seed")


def test_another_simulation_of_the_datas_seed_is_refused(tmp_path):
    one, other = (like_simulated(tmp_path / f"{name}.h5", seed=7, events=len(name)) for name in ("one", "other"))
    config = search(tmp_path, one)
    study = config.study.model_copy(update={"source": (str(other),)})
    with pytest.raises(InputError, match=r"other\.h5: was simulated with the process and the seed 7 of .*one\.h5"):
        check_sources(config.model_copy(update={"study": study}))


def test_other_seeds_and_processes_and_origins_are_read_together(tmp_path):
    paths = [
        like_simulated(tmp_path / "a.h5", seed=7),
        like_simulated(tmp_path / "bb.h5", seed=8),
        like_simulated(tmp_path / "ccc.h5", seed=7, shower="alternative"),
        like_simulated(tmp_path / "dddd.h5"),
        like_simulated(tmp_path / "eeeee.h5"),
    ]
    opened = examine_files(search(tmp_path, *paths))
    assert (len(opened.infos), opened.problems) == (5, ())


def test_raw_files_and_skims_say_how_they_were_ordered(samples):
    assert simulation_order(scan(samples["two"]))["masses"] == [3500, 500, 100]
    assert simulation_order(scan(samples["qcd"]))["kind"] == "qcd"


# ---- seeds, workers, kills ------------------------------------------------------------------------------------------

SMALL = Order(SIGNAL, 22, seed=7, block=6)


@pytest.fixture(scope="module")
def small(pythia, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small") / "events.h5"
    simulate(SMALL, path)
    return path


def test_nothing_is_left_but_the_file_and_its_record(small):
    assert sorted(path.name for path in small.parent.iterdir()) == ["events.h5", "events.h5.json"]


def test_workers_do_not_change_the_file(small, tmp_path):
    simulate(SMALL, tmp_path / "events.h5", workers=2)
    assert (tmp_path / "events.h5").read_bytes() == small.read_bytes()
    assert sidecar(tmp_path / "events.h5").read_bytes() == sidecar(small).read_bytes()


def test_another_seed_gives_other_events(small, tmp_path):
    simulate(replace(SMALL, seed=8, events=6), tmp_path / "events.h5")
    first, other = (events_of(path).jets.pt[:6, 0] for path in (small, tmp_path / "events.h5"))
    assert not ak.any(first == other)


def test_blocks_hold_different_events(small):
    pt = ak.to_numpy(events_of(small).jets.pt[:, 0])
    assert len(np.unique(pt)) == len(pt) == 22


def test_a_killed_run_goes_on_and_ends_in_the_same_file(small, tmp_path):
    path = tmp_path / "events.h5"
    code = (
        "from drapes_hep.simulation.write_sample import Order, simulate\n"
        "from drapes_hep.simulation.processes import Process\n"
        f"process = Process('resonance', masses=(3500, 500, 100))\n"
        f"simulate(Order(process, 22, seed=7, block=6), {str(path)!r})\n"
    )
    parts = Path(f"{path}.parts")
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not (parts / "000000.npz").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not path.exists()
    first = (parts / "000000.npz").stat().st_mtime_ns
    made = []
    original = generate.make_block

    def watched(process, seed, index, *rest):
        made.append(index)
        assert (parts / "000000.npz").stat().st_mtime_ns == first
        return original(process, seed, index, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "make_block", watched)
        simulate(SMALL, path)
    assert 0 not in made
    assert 3 in made
    assert path.read_bytes() == small.read_bytes()
    assert not parts.exists()


def test_a_run_killed_before_its_record_is_finished(small, tmp_path, monkeypatch):
    write = generate.write_json

    def killed(target, value):
        if target == sidecar(path):
            raise KeyboardInterrupt
        write(target, value)

    path = tmp_path / "events.h5"
    with monkeypatch.context() as patch:
        patch.setattr(generate, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            simulate(SMALL, path)
    assert path.exists()
    simulate(SMALL, path)
    assert path.read_bytes() == small.read_bytes()
    assert sidecar(path).exists()


def _open(folder: Path, record: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(record))


def test_a_finished_file_is_not_made_again(small, monkeypatch):
    monkeypatch.setattr(generate, "make_block", lambda *_: pytest.fail("made again"))
    before = small.stat().st_mtime_ns
    assert simulate(SMALL, small)["accounting"]["written"] == 22
    assert small.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (replace(SMALL, seed=8), "seed"),
        (replace(SMALL, events=23), "events"),
        (replace(SMALL, format="skim"), "format"),
        (replace(SMALL, process=replace(SIGNAL, masses=(3500, 500, 120))), "masses"),
    ],
)
def test_a_file_of_other_settings_is_refused_by_their_names(small, other, names):
    with pytest.raises(DrapesError, match=rf"exists and was made with other settings \({names}\)"):
        simulate(other, small)


def test_blocks_of_other_settings_are_refused(pythia, tmp_path):
    path = tmp_path / "events.h5"
    folder = Path(f"{path}.parts")
    _open(folder, {**SMALL.record(), "seed": 9})
    with pytest.raises(DrapesError, match=r"holds blocks of other settings \(seed\); delete this folder"):
        simulate(SMALL, path)


def test_a_damaged_block_is_one_line(pythia, tmp_path):
    path = tmp_path / "events.h5"
    folder = Path(f"{path}.parts")
    _open(folder, SMALL.record())
    for index in range(SMALL.blocks):
        (folder / f"{index:06d}.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DrapesError, match=r"000000\.npz: cannot be read .*; delete it and run again"):
        simulate(SMALL, path)


def test_a_changed_file_is_not_taken_for_the_finished_one(small, tmp_path):
    path = tmp_path / "events.h5"
    path.write_bytes(small.read_bytes()[:-1])
    sidecar(path).write_text(sidecar(small).read_text())
    with pytest.raises(DrapesError, match="belongs to a file that was deleted or changed"):
        simulate(SMALL, path)


def test_ctrl_c_is_one_line_and_keeps_blocks(pythia, tmp_path, monkeypatch, capfd):
    calls = []
    original = generate.make_block

    def interrupted(*words):
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*words)

    monkeypatch.setattr(generate, "make_block", interrupted)
    monkeypatch.setattr(generate, "Order", lambda *words: Order(*words, block=3))
    path = tmp_path / "x.h5"
    monkeypatch.setattr(sys, "argv", command("resonance", *MASSES, "--events", "6", "--workers", "1", "-o", str(path)))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capfd.readouterr().err == "drapes: interrupted; run the same command again to resume\n"
    assert (Path(f"{path}.parts") / "000000.npz").exists()


def test_the_command_says_what_it_wrote(pythia, tmp_path, monkeypatch, capfd):
    path = tmp_path / "x.h5"
    monkeypatch.setattr(sys, "argv", command("resonance", *MASSES, "--events", "4", "-o", str(path)))
    main()
    out, err = capfd.readouterr()
    assert out == ""
    assert "4 events of" in err
    assert "selected cross section" in err
    assert asdict(SIGNAL).items() >= {"kind": "resonance", "prongs": 2}.items()


# ---- the writer -----------------------------------------------------------------------------------------------------


def test_the_raw_writer_makes_what_pandas_would(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = np.random.default_rng(1).normal(size=(25, 7))
    write_raw_hdf5(tmp_path / "ours.h5", iter([table[:10], table[10:]]), 25, 7)
    frame = pandas.read_hdf(tmp_path / "ours.h5", "df")
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame(table))


@pytest.mark.parametrize("shape", [(24, 7), (26, 7), (25, 6)])
def test_the_raw_writer_wants_what_was_promised(shape, tmp_path):
    with pytest.raises(ValueError, match=r"instead of 25|does not fit"):
        write_raw_hdf5(tmp_path / "x.h5", [np.zeros(shape)], 25, 7)
    assert list(tmp_path.iterdir()) == []


def test_a_process_states_its_defaults():
    assert SIGNAL.record() == {
        "kind": "resonance",
        "masses": (3500, 500, 100),
        "prongs": 2,
        "width": 35.0,
        "shower": "default",
        "leading_pt": 1200.0,
    }
    with pytest.raises(ConfigError):
        replace(SIGNAL, kind="qcd")


# ---- the study ------------------------------------------------------------------------------------------------------


def test_the_separability_of_shifted_normals_is_what_theory_says():
    """AUC = Phi(d / sqrt 2) = 0.856, known to 0.8% from 1000 events; trees on so few lose some percent."""
    rng = np.random.default_rng(1)
    found = separability(rng.normal(1.5, 1, (1000, 1)), rng.normal(0, 1, (1000, 1)), splits=2)
    assert -0.06 < found.value - norm.cdf(1.5 / np.sqrt(2)) < 0.04


def test_the_study_selects_as_it_says(samples):
    every = load(str(samples["two"]), (0, 20_000), 0.0, 1200.0, "kt", 1, no_wrap=False)
    assert len(every) == every.above == 60
    window = load(str(samples["two"]), (3300, 3700), 3000.0, 1200.0, "kt", 1, no_wrap=True)
    edge = every.columns["edge"] < np.pi - 1
    mjj = every.columns["mjj"]
    assert window.above == np.count_nonzero(edge & (mjj > 3000))
    assert len(window) == np.count_nonzero(edge & (mjj >= 3300) & (mjj < 3700))
    assert len(load(str(samples["two"]), (0, 20_000), 0.0, 1200.0, "kt", 0, no_wrap=False)) == 0
