r"""Shapes of a resonance in m_JJ. Masses in GeV.

A shape of mass M and resolution :math:`\sigma(M)` is a distribution function of m. Its template holds the fraction of
the signal in each bin, which sums to the fraction inside the fitted range.

The double-sided Crystal Ball has, with :math:`t = (m - M) / \sigma`, the density :math:`e^{-t^2/2}` for
:math:`-\alpha_l \le t \le \alpha_h` and the power laws
:math:`e^{-\alpha^2/2} [1 + \frac{\alpha}{n} (|t| - \alpha)]^{-n}` beyond.

Between simulated samples of several masses, the distribution functions of m/M are interpolated horizontally: each of
their quantiles is linear in M (Read, NIM A 425 (1999) 357).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    "interpolated_shape",
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
    return interpolated_shape({mass: (masses, weights)}, title)


def interpolated_shape(
    samples: Mapping[float, tuple[npt.ArrayLike, npt.ArrayLike]], title: str = "samples"
) -> SignalShape:
    """Return the shape between simulated samples; beyond them, the nearest is scaled by the ratio of the masses.

    Parameters
    ----------
    samples : mapping
        Mass of the resonance to m_JJ and weights of its sample, as for :func:`sample_shape`.
    title : str

    Returns
    -------
    SignalShape
        Its resolution is half the central 68.3 % of the distribution.
    """
    nodes = np.array(sorted(samples))
    quantiles = [_quantiles(*samples[mass], mass) for mass in nodes]
    half = [0.5 * float(np.subtract(*np.interp(special.ndtr([1.0, -1.0]), f, x))) for x, f in quantiles]

    def distribution(m: FloatArray, of: FloatArray) -> FloatArray:
        rows = []
        for mass in np.ravel(of):
            upper = int(np.searchsorted(nodes, mass))
            # the same sample twice beyond the ends
            low, high = (int(np.clip(place, 0, len(nodes) - 1)) for place in (upper - 1, upper))
            share = (mass - nodes[low]) / (nodes[high] - nodes[low]) if high > low else 0.0
            rows.append(_between(m / mass, quantiles[low], quantiles[high], float(share)))
        return np.stack(rows)

    return SignalShape(title, lambda mass: np.asarray(np.interp(mass, nodes, half) * mass), distribution)


_Quantiles = tuple[FloatArray, FloatArray]
"""m/M, rising, and the fraction of the sample below."""


def _quantiles(masses: npt.ArrayLike, weights: npt.ArrayLike, mass: float) -> _Quantiles:
    relative = np.asarray(masses, dtype=np.float64) / mass
    order = np.argsort(relative, kind="stable")
    weight = np.asarray(weights, dtype=np.float64)[order]
    # each event is spread from the middle before it to the middle after it: no step at a bin's edge
    below = np.cumsum(weight) - 0.5 * weight
    return relative[order], below / weight.sum()


def _between(relative: FloatArray, low: _Quantiles, high: _Quantiles, share: float) -> FloatArray:
    """Compute the fraction below m/M of a resonance between two samples, at a share of their distance."""
    if share in (0.0, 1.0):
        x, fraction = high if share else low
    else:
        fraction = np.union1d(low[1], high[1])
        x = (1.0 - share) * np.interp(fraction, low[1], low[0]) + share * np.interp(fraction, high[1], high[0])
    return np.asarray(np.interp(relative, x, fraction, left=0.0, right=1.0), dtype=np.float64)


def _read_sample(path: Path, mass: float) -> tuple[FloatArray, FloatArray]:
    skim = read_skim(path, ("event_id", "mjj", "weight"))
    m, weight = np.asarray(skim["mjj"], dtype=np.float64), np.asarray(skim["weight"], dtype=np.float64)
    remedy = "name the skim/events.parquet of a run on the simulated signal"
    if len(m) < LEAST_SAMPLE:
        raise InputError(path, f"has {counted(len(m), 'event')}; a signal shape needs {LEAST_SAMPLE}", remedy)
    if not bool(np.all(np.isfinite(m) & (m > 0))):
        raise InputError(path, "has a value of mjj that is not a positive number", remedy)
    if not bool(np.all(np.isfinite(weight) & (weight >= 0))) or weight.sum() <= 0:
        raise InputError(path, "has a weight that is negative or not finite, or no weight at all", remedy)
    relative = float(sample_shape(m, weight, mass).resolution(np.array(1.0)))
    if not _LEAST_RESOLUTION <= relative <= _LARGEST_RESOLUTION:
        raise InputError(path, f"has a relative resolution of {relative:.2g}, which is no resonance's", remedy)
    return m, weight


def _sample_title(masses: Mapping[str, float]) -> str:
    """Write which samples a shape is of, and what it is between and beyond them."""
    ordered = sorted(masses.values())
    if len(ordered) == 1:
        return f"sample {Path(next(iter(masses))).name} of {ordered[0]:g} GeV"
    words = ", ".join(f"{mass:g}" for mass in ordered[:-1]) + f" and {ordered[-1]:g}"
    return (
        f"samples of {words} GeV, interpolated; below {ordered[0]:g} and above {ordered[-1]:g} GeV the nearest, scaled"
    )


def _samples(config: SignalShapeConfig) -> dict[str, float]:
    """Return files and masses of the samples, by rising mass."""
    if isinstance(config.sample, dict):
        return dict(sorted(config.sample.items(), key=lambda item: item[1]))
    return {} if config.sample is None or config.mass is None else {config.sample: config.mass}


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
    if samples := _samples(config):
        read = {mass: _read_sample(Path(path), mass) for path, mass in samples.items()}
        return interpolated_shape(read, _sample_title(samples))
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
        Of several samples, their masses and hashes.

    Raises
    ------
    ConfigError
        If a sample cannot be read.
    """
    hashes = {mass: _hash(path) for path, mass in _samples(config).items()}
    if not isinstance(config.sample, dict):
        return next(iter(hashes.values()), None)
    return ", ".join(f"{mass:g}: {text}" for mass, text in hashes.items())


def _hash(path: str) -> str:
    try:
        return file_hash(Path(path))
    except OSError as error:
        raise ConfigError(f"hunt.signal.sample {path}: cannot be read ({error.strerror})") from error


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
