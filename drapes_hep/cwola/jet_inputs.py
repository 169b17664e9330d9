"""What classifiers on constituents see of an event: low-level variables of each jet, and numbers of the jet."""

from __future__ import annotations

import awkward as ak
import numpy as np
import torch
from torch import Tensor

from drapes_hep.errors import ConfigError
from drapes_hep.events.ragged import KINEMATICS, low_level, pack_nested
from drapes_hep.events.types import AwkwardArray
from drapes_hep.networks.set_pairs import SetPairs
from drapes_hep.packed import Sets

__all__ = ["pack_events"]

_JET_FIELDS = ("pt", "eta", "phi", "mass")


def _fields(array: AwkwardArray) -> list[str]:
    return list(ak.fields(array)) if isinstance(array, ak.Array) else []


def _read(x: AwkwardArray, most: int) -> tuple[Sets, Tensor]:
    """Return the low-level variables, a set a jet, and the jets' pt, eta, phi, mass; (2 n, 4) in double precision."""
    if "jets" not in _fields(x) or "constituents" not in _fields(x["jets"]):
        raise ConfigError("this classifier reads constituents: it needs events with jets.constituents, not features")
    jets = x["jets"]
    for array, names, what in ((jets, _JET_FIELDS, "jets"), (jets["constituents"], KINEMATICS, "constituents")):
        absent = [name for name in names if name not in _fields(array)]
        if absent:
            raise ConfigError(f"this classifier reads constituents: its events' {what} have no {', '.join(absent)}")
    if not bool(ak.all(ak.num(jets["pt"], axis=1) == 2)):
        raise ValueError("every event needs exactly two jets")
    # to one type first: data and template may store theirs differently
    columns = {name: ak.values_astype(jets["constituents"][name], np.float32) for name in KINEMATICS}
    sets, _ = pack_nested(ak.zip(columns), KINEMATICS)
    numbers = [ak.to_numpy(ak.flatten(jets[name]), allow_missing=False) for name in _JET_FIELDS]
    kinematics = torch.from_numpy(np.stack(numbers, axis=1).astype(np.float64))
    if not (bool(sets.values.isfinite().all()) and bool(kinematics.isfinite().all())):
        raise ValueError("jets and constituents must be finite: a momentum, a direction or a mass is not")
    return low_level(sets, kinematics, most), kinematics


def pack_events(x: AwkwardArray, most: int, kinematics: bool) -> SetPairs:
    """Return the inputs of the networks, not yet scaled.

    Parameters
    ----------
    x : awkward.Array
        n events with ``jets`` of two jets each, with ``constituents``; GeV, rad.
    most : int
        Constituents that a jet keeps, the leading ones in transverse momentum.
    kinematics : bool
        Whether a jet gives its kinematics; otherwise its relative mass and its number of constituents.

    Returns
    -------
    SetPairs

    Raises
    ------
    ConfigError
        Events without jets, or jets without constituents.
    ValueError
        Events of other than two jets; numbers that are not finite, or jets without transverse momentum.
    """
    sets, jets = _read(x, most)
    values = sets.values
    # the bounds keep what a generator may have made, none at all or more than the jet, within reach of the scaling
    values[:, 0] = values[:, 0].clamp(1e-5, 10.0).log()
    pt, eta, phi, mass = jets.unbind(1)
    # of the constituents that are seen: all that a generated jet has, whatever number it was asked for
    number = torch.log1p(sets.lengths.double())
    mass = mass.clamp(min=0.0)
    if kinematics:
        # the azimuth as a point of the circle, or -pi and pi would be far apart
        numbers = [pt.log(), eta, phi.cos(), phi.sin(), torch.log1p(mass), number]
    else:
        numbers = [torch.log(mass / pt + 1e-3), number]
    return SetPairs(Sets(values.float(), sets.offsets), torch.stack(numbers, 1).float())
