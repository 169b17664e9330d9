"""How near generated jets are to true ones: distributions of jets and constituents, and distances between them.

The distance is Wasserstein's: the mean way that values must be moved to turn one sample into the other, in the
quantity's own unit. What it is for two true samples of the same size says what the size alone makes of it, and is the
unit in which generated jets are quoted.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import FitError
from drapes_hep.events.features import invariant_mass, wrapped
from drapes_hep.events.types import AwkwardArray
from drapes_hep.templates.quantities import QUANTITIES

__all__ = ["compare_jets", "summaries"]

FloatArray = npt.NDArray[np.float64]

_SPLITS = 10
"""Random halves of the true jets."""
_MOST = 400_000
"""Constituents of a sample that a distance takes at most; sorting is all that it costs."""
_BINS = 40
_LEAST = 20


def _flat(array: AwkwardArray) -> FloatArray:
    return np.asarray(ak.to_numpy(ak.flatten(array, axis=None)), dtype=np.float64)


def _values(jets: AwkwardArray) -> dict[str, AwkwardArray]:
    """Return every quantity of n pairs of jets: n numbers, or n lists of what the event's jets or constituents have."""
    inside = jets["constituents"]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {name: jets[name] for name in ("pt", "eta", "mass")}
        values["n"] = ak.num(inside, axis=2)
        values["tau21"], values["tau32"] = jets["tau2"] / jets["tau1"], jets["tau3"] / jets["tau2"]
        values["mjj"] = ak.Array(invariant_mass(jets))
        values["delta_phi_jj"] = np.pi - np.abs(wrapped(jets["phi"][:, 0] - jets["phi"][:, 1]))
        values["pt_fraction"] = inside["pt"] / jets["pt"]
        values["log_pt_fraction"] = np.log10(values["pt_fraction"])
        values["delta_eta"] = inside["eta"] - jets["eta"]
        values["delta_phi"] = wrapped(inside["phi"] - jets["phi"])
    return values


def _finite(values: AwkwardArray) -> FloatArray:
    """Return the numbers of all events, less those that are undefined."""
    flat = _flat(values)
    return flat[np.isfinite(flat)]


def _varies(values: FloatArray) -> bool:
    """Whether there is a unit of distance, and a range to draw."""
    return bool(len(values)) and float(values.min()) < float(values.max())


