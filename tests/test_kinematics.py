"""The jets' coordinates, sums of constituents, masses from kernels and subjettiness, against four-vectors."""

from __future__ import annotations

from dataclasses import asdict

import awkward as ak
import numpy as np
import pytest
import torch
import vector
from scipy.stats import halfnorm, kstest, norm

from drapes_hep.errors import FitError
from drapes_hep.events.chunks import Reading
from drapes_hep.events.clustering import cluster_events, make_particles, subjettiness
from drapes_hep.spectrum.drawing import draw_kernels
from drapes_hep.templates.constituents.conserve import conserve, jet_sums
from drapes_hep.templates.constituents.kinematics import (
    ETA,
    MASS,
    PHI,
    PT,
    Bounds,
    N,
    Orientation,
    coordinates,
    domain,
    jets_from,
    pair_mass,
)
from drapes_hep.templates.constituents.tensors import conserve_tensors

CHARTS = ("solved", "free")


def pairs(n=400, seed=1):
    """Jets, the leading one first, roughly back to back."""
    rng = np.random.default_rng(seed)
    jets = np.empty((n, 2, 5))
    jets[:, 0, PT] = 1200 + rng.exponential(400, n)
    jets[:, 1, PT] = jets[:, 0, PT] * rng.uniform(0.3, 1, n)
    jets[:, :, ETA] = rng.uniform(-2.5, 2.5, (n, 2))
    jets[:, 0, PHI] = rng.uniform(-np.pi, np.pi, n)
    jets[:, 1, PHI] = np.remainder(jets[:, 0, PHI] + rng.normal(0, 0.5, n), 2 * np.pi) - np.pi
    jets[:, :, MASS] = rng.gamma(2, 80, (n, 2))
    jets[:, :, N] = rng.integers(3, 90, (n, 2))
    return jets


def four_vectors(jets):
    return vector.array({"pt": jets[..., PT], "eta": jets[..., ETA], "phi": jets[..., PHI], "mass": jets[..., MASS]})


def mass_of(jets):
    """m_JJ without the code under test."""
    both = four_vectors(jets)
    return (both[:, 0] + both[:, 1]).mass


def turned(angle):
    return np.remainder(angle + np.pi, 2 * np.pi) - np.pi


def spread(n, seed=2):
    return np.random.default_rng(seed).random((n, 2))


def through(chart, jets, mjj=None):
    """Go to the coordinates and back; the mass of the pair may be another."""
    bounds = Bounds.of(jets)
    x, orientation = coordinates(chart, jets, mass_of(jets), bounds, spread(len(jets)))
    return x, jets_from(chart, x, mass_of(jets) if mjj is None else mjj, bounds, orientation)


def assert_same_jets(found, expected, rtol=1e-9):
    np.testing.assert_allclose(found[..., PT], expected[..., PT], rtol=rtol)
    np.testing.assert_allclose(found[..., ETA], expected[..., ETA], rtol=0, atol=1e-8)
    np.testing.assert_allclose(turned(found[..., PHI] - expected[..., PHI]), 0, atol=1e-9)
    np.testing.assert_allclose(found[..., MASS], expected[..., MASS], rtol=rtol)
    np.testing.assert_array_equal(found[..., N], expected[..., N])


def anything(n=500, seed=3, bounds=None):
    """Coordinates of the solved chart, anywhere in their domain."""
    bounds = bounds or Bounds(1200.0, 2.5, 3, 90)
    rng = np.random.default_rng(seed)
    low, high = domain("solved", bounds).T
    low, high = np.where(np.isfinite(low), low, -1.5), np.where(np.isfinite(high), high, 1.5)
    low[0], high[1], high[4:6] = 0.3, 1.5, 400.0
    return low + (high - low) * rng.random((n, 8)), bounds, Orientation.drawn(rng.random((n, 3)))


# ---- round trips -----------------------------------------------------------------------------------------------------


def test_the_mass_of_a_pair_is_that_of_the_four_vectors():
    jets = pairs()
    masses = pair_mass(jets[:, :, PT], jets[:, :, ETA], jets[:, :, MASS], jets[:, 0, PHI] - jets[:, 1, PHI])
    np.testing.assert_allclose(masses, mass_of(jets), rtol=1e-10)


