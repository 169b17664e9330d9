"""Sets of varying length, packed: the values of all sets one after the other, and where each set begins.

This is the form in which jets' constituents are passed to networks, losses and samplers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Sets", "bounded", "runs", "take"]


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets of varying length, one after the other.

    Parameters
    ----------
    values : Tensor, shape (total, d)
        Elements of all sets.
    offsets : Tensor of int64, shape (n + 1,)
        Where each set begins; starts at 0, never falls, ends at ``total``.

    Raises
    ------
    ValueError
        Shapes or offsets that do not fit each other.
    """

    values: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        values, offsets = self.values, self.offsets
        if values.ndim != 2:
            raise ValueError(f"values must have shape (total, d), got {tuple(values.shape)}")
        if offsets.ndim != 1 or len(offsets) < 1 or offsets.dtype != torch.int64:
            raise ValueError(f"offsets must be int64 of shape (n + 1,), got {offsets.dtype} {tuple(offsets.shape)}")
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(values) or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"offsets must rise from 0 to the {len(values)} rows of values")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Elements of each set, int64 of shape (n,)."""
        return self.offsets.diff()

    @property
    def index(self) -> Tensor:
        """Which set each element belongs to, int64 of shape (total,)."""
        return torch.repeat_interleave(self.lengths, output_size=len(self.values))

    def to(self, device: str | torch.device) -> Sets:
        """Move to a device."""
        return Sets(self.values.to(device), self.offsets.to(device))


def runs(first: Tensor, lengths: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """List the rows of runs.

    Parameters
    ----------
    first, lengths : Tensor of int64, shape (n,)
        Where each run begins, and how many rows it has.
    total : int, optional
        Sum of the lengths; on a GPU it saves waiting for it.

    Returns
    -------
    rows : Tensor of int64, shape (total,)
    offsets : Tensor of int64, shape (n + 1,)
        Where each run begins among them.
    """
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    total = int(offsets[-1]) if total is None else total
    rows = torch.repeat_interleave(first - offsets[:-1], lengths, output_size=total)
    return rows.add_(torch.arange(total, device=rows.device)), offsets


def bounded(offsets: Tensor, members: int, largest: int | None = None) -> list[int]:
    """Cut sets, in their order, into parts of a bounded size.

    Parameters
    ----------
    offsets : Tensor of int64, shape (n + 1,)
        Where each set begins.
    members : int
        Most members of a part; a set with more is a part by itself.
    largest : int, optional
        Most sets of a part.

    Returns
    -------
    list of int
        Rising edges from 0 to n: part ``i`` is the sets ``edges[i]:edges[i + 1]``.
    """
    starts, edges = offsets.cpu(), [0]
    while edges[-1] < len(starts) - 1:
        first = edges[-1]
        last = max(int(torch.searchsorted(starts, starts[first] + members, right=True)) - 1, first + 1)
        edges.append(last if largest is None else min(last, first + largest))
    return edges


def take(sets: Sets, index: Tensor) -> Sets:
    """Choose sets, as a batch of a training does.

    Parameters
    ----------
    sets : Sets
        n sets.
    index : Tensor of int64, shape (m,), or of bool, shape (n,)
        Which, in this order; repeats are allowed, negative ones count from the end.

    Returns
    -------
    Sets
        m sets; the elements of each in their order.

    Raises
    ------
    IndexError
        An index beyond the sets, or a mask of another length.
    """
    count = len(sets)
    if index.dtype == torch.bool:
        if index.shape != (count,):
            raise IndexError(f"a mask of shape {tuple(index.shape)} for {count} sets")
        index = torch.nonzero(index)[:, 0]
    index = index.to(device=sets.offsets.device, dtype=torch.int64)
    if bool(((index < -count) | (index >= count)).any()):
        raise IndexError(f"an index is out of range for {count} sets")
    index = torch.where(index < 0, index + count, index)
    rows, offsets = runs(sets.offsets[index], sets.lengths[index])
    return Sets(sets.values[rows], offsets)
