"""Ragged arrays to torch and back: every bit, every boundary, and the low-level variables of constituents."""

from __future__ import annotations

import itertools
import math

import awkward as ak
import h5py
import numpy as np
import pytest
import torch
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st
from references import from_low_level, unpack, unpack_nested

from drapes_hep.events.ragged import (
    KINEMATICS,
    Sets,
    leading,
    low_level,
    pack,
    pack_nested,
    take,
)
from drapes_hep.events.schema import nested, offsets_of, ragged
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.packed import bounded


def lists(lengths, dtype=np.float32, fields=KINEMATICS, seed=0):
    """Random records in lists of these lengths, every bit pattern but NaN among them."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return ak.zip({name: ragged(rng.normal(size=offsets[-1]).astype(dtype), offsets) for name in fields})


def of_events(jets, lengths, dtype=np.float32, seed=0):
    """Jets a event, and constituents a jet."""
    flat = lists(lengths, dtype, seed=seed)
    outer = np.concatenate([[0], np.cumsum(jets, dtype=np.int64)]).astype(np.int64)
    inner = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return ak.zip({name: nested(ak.to_numpy(ak.flatten(flat[name])), inner, outer) for name in KINEMATICS})


def assert_identical(a, b):
    """The same type and the same bits; ak.array_equal alone takes NaN for unequal and -0 for 0."""
    assert ak.type(a) == ak.type(b)
    for name in a.fields:
        x, y = (ak.to_packed(array[name]) for array in (a, b))
        while not isinstance(x.layout, ak.contents.NumpyArray):
            assert ak.to_list(ak.num(x, axis=1)) == ak.to_list(ak.num(y, axis=1))
            x, y = ak.flatten(x), ak.flatten(y)
        assert ak.to_numpy(x).tobytes() == ak.to_numpy(y).tobytes()


# ---- exact both ways -------------------------------------------------------------------------------------------------

SHAPES = [[3, 1, 2], [0, 3, 0, 0, 1], [0, 0], [], [1]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("lengths", SHAPES, ids=str)
def test_lists_come_back_bit_by_bit(lengths, dtype):
    array = lists(lengths, dtype)
    sets = pack(array, KINEMATICS)
    assert sets.values.numpy().dtype == dtype
    assert sets.offsets.tolist() == np.cumsum([0, *lengths]).tolist()
    assert_identical(unpack(sets, KINEMATICS), array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("jets", "lengths"),
    [([2, 2], [3, 1, 2, 5]), ([0, 2, 0, 1], [0, 4, 0]), ([0, 0], []), ([], []), ([1], [0]), ([3], [1, 1, 1])],
    ids=str,
)
def test_jets_of_events_come_back_bit_by_bit(jets, lengths, dtype):
    array = of_events(jets, lengths, dtype)
    sets, events = pack_nested(array, KINEMATICS)
    assert sets.lengths.tolist() == list(lengths)
    assert events.diff().tolist() == list(jets)
    assert_identical(unpack_nested(sets, events, KINEMATICS), array)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.lists(st.floats(width=32), max_size=4), max_size=3), max_size=5))
def test_any_numbers_in_any_shape_come_back(content):
    """NaN, infinities, negative zero and subnormals included."""
    array = ak.values_astype(ak.from_iter(content), np.float32)
    # a list without any element has no type: give it one
    form = ak.types.from_datashape("var * var * float32", highlevel=False)
    array = ak.zip({"pt": ak.enforce_type(array, form)}, depth_limit=3)
    sets, events = pack_nested(array, ("pt",))
    assert_identical(unpack_nested(sets, events, ("pt",)), array)


def test_not_a_number_keeps_its_payload():
    bits = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], dtype=np.uint32)
    array = ak.zip({"pt": ragged(bits.view(np.float32), np.array([0, 1, 1, 4]))})
    sets = pack(array, ("pt",))
    assert sets.values.numpy()[:, 0].view(np.uint32).tolist() == bits.tolist()
    assert_identical(unpack(sets, ("pt",)), array)


VIEWS = {
    "slice": lambda a: a[2:5],
    "step": lambda a: a[::2],
    "reversed": lambda a: a[::-1],
    "mask": lambda a: a[[True, False, True, True, False, True]],
    "index": lambda a: a[[5, 0, 0, 3]],
    "inner": lambda a: a[:, 1:],
    "inner mask": lambda a: a[a.pt > 0],
    "sorted": lambda a: a[ak.argsort(a.pt, axis=1)],
    "joined": lambda a: ak.concatenate([a[3:], a[:2]]),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_are_packed_as_they_read(view):
    array = view(lists([3, 0, 2, 4, 1, 2], np.float64))
    sets = pack(array, KINEMATICS)
    for i, members in enumerate(array):
        rows = sets.values[sets.offsets[i] : sets.offsets[i + 1]]
        assert rows.tolist() == [[members.pt[j], members.eta[j], members.phi[j]] for j in range(len(members))]
    assert len(sets) == len(array)


def test_a_view_whose_first_offset_is_not_zero():
    content = np.arange(10.0)
    array = ak.zip({"pt": ak.Array(ak.contents.ListOffsetArray(
        ak.index.Index64(np.array([4, 6, 6, 9])), ak.contents.NumpyArray(content)
    ))})  # fmt: skip
    sets = pack(array, ("pt",))
    assert sets.offsets.tolist() == [0, 2, 2, 5]
    assert sets.values[:, 0].tolist() == [4, 5, 6, 7, 8]


def test_slices_of_events():
    array = of_events([2, 1, 0, 3], [3, 0, 2, 1, 4, 2])
    for part in (array[1:], array[::-1], array[:, :1], array[array.pt > 0]):
        sets, events = pack_nested(part, KINEMATICS)
        assert ak.to_list(unpack_nested(sets, events, KINEMATICS)) == ak.to_list(part)


def test_pairs_of_jets_are_regular_lists_too():
    array = of_events([2, 2], [3, 1, 2, 5])
    sets, events = pack_nested(ak.to_regular(array, axis=1), KINEMATICS)
    assert events.tolist() == [0, 2, 4]
    assert ak.to_list(unpack_nested(sets, events, KINEMATICS)) == ak.to_list(array)


def test_fields_are_columns_in_the_order_asked_for():
    array = lists([2, 1])
    assert torch.equal(pack(array, ("phi", "pt")).values, pack(array, KINEMATICS).values[:, [2, 0]])


def test_packing_copies():
    """A change of the tensors must not reach the array, nor one of an array made from them the tensors."""
    array = lists([2, 1])
    before = ak.to_list(array)
    sets = pack(array, KINEMATICS)
    back = unpack(sets, KINEMATICS)
    sets.values[:] = 0
    assert ak.to_list(array) == ak.to_list(back) == before


@pytest.mark.parametrize(
    ("array", "fields", "message"),
    [
        (lists([2, 1]), (), "name the fields"),
        (lists([2, 1]), "pt", "name the fields"),
        (of_events([1], [2]), ("pt",), "expected 1 levels of lists"),
        (ak.Array([[{"pt": 1.0}, {"pt": None}]]), ("pt",), "no value missing"),
        (ak.Array([None, [{"pt": 1.0}]]), ("pt",), "no value missing"),
        (ak.Array([[{"pt": "x"}]]), ("pt",), "lists of numbers"),
        (ak.Array([[{"pt": 1.0, "q": 1}]]), ("pt", "q"), "'q' is int64, 'pt' is float64"),
        (ak.Array([{"a": [1.0, 2.0], "b": [1.0]}]), ("a", "b"), "'b' has lists of other lengths than 'a'"),
    ],
    ids=["no field", "text", "too deep", "missing", "missing list", "words", "types", "lengths"],
)
def test_what_cannot_be_packed(array, fields, message):
    with pytest.raises(ValueError, match=message):
        pack(array, fields)


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (torch.zeros(3), [0, 3], "shape"),
        (torch.zeros(3, 1), [0, 2], "rise from 0 to the 3 rows"),
        (torch.zeros(3, 1), [1, 3], "rise from 0"),
        (torch.zeros(3, 1), [0, 3, 2, 3], "rise from 0"),
        (torch.zeros(0, 1), [], "shape"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(values, offsets, message):
    with pytest.raises(ValueError, match=message):
        Sets(values, torch.tensor(offsets, dtype=torch.int64))


def test_offsets_of_another_type_are_refused():
    with pytest.raises(ValueError, match="int64"):
        Sets(torch.zeros(3, 1), torch.tensor([0, 3], dtype=torch.int32))


# ---- choosing sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [[0, 1, 2, 3], [3, 0, 0], [1], [], [-1, -4], [2, 2, 2]], ids=str)
def test_take_is_what_awkward_takes(index):
    array = lists([3, 0, 2, 1])
    chosen = take(pack(array, KINEMATICS), torch.tensor(index, dtype=torch.int64))
    assert_identical(unpack(chosen, KINEMATICS), ak.to_packed(array[np.array(index, dtype=np.int64)]))


def test_take_by_mask():
    array = lists([3, 0, 2, 1])
    mask = np.array([True, True, False, True])
    assert_identical(unpack(take(pack(array, KINEMATICS), torch.from_numpy(mask)), KINEMATICS), array[mask])


@pytest.mark.parametrize("index", [torch.tensor([4]), torch.tensor([-5]), torch.tensor([True, False])])
def test_take_beyond_the_sets(index):
    with pytest.raises(IndexError):
        take(pack(lists([3, 0, 2, 1]), KINEMATICS), index)


@pytest.mark.parametrize(
    ("lengths", "members", "most", "edges"),
    [
        ([3, 3, 3, 3], 6, None, [0, 2, 4]),
        ([3, 3, 3, 3], 7, 1, [0, 1, 2, 3, 4]),
        ([2, 9, 2, 2], 5, None, [0, 1, 2, 4]),
        ([0, 0, 5, 0], 5, None, [0, 4]),
        ([0, 0, 0], 5, 2, [0, 2, 3]),
        ([], 5, None, [0]),
    ],
)
def test_sets_are_cut_into_bounded_parts(lengths, members, most, edges):
    assert bounded(torch.as_tensor(offsets_of(lengths)), members, most) == edges


def test_batches_of_a_permutation_hold_every_set_once():
    sets = pack(lists(np.random.default_rng(0).integers(0, 9, 100)), KINEMATICS)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    batches = [take(sets, part) for part in order.split(32)]
    joined = Sets(
        torch.cat([batch.values for batch in batches]),
        torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat([batch.lengths for batch in batches]).cumsum(0)]),
    )
    back = take(joined, torch.argsort(order))
    assert torch.equal(back.values, sets.values)
    assert torch.equal(back.offsets, sets.offsets)


def test_index_tells_the_set_of_each_element():
    assert pack(lists([3, 0, 2]), KINEMATICS).index.tolist() == [0, 0, 0, 2, 2]


@pytest.mark.parametrize("most", [None, 1, 2, 3, 100])
def test_leading_is_what_awkward_sorts(most):
    array = lists(np.random.default_rng(0).integers(0, 6, 50), seed=3)
    expected = array[ak.argsort(array.pt, axis=1, ascending=False, stable=True)][:, :most]
    assert_identical(unpack(leading(pack(array, KINEMATICS), most), KINEMATICS), ak.to_packed(expected))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_of_equal_momenta_the_other_columns_decide_which_are_kept(order):
    pt, tag = np.array([1.0, 2.0, 1.0, 1.0])[list(order)], np.array([0.0, 1.0, 2.0, 3.0])[list(order)]
    # a second set before it: ties are no affair of neighbours
    array = ak.zip({"pt": ak.Array([[1.0], pt]), "tag": ak.Array([[9.0], tag])})
    assert leading(pack(array, ("pt", "tag"))).values[:, 1].tolist() == [9, 1, 0, 2, 3]
    assert leading(pack(array, ("pt", "tag")), 3).values[:, 1].tolist() == [9, 1, 0, 2]


def test_leading_keeps_at_least_one():
    with pytest.raises(ValueError, match="at least 1"):
        leading(pack(lists([2]), KINEMATICS), 0)


# ---- low-level variables ---------------------------------------------------------------------------------------------


def test_low_level_variables_of_a_known_jet():
    constituents = Sets(
        torch.tensor([[30.0, 0.5, 3.1], [60.0, 0.7, -3.1], [10.0, 1.0, 1.0]], dtype=torch.float64),
        torch.tensor([0, 2, 2, 3]),
    )
    jets = torch.tensor([[120.0, 0.6, 3.1], [1.0, 0.0, 0.0], [20.0, -1.0, -1.0]], dtype=torch.float64)
    low = low_level(constituents, jets)
    expected = [[0.5, 0.1, 2 * math.pi - 6.2], [0.25, -0.1, 0.0], [0.5, 2.0, 2.0]]
    torch.testing.assert_close(low.values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    assert low.offsets.tolist() == [0, 2, 2, 3]


def random_jets(n, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    jets = torch.rand(n, 4, generator=g, dtype=torch.float64)
    jets = torch.stack([500 + 1000 * jets[:, 0], 4 * jets[:, 1] - 2, 2 * math.pi * jets[:, 2] - math.pi, jets[:, 3]], 1)
    lengths = torch.randint(0, 20, (n,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.rand(int(offsets[-1]), 3, generator=g, dtype=torch.float64)
    index = torch.repeat_interleave(lengths)
    phi = jets[index, 2] + 1.6 * values[:, 2] - 0.8
    phi = torch.atan2(torch.sin(phi), torch.cos(phi))
    values = torch.stack([100 * values[:, 0], jets[index, 1] + 1.6 * values[:, 1] - 0.8, phi], 1)
    return Sets(values.to(dtype), offsets), jets.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-15), (torch.float32, 1e-6)])
def test_the_inverse_gives_the_constituents_back(dtype, tolerance):
    constituents, jets = random_jets(300, dtype)
    constituents = leading(constituents)
    back = from_low_level(low_level(constituents, jets), jets)
    assert back.values.dtype == dtype
    assert torch.equal(back.offsets, constituents.offsets)
    pt, eta = ((back.values - constituents.values)[:, i] for i in range(2))
    assert (pt / constituents.values[:, 0]).abs().max() < tolerance
    assert eta.abs().max() < tolerance
    # -pi and pi are one direction
    chord = 2 * torch.sin((back.values - constituents.values)[:, 2].double() / 2)
    assert chord.abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("most", [None, 3])
def test_what_is_given_is_not_changed(dtype, most):
    constituents, jets = random_jets(50, dtype)
    constituents = leading(constituents)
    values, axes = constituents.values.clone(), jets.clone()
    low = low_level(constituents, jets, most)
    before = low.values.clone()
    from_low_level(low, jets)
    assert torch.equal(constituents.values, values)
    assert torch.equal(low.values, before)
    assert torch.equal(jets, axes)


def test_turning_an_event_changes_nothing():
    constituents, jets = random_jets(100)
    plain = low_level(constituents, jets)
    turned, turned_jets = constituents.values.clone(), jets.clone()
    for phi in (turned[:, 2], turned_jets[:, 2]):
        phi += 2.5
        phi[phi > math.pi] -= 2 * math.pi
    again = low_level(Sets(turned, constituents.offsets), turned_jets)
    torch.testing.assert_close(again.values, plain.values, rtol=0, atol=1e-14)


def test_azimuth_differences_are_wrapped():
    constituents, jets = random_jets(200)
    assert ((constituents.values[:, 2] - jets[constituents.index, 2]).abs() > math.pi).any()
    assert low_level(constituents, jets).values[:, 2].abs().max() <= 0.8 + 1e-12


def test_most_keeps_the_leading_constituents():
    constituents, jets = random_jets(100)
    every, few = low_level(constituents, jets), low_level(constituents, jets, 5)
    assert torch.equal(few.lengths, every.lengths.clamp(max=5))
    for i in (0, 17, 99):
        start, size = every.offsets[i], few.lengths[i]
        assert torch.equal(take(few, torch.tensor([i])).values, every.values[start : start + size])


@pytest.mark.parametrize(
    ("jets", "message"),
    [
        (torch.ones(3, 3), r"shape \(2, 3\)"),
        (torch.ones(2, 2), r"shape \(2, 3\)"),
        (torch.tensor([[1.0, 0, 0], [0.0, 0, 0]]), "transverse momentum above 0"),
        (torch.tensor([[1.0, 0, 0], [math.nan, 0, 0]]), "transverse momentum above 0"),
    ],
)
def test_jets_that_do_not_fit(jets, message):
    with pytest.raises(ValueError, match=message):
        low_level(pack(lists([2, 1]), KINEMATICS), jets)


def test_low_level_variables_have_three_columns():
    with pytest.raises(ValueError, match="three columns"):
        low_level(pack(lists([2]), ("pt",)), torch.ones(1, 3))


# ---- real and simulated events ---------------------------------------------------------------------------------------


def padded(array, fields, size):
    """The reference: a dense tensor with a mask, as one would do without offsets."""
    columns = [ak.to_numpy(ak.fill_none(ak.pad_none(array[f], size, axis=1, clip=True), np.nan)) for f in fields]
    values = torch.from_numpy(np.stack(columns, axis=2))
    return values, ~values[:, :, 0].isnan()


def test_packed_equals_padded_where_padding_holds_all():
    array = lists(np.random.default_rng(2).integers(0, 30, 64))
    values, mask = padded(array, KINEMATICS, 30)
    sets = pack(array, KINEMATICS)
    assert torch.equal(values[mask], sets.values)
    assert torch.equal(mask.sum(1), sets.lengths)


def test_real_particle_flow_candidates(data_dir):
    """CMS jets of 10 events, by their candidates' indices."""
    with uproot.open(data_dir / "cms" / "pfnano.root") as file:
        tree = file["Events"]
        names = ("FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx", "nFatJet", "FatJet_pt", "FatJet_eta", "FatJet_phi")
        arrays = tree.arrays([*names, "PFCands_pt", "PFCands_eta", "PFCands_phi"])
    link = arrays["FatJetPFCands_pFCandsIdx"]
    counts = [ak.sum(arrays["FatJetPFCands_jetIdx"] == i, axis=1) for i in range(ak.max(arrays["nFatJet"]))]
    lengths = np.stack([ak.to_numpy(count) for count in counts], axis=1)
    assert ak.all(arrays["FatJetPFCands_jetIdx"][:, 1:] >= arrays["FatJetPFCands_jetIdx"][:, :-1])
    has = np.arange(lengths.shape[1]) < ak.to_numpy(arrays["nFatJet"])[:, None]
    flat = {name: ak.flatten(arrays[f"PFCands_{name}"][link]) for name in KINEMATICS}
    jets = ak.zip({name: ak.unflatten(values, lengths[has]) for name, values in flat.items()})
    events = ak.unflatten(jets, has.sum(axis=1))
    sets, outer = pack_nested(events, KINEMATICS)
    assert_identical(unpack_nested(sets, outer, KINEMATICS), events)
    assert len(outer) == 11
    assert sets.values.dtype == torch.float32
    axes = torch.from_numpy(np.stack([ak.to_numpy(ak.flatten(arrays[f"FatJet_{n}"])) for n in KINEMATICS], 1))
    low = low_level(sets, axes)
    # constituents lie inside their jets; the anti-kT radius is 0.8
    assert low.values[:, 1:].norm(dim=1).max() < 1.0
    # a jet's transverse momentum is no more than the scalar sum of its (unweighted, uncalibrated) constituents'
    total = torch.zeros(len(low)).index_add(0, low.index, low.values[:, 0])
    assert (total > 0.8).all()


