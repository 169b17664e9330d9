"""The random numbers of :mod:`drapes_hep.rng` on a model's device: the same function of seed, event, copy and index.

The words are the same bits. The normal numbers agree to 1e-14: logarithm, sine and cosine are the device's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["normal_tensor", "philox_tensor"]

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox_tensor(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 for many counters.

    Parameters
    ----------
    counter : four Tensors of int64, shape (n,)
        Each holds 32 bits.
    key : tuple of two ints
        Two 32-bit words.

    Returns
    -------
    four Tensors of int64, shape (n,)
        Each holds 32 random bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # products wrap around as unsigned ones do; a shift repeats the sign, which is masked off
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def normal_tensor(seed: int, event_id: Tensor, copy: Tensor, size: int) -> Tensor:
    """Draw the numbers of :func:`drapes_hep.rng.event_normals`.

    Parameters
    ----------
    seed : int
    event_id, copy : Tensor of int64, shape (n,)
    size : int

    Returns
    -------
    Tensor of float64, shape (n, size), on the device of ``event_id``
    """
    key = seed & _LOW, seed >> 32 & _LOW
    columns = []
    for block in range((size + 1) // 2):
        counter = event_id & _LOW, event_id >> 32 & _LOW, copy, torch.full_like(event_id, block)
        w0, w1, w2, w3 = philox_tensor(counter, key)
        first, second = (((a >> 6 << 26 | b >> 6).double() + 0.5) * 2.0**-52 for a, b in ((w0, w1), (w2, w3)))
        radius, angle = (-2.0 * first.log()).sqrt(), 2.0 * math.pi * second
        columns += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(columns[:size], dim=1) if size else event_id.new_empty((len(event_id), 0), dtype=torch.float64)
