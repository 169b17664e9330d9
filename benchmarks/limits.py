"""The machine's own limits: matrix products, copies in memory, a plain fit of trees, an empty figure."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
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


def copy(nbytes: int) -> Callable[[], None]:
    """Return a function that copies so many bytes."""
    source = np.ones(max(nbytes // 8, 1))
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def tree_fit(x: np.ndarray, y: np.ndarray, iterations: int = 200) -> Callable[[], object]:
    """Return a function that fits LightGBM's trees once on one thread, with the sizes of ours; data sets included."""
    import lightgbm

    settings = {
        "objective": "binary",
        "num_leaves": 31,
        "learning_rate": 0.05,
        "max_bin": 255,
        "num_threads": 1,
        "verbosity": -1,
    }
    held_out = np.arange(len(x)) % 4 == 0

    def fit() -> object:
        fitted = lightgbm.Dataset(x[~held_out], y[~held_out])
        check = lightgbm.Dataset(x[held_out], y[held_out], reference=fitted)
        stop = lightgbm.early_stopping(10, verbose=False)
        return lightgbm.train(settings, fitted, iterations, valid_sets=[check], callbacks=[stop])

    return fit


def empty_figure() -> None:
    """Save a figure with nothing but axes as the report saves its own: PNG and PDF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    figure.add_subplot()
    for form in ("png", "pdf"):
        figure.savefig(io.BytesIO(), format=form)