def test_simulated_constituents_through_a_skim(data_dir, tmp_path):
    events = 500
    with h5py.File(data_dir / "simulated" / "qcd_constituents.h5") as file:
        offsets = file["const_offset"][: 2 * events + 1]
        jets = file["jets"][:events]
        content = {name: file[f"const_{name}"][: offsets[-1]] for name in ("pt", "deta", "dphi")}
    axis = np.repeat(jets.reshape(-1, 4), np.diff(offsets), axis=0)
    pt = content["pt"]
    eta, phi = axis[:, 1] + content["deta"].astype(np.float32), axis[:, 2] + content["dphi"].astype(np.float32)
    outer = np.arange(0, 2 * events + 1, 2)
    constituents = ak.zip({n: nested(v, offsets, outer) for n, v in zip(KINEMATICS, (pt, eta, phi), strict=True)})
    fields = {n: ragged(jets[:, :, i].ravel(), outer) for i, n in enumerate(("pt", "eta", "phi", "mass"))}
    table = ak.zip({**fields, "constituents": constituents}, depth_limit=2)
    write_skim(tmp_path / "skim.parquet", {"event_id": np.arange(events), "jets": table})
    read = read_skim(tmp_path / "skim.parquet", ("jets",))["jets"]
    sets, outer_offsets = pack_nested(read["constituents"], KINEMATICS)
    assert torch.equal(sets.offsets, torch.from_numpy(offsets))
    assert torch.equal(outer_offsets, torch.from_numpy(outer))
    assert sets.values.numpy().tobytes() == np.stack([pt, eta, phi], axis=1).tobytes()
    low = low_level(sets, pack(read, ("pt", "eta", "phi")).values)
    expected = np.stack([content["deta"], content["dphi"]], axis=1).astype(np.float32)
    # momenta are rounded in the file: of equal ones, position decides
    expected = expected[np.lexsort((phi, eta, -pt, np.repeat(np.arange(2 * events), np.diff(offsets))))]
    np.testing.assert_allclose(low.values[:, 1:].numpy(), expected, atol=2e-6)
