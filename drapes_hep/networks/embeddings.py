r"""Embeddings of the noise level: a scalar to a vector that a network can read.

The scalar is a denoiser's :math:`c_{noise}`: :math:`\tfrac14 \ln(\sigma / \alpha)`, about -1.6 to 1.1, for EDM (Karras
et al. 2022), the time in (0, 1) for flow matching (arXiv:2210.02747). The default span holds both.

.. math::
    \text{cosine:} \;& \cos(\pi k u), \quad u = (s - s_{lo}) / (s_{hi} - s_{lo}), \quad k = 1..K \\
    \text{sincos:} \;& \sin, \cos(\pi 2^k (u - \tfrac12)), \quad k = 0..K/2 - 1 \\
    \text{fourier:} \;& \sin, \cos(2 \pi f_k s), \quad f_k \sim N(0, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

__all__ = ["CosineEmbedding", "Embedding", "FourierEmbedding", "SineCosineEmbedding", "make_embedding"]

Embedding = Literal["cosine", "fourier", "sincos"]
"""Names of the embeddings."""

SPAN = (-2.0, 2.0)


class CosineEmbedding(nn.Module):
    r"""Embed a scalar as :math:`\cos(\pi k u)`, ``k = 1 .. size``, ``u`` the scalar mapped from ``span`` to (0, 1).

    Parameters
    ----------
    size : int
        Number of cosines.
    span : pair of float
        Range over which the embedding is one-to-one. The default holds ln(sigma)/4 for sigma from 0.0003 to 3000.
    """

    frequency: Tensor

    def __init__(self, size: int = 16, span: tuple[float, float] = SPAN) -> None:
        super().__init__()
        self.low, self.high = span
        scale = math.pi / (self.high - self.low)
        self.register_buffer("frequency", scale * torch.arange(1, size + 1, dtype=torch.float32), persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        """Embed ``noise`` of shape (..., n) as (..., n, size)."""
        return torch.cos((noise - self.low)[..., None] * self.frequency)


class SineCosineEmbedding(nn.Module):
    r"""Embed a scalar as sines and cosines of frequencies that double, as EPiC-FM does (arXiv:2310.00049).

    The lowest sine is one-to-one over ``span``. For the default span and 16 numbers the highest frequency is that of
    EPiC-FM, :math:`32 \pi`.

    Parameters
    ----------
    size : int
        Number of sines and cosines together; even.
    span : pair of float
        Range over which the embedding is one-to-one.

    Raises
    ------
    ValueError
        If ``size`` is odd.
    """

    frequency: Tensor

    def __init__(self, size: int = 16, span: tuple[float, float] = SPAN) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"sines and cosines come in pairs: size must be even, got {size}")
        self.middle = (span[0] + span[1]) / 2
        doubling = 2.0 ** torch.arange(size // 2, dtype=torch.float32)
        self.register_buffer("frequency", math.pi / (span[1] - span[0]) * doubling, persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        """Embed ``noise`` of shape (n,) as (n, size)."""
        angle = (noise - self.middle)[:, None] * self.frequency
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


class FourierEmbedding(nn.Module):
    r"""Embed a scalar as sines and cosines of fixed random frequencies (random Fourier features).

    The frequencies are saved with the weights: a model that is rebuilt from its card does not have the seed.

    Parameters
    ----------
    size : int
        Number of sines and cosines together; even.
    scale : float
        Standard deviation of the frequencies, in periods per unit of the scalar. At 1 a sampler's steps, far smaller
        than the unit, see a smooth embedding.
    seed : int
        Seed of the frequencies.

    Raises
    ------
    ValueError
        If ``size`` is odd.
    """

    frequency: Tensor

    def __init__(self, size: int = 16, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"sines and cosines come in pairs: size must be even, got {size}")
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequency", 2 * math.pi * scale * torch.randn(size // 2, generator=generator))

    def forward(self, noise: Tensor) -> Tensor:
        """Embed ``noise`` of shape (n,) as (n, size)."""
        angle = noise[:, None] * self.frequency
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


def make_embedding(name: Embedding, size: int, *, seed: int = 0) -> nn.Module:
    """Build an embedding by its name.

    Parameters
    ----------
    name : {"cosine", "fourier", "sincos"}
        Which one.
    size : int
        Length of the vector.
    seed : int
        Seed of random frequencies.

    Returns
    -------
    Module
        Maps (n,) to (n, size).

    Raises
    ------
    ValueError
        If the name is unknown, or the size not positive or odd where it must be even.
    """
    if name not in get_args(Embedding):
        raise ValueError(f"unknown embedding={name!r}, available: {', '.join(get_args(Embedding))}")
    if size < 1:
        raise ValueError(f"the size of an embedding must be positive, got {size}")
    if name == "fourier":
        return FourierEmbedding(size, seed=seed)
    plain: Callable[[int], nn.Module] = CosineEmbedding if name == "cosine" else SineCosineEmbedding
    return plain(size)