@pytest.mark.parametrize("chart", CHARTS)
def test_jets_come_back(chart):
    jets = pairs()
    assert_same_jets(through(chart, jets)[1], jets)


@pytest.mark.parametrize("chart", CHARTS)
def test_jets_in_the_other_order_come_back_with_the_leading_one_first(chart):
    jets = pairs()
    assert_same_jets(through(chart, jets[:, ::-1])[1], jets)


@pytest.mark.parametrize("chart", CHARTS)
def test_azimuths_that_wrap_come_back_within_a_turn(chart):
    jets = pairs(4)
    jets[:, :, PHI] = [[np.pi - 1e-3, 1e-3], [-np.pi + 1e-3, -1e-3], [3.0, -3.0], [-3.0, 0.2]]
    returned = through(chart, jets)[1]
    assert_same_jets(returned, jets)
    assert (np.abs(returned[:, :, PHI]) <= np.pi).all()


@pytest.mark.parametrize("chart", CHARTS)
def test_jets_exactly_back_to_back_come_back(chart):
    jets = pairs()
    jets[:, 1, PHI] = turned(jets[:, 0, PHI] + np.pi)
    assert_same_jets(through(chart, jets)[1], jets)


@pytest.mark.parametrize("chart", CHARTS)
def test_numbers_are_spread_within_one(chart):
    jets = pairs()
    x, _ = through(chart, jets)
    number = x[:, 6:] if chart == "solved" else x[:, :, 4]
    np.testing.assert_array_equal(np.floor(number), jets[:, :, N])
    assert (number != np.floor(number)).all()


@pytest.mark.parametrize("chart", CHARTS)
def test_numbers_beyond_the_training_s_are_its_extremes(chart):
    jets = pairs(50)
    bounds = Bounds.of(jets)
    x, orientation = coordinates(chart, jets, mass_of(jets), bounds, spread(50))
    for wild, expected in ((-3.0, bounds.least_n), (1e3, bounds.most_n), (bounds.most_n + 0.999, bounds.most_n)):
        x[..., 6:] = wild
        if chart == "free":
            x[..., 4] = wild
        assert (jets_from(chart, x, mass_of(jets), bounds, orientation)[:, :, N] == expected).all()


@pytest.mark.parametrize("chart", CHARTS)
def test_coordinates_of_the_training_lie_in_their_domain(chart):
    jets = pairs(2000)
    x, _ = through(chart, jets)
    low, high = domain(chart, Bounds.of(jets)).T
    assert (x >= low).all()
    assert (x <= high).all()


# ---- solved for the mass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mjj", [3000.0, 4500.0, 9000.0])
def test_whatever_the_coordinates_the_mass_is_what_was_asked_for(mjj):
    x, bounds, orientation = anything()
    jets = jets_from("solved", x, np.full(len(x), mjj), bounds, orientation)
    finite = np.isfinite(jets).all(axis=(1, 2))
    assert finite.sum() > 100
    np.testing.assert_allclose(mass_of(jets[finite]), mjj, rtol=1e-9)


def test_the_leading_jet_has_the_smallest_momentum_of_the_training_or_more():
    x, bounds, orientation = anything()
    jets = jets_from("solved", x, np.full(len(x), 4500.0), bounds, orientation)
    jets = jets[np.isfinite(jets).all(axis=(1, 2))]
    assert (jets[:, 0, PT] >= bounds.leading_pt * (1 - 1e-9)).all()
    assert (jets[:, 1, PT] <= jets[:, 0, PT]).all()


def test_at_the_largest_distance_the_leading_jet_is_at_the_threshold():
    x, bounds, orientation = anything()
    x[:, 2] = 1.0
    jets = jets_from("solved", x, np.full(len(x), 4500.0), bounds, orientation)
    jets = jets[np.isfinite(jets).all(axis=(1, 2))]
    np.testing.assert_allclose(jets[:, 0, PT], bounds.leading_pt, rtol=1e-6)


