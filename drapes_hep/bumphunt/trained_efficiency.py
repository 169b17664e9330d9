r"""How much of a signal passes a cut that was trained on data which hold the signal.

The more signal there is, the better the classifier finds it: the efficiency :math:`\epsilon_S` depends on the number of
signal events S, and two trainings with the same S differ, for few events by all or nothing. Searches with an injected
signal give its values at some S, several trainings each. Sorted by size, the values of one rank are a curve in S, made
not to fall (a larger signal is not found worse), and linear in ln S between the injections. A curve for each rank keeps
the spread over trainings, and any is as likely as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from drapes_hep.errors import FitError

__all__ = ["TrainedEfficiency", "trained_efficiency"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainedEfficiency:
    """The efficiency of one cut.

    Attributes
    ----------
    injected : array, shape (injections,)
        Signal events before the cut, rising.
    values : array, shape (injections, trainings)
        Not falling along either.
    trained : tuple of arrays, shape (trainings,)
        What they were made of.
    """

    injected: FloatArray
    values: FloatArray
    trained: tuple[FloatArray, ...] = ()

    def at(self, signal: FloatArray) -> FloatArray:
        """Return the efficiency of each training for a signal.

        Parameters
        ----------
        signal : array, shape (n,)
            Events, within the injections.

        Returns
        -------
        array, shape (n, trainings)

        Raises
        ------
        FitError
            If a signal is smaller or larger than any that was injected.
        """
        low, high = self.injected[0], self.injected[-1]
        if not bool(np.all((signal >= low * (1 - 1e-9)) & (signal <= high * (1 + 1e-9)))):
            raise FitError(f"the efficiency is known for signals of {low:g} to {high:g} events only")
        x, nodes = np.log(signal), np.log(self.injected)
        return np.stack([np.interp(x, nodes, curve) for curve in self.values.T], axis=1)

    def averaged(self) -> TrainedEfficiency:
        """Return the mean over the trainings, as if all were alike."""
        return trained_efficiency(self.injected, [np.array([each.mean()]) for each in self.trained])

    def drawn_again(self, rng: np.random.Generator) -> TrainedEfficiency:
        """Draw the trainings of each injection again, with replacement: for the error that their number leaves."""
        return trained_efficiency(self.injected, [rng.choice(each, len(each)) for each in self.trained])


def trained_efficiency(injected: Sequence[float] | FloatArray, values: Sequence[FloatArray]) -> TrainedEfficiency:
    """Sort the efficiencies of trainings into curves.

    Parameters
    ----------
    injected : sequence of float
        Signal events of each injection, rising, at least two.
    values : sequence of arrays, shape (trainings,)
        For each injection; their numbers may differ.

    Returns
    -------
    TrainedEfficiency

    Raises
    ------
    FitError
        If there are fewer than two injections, an injection has no training, or a value is no fraction.
    """
    x = np.asarray(injected, dtype=np.float64)
    if len(x) < 2 or len(values) != len(x) or not bool(np.all(np.diff(x) > 0)) or not x[0] > 0:
        raise FitError("an efficiency needs at least two injections, of rising numbers of events")
    trainings = max(map(len, values))
    rows = []
    for each in values:
        if not len(each) or not bool(np.all((each >= 0) & (each <= 1))):
            raise FitError("an injection has no training, or an efficiency that is no fraction")
        level = (np.arange(trainings) + 0.5) / trainings
        own = (np.arange(len(each)) + 0.5) / len(each)
        rows.append(np.interp(level, own, np.sort(each)))
    curves = [optimize.isotonic_regression(column).x for column in np.stack(rows).T]
    # curves of neighbouring ranks that were raised apart stay in order
    return TrainedEfficiency(x, np.sort(np.stack(curves, axis=1), axis=1), tuple(values))
