"""What a processor's hooks return is right, or one line with the hook, its file and the first event at fault."""

from __future__ import annotations

import copy
import re

import awkward as ak
import numpy as np
import pandas as pd
import pytest
import uproot
from conftest import ROOT, make_columns

from drapes_hep.errors import ConfigError
from drapes_hep.events.features import invariant_mass
from drapes_hep.events.formats.writers import write_feature_hdf5
from drapes_hep.events.hooks import Hooks, no_cut
from drapes_hep.events.nano_events import build_events
from drapes_hep.events.processing import run
from drapes_hep.events.schema import JET_FIELDS
from drapes_hep.plugins import load_processor

COUNTS = [2, 3, 2, 4]
EVENTS, JETS = len(COUNTS), sum(COUNTS)
METADATA = {"dataset": "a", "filename": "/data/a.root"}


@pytest.fixture
def events():
    """Four events of 2, 3, 2 and 4 jets, new for each test: a hook might change them."""
    rng = np.random.default_rng(3)
    flat = {
        "pt": np.sort(rng.uniform(300, 2000, JETS))[::-1].copy(),
        "eta": rng.uniform(-2, 2, JETS),
        "phi": rng.uniform(-3, 3, JETS),
        "mass": rng.uniform(10, 300, JETS),
        "tau1": rng.uniform(0.3, 0.5, JETS),
        "tau2": rng.uniform(0.1, 0.3, JETS),
        "tau3": rng.uniform(0.0, 0.1, JETS),
    }
    columns = {f"jets_{name}": ak.unflatten(values, COUNTS) for name, values in flat.items()}
    numbers = {"run": [1, 1, 1, 2], "luminosityBlock": [7, 7, 8, 1], "event": [10, 11, 12, 13]}
    columns |= {name: np.array(values, dtype=np.int64) for name, values in numbers.items()}
    columns["row"] = np.arange(100, 100 + EVENTS)
    return build_events({"event_id": np.arange(EVENTS), "weight": np.ones(EVENTS), **columns}, METADATA)


def hooks(events, **functions):
    """Hooks of a processor with these methods."""
    methods = {name: lambda _, *given, call=call: call(*given) for name, call in functions.items()}
    return Hooks(type("Mine", (), methods)(), events)


def message(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- masks of events -------------------------------------------------------------------------------------------------

PASS = np.array([True, False, True, True])


@pytest.mark.parametrize(
    "value",
    [
        PASS,
        PASS.tolist(),
        tuple(PASS),
        ak.Array(PASS),
        ak.mask(ak.Array(PASS), [True] * EVENTS),
        np.ma.MaskedArray(PASS, mask=False),
        pd.Series(PASS),
        PASS.astype(object),
        pd.Series(PASS, dtype="boolean"),
        ak.Array(["x", "y", "x", "x"]) == "x",
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_mask_that_means_one_thing_is_taken(events, value):
    mask, applied = hooks(events, trigger=lambda _: value).event_mask("trigger")
    assert applied
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, PASS)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([1, 0, 1, 1]), "returned integers, which select by index in 4 events, first run:lumi:event 1:7:10"),
        (ak.Array([1, 0, 1, 1]), "returned integers, which select by index"),
        ([1, 0, 1, 1], "returned integers, which select by index"),
        (np.array([1, 0, np.nan, 1]), "with NaN, which counts as true in 1 event, first run:lumi:event 1:8:12"),
        (np.array([1.0, 0.0, 1.0, 1.0]), "returned floating-point numbers"),
        (np.array([True, None, True, True], dtype=object), "returned missing values (None) in 1 event"),
        (np.array([object(), 2, 3, 4], dtype=object), "returned Python objects"),
        (np.array(["yes", "no", "yes", "yes"]), "returned text"),
        (ak.Array(["yes", "no", "yes", "yes"]), "returned text"),
        ("yes!", "returned a str"),
        (ak.Array([True, None, True, True]), "returned missing values (None) in 1 event, first run:lumi:event 1:7:11"),
        ([True, None, True, True], "returned missing values (None) in 1 event, first run:lumi:event 1:7:11"),
        (np.ma.MaskedArray(PASS, mask=[0, 0, 1, 0]), "missing (masked) values in 1 event, first run:lumi:event 1:8:12"),
        (
            pd.Series([True, pd.NA, True, True], dtype="boolean"),
            "returned missing values (NA) in 1 event, first run:lumi",
        ),
        (pd.Series(PASS, index=[3, 2, 1, 0]), "with an index other than 0 to n-1"),
        (pd.DataFrame({"a": PASS}), "returned a DataFrame of 1 column"),
        (None, "returned None; return one boolean per event (does it end without a return?)"),
        ((flag for flag in PASS), "returned a generator"),
        (slice(0, 2), "returned a slice"),
        (True, "returned a single bool"),
        (np.True_, "returned a single bool"),
        ({0, 2}, "returned a set"),
        ({"a": True}, "returned a dict"),
        (PASS[:3], "returned 3 values for 4 events"),
        (PASS[:, None], "returned an array of shape (4, 1)"),
        (ak.unflatten(np.ones(JETS, dtype=bool), COUNTS), "returned lists"),
        ([[True], [False, True], [], [True]], "returned lists"),
        (ak.Array([{"x": True}] * 4), "returned records (x)"),
        (ak.Array([True, "a", True, True]), "returned values of type"),
        (np.array([1j, 0, 1, 1]), "returned complex numbers"),
        (np.array(["2020-01-01"] * 4, dtype="M8[D]"), "returned dates"),
    ],
)
def test_a_mask_that_means_more_is_refused(events, value, said):
    text = message(hooks(events, trigger=lambda _: value).event_mask, "trigger")
    assert text.startswith("Mine.trigger (")
    assert said in text


