"""Pairs of jets as arrays and packed sets, and random numbers that belong to their constituents."""

from __future__ import annotations

from collections.abc import Callable

import awkward as ak
import numpy as np
import numpy.typing as npt
import torch

from drapes_hep.events.ragged import KINEMATICS, low_level, pack_nested
from drapes_hep.events.schema import offsets_of, places_of
from drapes_hep.events.types import AwkwardArray
from drapes_hep.packed import Sets, take
from drapes_hep.rng import event_uniforms, stage_seed

__all__ = ["member_numbers", "pack_jets", "refill"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def pack_jets(jets: AwkwardArray) -> tuple[FloatArray, Sets]:
    """Turn pairs of jets with constituents into arrays; the jet of larger pT comes first.

    Parameters
    ----------
    jets : awkward.Array
        n lists of two jets with pt, eta, phi, mass and ``constituents`` (pt, eta, phi); GeV, rad.

    Returns
    -------
    array, shape (n, 2, 5)
        pt, eta, phi, mass, number of constituents.
    Sets
        2 n sets, jets of an event one after the other: ln(pt fraction), delta eta, delta phi; float64.

    Raises
    ------
    ValueError
        If the jets have no constituents, or are not two an event.
    """
    if "constituents" not in ak.fields(jets):
        raise ValueError("the jets carry no constituents")
    fields = [ak.to_numpy(ak.flatten(jets[name])).astype(np.float64) for name in ("pt", "eta", "phi", "mass")]
    if len(fields[0]) != 2 * len(jets):
        raise ValueError("every event needs two jets")
    sets, _ = pack_nested(jets["constituents"], KINEMATICS)
    sets = Sets(sets.values.double(), sets.offsets)
    columns = np.stack([*fields, sets.lengths.numpy().astype(np.float64)], axis=1)
    relative = low_level(sets, torch.as_tensor(columns[:, :3]))
    values = relative.values
    values[:, 0] = torch.log(values[:, 0])
    pairs = columns.reshape(-1, 2, 5)
    swap = pairs[:, 1, 0] > pairs[:, 0, 0]
    if swap.any():
        order = np.arange(2 * len(pairs)).reshape(-1, 2)
        order[swap] = order[swap, ::-1]
        relative = take(relative, torch.as_tensor(order.ravel()))
        pairs = np.where(swap[:, None, None], pairs[:, ::-1], pairs)
    return pairs, relative


def member_numbers(
    draw: Callable[..., FloatArray],
    seed: int,
    purpose: str,
    key: IntArray,
    of_jet: IntArray,
    place: IntArray,
    size: int,
) -> FloatArray:
    """Draw numbers that belong to constituents: to their event, their jet and their place in it."""
    out = np.empty((len(of_jet), size))
    for jet in (0, 1):
        mine = of_jet % 2 == jet
        out[mine] = draw(stage_seed(seed, purpose, jet), key[of_jet[mine] // 2], place[mine], size=size)
    return out


def refill(start: Sets, lengths: IntArray, key: IntArray, seed: int) -> Sets:
    """Return parents' constituents in the numbers that are wanted.

    Parameters
    ----------
    start : Sets
        2 n sets by falling momentum.
    lengths : array of int, shape (2 n,)
        How many each is to have.
    key : array of int, shape (n,)
        Whose random numbers decide.
    seed : int

    Returns
    -------
    Sets
        Too many: the softest are left out. Too few: members chosen at random stand twice; noise parts them. A set
        without any member is filled with its axis, at the momentum of an even share.
    """
    have = start.lengths.numpy()
    offsets = offsets_of(lengths)
    of_jet, place = np.repeat(np.arange(len(lengths)), lengths), places_of(lengths)
    more = place >= have[of_jet]
    row = start.offsets.numpy()[of_jet] + place
    which = of_jet[more]
    uniform = member_numbers(event_uniforms, seed, "refill", key, which, place[more], 1)[:, 0]
    row[more] = start.offsets.numpy()[which] + np.floor(uniform * have[which]).astype(np.int64)
    empty = have[of_jet] == 0
    values = np.zeros((len(row), 3))
    values[~empty] = start.values.numpy()[row[~empty]]
    values[empty, 0] = -np.log(lengths[of_jet[empty]])
    return Sets(torch.as_tensor(values), torch.as_tensor(offsets))
