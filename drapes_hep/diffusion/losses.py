r"""Losses of denoisers.

EDM's (Karras et al. 2022, eq. 2 and 8) is :math:`\lambda |D - x_0|^2` with :math:`\lambda = 1 / c_{out}^2`. With
:math:`D = c_{skip} x + c_{out} F` that is :math:`|F - (x_0 - c_{skip} x) / c_{out}|^2`, which is what is computed: no
factor of it is large at any noise level. With the factors of flow matching the same line is
:math:`|F - (x_0 - n)|^2`. It is averaged over the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drapes_hep.diffusion.denoisers import PreconditionedDenoiser, expand_sets

__all__ = ["denoising_loss", "stratified"]


def denoising_loss(
    denoiser: PreconditionedDenoiser,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Return the loss of every row for given times and noise.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser
        The denoiser in training.
    x : Tensor, shape (n, d)
        Clean data.
    t : Tensor, shape (n,)
        Time of each row (each set).
    noise : Tensor, shape (n, d)
        Standard normal numbers.
    condition, offsets
        As for :meth:`~drapes_hep.diffusion.denoisers.Denoiser.forward`.

    Returns
    -------
    Tensor, shape (n,)
        Mean over the features of the squared, preconditioned error.
    """
    alpha, sigma = (expand_sets(part, offsets) for part in denoiser.schedule(t))
    noisy = alpha * x + sigma * noise
    c = denoiser.preconditioning(t, offsets)
    target = (x - c.skip * noisy) / c.out
    return (denoiser.raw(noisy, c, condition, offsets) - target).square().mean(dim=1)


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