def test_a_lazy_mask_is_refused(events):
    array = pytest.importorskip("dask.array").from_array(PASS)
    assert "lazy dask array" in message(hooks(events, trigger=lambda _: array).event_mask, "trigger")


def test_a_chunk_without_events_has_masks_of_any_type(events):
    mask, _ = hooks(events[:0], trigger=lambda _: np.array([])).event_mask("trigger")
    assert (mask.dtype, len(mask)) == (bool, 0)


def test_a_hook_that_is_not_applied_says_so(events):
    mask, applied = hooks(events, trigger=no_cut).event_mask("trigger")
    assert not applied
    assert mask.all()
    for combined in (no_cut(events) & PASS, PASS & no_cut(events), ak.Array(PASS) & no_cut(events)):
        mask, applied = hooks(events, trigger=lambda _, value=combined: value).event_mask("trigger")
        assert applied
        np.testing.assert_array_equal(mask, PASS)


def test_the_row_of_the_file_is_named_of_a_part_of_the_chunk_too(events):
    part = events[np.array([False, True, True, True])]
    text = message(hooks(part, trigger=lambda _: np.array([1, 0, np.nan])).event_mask, "trigger")
    assert "first run:lumi:event 2:1:13 (row 103 of /data/a.root, counted from 0)" in text


# ---- masks of jets ---------------------------------------------------------------------------------------------------

GOOD = ak.unflatten(np.arange(JETS) % 3 > 0, COUNTS)


@pytest.mark.parametrize(
    "value", [GOOD, GOOD.to_list(), ak.mask(GOOD, ak.ones_like(GOOD))], ids=["ak", "list", "option"]
)
def test_a_mask_of_jets_is_taken(events, value):
    assert hooks(events, jet_id=lambda *_: value).jet_mask("jet_id", events.jets).to_list() == GOOD.to_list()


