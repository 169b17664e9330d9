"""The high-level features: what the models may see of an event.

Both jets are ordered by mass, J1 the heavier. The resonant variable m_JJ is not a feature, by construction: a
classifier that sees it learns the window, not the signal.

A feature may also be defined outside the package, as an expression over columns of the two jets: ``pt_j1`` of the
heavier, ``pt_j2`` of the lighter, and so on for the fields of jets, for their number of constituents ``n`` and for the
further fields that a skim keeps; the package's features and other definitions may stand in it. Functions take such
definitions as ``define`` (for each name a mapping with ``expression`` and, optionally, the others of
:class:`Feature`) and the kept fields as ``keep``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import ConfigError, UsersCode, describe_error
from drapes_hep.events.schema import IDENTITY_FIELDS, JET_FIELDS
from drapes_hep.events.types import AwkwardArray, Column
from drapes_hep.plugins import Kind, is_users, load_object, processor_folders, source_hashes

__all__ = [
    "FEATURES",
    "HLV",
    "Feature",
    "check_classifier_features",
    "check_features",
    "compute_features",
    "domains",
    "function_sources",
    "invariant_mass",
    "kept_columns",
    "kept_fields",
    "kept_of",
    "order_by_mass",
    "refuse_resonant",
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
    """Return angles in [-pi, pi)."""
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

Definitions = Mapping[str, Mapping[str, Any]]
"""Expression, label, unit, bounds, range and bins of features by name; all but the expression may be absent or None."""

_RESONANT = {"mjj", "mass", "dijetmass", "invariantmass"}
_COUNT = "n"
_COLUMNS = tuple(f"{field}_j{jet}" for field in (*JET_FIELDS, _COUNT) for jet in (1, 2))
"""What an expression may name of any jets; ``n`` needs constituents."""
_TAKEN = ("event_id", "weight", "label", "parent_id", "jets", "row", "metadata", *IDENTITY_FIELDS)
"""Columns of a skim or fields of an event that are something else."""


def _is_resonant(name: object) -> bool:
    text = str(name).lower()
    base = text.removesuffix("_j1").removesuffix("_j2")
    spelled = base.replace("_", "").replace("-", "")
    # a field of the jets may be the mass of a jet
    return spelled in _RESONANT and (base == text or spelled != "mass")


def refuse_resonant(names: Sequence[str]) -> None:
    """Refuse the resonant mass among features; raises ConfigError."""
    for name in names:
        if _is_resonant(name):
            raise ConfigError(
                f"feature '{name}': the resonant mass m_JJ cannot be a feature: the classifier would learn the window"
            )


def kept_columns(keep: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a skim that hold further fields of the jets: ``msoftdrop_j1``, ``msoftdrop_j2``."""
    return tuple(f"{field}_j{jet}" for field in keep for jet in (1, 2))


@dataclass(frozen=True)
class _Defined:
    """The function of a feature that is an expression, or a kept field of a jet."""

    name: str
    define: Definitions
    keep: tuple[str, ...]

    def __call__(self, j1: AwkwardArray, j2: AwkwardArray) -> FloatArray:
        values: dict[str, FloatArray] = {}

        def column(name: str) -> FloatArray:
            if name not in values:
                values[name] = compute(name)
            return values[name]

        def compute(name: str) -> FloatArray:
            if name in FEATURES:
                return FEATURES[name].function(j1, j2)
            text = _expression(name, self.define)
            if text is not None:
                # with its parser: every command and worker would wait for its import
                from drapes_hep.events.expressions import evaluate

                return evaluate(text, column, len(j1))
            if _function_name(name, self.define) is not None:
                return self._call_function(name, j1, j2)
            field, _, which = name.rpartition("_j")
            jet = (j1, j2)[int(which) - 1]
            if field not in ak.fields(jet):
                needs = "constituents" if field == _COUNT else f"'{field}', which selection.keep keeps"
                raise ConfigError(f"feature '{self.name}': '{name}' needs jets with {needs}")
            # a kept field may be undefined, as a feature may
            values = _float(jet[field])
            return np.where(np.isfinite(values), values, np.nan)

        return column(self.name)

    def _call_function(self, name: str, j1: AwkwardArray, j2: AwkwardArray) -> FloatArray:
        where = f"define.{name}.function {_function_name(name, self.define)}"
        function = _load_function(name, self.define)
        with (
            UsersCode(lambda error: ConfigError(f"{where}: {describe_error(error, is_users)}")),
            np.errstate(all="ignore"),
        ):
            values = np.asarray(ak.to_numpy(function(j1, j2)))
        if values.shape != (len(j1),) or values.dtype.kind not in "biuf":
            raise ConfigError(f"{where}: returned {values.dtype} of shape {values.shape}, not {len(j1)} numbers")
        return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


