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

from drapes_hep.errors import ConfigError, FitError, LeakError, RunDirectoryError, counted
from drapes_hep.events.schema import NO_PARENT
from drapes_hep.files import file_hash, read_json, write_json
from drapes_hep.folds import Fold
from drapes_hep.regions import Window
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION
from drapes_hep.templates.tables import EventTable, Planned, Template
from drapes_hep.training.curves import TrainingCurve

__all__ = [
    "CARD",
    "check_calibration",
    "check_hidden",
    "check_parts",
    "check_unseen",
    "checkpoints",
    "fit_window_model",
    "fit_window_models",
    "has_model",
    "load_window_model",
    "model_files",
    "sample_template",
    "save_window_model",
    "training_record",
    "unfinished",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CARD = "method.json"
"""Beside a model's own files: which method made it, what was hidden from it, and the hashes of the files."""


def check_hidden(mjj: FloatArray, hidden: Sequence[tuple[float, float]]) -> None:
    """Refuse events that a model must not see; raises LeakError."""
    for low, high in hidden:
        inside = int(((mjj >= low) & (mjj < high)).sum())
        if inside:
            raise LeakError(
                counted(
                    inside,
                    f"event between {low:g} and {high:g} GeV was",
                    f"events between {low:g} and {high:g} GeV were",
                )
                + " given to a model that must not see any there"
            )


def check_parts(part: IntArray, weight: FloatArray) -> None:
    """Refuse sidebands that cannot train or validate a model; raises FitError."""
    fitted, validation = part == TRAIN, part == VALIDATION
    if not fitted.any() or not validation.any():
        raise FitError(
            f"the sidebands hold {counted(len(part), 'event')}, {int(fitted.sum())} to train a model and"
            f" {int(validation.sum())} to validate it: each needs some; see mass.range, training.validation and"
            " training.closure"
        )
    if not (weight[fitted].sum() > 0 and weight[validation].sum() > 0):
        raise FitError("the weights of the sideband events do not add up to more than 0: nothing can be trained")


def check_unseen(event_id: IntArray, unseen: Fold | None) -> None:
    """Refuse events of the fold that a model must not see; raises LeakError."""
    inside = 0 if unseen is None else int(unseen.holds(event_id).sum())
    if unseen is not None and inside:
        raise LeakError(
            f"{counted(inside, 'event')} of fold {unseen.number} given to the model that must not see any of them"
        )


def fit_window_model(method: BackgroundMethod, task: FitTask) -> tuple[Any, Mapping[str, TrainingCurve]]:
    """Fit a method's model; raises as :func:`fit_window_models` does."""
    return fit_window_models(method, [task])[0]


def fit_window_models(
    method: BackgroundMethod, tasks: Sequence[FitTask]
) -> list[tuple[Any, Mapping[str, TrainingCurve]]]:
    """Fit a method's models, as many at once as suits the method and the device.

    Parameters
    ----------
    method : BackgroundMethod
    tasks : sequence of FitTask
        On one device.

    Returns
    -------
    list
        Of each task the model, and the curves of its trainings.

    Raises
    ------
    LeakError
        If an event lies in a hidden interval, or in the fold that a model must not see.
    FitError
        If a part of the sidebands has no events.
    """
    for task in tasks:
        check_hidden(task.events.mjj, task.hidden)
        check_parts(task.part, task.events.weight)
    results: list[tuple[Any, Mapping[str, TrainingCurve]]] = []
    size = method.together(tasks[0].device, len(tasks)) if len(tasks) > 1 else 1
    for first in range(0, len(tasks), size):
        some = [_without_closure(task) for task in tasks[first : first + size]]
        for task in some:
            check_unseen(task.events.event_id, task.unseen)
        results += [method.fit(some[0])] if len(some) == 1 else method.fit_many(some)
    return results


def _without_closure(task: FitTask) -> FitTask:
    # what is not given cannot be learnt: closure events measure how often a cut passes
    used = task.part != CLOSURE
    return replace(task, events=task.events.take(used), part=task.part[used])


def save_window_model(
    method: BackgroundMethod,
    folder: Path,
    model: Any,
    hidden: Sequence[tuple[float, float]],
    extra: Mapping[str, Any],
    unseen: Fold | None = None,
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
    unseen : Fold, optional
        The fold that it never saw.

    Returns
    -------
    list of Path
        All files, the card last: where it is, the model is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = list(method.save(folder, model))
    inside = folder.resolve()
    outside = [path for path in written if not (path.resolve().is_relative_to(inside) and path.is_file())]
    if outside or not written:
        what = f"{outside[0]} is not one of its files" if outside else "save() returned no file"
        raise ConfigError(f"template.method {method.title}: {what}; save() returns the files that it wrote in {folder}")
    if (folder / CARD).resolve() in [path.resolve() for path in written]:
        raise ConfigError(f"template.method {method.title}: save() wrote {CARD}, the name of the card; take another")
    files = {str(path.relative_to(folder)): file_hash(path) for path in written}
    never_saw = {"hidden": [list(interval) for interval in hidden], "unseen": None if unseen is None else list(unseen)}
    card = {"title": method.title, **never_saw, "files": files, **extra}
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
    method: BackgroundMethod,
    folder: Path,
    window: Window,
    device: str = "cpu",
    *,
    pseudo: tuple[float, float] | None = None,
    unseen: Fold | None = None,
    saw_window: bool = False,
) -> Any:
    """Read a window's model back.

    Parameters
    ----------
    method : BackgroundMethod
    folder : Path
    window : Window
    device : str
    pseudo : (float, float), optional
        The pseudo-window whose template it makes, GeV.
    unseen : Fold, optional
        The fold whose classifier its template trains, with cross-fitting.
    saw_window : bool
        For the one model that may see its window: GenSR's, which oversamples the data. Its card must say so.

    Returns
    -------
    model

    Raises
    ------
    LeakError
        If the model's card does not say that it was trained without this window, without the pseudo-window, and
        without the fold.
    RunDirectoryError
        If card and files are damaged or do not belong together.
    """
    card = read_json(folder / CARD)
    try:
        hidden = [(float(low), float(high)) for low, high in card["hidden"]]
        never_saw = None if card["unseen"] is None else Fold(*card["unseen"])
        files = {folder / str(name): str(digest) for name, digest in card["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(f"{folder / CARD}: is not a model checkpoint ({error!r}); train again") from error

    def saw(region: tuple[float, float]) -> bool:
        return not any(low <= region[0] and region[1] <= high for low, high in hidden)

    if (model_saw := saw((window.lo, window.hi))) != saw_window:
        raise LeakError(f"{folder}: this model {'saw' if model_saw else 'did not see'} the window {window.name}")
    if pseudo is not None and saw(pseudo):
        raise LeakError(f"{folder}: this model saw the pseudo-window {pseudo[0]:g}-{pseudo[1]:g}")
    if unseen is not None and never_saw != unseen:
        raise LeakError(f"{folder}: this model saw the sideband events of fold {unseen.number}")
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
        If it holds an event of the data in the region: a classifier would be told that data are background. Or if its
        events are copies of each other that may fall into different folds.
    ConfigError
        If a parent is not an event of the data.
    """
    template = method.sample(model, planned.starts, planned.parents, task)
    inside = data.take(task.region(data.mjj))
    _refuse_copies(method, _rows(template.x, template.mjj), _rows(inside.x, inside.mjj), "features and m_JJ")
    if planned.parents is None:
        orphans = np.flatnonzero((template.parent_id != NO_PARENT) & ~np.isin(template.parent_id, data.event_id))
        if len(orphans):
            raise ConfigError(
                f"template.method {method.title}: parent_id {template.parent_id[orphans[0]]} is not an event_id of the"
                " data; use the event_id of the skim, or omit the column"
            )
    else:
        inside = inside.take(~np.isin(inside.event_id, planned.parents.event_id))
    rows = _rows(inside.x)
    # features that are counts or categories repeat by themselves
    if len(np.unique(rows)) == len(rows):
        _refuse_copies(method, _rows(template.x), rows, "features", template.x)
    _refuse_repeats(method, template, data)
    return template


def check_calibration(method: BackgroundMethod, template: Template, calibration: Template) -> None:
    """Refuse events that set cuts and are copies of those that train the classifier; raises LeakError."""
    theirs = _rows(template.x)
    if len(np.unique(theirs)) < len(theirs):
        # counts or categories repeat by themselves
        return
    by_chance = len(theirs) * len(calibration.x) * _pair_probability(calibration.x)
    shared = int(np.isin(_rows(calibration.x), theirs).sum())
    if shared > by_chance + 5 * np.sqrt(by_chance):
        raise LeakError(
            f"template.method {method.title}: events that set the cuts are copies of events that train the classifier;"
            " sample() draws others for another task.seed, or set cross_fits = False"
        )


def _refuse_copies(
    method: BackgroundMethod,
    generated: npt.NDArray[np.uint64],
    data: npt.NDArray[np.uint64],
    what: str,
    x: FloatArray | None = None,
) -> None:
    """Raise LeakError if template events are data; without their number, which may be that of a hidden window.

    With their features ``x``, shape (n, d), as many may be data as chance explains: of one feature, numbers of 24 bits
    are often the same.
    """
    same = np.isin(generated, data)
    if not same.any():
        return
    by_chance = 0.0 if x is None else len(data) * len(x) * _pair_probability(x)
    if same.sum() > by_chance + 5 * np.sqrt(by_chance):
        raise LeakError(
            f"template.method {method.title}: template events are events of the data, the first in row"
            f" {int(np.flatnonzero(same)[0])}: their {what} are the same"
        )


def _pair_probability(x: FloatArray) -> float:
    """Estimate how often two events have the same features, shape (n, d), were these independent."""
    repeats = [np.unique(column, return_counts=True)[1].astype(np.float64) for column in x.astype(np.float32).T]
    return float(np.prod([(count * (count - 1)).sum() / (len(x) * max(len(x) - 1, 1)) for count in repeats]))


_REPEATED = 0.01
"""Fraction of a template's events that may be copies of others: so few bend no score."""


def _refuse_repeats(method: BackgroundMethod, generated: Template, data: EventTable) -> None:
    """Raise LeakError if template events without a common parent are copies: a classifier would score what it met.

    A copy has the features of an earlier event. Any is refused that has its m_JJ too; with other masses, more are than
    :data:`_REPEATED` and than chance explains: of n_d different events of the data, fewer than 3 pairs are the same
    (95% confidence), so fewer than 3 (n / n_d)^2 of n template events. Where events of the data are the same, features
    are counts or categories and say nothing.
    """
    if not len(generated.x) or not len(data):
        return
    rows, root = _rows(generated.x), np.where(generated.parent_id == NO_PARENT, generated.event_id, generated.parent_id)
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    copies = np.flatnonzero(root != root[first[place]])
    if not len(copies):
        return
    events = _rows(data.x)
    if len(np.unique(events)) < len(events):
        return
    # what is generated beyond the bounds of its features is set to them, without being a copy; counts have no bounds
    varied = [j for j, column in enumerate(data.x.T) if len(np.unique(column)) > len(column) / 2]
    x = generated.x[:, varied]
    copies = copies[~((x == x.min(axis=0)) | (x == x.max(axis=0))).all(axis=1)[copies]]
    same_mass = copies[generated.mjj[copies] == generated.mjj[first[place[copies]]]]
    if len(same_mass) or len(copies) > max(_REPEATED * len(rows), 3 * (len(rows) / len(data)) ** 2):
        row = int(same_mass[0] if len(same_mass) else copies[0])
        raise LeakError(
            f"template.method {method.title}: template events are copies of each other, row {row} of row"
            f" {int(first[place[row]])}, and no parent keeps them in one fold; keep one of them, with the sum of their"
            " weights, or name the event of the data that they were made of (parent_id)"
        )


def _rows(*columns: FloatArray) -> npt.NDArray[np.uint64]:
    """Return one number per event for its columns, at the precision that tables are kept in.

    Events with the same columns have the same number. Among a million different events, two share one with a
    probability of 3e-8; those that differ in one column alone never do. Numbers are faster to compare than rows.
    """
    # with 0 added, -0 is 0
    table = np.ascontiguousarray(np.column_stack(columns) + 0.0, dtype=np.float32)
    numbers = np.zeros(len(table), dtype=np.uint64)
    for column in table.view(np.uint32).T:
        numbers ^= column
        # each line can be undone, so different numbers stay different
        numbers *= np.uint64(0x9E3779B97F4A7C15)
        numbers ^= numbers >> np.uint64(29)
    return numbers


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
