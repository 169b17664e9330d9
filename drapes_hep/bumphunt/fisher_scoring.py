"""Fisher scoring for many fits at once: rows that are done leave, rows that no step improves are damped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCE", "Likelihood", "Minimum", "minimise"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

TOLERANCE = 1e-9
"""On the decrement of ln L: the estimate is then within some 5e-5 standard deviations."""
_ITERATIONS = 200
_SHARE = 0.1
"""Part of the decrement by which a step at least improves ln L; half of it if ln L is a parabola."""


class Likelihood(Protocol):
    """A negative log-likelihood of n fits, each a row with parameters of its own."""

    @property
    def size(self) -> int:
        """Number of parameters."""

    def rows(self, rows: IntArray) -> Likelihood:
        """Return that of some fits."""

    def state(self, p: FloatArray) -> Any:
        """Return what both the objective and its derivatives need, for parameters of shape (n, size)."""

    def objective(self, p: FloatArray, state: Any) -> FloatArray:
        """Compute half the deviance with the priors, shape (n,)."""

    def score_and_information(self, p: FloatArray, state: Any) -> tuple[FloatArray, FloatArray]:
        """Compute minus the objective's gradient, shape (n, size), and the expected information (n, size, size)."""


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


def minimise(
    likelihood: Likelihood, start: FloatArray, fixed: int | None = None, tolerance: float = TOLERANCE
) -> Minimum:
    """Minimise by Fisher scoring with step halving.

    Parameters
    ----------
    likelihood : Likelihood
    start : array, shape (n, size)
    fixed : int, optional
        A parameter that stays as it is.
    tolerance : float
        On the decrement at which a fit ends.

    Returns
    -------
    Minimum
    """
    p, rows = start.copy(), np.arange(len(start))
    free = np.array([i for i in range(likelihood.size) if i != fixed])
    damping, converged = np.zeros(len(p)), np.zeros(len(p), dtype=np.bool_)
    information = np.zeros((len(p), likelihood.size, likelihood.size))
    part = likelihood
    state = part.state(p)
    value = part.objective(p, state)
    for _ in range(_ITERATIONS):
        score, information[rows] = part.score_and_information(p[rows], state)
        step, decrement = _step(score[:, free], information[rows][:, free][:, :, free], damping[rows])
        trial = p[rows]
        trial[:, free] += step
        state = part.state(trial)
        trial_value = part.objective(trial, state)
        slack = 1e-10 * (1.0 + np.abs(value[rows]))  # rounding of a sum over many events
        bad, length = ~(trial_value <= value[rows] + slack), 1.0
        halved = bool(bad.any())
        while bad.any() and length > 1e-4:
            length *= 0.5
            tried = np.flatnonzero(bad)
            trial[tried] = p[rows[tried]]
            trial[np.ix_(tried, free)] += length * step[tried]
            few = part.rows(tried)
            trial_value[tried] = few.objective(trial[tried], few.state(trial[tried]))
            bad[tried] = ~(trial_value[tried] <= value[rows[tried]] + slack[tried])
        good = ~bad
        # the expected information is too small where the model is far from the counts: steps would swing to and fro
        swings = good & (value[rows] - trial_value < _SHARE * decrement) & (decrement > 4.0 * slack)
        p[rows[good]], value[rows[good]] = trial[good], trial_value[good]
        damping[rows] = np.where(good, 0.3 * damping[rows], np.maximum(10.0 * damping[rows], 1e-3))
        damping[rows[swings]] = np.maximum(10.0 * damping[rows[swings]], 0.3)
        done = (decrement < tolerance) & good
        converged[rows[done]] = True
        active = np.flatnonzero(~done & (damping[rows] < 1e6))
        if not len(active):
            break
        shrunk, rows = len(active) < len(rows), rows[active]
        part = part.rows(active) if shrunk else part
        if halved or shrunk:
            state = part.state(p[rows])
    return Minimum(p, value, information, converged)


def _step(score: FloatArray, information: FloatArray, damping: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute the step of Fisher scoring and its decrement."""
    scale = np.einsum("nkk->nk", information)
    ridge = (1e-12 + damping)[:, None] * scale + 1e-300
    step = np.linalg.solve(information + ridge[:, :, None] * np.eye(score.shape[1]), score[..., None])[..., 0]
    return step, np.einsum("nk,nk->n", score, step)