def test_a_rectangular_mask_of_jets_is_taken(events):
    two = events.jets[:, :2]
    mask = np.array([[True, False]] * EVENTS)
    assert hooks(events, jet_id=lambda *_: mask).jet_mask("jet_id", two).to_list() == mask.tolist()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (ak.values_astype(GOOD, np.int32), "integers, which select by index in 4 events, first run:lumi:event 1:7:10"),
        (ak.values_astype(GOOD, np.float64), "returned floating-point numbers"),
        (ak.where(GOOD, np.nan, 1.0), "with NaN, which counts as true in 4 events"),
        (PASS, "returned one value per event or a flat array"),
        (no_cut(range(4)), "has one value per event"),
        (np.ones(JETS, dtype=bool), "returned a flat array"),
        (GOOD[:3], "returned lists of 3 events for 4"),
        (ak.concatenate([GOOD[:2], GOOD[2:] [:, :1]]), "different lengths than the jets' (1 for 2) in 2 events"),
        (ak.mask(GOOD, PASS), "missing values (None) in 1 event, first run:lumi:event 1:7:11"),
        (ak.mask(GOOD, GOOD), "missing values (None)"),
        (ak.local_index(GOOD)[:, :1], "returned lists of different lengths"),
        (ak.Array([[["a"]]] * 4), "returned an array of 3 dimensions"),
        (ak.Array([["a"] * n for n in COUNTS]), "returned text"),
        (None, "returned None"),
        (True, "returned a single bool"),
    ],
)  # fmt: skip
def test_another_mask_of_jets_is_refused(events, value, said):
    text = message(hooks(events, jet_id=lambda *_: value).jet_mask, "jet_id", events.jets)
    assert said in text


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[1, -2, 3, 4], np.array([1, -2, 3, 4], dtype=np.float32), ak.Array([1, -2, 3, 4])])
def test_weights_may_be_negative_and_of_any_real_type(events, value):
    weight = hooks(events, weights=lambda _: value).weights("weights")
    assert weight.dtype == np.float64
    assert weight.tolist() == [1, -2, 3, 4]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([1, 1, np.nan, 1]), "returned NaN or infinity in 1 event, first run:lumi:event 1:8:12"),
        (np.array([1, np.inf, 1, 1]), "returned NaN or infinity in 1 event, first run:lumi:event 1:7:11"),
        (np.array([1, 1e200, 1, 1]), "returned a weight beyond 1e+60 in 1 event"),
        (np.array([1, 1e-200, 1, 1]), "returned a weight that is not 0 and within 1e-60 of it in 1 event"),
        (np.ones(4, dtype=complex), "returned complex numbers"),
        (np.array(["1"] * 4), "returned text"),
        (PASS, "returned booleans"),
        (np.ones((4, 2)), "returned an array of shape (4, 2)"),
        (np.ones(3), "returned 3 values for 4 events"),
        (1.0, "returned a single float"),
        (ak.Array([1.0, None, 1.0, 1.0]), "missing values (None)"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(events, value, said):
    assert said in message(hooks(events, weights=lambda _: value).weights, "weights")


# ---- jets ------------------------------------------------------------------------------------------------------------


def scaled(events):
    jets = events.jets
    for name in ("pt", "mass"):
        jets[name] = jets[name] * 1.01
    return jets


def rebuilt(events, **fields):
    """The jets built anew from their fields, as corrections that know nothing of a hidden field do."""
    return ak.zip({name: fields.get(name, events.jets[name]) for name in JET_FIELDS})


def changed(name, value, place=4):
    """Jets with one value of one field changed: place 4 is the third jet of the second event."""

    def hook(events):
        flat = ak.to_numpy(ak.flatten(events.jets[name])).copy()
        flat[place] = value
        return ak.with_field(events.jets, ak.unflatten(flat, COUNTS), name)

    return hook


@pytest.mark.parametrize(
    "hook",
    [
        scaled,
        lambda events: rebuilt(events, pt=1.01 * events.jets.pt, mass=1.01 * events.jets.mass),
        lambda events: rebuilt(events, eta=events.jets.eta + 0.01),
        lambda events: events.jets[ak.argsort(events.jets.mass, axis=1)],
        lambda events: events.jets[events.jets.pt > 500],
        lambda events: rebuilt(events)[:, ::-1],
        lambda events: ak.concatenate([scaled(events)[:, :1], rebuilt(events)[:, 1:]], axis=1),
        lambda events: ak.with_field(events.jets, ak.values_astype(events.jets.pt, np.float32), "pt"),
        changed("mass", -1e-4),
    ],
    ids=["scaled", "rebuilt", "moved", "sorted", "dropped", "reversed", "joined", "single", "rounding"],
)
def test_corrections_of_every_kind_are_taken(events, hook):
    before = ak.max(events.jets.pt)
    jets = hooks(events, corrections=hook).jets("corrections")
    assert (jets.fields, len(jets)) == (list(JET_FIELDS), EVENTS)
    assert ak.all(jets.mass >= 0)
    assert str(jets.pt.type) == f"{EVENTS} * var * float64"
    assert ak.max(events.jets.pt) == before


def test_scaled_jets_are_those_that_the_hook_returned(events):
    jets = hooks(events, corrections=scaled).jets("corrections")
    assert jets.pt.to_list() == (events.jets.pt * 1.01).to_list()
    assert jets.eta.to_list() == events.jets.eta.to_list()


SECOND = "in 1 event, first run:lumi:event 1:7:11"


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (changed("pt", np.nan), f"jets with NaN or infinity in 'pt' {SECOND}"),
        (changed("pt", -5.0), f"jets with a transverse momentum that is not positive in 'pt' {SECOND}"),
        (changed("pt", 0.0), "a transverse momentum that is not positive"),
        (changed("pt", 2e6), "an energy of more than 1e+06 GeV (MeV?)"),
        (changed("mass", -3.0), f"jets with a negative mass in 'mass' {SECOND}"),
        (changed("eta", 25.0), f"jets with a pseudorapidity beyond 20 in 'eta' {SECOND}"),
        (changed("phi", 90.0), "an azimuth beyond 2 pi (degrees?)"),
        (changed("tau2", -1.0), "jets with a negative value in 'tau2'"),
        (changed("tau1", np.inf), "jets with NaN or infinity in 'tau1'"),
        (lambda events: events.jets[["pt", "eta", "phi", "mass"]], "returned jets without the field 'tau1'"),
        (lambda events: ak.with_field(events.jets, ak.Array([["a"] * n for n in COUNTS]), "pt"), "'pt' holds text"),
        (lambda events: ak.with_field(events.jets, events.jets.pt > 1000, "mass"), "'mass' holds booleans"),
        (lambda events: ak.with_field(events.jets, 1j * events.jets.pt, "pt"), "'pt' holds complex numbers"),
        (lambda events: ak.with_field(events.jets, ak.mask(events.jets.pt, GOOD), "pt"), "(None) in 'pt'"),
        (lambda events: ak.with_field(events.jets, events.jets[["pt"]], "pt"), "not a single number"),
        (lambda events: ak.mask(events.jets, events.jets.pt > 500), "returned missing values (None)"),
        (lambda events: ak.mask(events.jets, PASS), f"returned missing values (None) {SECOND}"),
        (lambda events: events.jets[:3], "returned jets of 3 events for 4"),
        (lambda events: events.jets[PASS], "returned jets of 3 events for 4"),
        (lambda events: events.jets[:, 0], "return one list of jets per event"),
        (lambda events: ak.flatten(events.jets), "returned a flat array of 11 jets"),
        (lambda events: events.jets.pt, "return one list of jets per event"),
        (lambda events: events, "returned the events"),
        (lambda _: [1, 2, 3, 4], "returned a list"),
        (lambda _: None, "returned None"),
        (lambda _: np.ones((4, 2)), "returned a ndarray"),
        (lambda events: events.jets[::-1], "the jets of other events in 4 events, first run:lumi:event 1:7:10"),
        (lambda events: rebuilt(events)[::-1], "returned the jets of other events"),
        (lambda events: rebuilt(events)[[1, 2, 3, 0]], "returned the jets of other events"),
        (lambda events: rebuilt(events, eta=events.jets.eta + 0.02)[[0, 1, 3, 2]], "returned the jets of other events"),
        (lambda events: ak.concatenate([events.jets, events.jets[:, :1]], axis=1), "the same jet twice in 4 events"),
        (lambda events: ak.concatenate([rebuilt(events), rebuilt(events)[:, :1]], axis=1), "the same jet twice in 4"),
    ],
)  # fmt: skip
def test_jets_that_cannot_be_are_refused(events, hook, said):
    assert said in message(hooks(events, corrections=hook).jets, "corrections")


