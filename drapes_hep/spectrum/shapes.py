r"""Shapes of the falling m_JJ spectrum: the package's own, and those that a configuration names. Masses in GeV.

With :math:`z = m / \sqrt{s}`, the density (events per GeV) of the dijet searches is

.. math:: f(z) = p_1 (1 - z)^{p_2} z^{p_3 + p_4 \ln z + p_5 \ln^2 z},

``dijet3`` with :math:`p_4 = p_5 = 0`, ``dijet4`` with :math:`p_5 = 0` (CDF, Phys. Rev. D 79 (2009) 112002, and every
CMS and ATLAS dijet search since), ``dijet5`` in full. Its logarithm is linear in :math:`(\ln p_1, p_2, ...)`:

.. math:: \ln f = \sum_k p_k g_k(z), \quad g = (1, \ln(1 - z), \ln z, \ln^2 z, \ln^3 z).

``ua2`` is a second, UA2-like family, :math:`f(z) = p_1 z^{p_2} \exp(p_3 z + p_4 z^2)`: a falling power times an
exponential, with :math:`g = (1, \ln z, z, z^2)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.config import MassConfig
from drapes_hep.errors import ConfigError, FitError, UsersCode, describe_error
from drapes_hep.plugins import Kind, class_with, is_users, load_class, source_hashes

__all__ = ["SHAPES", "SpectrumShape", "find_shape", "resolved", "shape_sources"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SpectrumShape:
    """A density whose logarithm is linear in its parameters.

    Attributes
    ----------
    name : str
        As ``mass.fit`` spells it.
    title : str
        What figures and tables call it.
    parameter_names : tuple of str
        The first is ln p1, p1 in events per GeV.
    basis : callable
        z (any shape) to the g_k, shape (..., k).
    """

    name: str
    title: str
    parameter_names: tuple[str, ...]
    basis: Callable[[FloatArray], FloatArray]


def _dijet(parameters: int) -> SpectrumShape:
    def basis(z: FloatArray) -> FloatArray:
        columns = [np.ones_like(z), np.log1p(-z), np.log(z)]
        for _ in range(3, parameters):
            columns.append(columns[-1] * columns[2])
        return np.stack(columns, axis=-1)

    names = ("ln_p1", *(f"p{i}" for i in range(2, parameters + 1)))
    return SpectrumShape(f"dijet{parameters}", f"dijet function of {parameters} parameters", names, basis)


def _ua2() -> SpectrumShape:
    def basis(z: FloatArray) -> FloatArray:
        return np.stack([np.ones_like(z), np.log(z), z, z * z], axis=-1)

    return SpectrumShape("ua2", "UA2-like function of 4 parameters", ("ln_p1", "p2", "p3", "p4"), basis)


SHAPES: Mapping[str, SpectrumShape] = {shape.name: shape for shape in (_dijet(3), _dijet(4), _dijet(5), _ua2())}
"""The package's shapes, by the names that ``mass.fit`` of a configuration takes."""

_KIND = Kind("shape", "mass.fit", "a mass shape", class_with("basis"))


@dataclass(frozen=True)
class _UsersBasis:
    """The basis of a user's shape: what it raises, and what is no finite number for each mass, is one line."""

    name: str
    shape: Any
    parameters: int

    def __call__(self, z: FloatArray) -> FloatArray:
        flat = np.ravel(np.asarray(z, dtype=np.float64))
        where = f"mass.fit {self.name}"
        failed = UsersCode(lambda error: ConfigError(f"{where}: {describe_error(error, is_users)}"))
        with failed, np.errstate(all="ignore"):  # what is not finite is refused below
            columns = np.asarray(self.shape.basis(flat.copy()))
        if columns.shape != (len(flat), self.parameters) or columns.dtype.kind not in "iuf":
            raise ConfigError(
                f"{where}: basis(z) returned {columns.dtype} of shape {columns.shape} for {len(flat)} masses,"
                f" not numbers of shape ({len(flat)}, {self.parameters}), a column for each of parameter_names"
            )
        if not np.isfinite(columns).all():
            bad = flat[~np.isfinite(columns).all(axis=1)][0]
            raise ConfigError(f"{where}: basis(z) is NaN or infinity at z = {bad:.4g}")
        return columns.astype(np.float64).reshape(*np.shape(z), self.parameters)


def find_shape(config: MassConfig) -> SpectrumShape:
    """Find the mass shape that a configuration names.

    Parameters
    ----------
    config : MassConfig
        Its ``fit`` is a key of :data:`SHAPES`, an installed package's name, ``file.py:Class`` or
        ``package.module:Class``.

    Returns
    -------
    SpectrumShape

    Raises
    ------
    ConfigError
        If there is no such class, or it is no density whose logarithm is linear in its parameters, over the range.
    """
    if config.fit in SHAPES:
        return SHAPES[config.fit]
    user_class, where = load_class(_KIND, config.fit, config.folder), f"mass.fit {config.fit}"
    with UsersCode(lambda error: ConfigError(f"{where}: {describe_error(error, is_users)}")):
        user_shape = user_class()
        names: Any = getattr(user_shape, "parameter_names", None)
        title: Any = getattr(user_shape, "title", user_class.__name__)
    if not isinstance(title, str) or not title.strip() or "\n" in title:
        raise ConfigError(f"{where}: title is {title!r}, not a line of text")
    whole = isinstance(names, (tuple, list)) and all(isinstance(name, str) and name for name in names)
    if not whole or len(names) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"{where}: parameter_names is {names!r}, not two or more different names")
    shape = SpectrumShape(config.fit, title, tuple(names), _UsersBasis(config.fit, user_shape, len(names)))
    _check_basis(shape, np.linspace(*config.fitted, 257) / config.sqrt_s)
    return shape


def _check_basis(shape: SpectrumShape, z: FloatArray) -> None:
    """Refuse functions that no fit can tell apart, that leave the number of events fixed, or that see other masses."""
    where, g = f"mass.fit {shape.name}", shape.basis(z)
    if not np.allclose(g[:1], shape.basis(z[:1]), rtol=1e-12, atol=0):
        raise ConfigError(
            f"{where}: basis(z) of one mass depends on the other masses: compute each row from its z alone"
        )
    size = np.linalg.norm(g, axis=0)
    zero = [name for name, norm in zip(shape.parameter_names, size, strict=True) if norm == 0]
    if zero:
        raise ConfigError(f"{where}: the basis function of {zero[0]} is zero over the fitted range")
    values = np.linalg.svd(g / size, compute_uv=False)
    if values[-1] < 1e-12 * values[0]:
        raise ConfigError(f"{where}: the basis functions are not independent over the fitted range: leave one out")
    solved = (g / size) @ np.linalg.lstsq(g / size, np.ones(len(z)))[0]
    if np.abs(solved - 1).max() > 1e-6:
        raise ConfigError(
            f"{where}: no combination of the basis functions is constant, so the number of events could not be fitted:"
            " begin with a column of ones"
        )


def shape_sources(config: MassConfig) -> list[str]:
    """Return the hashes of the files of a user's mass shape; none for the package's own. Raises ConfigError."""
    return [] if config.fit in SHAPES else list(source_hashes(load_class(_KIND, config.fit, config.folder)))


def resolved(shape: str | SpectrumShape) -> SpectrumShape:
    """Return a shape itself, or the package's own of a name; raises FitError."""
    if isinstance(shape, SpectrumShape):
        return shape
    if shape not in SHAPES:
        raise FitError(f"unknown spectrum shape {shape!r}; there are {', '.join(SHAPES)}")
    return SHAPES[shape]
