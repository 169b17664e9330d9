"""Datacards for Combine, with their histograms in one ROOT file.

A datacard of shapes has the bins of the window and a ``shape`` nuisance for each direction in which the fit outside the
window may move them. A datacard of a count has one ``gmN`` nuisance: the off region of
:mod:`drapes_hep.bumphunt.significance`, whose count Combine takes as a whole number; below ten it would round too much,
and the nuisance is ``lnN``. The parameter of interest ``r`` is
the number of signal events in the window that pass.
"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

import hist
import numpy as np
import numpy.typing as npt
import uproot

from drapes_hep.exports.points import ExportPoint, read_points
from drapes_hep.files import content_hash, write_bytes
from drapes_hep.stages.histograms import export_key

__all__ = ["count_card", "shape_card", "shape_histograms", "write_datacards"]

SHAPES = "shapes.root"
"""The histograms of all datacards."""
_LEAST_RATE = 1e-6
_LEAST_OFF = 10
"""Off count from which rounding changes the error by less than 3 %."""


def count_card(point: ExportPoint) -> str:
    """Write the datacard of a count.

    Parameters
    ----------
    point : ExportPoint

    Returns
    -------
    str
    """
    lines = _head(point, point.observed, nuisances=1 if point.error > 0 else 0)
    lines += _processes(point, 1.0, point.expected)
    if point.error > 0:
        off = round(point.expected**2 / point.error**2)
        if off >= _LEAST_OFF:
            lines.append(_line(f"background_fit gmN {off}", "-", f"{point.expected / off:.9g}"))
        else:
            lines.append(_line("background_fit lnN", "-", f"{1.0 + point.error / point.expected:.9g}"))
    return "\n".join([*lines, ""])


def shape_card(point: ExportPoint) -> str:
    """Write the datacard of the bins of a window.

    Parameters
    ----------
    point : ExportPoint

    Returns
    -------
    str
    """
    variations = len(point.variations)
    lines = _head(point, point.observed, nuisances=variations)
    key = _key(point)
    lines.insert(3, f"shapes * * {SHAPES} {key}_$PROCESS {key}_$PROCESS_$SYSTEMATIC")
    lines += _processes(point, float(point.signal.sum()), float(point.background.sum()))
    lines += [_line(f"background_fit{i} shape", "-", "1") for i in range(1, variations + 1)]
    return "\n".join([*lines, ""])


def shape_histograms(point: ExportPoint) -> dict[str, hist.Hist]:
    """Return the histograms that the datacard of a window's bins names.

    Parameters
    ----------
    point : ExportPoint

    Returns
    -------
    dict of str to hist.Hist
        By their names in the ROOT file.
    """
    key = _key(point)
    values = {"data_obs": point.counts, "signal": point.signal, "background": point.background}
    for i, variation in enumerate(point.variations, 1):
        for sign, direction in ((1.0, "Up"), (-1.0, "Down")):
            values[f"background_background_fit{i}{direction}"] = np.maximum(
                point.background + sign * variation, _LEAST_RATE
            )
    return {f"{key}_{name}": _histogram(point.edges, content) for name, content in values.items()}


def _key(point: ExportPoint) -> str:
    return export_key(f"window_{point.window[0]:g}_{point.window[1]:g}_eff{point.background_efficiency:g}")


def _head(point: ExportPoint, observed: int, nuisances: int) -> list[str]:
    return [
        f"# {point.window[0]:g}-{point.window[1]:g} GeV, background efficiency {point.background_efficiency:g}",
        "imax 1",
        "jmax 1",
        f"kmax {nuisances}",
        "-" * 20,
        f"bin {_key(point)}",
        f"observation {observed}",
        "-" * 20,
    ]


def _processes(point: ExportPoint, signal: float, background: float) -> list[str]:
    key = _key(point)
    return [
        _line("bin", key, key),
        _line("process", "signal", "background"),
        _line("process", "0", "1"),
        _line("rate", f"{signal:.9g}", f"{background:.9g}"),
        "-" * 20,
    ]


def _line(*words: str) -> str:
    return f"{words[0]:<32} {words[1]:<36} {words[2]}"


def _histogram(edges: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> hist.Hist:
    histogram = hist.Hist(hist.axis.Variable(edges, name="mjj", label="$m_{JJ}$ [GeV]"), storage="double")
    histogram.view()[...] = values
    return histogram


def write_datacards(run: str | Path, folder: str | Path) -> list[Path]:
    """Write all datacards of a finished run.

    Parameters
    ----------
    run : str or Path
        The run directory.
    folder : str or Path
        Where they are written: ``count_<window>_<cut>.txt``, ``shapes_<window>_<cut>.txt`` and ``shapes.root``.

    Returns
    -------
    list of Path

    Raises
    ------
    RunDirectoryError
        As :func:`~drapes_hep.exports.points.read_points`.
    """
    folder, files = Path(folder), []
    histograms: dict[str, hist.Hist] = {}
    for point in read_points(run):
        cards = {"count": count_card(point)}
        if point.has_spectrum:
            histograms |= shape_histograms(point)
            cards["shapes"] = shape_card(point)
        for kind, card in cards.items():
            files.append(folder / f"{kind}_{point.name}.txt")
            write_bytes(files[-1], card.encode())
    identity = uuid.uuid5(
        uuid.NAMESPACE_OID, content_hash([{name: value.values().tolist() for name, value in histograms.items()}])
    )
    with tempfile.TemporaryDirectory() as temporary:
        # uproot writes the file's name into it
        with uproot.recreate(Path(temporary) / SHAPES, uuid_function=lambda: identity) as file:
            for name, histogram in histograms.items():
                file[name] = histogram
        write_bytes(folder / SHAPES, (Path(temporary) / SHAPES).read_bytes())
    return [*files, folder / SHAPES]