def _shape(name: str, true: FloatArray, generated: FloatArray) -> dict[str, Any]:
    """Count both in the same bins; the numbers outside are kept."""
    if name == "n":
        largest = np.quantile(true, 0.999) + 1
        width = max(1, round(largest / _BINS))
        edges = np.arange(min(_BINS, int(largest // width) + 2) + 1) * width - 0.5
    else:
        low, high = np.quantile(true, [0.0005, 0.9995])
        edges = np.linspace(low, high, _BINS + 1)
    counts = {side: np.histogram(values, edges)[0].tolist() for side, values in (("true", true), ("made", generated))}
    totals = {f"{side}_total": len(values) for side, values in (("true", true), ("made", generated))}
    return {"edges": edges.tolist(), **counts, **totals}


def _distance(a: FloatArray, b: FloatArray, rng: np.random.Generator) -> float:
    # a second to load, for jets alone
    from scipy.stats import wasserstein_distance

    a, b = (x if len(x) <= _MOST else x[rng.choice(len(x), _MOST, replace=False)] for x in (a, b))
    return float(wasserstein_distance(a, b)) if len(a) and len(b) else float("nan")


def compare_jets(
    true: AwkwardArray, generated: AwkwardArray, seed: int, preserved: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare generated jets with true ones.

    Parameters
    ----------
    true, generated : awkward.Array
        n and m lists of two jets with pt, eta, phi, mass, tau1 to tau3 and constituents.
    seed : int
        Of the random halves.
    preserved : sequence of str
        Quantities that were not generated, and are left out.

    Returns
    -------
    dict
        For each of :data:`~drapes_hep.templates.quantities.QUANTITIES` but ``preserved`` and those that are undefined
        or all the same in true jets:
        ``w1``, between generated and true jets, both of half as many events as are true; ``w1_true``, between two
        halves of the true ones; each the mean over ten random choices, with ``w1_spread`` and ``w1_true_spread``,
        the standard deviations of a choice; their ``ratio``, and ``ratio_spread``, what one choice makes of it: the
        choices share events, so the ratio's own error is not smaller by the root of ten. And ``shapes``, the counts
        in bins, of all events.

    Raises
    ------
    FitError
        If there are too few events.
    """
    rng = np.random.default_rng(seed)
    half = min(len(true) // 2, len(generated))
    if half < _LEAST:
        raise FitError(
            f"{len(true)} true and {len(generated)} generated events are left: too few to compare their jets"
        )
    every, all_generated = _values(true), _values(generated)
    distances: dict[str, list[tuple[float, float]]] = {
        name: [] for name in QUANTITIES if name not in preserved and _varies(_finite(every[name]))
    }
    for _ in range(_SPLITS):
        order, chosen = rng.permutation(len(true)), rng.permutation(len(generated))[:half]
        for name, pairs in distances.items():
            first_half, other = (_finite(every[name][rows]) for rows in (order[:half], order[half : 2 * half]))
            some = _finite(all_generated[name][chosen])
            pairs.append((_distance(some, first_half, rng), _distance(other, first_half, rng)))
    quantities: dict[str, Mapping[str, float]] = {}
    for name, pairs in distances.items():
        (w1, unit), (spread, unit_spread) = np.mean(pairs, axis=0), np.std(pairs, axis=0)
        ratio_spread = w1 / unit * np.hypot(spread / w1, unit_spread / unit)
        quantities[name] = {
            "w1": float(w1),
            "w1_spread": float(spread),
            "w1_true": float(unit),
            "w1_true_spread": float(unit_spread),
            "ratio": float(w1 / unit),
            "ratio_spread": float(ratio_spread),
        }
    shapes = {name: _shape(name, _finite(every[name]), _finite(all_generated[name])) for name in distances}
    return {"events": half, "quantities": quantities, "shapes": shapes}


_LEADING = 5


def summaries(jets: AwkwardArray) -> FloatArray:
    """Return numbers of each jet that a tree can tell generated from true jets by.

    A classifier on sets that is trained on few events sees less than these: where they tell samples apart, its AUC near
    0.5 says nothing.

    Parameters
    ----------
    jets : awkward.Array
        n lists of two jets with mass, pt, tau1 to tau3 and constituents by falling pt.

    Returns
    -------
    array, shape (n, 36)
        Of either jet: m / pT, N, tau21, tau32, girth, the width of the fractions (their root mean square sum), the
        two largest distances from the axis, the five largest and the five smallest fractions of pT. Of a
        jet with fewer constituents, zeros.
    """
    inside = jets["constituents"]
    fraction = inside["pt"] / jets["pt"]
    distance = np.hypot(inside["eta"] - jets["eta"], wrapped(inside["phi"] - jets["phi"]))
    far = ak.sort(distance, axis=2, ascending=False)
    columns = [jets["mass"] / jets["pt"], ak.num(inside, axis=2), *(jets[f"tau{i}"] for i in (1, 2, 3))]
    columns += [ak.sum(fraction * distance, axis=2), np.sqrt(ak.sum(fraction**2, axis=2))]
    columns += [_place(far, i) for i in range(2)] + [_place(fraction, i) for i in range(_LEADING)]
    columns += [_place(ak.sort(fraction, axis=2), i) for i in range(_LEADING)]
    summaries_of = [np.asarray(ak.to_numpy(column), dtype=np.float64) for column in columns]
    taus = summaries_of[2:5]
    summaries_of[2:5] = [np.divide(a, b, out=np.zeros_like(a), where=b > 0) for b, a in itertools.pairwise(taus)]
    return np.concatenate(summaries_of, axis=1)


def _place(lists: AwkwardArray, place: int) -> AwkwardArray:
    """Return the member at a place of each innermost list, 0 where it is shorter."""
    return ak.fill_none(ak.firsts(lists[:, :, place:], axis=2), 0.0)
