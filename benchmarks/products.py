"""The limits of networks: matrix products of their shapes or of the best shape, and activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from record import timed

from drapes_hep.networks.mlp import ResidualMLP

Shape = tuple[int, int, int]
"""Rows, inner length, columns of a product."""

SQUARE = 2048
"""Size of the product that stands for the peak of a CPU."""


def products(shapes: Sequence[Shape], device: str | torch.device = "cpu") -> Callable[[], None]:
    """Return a function that does float32 products of these shapes (TF32 as torch has it set), buffers ready."""
    ready = [
        (torch.randn(m, k, device=device), torch.randn(k, n, device=device), torch.empty(m, n, device=device))
        for m, k, n in shapes
    ]

    def run() -> None:
        for a, b, out in ready:
            torch.mm(a, b, out=out)

    return run


def sgemm_rate(device: torch.device, size: int = SQUARE, repeats: int = 3) -> float:
    """Return the operations a second of a square product, wall time, best of a few."""
    run = products([(size, size, size)], device)
    run()
    return 2 * size**3 / min(timed(lambda: synchronised(run, device), time.perf_counter)[0] for _ in range(repeats))


def synchronised(action: Callable[[], object], device: torch.device) -> None:
    """Call a function, and wait for the device's queue."""
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()


def square(flops: float) -> tuple[str, Callable[[], None], float]:
    """Return the limit of so many operations by a square product: its name, the product, and how often it fits."""
    return f"sgemm of {SQUARE}", products([(SQUARE, SQUARE, SQUARE)]), flops / (2 * SQUARE**3)


def network_products(net: ResidualMLP, rows: int, *, training: bool) -> list[Shape]:
    """Return the shapes of a network's products for a batch: forward, and backward where it trains.

    A sampled batch shares its noise level, whose columns are then not multiplied by each row.
    """
    context = net.condition_features + (len(net.embedding.frequency) if training else 0)
    layers = [(net.features + context, net.width), *[(net.width, net.width)] * (net.depth - 1)]
    layers.append((net.width, net.features))
    forward = [(rows, inputs, outputs) for inputs, outputs in layers]
    if not training:
        return forward
    weights = [(outputs, rows, inputs) for inputs, outputs in layers]
    # nobody asks for the gradient of the input
    return [*forward, *weights, *((rows, outputs, inputs) for inputs, outputs in layers[1:])]


def activations(net: ResidualMLP, rows: int, *, training: bool) -> Callable[[], None]:
    """Return a function that does the activations (SiLU) of a batch: forward, and backward where it trains."""
    x, gradient = torch.randn(2, rows, net.width)

    def run() -> None:
        for _ in range(net.depth):
            if training:
                torch.nn.functional.silu(x)
                torch.ops.aten.silu_backward(gradient, x)
            else:
                torch.nn.functional.silu(x, inplace=True)

    return run