def with_fields(**changes):
    """Jets with changed fields, which still tell their place in the chunk."""

    def hook(events):
        jets = events.jets
        for name, change in changes.items():
            flat = change(ak.to_numpy(ak.flatten(events.jets[name])))
            jets = ak.with_field(jets, ak.unflatten(flat, COUNTS), name)
        return jets

    return hook


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (with_fields(eta=lambda eta: 0 * eta), "'eta' changed by more than 0.5"),
        (with_fields(phi=lambda phi: -phi), "'phi' changed by more than 0.5"),
        (with_fields(pt=lambda pt: 6 * pt), "'pt' changed by a factor above 5"),
        (with_fields(pt=lambda pt: pt / 6), "'pt' changed by a factor above 5"),
        (with_fields(pt=lambda pt: np.roll(pt, 1)), "with the 'pt' of other jets"),
        (with_fields(pt=lambda pt: np.roll(pt, 1).astype(np.float32)), "with the 'pt' of other jets"),
        (with_fields(mass=lambda mass: np.roll(mass, 1)), "with the 'mass' of other jets"),
        (with_fields(mass=lambda mass: mass / 1000), "'mass' changed by a factor above 100"),
        (with_fields(mass=lambda mass: mass * 101), "'mass' changed by a factor above 100"),
    ],
)
def test_values_that_no_correction_gives_are_refused(events, hook, said):
    assert said in message(hooks(events, corrections=hook).jets, "corrections")


def rolled(events, field, scale=1.0):
    flat = np.roll(ak.to_numpy(ak.flatten(events.jets[field])), 1)
    return rebuilt(events, **{field: ak.unflatten(scale * flat, COUNTS)})


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (lambda events: rolled(events, "pt"), "with the 'pt' of other jets"),
        (lambda events: rolled(events, "mass"), "with the 'mass' of other jets"),
        (lambda events: rebuilt(events, pt=events.jets.pt[:, ::-1]), "with the 'pt' of other jets"),
        (lambda events: rebuilt(events, pt=6 * events.jets.pt), "'pt' changed by a factor above 5"),
        (lambda events: rebuilt(events, mass=events.jets.mass / 1000), "'mass' changed by a factor above 100"),
    ],
)
def test_values_of_other_jets_are_refused_in_rebuilt_jets(events, hook, said):
    assert said in message(hooks(events, corrections=hook).jets, "corrections")


MANY = 300


