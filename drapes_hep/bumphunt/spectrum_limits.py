r"""Upper limits on a signal from whole spectra: CLs of the test statistic q~, its distribution asymptotic.

For each number S of signal events, with the efficiency that a signal of this size has,

.. math:: \tilde q_S = \begin{cases} 2 \ln L(0) / L(S) & \hat S < 0 \\ 2 \ln L(\hat S) / L(S) & 0 \le \hat S \le S \\
    0 & \hat S > S \end{cases}

with all other parameters fitted (Cowan, Cranmer, Gross and Vitells, Eur. Phys. J. C 71 (2011) 1554, eq. 16). With
:math:`\tilde q_A` of the counts expected without a signal, their eqs. 64 to 66 give

.. math:: p_S = \begin{cases} 1 - \Phi(\sqrt{\tilde q}) & \tilde q \le \tilde q_A \\
    1 - \Phi((\tilde q + \tilde q_A) / 2 \sqrt{\tilde q_A}) & \tilde q > \tilde q_A \end{cases}

and 1 - p_b with :math:`\tilde q_A` less in the argument, :math:`\mathrm{CL}_s = p_S / (1 - p_b)`. What a background
alone is expected to give at N standard deviations is :math:`(1 - \Phi(\sqrt{\tilde q_A} - N)) / \Phi(N)`.

The efficiency of a cut for a signal of this size is known from a few trainings only: CLs is averaged over them. One
that has found nothing counts as such: what fails its cut still limits the signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from drapes_hep.bumphunt.count_limits import BAND
from drapes_hep.bumphunt.fisher_scoring import Minimum, minimise
from drapes_hep.bumphunt.pass_fail import Background
from drapes_hep.bumphunt.tied_likelihood import TiedLikelihood, TiedModel, VariedTemplate
from drapes_hep.errors import FitError
from drapes_hep.spectrum.poisson import well_conditioned

__all__ = ["ClsScan", "SignalSpectra", "crossing", "scan_signals"]

FloatArray = npt.NDArray[np.float64]

_BLOCK = 128
"""Fits at a time: their gradients have some megabytes."""
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SignalSpectra:
    """What a signal is looked for in, at one cut.

    Attributes
    ----------
    background : Background
        Before the cut.
    passed : array, shape (bins,)
        Counted events that pass; without a cut, all.
    failed : array, shape (bins,), or None
        All others; None without a cut.
    share : array, shape (bins,)
        Part of the events that pass which is counted.
    degree : int
        Of the efficiency's polynomial.
    every, passing : VariedTemplate
        Of all signal events, and of those that pass, which sums to 1 over all masses.
    normalisation : float
        Relative error of the number of signal events.
    additions : array, shape (additions, 2, bins)
        As :class:`~drapes_hep.bumphunt.tied_likelihood.TiedModel` has them.
    expected : tuple of arrays, shape (bins,), or None
        Counts that pass and, with a cut, that fail, as they are expected from outside the window; limits are expected
        of these. None takes the fit of the observed counts without a signal.
    """

    background: Background
    passed: FloatArray
    failed: FloatArray | None
    share: FloatArray
    degree: int
    every: VariedTemplate
    passing: VariedTemplate
    normalisation: float = 0.0
    additions: FloatArray | None = None
    expected: tuple[FloatArray, ...] | None = None


@dataclass(frozen=True)
class ClsScan:
    """CLs of some numbers of signal events, with some efficiencies.

    Attributes
    ----------
    signal : array, shape (n,)
        Events before the cut.
    efficiency : array, shape (m,)
        Part of them that passes.
    observed : array, shape (n, m)
        NaN where a fit did not converge.
    expected : array, shape (n, m, 5)
        For a background at -2 to 2 standard deviations (:data:`~drapes_hep.bumphunt.count_limits.BAND`).
    """

    signal: FloatArray
    efficiency: FloatArray
    observed: FloatArray
    expected: FloatArray

    def averaged(self, efficiency: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Average CLs over trainings.

        Parameters
        ----------
        efficiency : array, shape (n, trainings)
            Of each signal; between those of the scan, ln CLs is linear.

        Returns
        -------
        observed : array, shape (n,)
        expected : array, shape (n, 5)
        """
        every = np.log(np.maximum(np.concatenate([self.observed[..., None], self.expected], axis=2), 1e-300))
        out = np.stack(
            [
                [np.exp(_interpolated(eps, self.efficiency, column)).mean() for column in row.T]
                for eps, row in zip(efficiency, every, strict=True)
            ]
        )
        return out[:, 0], out[:, 1:]


def _interpolated(x: FloatArray, nodes: FloatArray, values: FloatArray) -> FloatArray:
    """Interpolate between the values that are there."""
    finite = np.isfinite(values)
    return np.interp(x, nodes[finite], values[finite]) if finite.any() else np.full(len(x), np.nan)


