"""The likelihood of the resonance fit, for many fits at once.

The model is that of :mod:`drapes_hep.bumphunt.pass_fail`. Gradients are never held: each is a column that all fits
share (the basis, the design, a template) times a weight of the fit and bin, so that score and information are products
of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.expectation import EFFICIENCY_PRIOR

__all__ = [
    "Counts",
    "Model",
    "PassFailLikelihood",
    "add_signal",
    "before_cut",
    "counted_share",
    "half_deviance",
    "means",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

FLOOR = 0.1
"""Fraction of a bin's background below which a negative signal takes away exponentially less."""
LARGEST_EFFICIENCY = 0.999
"""A cut lets some background of every bin fail: the mean of the events that fail stays positive."""
SLACK = 0.1
"""Width of the penalty on a signal below the least one, in units of that."""
_LARGEST_LOG = 8.0
"""Bound on |ln(mu / mu of the expansion)|, so that a wild step has a finite objective and is halved."""
_LARGEST_LOG_EFFICIENCY = 100.0
"""Bound on -ln eps, for the same reason."""


@dataclass(frozen=True)
class Model:
    """The means as a function of the parameters (theta, a, S_p, S_f, S_p', S_f'); without a cut (theta, S_p, S_p')."""

    mu: FloatArray
    basis: FloatArray
    design: FloatArray
    signals: int

    @property
    def with_cut(self) -> bool:
        """Whether there are counts that fail."""
        return bool(self.design.shape[1] > 0)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.passing + self.signals * (2 if self.with_cut else 1)

    @property
    def passing(self) -> int:
        """Place of S_p among the parameters."""
        return int(self.basis.shape[1] + self.design.shape[1])

    @property
    def precision(self) -> FloatArray:
        """Inverse variances of the priors, shape (size,)."""
        out, k = np.zeros(self.size), self.basis.shape[1]
        out[k + 1 : k + self.design.shape[1]] = EFFICIENCY_PRIOR**-2
        return out

    def split(self, p: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return theta, a and the signals' numbers of events, shape (n, signals, 1 or 2)."""
        k, last = self.basis.shape[1], self.passing
        return p[:, :k], p[:, k:last], p[:, last:].reshape(len(p), self.signals, -1)


@dataclass(frozen=True)
class Counts:
    """Counts and signals of a block, as the minimiser uses them.

    Attributes
    ----------
    observed : tuple of arrays, shape (n, bins)
        Counts that pass and, with a cut, that fail.
    share : array, shape (n, bins)
    templates : array, shape (n, signals, bins)
    least : array, shape (n,)
        S_p below which a penalty holds it back; -inf for none.
    """

    observed: tuple[FloatArray, ...]
    share: FloatArray
    templates: FloatArray
    least: FloatArray

    def rows(self, rows: IntArray) -> Counts:
        """Return the counts of some fits."""
        observed = tuple(n[rows] for n in self.observed)
        return Counts(observed, self.share[rows], self.templates[rows], self.least[rows])

    def beyond(self, signal: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return by how much S_p is below ``least`` in units of the penalty's width, and one over that width."""
        rate = 1.0 / (SLACK * np.maximum(np.abs(self.least), 1e-3))
        return np.minimum(signal - self.least, 0.0) * rate, rate


@dataclass(frozen=True)
class _Part:
    """The mean of one kind of counts, and what its gradient is made of.

    With V = ``shape``, E = ``efficiency`` and w_j the columns of ``signals``, the gradient is V times the basis in
    theta, E times the design in a, and w_j times the template in the signals.
    """

    mean: FloatArray
    shape: FloatArray
    efficiency: FloatArray | None
    signals: tuple[FloatArray, ...]


def add_signal(background: FloatArray, signal: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Add a signal of any sign to a positive background.

    Returns the mean, which is positive, and its derivatives in the logarithm of the background and in the signal.
    """
    x = signal / background
    low = x < FLOOR - 1.0
    if not low.any():
        return background + signal, background, np.ones_like(x)
    tail = FLOOR * np.exp(np.minimum((x - (FLOOR - 1.0)) / FLOOR, 0.0))
    factor, slope = np.where(low, tail, 1.0 + x), np.where(low, tail / FLOOR, 1.0)
    # a mean that underflows would divide by zero
    return np.maximum(background * factor, 1e-300), background * (factor - x * slope), slope


def before_cut(mu: FloatArray, basis: FloatArray, theta: FloatArray) -> FloatArray:
    """Compute the background before a cut, shape (n, bins)."""
    return np.asarray(mu * np.exp(np.clip(theta @ basis.T, -_LARGEST_LOG, _LARGEST_LOG)))


def counted_share(design: FloatArray, a: FloatArray, share: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Compute the part of the background that passes and is counted, and where it is at its bound; (n, bins)."""
    log_eps = a @ design.T
    bounded = log_eps >= np.log(LARGEST_EFFICIENCY)
    return share * np.exp(np.clip(log_eps, -_LARGEST_LOG_EFFICIENCY, np.log(LARGEST_EFFICIENCY))), bounded


def means(model: Model, p: FloatArray, counts: Counts) -> list[_Part]:
    """Compute the means of the counts that pass and, with a cut, of those that fail."""
    theta, a, events = model.split(p)
    c, single = counts.share, counts.templates.shape[1] == 1

    def total(numbers: FloatArray) -> FloatArray:
        return numbers * counts.templates[:, 0] if single else np.einsum("nj,njb->nb", numbers, counts.templates)

    mu = before_cut(model.mu, model.basis, theta)
    if not model.with_cut:
        mean, v, slope = add_signal(mu, total(events[..., 0]))
        return [_Part(mean, v, None, (slope,))]
    counted, bounded = counted_share(model.design, a, c)
    passing, failing = mu * counted, mu * (1.0 - counted)
    s_p, s_f = total(events[..., 0]), total(events[..., 1])
    mean, v, slope = add_signal(passing, c * s_p)
    passed = _Part(mean, v, np.where(bounded, 0.0, v), (slope * c,))
    mean, v, slope = add_signal(failing, s_f + (1.0 - c) * s_p)
    # ln(1 - c eps) falls by c eps / (1 - c eps) where ln eps rises by 1
    e = np.where(bounded, 0.0, -v * counted / (1.0 - counted))
    return [passed, _Part(mean, v, e, (slope * (1.0 - c), slope))]


def half_deviance(mean: FloatArray, n: FloatArray) -> FloatArray:
    """Compute half the deviance of counts from their means, a number a row."""
    return np.asarray((mean - n - n * np.log(mean / np.where(n > 0, n, 1.0))).sum(axis=1))


@dataclass(frozen=True)
class _Products:
    """Products of the columns that all rows share: sums over bins are then products of matrices."""

    basis: FloatArray
    mixed: FloatArray
    design: FloatArray

    @classmethod
    def of(cls, model: Model) -> _Products:
        def outer(x: FloatArray, y: FloatArray) -> FloatArray:
            return np.ascontiguousarray((x[:, :, None] * y[:, None, :]).reshape(len(x), -1))

        return cls(outer(model.basis, model.basis), outer(model.basis, model.design), outer(model.design, model.design))


@dataclass(frozen=True)
class PassFailLikelihood:
    """The likelihood of a model and counts; meets :class:`~drapes_hep.bumphunt.fisher_scoring.Likelihood`."""

    model: Model
    counts: Counts
    products: _Products

    @classmethod
    def of(cls, model: Model, counts: Counts) -> PassFailLikelihood:
        """Return the likelihood, its products of columns computed."""
        return cls(model, counts, _Products.of(model))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.model.size

    def rows(self, rows: IntArray) -> PassFailLikelihood:
        """Return that of some fits."""
        return PassFailLikelihood(self.model, self.counts.rows(rows), self.products)

    def state(self, p: FloatArray) -> list[_Part]:
        """Compute the means."""
        return means(self.model, p, self.counts)

    def objective(self, p: FloatArray, state: list[_Part]) -> FloatArray:
        """Compute half the deviance with the prior."""
        beyond = self.counts.beyond(p[:, self.model.passing])[0]
        value = np.asarray(0.5 * (p**2 @ self.model.precision + beyond**2))
        for part, n in zip(state, self.counts.observed, strict=True):
            value = value + half_deviance(part.mean, n)
        return value

    def score_and_information(self, p: FloatArray, state: list[_Part]) -> tuple[FloatArray, FloatArray]:
        """Compute the score and the expected information of all parameters."""
        return _score_and_information(self.model, self.products, p, self.counts, state)


def _score_and_information(
    model: Model, products: _Products, p: FloatArray, counts: Counts, parts: list[_Part]
) -> tuple[FloatArray, FloatArray]:
    """Compute the score and the expected information of all parameters."""
    rows, k, last = len(p), model.basis.shape[1], model.passing
    terms, score = last - k, np.zeros((rows, model.size))
    information = np.zeros((rows, model.size, model.size))
    for part, n in zip(parts, counts.observed, strict=True):
        inverse = 1.0 / part.mean
        residual, v = n * inverse - 1.0, part.shape * inverse
        score[:, :k] += (residual * part.shape) @ model.basis
        information[:, :k, :k] += ((v * part.shape) @ products.basis).reshape(rows, k, k)
        if part.efficiency is not None:
            e = part.efficiency * inverse
            score[:, k:last] += (residual * part.efficiency) @ model.design
            information[:, :k, k:last] += ((v * part.efficiency) @ products.mixed).reshape(rows, k, terms)
            information[:, k:last, k:last] += ((e * part.efficiency) @ products.design).reshape(rows, terms, terms)
        columns = [
            (last + len(counts.observed) * j + kind, w * counts.templates[:, j])
            for j in range(model.signals)
            for kind, w in enumerate(part.signals)
        ]
        for i, (column, w) in enumerate(columns):
            score[:, column] += np.einsum("nb,nb->n", residual, w)
            information[:, :k, column] += (v * w) @ model.basis
            if part.efficiency is not None:
                information[:, k:last, column] += (e * w) @ model.design
            scaled = w * inverse
            for other, x in columns[i:]:
                information[:, column, other] += np.einsum("nb,nb->n", scaled, x)
    upper = np.triu(np.ones((model.size, model.size), dtype=np.bool_))
    whole = np.where(upper, information, np.swapaxes(information, 1, 2))
    distance, rate = counts.beyond(p[:, last])
    score[:, last] -= distance * rate
    whole[:, last, last] += np.where(distance < 0, rate**2, 0.0)
    return score - model.precision * p, whole + np.diag(model.precision)