@pytest.fixture(scope="module")
def dijet_events():
    """Events of two jets with a falling spectrum of pt."""
    rng = np.random.default_rng(5)
    leading = 600 * (1 + rng.pareto(6, MANY))
    pt = np.stack([leading, leading * rng.uniform(0.5, 0.99, MANY)], axis=1).ravel()
    flat = {"pt": pt, "eta": rng.uniform(-2, 2, 2 * MANY), "phi": rng.uniform(-3, 3, 2 * MANY)}
    flat |= {"mass": 0.1 * pt, "tau1": 0.4 + 0 * pt, "tau2": 0.2 + 0 * pt, "tau3": 0.1 + 0 * pt}
    columns = {f"jets_{name}": ak.unflatten(values, [2] * MANY) for name, values in flat.items()}
    return build_events({"event_id": np.arange(MANY), "weight": np.ones(MANY), **columns}, METADATA)


def corrected(width):
    """Factors that smear pt by a width, the same for each call."""
    return ak.unflatten(np.random.default_rng(6).lognormal(0, width, 2 * MANY), [2] * MANY)


OTHER_ORDER = {
    "within the event": (lambda pt: ak.sort(pt, axis=1), "of other jets of their events"),
    "next event": (lambda pt: pt[np.roll(np.arange(MANY), 1)], "does not follow from their own"),
    "at random": (lambda pt: pt[np.random.default_rng(7).permutation(MANY)], "does not follow from their own"),
}


@pytest.mark.parametrize("build", ["rebuilt", "field"])
@pytest.mark.parametrize("width", [0.0, 0.05])
@pytest.mark.parametrize("order", OTHER_ORDER)
def test_corrected_momenta_in_another_order_are_refused(dijet_events, order, width, build):
    change, said = OTHER_ORDER[order]

    def corrections(events):
        pt = change(1.01 * events.jets.pt * corrected(width))
        return rebuilt(events, pt=pt) if build == "rebuilt" else ak.with_field(events.jets, pt, "pt")

    assert said in message(hooks(dijet_events, corrections=corrections).jets, "corrections")