def test_no_pair_of_jets_has_a_mass_below_that_of_the_threshold():
    x, bounds, orientation = anything()
    masses = np.full(len(x), 2000.0)
    jets = jets_from("solved", x, masses, bounds, orientation)
    # side by side at the threshold they weigh the least
    pt = bounds.leading_pt * np.stack([np.ones(len(x)), x[:, 0]], axis=1)
    least = np.stack([pt, np.repeat(x[:, 3:4], 2, axis=1), np.zeros_like(pt), x[:, 4:6]], axis=2)
    least[:, 1, PHI] = np.pi - x[:, 1]
    heavy = mass_of(np.concatenate([least, np.ones_like(least[..., :1])], axis=2)) > masses
    assert 0 < heavy.sum() < len(x)
    np.testing.assert_array_equal(np.isnan(jets).any(axis=(1, 2)), heavy)
    assert np.isnan(jets[heavy]).all()


@pytest.mark.parametrize("factor", [1.05, 1.6])
def test_another_mass_keeps_what_is_not_its_own(factor):
    jets = pairs()
    _, moved = through("solved", jets, factor * mass_of(jets))
    np.testing.assert_allclose(mass_of(moved), factor * mass_of(jets), rtol=1e-9)
    np.testing.assert_allclose(moved[:, 1, PT] / moved[:, 0, PT], jets[:, 1, PT] / jets[:, 0, PT], rtol=1e-9)
    np.testing.assert_array_equal(moved[:, :, [MASS, N]], jets[:, :, [MASS, N]])
    opening = [turned(pair[:, 0, PHI] - pair[:, 1, PHI]) for pair in (moved, jets)]
    np.testing.assert_allclose(turned(opening[0] - opening[1]), 0, atol=1e-9)
    np.testing.assert_allclose(moved[:, :, ETA].mean(axis=1), jets[:, :, ETA].mean(axis=1), atol=1e-9)


def test_the_free_chart_makes_no_use_of_the_mass():
    jets = pairs()
    np.testing.assert_array_equal(through("free", jets, 2 * mass_of(jets))[1], through("free", jets)[1])


# ---- invariance ------------------------------------------------------------------------------------------------------


def rotated(jets):
    out = jets.copy()
    out[:, :, PHI] = turned(out[:, :, PHI] + 1.234)
    return out


def reflected(column):
    def change(jets):
        out = jets.copy()
        out[:, :, column] *= -1
        return out

    return change


