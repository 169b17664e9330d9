"""How much more frequent a sideband event's features are in a window's template than in the sidebands.

Weighted by this ratio, sideband events have the features of the template: real events stand for the background of the
window. The ratio is that of trees between the two, fold by fold: an event is weighed by trees, and against a template,
that never saw it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from drapes_hep.cwola.scores import Sample, out_of_fold_scores
from drapes_hep.cwola.trees import quality_trees

__all__ = ["density_ratios"]


def density_ratios(
    sidebands: Sample, template: Sample, calibration: Sample | None, *, folds: int, seed: int, workers: int = 1
) -> npt.NDArray[np.float64]:
    """Compute the ratio of the densities of template and sidebands at the features of each sideband event.

    Parameters
    ----------
    sidebands : Sample
    template, calibration : Sample, Sample or None
        As :func:`~drapes_hep.cwola.scores.out_of_fold_scores` takes them.
    folds : int
    seed : int
    workers : int
        Trainings at the same time; the result does not depend on it.

    Returns
    -------
    array, shape (n,)
        Above 0; within a fold, up to a factor.

    Raises
    ------
    LeakError
        If an event, or a copy of it, would be weighed by trees that saw it.
    FitError
        If a fold lacks one of both.
    """
    scores = out_of_fold_scores(
        quality_trees, sidebands, template, {}, folds=folds, ensemble=1, seed=seed, workers=workers,
        calibration=calibration,
    )  # fmt: skip
    # log-odds of sidebands against template, with classes of equal weight
    return np.exp(-scores["data"].score)
