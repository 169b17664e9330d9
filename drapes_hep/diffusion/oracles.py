r"""Exact denoisers of data whose density is known: what networks, losses and samplers are tested against.

For :math:`x_0 \sim N(\mu, C)` and :math:`x_t = \alpha x_0 + \sigma n`, with :math:`S = \alpha^2 C + \sigma^2`,

.. math:: E[x_0 | x_t] = \mu + \alpha C S^{-1} (x_t - \alpha\mu).

For a mixture the means of the components are averaged with their posterior weights
:math:`\propto w_k N(x_t; \alpha\mu_k, S_k)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drapes_hep.diffusion.denoisers import Denoiser
from drapes_hep.diffusion.schedules import Schedule

__all__ = ["GaussianDenoiser", "GaussianMixtureDenoiser"]


class GaussianMixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of Gaussians; it has no condition and ignores one.

    Parameters
    ----------
    weights : Tensor, shape (k,)
        Weight of each component; normalised here.
    means : Tensor, shape (k, d)
        Their means.
    covariances : Tensor, shape (k, d, d)
        Their covariance matrices.
    schedule : Schedule, optional
        Default EDM's.
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule | None = None) -> None:
        super().__init__(schedule)
        values, vectors = torch.linalg.eigh(covariances.double())
        self.register_buffer("weights", weights.double() / weights.double().sum())
        self.register_buffer("means", means.double())
        # in the eigenbasis of C the matrix S is diagonal at every t: no inverse is needed
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor | None = None,  # noqa: ARG002 - the interface of Denoiser
        offsets: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return the exact mean; see :meth:`Denoiser.forward`."""
        alpha, sigma = (part.double()[:, None, None] for part in self.schedule(t))
        total = alpha**2 * self.values + sigma**2  # (n or 1, k, d)
        delta = torch.einsum("nkd,kde->nke", x.double()[:, None] - alpha * self.means, self.vectors)
        log = torch.log(self.weights) - 0.5 * (delta**2 / total + torch.log(total)).sum(-1)
        posterior = torch.softmax(log, dim=1)
        mean = self.means + torch.einsum("nke,kde->nkd", alpha * self.values / total * delta, self.vectors)
        return torch.einsum("nk,nkd->nd", posterior, mean).to(x.dtype)


class GaussianDenoiser(GaussianMixtureDenoiser):
    """The exact denoiser of one Gaussian.

    Parameters
    ----------
    mean : Tensor, shape (d,)
        Its mean.
    covariance : Tensor, shape (d, d)
        Its covariance matrix.
    schedule : Schedule, optional
        Default EDM's.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, schedule: Schedule | None = None) -> None:
        super().__init__(torch.ones(1), mean[None], covariance[None], schedule)