_KIND = Kind(
    "feature",
    "define",
    "a function of two jets",
    lambda item: None if callable(item) else "cannot be called",
)


def _function_name(name: str, define: Definitions) -> str | None:
    """Return the name of the function that makes a feature; None where none does."""
    function = (define.get(name) or {}).get("function")
    return None if function is None else str(function)


def _load_function(name: str, define: Definitions) -> Any:
    folder = (define.get(name) or {}).get("folder")
    kind = replace(_KIND, key=f"define.{name}.function")
    return load_object(
        kind, str(_function_name(name, define)), processor_folders(None if folder is None else Path(folder))
    )


def function_sources(define: Definitions) -> dict[str, list[str]]:
    """Return what the functions that make features rest on, by feature; raises ConfigError.

    Hashes and versions are those of :func:`drapes_hep.plugins.source_hashes`.
    """
    functions = {name: _load_function(name, define) for name in define if _function_name(name, define) is not None}
    out: dict[str, list[str]] = {}
    for name, function in functions.items():
        try:
            out[name] = list(source_hashes(function))
        except TypeError:
            raise ConfigError(
                f"define.{name}.function: is a {type(function).__name__}, whose source cannot be found; write a"
                " function with def"
            ) from None
    return out


def _expression(name: str, define: Definitions) -> str | None:
    """Return the text of a definition; None for a column of a jet, which may be defined for its label alone."""
    text = (define.get(name) or {}).get("expression")
    return None if text is None or text.strip() == name else str(text)


