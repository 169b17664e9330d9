"""A template that somebody made elsewhere: a table of events, in Parquet or ROOT.

Columns: the features of the configuration, ``mjj`` (GeV), and if there is one ``weight`` (1 otherwise). An event that
was made of an event of the data needs its identity as ``parent_id``, so that the two are never parted by the folds of
the classifier; without this column the events of the table are taken to be independent of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, InputError, counted, reason_of
from drapes_hep.events.schema import NO_PARENT
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.files import file_hash
from drapes_hep.fixed import LARGEST
from drapes_hep.regions import Window
from drapes_hep.rng import event_keys, stage_seed
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask
from drapes_hep.templates.tables import EventTable, Plan, Template
from drapes_hep.training.curves import TrainingCurve

__all__ = ["TemplateTable", "read_table"]

FloatArray = npt.NDArray[np.float64]
_REMEDY = "a template table holds the features, mjj and, if you like, weight and parent_id, one number per event"


def read_table(path: Path, features: Sequence[str], tree: str | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read the columns of a template table.

    Parameters
    ----------
    path : Path
        Parquet, or ROOT.
    features : sequence of str
    tree : str, optional
        Name of the TTree or RNTuple, where a ROOT file holds several.

    Returns
    -------
    dict of str to array, shape (n,)
        The features, ``mjj`` and ``weight`` as float64; ``parent_id`` as int64 where there is one.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, or has values that are not numbers.
    """
    columns = _root(path, tree, features) if path.suffix == ".root" else _parquet(path, features)
    out: dict[str, npt.NDArray[Any]] = {}
    for name, values in columns.items():
        dtype = np.int64 if name == "parent_id" else np.float64
        if values.ndim != 1 or values.dtype.kind not in ("iu" if name == "parent_id" else "iuf"):
            kind = "whole numbers" if name == "parent_id" else "numbers"
            mixed = values.dtype.kind == "O"
            holds = "lists, text or missing values" if mixed else f"{values.dtype} of shape {values.shape}"
            raise InputError(path, f"column '{name}' holds {holds}, not {kind}", _REMEDY)
        out[name] = values.astype(dtype)
    out.setdefault("weight", np.ones(len(out["mjj"])))
    return out


def _columns_to_read(path: Path, features: Sequence[str], present: Sequence[str]) -> list[str]:
    missing = [name for name in (*features, "mjj") if name not in present]
    if missing:
        raise InputError(path, f"lacks column '{missing[0]}' (it has {', '.join(present)})", _REMEDY)
    return [*features, "mjj", *(name for name in ("weight", "parent_id") if name in present)]


def _parquet(path: Path, features: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise InputError(path, "no such file", "see template.path")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=_columns_to_read(path, features, file.schema_arrow.names))
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            path, f"cannot be read as Parquet ({reason_of(error)})", "name a Parquet or ROOT file"
        ) from error
    null = [name for name in table.column_names if table[name].null_count]
    if null:
        raise InputError(path, f"column '{null[0]}' has missing values", "remove such events")
    return {name: np.asarray(table[name].combine_chunks()) for name in table.column_names}


