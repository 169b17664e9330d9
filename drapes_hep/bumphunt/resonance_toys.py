r"""The global p-value of the resonance fit: its scan repeated on pseudo-experiments under background alone. GeV.

A scan of every mass, window and cut is another and larger search than that of the counts, and has a trials factor of
its own. The pseudo-experiments are those of the counts (:mod:`drapes_hep.bumphunt.toys`), bin by bin and with the
overlaps of the cuts; each is scanned as the data are, the degree of the efficiency chosen anew. The statistic is the
largest z, which with few events is from pseudo-experiments in the pseudo-experiments, too. The mass function is taken
to be right: no z of a scan has a spurious signal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.exceedance import Exceedance, exceedance
from drapes_hep.bumphunt.extrapolation import Extrapolation, extrapolate
from drapes_hep.bumphunt.resonance import ResonancePoint, ResonanceScan, leading_point, scan_resonances
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_shapes import SignalShape
from drapes_hep.bumphunt.toys import ToyModel, draw_toys
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = ["ResonanceSignificance", "resonance_significance", "scan_toys", "toy_counts"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ResonanceSignificance:
    """The significance of a whole scan.

    Attributes
    ----------
    of_toys : Exceedance
        Of the pseudo-experiments.
    extrapolated : Extrapolation or None
        What the distribution of their smallest p_local says of the data's.
    best : ResonancePoint
        The point of largest z.
    """

    of_toys: Exceedance
    extrapolated: Extrapolation | None
    best: ResonancePoint


def toy_counts(model: ToyModel, toys: int, rng: np.random.Generator) -> Iterator[tuple[SelectedCounts, ...]]:
    """Draw pseudo-experiments as the counts of each window.

    Parameters
    ----------
    model : ToyModel
    toys : int
    rng : Generator

    Yields
    ------
    tuple of SelectedCounts
        One a window.
    """
    hidden = np.zeros(len(model.inclusive), dtype=np.bool_)
    for inclusive, selected in draw_toys(model, toys, rng):
        for toy, every in enumerate(inclusive):
            yield tuple(
                SelectedCounts(model.edges, model.efficiencies, _disjoint(every, tight[:, toy]), hidden, share)
                for tight, share in zip(selected, model.shares, strict=True)
            )


def _disjoint(every: FloatArray, tight: FloatArray) -> FloatArray:
    """Return the disjoint score bins of one window: what passes no cut is what is left, never less than nothing."""
    return np.concatenate([np.maximum(every - tight.sum(axis=0), 0.0)[None], tight])


def scan_toys(
    model: ToyModel,
    signal: SignalShape,
    toys: int,
    seed: int,
    *,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
) -> FloatArray:
    """Scan pseudo-experiments for resonances.

    Parameters
    ----------
    model : ToyModel
    signal : SignalShape
    toys : int
    seed : int
        Of the counts; that of each scan is larger by the number of the toy.
    shape : SpectrumShape or str
        Of the inclusive background.
    sqrt_s : float
        GeV.

    Returns
    -------
    array, shape (toys,)
        ln of the p_local of the largest z; 0 where nothing is quoted.
    """
    out = np.zeros(toys)
    for toy, counts in enumerate(toy_counts(model, toys, np.random.default_rng(seed))):
        scan = scan_resonances(
            model.windows, counts, signal, shape=shape, sqrt_s=sqrt_s, min_events=model.min_events, seed=seed + toy
        )
        best = leading_point(scan.points)
        if best is not None:
            out[toy] = _log_p(best)
    return out


def resonance_significance(scan: ResonanceScan, toy_log_p: FloatArray) -> ResonanceSignificance | None:
    """Compare the scan of the data with those of pseudo-experiments.

    Parameters
    ----------
    scan : ResonanceScan
    toy_log_p : array_like, shape (toys,)
        From :func:`scan_toys`.

    Returns
    -------
    ResonanceSignificance or None
        None where the data have no z, or without pseudo-experiments.
    """
    best = leading_point(scan.points)
    if best is None or not len(toy_log_p):
        return None
    observed = _log_p(best)
    return ResonanceSignificance(exceedance(toy_log_p, observed), extrapolate(toy_log_p, observed), best)


def _log_p(point: ResonancePoint) -> float:
    assert point.z is not None
    return float(special.log_ndtr(-point.z))
