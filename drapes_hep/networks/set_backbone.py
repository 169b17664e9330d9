"""Sets of varying length, packed one after the other: which row belongs to which set, sums over sets, buckets.

Nothing is padded to the longest set of all. Where a kernel wants dense blocks (attention without a kernel for packed
sequences), sets of similar length share a block, and the padding within it is bounded.

This module also holds the few lines that all backbones for sets share: seeded dense layers, the check of the inputs.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drapes_hep.networks.embeddings import Embedding, make_embedding

__all__ = ["Block", "Buckets", "SetBackbone", "SetLayout", "add", "dense", "layout_of", "silu", "uncompiled"]

P = ParamSpec("P")
R = TypeVar("R")

_PADDING = {"cpu": 0.1, "cuda": 0.25}
"""Padding in a block, relative to its members. Measured on a CPU; on a GPU each further block costs launches."""

_SLACK = 64
"""Padding (rows) that a block may always have: less than the cost of a block of its own."""


class Block(NamedTuple):
    """Sets of similar length, as a dense block."""

    sets: int
    length: int
    mask: Tensor | None
    """True at members, shape (sets, 1, 1, length); None if there is no padding."""


class Buckets(NamedTuple):
    """All sets that have members, as dense blocks one after the other."""

    blocks: tuple[Block, ...]
    order: Tensor
    """The set at each place, shape (sets with members,)."""
    rows: Tensor
    """The packed row at each place of the blocks, shape (padded,); padding repeats the first member of its set."""
    back: Tensor
    """Where in the blocks each packed row is, shape (total,)."""


def _cuts(lengths: list[int], padding: float) -> list[int]:
    """Where blocks of rising lengths (above 0) begin, from the last block to the first."""
    cuts: list[int] = []
    end = len(lengths)
    while end > 0:
        top, begin, real = lengths[end - 1], end, 0
        while begin > 0:
            with_next = real + lengths[begin - 1]
            if top * (end - begin + 1) - with_next > max(_SLACK, padding * with_next):
                break
            begin, real = begin - 1, with_next
        cuts.append(begin)
        end = begin
    return cuts


@dataclass(frozen=True, eq=False)
class SetLayout:
    """Which rows belong to which set.

    Parameters
    ----------
    offsets : Tensor of int64, shape (sets + 1,)
        Set ``i`` is the rows ``offsets[i]:offsets[i + 1]``; it may be empty. Must not be changed afterwards.
    """

    offsets: Tensor

    @classmethod
    def of(cls, offsets: Tensor) -> SetLayout:
        """Return the layout of ``offsets``; the last one is kept, since a sampler asks for the same again and again."""
        layout: SetLayout = _layout(offsets)
        return layout

    @property
    def sets(self) -> int:
        """Number of sets."""
        return len(self.offsets) - 1

    @cached_property
    def total(self) -> int:
        """Number of members of all sets."""
        return int(self.offsets[-1])

    # what is made while sampling may be used while training: no inference tensors

    @cached_property
    def lengths(self) -> Tensor:
        """Members of each set, shape (sets,)."""
        with torch.inference_mode(False):
            return self.offsets.diff()

    @cached_property
    def index(self) -> Tensor:
        """The set of each row, shape (total,)."""
        with torch.inference_mode(False):
            sets = torch.arange(self.sets, device=self.offsets.device)
            return torch.repeat_interleave(sets, self.lengths, output_size=self.total)

    @cached_property
    def longest(self) -> int:
        """Members of the longest set, 0 without sets."""
        return int(self.lengths.max()) if self.sets else 0

    @cached_property
    def filled(self) -> Tensor:
        """The sets that have members, shape (m,)."""
        with torch.inference_mode(False):
            return self.lengths.nonzero()[:, 0]

    @cached_property
    def boundaries(self) -> Tensor:
        """Offsets without the empty sets, int32 of shape (m + 1,): what kernels for packed sequences take."""
        with torch.inference_mode(False):
            ends = self.offsets[1:].index_select(0, self.filled)
            return F.pad(ends, (1, 0)).to(torch.int32)

    @cached_property
    def buckets(self) -> Buckets:
        """Dense blocks of sets of similar length; made once, for all layers."""
        with torch.inference_mode(False):
            device = self.offsets.device
            lengths, order = torch.sort(self.lengths.cpu(), stable=True)
            empty = int((lengths == 0).sum())
            lengths, order = lengths[empty:], order[empty:]
            begins = self.offsets.cpu().index_select(0, order)
            blocks: list[Block] = []
            rows: list[Tensor] = []
            masks: list[Tensor] = []
            end, measured = len(lengths), lengths.tolist()
            for begin in _cuts(measured, _PADDING.get(device.type, 0.1)):
                top = measured[end - 1]
                place = torch.arange(top)
                mask = place < lengths[begin:end, None]
                first = begins[begin:end, None]
                rows.append(torch.where(mask, first + place, first).ravel())
                masks.append(mask.ravel())
                padded = measured[begin] != top
                blocks.append(Block(end - begin, top, mask[:, None, None, :].to(device) if padded else None))
                end = begin
            none = torch.zeros(0, dtype=torch.int64)
            row = torch.cat([none, *rows[::-1]])
            place = torch.cat([none.bool(), *masks[::-1]]).nonzero()[:, 0]
            back = torch.empty(self.total, dtype=torch.int64)
            back[row[place]] = place
            return Buckets(tuple(blocks[::-1]), order.to(device), row.to(device), back.to(device))

    def expand(self, value: Tensor) -> Tensor:
        """Repeat a value of each set, shape (sets, w), to its members, shape (total, w)."""
        return value.index_select(0, self.index)

    def sum(self, values: Tensor) -> Tensor:
        """Sum members of shape (total, w) over each set, shape (sets, w); the order is fixed on a CPU."""
        return self._sum(values).to(values.dtype)

    def mean(self, values: Tensor) -> Tensor:
        """Average members of shape (total, w) over each set, shape (sets, w); 0 for an empty set."""
        return (self._sum(values) / self.lengths.clamp(min=1)[:, None]).to(values.dtype)

    def _sum(self, values: Tensor) -> Tensor:
        # a sum of a hundred members has no digits left in half precision
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        return wide.new_zeros(self.sets, values.shape[1]).index_add(0, self.index, wide)


_LAST = threading.local()
"""The layout that each thread asked for last: batches in work side by side do not take it from each other."""


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Leave a function out of what ``torch.compile`` makes of its caller.

    ``torch.compiler.disable`` does so as well, but loads the compiler where it is applied: 1.6 s and 60 MB that a
    network which is not compiled does not need.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]
        return function(*args, **kwargs)

    return call


@uncompiled
def _layout(offsets: Tensor) -> SetLayout:
    last: SetLayout | None = getattr(_LAST, "layout", None)
    if last is not None and last.offsets.device == offsets.device and torch.equal(last.offsets, offsets):
        return last
    with torch.inference_mode(False):
        # a copy: the caller may write to his own
        layout = SetLayout(offsets.clone())
    # index and buckets now, outside of what is compiled
    _ = layout.total, layout.lengths, layout.index
    _LAST.layout = layout
    return layout


def layout_of(x: Tensor, noise: Tensor, condition: Tensor | None, offsets: Tensor, conditions: int) -> SetLayout:
    """Return the layout of a backbone's inputs, after checking that they fit each other.

    Parameters
    ----------
    x : Tensor, shape (total, d)
        Members.
    noise : Tensor, shape (sets,) or (1,)
        Noise level of each set, or of all.
    condition : Tensor, shape (sets, c), optional
        Condition of each set.
    offsets : Tensor of int64, shape (sets + 1,)
        Set ``i`` is the rows ``offsets[i]:offsets[i + 1]``.
    conditions : int
        Length ``c`` that the network was built for.

    Returns
    -------
    SetLayout

    Raises
    ------
    ValueError
        If they do not fit.
    """
    layout = SetLayout.of(offsets)
    if layout.total != len(x):
        raise ValueError(f"offsets end at {layout.total}, but there are {len(x)} members")
    if len(noise) not in (1, layout.sets):
        raise ValueError(f"{len(noise)} noise levels for {layout.sets} sets")
    shape = (layout.sets, 0) if condition is None else tuple(condition.shape)
    if shape != (layout.sets, conditions):
        raise ValueError(f"the condition must have shape {(layout.sets, conditions)}, got {shape}")
    return layout


class SetBackbone(nn.Module):
    """What all backbones for sets share: their arguments, and the inputs that they take.

    A backbone defines in :meth:`body` its output for members and contexts. A class that ``constituents.network`` can
    name takes ``(features, condition_features, *, seed, ...)``, of ``width``, ``depth``, ``heads``, ``tokens``,
    ``token_width`` and ``global_width`` those that it has a use for, and everything that it hands on here as a keyword:
    a model is rebuilt from :attr:`config`, without the seed.

    Parameters
    ----------
    embedding : {"cosine", "fourier", "sincos"}
        Embedding of the noise level.
    embedding_size : int
        Its length.
    seed : int
        Seed of random frequencies.
    arguments : int
        Whole numbers that build the same architecture again, ``features``, ``condition_features`` and ``width`` among
        them.

    Raises
    ------
    ValueError
        If a size is not positive (``condition_features`` and ``tokens`` may be 0), the heads do not divide the width,
        or the embedding is unknown.
    """

    def __init__(self, *, embedding: Embedding, embedding_size: int, seed: int, **arguments: int) -> None:
        super().__init__()
        least = {"condition_features": 0, "tokens": 0}
        low = [name for name, size in arguments.items() if size < least.get(name, 1)]
        if low:
            raise ValueError(f"sizes must be positive, condition_features and tokens not negative: see {low[0]}")
        width, heads = arguments["width"], arguments.get("heads", 1)
        if width % heads:
            raise ValueError(f"width {width} cannot be shared among {heads} heads")
        self._config = {**arguments, "embedding": embedding, "embedding_size": embedding_size}
        self.condition_features = arguments["condition_features"]
        self.embedding = make_embedding(embedding, embedding_size, seed=seed)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again (JSON)."""
        return dict(self._config)

    def body(self, x: Tensor, context: Tensor, layout: SetLayout) -> Tensor:
        """Map members (total, d) under the contexts of their sets, embedded noise and condition (sets, e + c)."""
        raise NotImplementedError

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None, *, offsets: Tensor) -> Tensor:
        """Evaluate the network.

        Parameters
        ----------
        x : Tensor, shape (total, d)
            Members of all sets, packed.
        noise : Tensor, shape (sets,) or (1,)
            Noise level of each set, or of all of them.
        condition : Tensor, shape (sets, c), optional
            Condition of each set; None where ``condition_features`` is 0.
        offsets : Tensor of int64, shape (sets + 1,)
            Set ``i`` is the rows ``offsets[i]:offsets[i + 1]``.

        Returns
        -------
        Tensor, shape (total, d)

        Raises
        ------
        ValueError
            If the inputs do not fit each other.
        """
        layout = layout_of(x, noise, condition, offsets, self.condition_features)
        # one noise level is embedded once
        context = self.embedding(noise).expand(layout.sets, -1)
        return self.body(x, context if condition is None else torch.cat([context, condition], dim=1), layout)


def dense(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """Build a linear layer with weights of variance ``gain^2 / inputs`` from a generator, and zero biases.

    Parameters
    ----------
    inputs, outputs : int
        Sizes.
    generator : Generator
        Source of the weights; the global one is left alone.
    gain : float
        Standard deviation of the outputs for independent inputs of unit variance; 0 for weights of zero.

    Returns
    -------
    Linear
    """
    # no values yet: the usual ones would come from the global generator
    layer: nn.Linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = gain * math.sqrt(3.0 / max(inputs, 1))
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer


def silu(x: Tensor) -> Tensor:
    """Apply SiLU, in place where no gradient is wanted: ``x`` must not be used again."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(x: Tensor, y: Tensor) -> Tensor:
    """Add, into ``x`` where no gradient is wanted: ``x`` must not be used again."""
    return x + y if torch.is_grad_enabled() else x.add_(y)
