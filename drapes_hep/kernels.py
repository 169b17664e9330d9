"""Threads and precision of torch's kernels."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Literal

import torch

__all__ = ["Precision", "in_torch", "kernel_threads", "one_thread", "products"]


Precision = Literal["float32", "bf16"]
"""Precision of a network's products on a GPU."""


def products(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a network's products are done in this precision: on a GPU, or not at all."""
    if precision == "float32" or device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16)


def in_torch(place: torch.device) -> bool:
    """Whether all that surrounds a network is computed by torch too: where its device is not the CPU."""
    return place.type != "cpu"


@contextlib.contextmanager
def kernel_threads(threads: int) -> Iterator[int]:
    """Run every kernel on this many threads inside the block; returns the number that torch had.

    A layer of 64 on a thousand rows takes 0.1 ms: threads inside it wait for one another longer than they work, by a
    factor of 100 when another process has a core. The setting is the process's: other threads see it too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


_LOCK = threading.Lock()
_inside, _before = 0, 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run kernels on one thread each, whatever the folds that are trained side by side.

    The number is the process's: the first that enters sets it, the last that leaves sets it back. Every thread says it
    for itself as well, since a kernel's library asks the thread that calls it.
    """
    global _inside, _before
    with _LOCK:
        if _inside == 0:
            _before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before)
