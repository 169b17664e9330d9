r"""The likelihood of one signal in the events that pass a cut and in those that fail, for many fits at once.

Other than in :mod:`drapes_hep.bumphunt.pass_fail`, how much of the signal passes is given. With its efficiency
:math:`\epsilon`, the fractions :math:`t_i` of all its events and :math:`g_i` of those that pass in the bins,

.. math::
    pass_i &\sim \mathrm{Pois}(c_i \mu_i \epsilon_i + S\, c_i\, \epsilon g_i + \nu \cdot a_i), \\
    fail_i &\sim \mathrm{Pois}(\mu_i (1 - c_i \epsilon_i) + S (t_i - c_i\, \epsilon g_i) + \nu \cdot b_i).

The number of signal events S is the same in both: what fails limits it too. Nuisance parameters with a standard normal
prior shift the signal's mass scale, widen it, change its normalisation (S is multiplied by :math:`e^{\delta \nu}`),
and add to both counts what a background may have that its model does not know (a, b). Without a cut there is the first
line alone, with :math:`\epsilon = c = 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.expectation import EFFICIENCY_PRIOR
from drapes_hep.bumphunt.pass_fail_likelihood import add_signal, before_cut, counted_share, half_deviance

__all__ = ["TiedLikelihood", "TiedModel", "VariedTemplate", "varied_template"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VariedTemplate:
    """Fractions of a signal in the bins, as its scale and its resolution change: to second order in both.

    Attributes
    ----------
    nominal : array, shape (bins,)
    slope, curvature : array, shape (parameters, bins)
        First and second derivatives, in standard deviations of the scale and of the resolution; none without errors.
    """

    nominal: FloatArray
    slope: FloatArray
    curvature: FloatArray

    def at(self, nu: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the fractions for parameters (n, parameters), shape (n, bins), and their derivatives in each."""
        gradient = self.slope + nu[:, :, None] * self.curvature
        return self.nominal + np.einsum("nj,njb->nb", nu, 0.5 * (self.slope + gradient)), gradient


def varied_template(
    fractions: FloatArray, edges: FloatArray, scale_error: float, resolution_error: float
) -> VariedTemplate:
    """Shift and widen a histogram of a signal.

    Parameters
    ----------
    fractions : array, shape (bins,)
        Of the signal's events in each bin.
    edges : array, shape (bins + 1,)
        GeV.
    scale_error, resolution_error : float
        Relative standard deviations of mass scale and resolution; 0 leaves one out.

    Returns
    -------
    VariedTemplate
    """
    below = np.concatenate([[0.0], np.cumsum(fractions)])
    total = below[-1]
    middle = float(np.interp(0.5 * total, below, edges)) if total > 0 else float(edges.mean())

    def moved(scale: float, width: float) -> FloatArray:
        original = middle + (edges / scale - middle) / width
        return np.asarray(np.diff(np.interp(original, edges, below)))

    pairs = []
    if scale_error > 0:
        pairs.append((moved(1.0 + scale_error, 1.0), moved(1.0 - scale_error, 1.0)))
    if resolution_error > 0:
        pairs.append((moved(1.0, 1.0 + resolution_error), moved(1.0, 1.0 - resolution_error)))
    slope = [0.5 * (up - down) for up, down in pairs]
    curvature = [up + down - 2.0 * fractions for up, down in pairs]
    shape = (len(pairs), len(fractions))
    return VariedTemplate(fractions, np.reshape(slope, shape), np.reshape(curvature, shape))


@dataclass(frozen=True)
class TiedModel:
    """The means as a function of the parameters (theta, a, S, scale and resolution, normalisation, additions).

    Attributes
    ----------
    mu : array, shape (bins,)
        Background before the cut that ln mu is expanded around.
    basis : array, shape (bins, k)
        Gradient of ln mu.
    design : array, shape (bins, terms)
        Of ln eps; no terms without a cut.
    share : array, shape (bins,)
        Part of the events that pass which is counted.
    every, passing : VariedTemplate
        Of all signal events, and of those that pass, which sums to 1 over all masses.
    normalisation : float
        Relative error of the number of signal events; 0 leaves the parameter out.
    additions : array, shape (additions, 2, bins)
        What each may add to the counts that pass and fail, one standard deviation.
    """

    mu: FloatArray
    basis: FloatArray
    design: FloatArray
    share: FloatArray
    every: VariedTemplate
    passing: VariedTemplate
    normalisation: float
    additions: FloatArray

    @property
    def with_cut(self) -> bool:
        """Whether there are counts that fail."""
        return bool(self.design.shape[1] > 0)

    @property
    def place(self) -> int:
        """Place of S among the parameters."""
        return int(self.basis.shape[1] + self.design.shape[1])

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.place + 1 + len(self.every.slope) + (self.normalisation > 0) + len(self.additions)

    @property
    def precision(self) -> FloatArray:
        """Inverse variances of the priors, shape (size,)."""
        out, k = np.zeros(self.size), self.basis.shape[1]
        out[k + 1 : self.place] = EFFICIENCY_PRIOR**-2
        out[self.place + 1 :] = 1.0
        return out


