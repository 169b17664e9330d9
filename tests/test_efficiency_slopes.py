"""Slow changes of a cut's efficiency with mass are taken up by its fit: a small analysis/efficiency_slopes.py."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.efficiency_slopes import pulls
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges

WINDOW = Window(3300, 3700, 2700, 6000)
EDGES = spectrum_edges((2700, 6000), 60, [WINDOW])
CENTRE = 0.5 * (EDGES[1:] + EDGES[:-1])
MEAN = 170_000 * np.exp(-(CENTRE - 2700) / 480) * np.diff(EDGES) / 480


@pytest.mark.parametrize(("slope", "low", "high"), [(0.0, 0.99, 1.01), (1.5, 3.0, 5.0), (-1.5, 0.2, 0.4)])
def test_a_slow_change_makes_no_excess(slope, low, high):
    ratio, found = pulls(MEAN, EDGES, WINDOW, 0.01, slope, 0.4, 40, np.random.default_rng(2))
    assert low < ratio < high
    assert len(found) >= 38
    assert abs(found.mean()) < 0.25 + 3 * found.std(ddof=1) / np.sqrt(len(found))
    assert 0.7 < found.std(ddof=1) < 1.4


def test_a_change_that_is_too_steep_is_not_quoted():
    _, found = pulls(MEAN, EDGES, WINDOW, 0.1, 5.0, 0.4, 10, np.random.default_rng(3))
    assert len(found) < 10
