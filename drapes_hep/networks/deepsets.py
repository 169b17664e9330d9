r"""DeepSets with attention, on packed sets: backbone of the diffusion of arXiv:2310.06897, after arXiv:2304.01266.

Noise level and condition are embedded by dense layers, :math:`c = \mathrm{MLP}(e(s), y)`, and met by the members once,

.. math:: h_0 = W_2 \phi(W_1 x) + V c, \qquad h = \phi(h_0),

then come layers of attention within a set, each followed by dense layers, both added to what they read,

.. math::
    h \leftarrow h + W_o \, \mathrm{attention}(W_{qkv} \, \mathrm{norm}(h)), \qquad
    h \leftarrow h + W_4 \, \phi(W_3 \, \mathrm{norm}(h)),

and a skip from :math:`h_0` to the output, :math:`F = W_6 \, \phi(W_5 \, \mathrm{norm}(h + h_0))`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from drapes_hep.networks.attention import packed_attention
from drapes_hep.networks.embeddings import Embedding
from drapes_hep.networks.set_backbone import SetBackbone, SetLayout, add, dense, silu

__all__ = ["AttentiveDeepSets"]


class _Layer(nn.Module):
    """Attention and dense layers, each added to what it reads."""

    def __init__(self, width: int, heads: int, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.dense_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = dense(width, 3 * width, generator)
        self.out = dense(width, width, generator, gain)
        self.first = dense(width, 2 * width, generator)
        self.second = dense(2 * width, width, generator, math.sqrt(2.0) * gain)

    def forward(self, h: Tensor, layout: SetLayout) -> Tensor:
        h = add(h, self.out(packed_attention(self.qkv(self.norm(h)), layout, self.heads)))
        return add(h, self.second(silu(self.first(self.dense_norm(h)))))


class AttentiveDeepSets(SetBackbone):
    """DeepSets with attention on packed sets, noise level and condition in the embedding of the members.

    Parameters
    ----------
    features : int
        Length ``d`` of a member.
    condition_features : int
        Length ``c`` of a set's condition, 0 for none.
    width : int
        Width of the members inside.
    depth : int
        Number of layers of attention.
    heads : int
        Heads of the attention, a divisor of the width.
    embedding : {"cosine", "fourier", "sincos"}
        Embedding of the noise level.
    embedding_size : int
        Its length.
    seed : int
        Seed of the initial weights and random frequencies. The last layer starts at zero.

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
        width: int = 64,
        depth: int = 6,
        heads: int = 4,
        embedding: Embedding = "fourier",
        embedding_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(
            features=features,
            condition_features=condition_features,
            width=width,
            depth=depth,
            heads=heads,
            embedding=embedding,
            embedding_size=embedding_size,
            seed=seed,
        )
        generator = torch.Generator().manual_seed(seed)
        half = math.sqrt(2.0)  # SiLU halves the variance
        self.condition_first = dense(embedding_size + condition_features, 2 * width, generator)
        self.condition_second = dense(2 * width, width, generator, half)
        self.shared = dense(width, width, generator, half)
        self.first = dense(features, width, generator)
        self.second = dense(width, width, generator, half)
        gain = 1 / math.sqrt(2 * depth)
        self.layers = nn.ModuleList(_Layer(width, heads, generator, gain) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = dense(width, 2 * width, generator)
        self.last = dense(2 * width, features, generator, 0.0)

    def body(self, x: Tensor, context: Tensor, layout: SetLayout) -> Tensor:
        """Map members; see :class:`SetBackbone`."""
        context = self.shared(silu(self.condition_second(silu(self.condition_first(context)))))
        skip = add(self.second(silu(self.first(x))), layout.expand(context))
        h = nn.functional.silu(skip)
        for layer in self.layers:
            h = layer(h, layout)
        result: Tensor = self.last(silu(self.output(self.norm(add(h, skip)))))
        return result
