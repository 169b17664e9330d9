r"""What tests compare with: exact denoisers, a second minimiser, the way back from tensors to arrays.

*Denoisers.* For :math:`x_0 \sim N(\mu, C)` and :math:`x_t = \alpha x_0 + \sigma n`, with
:math:`S = \alpha^2 C + \sigma^2`,

.. math:: E[x_0 | x_t] = \mu + \alpha C S^{-1} (x_t - \alpha\mu).

For a mixture the means of the components are averaged with their posterior weights
:math:`\propto w_k N(x_t; \alpha\mu_k, S_k)`.
"""

from __future__ import annotations

import math

import awkward as ak
import numpy as np
import torch
import uproot
from torch import Tensor

from drapes_hep.diffusion.denoisers import Denoiser
from drapes_hep.events.schema import nested, ragged
from drapes_hep.packed import Sets
from drapes_hep.spectrum.fit import SpectrumFit, bin_model
from drapes_hep.spectrum.poisson import deviance_p_value, fit_poisson, poisson_deviance
from drapes_hep.spectrum.shapes import SHAPES


def cms_spectrum(path):
    """Counts and edges of the histogram Mjj from 1530 GeV to the last filled bin."""
    with uproot.open(path) as file:
        counts, edges = file["Mjj"].to_numpy(flow=False)
    first, last = np.flatnonzero(edges[:-1] >= 1530)[0], np.flatnonzero(counts > 0)[-1]
    return counts[first : last + 1].astype(np.float64), edges[first : last + 2]


def fit_spectrum_newton(counts, edges, fitted, shape="dijet4", sqrt_s=13_000.0):
    """Fit as ``fit_spectrum`` does, by the Newton solver of the pseudo-experiments.

    The width of the bins is met by repeating the regression with each bin's logarithm linearised at the last estimate.
    """
    # least squares on the logarithm of the density, in a basis that is well conditioned
    density = SHAPES[shape].basis(0.5 * (edges[1:] + edges[:-1])[fitted] / sqrt_s)
    weight = np.sqrt(counts[fitted] + 0.5)
    basis = np.linalg.inv(np.linalg.qr(weight[:, None] * density)[1])
    log_density = np.log((counts[fitted] + 0.5) / np.diff(edges)[fitted])
    parameters = basis @ ((weight[:, None] * (density @ basis)).T @ (weight * log_density))
    for _ in range(20):
        mu, gradient = bin_model(shape, sqrt_s, edges, parameters)
        fit = fit_poisson(np.where(fitted, counts, 0.0), gradient @ basis, np.log(mu), fitted=fitted)
        assert fit.converged[0]
        parameters = parameters + basis @ fit.coefficients[0]
        if np.abs(fit.coefficients[0]).max() < 1e-7:
            break
    mu, _ = bin_model(shape, sqrt_s, edges, parameters)
    chi2 = float(poisson_deviance(counts[fitted], mu[fitted]).sum())
    return SpectrumFit(
        shape=SHAPES[shape], sqrt_s=sqrt_s, parameters=parameters, covariance=basis @ fit.covariance[0] @ basis.T,
        edges=edges, fitted=fitted, expected=mu, chi2=chi2, ndof=int(fitted.sum()) - len(parameters),
        p_value=float(deviance_p_value(chi2, mu[fitted], len(parameters))), good=True, valid=True,
    )  # fmt: skip


def unpack(sets, fields):
    """Sets as a singly ragged array of records, exactly."""
    offsets = sets.offsets.numpy()
    return ak.zip({name: ragged(content, offsets) for name, content in _columns(sets, fields).items()})


def unpack_nested(sets, events, fields):
    """Sets as a doubly ragged array of records, exactly; ``events`` are the offsets of ``pack_nested``."""
    offsets, outer = sets.offsets.numpy(), events.numpy()
    return ak.zip({name: nested(content, offsets, outer) for name, content in _columns(sets, fields).items()})


def _columns(sets, fields):
    assert len(fields) == sets.values.shape[1]
    return {name: np.ascontiguousarray(sets.values[:, i].numpy()) for i, name in enumerate(fields)}


def from_low_level(sets, jets):
    """Constituents from their low-level variables: the inverse of ``low_level``, phi in [-pi, pi]."""
    jet = torch.repeat_interleave(jets[:, :3].double(), sets.lengths, dim=0)
    fraction, eta, phi = sets.values.double().unbind(1)
    angle = phi + jet[:, 2]
    angle = angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
    return Sets(torch.stack([fraction * jet[:, 0], eta + jet[:, 1], angle], 1).to(sets.values.dtype), sets.offsets)


class GaussianMixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of Gaussians; it has no condition and ignores one."""

    weights: Tensor
    means: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, weights, means, covariances, schedule=None):
        super().__init__(schedule)
        values, vectors = torch.linalg.eigh(covariances.double())
        self.register_buffer("weights", weights.double() / weights.double().sum())
        self.register_buffer("means", means.double())
        # in the eigenbasis of C the matrix S is diagonal at every t: no inverse is needed
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def forward(self, x, t, condition=None, offsets=None):  # noqa: ARG002 - the interface of Denoiser
        """Return the exact mean; see ``Denoiser.forward``."""
        alpha, sigma = (part.double()[:, None, None] for part in self.schedule(t))
        total = alpha**2 * self.values + sigma**2  # (n or 1, k, d)
        delta = torch.einsum("nkd,kde->nke", x.double()[:, None] - alpha * self.means, self.vectors)
        log = torch.log(self.weights) - 0.5 * (delta**2 / total + torch.log(total)).sum(-1)
        posterior = torch.softmax(log, dim=1)
        mean = self.means + torch.einsum("nke,kde->nkd", alpha * self.values / total * delta, self.vectors)
        return torch.einsum("nk,nkd->nd", posterior, mean).to(x.dtype)


class GaussianDenoiser(GaussianMixtureDenoiser):
    """The exact denoiser of one Gaussian."""

    def __init__(self, mean, covariance, schedule=None):
        super().__init__(torch.ones(1), mean[None], covariance[None], schedule)
