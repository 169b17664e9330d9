"""A window's model, of any method: fitted, kept with a card, read back, and sampled.

Whatever the method, no model is fitted on events of an interval that is hidden from it, none is used for a window that
its card does not list as hidden, and no event of the data becomes a template event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.diffusion.training import TrainingCurve
from drapes_hep.errors import ConfigError, LeakError, RunDirectoryError, counted
from drapes_hep.files import file_hash, read_json, write_json
from drapes_hep.regions import Window
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.model import check_hidden, check_parts
from drapes_hep.templates.plan import EventTable, Planned, Template

__all__ = [
    "CARD",
    "checkpoints",
    "fit_window_model",
    "has_model",
    "load_window_model",
    "model_files",
    "sample_template",
    "save_window_model",
    "training_record",
    "unfinished",
]

FloatArray = npt.NDArray[np.float64]

CARD = "method.json"
"""Beside a model's own files: which method made it, what was hidden from it, and the hashes of the files."""


def fit_window_model(method: BackgroundMethod, task: FitTask) -> tuple[Any, Mapping[str, TrainingCurve]]:
    """Fit a method's model.

    Raises
    ------
    LeakError
        If an event lies in a hidden interval.
    FitError
        If a part of the sidebands has no events.
    """
    check_hidden(task.events.mjj, task.hidden)
    check_parts(task.part, task.events.weight)
    return method.fit(task)


def save_window_model(
    method: BackgroundMethod,
    folder: Path,
    model: Any,
    hidden: Sequence[tuple[float, float]],
    extra: Mapping[str, Any],
) -> list[Path]:
    """Write a model with its card.

    Parameters
    ----------
    method : BackgroundMethod
    folder : Path
    model
        From :func:`fit_window_model`.
    hidden : sequence of (float, float)
        Mass intervals that it never saw, GeV; none for GenSR's, which saw all.
    extra : mapping
        What else the card is to say.

    Returns
    -------
    list of Path
        All files, the card last: where it is, the model is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = list(method.save(folder, model))
    outside = [path for path in written if not (path.is_relative_to(folder) and path.is_file())]
    if outside or not written:
        what = f"{outside[0]} is none of its files" if outside else "save() returned no file"
        raise ConfigError(f"template.method {method.title}: {what}; save() returns the files that it wrote in {folder}")
    files = {str(path.relative_to(folder)): file_hash(path) for path in written}
    card = {"title": method.title, "hidden": [list(interval) for interval in hidden], "files": files, **extra}
    write_json(folder / CARD, card)
    return [*written, folder / CARD]


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model, the card first; the card alone where there is no whole one."""
    card = folder / CARD
    try:
        names = list(read_json(card)["files"])
    except (RunDirectoryError, KeyError, TypeError):
        names = []
    return [card, *(folder / str(name) for name in names)]


def has_model(folder: Path) -> bool:
    """Whether a folder holds a whole model."""
    return len(files := model_files(folder)) > 1 and all(path.is_file() for path in files)


def load_window_model(
    method: BackgroundMethod, folder: Path, window: Window, device: str = "cpu", *, saw_window: bool = False
) -> Any:
    """Read a window's model back.

    Parameters
    ----------
    method : BackgroundMethod
    folder : Path
    window : Window
    device : str
    saw_window : bool
        For the one model that may see its window: GenSR's, which oversamples the data. Its card must say so.

    Returns
    -------
    model

    Raises
    ------
    LeakError
        If the model's card does not say that it was trained without this window.
    RunDirectoryError
        If card and files are damaged or do not belong together.
    """
    card = read_json(folder / CARD)
    try:
        hidden = [(float(low), float(high)) for low, high in card["hidden"]]
        files = {folder / str(name): str(digest) for name, digest in card["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(f"{folder / CARD}: is not a model's card ({error!r}); train again") from error
    seen = not any(low <= window.lo and window.hi <= high for low, high in hidden)
    if seen != saw_window:
        raise LeakError(f"{folder}: this model {'saw' if seen else 'did not see'} the window {window.name}")
    for path, digest in files.items():
        if not path.is_file() or file_hash(path) != digest:
            raise RunDirectoryError(f"{path}: missing or changed since the model was trained; train again")
    return method.load(folder, device)


def sample_template(
    method: BackgroundMethod,
    model: Any,
    planned: Planned,
    task: SampleTask,
    data: EventTable,
) -> Template:
    """Make the events of a plan.

    Parameters
    ----------
    method : BackgroundMethod
    model
        From :func:`load_window_model`.
    planned : Planned
    task : SampleTask
        With the plan's seed.
    data : EventTable
        What the template is to be compared with.

    Returns
    -------
    Template

    Raises
    ------
    LeakError
        If it holds an event of the data in the region: a classifier would be told that data are background.
    """
    found = method.sample(model, planned.starts, planned.parents, task)
    both = [_rows(found.x, found.mjj), _rows(data.x, data.mjj)[task.region(data.mjj)]]
    same = np.isin(both[0], both[1])
    if same.any():
        raise LeakError(
            f"template.method {method.title}: {counted(int(same.sum()), 'template event is', 'template events are')} an"
            f" event of the data, the first in row {int(np.flatnonzero(same)[0])}: its features and m_JJ are the same"
        )
    return found


def _rows(x: FloatArray, mjj: FloatArray) -> npt.NDArray[np.void]:
    """Return features and masses as one value per event, at the precision that tables are kept in."""
    table = np.ascontiguousarray(np.column_stack([x, mjj]), dtype=np.float32)
    return table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1])))[:, 0]


def checkpoints(stem: Path) -> list[Path]:
    """Find what an interrupted training has left, by the stem of its :class:`FitTask`."""
    return sorted(stem.parent.glob(f"{stem.name}*.checkpoint"))


def unfinished(stem: Path) -> str:
    """Name the trainings that have left a checkpoint; nothing if none has."""
    # NAME.checkpoint of a model of features, NAME.jets.checkpoint and so on of one of constituents
    parts = [path.name.removeprefix(stem.name).split(".")[-2] or "features" for path in checkpoints(stem)]
    return " and ".join(parts)


def training_record(result: TrainingCurve, training: Training | None = None) -> dict[str, Any]:
    """Return what ``training.json`` holds of a training."""
    epochs = [epoch._asdict() for epoch in result.history]
    named = training or Training(len(epochs))
    return {
        "title": named.title,
        "caption": named.caption,
        "unit": named.unit,
        "train": [epoch["train_loss"] for epoch in epochs],
        "validation": [epoch["validation_loss"] for epoch in epochs],
        "rate": [epoch["rate"] for epoch in epochs],
        "best_epoch": result.best_epoch,
        "stopped_early": result.stopped_early,
        "seconds": round(result.seconds, 3),
    }
