"""Workspaces for pyhf: HistFactory as JSON, a file for each window and cut.

A count's workspace has one bin; its background's error is a Poisson constraint (``shapesys``), the off region of
:mod:`drapes_hep.bumphunt.significance`. A spectrum's has the bins of the window; its background has a variation
(``histosys``) for each direction in which the fit outside the window may move them. In both the parameter of interest
is the number of signal events in the window that pass. A spectrum is left out where its error would empty it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drapes_hep.exports.points import ExportPoint, write_points
from drapes_hep.version import __version__

__all__ = ["count_workspace", "spectrum_workspace", "write_workspaces"]

_SIGNAL = "signal"
"""The parameter of interest, and its sample."""


def count_workspace(point: ExportPoint) -> dict[str, Any]:
    """Return the workspace of a count.

    Parameters
    ----------
    point : ExportPoint

    Returns
    -------
    dict
        JSON values.
    """
    constraint = {"name": "background_fit", "type": "shapesys", "data": [point.error]}
    return _workspace(point, [float(point.observed)], [1.0], [point.expected], [constraint])


def spectrum_workspace(point: ExportPoint) -> dict[str, Any]:
    """Return the workspace of the bins of a window.

    Parameters
    ----------
    point : ExportPoint

    Returns
    -------
    dict
        JSON values.
    """
    variations = [
        {
            "name": f"background_fit{i}",
            "type": "histosys",
            "data": {
                "hi_data": (point.background + variation).tolist(),
                "lo_data": (point.background - variation).tolist(),
            },
        }
        for i, variation in enumerate(point.variations, 1)
    ]
    return _workspace(point, point.counts.tolist(), point.signal.tolist(), point.background.tolist(), variations)


def _workspace(
    point: ExportPoint, counts: list[float], signal: list[float], background: list[float], modifiers: list[Any]
) -> dict[str, Any]:
    name = f"window_{point.name}"
    return {
        "channels": [
            {
                "name": name,
                "samples": [
                    {
                        "name": _SIGNAL,
                        "data": signal,
                        "modifiers": [{"name": _SIGNAL, "type": "normfactor", "data": None}],
                    },
                    {"name": "background", "data": background, "modifiers": modifiers},
                ],
            }
        ],
        "observations": [{"name": name, "data": counts}],
        "measurements": [
            {
                "name": f"drapes-hep {__version__}",
                "config": {
                    "poi": _SIGNAL,
                    "parameters": [
                        {"name": _SIGNAL, "bounds": [[0.0, point.signal_bound]], "inits": [point.signal_start]}
                    ],
                },
            }
        ],
        "version": "1.0.0",
    }


def write_workspaces(run: str | Path, folder: str | Path) -> list[Path]:
    """Write all workspaces of a finished run.

    Parameters
    ----------
    run : str or Path
        The run directory.
    folder : str or Path
        Where they are written: ``count_<window>_<cut>.json`` and ``spectrum_<window>_<cut>.json``.

    Returns
    -------
    list of Path

    Raises
    ------
    RunDirectoryError
        As :func:`~drapes_hep.exports.points.read_points`.
    """
    return write_points(run, folder, _workspaces)


def _workspaces(point: ExportPoint) -> dict[str, Any]:
    workspaces = {"count": count_workspace(point)}
    return {**workspaces, "spectrum": spectrum_workspace(point)} if point.has_spectrum else workspaces
