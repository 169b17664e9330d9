r"""Losses of denoisers.

EDM's (Karras et al. 2022, eq. 2 and 8) is :math:`\lambda |D - x_0|^2` with :math:`\lambda = 1 / c_{out}^2`. With
:math:`D = c_{skip} x + c_{out} F` that is :math:`|F - (x_0 - c_{skip} x) / c_{out}|^2`, which is what is computed: no
factor of it is large at any noise level. With the factors of flow matching the same line is
:math:`|F - (x_0 - n)|^2`. It is averaged over the features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from drapes_hep.diffusion.denoisers import PreconditionedDenoiser, expand_sets

__all__ = ["Noised", "denoising_loss", "noised", "stratified"]


class Noised(NamedTuple):
    """What the network is shown of noisy data, and what it is to return; no weights of it take part.

    Attributes
    ----------
    input : Tensor, shape (n, d)
        c_in times the noisy data.
    level : Tensor, shape (n,)
        c_noise of each row (each set).
    target : Tensor, shape (n, d)
    """

    input: Tensor
    level: Tensor
    target: Tensor


def noised(
    denoiser: PreconditionedDenoiser, x: Tensor, t: Tensor, noise: Tensor, offsets: Tensor | None = None
) -> Noised:
    """Add noise to data, and return input and target of the network.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser
    x : Tensor, shape (n, d)
        Clean data.
    t : Tensor, shape (n,)
        Time of each row (each set).
    noise : Tensor, shape (n, d)
        Standard normal numbers.
    offsets : Tensor, optional
        As for :meth:`~drapes_hep.diffusion.denoisers.Denoiser.forward`.

    Returns
    -------
    Noised
    """
    alpha, sigma = (expand_sets(part, offsets) for part in denoiser.schedule(t))
    noisy = alpha * x + sigma * noise
    c = denoiser.preconditioning(t, offsets)
    return Noised(c.input * noisy, c.noise, (x - c.skip * noisy) / c.out)


def denoising_loss(
    denoiser: PreconditionedDenoiser, data: Noised, condition: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Return the loss of every row.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser
        The denoiser in training.
    data : Noised
    condition, offsets
        As for :meth:`~drapes_hep.diffusion.denoisers.Denoiser.forward`.

    Returns
    -------
    Tensor, shape (n,)
        Mean over the features of the squared, preconditioned error.
    """
    return (denoiser.network(data.input, data.level, condition, offsets) - data.target).square().mean(dim=1)


def stratified(rows: int, strata: int, generator: torch.Generator) -> Tensor:
    """Draw one uniform number from each of ``strata`` equal intervals, again and again, for ``rows`` rows.

    Every run of ``strata`` rows then covers the noise levels evenly, which lowers the variance of the loss; each number
    alone is uniform once rows are in random order.

    Parameters
    ----------
    rows, strata : int
        How many numbers, and how many intervals of (0, 1).
    generator : torch.Generator
        Source of the random numbers, on the CPU.

    Returns
    -------
    Tensor of float32, shape (rows,)
        Within (0, 1), ends left out.
    """
    u = (torch.arange(rows, dtype=torch.float64) % strata + torch.rand(rows, generator=generator).double()) / strata
    return u.clamp(1e-6, 1 - 1e-6).float()
