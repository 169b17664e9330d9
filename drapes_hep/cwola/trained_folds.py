"""The classifiers of a window on disk, and how events that none of them has met pass their cuts.

Every fold has classifiers and a cut of its own. The fraction that passes is therefore computed fold by fold and
averaged; scores of different folds are never averaged with each other, as this would narrow them (an average over folds
has smaller fluctuations than the scores that set the cuts).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.cwola.classifiers import Classifier
from drapes_hep.cwola.scores import finite_scores, tail_probability
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import file_hash, read_json, write_json

__all__ = ["TrainedFolds", "has_classifiers", "load_folds", "remove_classifiers", "save_classifier", "seal_classifiers"]

_SEAL = "files.json"
"""Hashes of all files of a window's classifiers, written last."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainedFolds:
    """The trained classifiers of one window.

    Attributes
    ----------
    classifiers : tuple of tuples of Classifier
        Members of each fold.
    reference, weight : tuple of arrays
        Scores and weights of the events that set each fold's cuts.
    """

    classifiers: tuple[tuple[Classifier, ...], ...]
    reference: tuple[FloatArray, ...]
    weight: tuple[FloatArray, ...]

    @property
    def folds(self) -> int:
        """How many folds there are."""
        return len(self.classifiers)

    def tails(self, x: Any, fold: int) -> FloatArray:
        """Return how tight a cut of a fold events pass.

        Parameters
        ----------
        x : array, shape (n, d), or awkward.Array
            Features, or events with jets, as the classifiers were trained on.
        fold : int

        Returns
        -------
        array, shape (n,)
            An event passes the cut of background efficiency e where this is at most e.

        Raises
        ------
        FitError
            If a classifier returns anything but a finite score per event.
        """
        scores = np.zeros(len(x))
        for classifier in self.classifiers[fold]:
            scores += finite_scores(classifier, x)
        members = len(self.classifiers[fold])
        return tail_probability(scores / members, self.reference[fold], self.weight[fold])


def _member(folder: Path, fold: int, member: int) -> Path:
    return folder / f"fold_{fold}" / f"member_{member}"


def remove_classifiers(folder: Path) -> None:
    """Remove what an earlier training has left.

    Parameters
    ----------
    folder : Path
        Of the window's classifiers; it need not exist.
    """
    shutil.rmtree(folder, ignore_errors=True)


def save_classifier(folder: Path, fold: int, member: int, classifier: Any) -> list[Path]:
    """Write one trained classifier.

    Parameters
    ----------
    folder : Path
        Of the window's classifiers.
    fold, member : int
    classifier
        Meets :class:`~drapes_hep.cwola.classifiers.Saves`.

    Returns
    -------
    list of Path
        Its files.
    """
    place = _member(folder, fold, member)
    place.mkdir(parents=True)
    return list(classifier.save(place))


def seal_classifiers(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Write the hashes of all files, once every classifier is there.

    Parameters
    ----------
    folder : Path
    files : sequence of Path
        From :func:`save_classifier`.

    Returns
    -------
    list of Path
        All files with that of the hashes.
    """
    files = sorted(files)
    write_json(folder / _SEAL, {path.relative_to(folder).as_posix(): file_hash(path) for path in files})
    return [*files, folder / _SEAL]


def has_classifiers(folder: Path) -> bool:
    """Whether a folder holds classifiers of a window."""
    return (folder / _SEAL).is_file()


def load_folds(
    make: Callable[[int], Any],
    folder: Path,
    reference: tuple[FloatArray, FloatArray, IntArray],
    *,
    folds: int,
    ensemble: int,
) -> TrainedFolds:
    """Read the classifiers of a window back.

    Parameters
    ----------
    make : callable
        Gives an untrained classifier for a seed, with the options of the training.
    folder : Path
    reference : tuple of arrays, shape (m,)
        Scores, weights and folds of the events that set the cuts.
    folds, ensemble : int

    Returns
    -------
    TrainedFolds

    Raises
    ------
    RunDirectoryError
        If a file is missing or damaged.
    """
    for name, digest in read_json(folder / _SEAL).items():
        if not (path := folder / name).is_file() or file_hash(path) != digest:
            raise RunDirectoryError(f"{path}: missing or changed since the classifier was trained; classify again")
    score, weight, fold = reference
    classifiers = tuple(
        tuple(_loaded(make, _member(folder, number, member)) for member in range(ensemble)) for number in range(folds)
    )
    parts = [fold == number for number in range(folds)]
    return TrainedFolds(classifiers, tuple(score[part] for part in parts), tuple(weight[part] for part in parts))


def _loaded(make: Callable[[int], Any], place: Path) -> Classifier:
    # the seed decides a training alone
    classifier: Any = make(0)
    classifier.load(place)
    return classifier  # type: ignore[no-any-return]
