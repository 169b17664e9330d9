r"""Shapes of a resonance in m_JJ. Masses in GeV.

A shape of mass M and resolution :math:`\sigma(M)` is a distribution function of m. Its template holds the fraction of
the signal in each bin, which sums to the fraction inside the fitted range.

The double-sided Crystal Ball has, with :math:`t = (m - M) / \sigma`, the density :math:`e^{-t^2/2}` for
:math:`-\alpha_l \le t \le \alpha_h` and the power laws
:math:`e^{-\alpha^2/2} [1 + \frac{\alpha}{n} (|t| - \alpha)]^{-n}` beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.config import SignalShapeConfig
from drapes_hep.errors import ConfigError, InputError, counted
from drapes_hep.events.skims import read_skim
from drapes_hep.files import file_hash

__all__ = [
    "SignalShape",
    "crystal_ball",
    "find_signal",
    "gaussian",
    "sample_shape",
    "signal_source",
    "signal_templates",
]

FloatArray = npt.NDArray[np.float64]

LEAST_SAMPLE = 100
"""Events of a simulated sample below which it is no shape."""
_LEAST_RESOLUTION, _LARGEST_RESOLUTION = 1e-3, 0.5
"""Relative resolutions between which a sample is taken to be a resonance."""


@dataclass(frozen=True)
class SignalShape:
    """A resonance of any mass.

    Attributes
    ----------
    title : str
        What figures and tables call it.
    resolution : callable
        Mass (any shape) to sigma, GeV.
    distribution : callable
        m, shape (bins + 1,), and M, shape (masses, 1), to the fraction of the signal below m, shape
        (masses, bins + 1).
    """

    title: str
    resolution: Callable[[FloatArray], FloatArray]
    distribution: Callable[[FloatArray, FloatArray], FloatArray]


def _resolution(width: float | tuple[float, float]) -> Callable[[FloatArray], FloatArray]:
    constant, falling = width if isinstance(width, tuple) else (width, 0.0)
    return lambda mass: np.asarray(constant * mass + falling, dtype=np.float64)


def _width_text(width: float | tuple[float, float]) -> str:
    if not isinstance(width, tuple):
        return f"σ/m = {width:g}"
    return f"σ/m = {width[0]:g} + {width[1]:g} GeV/m"


def gaussian(width: float | tuple[float, float]) -> SignalShape:
    """Return a Gaussian.

    Parameters
    ----------
    width : float or tuple of two floats
        sigma/m, or (a, b) of sigma/m = a + b/m, b in GeV.

    Returns
    -------
    SignalShape
    """
    sigma = _resolution(width)
    return SignalShape(
        f"Gaussian, {_width_text(width)}", sigma, lambda m, mass: np.asarray(special.ndtr((m - mass) / sigma(mass)))
    )


def crystal_ball(width: float | tuple[float, float], tails: tuple[float, float, float, float]) -> SignalShape:
    """Return a double-sided Crystal Ball function.

    Parameters
    ----------
    width : float or tuple of two floats
        Of the core, as for :func:`gaussian`.
    tails : tuple of four floats
        alpha and n at low mass, alpha and n at high mass; alpha above 0, n above 1.

    Returns
    -------
    SignalShape
    """
    sigma = _resolution(width)
    low_alpha, low_n, high_alpha, high_n = tails
    low, high = _tail(0.0, low_alpha, low_n), _tail(0.0, high_alpha, high_n)
    root = np.sqrt(2.0 * np.pi)
    core = root * (special.ndtr(high_alpha) - special.ndtr(-low_alpha))
    total = float(low + core + high)

    def distribution(m: FloatArray, mass: FloatArray) -> FloatArray:
        t = (m - mass) / sigma(mass)
        inside = np.clip(t, -low_alpha, high_alpha)
        below = _tail(np.maximum(-t - low_alpha, 0.0), low_alpha, low_n)
        middle = root * (special.ndtr(inside) - special.ndtr(-low_alpha))
        above = high - _tail(np.maximum(t - high_alpha, 0.0), high_alpha, high_n)
        return np.asarray((below + middle + above) / total)

    return SignalShape(f"double-sided Crystal Ball, {_width_text(width)}", sigma, distribution)


def _tail(beyond: npt.ArrayLike, alpha: float, n: float) -> FloatArray:
    """Integrate a power law from ``alpha + beyond`` to infinity, in standard deviations of the core."""
    base = 1.0 + alpha / n * np.asarray(beyond, dtype=np.float64)
    return np.asarray(np.exp(-0.5 * alpha**2) * n / (alpha * (n - 1.0)) * base ** (1.0 - n))


def sample_shape(masses: npt.ArrayLike, weights: npt.ArrayLike, mass: float, title: str = "sample") -> SignalShape:
    """Return the shape of a simulated sample; at another mass, its m_JJ are scaled by the ratio of the masses.

    Parameters
    ----------
    masses : array_like, shape (n,)
        m_JJ of the sample.
    weights : array_like, shape (n,)
        Not negative.
    mass : float
        Mass of the resonance in the sample.
    title : str

    Returns
    -------
    SignalShape
        Its resolution is half the central 68.3 % of the sample.
    """
    relative = np.asarray(masses, dtype=np.float64) / mass
    order = np.argsort(relative, kind="stable")
    x = relative[order]
    weight = np.asarray(weights, dtype=np.float64)[order]
    # each event is spread from the middle before it to the middle after it: no step at a bin's edge
    below = np.cumsum(weight) - 0.5 * weight
    fraction = below / weight.sum()
    first, last = np.interp([special.ndtr(-1.0), special.ndtr(1.0)], fraction, x)
    half = 0.5 * float(last - first)

    def distribution(m: FloatArray, of: FloatArray) -> FloatArray:
        return np.asarray(np.interp(m / of, x, fraction, left=0.0, right=1.0), dtype=np.float64)

    return SignalShape(title, _resolution(half), distribution)


def _read_sample(path: Path, mass: float) -> SignalShape:
    skim = read_skim(path, ("event_id", "mjj", "weight"))
    m, weight = np.asarray(skim["mjj"], dtype=np.float64), np.asarray(skim["weight"], dtype=np.float64)
    remedy = "name the skim/events.parquet of a run on the simulated signal"
    if len(m) < LEAST_SAMPLE:
        raise InputError(path, f"has {counted(len(m), 'event')}; a signal shape needs {LEAST_SAMPLE}", remedy)
    if not bool(np.all(np.isfinite(m) & (m > 0))):
        raise InputError(path, "has a value of mjj that is not a positive number", remedy)
    if not bool(np.all(np.isfinite(weight) & (weight >= 0))) or weight.sum() <= 0:
        raise InputError(path, "has a weight that is negative or not finite, or no weight at all", remedy)
    shape = sample_shape(m, weight, mass, f"sample {path.name} of {mass:g} GeV")
    relative = float(shape.resolution(np.array(1.0)))
    if not _LEAST_RESOLUTION <= relative <= _LARGEST_RESOLUTION:
        raise InputError(path, f"has a relative resolution of {relative:.2g}, which is no resonance's", remedy)
    return shape


def find_signal(config: SignalShapeConfig) -> SignalShape:
    """Find the shape of the signal that a configuration describes.

    Parameters
    ----------
    config : SignalShapeConfig

    Returns
    -------
    SignalShape

    Raises
    ------
    InputError
        If a sample cannot be read, or is no resonance's.
    """
    if config.sample is not None and config.mass is not None:
        return _read_sample(Path(config.sample), config.mass)
    if config.tails is not None:
        return crystal_ball(config.width, config.tails)
    return gaussian(config.width)


def signal_source(config: SignalShapeConfig) -> str | None:
    """Return the hash of the sample that the shape is of; None without one.

    Parameters
    ----------
    config : SignalShapeConfig

    Returns
    -------
    str or None

    Raises
    ------
    ConfigError
        If the sample cannot be read.
    """
    if config.sample is None:
        return None
    try:
        return file_hash(Path(config.sample))
    except OSError as error:
        raise ConfigError(f"hunt.signal.sample {config.sample}: cannot be read ({error.strerror})") from error


def signal_templates(shape: SignalShape, masses: npt.ArrayLike, edges: npt.ArrayLike) -> FloatArray:
    """Compute the fraction of the signal in each bin.

    Parameters
    ----------
    shape : SignalShape
    masses : array_like, shape (n,)
        GeV.
    edges : array_like, shape (bins + 1,)
        GeV.

    Returns
    -------
    array, shape (n, bins)
        A row sums to the fraction inside the range.
    """
    m, e = np.asarray(masses, dtype=np.float64)[:, None], np.asarray(edges, dtype=np.float64)
    return np.asarray(np.maximum(np.diff(shape.distribution(e, m), axis=1), 0.0))
