"""The high-level features: what the models may see of an event.

Both jets are ordered by mass, J1 the heavier. The resonant variable m_JJ is no feature, by construction: a classifier
that sees it learns the window, not the signal.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import ConfigError
from drapes_hep.events.types import AwkwardArray, Column

__all__ = [
    "FEATURES",
    "HLV",
    "Feature",
    "check_classifier_features",
    "check_features",
    "compute_features",
    "domains",
    "invariant_mass",
    "order_by_mass",
    "wrapped",
]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Feature:
    """One number of an event.

    Parameters
    ----------
    name : str
        As the configuration spells it.
    function : callable
        (J1, J2), the heavier and the lighter jets as records of shape (n,), to float64 (n,); NaN where undefined.
    label : str
        LaTeX, without the unit.
    unit : str
        Empty where there is none.
    bins : int
        Of its control histogram.
    range : tuple of float
        Edges of its control histogram.
    domain : tuple of float
        Values that it can take at all, for transforms: a generated value outside is unphysical.
    """

    name: str
    function: Callable[[Any, Any], FloatArray]
    label: str
    unit: str
    bins: int
    range: tuple[float, float]
    domain: tuple[float, float]

    @property
    def axis_label(self) -> str:
        """Label with the unit, as an axis shows it."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label


def _float(values: Column) -> FloatArray:
    # contiguous: numpy's vector loops may round differently on strided input, and skims are compared bit by bit
    return np.ascontiguousarray(ak.to_numpy(values), dtype=np.float64)


def _ratio(numerator: Column, denominator: Column) -> FloatArray:
    top, bottom = _float(numerator), _float(denominator)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def wrapped(angle: FloatArray) -> FloatArray:
    """Give angles in [-pi, pi)."""
    return np.remainder(angle + np.pi, 2 * np.pi) - np.pi  # type: ignore[no-any-return, unused-ignore]


def _delta_r(j1: AwkwardArray, j2: AwkwardArray) -> FloatArray:
    # the azimuth difference wraps: -3.1 and 3.1 are neighbours
    dphi = wrapped(_float(j1.phi) - _float(j2.phi))
    return np.hypot(_float(j1.eta) - _float(j2.eta), dphi)


_POSITIVE = (0.0, math.inf)
_ALL = (
    Feature("m_j1", lambda j1, _: _float(j1.mass), r"$m_{J_1}$", "GeV", 100, (0.0, 1000.0), _POSITIVE),
    Feature("m_j2", lambda _, j2: _float(j2.mass), r"$m_{J_2}$", "GeV", 100, (0.0, 1000.0), _POSITIVE),
    Feature(
        "delta_m",
        lambda j1, j2: _float(j1.mass) - _float(j2.mass),
        r"$m_{J_1} - m_{J_2}$",
        "GeV",
        100,
        (0.0, 1000.0),
        _POSITIVE,
    ),
    # by item, never by attribute: on a Lorentz vector ".tau2" is the squared proper time, that is the squared mass
    # axes that are not minimised allow ratios above 1 (the public R&D features have some): no upper bound
    Feature(
        "tau21_j1", lambda j1, _: _ratio(j1["tau2"], j1["tau1"]), r"$\tau_{21}^{J_1}$", "", 60, (0.0, 1.2), _POSITIVE
    ),
    Feature(
        "tau21_j2", lambda _, j2: _ratio(j2["tau2"], j2["tau1"]), r"$\tau_{21}^{J_2}$", "", 60, (0.0, 1.2), _POSITIVE
    ),
    Feature(
        "tau32_j1", lambda j1, _: _ratio(j1["tau3"], j1["tau2"]), r"$\tau_{32}^{J_1}$", "", 60, (0.0, 1.2), _POSITIVE
    ),
    Feature(
        "tau32_j2", lambda _, j2: _ratio(j2["tau3"], j2["tau2"]), r"$\tau_{32}^{J_2}$", "", 60, (0.0, 1.2), _POSITIVE
    ),
    Feature("delta_r", _delta_r, r"$\Delta R_{JJ}$", "", 100, (0.0, 6.0), _POSITIVE),
)

FEATURES: Mapping[str, Feature] = {feature.name: feature for feature in _ALL}
"""Known features by name."""

