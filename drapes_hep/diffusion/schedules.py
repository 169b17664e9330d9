r"""Noise schedules: how much of the data and how much noise there is at a time.

.. math:: x_t = \alpha_t x_0 + \sigma_t n, \qquad n \sim N(0, 1)

EDM (Karras et al., NeurIPS 2022, arXiv:2206.00364) has :math:`\alpha_t = 1, \sigma_t = t`: its time *is* the noise's
standard deviation. Its steps are (their eq. 5)

.. math::
    \sigma_i = \left(\sigma_{max}^{1/\rho}
        + \tfrac{i}{N - 1} (\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho})\right)^\rho,
    \quad i = 0..N-1, \qquad \sigma_N = 0 .

Partial diffusion with :math:`n'` of N steps left starts at :math:`\sigma' = \sigma_{N-n'}`. :math:`n'` is whole, so
only those strengths exist: N = 200 has 2.246 (98 steps) and 0.611 (72 steps).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["EDMSchedule", "FlowSchedule", "Schedule", "angle_steps", "even_steps", "karras_steps", "strength_steps"]


class Schedule(Protocol):
    """What denoisers, losses and samplers ask of a schedule."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma), each of the shape of ``t``."""

    def training_times(self, u: Tensor) -> Tensor:
        """Return the time at quantile ``u`` in (0, 1) of the distribution that training draws from."""

    def sampling_times(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        """Return the falling times (steps + 1,) of a sampler; a path that has its own ends ignores the noise levels."""

    def times_at(self, ratio: Tensor) -> Tensor:
        """Return the times at which sigma / alpha has these values; infinity only where the path has pure noise."""

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same schedule again (JSON)."""


@dataclass(frozen=True)
class EDMSchedule:
    """The schedule of EDM: alpha = 1, sigma = t; training draws ln sigma ~ N(mean, std^2).

    Parameters
    ----------
    log_mean, log_std : float
        Mean and standard deviation of ln(sigma) in training.
    """

    log_mean: float = -1.2
    log_std: float = 1.2

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, t)."""
        return torch.ones_like(t), t

    def training_times(self, u: Tensor) -> Tensor:
        """Return the log-normal quantile of ``u``."""
        return torch.exp(self.log_mean + self.log_std * torch.special.ndtri(u))

    def sampling_times(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        """Return :func:`karras_steps`."""
        return karras_steps(steps, sigma_min, sigma_max)

    def times_at(self, ratio: Tensor) -> Tensor:
        """Return ``ratio``."""
        return ratio

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return asdict(self)


@dataclass(frozen=True)
class FlowSchedule:
    """The straight path of flow matching: alpha = 1 - t, sigma = t, noise at t = 1; training draws t evenly."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - t, t)."""
        return 1.0 - t, t

    def training_times(self, u: Tensor) -> Tensor:
        """Return ``u``."""
        return u

    def sampling_times(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:  # noqa: ARG002
        """Return :func:`even_steps`."""
        return even_steps(steps)

    def times_at(self, ratio: Tensor) -> Tensor:
        """Return ratio / (1 + ratio), 1 at infinity."""
        return 1.0 / (1.0 + 1.0 / ratio)

    @property
    def config(self) -> dict[str, Any]:
        """No arguments."""
        return {}


_ANGLE_POWER = 1.5
"""Steps of the angle shrink towards the data; chosen on templates of simulated features (docs/results.md)."""


def angle_steps(schedule: Schedule, n: int, strength: float) -> Tensor:
    r"""Return the times of ``n`` steps of the solver ``angle``, with the middle of each.

    .. math:: \theta_i = \arctan(\sigma') \left(1 - \tfrac{i}{n}\right)^{3/2}, \quad i = 0..n

    Parameters
    ----------
    schedule : Schedule
    n : int
        Number of steps, at least 1.
    strength : float
        sigma / alpha at the first time, above 0; infinity for pure noise where the path has it.

    Returns
    -------
    Tensor of float64, shape (2 n + 1,)
        Falling, the last 0.

    Raises
    ------
    ValueError
        If there is no step, or no noise.
    """
    if n < 1 or not strength > 0.0:
        raise ValueError(f"angle_steps needs n >= 1 and strength > 0, not {n} and {strength}")
    ends = math.atan(strength) * (1.0 - torch.arange(n + 1, dtype=torch.float64) / n) ** _ANGLE_POWER
    middles = (ends[1:] + ends[:-1]) / 2
    ratios = torch.cat([torch.stack([ends[:-1], middles], dim=1).flatten(), ends[-1:]]).tan()
    # rounding must not move the end that the caller asked for
    ratios[0] = strength
    return schedule.times_at(ratios)


def even_steps(n: int) -> Tensor:
    """Return n even steps of the straight path, from noise (1) to data (0).

    Parameters
    ----------
    n : int
        Number of steps, at least 1.

    Returns
    -------
    Tensor of float64, shape (n + 1,)
    """
    if n < 1:
        raise ValueError(f"even_steps needs at least one step, not {n}")
    return torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64)


def karras_steps(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Return the noise levels of ``n`` steps, from ``sigma_max`` down to 0.

    Parameters
    ----------
    n : int
        Number of steps, at least 2.
    sigma_min, sigma_max : float
        Smallest and largest noise level that the denoiser sees.
    rho : float
        Larger values put more of the steps at low noise.

    Returns
    -------
    Tensor of float64, shape (n + 1,)
        Falling; the first is ``sigma_max``, the last but one ``sigma_min``, the last 0.

    Raises
    ------
    ValueError
        If there are fewer than 2 steps or not 0 < sigma_min < sigma_max.
    """
    if n < 2 or not 0.0 < sigma_min < sigma_max or rho <= 0.0:
        raise ValueError(f"karras_steps needs n >= 2 and 0 < sigma_min < sigma_max, not {n}, {sigma_min}, {sigma_max}")
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    ramp = torch.arange(n, dtype=torch.float64) / (n - 1)
    sigmas = (high + ramp * (low - high)) ** rho
    # the powers' rounding must not move the two ends that the caller asked for
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def strength_steps(sigmas: Tensor, strength: float) -> int:
    """Return the number n' of steps left whose noise level is nearest, in ln(sigma), to a strength.

    Parameters
    ----------
    sigmas : Tensor, shape (n + 1,)
        From :func:`karras_steps`; for another path, sigma / alpha at its times.
    strength : float
        Wanted sigma'; ``sigmas[n - n']`` is the one that exists.

    Returns
    -------
    int
        Between 1 and n. ``sigmas[-(n' + 1):]`` are the levels of the partial run.

    Raises
    ------
    ValueError
        If the strength is not between the smallest and largest level (a relative 0.1 % of slack).
    """
    n = len(sigmas) - 1
    levels = sigmas[:-1]
    if not float(levels[-1]) * 0.999 <= strength <= float(levels[0]) * 1.001:
        raise ValueError(f"strength {strength} is not within {float(levels[-1]):.4g} .. {float(levels[0]):.4g}")
    nearest = torch.argmin((torch.log(levels) - torch.log(torch.tensor(strength, dtype=levels.dtype))).abs())
    return n - int(nearest)
