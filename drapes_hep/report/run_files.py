"""The files of a run directory, read with errors that name them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from drapes_hep import plots
from drapes_hep.config import PlotConfig
from drapes_hep.errors import ConfigError, InputError, RunDirectoryError
from drapes_hep.events.features import FEATURES, check_features, kept_columns
from drapes_hep.events.formats.arrow import column_of
from drapes_hep.events.ranges import in_ranges
from drapes_hep.events.skims import skim_metadata
from drapes_hep.files import read_json
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.regions import Window

__all__ = [
    "Estimate",
    "Point",
    "RunFiles",
    "WindowFiles",
    "estimate",
    "load_run",
    "optional_array",
    "read_columns",
    "reading",
]

Columns = dict[str, npt.NDArray[Any]]
Estimate = float | Mapping[str, Any] | None
"""A number as files write it: null, 0.5 or {"value", "error"}."""
Point = Mapping[str, Any]
"""A working point of a window."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the surprises of a file that is not as the contract says into one line that names it.

    Raises
    ------
    RunDirectoryError
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ConfigError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise RunDirectoryError(
            f"{path}: is not as docs/run-directory.md says ({what}); run its stage again"
        ) from error


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path}: is not as docs/run-directory.md says (no mapping); run its stage again")
    return value


def read_columns(path: Path, columns: Sequence[str]) -> Columns:
    """Read columns of a parquet file.

    Raises
    ------
    RunDirectoryError
        If the file is missing or damaged, or lacks a column.
    """
    try:
        table = pq.read_table(path, columns=list(columns), page_checksum_verification=True)
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: missing; run the stage that writes it") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise RunDirectoryError(f"{path}: cannot be read as parquet ({reason}); delete it and run again") from error
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        raise RunDirectoryError(f"{path}: has no column {', '.join(missing)}; delete it and run again")
    return {c: column_of(path, c, table.column(c)) for c in columns}


def optional_array(values: Sequence[float | None] | None) -> npt.NDArray[np.float64] | None:
    """Return an array with NaN for null; None for no array at all."""
    if values is None:
        return None
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def estimate(value: Estimate) -> tuple[float, float | None] | None:
    """Read a number with its uncertainty, however it is written."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        if value.get("value") is None:
            return None
        error = value.get("error")
        return float(value["value"]), None if error is None else float(error)
    return float(value), None


@dataclass(frozen=True)
class WindowFiles:
    """One window's files.

    Attributes
    ----------
    window : Window
    folder : Path
        Where they are.
    result, hunt : mapping
        The window's entries in ``results.json`` and ``hunt.json``.
    quality : mapping
        ``quality.json``.
    training : mapping or None
        ``training.json``, where there is one.
    """

    window: Window
    folder: Path
    result: Mapping[str, Any]
    hunt: Mapping[str, Any]
    quality: Mapping[str, Any]
    training: Mapping[str, Any] | None

    @property
    def sr(self) -> tuple[float, float]:
        """The edges of the window, GeV."""
        return self.window.lo, self.window.hi

    @property
    def title(self) -> str:
        """The window as the page writes it."""
        return f"{self.window.lo:g}–{self.window.hi:g}"

    @property
    def template(self) -> Mapping[str, Any]:
        """Its template in the results."""
        return self.result.get("template") or {}

    @cached_property
    def template_record(self) -> Mapping[str, Any]:
        """What is recorded with its closure sample of how its template is made; nothing where there is none."""
        return self._recorded("closure.parquet")

    @cached_property
    def scored(self) -> Mapping[str, Any]:
        """What is recorded with its scores; nothing where there are none."""
        return self._recorded("scores.parquet")

    def _recorded(self, name: str) -> Mapping[str, Any]:
        path = self.folder / name
        try:
            return skim_metadata(path) if path.is_file() else {}
        except InputError as error:
            raise RunDirectoryError(f"{path}: {error.problem}; delete it and run again") from error

    @property
    def has_jets(self) -> bool:
        """Whether its template is made of jets with constituents."""
        path = self.folder / "closure.parquet"
        # what cannot be read at all is said where its metadata are asked for
        return bool(self.template_record) and "jets" in pq.read_schema(path).names

    @property
    def pseudo_window(self) -> tuple[float, float] | None:
        """Where the interpolation of its template was tested, GeV."""
        bounds = ((self.quality.get("template") or {}).get("auc_vs_pseudo_window") or {}).get("window")
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    @property
    def points(self) -> list[Point]:
        """Its working points, from loose to tight."""
        return sorted(self.result["working_points"], key=lambda p: -float(p["background_efficiency"]))

    @cached_property
    def scores(self) -> Columns:
        """Its scored events."""
        return read_columns(self.folder / "scores.parquet", ("mjj", "weight", "region", "part", "fold", "tail"))

    def forget(self) -> None:
        """Let go of the scored events, a window's largest file: one at a time in memory."""
        self.__dict__.pop("scores", None)


