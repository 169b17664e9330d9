"""The likelihood of the resonance fit, and its minimum, for many fits at once.

The model is that of :mod:`drapes_hep.bumphunt.pass_fail`. Gradients are never held: each is a column that all fits
share (the basis, the design, a template) times a weight of the fit and bin, so that score and information are products
of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.expectation import EFFICIENCY_PRIOR

__all__ = ["Counts", "Minimum", "Model", "means", "minimise"]

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
TOLERANCE = 1e-9
"""On the decrement of ln L: the estimate is then within some 5e-5 standard deviations."""
_ITERATIONS = 200


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
class Minimum:
    """Minima of many fits.

    Attributes
    ----------
    parameters : array, shape (n, size)
    objective : array, shape (n,)
        Half the deviance, with the prior.
    information : array, shape (n, size, size)
        Expected, of all parameters, the fixed one included.
    converged : array of bool, shape (n,)
    """

    parameters: FloatArray
    objective: FloatArray
    information: FloatArray
    converged: BoolArray


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


def _add_signal(background: FloatArray, signal: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
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


def means(model: Model, p: FloatArray, counts: Counts) -> list[_Part]:
    """Compute the means of the counts that pass and, with a cut, of those that fail."""
    theta, a, events = model.split(p)
    c, single = counts.share, counts.templates.shape[1] == 1

    def total(numbers: FloatArray) -> FloatArray:
        return numbers * counts.templates[:, 0] if single else np.einsum("nj,njb->nb", numbers, counts.templates)

    mu = model.mu * np.exp(np.clip(theta @ model.basis.T, -_LARGEST_LOG, _LARGEST_LOG))
    if not model.with_cut:
        mean, v, slope = _add_signal(mu, total(events[..., 0]))
        return [_Part(mean, v, None, (slope,))]
    log_eps = a @ model.design.T
    bounded = log_eps >= np.log(LARGEST_EFFICIENCY)
    counted = c * np.exp(np.clip(log_eps, -_LARGEST_LOG_EFFICIENCY, np.log(LARGEST_EFFICIENCY)))
    passing, failing = mu * counted, mu * (1.0 - counted)
    s_p, s_f = total(events[..., 0]), total(events[..., 1])
    mean, v, slope = _add_signal(passing, c * s_p)
    passed = _Part(mean, v, np.where(bounded, 0.0, v), (slope * c,))
    mean, v, slope = _add_signal(failing, s_f + (1.0 - c) * s_p)
    # ln(1 - c eps) falls by c eps / (1 - c eps) where ln eps rises by 1
    e = np.where(bounded, 0.0, -v * counted / (1.0 - counted))
    return [passed, _Part(mean, v, e, (slope * (1.0 - c), slope))]


def _deviance(part: _Part, n: FloatArray) -> FloatArray:
    """Compute half the deviance."""
    return np.asarray((part.mean - n - n * np.log(part.mean / np.where(n > 0, n, 1.0))).sum(axis=1))


def _objective(model: Model, p: FloatArray, counts: Counts) -> tuple[FloatArray, list[_Part]]:
    """Compute half the deviance with the prior, and the means."""
    parts = means(model, p, counts)
    value = 0.5 * (p**2 @ model.precision + counts.beyond(p[:, model.passing])[0] ** 2)
    for part, n in zip(parts, counts.observed, strict=True):
        value = value + _deviance(part, n)
    return value, parts


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


def minimise(
    model: Model, counts: Counts, start: FloatArray, fixed: int | None = None, tolerance: float = TOLERANCE
) -> Minimum:
    """Minimise the objective by Fisher scoring with step halving; a row that no step improves is damped."""
    products = _Products.of(model)
    p, rows = start.copy(), np.arange(len(start))
    free = np.array([i for i in range(model.size) if i != fixed])
    damping, converged = np.zeros(len(p)), np.zeros(len(p), dtype=np.bool_)
    information = np.zeros((len(p), model.size, model.size))
    value, parts = _objective(model, p, counts)
    part = counts
    for _ in range(_ITERATIONS):
        score, information[rows] = _score_and_information(model, products, p[rows], part, parts)
        step, decrement = _step(score[:, free], information[rows][:, free][:, :, free], damping[rows])
        trial = p[rows]
        trial[:, free] += step
        trial_value, parts = _objective(model, trial, part)
        slack = 1e-10 * (1.0 + np.abs(value[rows]))  # rounding of a sum over many events
        bad, length = ~(trial_value <= value[rows] + slack), 1.0
        halved = bool(bad.any())
        while bad.any() and length > 1e-4:
            length *= 0.5
            tried = np.flatnonzero(bad)
            trial[tried] = p[rows[tried]]
            trial[np.ix_(tried, free)] += length * step[tried]
            trial_value[tried] = _objective(model, trial[tried], part.rows(tried))[0]
            bad[tried] = ~(trial_value[tried] <= value[rows[tried]] + slack[tried])
        good = ~bad
        p[rows[good]], value[rows[good]] = trial[good], trial_value[good]
        damping[rows] = np.where(good, 0.3 * damping[rows], np.maximum(10.0 * damping[rows], 1e-3))
        done = (decrement < tolerance) & good
        converged[rows[done]] = True
        active = np.flatnonzero(~done & (damping[rows] < 1e6))
        if not len(active):
            break
        shrunk, rows = len(active) < len(rows), rows[active]
        part = part.rows(active) if shrunk else part
        if halved or shrunk:
            parts = means(model, p[rows], part)
    return Minimum(p, value, information, converged)


def _step(score: FloatArray, information: FloatArray, damping: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute the step of Fisher scoring and its decrement."""
    scale = np.einsum("nkk->nk", information)
    ridge = (1e-12 + damping)[:, None] * scale + 1e-300
    step = np.linalg.solve(information + ridge[:, :, None] * np.eye(score.shape[1]), score[..., None])[..., 0]
    return step, np.einsum("nk,nk->n", score, step)
