"""A window's model, of any method: fitted, kept with a card, read back, and sampled.

Whatever the method, no model is fitted on events of an interval that is hidden from it, none is used for a window that
its card does not list as hidden, and no event of the data becomes a template event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import ConfigError, LeakError, RunDirectoryError
from drapes_hep.events.schema import NO_PARENT
from drapes_hep.files import file_hash, read_json, write_json
from drapes_hep.regions import Window
from drapes_hep.templates.feature_model import check_hidden, check_parts
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.parts import CLOSURE
from drapes_hep.templates.tables import EventTable, Planned, Template
from drapes_hep.training.curves import TrainingCurve

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
    # what is not given cannot be learnt: closure events measure how often a cut passes
    used = task.part != CLOSURE
    return method.fit(replace(task, events=task.events.take(used), part=task.part[used]))


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
    model_saw = not any(low <= window.lo and window.hi <= high for low, high in hidden)
    if model_saw != saw_window:
        raise LeakError(f"{folder}: this model {'saw' if model_saw else 'did not see'} the window {window.name}")
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
    ConfigError
        If a parent is no event of the data.
    """
    template = method.sample(model, planned.starts, planned.parents, task)
    inside = data.take(task.region(data.mjj))
    _refuse_copies(method, _rows(template.x, template.mjj), _rows(inside.x, inside.mjj), "features and m_JJ")
    if planned.parents is None:
        orphans = np.flatnonzero((template.parent_id != NO_PARENT) & ~np.isin(template.parent_id, data.event_id))
        if len(orphans):
            raise ConfigError(
                f"template.method {method.title}: parent_id {template.parent_id[orphans[0]]} is no event_id of the"
                " data, whose fold it would share; take the event_id of the skim, or leave the column out"
            )
    else:
        inside = inside.take(~np.isin(inside.event_id, planned.parents.event_id))
    rows = _rows(inside.x)
    # features that are counts or categories repeat by themselves
    if len(np.unique(rows)) == len(rows):
        _refuse_copies(method, _rows(template.x), rows, "features")
    return template


def _refuse_copies(
    method: BackgroundMethod, generated: npt.NDArray[np.void], data: npt.NDArray[np.void], what: str
) -> None:
    """Raise LeakError if template events are data; without their number, which may be that of a hidden window."""
    same = np.isin(generated, data)
    if same.any():
        raise LeakError(
            f"template.method {method.title}: template events are events of the data, the first in row"
            f" {int(np.flatnonzero(same)[0])}: their {what} are the same"
        )


def _rows(*columns: FloatArray) -> npt.NDArray[np.void]:
    """Return columns as one value per event, at the precision that tables are kept in."""
    # with 0 added, -0 is 0
    table = np.ascontiguousarray(np.column_stack(columns) + 0.0, dtype=np.float32)
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
