"""Ragged arrays to torch, without padding: packed values and the offsets of the sets in them.

A set is one list of a ragged array, such as the constituents of one jet. All sets are one after the other in one tensor
``values`` of shape (total, d); ``offsets`` of shape (n + 1,) says where each begins. What is copied is copied bit by
bit. Jets of events are doubly ragged: they become sets, and the jets' own offsets tell the events.

The low-level variables of a jet's constituents (:data:`LLV`) are those of arXiv:2312.10130: momenta as fractions of
the jet's, directions relative to the jet's axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import awkward as ak
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drapes_hep.events.types import AwkwardArray
from drapes_hep.packed import Sets, runs, take

__all__ = [
    "KINEMATICS",
    "LLV",
    "Sets",
    "leading",
    "low_level",
    "pack",
    "pack_nested",
    "take",
]

KINEMATICS = ("pt", "eta", "phi")
"""Fields that the low-level variables are made of; a constituent's mass is not part of them."""

LLV = ("pt_fraction", "delta_eta", "delta_phi")
"""Columns of :func:`low_level`: pt_i / pt_jet, eta_i - eta_jet, phi_i - phi_jet in [-pi, pi]."""


IntArray = npt.NDArray[np.int64]


def _lists(array: AwkwardArray, depth: int) -> tuple[list[IntArray], npt.NDArray[np.generic]]:
    """Offsets from the outside in, each from 0, and the flat content."""
    layout = ak.to_packed(ak.from_regular(ak.without_parameters(ak.materialize(array)), axis=None)).layout
    offsets = []
    for _ in range(depth):
        if not isinstance(layout, ak.contents.ListOffsetArray):
            break
        offsets.append(np.asarray(layout.offsets.data).astype(np.int64))
        layout = layout.content
    if len(offsets) != depth or not isinstance(layout, (ak.contents.NumpyArray, ak.contents.EmptyArray)):
        raise ValueError(f"expected {depth} levels of lists of numbers with no value missing, got {ak.type(array)}")
    content = layout.to_NumpyArray(np.float64) if isinstance(layout, ak.contents.EmptyArray) else layout
    return offsets, np.asarray(content.data)


def _pack(array: AwkwardArray, fields: Sequence[str], depth: int) -> tuple[list[IntArray], Tensor]:
    if isinstance(fields, str) or not fields:
        raise ValueError("name the fields to pack, e.g. ('pt', 'eta', 'phi')")
    values: npt.NDArray[np.generic] | None = None
    offsets: list[IntArray] = []
    for i, field in enumerate(fields):
        field_offsets, content = _lists(array[field], depth)
        if values is None:
            offsets, values = field_offsets, np.empty((len(content), len(fields)), dtype=content.dtype)
        elif not all(np.array_equal(a, b) for a, b in zip(field_offsets, offsets, strict=True)):
            raise ValueError(f"field '{field}' has lists of other lengths than '{fields[0]}'")
        elif content.dtype != values.dtype:
            raise ValueError(f"field '{field}' is {content.dtype}, '{fields[0]}' is {values.dtype}: make them alike")
        values[:, i] = content
    return offsets, torch.from_numpy(values)


def pack(array: AwkwardArray, fields: Sequence[str]) -> Sets:
    """Return a singly ragged array of records as sets.

    Parameters
    ----------
    array : awkward.Array
        n lists of records; views, slices and lazily read arrays too.
    fields : sequence of str
        Fields that become columns, in this order; all of one type of number.

    Returns
    -------
    Sets
        n sets in the array's order, values in the fields' type.

    Raises
    ------
    ValueError
        Missing values, fields of unlike types or lengths, another depth.
    """
    (offsets,), values = _pack(array, fields, 1)
    return Sets(values, torch.from_numpy(offsets))


def pack_nested(array: AwkwardArray, fields: Sequence[str]) -> tuple[Sets, Tensor]:
    """Return a doubly ragged array of records, such as the constituents of jets of events, as sets.

    Parameters
    ----------
    array : awkward.Array
        n lists (events) of lists (jets) of records.
    fields : sequence of str
        As for :func:`pack`.

    Returns
    -------
    sets : Sets
        One a jet.
    events : Tensor of int64, shape (n + 1,)
        Event i has the sets ``events[i]`` to ``events[i + 1]``.

    Raises
    ------
    ValueError
        As :func:`pack`.
    """
    (events, offsets), values = _pack(array, fields, 2)
    return Sets(values, torch.from_numpy(offsets)), torch.from_numpy(events)


