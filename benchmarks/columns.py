"""Work on columns of events: noise, scaling of features, counts of selected events; each against its least."""

from __future__ import annotations

import numpy as np
from limits import copy
from record import Benchmark, Sizes, Work, by_events

from drapes_hep.bumphunt import count_selected
from drapes_hep.events.scaling import Scaling, fit_scaling
from drapes_hep.rng import event_normals

RANGE, CUTS = (2700.0, 6000.0), (1.0, 0.1, 0.01, 0.001)
FEATURES = 5


def table(events: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Draw smooth features (n, 5) that drift with mass, and masses (n,)."""
    rng = np.random.default_rng(seed)
    low, high = RANGE
    mjj = low + (high - low) * rng.beta(1, 6, events)
    return rng.gamma(4, 1.0, (events, FEATURES)) * (mjj / 3500)[:, None], mjj


def scaling_of(events: int = 60_000) -> Scaling:
    """Fit the default scaling on drawn events."""
    x, mjj = table(events)
    return fit_scaling("quantile", x, mjj, np.ones(events), [(0.0, np.inf)] * FEATURES)


def noise(events: int) -> Work:
    """Draw the noise of events from their identities."""
    rng = np.random.default_rng(1)
    return Work(
        lambda: event_normals(1, np.arange(events), size=FEATURES),
        events,
        "numpy's normal numbers",
        lambda: rng.standard_normal((events, FEATURES)),
    )


def scaled(events: int, inverse: bool) -> Work:
    """Scale features, or map them back."""
    scaling = scaling_of()
    x, mjj = table(events, 2)
    if inverse:
        z = scaling.forward(x, mjj)
        return Work(lambda: scaling.inverse(z, mjj), events, "copy of the columns", copy(z.nbytes + mjj.nbytes))
    return Work(lambda: scaling.forward(x, mjj), events, "copy of the columns", copy(x.nbytes + mjj.nbytes))


def count(events: int, cuts: int) -> Work:
    """Count the events of a window that pass each cut, in bins of mass."""
    _, mjj = table(events)
    tail = np.random.default_rng(2).uniform(size=events)
    edges = np.linspace(*RANGE, 166)
    return Work(
        lambda: count_selected(mjj, tail, edges, CUTS[:cuts]),
        events,
        "copy of the columns",
        copy(mjj.nbytes + tail.nbytes),
    )


def with_cuts(sizes: Sizes) -> list[dict[str, int]]:
    """Return every number of events with all cuts, then every number of cuts with the first."""
    all_cuts = sizes.cuts[-1]
    return [{"events": n, "cuts": all_cuts} for n in sizes.events] + [
        {"events": sizes.events[0], "cuts": cuts} for cuts in sizes.cuts[:-1]
    ]


BENCHMARKS = (
    Benchmark("noise", noise, by_events),
    Benchmark("scaling", scaled, lambda sizes: [{"events": n, "inverse": False} for n in sizes.events]),
    Benchmark("scaling back", scaled, lambda sizes: [{"events": n, "inverse": True} for n in sizes.events]),
    Benchmark("count", count, with_cuts),
)