def _root(path: Path, tree: str | None, features: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    try:
        with uproot.open(path) as file:
            kinds = file.classnames(recursive=True, cycle=False)
            trees = [name for name, kind in kinds.items() if kind in ("TTree", "ROOT::RNTuple")]
            chosen = tree or (trees[0] if len(trees) == 1 else None)
            if chosen not in trees:
                raise InputError(
                    path,
                    f"holds the trees {', '.join(trees) or 'none'}",
                    "name one with template.options: {tree: NAME}",
                )
            events = file[chosen]
            names = _columns_to_read(path, features, list(events.keys()))
            return {name: np.asarray(values) for name, values in events.arrays(names, library="np").items()}
    except InputError:
        raise
    except Exception as error:  # whatever uproot meets in a damaged file
        raise InputError(path, f"cannot be read as ROOT ({reason_of(error)})", "name a Parquet or ROOT file") from error


class TemplateTable(BackgroundMethod):
    """The template of a table: ``template: {method: file, path: FILE}``.

    Parameters
    ----------
    config : Config
    tree : str
        Name of the TTree or RNTuple, where a ROOT file holds several.
    """

    title = "Template file"
    cross_fits = False

    def __init__(self, config: Config, tree: str = "") -> None:
        self.config, self.tree = config, tree
        self.path = Path(config.template.path or "")

    def check(self) -> None:
        """Read the table."""
        self._read()

    def _read(self) -> dict[str, npt.NDArray[Any]]:
        columns = read_table(self.path, self.config.features, self.tree or None)
        weight = columns["weight"]
        with np.errstate(invalid="ignore"):
            good = {name: np.abs(columns[name]) <= LARGEST for name in self.config.features}
            good |= {
                "mjj": np.isfinite(columns["mjj"]) & (columns["mjj"] > 0),
                "weight": np.isfinite(weight) & (weight >= 0),
            }
        for name, mask in good.items():
            if not mask.all():
                row = int(np.flatnonzero(~mask)[0])
                problem = f"column '{name}' has {counted(int((~mask).sum()), 'bad value')}, the first in row {row}"
                raise InputError(self.path, f"{problem} ({columns[name][row]:g})", "remove such events")
        return columns

    def settings(self) -> Mapping[str, Any]:
        """Return the hash of the table: another table is another template."""
        try:
            return {"table": file_hash(self.path)}
        except OSError as error:
            raise ConfigError(f"template.path {self.path}: cannot be read ({error.strerror})") from error

    def fit(self, task: FitTask) -> tuple[dict[str, npt.NDArray[Any]], Mapping[str, TrainingCurve]]:
        """Read the table; nothing is trained.

        Raises
        ------
        InputError
            If it has no event in the window, or no positive weight there.
        """
        columns = self._read()
        low, high = task.hidden[0] if task.hidden else (0.0, np.inf)
        inside = (columns["mjj"] >= low) & (columns["mjj"] < high)
        if not columns["weight"][inside].sum() > 0:
            what = "no event" if not inside.any() else "no positive weight"
            raise InputError(
                self.path, f"has {what} between {low:g} and {high:g} GeV", "name a template of this window"
            )
        number = np.arange(len(inside), dtype=np.int64)
        columns["event_id"] = event_keys(stage_seed(0, "template table"), number)
        columns.setdefault("parent_id", np.full(len(inside), NO_PARENT, dtype=np.int64))
        return columns, {}

    def check_windows(self, windows: Sequence[Window]) -> None:
        """Check that the table has events of every window.

        Raises
        ------
        InputError
            With the windows of which it has no event, or none with a weight.
        """
        columns = self._read()
        mjj = columns["mjj"][columns["weight"] > 0]
        empty = [window.name for window in windows if not window.in_signal_region(mjj).any()]
        if empty:
            of = f"{len(empty)} of {counted(len(windows), 'window')}"
            raise InputError(
                self.path,
                f"has no event of positive weight in {of}: {', '.join(empty)} GeV",
                "add them to the table, or change 'windows'",
            )

    def remarks(self, model: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
        """Return what a table without parents leaves open."""
        if not (model["parent_id"] == NO_PARENT).any():
            return ()
        return (
            "events of the template table without a parent_id are taken to be independent of the data and of each"
            " other; if they were made of events of the data, the classifier is trained on what it scores",
        )

    def save(self, folder: Path, model: Mapping[str, npt.NDArray[Any]]) -> Sequence[Path]:
        """Write the columns that are used."""
        write_skim(folder / "table.parquet", dict(model))
        return [folder / "table.parquet"]

    def load(self, folder: Path, device: str) -> dict[str, npt.NDArray[Any]]:  # noqa: ARG002 - no network
        """Read the columns."""
        table = read_skim(folder / "table.parquet")
        return {name: np.asarray(table[name]) for name in table.columns}

    def sample(
        self,
        model: Mapping[str, npt.NDArray[Any]],
        plan: Plan,  # noqa: ARG002 - masses are the table's
        parents: EventTable | None,  # noqa: ARG002 - the table names them
        task: SampleTask,
    ) -> Template:
        """Return the events of the table in the region; their number and masses are the table's, not the plan's."""
        rows = np.flatnonzero(task.region(model["mjj"]))
        x = np.stack([model[name][rows] for name in self.config.features], axis=1)
        event_id, parent_id, mjj, weight = (model[name][rows] for name in ("event_id", "parent_id", "mjj", "weight"))
        return Template(event_id, parent_id, x, mjj, weight)