@pytest.mark.parametrize("width", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("spectrum", ["falling", "narrow", "equal"])
def test_smeared_momenta_are_taken(dijet_events, width, spectrum):
    events = copy.copy(dijet_events)
    if spectrum != "falling":
        factor = corrected(0.01) if spectrum == "narrow" else 1.0
        events["jets", "pt"] = 800 * factor * ak.ones_like(events.jets.pt)
    smeared = events.jets.pt * corrected(width)[::-1]
    jets = hooks(events, corrections=lambda events: rebuilt(events, pt=smeared)).jets("corrections")
    np.testing.assert_array_equal(ak.flatten(jets.pt), ak.flatten(smeared))


def test_jets_clustered_anew_may_have_other_momenta(dijet_events):
    """Small jets inside the large ones: most of the momentum in the first, the rest in another one nearby."""

    def corrections(events):
        jets = events.jets
        share = ak.unflatten(np.random.default_rng(8).uniform(0.55, 0.95, 2 * MANY), [2] * MANY)
        first = {"pt": share * jets.pt, "eta": jets.eta + 0.03, "phi": jets.phi}
        second = {"pt": (1 - share) * jets.pt, "eta": jets.eta - 0.3, "phi": jets.phi}
        both = {name: ak.concatenate([first[name], second[name]], axis=1) for name in first}
        mass = ak.concatenate([0.3 * jets.mass, 0.1 * jets.mass], axis=1)
        taus = {name: ak.concatenate([jets[name], jets[name]], axis=1) for name in ("tau1", "tau2", "tau3")}
        return ak.zip({**both, "mass": mass, **taus})

    assert ak.all(ak.num(hooks(dijet_events, corrections=corrections).jets("corrections")) == 4)


@pytest.mark.parametrize(
    "hook",
    [
        with_fields(pt=lambda pt: pt * np.random.default_rng(1).normal(1, 0.1, JETS)),
        with_fields(phi=lambda phi: phi + 0.4),
        with_fields(phi=lambda phi: phi + 2 * np.pi * (phi < 0)),
        with_fields(mass=lambda mass: mass * np.linspace(1e-3, 1, JETS)),
        lambda events: with_fields(pt=lambda pt: 1.1 * pt)(events)[:, ::-1],
        changed("eta", 2.9),
    ],
    ids=["smeared", "shifted", "turned", "groomed", "reordered", "outlier"],
)
def test_corrections_within_reason_are_taken(events, hook):
    assert len(hooks(events, corrections=hook).jets("corrections")) == EVENTS


# ---- what the messages advise ----------------------------------------------------------------------------------------

NA = pd.Series([1.0, pd.NA, 1.0, 1.0], dtype="Float64")
ADVISED = {
    "event_mask": [
        True, False, 1, 0.5, np.array(True), [1, 0, 1, 1], np.array([1, 0, 1, 1]), ak.Array([1, 0, 1, 1]),
        pd.Series([1, 0, 1, 1]), [1.0, np.nan, 0.2, 1.0], np.array([1.0, 0.0, 1.0, 1.0]), (1, 0, 1, 1),
        ak.Array([True, None, True, True]), [True, None, True, True], np.array([True, None, True, True], dtype=object),
        np.ma.MaskedArray(PASS, mask=[0, 0, 1, 0]), pd.Series([True, pd.NA, True, True], dtype="boolean"),
        pd.Series(PASS, index=[3, 2, 1, 0]), pd.DataFrame({"a": PASS}), PASS[:, None], GOOD,
        GOOD.to_list(), (PASS, PASS),
    ],
    "weights": [
        1.0, 2, True, PASS, ak.Array(PASS), PASS.tolist(), [1.0, None, 1.0, 1.0], ak.Array([1.0, None, 1.0, 1.0]),
        np.ma.MaskedArray(np.ones(4), mask=[0, 0, 1, 0]), NA, pd.Series(np.ones(4), index=[3, 2, 1, 0]),
        pd.DataFrame({"a": np.ones(4)}), np.ones((4, 2)), [[1.0], [1.0, 2.0], [], [3.0]], (np.ones(4), np.ones(4)),
        np.array([1.0, None, 1.0, 1.0], dtype=object),
    ],
    "jet_mask": [
        True, False, 1, ak.values_astype(GOOD, np.int32), ak.values_astype(GOOD, np.float64), GOOD.to_list(),
        ak.where(GOOD, np.nan, 1.0), [[1] * n for n in COUNTS], ak.mask(GOOD, GOOD), PASS, no_cut(range(4)),
        np.ones(JETS, dtype=bool), (GOOD, GOOD),
    ],
}  # fmt: skip
CALLS = [(call, value) for call, values in ADVISED.items() for value in values]


def called(events, call, value):
    ours = hooks(events, mine=lambda *_: value)
    return getattr(ours, call)("mine", *([events.jets] if call == "jet_mask" else []))


@pytest.mark.parametrize(("call", "value"), CALLS, ids=[f"{call}-{i}" for i, (call, _) in enumerate(CALLS)])
def test_what_a_message_advises_is_taken(events, call, value):
    if call == "jet_mask" and isinstance(value, list) and isinstance(value[0][0], bool):
        called(events, call, value)  # lists of booleans mean one thing
        return
    text = message(called, events, call, value)
    (advised,) = re.findall("`([^`]+)`", text)
    names = {"ak": ak, "np": np, "result": value, "events": events, "jets": events.jets}
    called(events, call, eval(advised, names))


@pytest.mark.parametrize(
    "value",
    [
        lambda jets: ak.flatten(jets),
        lambda jets: jets[:, 0],
        lambda jets: ak.mask(jets, jets.pt > ak.min(jets.pt)),
        lambda jets: (jets, jets),
    ],
    ids=["flat", "one", "missing", "tuple"],
)
def test_what_a_message_advises_for_jets_is_taken(events, value):
    wrong = value(events.jets)
    (advised,) = re.findall("`([^`]+)`", message(hooks(events, corrections=lambda _: wrong).jets, "corrections"))
    right = eval(advised, {"ak": ak, "np": np, "result": wrong, "events": events})
    assert len(hooks(events, corrections=lambda _: right).jets("corrections")) == EVENTS


WHAT = {
    "event_mask": "one boolean per event",
    "weights": "one real number per event",
    "jet_mask": "one boolean per jet, in lists",
    "jets": "jets as events.jets holds them",
}


async def later():
    return PASS


@pytest.mark.parametrize("call", WHAT)
@pytest.mark.parametrize(
    "make",
    [
        lambda: None, lambda: "yes", lambda: b"yes", lambda: {"a": PASS}, lambda: {1, 2}, lambda: slice(0, 2),
        lambda: (flag for flag in PASS), later, lambda: len, lambda: 1j, lambda: [object()] * 4, object,
        lambda: np.datetime64("2020-01-01"), lambda: iter([1, 2]),
    ],
)  # fmt: skip
def test_a_message_says_what_is_expected(events, call, make):
    value = make()
    text = message(called, events, call, value)
    assert text.startswith("Mine.mine (")
    assert ": returned " in text
    assert f"return {WHAT[call]}" in text


# ---- what goes wrong inside a hook -----------------------------------------------------------------------------------


def test_a_missing_branch_is_one_line_of_its_hook(events):
    text = message(hooks(events, trigger=lambda events: events.HLT_PFHT1050).event_mask, "trigger")
    assert text.startswith(f"Mine.trigger ({__file__}, line ")
    assert ": AttributeError: no field named 'HLT_PFHT1050' (" in text
    assert "events holds " in text
    assert text.endswith("'Use trigger, golden JSON, jet identification and corrections'")


@pytest.mark.parametrize(
    ("function", "meant"),
    [
        (lambda events, _: events.jets.Mass > 100, "mass"),
        (lambda _, jets: jets["tau_1"] > 0, "tau1"),
        (lambda events, _: events["wieght"] > 0, "weight"),
    ],
)
def test_the_nearest_field_is_named(events, function, meant):
    text = message(hooks(events, jet_id=function).jet_mask, "jet_id", events.jets)
    assert f"; did you mean '{meant}'? " in text


class Signatures:
    """Hooks that cannot be called as they are."""

    def no_self(events):
        return events

    def no_argument(self):
        return PASS

    def one_more(self, events, era):
        return events, era

    def turned(self, jets, events):
        return jets.pt > events.weight

    number = 3
    nothing = None


@pytest.mark.parametrize("name", ["no_self", "no_argument", "one_more"])
def test_a_wrong_signature_is_one_line_with_the_right_one(events, name):
    text = message(Hooks(Signatures(), events).event_mask, name)
    assert text.startswith(f"Signatures.{name} ({__file__}, line ")
    assert text.endswith(f"cannot be called with (events); define it as def {name}(self, events)")


def test_arguments_in_another_order_are_refused(events):
    text = message(Hooks(Signatures(), events).jet_mask, "turned", events.jets)
    assert text.endswith("cannot be called with (events, jets); define it as def turned(self, events, jets)")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("number", "Signatures.number: is not a method but a int; define it as def number(self, events)"),
        ("nothing", "Signatures.nothing: is not a method but a NoneType; define it as def nothing(self, events)"),
        ("absent", "Signatures has no method 'absent'; define it as def absent(self, events)"),
    ],
)
def test_what_is_no_method_is_refused(events, name, said):
    assert message(Hooks(Signatures(), events).event_mask, name) == said