def _leaves(name: str, define: Definitions, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the columns and features of the package that a definition rests on; raises ConfigError for a circle."""
    if name in above:
        circle = " -> ".join([*above[above.index(name) :], name])
        raise ConfigError(f"define.{above[0]}: circular definition: {circle}")
    text = None if name in FEATURES else _expression(name, define)
    if text is None:
        yield name
        return
    from drapes_hep.events.expressions import variables

    for other in variables(text):
        yield from _leaves(other, define, (*above, name))


def kept_fields(names: Sequence[str], define: Definitions | None = None, keep: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the kept fields of jets that features rest on, in the order of ``keep``; raises ConfigError."""
    used = {leaf for name in names for leaf in _leaves(name, define or {})}
    return tuple(field for field in keep if used.intersection(kept_columns([field])))


def _check_definition(name: str, define: Definitions, keep: Sequence[str]) -> None:
    where, columns = f"define.{name}", kept_columns(keep)
    if _is_resonant(name):
        raise ConfigError(f"{where}: the resonant mass m_JJ cannot be a feature: the classifier would learn the window")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ConfigError(f"{where}: use letters, digits and underscores, beginning with a letter")
    if name in FEATURES or name in _TAKEN or name in _COLUMNS:
        what = "a feature of the package" if name in FEATURES else "a column of every skim or jet"
        raise ConfigError(f"{where}: is {what}; choose another name")
    text = _expression(name, define)
    if _function_name(name, define) is not None:
        _load_function(name, define)
        return
    if text is None:
        if name in columns:
            return
        raise ConfigError(
            f"{where}: needs an expression, such as 'pt_j2 / pt_j1', a function, or a column of selection.keep of"
            " that name"
        )
    if name in columns:
        raise ConfigError(
            f"{where}: is a column that selection.keep keeps; choose another name, or remove the expression"
        )
    from drapes_hep.events.expressions import variables

    try:
        used = variables(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    names = (*_COLUMNS, *FEATURES, *columns, *define)
    for column in used:
        if _is_resonant(column):
            raise ConfigError(f"{where}: uses m_JJ ('{column}'): the classifier would learn the window")
        if column not in names:
            close = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"available: {', '.join(names[:4])}, ..."
            more = f" (to use a jet field of the file, set selection.keep: [{column.rpartition('_j')[0]}])"
            raise ConfigError(f"{where}: no column '{column}'; {hint}{more if re.search('.+_j[12]$', column) else ''}")
    if not used:
        raise ConfigError(f"{where}: '{text}' uses no column: it has the same value for every event")
    for _ in _leaves(name, define):
        pass


def _defined(name: str, define: Definitions, keep: Sequence[str]) -> Feature:
    settings = {key: value for key, value in (define.get(name) or {}).items() if value is not None}
    unit = str(settings.get("unit", ""))
    low, high = settings.get("bounds", (None, None))
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    default_range = (
        (low, high) if math.isfinite(low) and math.isfinite(high) else (0.0, 1000.0 if unit == "GeV" else 1.0)
    )
    first, last = (float(value) for value in settings.get("range", default_range))
    return Feature(
        name,
        _Defined(name, define, tuple(keep)),
        str(settings.get("label", name)),
        unit,
        int(settings.get("bins", 60)),
        (first, last),
        (low, high),
    )


def check_features(
    names: Sequence[str], define: Definitions | None = None, keep: Sequence[str] = ()
) -> tuple[Feature, ...]:
    """Look features up.

    Parameters
    ----------
    names : sequence of str
        As the configuration gives them.
    define : mapping, optional
        Features that the configuration defines.
    keep : sequence of str, optional
        Further fields of jets; their columns are features, too.

    Returns
    -------
    tuple of Feature
        In the same order.

    Raises
    ------
    ConfigError
        Unknown, repeated, none at all, or the resonant mass; or a definition that is none.
    """
    definitions = dict(define or {})
    for field in keep:
        if field in (*JET_FIELDS, _COUNT, "constituents"):
            raise ConfigError(f"selection.keep: '{field}' is always kept; remove it")
    for name in definitions:
        _check_definition(name, definitions, keep)
    choices = [*FEATURES, *definitions, *(column for column in kept_columns(keep) if column not in definitions)]
    if isinstance(names, str) or not names:
        raise ConfigError("'features' must list at least one feature, e.g. [m_j1, delta_m]")
    refuse_resonant(names)
    for name in names:
        if name not in choices:
            close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
            hint = (
                f"did you mean '{close[0]}'?"
                if close
                else f"available: {', '.join(choices)}; define your own under 'define'"
            )
            raise ConfigError(f"unknown feature '{name}'; {hint}")
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise ConfigError(f"feature '{repeated[0]}' is listed twice")
    return tuple(FEATURES[name] if name in FEATURES else _defined(name, definitions, keep) for name in names)


def domains(
    names: Sequence[str], define: Definitions | None = None, keep: Sequence[str] = ()
) -> list[tuple[float, float]]:
    """Return the natural bounds of features; arguments as :func:`check_features`."""
    return [feature.domain for feature in check_features(names, define, keep)]


def check_classifier_features(
    features: Sequence[str], inputs: Sequence[str], define: Definitions | None = None, keep: Sequence[str] = ()
) -> None:
    """Check all names of features, then that the classifier sees none that the diffusion model does not make.

    Parameters
    ----------
    features : sequence of str
        ``features`` of the configuration.
    inputs : sequence of str
        ``cwola.features``, or what stands for it.
    define : mapping, optional
    keep : sequence of str, optional
        As :func:`check_features`.

    Raises
    ------
    ConfigError
        With the name at fault.
    """
    check_features(features, define, keep)
    check_features(inputs, define, keep)
    for name in inputs:
        if name not in features:
            close = difflib.get_close_matches(name, features, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"available: {', '.join(features)}"
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


def compute_features(
    names: Sequence[str], jets: AwkwardArray, define: Definitions | None = None, keep: Sequence[str] = ()
) -> dict[str, FloatArray]:
    """Compute features of pairs of jets.

    Parameters
    ----------
    names : sequence of str
    jets : awkward.Array
        n lists of exactly two jets with pt, eta, phi, mass, tau1, tau2, tau3, and the kept fields.
    define : mapping, optional
    keep : sequence of str, optional
        As :func:`check_features`.

    Returns
    -------
    dict of str to array of float64, shape (n,)
        NaN where a feature is undefined (tau21 where tau1 = 0).
    """
    features = check_features(names, define, keep)
    # no feature reads constituents, which would be copied with their jets
    plain = jets[[name for name in jets.fields if name != "constituents"]]
    counted = {f"{_COUNT}_j1", f"{_COUNT}_j2"}
    if "constituents" in jets.fields and counted & {leaf for name in names for leaf in _leaves(name, define or {})}:
        plain = ak.with_field(plain, ak.num(jets["constituents"], axis=2), _COUNT)
    jets = plain
    heavier, lighter = order_by_mass(jets)
    return {feature.name: feature.function(heavier, lighter) for feature in features}


def kept_of(jets: AwkwardArray, keep: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Return further fields of pairs of jets as columns of a skim.

    Parameters
    ----------
    jets : awkward.Array
        n lists of exactly two jets.
    keep : sequence of str
        Fields of the jets.

    Returns
    -------
    dict of str to array, shape (n,)
        ``FIELD_j1`` of the heavier jet and ``FIELD_j2`` of the lighter, in the file's type.

    Raises
    ------
    ConfigError
        If the jets have no such field: a correction may have lost it.
    """
    absent = [field for field in keep if field not in jets.fields]
    if absent:
        raise ConfigError(f"selection.keep: the jets have no '{absent[0]}'; they have {', '.join(jets.fields)}")
    pair = order_by_mass(jets[["mass", *keep]]) if keep else ()
    return {
        f"{field}_j{jet}": np.ascontiguousarray(ak.to_numpy(pair[jet - 1][field])) for field in keep for jet in (1, 2)
    }


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
