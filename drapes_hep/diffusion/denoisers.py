r"""Denoisers: the mean of the clean data given the noisy, :math:`D(x_t; t, c) \approx E[x_0 | x_t, c]`.

The preconditioning of EDM (Karras et al. 2022, table 1), written for any schedule :math:`x_t = \alpha x_0 + \sigma n`
and data of standard deviation :math:`\sigma_d`:

.. math::
    D &= c_{skip} x + c_{out} F(c_{in} x; c_{noise}, c), \qquad v = \sigma^2 + \alpha^2 \sigma_d^2 \\
    c_{skip} &= \alpha \sigma_d^2 / v, \quad c_{out} = \sigma \sigma_d / \sqrt{v}, \quad
    c_{in} = 1 / \sqrt{v}, \quad c_{noise} = \tfrac14 \ln(\sigma / \alpha)

:math:`c_{skip} x` is the best linear denoiser, so F has input and target of unit variance at every noise level.

Flow matching (Lipman et al. 2023, arXiv:2210.02747; METHOD of arXiv:2310.06897) is the same with other factors: on the
straight path :math:`x_t = (1 - t) x_0 + t n` the network is the velocity :math:`F \approx x_0 - n`, so that

.. math:: D = x + t F(x; t, c), \qquad c_{skip} = 1, \; c_{out} = t, \; c_{in} = 1, \; c_{noise} = t .

The state may be float64: the network then runs in its own precision, the sum in the state's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from drapes_hep.diffusion.schedules import EDMSchedule, FlowSchedule, Schedule

__all__ = [
    "DENOISERS",
    "Backbone",
    "Denoiser",
    "EDMDenoiser",
    "FlowDenoiser",
    "PreconditionedDenoiser",
    "Preconditioning",
    "expand_sets",
]


class Backbone(Protocol):
    """A network ``F(x, noise, condition)``; one for sets also takes ``offsets``."""

    def __call__(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map x of shape (n, d), noise (n,) or (1,) and condition (n, c) to (n, d)."""


class Denoiser(nn.Module):
    """Base of the denoisers: a schedule, and ``forward`` giving the posterior mean.

    Parameters
    ----------
    schedule : Schedule
        The path between data and noise for which the denoiser holds.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.schedule: Schedule = EDMSchedule() if schedule is None else schedule

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """Return the mean of the clean data.

        Parameters
        ----------
        x : Tensor, shape (n, d)
            Noisy data. For sets: the members of all sets, packed.
        t : Tensor, shape (n,) or (1,)
            Time of each row (each set), or of all.
        condition : Tensor, shape (n, c), optional
            Condition of each row (each set).
        offsets : Tensor of int64, shape (sets + 1,), optional
            Set ``i`` is the rows ``offsets[i]:offsets[i + 1]``.

        Returns
        -------
        Tensor, shape (n, d), dtype of ``x``
        """
        raise NotImplementedError


def expand_sets(value: Tensor, offsets: Tensor | None) -> Tensor:
    """Repeat a value per set, shape (sets,), to its members, as a column; rows without sets and shared values pass."""
    if offsets is not None and len(value) != 1:
        value = torch.repeat_interleave(value, offsets.diff())
    return value[:, None]


class Preconditioning(NamedTuple):
    """The four factors of EDM; all but ``noise`` broadcast against (n, d)."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class PreconditionedDenoiser(Denoiser):
    """A backbone between four factors: ``skip * x + out * F(input * x; noise, condition)``.

    Parameters
    ----------
    backbone : Backbone
        The network F.
    sigma_data : float or sequence of float
        Standard deviation of the data, one for all or one per feature.
    schedule : Schedule, optional
        The path; :class:`~drapes_hep.diffusion.schedules.EDMSchedule` by default.

    Raises
    ------
    ValueError
        If a standard deviation is not positive.
    """

    sigma_data: Tensor

    def __init__(
        self, backbone: nn.Module, sigma_data: float | Sequence[float] = 1.0, schedule: Schedule | None = None
    ) -> None:
        super().__init__(schedule)
        self.backbone = backbone
        self.register_buffer("sigma_data", torch.as_tensor(sigma_data, dtype=torch.float32))
        if not bool((self.sigma_data > 0).all()):
            raise ValueError("sigma_data must be positive")

    def preconditioning(self, t: Tensor, offsets: Tensor | None = None) -> Preconditioning:
        """Return (c_skip, c_out, c_in, c_noise) at times ``t`` of shape (n,) or (1,)."""
        raise NotImplementedError

    def network(self, x: Tensor, noise: Tensor, condition: Tensor | None, offsets: Tensor | None) -> Tensor:
        """Return F of scaled input (n, d) at noise levels c_noise in the network's own precision, shape (n, d)."""
        dtype = self.sigma_data.dtype
        cast_condition = None if condition is None else condition.to(dtype)
        sets = {} if offsets is None else {"offsets": offsets}
        result: Tensor = self.backbone(x.to(dtype), noise.to(dtype), cast_condition, **sets)
        return result

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """Return the mean of the clean data; see :meth:`Denoiser.forward`."""
        c = self.preconditioning(t.to(x.dtype), offsets)
        raw = self.network(c.input * x, c.noise, condition, offsets)
        return torch.addcmul(c.skip * x, c.out, raw.to(x.dtype))


class EDMDenoiser(PreconditionedDenoiser):
    """A backbone in the preconditioning of EDM, on any path."""

    def preconditioning(self, t: Tensor, offsets: Tensor | None = None) -> Preconditioning:
        """Return the factors of Karras et al. 2022, table 1."""
        alpha, sigma = self.schedule(t)
        noise = torch.log(sigma / alpha) / 4
        alpha, sigma = expand_sets(alpha, offsets), expand_sets(sigma, offsets)
        data = self.sigma_data.to(t.dtype)
        scale = torch.rsqrt(sigma**2 + (alpha * data) ** 2)
        return Preconditioning(alpha * (data * scale) ** 2, sigma * data * scale, scale, noise)


class FlowDenoiser(PreconditionedDenoiser):
    """A backbone that gives the velocity of flow matching, on the straight path.

    Parameters
    ----------
    backbone : Backbone
        The velocity F.
    sigma_data : float or sequence of float
        Takes no part; kept with the model.
    schedule : FlowSchedule, optional
    """

    def __init__(
        self, backbone: nn.Module, sigma_data: float | Sequence[float] = 1.0, schedule: Schedule | None = None
    ) -> None:
        super().__init__(backbone, sigma_data, FlowSchedule() if schedule is None else schedule)

    def preconditioning(self, t: Tensor, offsets: Tensor | None = None) -> Preconditioning:
        """Return (1, t, 1, t)."""
        column = expand_sets(t, offsets)
        ones = torch.ones_like(column)
        return Preconditioning(ones, column, ones, t)


DENOISERS: dict[str, type[PreconditionedDenoiser]] = {"edm": EDMDenoiser, "flow": FlowDenoiser}
"""Denoisers by the names of their paths: ``training.path``, and the model checkpoint."""
