r"""Random numbers that belong to an event, not to a batch.

Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"), vectorised: a number is a pure
function of ``(seed, stage, event id, copy, index)``. An event's noise is therefore the same whatever the batch, the
device, the order of files or the number of workers.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["event_keys", "event_normals", "event_uniforms", "philox4x32", "stage_seed"]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_BLOCK = 1 << 14
"""Events per block: its dozen arrays of 128 KiB stay near the processor, whatever the number of events."""

UIntArray = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]


def stage_seed(seed: int, *stage: object) -> int:
    """Return the 63-bit seed of a stage, e.g. ``stage_seed(1, "train", 3300, 3700)``.

    Parameters
    ----------
    seed : int
        The run's seed.
    *stage : object
        What names the stage; compared by their text.

    Returns
    -------
    int
        Non-negative, below 2**63; different stages have unrelated seeds.
    """
    text = "\x1f".join([str(int(seed)), *(str(part) for part in stage)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def philox4x32(counter: UIntArray, key: tuple[int, int]) -> UIntArray:
    """Philox4x32-10 for many counters.

    Parameters
    ----------
    counter : array of uint64, shape (4, n)
        Four 32-bit words a counter.
    key : tuple of two ints
        Two 32-bit words.

    Returns
    -------
    array of uint64, shape (4, n)
        Four random 32-bit words a counter.
    """
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _32) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def _words(seed: int, event_id: npt.NDArray[Any], copy: npt.NDArray[Any], block: int) -> UIntArray:
    ids = event_id.astype(np.uint64)
    counter = np.stack([ids & _LOW, ids >> _32, copy.astype(np.uint64), np.full(len(ids), block, np.uint64)])
    return philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))


def event_uniforms(
    seed: int, event_id: npt.ArrayLike, copy: npt.ArrayLike = 0, size: int = 1, first: int = 0
) -> FloatArray:
    """Draw uniform numbers in (0, 1) that are a function of the event alone.

    Parameters
    ----------
    seed : int
        From :func:`stage_seed`.
    event_id : array_like of int, shape (n,)
        Identity of each event.
    copy : array_like of int, broadcastable to (n,)
        Which copy of the event (oversampling).
    size : int
        Numbers an event.
    first : int
        Index of the first number; the stream of an event resumes where ``first`` says.

    Returns
    -------
    array of float64, shape (n, size)
        52 random bits each, never exactly 0 or 1.
    """
    ids = np.atleast_1d(np.asarray(event_id))
    copies = np.broadcast_to(np.asarray(copy), ids.shape)
    out = np.empty((len(ids), size))
    if size == 0:
        return out
    blocks = range(first // 2, (first + size - 1) // 2 + 1)
    for start in range(0, len(ids), _BLOCK):
        part = slice(start, start + _BLOCK)
        pieces = []
        for block in blocks:
            w = _words(seed, ids[part], copies[part], block)
            for high, low in ((0, 1), (2, 3)):
                bits = (w[high] >> np.uint64(6)) << np.uint64(26) | (w[low] >> np.uint64(6))
                pieces.append((bits.astype(np.float64) + 0.5) * 2.0**-52)
        skip = first - 2 * blocks[0]
        out[part] = np.stack(pieces[skip : skip + size], axis=1)
    return out


def event_keys(seed: int, event_id: npt.ArrayLike, copy: npt.ArrayLike = 0) -> npt.NDArray[np.int64]:
    """Return new identities to copies of events: 63 random bits that are a function of (seed, event, copy).

    Parameters
    ----------
    seed, event_id, copy
        As for :func:`event_uniforms`.

    Returns
    -------
    array of int64, shape (n,)
        Non-negative. Of n identities two agree with a probability of n**2 / 2**64 (5e-8 for a million).
    """
    ids = np.atleast_1d(np.asarray(event_id))
    w = _words(seed, ids, np.broadcast_to(np.asarray(copy), ids.shape), 0)
    return np.asarray(((w[0] << _32) | w[1]) >> np.uint64(1), dtype=np.uint64).astype(np.int64)


def event_normals(seed: int, event_id: npt.ArrayLike, copy: npt.ArrayLike = 0, size: int = 1) -> FloatArray:
    """Draw standard normal numbers that are a function of the event alone (Box-Muller).

    Parameters
    ----------
    seed, event_id, copy, size
        As for :func:`event_uniforms`.

    Returns
    -------
    array of float64, shape (n, size)
    """
    ids = np.atleast_1d(np.asarray(event_id))
    copies = np.broadcast_to(np.asarray(copy), ids.shape)
    out = np.empty((len(ids), size))
    pairs = (size + 1) // 2
    for start in range(0, len(ids), _BLOCK):
        part = slice(start, start + _BLOCK)
        u = event_uniforms(seed, ids[part], copies[part], 2 * pairs)
        radius = np.sqrt(-2.0 * np.log(u[:, 0::2]))
        angle = 2.0 * np.pi * u[:, 1::2]
        out[part, 0::2] = radius * np.cos(angle)
        out[part, 1::2] = (radius * np.sin(angle))[:, : size // 2]
    return out
