"""What each stage of a search made, read from the run directory: typed, and lazily where it is large."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import hist
import numpy as np
import numpy.typing as npt

from drapes_hep.events.skims import read_skim, read_truth, skim_metadata
from drapes_hep.events.types import Column
from drapes_hep.hists import read_hists
from drapes_hep.html import html_table, number
from drapes_hep.outcome import ReadOnDemand
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.stages.feature_tables import read_record
from drapes_hep.templates.window_models import CARD

__all__ = ["ByWindow", "Curve", "CutFlowStep", "Scored", "Selected", "Template", "Trained"]

FloatArray = npt.NDArray[np.float64]
T = TypeVar("T")


class ByWindow(Mapping[str, T], Generic[T]):
    """Results of a stage for each window, by the name of the window, such as ``3300-3700``.

    Parameters
    ----------
    windows : mapping
        From low to high mass.
    """

    def __init__(self, windows: Mapping[str, T]) -> None:
        self._windows = dict(windows)

    def __getitem__(self, name: str) -> T:
        """Return a window's."""
        return self._windows[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._windows)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._windows)

    def __repr__(self) -> str:
        """Return the names and what is behind them."""
        return f"ByWindow({self._windows!r})"

    def _repr_html_(self) -> str:
        return "".join(product._repr_html_() for product in self.values() if hasattr(product, "_repr_html_"))


@dataclass(frozen=True)
class CutFlowStep:
    """A step of the selection.

    Attributes
    ----------
    name : str
    events : int
        Events that pass; in a blinded run, only those outside all windows.
    weight : float
        Their sum of weights.
    """

    name: str
    events: int
    weight: float


@dataclass(frozen=True)
class Selected(ReadOnDemand):
    """The selected events.

    Attributes
    ----------
    run : RunDirectory
    cutflow : tuple of CutFlowStep
        In the order of the selection.
    not_applied : tuple of str
        Steps of the selection that were not applied.
    """

    run: RunDirectory
    cutflow: tuple[CutFlowStep, ...]
    not_applied: tuple[str, ...]

    @classmethod
    def of(cls, run: RunDirectory) -> Selected:
        """Read the cut flow of a run directory; raises RunDirectoryError."""
        record = read_record(run.skim_info, "cutflow", "not_applied")
        steps = tuple(CutFlowStep(step["name"], step["events"], step["weight"]) for step in record["cutflow"])
        return cls(run, steps, tuple(record["not_applied"]))

    @functools.cached_property
    def events(self) -> Mapping[str, Column]:
        """The events by column: ``event_id``, ``weight``, ``mjj`` (GeV), the features; ``jets`` as an awkward array."""
        return dict(read_skim(self.run.events).columns)

    @functools.cached_property
    def label(self) -> npt.NDArray[np.int64] | None:
        """The truth labels (n,), 1 for signal; None without labels."""
        if not self.run.truth.is_file():
            return None
        return read_truth(self.run.truth).truth_for(read_skim(self.run.events, ("event_id",))["event_id"])

    @functools.cached_property
    def hists(self) -> dict[str, hist.Hist]:
        """The control histograms by name."""
        return read_hists(self.run.skim_hists, "skim")

    def _repr_html_(self) -> str:
        rows = [(step.name, number(step.events), number(step.weight)) for step in self.cutflow]
        return html_table(("step", "events", "weight"), rows, "cut flow")


@dataclass(frozen=True)
class Curve:
    """The curve of a training, one number per epoch.

    Attributes
    ----------
    train, validation : array, shape (epochs,)
        Losses.
    rate : array, shape (epochs,)
        Learning rates.
    best_epoch : int
        The epoch whose weights are used, from 1.
    stopped_early : bool
    seconds : float
    """

    train: FloatArray
    validation: FloatArray
    rate: FloatArray
    best_epoch: int
    stopped_early: bool
    seconds: float

    @property
    def best_loss(self) -> float | None:
        """The validation loss of the best epoch; None for a training that has none."""
        epoch = self.best_epoch
        return float(self.validation[epoch - 1]) if 0 < epoch <= len(self.validation) else None


