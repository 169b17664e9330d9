r"""EPiC layers on packed sets: EPiC-GAN (arXiv:2301.08128), EPiC-FM (arXiv:2310.00049).

Members speak to each other only through a small vector :math:`g` of their set, so the cost is linear in the length.
With :math:`c` the embedded noise level and the condition, and :math:`\bar h`, :math:`\Sigma h` the mean and the sum of
a set's members, one layer is

.. math::
    g &\leftarrow g + G_2 \, \phi(G_1 (\bar h, \lambda \Sigma h, g, c)) \\
    h &\leftarrow h + W_2 \, \phi(W_1 (h, g, c)), \qquad \lambda = 0.01 .

The product :math:`W_1 (h, g, c)` is taken as :math:`W_h h + V (g, c)`, the second term once a set: no copies of the
set's vector are written for its members.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from drapes_hep.networks.embeddings import Embedding
from drapes_hep.networks.set_backbone import SetBackbone, SetLayout, add, dense, silu

__all__ = ["EPiC"]

_SUM_SCALE = 0.01
"""Factor on sums over members: of order one for sets of a hundred, as in EPiC-GAN."""


def _pooled(h: Tensor, layout: SetLayout) -> tuple[Tensor, Tensor]:
    total = layout.sum(h)
    return total / layout.lengths.clamp(min=1)[:, None], _SUM_SCALE * total


class _Layer(nn.Module):
    """One EPiC layer."""

    def __init__(self, width: int, global_width: int, context: int, generator: torch.Generator, gain: float) -> None:
        super().__init__()
        self.pool = dense(2 * width + global_width + context, width, generator)
        self.pool_out = dense(width, global_width, generator, math.sqrt(2.0) * gain)
        self.member = dense(width, width, generator)
        self.shared = dense(global_width + context, width, generator)
        self.member_out = dense(width, width, generator, math.sqrt(2.0) * gain)

    def forward(self, h: Tensor, g: Tensor, context: Tensor, layout: SetLayout) -> tuple[Tensor, Tensor]:
        g = add(g, self.pool_out(silu(self.pool(torch.cat([*_pooled(h, layout), g, context], dim=1)))))
        shared = layout.expand(self.shared(torch.cat([g, context], dim=1)))
        return add(h, self.member_out(silu(add(self.member(h), shared)))), g


class EPiC(SetBackbone):
    """EPiC layers on packed sets, noise level and condition in all of their perceptrons.

    Parameters
    ----------
    features : int
        Length ``d`` of a member.
    condition_features : int
        Length ``c`` of a set's condition, 0 for none.
    width : int
        Width of the members inside.
    global_width : int
        Length of a set's vector.
    depth : int
        Number of EPiC layers.
    embedding : {"cosine", "fourier", "sincos"}
        Embedding of the noise level.
    embedding_size : int
        Its length.
    seed : int
        Seed of the initial weights. The last layer starts at zero.

    Raises
    ------
    ValueError
        If a size is not positive or the embedding is unknown.
    """

    def __init__(
        self,
        features: int,
        condition_features: int = 0,
        *,
        width: int = 128,
        global_width: int = 16,
        depth: int = 6,
        embedding: Embedding = "sincos",
        embedding_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(
            features=features,
            condition_features=condition_features,
            width=width,
            global_width=global_width,
            depth=depth,
            embedding=embedding,
            embedding_size=embedding_size,
            seed=seed,
        )
        generator = torch.Generator().manual_seed(seed)
        context = embedding_size + condition_features
        self.first = dense(features, width, generator)
        self.first_shared = dense(context, width, generator)
        self.second = dense(width, width, generator, math.sqrt(2.0))
        self.pool = dense(2 * width + context, width, generator)
        self.pool_out = dense(width, global_width, generator, math.sqrt(2.0))
        gain = 1 / math.sqrt(depth)
        self.layers = nn.ModuleList(_Layer(width, global_width, context, generator, gain) for _ in range(depth))
        self.last = dense(width, features, generator, 0.0)

    def body(self, x: Tensor, context: Tensor, layout: SetLayout) -> Tensor:
        """Map members; see :class:`SetBackbone`."""
        h = self.second(silu(add(self.first(x), layout.expand(self.first_shared(context)))))
        g = self.pool_out(silu(self.pool(torch.cat([*_pooled(h, layout), context], dim=1))))
        for layer in self.layers:
            h, g = layer(h, g, context, layout)
        result: Tensor = self.last(silu(h))
        return result