@dataclass(frozen=True)
class RunFiles:
    """Everything but the windows' event files.

    Attributes
    ----------
    directory : RunDirectory
    manifest, results, hunt, skim : mapping
        ``manifest.json``, ``results.json``, ``hunt.json``, ``skim/skim.json``.
    config : mapping
        The configuration, as the manifest holds it; the figures' words and the blinding are those of the page.
    windows : tuple of WindowFiles
        From low to high mass.
    stamp : Stamp
        The labels above the axes.
    blind : bool
        Nothing in any window may be drawn.
    hidden : tuple of tuple of float
        The windows that are hidden, GeV: all of the search, hunted or not; none if not blind.
    """

    directory: RunDirectory
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    hunt: Mapping[str, Any]
    skim: Mapping[str, Any]
    windows: tuple[WindowFiles, ...]
    stamp: plots.Stamp
    blind: bool
    hidden: tuple[tuple[float, float], ...]

    @cached_property
    def events(self) -> Columns:
        """The selected events, by identity."""
        events = read_columns(self.directory.events, ("event_id", "weight", "mjj", *self.features))
        order = np.argsort(events["event_id"], kind="stable")
        return {name: values[order] for name, values in events.items()}

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(str(f) for f in self.config.get("features", ()))

    @cached_property
    def labels(self) -> dict[str, str]:
        """Axis labels of the features of this version."""
        define, keep = self.config.get("define") or {}, (self.config.get("selection") or {}).get("keep", ())
        names = [name for name in self.features if name in {*FEATURES, *define, *kept_columns(keep)}]
        return {feature.name: feature.axis_label for feature in check_features(names, define, keep)} if names else {}

    @property
    def fit_title(self) -> str:
        """Title of the mass shape in brackets, to follow "the fit"; empty for a run of an earlier version."""
        title = self.hunt.get("shape")
        return f" ({title})" if title else ""

    @cached_property
    def edges(self) -> npt.NDArray[np.float64]:
        """Bins of the spectrum, GeV."""
        return np.asarray(self.hunt["edges"], dtype=np.float64)

    @property
    def stages(self) -> dict[str, Mapping[str, Any]]:
        """The entries of the manifest for the stages of these results."""
        windows = {files.window.name for files in self.windows}
        every = self.manifest.get("stages") or {}
        return {name: stage for name, stage in every.items() if name.partition(".")[2] in {"", *windows}}

    def made_by(self, what: str) -> list[tuple[Any, list[str]]]:
        """Return the different values of what made the stages (``code``, ``git``, ...), each with its stages."""
        out: list[tuple[Any, list[str]]] = []
        for name, stage in self.stages.items():
            same = next((stages for value, stages in out if value == stage.get(what)), None)
            if same is None:
                out.append((stage.get(what), [name]))
            else:
                same.append(name)
        return out

    def covered(self, mjj: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return what a blinded run may not draw: masses in any window."""
        return in_ranges(mjj, self.hidden)


def load_run(path: Path, words: Mapping[str, Any] | None = None) -> RunFiles:
    """Read a run directory whose hunt is done.

    Parameters
    ----------
    path : Path
        The run directory.
    words : mapping, optional
        ``plots`` of a configuration, instead of the run's own.

    Raises
    ------
    RunDirectoryError
        If a file is missing, damaged, or not as the contract says.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: no such run directory")
    directory = RunDirectory(path)
    manifest = _mapping(directory.manifest)
    results, hunt = _mapping(directory.results), _mapping(directory.hunt)
    skim = _mapping(directory.skim_info)
    with reading(directory.manifest):
        config = dict(manifest["config"])
        if words is not None:
            config["plots"] = dict(words)
        plot_words = PlotConfig.model_validate(config.get("plots") or {})
        sqrt_s = (config.get("mass") or {}).get("sqrt_s")
        stamp = plots.Stamp.from_config(plot_words, None if sqrt_s is None else float(sqrt_s))
    with reading(directory.hunt):
        by_window = {(float(w["sr"][0]), float(w["sr"][1])): w for w in hunt["windows"]}
        counts = [c for w in hunt["windows"] for p in w["working_points"] for c in p["counts"]]
        mass_range = float(hunt["edges"][0]), float(hunt["edges"][-1])
    windows = []
    with reading(directory.results):
        for result in results["windows"]:
            window = Window(float(result["sr"][0]), float(result["sr"][1]), *mass_range)
            hunted = by_window.get((window.lo, window.hi))
            if hunted is None:
                raise RunDirectoryError(f"{directory.hunt}: has no window {window.name}; run the hunt again")
            folder = directory.window(window)
            training = folder / "training.json"
            windows.append(
                WindowFiles(
                    window,
                    folder,
                    result,
                    hunted,
                    _mapping(folder / "quality.json"),
                    _mapping(training) if training.exists() else None,
                )
            )
    # counts that were hidden say more than a setting that may have been overridden
    blind = bool(results.get("blind", config.get("blind", True))) or any(c is None for c in counts)
    config["blind"] = blind
    windows.sort(key=lambda files: files.window)
    with reading(directory.skim_info):
        hidden = tuple((float(low), float(high)) for low, high in skim["hidden"]) if blind else ()
    if blind and not {files.sr for files in windows} <= set(hidden):
        raise RunDirectoryError(f"{directory.skim_info}: was not made blind, and the results are; run the skim again")
    return RunFiles(directory, manifest, config, results, hunt, skim, tuple(windows), stamp, blind, hidden)
