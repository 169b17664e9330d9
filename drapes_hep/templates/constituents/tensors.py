"""What surrounds the constituents' network, on the network's device: noise, scaling, conservation of four-momenta.

The same as :mod:`drapes_hep.templates.constituents.scaling` and ``conserve`` compute on a CPU, for all jets at once.
Sums over a jet have a fixed order, so that a device repeats its bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drapes_hep.events.scaling_tensors import interpolate_tensor
from drapes_hep.packed import Sets
from drapes_hep.rng import stage_seed
from drapes_hep.rng_tensors import normal_tensor
from drapes_hep.templates.constituents.conserve import CLOSE_ENOUGH, LOG_EXPONENTS
from drapes_hep.templates.constituents.scaling import LEVELS, RADII, ConstituentScaling

__all__ = ["absolute_tensors", "conserve_tensors", "inverse_tensors", "member_normal_tensors", "scale_tensors"]

_ROUNDS = 40
"""Of a bisection in the exponent's logarithm: to 3e-12."""


def member_normal_tensors(seed: int, purpose: str, key: Tensor, of_jet: Tensor, place: Tensor) -> Tensor:
    """Draw three normal numbers a constituent, as ``member_numbers`` does on a CPU.

    Parameters
    ----------
    seed : int
    purpose : str
    key : Tensor of int64, shape (n,)
        Of events of two jets.
    of_jet, place : Tensor of int64, shape (total,)
        Each constituent's jet, and its place in it.

    Returns
    -------
    Tensor of float64, shape (total, 3)
    """
    out = torch.empty((len(of_jet), 3), dtype=torch.float64, device=key.device)
    for jet in (0, 1):
        mine = of_jet % 2 == jet
        out[mine] = normal_tensor(stage_seed(seed, purpose, jet), key[of_jet[mine] // 2], place[mine], 3)
    return out


def _clamped(values: Tensor, xp: Tensor, fp: Tensor) -> Tensor:
    return interpolate_tensor(values.clamp(xp[0], xp[-1]), xp, fp)


def _mapped(values: Tensor, momentum: tuple[Tensor, Tensor], length: tuple[Tensor, Tensor]) -> Tensor:
    """Map the first column, and the length of the vector of the others."""
    distance = torch.hypot(values[:, 1], values[:, 2])
    stretch = torch.where(distance > 0, _clamped(distance, *length) / distance, 0.0)
    first = _clamped(values[:, 0].contiguous(), *momentum)
    return torch.stack([first, values[:, 1] * stretch, values[:, 2] * stretch], dim=1)


def _knots(scaling: ConstituentScaling, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second, third, fourth = (values.new_tensor(a) for a in (scaling.log_fraction, LEVELS, scaling.radius, RADII))
    return first, second, third, fourth


def scale_tensors(scaling: ConstituentScaling, values: Tensor) -> Tensor:
    """Scale constituents (total, 3), float64."""
    fractions, levels, radius, radii = _knots(scaling, values)
    return _mapped(values, (fractions, levels), (radius, radii))


def inverse_tensors(scaling: ConstituentScaling, z: Tensor) -> Tensor:
    """Map scaled constituents (total, 3), float64, back."""
    fractions, levels, radius, radii = _knots(scaling, z)
    return _mapped(z, (levels, fractions), (radii, radius))


def conserve_tensors(
    fraction: Tensor, delta: Tensor, offsets: Tensor, jets: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Bring constituents to their jets' four-momenta, as :func:`~drapes_hep.templates.constituents.conserve.conserve`.

    Parameters
    ----------
    fraction, delta, jets : Tensor of float64
        Of shapes (total,), (total, 2), (n, 4).
    offsets : Tensor of int64, shape (n + 1,)
    radius : float

    Returns
    -------
    fraction, delta : Tensor of float64
        They agree with what the compiled loops give to 1e-7, by how far each search goes.
    """
    index = torch.repeat_interleave(offsets.diff())

    def add(values: Tensor) -> Tensor:
        return torch.segment_reduce(values, "sum", offsets=offsets, unsafe=True)

    pt, eta, _, mass = jets.unbind(1)
    fraction = fraction / add(fraction)[index]
    start = delta - torch.stack([add(fraction * part) for part in delta.unbind(1)], dim=1)[index]
    length = torch.hypot(start[:, 0], start[:, 1]) / radius
    log_length = torch.where((length > 0) & (length < 1), length, 1.0).log()

    def at(log_exponent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        moved = start * (torch.expm1(log_exponent)[index] * log_length).exp()[:, None]
        stretch = moved[:, 0].exp()
        px, py, plus, minus = (
            add(part)
            for part in (
                fraction * moved[:, 1].cos(),
                fraction * moved[:, 1].sin(),
                fraction * stretch,
                fraction / stretch,
            )
        )
        square = px**2 + py**2
        own = (plus * minus - square).clamp(min=0.0).sqrt()
        rapidity = torch.asinh(0.5 * (plus - minus) / (square + own**2).sqrt())
        factor = torch.where(square > 0, pt / square.sqrt(), 1.0)
        return moved, factor, own * factor, rapidity, torch.atan2(py, px)

    low, high = (torch.full_like(pt, end) for end in LOG_EXPONENTS)
    for _ in range(_ROUNDS):
        middle = 0.5 * (low + high)
        heavy = at(middle)[2] > mass
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    exponent = 0.5 * (low + high)
    hit = (at(exponent)[2] - mass).abs() <= CLOSE_ENOUGH * (mass + 1.0)
    moved, factor, own, rapidity, azimuth = at(torch.where(hit, exponent, 0.0))
    target = torch.asinh(pt * torch.sinh(eta) / torch.hypot(pt, own))
    shift = torch.stack([target - rapidity - eta, -azimuth], dim=1)
    return fraction * factor[index] / pt[index], moved + shift[index]


def absolute_tensors(constituents: Sets, rows: Tensor, radius: float | None) -> Sets:
    """Return constituents' pt (GeV), eta, phi, from what the scaling gives.

    Parameters
    ----------
    constituents : Sets
        ln(pt fraction), delta eta, delta phi; float64.
    rows : Tensor of float64, shape (n, 5)
        The jets: pt, eta, phi, mass, number.
    radius : float, optional
        Of jets whose four-momentum is kept; without, it is not.
    """
    values, offsets = constituents.values, constituents.offsets
    fraction, delta = values[:, 0].exp(), values[:, 1:]
    if radius is not None:
        fraction, delta = conserve_tensors(fraction, delta, offsets, rows[:, :4], radius)
    axis = rows[torch.repeat_interleave(offsets.diff())]
    phi = torch.remainder(axis[:, 2] + delta[:, 1] + math.pi, 2 * math.pi) - math.pi
    return Sets(torch.stack([fraction * axis[:, 0], axis[:, 1] + delta[:, 0], phi], dim=1), offsets)