def leading(sets: Sets, limit: int | None = None) -> Sets:
    """Order each set by falling first column and keep the leading elements.

    Parameters
    ----------
    sets : Sets
        First column: transverse momentum, or its fraction.
    limit : int, optional
        Elements that a set keeps at most; all by default.

    Returns
    -------
    Sets
        Elements of equal momentum are ordered by their other columns, so that neither what is kept nor what follows
        depends on the order that they came in; sets that are ordered already are not copied.

    Raises
    ------
    ValueError
        ``limit`` below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if bool(_misplaced(sets).any()):
        # the least important key first; sorts are stable
        order = torch.arange(len(sets.values), device=sets.values.device)
        for i in reversed(range(sets.values.shape[1])):
            order = order[torch.argsort(sets.values[order, i], descending=i == 0, stable=True)]
        order = order[torch.argsort(sets.index[order], stable=True)]
        sets = Sets(sets.values[order], sets.offsets)
    if limit is None or bool((sets.lengths <= limit).all()):
        return sets
    rows, offsets = runs(sets.offsets[:-1], sets.lengths.clamp(max=limit))
    return Sets(sets.values[rows], offsets)


def _misplaced(sets: Sets) -> Tensor:
    """Return which elements stand before one that belongs before them: by momentum or, if equal, by the rest.

    Shape (total - 1,).
    """
    before, after = sets.values[:-1], sets.values[1:]
    wrong, equal = after[:, 0] > before[:, 0], after[:, 0] == before[:, 0]
    for i in range(1, sets.values.shape[1]):
        wrong |= equal & (after[:, i] < before[:, i])
        equal &= after[:, i] == before[:, i]
    first = sets.offsets[(sets.offsets > 0) & (sets.offsets < len(sets.values))]
    wrong[first - 1] = False  # from one set to the next
    return wrong


def _wrapped(angle: Tensor) -> Tensor:
    """Angle in [-pi, pi]; one that is there already keeps every bit."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))


def _relative(sets: Sets, jets: Tensor, in_place: bool) -> Sets:
    """Divide by the jets' pt and subtract their direction, a column at a time."""
    if sets.values.shape[1] != 3:
        raise ValueError(f"expected three columns, got {sets.values.shape[1]}")
    if jets.ndim != 2 or len(jets) != len(sets) or jets.shape[1] < 3:
        raise ValueError(f"jets must have shape ({len(sets)}, 3), got {tuple(jets.shape)}")
    if not bool((jets[:, 0] > 0).all()):
        raise ValueError("every jet needs a transverse momentum above 0")
    lengths, total = sets.lengths, len(sets.values)
    out = sets.values if in_place else torch.empty_like(sets.values)
    for i in range(3):
        column = sets.values[:, i].to(torch.float64, copy=True)
        jet = torch.repeat_interleave(jets[:, i].double(), lengths, output_size=total)
        if i > 0:
            column.sub_(jet)
        else:
            column.div_(jet)
        out[:, i] = _wrapped(column) if i == 2 else column
    return Sets(out, sets.offsets)


def low_level(constituents: Sets, jets: Tensor, limit: int | None = None) -> Sets:
    """Compute the low-level variables of jets' constituents.

    Parameters
    ----------
    constituents : Sets
        One set per jet, columns :data:`KINEMATICS`: pt (GeV), eta, phi (rad).
    jets : Tensor, shape (n, 3) or more columns
        The jets' pt (GeV, above 0), eta, phi; further columns are not read.
    limit : int, optional
        Constituents that a jet keeps at most, the leading ones in pt; all by default.

    Returns
    -------
    Sets
        Columns :data:`LLV`, by falling pt; in the constituents' type, computed in double precision.

    Raises
    ------
    ValueError
        Shapes that do not fit, a jet without transverse momentum, ``limit`` below 1.
    """
    cut_off = leading(constituents, limit)
    return _relative(cut_off, jets, in_place=cut_off is not constituents)