HLV = ("m_j1", "delta_m", "tau21_j1", "tau21_j2", "delta_r")
"""The high-level set of the papers."""

_RESONANT = {"mjj", "mass", "dijetmass", "invariantmass"}


def check_features(names: Sequence[str]) -> tuple[Feature, ...]:
    """Look features up.

    Parameters
    ----------
    names : sequence of str
        As the configuration gives them.

    Returns
    -------
    tuple of Feature
        In the same order.

    Raises
    ------
    ConfigError
        Unknown, repeated, none at all, or the resonant mass.
    """
    if isinstance(names, str) or not names:
        raise ConfigError("'features' must list at least one feature, e.g. [m_j1, delta_m]")
    for name in names:
        if str(name).lower().replace("_", "").replace("-", "") in _RESONANT:
            raise ConfigError(
                f"feature '{name}': the resonant mass m_JJ may not be a feature, the classifier would learn the window"
            )
        if name not in FEATURES:
            close = difflib.get_close_matches(str(name), FEATURES, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(FEATURES)}"
            raise ConfigError(f"unknown feature '{name}'; {hint}")
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise ConfigError(f"feature '{repeated[0]}' is listed twice")
    return tuple(FEATURES[name] for name in names)


def domains(names: Sequence[str]) -> list[tuple[float, float]]:
    """Give the natural bounds of features."""
    return [feature.domain for feature in check_features(names)]


def check_classifier_features(features: Sequence[str], seen: Sequence[str]) -> None:
    """Check all names of features, then that the classifier sees none that the diffusion model does not make.

    Parameters
    ----------
    features : sequence of str
        ``features`` of the configuration.
    seen : sequence of str
        ``cwola.features``, or what stands for it.

    Raises
    ------
    ConfigError
        With the name at fault.
    """
    check_features(features)
    check_features(seen)
    for name in seen:
        if name not in features:
            close = difflib.get_close_matches(name, features, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"it may name some of {', '.join(features)}"
            raise ConfigError(f"cwola.features: '{name}' is not among features; {hint}")


def order_by_mass(jets: AwkwardArray) -> tuple[Any, Any]:
    """Split pairs of jets into the heavier and the lighter.

    Parameters
    ----------
    jets : awkward.Array
        n lists of exactly two jets.

    Returns
    -------
    heavier, lighter : awkward.Array
        Records of shape (n,); of equal masses, the first jet counts as the heavier.
    """
    first, second = jets[:, 0], jets[:, 1]
    swap = second.mass > first.mass
    return ak.where(swap, second, first), ak.where(swap, first, second)


def compute_features(names: Sequence[str], jets: AwkwardArray) -> dict[str, FloatArray]:
    """Compute features of pairs of jets.

    Parameters
    ----------
    names : sequence of str
        Known to :data:`FEATURES`.
    jets : awkward.Array
        n lists of exactly two jets with pt, eta, phi, mass, tau1, tau2, tau3.

    Returns
    -------
    dict of str to array of float64, shape (n,)
        NaN where a feature is undefined (tau21 where tau1 = 0).
    """
    features = check_features(names)
    # no feature reads constituents, which would be copied with their jets
    jets = jets[[name for name in jets.fields if name != "constituents"]]
    heavier, lighter = order_by_mass(jets)
    return {feature.name: feature.function(heavier, lighter) for feature in features}


def invariant_mass(jets: AwkwardArray) -> FloatArray:
    """Mass of the sum of two jets' four-momenta, m_JJ.

    Parameters
    ----------
    jets : awkward.Array
        n lists of exactly two jets with pt, eta, phi, mass (GeV, rad).

    Returns
    -------
    array of float64, shape (n,)
        GeV.
    """
    total = np.zeros((4, len(jets)))
    for jet in (0, 1):
        pt, eta, phi, mass = (_float(jets[:, jet][name]) for name in ("pt", "eta", "phi", "mass"))
        px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
        # momentum from the components that are summed, so that energy and momentum round alike
        total += np.stack([np.sqrt(px**2 + py**2 + pz**2 + mass**2), px, py, pz])
    energy, px, py, pz = total
    # (E - pz)(E + pz) instead of E**2 - pz**2: no cancellation for boosted pairs
    return np.sqrt(np.maximum((energy - pz) * (energy + pz) - px**2 - py**2, 0.0))