@dataclass(frozen=True)
class Trained(ReadOnDemand):
    """The background models of a window.

    Attributes
    ----------
    window : str
    folders : tuple of Path
        Where the weights are: a folder per fold with cross-fitting, one with a hold-out.
    curves : mapping of str to Curve
        By the name of the network and, with cross-fitting, the fold that the model never saw, such as ``features_0``;
        empty for a method without training.
    events : mapping of str to int
        Sideband events for training, validation and closure; with cross-fitting, each closes one model and is used by
        the others.
    """

    window: str
    folders: tuple[Path, ...]
    curves: Mapping[str, Curve]
    events: Mapping[str, int]

    @classmethod
    def of(cls, run: RunDirectory, window: str) -> Trained:
        """Read the curves of a window; raises RunDirectoryError."""
        folder = run.path / "windows" / window
        record = read_record(folder / "training.json", "trainings", "events")
        curves = {name: _curve(curve) for name, curve in record["trainings"].items()}
        # the pseudo-window's model is in pseudo_model
        models = tuple(path.parent for path in sorted(folder.glob(f"model*/{CARD}")))
        return cls(window, models, curves, dict(record["events"]))

    def _repr_html_(self) -> str:
        header = ("model", "epochs", "best epoch", "validation loss there", "seconds")
        rows = [
            (name, number(len(curve.train)), number(curve.best_epoch), number(curve.best_loss), f"{curve.seconds:.1f}")
            for name, curve in self.curves.items()
        ]
        return html_table(header, rows, f"window {self.window} GeV")


@dataclass(frozen=True)
class Template(ReadOnDemand):
    """The background template of a window.

    Attributes
    ----------
    window : str
    path : Path
        Its file.
    """

    window: str
    path: Path

    @functools.cached_property
    def events(self) -> Mapping[str, Column]:
        """The events by column: ``event_id``, ``parent_id`` (-1 from noise), ``mjj`` (GeV), ``weight``, features."""
        return dict(read_skim(self.path).columns)

    @functools.cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the template."""
        return skim_metadata(self.path)

    def _repr_html_(self) -> str:
        # its number of events is a multiple of that in the window, which a blinded run does not show
        rows = [("method", str(self.metadata.get("template"))), ("file", str(self.path))]
        return html_table(("template", ""), rows, f"window {self.window} GeV")


@dataclass(frozen=True)
class Scored(ReadOnDemand):
    """The scores of a window.

    Attributes
    ----------
    window : str
    folder : Path
        Where the files of the window are.
    quality : mapping
        ``quality.json``: how well the template describes data, and the metrics from labels.
    """

    window: str
    folder: Path
    quality: Mapping[str, Any]

    @classmethod
    def of(cls, run: RunDirectory, window: str) -> Scored:
        """Read the quality of a window; raises RunDirectoryError."""
        folder = run.path / "windows" / window
        return cls(window, folder, read_record(folder / "quality.json", "template", "metrics"))

    @functools.cached_property
    def data(self) -> Mapping[str, Column]:
        """The scored data by column: ``mjj`` (GeV), ``region`` (1 in the window), ``fold``, ``score``, ``tail``, ..."""
        return dict(read_skim(self.folder / "scores.parquet").columns)

    @functools.cached_property
    def template(self) -> Mapping[str, Column]:
        """The scored template by column."""
        return dict(read_skim(self.folder / "template_scores.parquet").columns)

    def _repr_html_(self) -> str:
        names = {
            "auc_vs_sideband_closure": "AUC against held-out sidebands",
            "auc_vs_pseudo_window": "AUC in the pseudo-window",
            "auc_vs_truth": "AUC against true background",
        }
        estimates = {text: self.quality["template"].get(name) for name, text in names.items()}
        rows = [
            (text, number(estimate["value"], estimate["error"]))
            for text, estimate in estimates.items()
            if estimate is not None
        ]
        return html_table(("template quality", ""), rows, f"window {self.window} GeV")


def _curve(record: Mapping[str, Any]) -> Curve:
    train, validation, rate = (np.asarray(record[name], dtype=np.float64) for name in ("train", "validation", "rate"))
    return Curve(train, validation, rate, record["best_epoch"], record["stopped_early"], record["seconds"])
