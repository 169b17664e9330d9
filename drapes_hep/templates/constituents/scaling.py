"""The scaling of constituents, and of what their network is told of a jet.

The network sees three numbers of a constituent that follow the normal distribution over all constituents of the
training: ln(pT_i / pT_jet) mapped by its quantiles, and (eta_i - eta_jet, phi_i - phi_jet) with its length mapped to
that of a two-dimensional normal vector by its quantiles, its direction kept: nothing in the scaling prefers a
direction about the axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from torch import Tensor

from drapes_hep.errors import FitError

__all__ = ["LEVELS", "RADII", "ConstituentScaling", "fit_constituent_scaling"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LEVELS = np.linspace(-4.0, 4.0, 241)
RADII = np.linspace(0.0, 4.5, 181)
_FITTED = 2_000_000
"""Constituents that a scaling is fitted on at most: their quantiles are then known to 1e-3 of a standard deviation."""


@dataclass(frozen=True)
class ConstituentScaling:
    """A fitted scaling of constituents, and of what their network is told of a jet.

    Attributes
    ----------
    log_fraction : array, shape (241,)
        Quantiles of ln(pT_i / pT_jet), at the levels of a normal variable from -4 to 4.
    radius : array, shape (181,)
        Quantiles of the distance from the axis, at those of a two-dimensional normal vector's length from 0 to 4.5.
    condition : tuple of str
        Of ``constituents.condition``.
    mean, scale : array, shape (c,)
        Of the condition's logarithms and angles.
    """

    log_fraction: FloatArray
    radius: FloatArray
    condition: tuple[str, ...]
    mean: FloatArray
    scale: FloatArray

    def conditions_of(self, jets: FloatArray, mjj: FloatArray) -> Tensor:
        """Return what the network is told of jets (n, 5) of events of masses (n,): shape (n, c)."""
        return torch.as_tensor(
            (_condition_values(self.condition, jets, mjj) - self.mean) / self.scale, dtype=torch.float32
        )

    def forward(self, values: FloatArray) -> FloatArray:
        """Scale constituents (total, 3)."""
        length = np.hypot(values[:, 1], values[:, 2])
        scaled = np.interp(length, self.radius, RADII)
        with np.errstate(divide="ignore", invalid="ignore"):
            stretch = np.where(length > 0, scaled / length, 0.0)
        return np.stack(
            [np.interp(values[:, 0], self.log_fraction, LEVELS), values[:, 1] * stretch, values[:, 2] * stretch],
            axis=1,
        )

    def inverse(self, z: FloatArray) -> FloatArray:
        """Map back; what lies beyond the training's extremes is put there."""
        length = np.hypot(z[:, 1], z[:, 2])
        with np.errstate(divide="ignore", invalid="ignore"):
            stretch = np.where(length > 0, np.interp(length, RADII, self.radius) / length, 0.0)
        return np.stack([np.interp(z[:, 0], LEVELS, self.log_fraction), z[:, 1] * stretch, z[:, 2] * stretch], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Return what a model card stores; floats survive exactly."""
        arrays = {name: getattr(self, name).tolist() for name in ("log_fraction", "radius", "mean", "scale")}
        return {**arrays, "condition": list(self.condition)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ConstituentScaling:
        """Read back what :meth:`to_dict` wrote."""
        arrays = {
            name: np.asarray(record[name], dtype=np.float64) for name in ("log_fraction", "radius", "mean", "scale")
        }
        if arrays["log_fraction"].shape != LEVELS.shape or arrays["radius"].shape != RADII.shape:
            raise ValueError("the scaling of constituents has other knots than this version's")
        return cls(condition=tuple(record["condition"]), **arrays)


def _condition_values(names: Sequence[str], jets: FloatArray, mjj: FloatArray) -> FloatArray:
    pt, eta, phi, mass, number = jets.T
    quantities = {
        "pt": np.log(pt),
        "eta": eta,
        "phi": phi,
        "mass": np.log1p(mass),
        "n": np.log1p(number),
        "mjj": np.log(mjj),
    }
    return np.stack([quantities[name] for name in names], axis=1)


def fit_constituent_scaling(
    values: FloatArray, jets: FloatArray, mjj: FloatArray, names: Sequence[str]
) -> ConstituentScaling:
    """Fit a scaling on the constituents of training jets.

    Parameters
    ----------
    values : array, shape (total, 3)
        ln(pt fraction), delta eta, delta phi.
    jets : array, shape (n, 5)
        Their jets: pt, eta, phi, mass, number of constituents.
    mjj : array, shape (n,)
        Of the jets' events, GeV.
    names : sequence of str
        What the network is told of a jet.

    Raises
    ------
    FitError
        If there are too few.
    """
    # every k-th: the constituents lie by jets and by falling momentum, so all kinds take part
    some = values[:: max(1, len(values) // _FITTED)]
    length = np.hypot(some[:, 1], some[:, 2])
    condition = _condition_values(names, jets, mjj)
    spread = condition.std(axis=0)
    if len(some) < 1000 or not (np.ptp(some[:, 0]) > 0 and np.ptp(length) > 0):
        raise FitError(f"constituents: {len(values)} of them in the training jets are too few to be scaled")
    fractions = _knots(some[:, 0], norm.cdf(LEVELS), float(some[:, 0].min()))
    # the length of a two-dimensional normal vector: P(r) = 1 - exp(-r^2 / 2)
    radii = _knots(length, 1.0 - np.exp(-0.5 * RADII**2), 0.0)
    return ConstituentScaling(
        fractions, radii, tuple(names), condition.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)
    )


def _knots(values: FloatArray, levels: FloatArray, lowest: float) -> FloatArray:
    """Return quantiles that rise strictly, the extremes at their ends."""
    knots = np.quantile(values, levels)
    knots[0], knots[-1] = lowest, values.max()
    # equal quantiles (a detector's cells) are drawn apart, so that the map can be undone
    return np.asarray(knots + np.arange(len(knots)) * 1e-9 * (knots[-1] - knots[0]))
