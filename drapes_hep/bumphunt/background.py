r"""Whether the mass shape describes the background: F-test, lower edge, spurious signal. Masses in GeV.

*F-test.* Along the dijet functions of 3, 4 and 5 parameters (:data:`CHAIN`),

.. math:: F = \frac{\chi^2_a - \chi^2_b}{\chi^2_b / \nu_b},

with one parameter more in b than in a, follows the F distribution of 1 and :math:`\nu_b` degrees of freedom if that
parameter describes noise. The first p-value above :data:`F_LEVEL` ends the chain, and a is chosen.

*Spurious signal of a window.* An alternative shape f that describes the spectrum is taken for the truth: the shape of
the search is fitted to its expectation :math:`\mu_f` outside the window, without fluctuations. What it leaves inside,

.. math:: S_f = \sum_{in} (\mu_f - \hat\mu[\mu_f]),

is a signal that the shape alone would find. :math:`S_{spur}` is the largest :math:`|S_f|`, and is added in quadrature
to the error of the expectation. An alternative counts if its goodness of fit is above :data:`ALTERNATIVE_LEVEL`, and if
it is not contained in the shape of the search, of which it could differ nowhere. Where none counts, the spurious signal
is not assessed: that is not 0.

*Which bins are fitted.* The alternatives are fitted to all visible bins: of an open search the whole range, of a
blinded one what lies outside all windows. Fitted outside one window alone, the alternative goes through the same
sidebands as the shape and its distance is taken for smaller than it is (in 300,000 simulated QCD events 0.5 instead of
2.1 standard deviations). But a strong resonance makes every fit of the whole range poor. An alternative that is poor
there is fitted outside the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.expectation import InclusiveSpectra, WindowBins, inclusive_expectations, window_bins
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.errors import FitError
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import SpectrumFit, bin_model, fit_spectrum
from drapes_hep.spectrum.shapes import SHAPES, SpectrumShape, resolved

__all__ = [
    "ALTERNATIVE_LEVEL",
    "FLAGGED",
    "WARNED",
    "Alternative",
    "BackgroundCheck",
    "FTest",
    "LowerEdge",
    "SpuriousSignal",
    "check_background",
    "f_test_chain",
    "scan_lower_edge",
    "spurious_signals",
    "verdict_of",
    "with_spurious",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CHAIN = ("dijet3", "dijet4", "dijet5")
"""Each has one parameter more than the one before it."""
F_LEVEL = 0.05
"""A p-value above it ends the chain."""
ALTERNATIVE_LEVEL = 0.05
"""Goodness of fit that an alternative needs."""
DESCRIBES_LEVEL = 0.05
"""Goodness of fit from which the shape is said to describe the data."""
FLAGGED, WARNED = 0.5, 0.2
"""Spurious signal over the standard deviation of the count: it decides the result, or weakens it."""
_EDGES = 16
"""Lower edges of the scan, at most."""


@dataclass(frozen=True)
class FTest:
    """One step of the chain.

    Attributes
    ----------
    shape, more : str
        The shape, and the one with a parameter more.
    f : float or None
        F of the module's head; None where one of the fits did not converge.
    p_value : float or None
    """

    shape: str
    more: str
    f: float | None
    p_value: float | None


@dataclass(frozen=True)
class LowerEdge:
    """The fit of the shape from one mass on.

    Attributes
    ----------
    low : float
        GeV.
    chi2 : float or None
        2NLLR; None where it is not finite.
    ndof : int
    p_value : float
        0 where the fit did not converge.
    """

    low: float
    chi2: float | None
    ndof: int
    p_value: float


@dataclass(frozen=True)
class Alternative:
    """An alternative shape, and what it says of one window.

    Attributes
    ----------
    shape : str
    p_value : float
        Goodness of its fit; 0 where it did not converge.
    window_included : bool
        Fitted to all visible bins; if not, outside the window.
    events : float or None
        S_f; None if the fit is poor.
    fraction : float or None
        S_f over the standard deviation sqrt(mu + s^2) of the window's count.
    """

    shape: str
    p_value: float
    window_included: bool
    events: float | None
    fraction: float | None


def verdict_of(fraction: float | None) -> str:
    """Return what a spurious signal of so many standard deviations means for its window.

    Parameters
    ----------
    fraction : float or None
        Of either sign; None where no alternative describes the data.

    Returns
    -------
    str
        ``small``, ``warned`` (above :data:`WARNED`), ``flagged`` (above :data:`FLAGGED`) or ``not assessed``.
    """
    if fraction is None:
        return "not assessed"
    return "flagged" if abs(fraction) > FLAGGED else "warned" if abs(fraction) > WARNED else "small"


@dataclass(frozen=True)
class SpuriousSignal:
    """The spurious signal of one window.

    Attributes
    ----------
    sr : Window
    events : float or None
        The S_f that is largest in magnitude, with its sign; None if not assessed.
    fraction : float or None
        Its magnitude over the standard deviation sqrt(mu + s^2) of the window's count.
    shape : str or None
        The alternative.
    alternatives : tuple of Alternative
    difference : array, shape (bins,), or None
        mu_f less the shape fitted to it, bin by bin: ``events`` is its sum over the window.
    """

    sr: Window
    events: float | None
    fraction: float | None
    shape: str | None
    alternatives: tuple[Alternative, ...]
    difference: FloatArray | None = field(default=None, compare=False)

    @property
    def size(self) -> float:
        """Events that are added in quadrature to the error; 0 if not assessed."""
        return 0.0 if self.events is None else abs(self.events)

    @property
    def verdict(self) -> str:
        """``small``, ``warned``, ``flagged`` or ``not assessed``."""
        return verdict_of(self.fraction)


@dataclass(frozen=True)
class BackgroundCheck:
    """The mass shape of a search against its data.

    Attributes
    ----------
    f_tests : tuple of FTest
        As far as the chain went.
    chosen : str or None
        Where it ended; None where a fit did not converge.
    lower_edges : tuple of LowerEdge
        Rising.
    describes_from : float or None
        GeV; the lowest edge of the scan from which the shape describes the data, by a p-value above
        :data:`DESCRIBES_LEVEL`. None if it describes them from none.
    """

    f_tests: tuple[FTest, ...]
    chosen: str | None
    lower_edges: tuple[LowerEdge, ...]
    describes_from: float | None


def check_background(
    counts: SelectedCounts, shape: str | SpectrumShape = "dijet4", sqrt_s: float = 13_000.0
) -> BackgroundCheck:
    """Test the mass shape on all visible bins.

    Parameters
    ----------
    counts : SelectedCounts
        Of any window: the inclusive counts are used, outside the hidden bins.
    shape : SpectrumShape or str
    sqrt_s : float
        GeV.

    Returns
    -------
    BackgroundCheck
    """
    inclusive, visible = counts.nested[0], ~counts.hidden
    tests, chosen = f_test_chain(inclusive, counts.edges, sqrt_s, visible)
    edges = scan_lower_edge(inclusive, counts.edges, shape, sqrt_s, visible)
    describes = next((edge.low for edge in edges if edge.p_value > DESCRIBES_LEVEL), None)
    return BackgroundCheck(tests, chosen, edges, describes)


def f_test_chain(
    counts: FloatArray, edges: FloatArray, sqrt_s: float = 13_000.0, fitted: BoolArray | None = None
) -> tuple[tuple[FTest, ...], str | None]:
    """Compare the dijet functions, each with the one that has a parameter more, until that one is not needed.

    Parameters
    ----------
    counts : array, shape (bins,)
    edges : array, shape (bins + 1,)
        GeV.
    sqrt_s : float
        GeV.
    fitted : array of bool, shape (bins,), optional
        Bins that may be looked at; all by default.

    Returns
    -------
    tests : tuple of FTest
    chosen : str or None
        The function that needs no more parameters; None where a fit did not converge.
    """
    tests: list[FTest] = []
    fit = _fit(counts, edges, CHAIN[0], sqrt_s, fitted)
    for name, more in pairwise(CHAIN):
        wider = _fit(counts, edges, more, sqrt_s, fitted)
        if fit is None or wider is None or wider.ndof < 1 or wider.chi2 <= 0:
            return (*tests, FTest(name, more, None, None)), None
        f = max(fit.chi2 - wider.chi2, 0.0) / (wider.chi2 / wider.ndof)
        p = float(special.fdtrc(1, wider.ndof, f))
        tests.append(FTest(name, more, f, p))
        if p > F_LEVEL:
            return tuple(tests), name
        fit = wider
    return tuple(tests), CHAIN[-1]


def scan_lower_edge(
    counts: FloatArray,
    edges: FloatArray,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    fitted: BoolArray | None = None,
) -> tuple[LowerEdge, ...]:
    """Fit the shape from rising lower edges on, over the lower half of the bins.

    Parameters
    ----------
    counts : array, shape (bins,)
    edges : array, shape (bins + 1,)
        GeV.
    shape : SpectrumShape or str
    sqrt_s : float
        GeV.
    fitted : array of bool, shape (bins,), optional
        Bins that may be looked at; all by default. An edge that no visible bin starts at is left out.

    Returns
    -------
    tuple of LowerEdge
        As far as there are bins enough to fit.
    """
    visible = np.ones(len(counts), dtype=np.bool_) if fitted is None else fitted
    out = []
    for i in range(0, len(counts) // 2 + 1, max(1, len(counts) // (2 * (_EDGES - 1)))):
        if not visible[i]:
            continue
        try:
            fit = fit_spectrum(counts, edges, None, shape, sqrt_s, fitted=visible & (np.arange(len(counts)) >= i))
        except FitError:  # fewer filled bins than the shape has parameters
            break
        out.append(
            LowerEdge(
                float(edges[i]),
                fit.chi2 if np.isfinite(fit.chi2) else None,
                fit.ndof,
                fit.p_value if fit.valid else 0.0,
            )
        )
    return tuple(out)


def spurious_signals(
    counts: SelectedCounts,
    windows: Sequence[Window],
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
) -> tuple[SpuriousSignal, ...]:
    """Compute the spurious signal of each window.

    Parameters
    ----------
    counts : SelectedCounts
        Of any window: the inclusive counts are used, outside the hidden bins.
    windows : sequence of Window
    shape : SpectrumShape or str
        Of the search. The package's other shapes are its alternatives.
    sqrt_s : float
        GeV.

    Returns
    -------
    tuple of SpuriousSignal
        One per window.

    Raises
    ------
    FitError
        If the bins do not have a window's edges.
    """
    nominal, inclusive, edges = resolved(shape), counts.nested[0], counts.edges
    z = np.linspace(edges[0], edges[-1], 257) / sqrt_s
    names = [name for name, other in SHAPES.items() if not _contained(other.basis(z), nominal.basis(z))]
    wholes = {name: _fit(inclusive, edges, name, sqrt_s, ~counts.hidden) for name in names}
    out = []
    for window in windows:
        bins = window_bins(edges, window, counts.hidden)
        rows = [_alternative(name, wholes[name], nominal, inclusive, edges, bins, sqrt_s) for name in names]
        assessed = [row for row in rows if row[0].events is not None]
        largest, difference = max(assessed, key=lambda row: abs(row[0].events or 0.0), default=(None, None))
        alternatives = tuple(alternative for alternative, _ in rows)
        if largest is None or largest.fraction is None:
            out.append(SpuriousSignal(window, None, None, None, alternatives))
        else:
            fraction = abs(largest.fraction)
            out.append(SpuriousSignal(window, largest.events, fraction, largest.shape, alternatives, difference))
    return tuple(out)


def _alternative(
    name: str,
    whole: SpectrumFit | None,
    nominal: SpectrumShape,
    counts: FloatArray,
    edges: FloatArray,
    bins: WindowBins,
    sqrt_s: float,
) -> tuple[Alternative, FloatArray | None]:
    """Compute S_f of one alternative, and the difference bin by bin."""
    fit, is_whole = whole, True
    if fit is None or fit.p_value <= ALTERNATIVE_LEVEL:
        outside = _fit(counts, edges, name, sqrt_s, bins.outside)
        if outside is not None and outside.p_value > ALTERNATIVE_LEVEL:
            fit, is_whole = outside, False
    if fit is None or fit.p_value <= ALTERNATIVE_LEVEL:
        return Alternative(name, 0.0 if fit is None else fit.p_value, True, None, None), None
    again = _fit(fit.expected, edges, nominal, sqrt_s, bins.outside)
    if again is None:
        return Alternative(name, fit.p_value, is_whole, None, None), None
    _, gradient = bin_model(nominal, sqrt_s, edges, again.parameters)
    mu, error = inclusive_expectations(InclusiveSpectra(again.expected[None], gradient, again.covariance[None]), bins)
    difference = fit.expected - again.expected
    events = float(difference[bins.inside].sum())
    fraction = events / float(np.sqrt(mu[0] + error[0] ** 2))
    return Alternative(name, fit.p_value, is_whole, events, fraction), difference


def _fit(
    counts: FloatArray, edges: FloatArray, shape: str | SpectrumShape, sqrt_s: float, fitted: BoolArray | None
) -> SpectrumFit | None:
    """Fit, or return None where there are too few filled bins or the fit does not converge."""
    try:
        fit = fit_spectrum(counts, edges, None, shape, sqrt_s, fitted=fitted)
    except FitError:
        return None
    return fit if fit.valid else None


def _contained(functions: FloatArray, others: FloatArray) -> bool:
    """Whether each function is a combination of the others."""
    size = np.linalg.norm(functions, axis=0)
    scaled = others / np.linalg.norm(others, axis=0)
    rest = functions - scaled @ np.linalg.lstsq(scaled, functions)[0]
    return bool(np.all(np.linalg.norm(rest, axis=0) <= 1e-9 * size))


def with_spurious(
    error: npt.ArrayLike, expected: npt.ArrayLike, inclusive: npt.ArrayLike, spurious: float
) -> FloatArray:
    """Add the spurious signal to the error of an expectation, scaled by the efficiency of the cut.

    Parameters
    ----------
    error, expected : array_like, shape (n,)
        At the cut.
    inclusive : array_like, shape (n,)
        The expectation without a cut.
    spurious : float
        Events without a cut.

    Returns
    -------
    array, shape (n,)
    """
    if spurious == 0:
        return np.asarray(error, dtype=np.float64)
    efficiency = np.asarray(expected, dtype=np.float64) / np.maximum(np.asarray(inclusive, dtype=np.float64), 1e-300)
    return np.asarray(np.hypot(error, spurious * efficiency), dtype=np.float64)
