"""The window counts of a finished run, with what other fits need of them. Masses in GeV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hist
import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.signal_shapes import find_signal, signal_templates
from drapes_hep.bumphunt.working_points import eigen_variations
from drapes_hep.config import make_config
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import write_json
from drapes_hep.hists import read_hists
from drapes_hep.outcome import Results, WindowResult, WorkingPoint, read_results
from drapes_hep.pipeline.execution import check_current
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.stages.histograms import export_key
from drapes_hep.stages.report import own_configuration

__all__ = ["ExportPoint", "read_points", "write_points"]

FloatArray = npt.NDArray[np.float64]

_LEAST_UP = 0.2
"""Part of its expectation that a bin keeps, at least, when its error is twice taken away."""


@dataclass(frozen=True)
class ExportPoint:
    """One cut in one window, in bins of the window that are wide enough for a fit.

    Attributes
    ----------
    window : tuple of float
        GeV.
    background_efficiency : float
        The cut.
    observed : int
    expected, error : float
        As the hunt quotes them, the spurious signal included.
    z : float or None
        The hunt's local significance.
    mass : float
        Of the signal: the window's centre, GeV.
    edges : array, shape (bins + 1,)
        GeV.
    counts, background : array, shape (bins,)
    covariance : array, shape (bins, bins)
        Of the background.
    signal : array, shape (bins,)
        Its fraction in each bin of those inside the window: the sum is 1.
    """

    window: tuple[float, float]
    background_efficiency: float
    observed: int
    expected: float
    error: float
    z: float | None
    mass: float
    edges: FloatArray
    counts: FloatArray
    background: FloatArray
    covariance: FloatArray
    signal: FloatArray

    @property
    def name(self) -> str:
        """For files: ``3300-3700_0.01``."""
        return f"{self.window[0]:g}-{self.window[1]:g}_{self.background_efficiency:g}"

    @property
    def signal_start(self) -> float:
        """Number of signal events at which a fit starts."""
        return max(self.observed - self.expected, 1.0)

    @property
    def signal_bound(self) -> float:
        """Number of signal events above which no fit looks."""
        return 10.0 * (self.observed + self.expected) + 100.0

    @property
    def has_spectrum(self) -> bool:
        """Whether every bin keeps some background when its error is twice taken away, as a fit of the bins needs."""
        deviation = np.sqrt(np.maximum(np.diagonal(self.covariance), 0.0))
        return bool(np.all(self.background - 2.0 * deviation > 0))

    @property
    def variations(self) -> FloatArray:
        """Independent variations of the background of one standard deviation each, shape (variations, bins)."""
        return eigen_variations(self.covariance)


def read_points(path: str | Path) -> tuple[ExportPoint, ...]:
    """Read the counts of a finished run that are quoted.

    Parameters
    ----------
    path : str or Path
        The run directory.

    Returns
    -------
    tuple of ExportPoint

    Raises
    ------
    RunDirectoryError
        If the run is not finished, is blinded, or quotes nothing.
    """
    run = open_run(path)
    results = read_results(path)
    check_current(run, "hunt")
    if results.blind:
        raise RunDirectoryError(f"{path}: the run is blinded: nothing was observed that could be exported")
    hists = read_hists(run.path / "hists.json", "hunt")
    signal = find_signal(make_config(own_configuration(run)).hunt.signal)
    points = []
    for window, point in _quoted(results):
        assert point.observed is not None
        assert point.expected is not None
        assert point.expected_error is not None
        name = export_key(f"{window.sr[0]:g}_{window.sr[1]:g}_eff{point.background_efficiency:g}")
        counts, background, covariance, edges = _inside(hists, name, window.sr)
        mass = 0.5 * (window.sr[0] + window.sr[1])
        if int(counts.sum()) != point.observed or not np.isclose(background.sum(), point.expected, rtol=1e-6):
            raise RunDirectoryError(f"{run.path / 'hists.json'}: does not belong to results.json; run the hunt again")
        groups = _groups(background, covariance)
        edges = edges[[*groups, len(background)]]
        shape = signal_templates(signal, [mass], edges)[0]
        points.append(
            ExportPoint(
                window.sr,
                point.background_efficiency,
                point.observed,
                point.expected,
                point.expected_error,
                point.z_local,
                mass,
                edges,
                np.add.reduceat(counts, groups),
                np.add.reduceat(background, groups),
                np.add.reduceat(np.add.reduceat(covariance, groups, axis=0), groups, axis=1),
                shape / shape.sum(),
            )
        )
    if not points:
        raise RunDirectoryError(f"{path}: no window quotes an expectation that could be exported")
    return tuple(points)


def write_points(
    run: str | Path, folder: str | Path, documents: Callable[[ExportPoint], Mapping[str, Any]]
) -> list[Path]:
    """Write documents of JSON values for each count of a finished run.

    Parameters
    ----------
    run : str or Path
        The run directory.
    folder : str or Path
        Where they are written.
    documents : callable
        Returns what is written for a count, by kinds: a file is ``<kind>_<window>_<cut>.json``.

    Returns
    -------
    list of Path

    Raises
    ------
    RunDirectoryError
        As :func:`read_points`.
    """
    files = []
    for point in read_points(run):
        for kind, document in documents(point).items():
            files.append(Path(folder) / f"{kind}_{point.name}.json")
            write_json(files[-1], document)
    return files


def _quoted(results: Results) -> list[tuple[WindowResult, WorkingPoint]]:
    return [
        (window, point)
        for window in results.windows
        for point in window.working_points
        if point.observed is not None and point.expected is not None
    ]


def _inside(
    hists: dict[str, hist.Hist], name: str, window: tuple[float, float]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return counts, background, covariance and edges of the bins inside a window."""
    data, expected = hists[f"mjj_{name}"], hists[f"mjj_expected_{name}"]
    edges = np.asarray(data.axes[0].edges)
    slack = 1e-6 * float(np.diff(edges).min())
    inside = np.flatnonzero((edges[:-1] > window[0] - slack) & (edges[1:] < window[1] + slack))
    covariance = np.asarray(hists[f"mjj_expected_{name}_covariance"].view())
    return (
        np.asarray(data.values())[inside],
        np.asarray(expected.values())[inside],
        covariance[np.ix_(inside, inside)],
        edges[[*inside, inside[-1] + 1]],
    )


def _groups(background: FloatArray, covariance: FloatArray) -> list[int]:
    """Return where groups of as many bins begin, so large that no variation of two deviations empties one."""
    bins = len(background)
    for size in range(1, bins + 1):
        groups = list(range(0, bins - bins % size, size)) if bins >= size else [0]
        merged = np.add.reduceat(background, groups)
        variance = np.diagonal(np.add.reduceat(np.add.reduceat(covariance, groups, axis=0), groups, axis=1))
        if bool(np.all(merged - 2.0 * np.sqrt(np.maximum(variance, 0.0)) > _LEAST_UP * merged)):
            return groups
    return [0]