def failing(error):
    def hook(_):
        raise error

    return hook


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'x'"), "; install it in this environment"),
        (
            FileNotFoundError(2, "No such file", "g.json"),
            "; relative paths start from the directory where drapes was started",
        ),
        (KeyError("x"), "KeyError: 'x' ("),
        (SystemExit(0), "it ends the program (SystemExit: 0) ("),
    ],
)
def test_whatever_a_hook_raises_is_one_line_of_it(events, error, said):
    text = message(hooks(events, golden_json=failing(error)).event_mask, "golden_json")
    assert text.startswith("Mine.golden_json (")
    assert said in text


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_a_hook_cannot_write_into_the_events(events):
    def weights(events):
        weight = ak.to_numpy(events.weight)
        weight *= 2
        return weight

    text = message(hooks(events, weights=weights).weights, "weights")
    assert text.endswith("; events are read-only: change a copy")
    assert events.weight.to_list() == [1, 1, 1, 1]


@pytest.mark.parametrize(("field", "name"), [("weight", "weight"), (("jets", "pt"), "jets")])
def test_a_mask_that_changes_the_events_is_refused(events, field, name):
    def trigger(events):
        events[field] = 2 * events[field]
        return PASS

    text = message(hooks(events, trigger=trigger).event_mask, "trigger")
    assert f"changes '{name}' of its input events" in text


@pytest.mark.parametrize("name", ["event_id", "run", "luminosityBlock", "event", "row"])
def test_corrections_that_change_an_identity_are_refused(events, name):
    def corrections(events):
        events[name] = events[name] + 1
        return events.jets

    text = message(hooks(events, corrections=corrections).jets, "corrections")
    assert text.startswith("Mine.corrections (")
    assert f"changes '{name}' of its input events; keep identities, labels and rows as in the file" in text


@pytest.mark.parametrize("name", ["label", "parent_id"])
def test_a_hook_that_adds_a_column_of_the_file_is_refused(events, name):
    def corrections(events):
        events[name] = events.event_id
        return events.jets

    text = message(hooks(events, corrections=corrections).jets, "corrections")
    assert f"adds '{name}' to the events, a name reserved for columns of the file; choose another name" in text


def test_corrections_that_return_the_jets_as_they_were_are_refused(events):
    def corrections(events):
        before = events.jets
        events["jets", "pt"] = 1.01 * before.pt
        return before

    text = message(hooks(events, corrections=corrections).jets, "corrections")
    assert text.endswith("changes 'jets' of the events but returns them as they were; return events.jets")


def test_a_mask_that_changes_the_jets_is_refused(events):
    def jet_id(_, jets):
        jets["pt"] = 2 * jets.pt
        return jets.pt > 500

    assert "changes its input jets" in message(hooks(events, jet_id=jet_id).jet_mask, "jet_id", events.jets)