def scan_signals(spectra: SignalSpectra, signal: FloatArray, efficiency: FloatArray) -> ClsScan:
    """Compute CLs.

    Parameters
    ----------
    spectra : SignalSpectra
    signal : array, shape (n,)
        Numbers of signal events before the cut, above 0.
    efficiency : array, shape (m,)
        Parts of them that may pass, rising; without a cut there is none but 1.

    Returns
    -------
    ClsScan

    Raises
    ------
    FitError
        If the counts cannot be fitted without a signal, or a number of signal events is not positive.
    """
    if not bool(np.all(np.isfinite(signal) & (signal > 0))):
        raise FitError("no limit: a number of signal events is not above 0")
    model = _model(spectra)
    efficiency = efficiency if model.with_cut else np.ones(1)
    shape = (len(signal), len(efficiency))
    each, eps = np.repeat(signal, shape[1]), np.tile(efficiency, shape[0])
    observed = (spectra.passed,) if spectra.failed is None else (spectra.passed, spectra.failed)
    null = _without(model, observed)
    alone = null if spectra.expected is None else _without(model, spectra.expected)
    asimov = tuple(part.mean[0] for part in _likelihood(model, observed, eps[:1]).state(alone.parameters))
    q_asimov, _ = _statistic(model, asimov, each, eps, alone, alone.parameters[0])
    q, converged = _statistic(model, observed, each, eps, null, None)
    own = np.where(converged, _cls(q, q_asimov), np.nan).reshape(shape)
    root = np.sqrt(q_asimov).reshape(shape)[..., None]
    band = np.array(BAND)
    return ClsScan(signal, efficiency, own, np.asarray(special.ndtr(band - root) / special.ndtr(band)))


def crossing(signal: FloatArray, cls: FloatArray, level: float = 0.05) -> float:
    """Return the signal above which all are excluded.

    Parameters
    ----------
    signal : array, shape (n,)
        Rising.
    cls : array, shape (n,)
    level : float

    Returns
    -------
    float
        Between two signals, from the logarithms. Infinite if the largest is not excluded; the smallest if all are.
    """
    allowed = np.flatnonzero(~(cls <= level))
    if not len(allowed):
        return float(signal[0])
    last = int(allowed[-1])
    if last == len(signal) - 1 or not np.isfinite(cls[last]):
        return float("inf")
    low, high = np.log(np.maximum(cls[[last, last + 1]], 1e-300))
    share = (low - np.log(level)) / (low - high)
    return float(np.exp((1.0 - share) * np.log(signal[last]) + share * np.log(signal[last + 1])))


def _model(spectra: SignalSpectra) -> TiedModel:
    background = spectra.background
    bins = len(background.mu)
    terms = 0 if spectra.failed is None else spectra.degree + 1
    additions = np.zeros((0, 2, bins)) if spectra.additions is None else spectra.additions
    return TiedModel(
        background.mu, well_conditioned(background.gradient, background.mu),
        background.u[:, None] ** np.arange(terms), spectra.share, spectra.every, spectra.passing,
        spectra.normalisation, additions,
    )  # fmt: skip


def _likelihood(model: TiedModel, observed: tuple[FloatArray, ...], eps: FloatArray) -> TiedLikelihood:
    counts = tuple(np.broadcast_to(n, (len(eps), len(n))) for n in observed)
    return TiedLikelihood(model, counts, eps, np.zeros((len(eps), model.size)))


def _without(model: TiedModel, observed: tuple[FloatArray, ...]) -> Minimum:
    """Fit the counts without a signal."""
    start = np.zeros((1, model.size))
    if model.with_cut:
        passed = max(float(observed[0].sum()), 0.5) / float((model.share * model.mu).sum())
        start[0, model.basis.shape[1]] = np.log(min(passed, 0.9))
    null = minimise(_likelihood(model, observed, np.zeros(1)), start, model.place, _TOLERANCE)
    if not null.converged[0]:
        raise FitError("no limit: the fit of the spectra without a signal does not converge")
    return null


def _statistic(
    model: TiedModel,
    observed: tuple[FloatArray, ...],
    signal: FloatArray,
    eps: FloatArray,
    null: Minimum,
    centre: FloatArray | None,
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return q~ of each signal, and whether its fits converged.

    With a centre the counts are those expected without a signal, from these parameters.
    """
    q, good = np.empty(len(signal)), np.empty(len(signal), dtype=np.bool_)
    for low in range(0, len(signal), _BLOCK):
        rows = slice(low, low + _BLOCK)
        likelihood = _likelihood(model, observed, eps[rows])
        start = np.repeat(null.parameters, len(eps[rows]), axis=0)
        if centre is not None:
            likelihood = TiedLikelihood(model, likelihood.observed, likelihood.efficiency, start)
        with_signal = start.copy()
        with_signal[:, model.place] = signal[rows]
        fixed = minimise(likelihood, with_signal, model.place, _TOLERANCE)
        if centre is not None:
            # without a signal these counts are described as well as they can be
            best, converged = likelihood.objective(start, likelihood.state(start)), fixed.converged
        else:
            free = minimise(likelihood, start, None, _TOLERANCE)
            fitted = free.parameters[:, model.place]
            best = np.where(fitted < 0, null.objective[0], free.objective)
            best = np.where(fitted > signal[rows], fixed.objective, best)
            converged = fixed.converged & free.converged
        q[rows], good[rows] = np.maximum(2.0 * (fixed.objective - best), 0.0), converged
    return q, good


def _cls(q: FloatArray, q_asimov: FloatArray) -> FloatArray:
    root, expected = np.sqrt(q), np.sqrt(np.maximum(q_asimov, 1e-12))
    beyond = q > q_asimov
    both = np.where(beyond, 0.5 * (q + q_asimov) / expected, root)
    alone = np.where(beyond, 0.5 * (q - q_asimov) / expected, root - expected)
    return np.asarray(special.ndtr(-both) / special.ndtr(-alone))
