r"""Residual multilayer perceptron for vectors of fixed length.

With :math:`z = (x, e(s), c)` the concatenation of the input, the embedded noise level and the condition,

.. math::
    h_0 = \phi(W_0 z + b_0), \qquad
    h_l = h_{l-1} + \phi(W_l h_{l-1} + b_l + V_l (e(s), c)), \qquad
    F = W_{L} h_{L-1} + b_{L},

over ``depth`` hidden layers (:math:`l = 0` is the first of them). :math:`V_l = 0` is the network of Drapes
(arXiv:2312.10130: condition concatenated to the input); ``inject="blocks"`` lets noise level and condition reach every
block. The noise level is embedded by cosines,

.. math:: e_k(s) = \cos(\pi k u), \quad u = (s - s_{lo}) / (s_{hi} - s_{lo}), \quad k = 1..K.

While sampling, all rows share one noise level: ``noise`` of one element is embedded once and becomes a bias, and
:math:`e(s)` costs nothing per row.

Several networks may be a stack: parameters, inputs and outputs then have a leading dimension, and a layer of all of
them is one product.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drapes_hep.networks.embeddings import CosineEmbedding

__all__ = ["CosineEmbedding", "ResidualMLP"]

Activation = Literal["silu", "relu", "hardswish"]
Inject = Literal["input", "blocks"]


def _uniform(rows: int, columns: int, generator: torch.Generator, gain: float = 1.0) -> nn.Parameter:
    # variance gain^2 / fan_in: uniform on +- gain sqrt(3 / fan_in)
    bound = gain * math.sqrt(3.0 / max(columns, 1))
    return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=generator))


_THIN = 16
"""Sides of a matrix below which a CPU's library computes one product otherwise than many."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b, of one network or of each of a stack.

    Parameters
    ----------
    x : Tensor, shape (n, i) or (networks, n, i)
    weight : Tensor, shape (o, i) or (networks, o, i)
    bias : Tensor, shape (o,) or (networks, o), optional

    Returns
    -------
    Tensor, shape (n, o) or (networks, n, o)
        Of a stack, on a CPU with one thread, bit for bit what each network alone has, gradients as well.
    """
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    if x.device.type == "cpu" and min(x.shape[1], *weight.shape[1:]) < _THIN:
        biases = [None] * len(x) if bias is None else bias.unbind()
        return torch.stack([F.linear(*parts) for parts in zip(x.unbind(), weight.unbind(), biases, strict=True)])
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


class ResidualMLP(nn.Module):
    """Residual MLP with the noise level and the condition concatenated to its input.

    Parameters
    ----------
    features : int
        Length ``d`` of the vectors.
    condition_features : int
        Length ``c`` of the condition, 0 for none.
    width : int
        Width of the hidden layers.
    depth : int
        Number of hidden layers.
    embedding : int
        Number of cosines that the noise level is embedded in.
    inject : {"input", "blocks"}
        Where noise level and condition enter: at the input only (Drapes), or at every block as well.
    activation : {"silu", "relu", "hardswish"}
        Non-linearity of the hidden layers.
    seed : int
        Seed of the initial weights. The last layer starts at zero, so that a preconditioned denoiser starts as the
        best linear one.

    Raises
    ------
    ValueError
        If a size is not positive or an option is unknown.
    """

    stacks = True
    """Whether several may be a stack: parameters and arguments with a leading dimension."""

    def __init__(
        self,
        features: int,
        condition_features: int = 0,
        *,
        width: int = 64,
        depth: int = 4,
        embedding: int = 16,
        inject: Inject = "input",
        activation: Activation = "silu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(features, width, depth, embedding) < 1 or condition_features < 0:
            raise ValueError("features, width, depth and embedding must be positive, condition_features not negative")
        if inject not in get_args(Inject) or activation not in get_args(Activation):
            raise ValueError(f"unknown inject={inject!r} or activation={activation!r}")
        self.features, self.condition_features = features, condition_features
        self.width, self.depth = width, depth
        self.inject, self.activation = inject, activation
        self.embedding = CosineEmbedding(embedding)
        generator = torch.Generator().manual_seed(seed)
        context = embedding + condition_features
        self.first = _uniform(width, features + context, generator)
        self.first_bias = nn.Parameter(torch.zeros(width))
        self.hidden = nn.ParameterList(
            # gain sqrt(2): SiLU and ReLU halve the variance
            _uniform(width, width, generator, math.sqrt(2.0))
            for _ in range(depth - 1)
        )
        self.hidden_bias = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(depth - 1))
        # one matrix for all blocks: one product instead of depth - 1 thin ones
        rows = (depth - 1) * width if inject == "blocks" else 0
        self.context = _uniform(rows, context, generator)
        self.last = nn.Parameter(torch.zeros(features, width))
        self.last_bias = nn.Parameter(torch.zeros(features))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again (JSON)."""
        return {
            "features": self.features,
            "condition_features": self.condition_features,
            "width": self.width,
            "depth": self.depth,
            "embedding": len(self.embedding.frequency),
            "inject": self.inject,
            "activation": self.activation,
        }

    def flops(self, shared_noise: bool) -> int:
        """Floating-point operations of the matrix products, a row.

        Parameters
        ----------
        shared_noise : bool
            One noise level for all rows: its products are done once, not per row, and do not count.

        Returns
        -------
        int
            2 x inputs x outputs, summed over the products.
        """
        context = self.condition_features + (0 if shared_noise else len(self.embedding.frequency))
        first = self.width * (self.features + context) + self.context.shape[0] * context
        return 2 * (first + (self.depth - 1) * self.width**2 + self.width * self.features)

    def _act(self, x: Tensor) -> Tensor:
        # in place where no gradient is wanted: the products leave their result in cache
        inplace = not torch.is_grad_enabled()
        if self.activation == "silu":
            return F.silu(x, inplace=inplace)
        if self.activation == "relu":
            return F.relu(x, inplace=inplace)
        return F.hardswish(x, inplace=inplace)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Parameters
        ----------
        x : Tensor, shape (n, d)
            Preconditioned input; of a stack (networks, n, d), as noise, condition and result.
        noise : Tensor, shape (n,) or (1,)
            Noise level of each row, or of all of them; of a stack that of each row.
        condition : Tensor, shape (n, c), optional
            Condition; None where ``condition_features`` is 0.

        Returns
        -------
        Tensor, shape (n, d)
        """
        d, k = self.features, len(self.embedding.frequency)
        embedded = self.embedding(noise)
        shared = x.ndim == 2 and len(noise) == 1 and len(x) != 1
        if shared:
            # columns of the noise become a bias; only x and the condition are multiplied per row
            z = x if condition is None else torch.cat([x, condition], dim=1)
            w = torch.cat([self.first[:, :d], self.first[:, d + k :]], dim=1)
            h = F.linear(z, w, torch.mv(self.first[:, d : d + k], embedded[0]) + self.first_bias)
        else:
            context = embedded if condition is None else torch.cat([embedded, condition], dim=-1)
            h = linear(torch.cat([x, context], dim=-1), self.first, self.first_bias)
        h = self._act(h)
        extra: tuple[Tensor, ...] = ()
        if self.inject == "blocks" and self.depth > 1:
            if shared:
                bias = torch.mv(self.context[:, :k], embedded[0])
                if condition is not None:
                    bias = torch.addmm(bias, condition, self.context[:, k:].t())
                extra = bias.expand(len(x), -1).chunk(self.depth - 1, dim=1)
            else:
                extra = linear(context, self.context).chunk(self.depth - 1, dim=-1)
        for layer, (weight, bias) in enumerate(zip(self.hidden, self.hidden_bias, strict=True)):
            u = linear(h, weight, bias)
            if extra:
                u = u + extra[layer] if torch.is_grad_enabled() else u.add_(extra[layer])
            u = self._act(u)
            # h itself is no longer wanted without a gradient
            h = h + u if torch.is_grad_enabled() else h.add_(u)
        return linear(h, self.last, self.last_bias)