def test_a_field_that_a_hook_adds_is_there_for_the_next(events):
    def trigger(events):
        events["leading"] = events.jets.pt[:, 0]
        events["jets", "central"] = abs(events.jets.eta) < 1
        return events.leading > 0

    def jet_id(events, jets):
        return events.jets.central & (jets.pt <= events.leading)

    ours = hooks(events, trigger=trigger, jet_id=jet_id)
    assert ours.event_mask("trigger")[0].all()
    assert ours.jet_mask("jet_id", events.jets).to_list() == (abs(events.jets.eta) < 1).to_list()
    assert "leading" not in events.fields


# ---- in a processor --------------------------------------------------------------------------------------------------

LOOSE = {"leading_pt": 0, "mass_range": (0, 13000), "abs_eta_max": 10, "undefined": -1.0}


def test_a_cut_of_ones_own_wants_booleans(events, tmp_path):
    source = (ROOT / "processors" / "dijets.py").read_text()
    assert source.count('cut("leading_pt", ') == 1
    mine = 'cut("mine", ak.to_numpy(ak.num(jets))[index])\n        cut("leading_pt", '
    (tmp_path / "mine.py").write_text(source.replace('cut("leading_pt", ', mine))
    text = message(load_processor("mine.py:Dijets", [tmp_path])(LOOSE).process, events)
    assert text.startswith(f"Dijets.process ({tmp_path}/mine.py, line ")
    assert "cut 'mine': integers, which select by index" in text


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """Dijet events with the identification of their jets as 0 and 1, as `FatJet_jetId & 1` is, in a folder."""
    folder = tmp_path_factory.mktemp("nano")
    columns = make_columns(300, labels=False)
    jet_id = np.random.default_rng(2).integers(0, 2, (300, 2))
    with uproot.recreate(folder / "events.root") as file:
        file["Events"] = {**columns, "jetId": ak.from_regular(ak.Array(jet_id))}
    write_feature_hdf5(folder / "events.h5", columns)
    return folder, jet_id


SOURCE = """
import numpy as np
import uproot
from drapes_hep.plugins import load_processor
Dijets = load_processor("{root}/processors/dijets.py:Dijets")


class Mine(Dijets):
    def jet_id(self, events, jets):
        chunk = events.metadata
        with uproot.open("{folder}/events.root:Events") as tree:
            column = tree["jetId"].array(entry_start=chunk["entrystart"], entry_stop=chunk["entrystop"])
        return {result}
"""


@pytest.mark.parametrize("kind", ["root", "h5"])
def test_integers_never_select_jets_by_index(nano, tmp_path, kind):
    folder, jet_id = nano
    runs = {}
    for name, result in (("ones", "column & 1"), ("flags", "(column & 1) == 1")):
        (tmp_path / f"{name}.py").write_text(SOURCE.format(root=ROOT, folder=folder, result=result))
        mine = load_processor(f"{name}.py:Mine", [tmp_path])(LOOSE)
        runs[name] = lambda mine=mine: run({"a": folder / f"events.{kind}"}, mine, chunksize=100)[0]
    text = message(runs["ones"])
    # the line of `def jet_id`, also where the class travels by value
    assert text.startswith(f"Mine.jet_id ({tmp_path}/ones.py, line 9): returned integers, which select by index")
    assert "(row 0 of " in text
    skim = runs["flags"]()["skim"].columns()
    np.testing.assert_array_equal(skim["event_id"] & 0xFFFFFFFF, np.flatnonzero(jet_id.all(axis=1)))
    np.testing.assert_allclose(skim["mjj"], invariant_mass(skim["jets"]), rtol=1e-12)


NAMED = """
from drapes_hep.plugins import load_processor
Dijets = load_processor("{root}/processors/dijets.py:Dijets")


class Mine(Dijets):
    def {name}(self, events):
        return events.weight
"""


@pytest.mark.parametrize(
    ("name", "meant"),
    [("triger", "trigger"), ("golden_JSON", "golden_json"), ("jetID", "jet_id"), ("weight", "weights")],
)
def test_a_misspelled_hook_is_refused(tmp_path, name, meant):
    (tmp_path / "mine.py").write_text(NAMED.format(root=ROOT, name=name))
    said = message(lambda: load_processor("mine.py:Mine", [tmp_path]))
    assert f"Mine defines '{name}', which nothing calls; did you mean '{meant}'?" in said


@pytest.mark.parametrize("name", ["weights_up", "ratio", "_triger", "trigger"])
def test_a_function_of_ones_own_is_none(tmp_path, name):
    (tmp_path / "mine.py").write_text(NAMED.format(root=ROOT, name=name))
    assert load_processor("mine.py:Mine", [tmp_path]).__name__ == "Mine"


# ---- a chunk of which nothing is left --------------------------------------------------------------------------------


def test_weights_of_no_events_are_no_weights(events):
    """All events of a file may be signal that is not injected."""
    assert len(hooks(events[:0], weights=lambda events: events.weight).weights("weights")) == 0
