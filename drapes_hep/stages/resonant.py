r"""Whether the classifier's features give m_JJ away: alone, or together.

A classifier that can compute m_JJ learns the window, and a cut on its score sculpts the spectrum. Two measures, both in
the sidebands alone, so that a blinded run may say them:

- the rank correlation of each feature with m_JJ;
- of all together, :math:`R^2 = 1 - \sum (\ln m - \hat m)^2 / \sum (\ln m - \overline{\ln m})^2` of shallow boosted
  trees that are fitted on every other event and measured on the rest. Trees find what a linear or log-linear fit does
  not: pT and eta of both jets determine m_JJ, and have 0.2 linearly, 0.4 log-linearly, 0.97 by trees.

A falling spectrum over the range of a search has a standard deviation of about 0.14 in ln m_JJ.
:data:`~drapes_hep.fixed.MASS_R2`, from which on a line is said, leaves half of it, 0.07: m_JJ is then known to about
half a window. :data:`REFUSED` leaves 0.024, a fifth of a window. On the R&D sample the usual features have 0.0, with
delta_r 0.55, with delta_r and the sum of the pT 0.95.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from drapes_hep.errors import LeakError
from drapes_hep.fixed import MASS_R2

__all__ = ["check_resonant", "mass_determination", "resonance_line"]

FloatArray = npt.NDArray[np.float64]

FOLLOWS = 0.99
"""Rank correlation with m_JJ from which on a feature is m_JJ under another name."""
REFUSED = 0.97
"""R^2 that is m_JJ itself, as far as so few trees can tell."""
_EVENTS = 20_000
"""Events that are looked at: more change R^2 by less than 0.01."""
_LEAST = 200
"""Sideband events without which R^2 is not measured."""
_RANKED = 10
"""Sideband events without which no rank correlation is measured."""


def mass_determination(x: FloatArray, mjj: FloatArray) -> float | None:
    """Compute the fraction of the variance of ln m_JJ that features explain.

    Parameters
    ----------
    x : array, shape (n, d)
        Features of sideband events.
    mjj : array, shape (n,)
        GeV.

    Returns
    -------
    float or None
        R^2 on events that were not fitted, negative where the features say nothing; None with too few events.
    """
    if len(mjj) < _LEAST:
        return None
    # two seconds to load, for this check alone: a stage that only describes a training needs none of it
    from sklearn.ensemble import HistGradientBoostingRegressor

    x, mjj = _thinned(x, mjj)
    target = np.log(mjj)
    trees = HistGradientBoostingRegressor(
        learning_rate=0.2, max_iter=100, max_leaf_nodes=15, early_stopping=False, random_state=0
    )
    # events are so few that threads would wait for each other longer than they work
    with threadpool_limits(limits=1, user_api="openmp"):
        guess = trees.fit(x[::2], target[::2]).predict(x[1::2])
    rest = target[1::2]
    return float(1.0 - np.sum((rest - guess) ** 2) / np.sum((rest - rest.mean()) ** 2))


def check_resonant(features: Sequence[str], x: FloatArray, mjj: FloatArray) -> float | None:
    """Refuse features that are m_JJ, alone or together, whatever they are called.

    Parameters
    ----------
    features : sequence of str
        What the classifier sees.
    x : array, shape (n, d)
        Their values in sideband events.
    mjj : array, shape (n,)
        GeV.

    Returns
    -------
    float or None
        As :func:`mass_determination`.

    Raises
    ------
    LeakError
        With the feature, or all of them.
    """
    from scipy.stats import spearmanr

    x, mjj = _thinned(x, mjj)
    # two or three events follow anything by chance
    for name, values in zip(features, x.T, strict=True) if len(mjj) >= _RANKED else ():
        if len(np.unique(values)) > 1 and abs(r := float(spearmanr(values, mjj).statistic)) > FOLLOWS:
            raise LeakError(
                f"feature '{name}': follows m_JJ (rank correlation {r:.3f}), so the classifier would learn the window;"
                " remove it from cwola.features"
            )
    r2 = mass_determination(x, mjj)
    if r2 is not None and r2 > REFUSED:
        alone = [name for name, values in zip(features, x.T, strict=True) if _is_mass(values[:, None], mjj)]
        what = f"feature '{alone[0]}': gives" if alone else f"features {', '.join(features)}: together they give"
        raise LeakError(
            f"{what} m_JJ (R^2 of ln m_JJ is {r2:.3f} in the sidebands), so the classifier would learn the window;"
            f" remove {'it' if alone else 'some of them'} from cwola.features"
        )
    return r2


def _thinned(x: FloatArray, mjj: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a random choice of events, as many as are looked at: their order may have information."""
    if len(mjj) <= _EVENTS:
        return x, mjj
    chosen = np.random.default_rng(0).permutation(len(mjj))[:_EVENTS]
    return x[chosen], mjj[chosen]


def _is_mass(x: FloatArray, mjj: FloatArray) -> bool:
    r2 = mass_determination(x, mjj)
    return r2 is not None and r2 > REFUSED


def resonance_line(features: Sequence[str], r2: float | None) -> str | None:
    """Return a line on features that give much of m_JJ away; None where it is not worth one."""
    if r2 is None or r2 <= MASS_R2:
        return None
    return (
        f"the classifier's features ({', '.join(features)}) give m_JJ away (R^2 of ln m_JJ is {r2:.2f} in the"
        " sidebands): it can learn the window, and its cuts sculpt the spectrum; remove some from cwola.features"
    )
