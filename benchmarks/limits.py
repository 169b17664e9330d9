"""The machine's own limits but for networks: copies in memory, a plain fit of trees, an empty figure."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np


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
