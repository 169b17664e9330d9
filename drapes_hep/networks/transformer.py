r"""Transformer encoder without order, on packed sets: PC-Droid (arXiv:2307.06836).

There is no positional encoding. The embedded noise level and the condition become one vector
by a small perceptron, :math:`c = \mathrm{MLP}(e(s), y)`, and every block of pre-norm type is given it,

.. math::
    h &\leftarrow h + W_o \, \mathrm{attention}(W_{qkv} \, \mathrm{norm}(h)) \\
    h &\leftarrow h + W_2 \, \phi(W_1 \, \mathrm{norm}(h) + V c + b) .

:math:`W_1 u + V c` is the concatenation :math:`(u, c)` of PC-Droid in front of the feed-forward, but :math:`V c` is
computed once a set, not once a member, and :math:`(u, c)` is never written down.

With ``tokens`` above 0, members do not attend to each other: the tokens of a set read the members, pass a feed-forward
of their own, and the members read the tokens back, at a cost that is linear in the length of the set. Tokens, and what
they and the members tell each other, are ``token_width`` wide (the fast variant of PC-Droid: 64 beside members of 256).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from drapes_hep.networks.attention import packed_attention, pool_attention, token_attention
from drapes_hep.networks.embeddings import Embedding
from drapes_hep.networks.set_backbone import SetBackbone, SetLayout, add, dense, silu

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

    def __init__(self, width: int, token_width: int, heads: int, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.token_norm, self.read_norm = (nn.LayerNorm(token_width) for _ in range(2))
        self.qkv = dense(width, 3 * token_width, generator)
        self.query = dense(token_width, token_width, generator)
        self.key_value = dense(token_width, 2 * token_width, generator)
        self.out = dense(token_width, width, generator, gain)
        self.token_out = dense(token_width, token_width, generator, gain)
        self.feed, self.token_feed = (_FeedForward(size, generator, gain) for size in (width, token_width))

    def forward(
        self, h: Tensor, tokens: Tensor, bias: Tensor, token_bias: Tensor, layout: SetLayout
    ) -> tuple[Tensor, Tensor]:
        # the members' keys and values are for the tokens, their queries read the tokens back
        query, key, value = self.qkv(self.norm(h)).chunk(3, dim=1)
        read = pool_attention(self.query(self.token_norm(tokens)), key, value, layout, self.heads)
        tokens = add(tokens, self.token_out(read))
        tokens = add(tokens, self.token_feed(tokens, token_bias[:, None]))
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
    token_width : int
        Width of the tokens, a multiple of ``heads``; of no meaning without tokens.
    embedding : {"cosine", "fourier", "sincos"}
        Embedding of the noise level.
    embedding_size : int
        Its length.
    seed : int
        Seed of the initial weights. The last layer starts at zero.

    Raises
    ------
    ValueError
        If a size is not positive, the heads do not divide the widths, or the embedding is unknown.
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
        token_width: int = 64,
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
            token_width=token_width,
            embedding=embedding,
            embedding_size=embedding_size,
            seed=seed,
        )
        if tokens and token_width % heads:
            raise ValueError(f"token_width {token_width} cannot be shared among {heads} heads")
        self.tokens = tokens
        # what the context gives the input and each block, of the members and of the tokens
        sizes = [width] + depth * [2 * width]
        self._parts = sizes + ([token_width] + depth * [2 * token_width] if tokens else [])
        generator = torch.Generator().manual_seed(seed)
        self.condition_first = dense(embedding_size + condition_features, 2 * condition_width, generator)
        self.condition_second = dense(2 * condition_width, condition_width, generator, math.sqrt(2.0))
        self.first = dense(features, width, generator)
        # one matrix for the input and all blocks: one product instead of many thin ones
        self.context = dense(condition_width, sum(self._parts), generator)
        # two additions a block: the sum keeps unit variance
        gain = 1 / math.sqrt(2 * depth)
        self.blocks = nn.ModuleList(
            _TokenBlock(width, token_width, heads, generator, gain) if tokens else _Block(width, heads, generator, gain)
            for _ in range(depth)
        )
        if tokens:
            self.token = nn.Parameter(torch.randn(tokens, token_width, generator=generator))
        self.norm = nn.LayerNorm(width)
        self.last = dense(width, features, generator, 0.0)

    def body(self, x: Tensor, context: Tensor, layout: SetLayout) -> Tensor:
        """Map members; see :class:`SetBackbone`."""
        context = self.context(silu(self.condition_second(silu(self.condition_first(context)))))
        parts = torch.split(context, self._parts, dim=1)
        start, *biases = parts[: len(self.blocks) + 1]
        h = add(self.first(x), layout.expand(start))
        if self.tokens:
            token_start, *token_biases = parts[len(self.blocks) + 1 :]
            tokens = self.token + token_start[:, None]
            for block, bias, token_bias in zip(self.blocks, biases, token_biases, strict=True):
                h, tokens = block(h, tokens, bias, token_bias, layout)
        else:
            for block, bias in zip(self.blocks, biases, strict=True):
                h = block(h, bias, layout)
        result: Tensor = self.last(self.norm(h))
        return result