CHANGES = {
    "rotation": rotated,
    "reflection in eta": reflected(ETA),
    "reflection in phi": reflected(PHI),
    "both": lambda jets: reflected(ETA)(reflected(PHI)(jets)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_coordinates_do_not_see_what_a_detector_is_symmetric_under(change):
    jets = pairs()
    np.testing.assert_allclose(through("solved", change(jets))[0], through("solved", jets)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chart", CHARTS)
def test_coordinates_do_not_see_which_jet_stands_first(chart):
    jets = pairs()
    np.testing.assert_allclose(through(chart, jets[:, ::-1])[0], through(chart, jets)[0], rtol=1e-12, atol=1e-12)


def test_free_coordinates_do_not_see_a_rotation():
    jets = pairs()
    np.testing.assert_allclose(through("free", rotated(jets))[0], through("free", jets)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_orientation_keeps_what_the_coordinates_do_not_see(change):
    jets = change(pairs())
    assert_same_jets(through("solved", jets)[1], jets)


def test_drawn_orientations_are_even():
    orientation = Orientation.drawn(np.random.default_rng(1).random((40_000, 3)))
    assert kstest(orientation.phi, "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-3
    for sign in (orientation.eta_sign, orientation.phi_sign):
        assert set(sign) == {-1.0, 1.0}
        assert abs(sign.mean()) < 0.02


def test_bounds_survive_a_card():
    bounds = Bounds.of(pairs())
    assert Bounds.from_dict(asdict(bounds)) == bounds


# ---- constituents that add up ----------------------------------------------------------------------------------------


def content(n=60, seed=5, least=2, most=30):
    """Constituents relative to their jets, and jets that they do not add up to."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(least, most + 1, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    fraction = rng.exponential(1, offsets[-1])
    fraction /= np.bincount(np.repeat(np.arange(n), lengths), fraction, minlength=n).repeat(lengths)
    delta = rng.normal(0, 0.15, (offsets[-1], 2)) + 0.02
    sums = summed(fraction, delta, offsets, np.tile([1000.0, 0.0, 0.0, 0.0], (n, 1)))
    jets = np.stack(
        [
            1000 * rng.uniform(0.8, 1.5, n),
            rng.uniform(-2.4, 2.4, n),
            rng.uniform(-np.pi, np.pi, n),
            np.asarray(sums.mass) * rng.uniform(0.7, 1.4, n),
        ],
        axis=1,
    )
    return fraction, delta, offsets, jets


def summed(fraction, delta, offsets, jets):
    """Sums by ``vector``, jet by jet."""
    axis = np.repeat(jets, np.diff(offsets), axis=0)
    parts = {"pt": fraction * axis[:, 0], "eta": axis[:, 1] + delta[:, 0], "phi": axis[:, 2] + delta[:, 1]}
    lists = {name: ak.unflatten(value, np.diff(offsets)) for name, value in parts.items()}
    lists["mass"] = ak.zeros_like(lists["pt"])
    return ak.sum(ak.zip(lists, with_name="Momentum4D", behavior=vector.backends.awkward.behavior), axis=1)


def test_conserved_constituents_add_up_to_their_jet():
    fraction, delta, offsets, jets = content()
    sums = summed(*conserve(fraction, delta, offsets, jets), offsets, jets)
    np.testing.assert_allclose(sums.pt, jets[:, 0], rtol=1e-9)
    np.testing.assert_allclose(sums.eta, jets[:, 1], atol=1e-6)
    np.testing.assert_allclose(turned(np.asarray(sums.phi) - jets[:, 2]), 0, atol=1e-9)
    np.testing.assert_allclose(sums.mass, jets[:, 3], rtol=1e-5)


def test_constituents_that_add_up_are_left_alone():
    fraction, delta, offsets, jets = content()
    once = conserve(fraction, delta, offsets, jets)
    for before, after in zip(once, conserve(*once, offsets, jets), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_shares_of_the_momentum_are_kept():
    fraction, delta, offsets, jets = content(1)
    conserved, _ = conserve(fraction, delta, offsets, jets)
    np.testing.assert_allclose(conserved / conserved.sum(), fraction / fraction.sum(), rtol=1e-9)


@pytest.mark.parametrize("part", [0.8, 1.2])
def test_directions_about_the_axis_are_kept(part):
    # opposite members of equal momentum: the axis lies between them
    half = np.random.default_rng(1).normal(0, 0.15, (4, 2))
    delta, fraction, offsets = np.concatenate([half, -half]), np.full(8, 1 / 8), np.array([0, 8])
    jets = np.array([[1000.0, 0.4, 1.0, 0.0]])
    jets[0, 3] = part * summed(fraction, delta, offsets, jets).mass[0]
    _, moved = conserve(fraction, delta, offsets, jets)
    before, after = 2 * half, moved[:4] - moved[4:]
    cosine = (before * after).sum(axis=1) / np.hypot(*before.T) / np.hypot(*after.T)
    np.testing.assert_allclose(cosine, 1, rtol=1e-9)
    # a heavier jet is wider
    assert ((np.hypot(*after.T) > np.hypot(*before.T)) == (part > 1)).all()


@pytest.mark.parametrize("part", [100.0, 0.0])
def test_a_hopeless_mass_keeps_axis_momentum_and_shape(part):
    fraction, delta, offsets, jets = content(20, least=8)
    jets[:, 3] *= part
    conserved, moved = conserve(fraction, delta, offsets, jets)
    sums = summed(conserved, moved, offsets, jets)
    np.testing.assert_allclose(sums.pt, jets[:, 0], rtol=1e-9)
    np.testing.assert_allclose(sums.eta, jets[:, 1], atol=1e-6)
    np.testing.assert_allclose(turned(np.asarray(sums.phi) - jets[:, 2]), 0, atol=1e-9)
    starts = offsets[:-1]
    np.testing.assert_allclose(moved[starts + 1] - moved[starts], delta[starts + 1] - delta[starts], rtol=1e-6)


def test_a_lone_constituent_becomes_its_jet():
    jet = np.array([[900.0, 1.5, 3.0, 50.0]])
    conserved, moved = conserve(np.array([0.7]), np.array([[0.1, -0.2]]), np.array([0, 1]), jet)
    np.testing.assert_allclose(conserved, 1.0)
    np.testing.assert_allclose(moved, 0.0, atol=1e-12)


def test_empty_jets_change_nothing_for_the_others():
    fraction, delta, offsets, jets = content(3)
    expected = conserve(fraction, delta, offsets, jets)
    empty = np.array([[500.0, 0.3, 0.1, 40.0]])
    with_empty = np.concatenate([empty, jets[:1], empty, jets[1:], empty])
    more = np.array([0, 0, offsets[1], offsets[1], offsets[2], offsets[3], offsets[3]])
    for result, expected_result in zip(conserve(fraction, delta, more, with_empty), expected, strict=True):
        np.testing.assert_allclose(result, expected_result, rtol=1e-12, atol=1e-12)


def test_sums_are_those_of_four_vectors():
    fraction, delta, offsets, _ = content()
    pt, eta, phi = 700 * fraction, 1.7 + delta[:, 0], 3.1 + delta[:, 1]
    sums = jet_sums(pt, eta, phi, offsets)
    expected = summed(fraction, delta, offsets, np.tile([700.0, 1.7, 3.1, 0.0], (len(offsets) - 1, 1)))
    np.testing.assert_allclose(sums.pt, expected.pt, rtol=1e-12)
    np.testing.assert_allclose(sums.rapidity, expected.rapidity, rtol=1e-9)
    np.testing.assert_allclose(sums.eta, expected.eta, rtol=1e-9)
    np.testing.assert_allclose(sums.mass, expected.mass, rtol=1e-6)
    np.testing.assert_allclose(turned(sums.phi - np.asarray(expected.phi)), 0, atol=1e-12)


def test_the_sum_of_nothing_has_no_momentum_and_no_direction():
    sums = jet_sums(np.array([]), np.array([]), np.array([]), np.array([0, 0]))
    assert sums.pt == 0
    assert sums.mass == 0
    assert np.isnan(sums.rapidity)
    assert np.isnan(sums.eta)


# ---- masses from kernels ---------------------------------------------------------------------------------------------

LO, HI = 3300.0, 3700.0


def folded(masses, bandwidth):
    """Distribution function of kernels that are reflected at both edges."""

    def cdf(m):
        out = np.zeros_like(m)
        for k in range(-3, 4):
            shift = 2 * k * (HI - LO)
            for centre in masses:
                for mirrored in (centre + shift, 2 * LO - centre + shift):
                    out += norm.cdf(m, mirrored, bandwidth) - norm.cdf(LO, mirrored, bandwidth)
        return out / len(masses)

    return cdf


def evenly(n):
    return (np.arange(n) + 0.5) / n


@pytest.mark.parametrize("bandwidth", [1.0, 30.0, 300.0, 2000.0])
def test_masses_from_kernels_lie_in_the_window(bandwidth):
    sample = np.random.default_rng(1).uniform(3000, 4000, 500)
    masses = draw_kernels(sample, bandwidth, LO, HI, np.linspace(0, 1, 5001))
    assert ((masses >= LO) & (masses < HI)).all()


@pytest.mark.parametrize("bandwidth", [5.0, 60.0, 300.0])
def test_masses_from_kernels_follow_their_density(bandwidth):
    sample = np.array([3310.0, 3450.0, 3455.0, 3600.0, 3690.0])
    masses = draw_kernels(sample, bandwidth, LO, HI, evenly(5000))
    assert kstest(masses, folded(sample, bandwidth)).statistic < 0.003


def test_masses_from_narrow_kernels_are_those_of_the_sample():
    sample = LO + 400 * np.random.default_rng(1).beta(1, 3, 4000)
    masses = draw_kernels(sample, 1.0, LO, HI, np.random.default_rng(2).random(4000))
    assert kstest(masses, sample).pvalue > 1e-3


def test_kernels_at_an_edge_are_reflected():
    masses = draw_kernels([LO], 20.0, LO, HI, evenly(4000))
    assert kstest(masses - LO, halfnorm(0, 20).cdf).statistic < 0.003


def test_masses_outside_the_window_take_no_part():
    u = evenly(100)
    inside = np.array([3400.0, 3500.0])
    outside = np.array([LO - 1, HI, 5000.0, *inside])
    np.testing.assert_array_equal(draw_kernels(outside, 5.0, LO, HI, u), draw_kernels(inside, 5.0, LO, HI, u))


def test_an_event_s_mass_does_not_depend_on_the_order_of_the_data():
    sample, u = np.random.default_rng(1).uniform(LO, HI, 50), evenly(100)
    np.testing.assert_array_equal(draw_kernels(sample[::-1], 5.0, LO, HI, u), draw_kernels(sample, 5.0, LO, HI, u))


@pytest.mark.parametrize("seen", [[], [3000.0, HI]])
def test_kernels_of_nothing_are_refused(seen):
    with pytest.raises(FitError, match="no event is between 3300 and 3700 GeV"):
        draw_kernels(seen, 5.0, LO, HI, evenly(10))


# ---- subjettiness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["onepass_kt", "kt"])
def test_subjettiness_is_that_of_the_clustering(axes):
    rng = np.random.default_rng(1)
    n, each = 30, 60
    offsets = np.arange(n + 1) * each
    pt = rng.exponential(30, n * each) + 0.1
    particles = make_particles(offsets, pt, rng.uniform(-2, 2, n * each), rng.uniform(-np.pi, np.pi, n * each))
    reading = Reading(radius=1.0, axes=axes, constituents=True)
    clustered = cluster_events(particles, reading)
    lists = {name: ak.flatten(clustered[f"constituents_{name}"]) for name in ("pt", "eta", "phi")}
    sizes = ak.to_numpy(ak.num(lists["pt"]))
    flat = [ak.to_numpy(ak.flatten(lists[name])) for name in ("pt", "eta", "phi")]
    tau = subjettiness(*flat, np.concatenate([[0], np.cumsum(sizes)]), reading)
    assert len(sizes) > 50
    for i in range(3):
        expected = ak.to_numpy(ak.flatten(clustered[f"jets_tau{i + 1}"]))
        np.testing.assert_allclose(tau[:, i], expected, rtol=1e-6, atol=1e-9)


def random_jets(lengths, seed=4):
    rng = np.random.default_rng(seed)
    total = int(np.sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rng.exponential(30, total) + 1, rng.normal(0, 0.2, total), rng.normal(0, 0.2, total), offsets


def test_tau_n_of_n_members_or_fewer_is_zero():
    tau = subjettiness(*random_jets([1, 2, 3, 4]), Reading())
    expected = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=bool)
    np.testing.assert_array_equal(tau > 1e-9, expected)


def test_jets_without_members_have_no_subjettiness_and_move_no_other():
    lengths = np.array([5, 7, 9])
    pt, eta, phi, offsets = random_jets(lengths)
    with_empty = np.array([0, 0, 5, 5, 5, 12, 21, 21])
    tau = subjettiness(pt, eta, phi, with_empty, Reading())
    np.testing.assert_array_equal(tau[[0, 2, 3, 6]], 0)
    np.testing.assert_allclose(tau[[1, 4, 5]], subjettiness(pt, eta, phi, offsets, Reading()), rtol=1e-12)


@pytest.mark.parametrize("empty", [0, 3])
def test_nothing_has_no_subjettiness(empty):
    nothing = np.zeros(0)
    taus = subjettiness(nothing, nothing, nothing, np.zeros(empty + 1, dtype=np.int64), Reading())
    np.testing.assert_array_equal(taus, np.zeros((empty, 3)))


def test_a_device_conserves_as_the_cpu_does():
    fraction, delta, offsets, jets = content()
    # a jet that no exponent makes so heavy, and a jet without constituents
    jets = np.concatenate([jets, jets[:1]])
    jets[3, 3] = 50 * jets[3, 3]
    offsets = np.append(offsets, offsets[-1])
    arrays = (torch.as_tensor(array) for array in (fraction, delta, offsets, jets))
    for own, expected in zip(conserve_tensors(*arrays, 1.0), conserve(fraction, delta, offsets, jets), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-7, atol=1e-7)


def test_a_jet_is_conserved_alone():
    fraction, delta, offsets, jets = content()
    whole = conserve(fraction, delta, offsets, jets)
    part = slice(offsets[4], offsets[9])
    some = conserve(fraction[part], delta[part], offsets[4:10] - offsets[4], jets[4:9])
    for own, expected in zip(some, whole, strict=True):
        assert np.array_equal(own, expected[part])
