"""Networks that turn an event of two sets, each with a row of its own, into one number: for classifiers.

The order of a set's members does not matter, nor that of the two sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drapes_hep.networks.attention import packed_attention, pool_attention
from drapes_hep.networks.set_backbone import SetLayout, dense
from drapes_hep.packed import Sets, take

__all__ = ["Dropout", "PairTransformer", "SetPairs", "TokenTransformer"]


@dataclass(frozen=True)
class SetPairs:
    """n events as the networks read them; event i has the sets and the rows 2 i and 2 i + 1.

    Attributes
    ----------
    sets : Sets
        2 n sets.
    rows : Tensor, shape (2 n, r)
        What goes with each set.
    """

    sets: Sets
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows) // 2

    def choose(self, events: Tensor) -> SetPairs:
        """Return some of the events, by their numbers, shape (k,)."""
        rows = (2 * events[:, None] + torch.arange(2, device=events.device)).flatten()
        return SetPairs(take(self.sets, rows), self.rows[rows])

    def to(self, device: str | torch.device) -> SetPairs:
        """Return them on a device."""
        return SetPairs(self.sets.to(device), self.rows.to(device))


class Dropout(nn.Module):
    """Dropout whose draws come from its ``generator``, on the device, which training needs."""

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop values in training alone."""
        if not self.training or self.fraction == 0:
            return x
        keep = torch.empty_like(x).bernoulli_(1.0 - self.fraction, generator=self.generator)
        return x * keep.div_(1.0 - self.fraction)


class _Perceptron(nn.Module):
    """Two layers after a normalisation, added to their input."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = dense(width, 2 * width, generator, math.sqrt(2.0))
        self.down = dense(2 * width, width, generator, 0.5)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.down(F.relu(self.up(self.norm(h))))
        return out


class _Block(nn.Module):
    """Transformer encoder block (arXiv:1706.03762, normalised first): self-attention inside each set, perceptron."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.inputs = dense(width, 3 * width, generator)
        self.output = dense(width, width, generator, 0.5)
        self.perceptron = _Perceptron(width, generator)

    def forward(self, h: Tensor, layout: SetLayout) -> Tensor:
        read = packed_attention(self.inputs(self.norm(h)), layout, self.heads)
        out: Tensor = self.perceptron(h + self.output(read))
        return out


class _Encoder(nn.Module):
    """Embedding and blocks: elements of sets to elements of sets, in whatever order they are."""

    def __init__(self, inputs: int, width: int, depth: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = dense(inputs, width, generator)
        self.blocks = nn.ModuleList(_Block(width, heads, generator) for _ in range(depth))

    def forward(self, x: Tensor, layout: SetLayout) -> Tensor:
        h: Tensor = self.embedding(x)
        for block in self.blocks:
            h = block(h, layout)
        return h


class _ClassToken(nn.Module):
    """Pooling by the cross-attention of a learnable class token (CaiT, arXiv:2103.17239): one vector per set."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.empty(width).uniform_(-1.0, 1.0, generator=generator))
        self.norm = nn.LayerNorm(width)
        self.query = dense(width, width, generator)
        self.inputs = dense(width, 2 * width, generator)
        self.output = dense(width, width, generator)
        self.perceptron = _Perceptron(width, generator)

    def forward(self, h: Tensor, layout: SetLayout) -> Tensor:
        k, v = self.inputs(self.norm(h)).chunk(2, dim=1)
        # a set without elements gathers nothing: the token alone
        q = self.query(self.token).expand(layout.sets, 1, -1)
        pooled = pool_attention(q, k, v, layout, self.heads)[:, 0]
        out: Tensor = self.perceptron(self.token + self.output(pooled))
        return out


class TokenTransformer(nn.Module):
    """Encoder and class token of one set, the same for both; their sum to one number per event. Rows are not read."""

    def __init__(self, width: int, depth: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = _Encoder(3, width, depth, heads, generator)
        self.pool = _ClassToken(width, heads, generator)
        self.norm = nn.LayerNorm(width)
        self.hidden = dense(width, width, generator, math.sqrt(2.0))
        self.last = dense(width, 1, generator, 0.1)

    def forward(self, batch: SetPairs) -> Tensor:
        """Compute one number per event, shape (n,)."""
        layout = SetLayout.of(batch.sets.offsets)
        pooled = self.pool(self.encoder(batch.sets.values, layout), layout)
        h = self.norm(pooled.view(len(batch), 2, -1).sum(1))
        out: Tensor = self.last(F.relu(self.hidden(h)))[:, 0]
        return out


class PairTransformer(nn.Module):
    """The members of both sets and the two rows as nodes of one set, pooled to one number per event."""

    def __init__(
        self, columns: int, width: int, depth: int, heads: int, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.members = _Encoder(3, width, depth, heads, generator)
        self.rows = _Encoder(columns, width, depth, heads, generator)
        self.norm = nn.LayerNorm(width)
        self.node = dense(width, width, generator, math.sqrt(2.0))
        self.hidden = dense(width, width, generator, math.sqrt(2.0))
        self.last = dense(width, 1, generator, 0.1)
        self.dropout = Dropout(dropout)

    def _hidden(self, layer: nn.Module, h: Tensor) -> Tensor:
        return F.leaky_relu(self.dropout(layer(h)))

    def forward(self, batch: SetPairs) -> Tensor:
        """Compute one number per event, shape (n,)."""
        layout = SetLayout.of(batch.sets.offsets)
        pairs = SetLayout.of(torch.arange(0, 2 * len(batch) + 1, 2, device=batch.rows.device))
        members = self._hidden(self.node, self.norm(self.members(batch.sets.values, layout)))
        rows = self._hidden(self.node, self.norm(self.rows(batch.rows, pairs)))
        # the mean over all N1 + N2 + 2 nodes: sums of a set's members, then of the two sets
        total = (layout.sum(members) + rows).view(len(batch), 2, -1).sum(1)
        nodes = (layout.lengths + 1).view(len(batch), 2).sum(1, keepdim=True)
        out: Tensor = self.last(self._hidden(self.hidden, total / nodes))[:, 0]
        return out