@dataclass(frozen=True)
class _Means:
    """The means of one kind of counts, shape (n, bins), and their gradient, shape (n, bins, size)."""

    mean: FloatArray
    gradient: FloatArray


@dataclass(frozen=True)
class TiedLikelihood:
    """The likelihood of n fits; meets :class:`~drapes_hep.bumphunt.fisher_scoring.Likelihood`.

    Attributes
    ----------
    model : TiedModel
    observed : tuple of arrays, shape (n, bins)
        Counts that pass and, with a cut, that fail.
    efficiency : array, shape (n,)
        Part of the signal that passes.
    centre : array, shape (n, size)
        Of the priors.
    """

    model: TiedModel
    observed: tuple[FloatArray, ...]
    efficiency: FloatArray
    centre: FloatArray

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.model.size

    def rows(self, rows: IntArray) -> TiedLikelihood:
        """Return that of some fits."""
        observed = tuple(n[rows] for n in self.observed)
        return TiedLikelihood(self.model, observed, self.efficiency[rows], self.centre[rows])

    def state(self, p: FloatArray) -> list[_Means]:
        """Compute means and gradients."""
        model, k, last = self.model, self.model.basis.shape[1], self.model.place
        mu = before_cut(model.mu, model.basis, p[:, :k])
        nu = p[:, last + 1 : last + 1 + len(model.every.slope)]
        if not model.with_cut:
            return [self._means(p, mu, None, model.every.at(nu), model.additions[:, 0])]
        counted, bounded = counted_share(model.design, p[:, k:last], model.share)
        weight = model.share * self.efficiency[:, None]
        passing, moved = model.passing.at(nu)
        passing, moved = weight * passing, weight[:, None, :] * moved
        every, every_moved = model.every.at(nu)
        # ln(1 - c eps) falls by c eps / (1 - c eps) where ln eps rises by 1
        falls = np.where(bounded, 0.0, -counted / (1.0 - counted))
        return [
            self._means(p, mu * counted, np.where(bounded, 0.0, 1.0), (passing, moved), model.additions[:, 0]),
            self._means(p, mu * (1.0 - counted), falls, (every - passing, every_moved - moved), model.additions[:, 1]),
        ]

    def _means(
        self,
        p: FloatArray,
        background: FloatArray,
        efficiency: FloatArray | None,
        template: tuple[FloatArray, FloatArray],
        additions: FloatArray,
    ) -> _Means:
        model, k, last = self.model, self.model.basis.shape[1], self.model.place
        shapes = last + 1 + len(model.every.slope)
        first_addition = shapes + (model.normalisation > 0)
        factor = np.exp(model.normalisation * p[:, shapes])[:, None] if model.normalisation > 0 else 1.0
        unit, events = factor * template[0], p[:, last, None]
        signal = events * unit
        mean, v, slope = add_signal(background, signal + p[:, first_addition:] @ additions)
        gradient = np.empty((*mean.shape, model.size))
        gradient[:, :, :k] = v[:, :, None] * model.basis
        if efficiency is not None:
            gradient[:, :, k:last] = (v * efficiency)[:, :, None] * model.design
        gradient[:, :, last] = slope * unit
        moved = np.expand_dims(np.asarray(factor * events), 2) * template[1]
        gradient[:, :, last + 1 : shapes] = slope[:, :, None] * np.swapaxes(moved, 1, 2)
        if model.normalisation > 0:
            gradient[:, :, shapes] = slope * model.normalisation * signal
        gradient[:, :, first_addition:] = slope[:, :, None] * additions.T
        return _Means(mean, gradient)

    def objective(self, p: FloatArray, state: list[_Means]) -> FloatArray:
        """Compute half the deviance with the priors."""
        value = np.asarray(0.5 * (p - self.centre) ** 2 @ self.model.precision)
        for part, n in zip(state, self.observed, strict=True):
            value = value + half_deviance(part.mean, n)
        return value

    def score_and_information(self, p: FloatArray, state: list[_Means]) -> tuple[FloatArray, FloatArray]:
        """Compute minus the objective's gradient and the expected information."""
        precision = self.model.precision
        score, information = -precision * (p - self.centre), np.tile(np.diag(precision), (len(p), 1, 1))
        for part, n in zip(state, self.observed, strict=True):
            score += np.einsum("nb,nbk->nk", n / part.mean - 1.0, part.gradient)
            weighted = part.gradient / part.mean[:, :, None]
            information += np.swapaxes(weighted, 1, 2) @ part.gradient
        return score, information
