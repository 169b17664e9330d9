"""Documents of the HEP Statistics Serialization Standard (HS3): a file for each window and cut.

The models are those of :mod:`drapes_hep.exports.workspaces`, as distributions of type ``histfactory_dist``. The error
of a count is a channel of its own, the off region of :mod:`drapes_hep.bumphunt.significance` with (b/s)^2 events:
readers of the standard differ in what the numbers of a ``shapesys`` mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drapes_hep.exports.points import ExportPoint, write_points
from drapes_hep.version import __version__

__all__ = ["count_document", "spectrum_document", "write_documents"]

VERSION = "0.2"
"""Of the standard."""
_SIGNAL = "signal"


def count_document(point: ExportPoint) -> dict[str, Any]:
    """Return the document of a count.

    Parameters
    ----------
    point : ExportPoint

    Returns
    -------
    dict
        JSON values.
    """
    window = [point.edges[0], point.edges[-1]]
    norm = {"name": "background", "type": "normfactor", "parameter": "background"}
    off = point.expected**2 / point.error**2
    return _document(
        point,
        [
            ("on", window, [point.observed], [_signal([1.0]), _sample("background", [point.expected], [norm])]),
            ("off", window, [off], [_sample("background", [off], [norm])]),
        ],
        {"background": (1.0, 0.0, 10.0)},
    )


def spectrum_document(point: ExportPoint) -> dict[str, Any]:
    """Return the document of the bins of a window.

    Parameters
    ----------
    point : ExportPoint

    Returns
    -------
    dict
        JSON values.
    """
    variations: list[dict[str, Any]] = [
        {
            "name": f"background_fit{i}",
            "type": "histosys",
            "parameter": f"background_fit{i}",
            "constraint": "Gauss",
            "data": {
                "hi": {"contents": (point.background + variation).tolist()},
                "lo": {"contents": (point.background - variation).tolist()},
            },
        }
        for i, variation in enumerate(point.variations, 1)
    ]
    background = _sample("background", point.background.tolist(), variations)
    return _document(
        point,
        [("window", point.edges.tolist(), point.counts.tolist(), [_signal(point.signal.tolist()), background])],
        {f"background_fit{i}": (0.0, -5.0, 5.0) for i in range(1, len(variations) + 1)},
    )


def _signal(contents: list[float]) -> dict[str, Any]:
    return _sample(_SIGNAL, contents, [{"name": _SIGNAL, "type": "normfactor", "parameter": _SIGNAL}])


def _sample(name: str, contents: list[float], modifiers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "data": {"contents": contents, "errors": [0.0] * len(contents)}, "modifiers": modifiers}


_Channel = tuple[str, Sequence[float], Sequence[float], list[dict[str, Any]]]
"""Name, edges in GeV, counts, samples."""


def _document(
    point: ExportPoint, channels: Sequence[_Channel], nuisances: dict[str, tuple[float, float, float]]
) -> dict[str, Any]:
    parameters = {_SIGNAL: (point.signal_start, 0.0, point.signal_bound), **nuisances}
    axes = {name: [{"name": f"mjj_{name}", "edges": [float(x) for x in edges]}] for name, edges, _, _ in channels}
    return {
        "metadata": {
            "hs3_version": VERSION,
            "packages": [{"name": "drapes-hep", "version": __version__}],
            "description": f"{point.window[0]:g}-{point.window[1]:g} GeV, background efficiency"
            f" {point.background_efficiency:g}",
        },
        "distributions": [
            {"name": name, "type": "histfactory_dist", "axes": axes[name], "samples": samples}
            for name, _, _, samples in channels
        ],
        "data": [
            {"name": f"{name}_observed", "type": "binned", "axes": axes[name], "contents": [float(n) for n in counts]}
            for name, _, counts, _ in channels
        ],
        "domains": [
            {
                "name": "bounds",
                "type": "product_domain",
                "axes": [{"name": name, "min": low, "max": high} for name, (_, low, high) in parameters.items()],
            }
        ],
        "parameter_points": [
            {
                "name": "start",
                "parameters": [{"name": name, "value": value} for name, (value, _, _) in parameters.items()],
            }
        ],
        "likelihoods": [
            {
                "name": "likelihood",
                "distributions": [name for name, *_ in channels],
                "data": [f"{name}_observed" for name, *_ in channels],
            }
        ],
        "analyses": [
            {
                "name": "analysis",
                "likelihood": "likelihood",
                "parameters_of_interest": [_SIGNAL],
                "domains": ["bounds"],
                "init": "start",
            }
        ],
    }


def write_documents(run: str | Path, folder: str | Path) -> list[Path]:
    """Write all documents of a finished run.

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
    return write_points(run, folder, _documents)


def _documents(point: ExportPoint) -> dict[str, Any]:
    documents = {"count": count_document(point)} if point.error > 0 else {}
    return {**documents, "spectrum": spectrum_document(point)} if point.has_spectrum else documents
