r"""Transformer encoder without order, on packed sets: PC-Droid (arXiv:2307.06836).

No member knows its place: there is no positional encoding. The embedded noise level and the condition become one vector
by a small perceptron, :math:`c = \mathrm{MLP}(e(s), y)`, and every block of pre-norm type is given it,

.. math::
    h &\leftarrow h + W_o \, \mathrm{attention}(W_{qkv} \, \mathrm{norm}(h)) \\
    h &\leftarrow h + W_2 \, \phi(W_1 \, \mathrm{norm}(h) + V c + b) .

:math:`W_1 u + V c` is the concatenation :math:`(u, c)` of PC-Droid in front of the feed-forward, but :math:`V c` is
computed once a set, not once a member, and :math:`(u, c)` is never written down.

With ``tokens`` above 0, members do not attend to each other: the tokens of a set read the members, pass a feed-forward
of their own, and the members read the tokens back, at a cost that is linear in the length of the set (the fast variant
of PC-Droid, whose class tokens are narrower than the members; here both have one width).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from drapes_hep.networks.attention import packed_attention, pool_attention, token_attention
from drapes_hep.networks.embeddings import Embedding
from drapes_hep.networks.sets import SetBackbone, SetLayout, add, dense, silu

__all__ = ["SetTransformer"]


class _FeedForward(nn.Module):
    """Pre-norm feed-forward of twice the width, with a bias that depends on the context."""

    def __init__(self, width: int, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = dense(width, 2 * width, generator)
        # SiLU halves the variance
        self.second = dense(2 * width, width, generator, math.sqrt(2.0) * gain)

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        update: Tensor = self.second(silu(add(self.first(self.norm(h)), bias)))
        return update


class _Block(nn.Module):
    """Members attend to each other."""

    def __init__(self, width: int, heads: int, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = dense(width, 3 * width, generator)
        self.out = dense(width, width, generator, gain)
        self.feed = _FeedForward(width, generator, gain)

    def forward(self, h: Tensor, bias: Tensor, layout: SetLayout) -> Tensor:
        h = add(h, self.out(packed_attention(self.qkv(self.norm(h)), layout, self.heads)))
        return add(h, self.feed(h, layout.expand(bias)))


class _TokenBlock(nn.Module):
    """Tokens read the members, members read the tokens."""

    def __init__(self, width: int, heads: int, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.token_norm, self.read_norm = (nn.LayerNorm(width) for _ in range(3))
        self.qkv = dense(width, 3 * width, generator)
        self.query = dense(width, width, generator)
        self.key_value = dense(width, 2 * width, generator)
        self.out, self.token_out = (dense(width, width, generator, gain) for _ in range(2))
        self.feed, self.token_feed = (_FeedForward(width, generator, gain) for _ in range(2))

    def forward(self, h: Tensor, tokens: Tensor, bias: Tensor, layout: SetLayout) -> tuple[Tensor, Tensor]:
        # the members' keys and values are for the tokens, their queries read the tokens back
        query, key, value = self.qkv(self.norm(h)).chunk(3, dim=1)
        read = pool_attention(self.query(self.token_norm(tokens)), key, value, layout, self.heads)
        tokens = add(tokens, self.token_out(read))
        tokens = add(tokens, self.token_feed(tokens, bias[:, None]))
        key, value = self.key_value(self.read_norm(tokens)).chunk(2, dim=2)
        h = add(h, self.out(token_attention(query, key, value, layout, self.heads)))
        return add(h, self.feed(h, layout.expand(bias))), tokens


class SetTransformer(SetBackbone):
    """Transformer encoder on packed sets, with noise level and condition given to every block.

    Parameters
    ----------
    features : int
        Length ``d`` of a member.
    condition_features : int
        Length ``c`` of a set's condition, 0 for none.
    width : int
        Width of the members inside.
    depth : int
        Number of blocks.
    heads : int
        Heads of the attention, a divisor of the width.
    condition_width : int
        Width that noise level and condition are embedded to together.
    tokens : int
        Class tokens of each set; 0 lets members attend to each other.
    embedding : {"cosine", "fourier", "sincos"}
        Embedding of the noise level.
    embedding_size : int
        Its length.
    seed : int
        Seed of the initial weights. The last layer starts at zero.

    Raises
    ------
    ValueError
        If a size is not positive, the heads do not divide the width, or the embedding is unknown.
    """

    def __init__(
        self,
        features: int,
        condition_features: int = 0,
        *,
        width: int = 256,
        depth: int = 3,
        heads: int = 16,
        condition_width: int = 64,
        tokens: int = 0,
        embedding: Embedding = "cosine",
        embedding_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(
            features=features,
            condition_features=condition_features,
            width=width,
            depth=depth,
            heads=heads,
            condition_width=condition_width,
            tokens=tokens,
            embedding=embedding,
            embedding_size=embedding_size,
            seed=seed,
        )
        self.tokens = tokens
        generator = torch.Generator().manual_seed(seed)
        self.condition_first = dense(embedding_size + condition_features, 2 * condition_width, generator)
        self.condition_second = dense(2 * condition_width, condition_width, generator, math.sqrt(2.0))
        self.first = dense(features, width, generator)
        # one matrix for the input and all blocks: one product instead of many thin ones
        self.context = dense(condition_width, width + depth * 2 * width, generator)
        # two additions a block: the sum keeps unit variance
        gain = 1 / math.sqrt(2 * depth)
        kind = _TokenBlock if tokens else _Block
        self.blocks = nn.ModuleList(kind(width, heads, generator, gain) for _ in range(depth))
        if tokens:
            self.token = nn.Parameter(torch.randn(tokens, width, generator=generator))
        self.norm = nn.LayerNorm(width)
        self.last = dense(width, features, generator, 0.0)

    def body(self, x: Tensor, context: Tensor, layout: SetLayout) -> Tensor:
        """Map members; see :class:`SetBackbone`."""
        context = self.context(silu(self.condition_second(silu(self.condition_first(context)))))
        width = self.first.out_features
        start, *biases = torch.split(context, [width] + [2 * width] * len(self.blocks), dim=1)
        h = add(self.first(x), layout.expand(start))
        if self.tokens:
            tokens = self.token + start[:, None]
            for block, bias in zip(self.blocks, biases, strict=True):
                h, tokens = block(h, tokens, bias, layout)
        else:
            for block, bias in zip(self.blocks, biases, strict=True):
                h = block(h, bias, layout)
        result: Tensor = self.last(self.norm(h))
        return result
