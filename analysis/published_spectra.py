"""Published dijet spectra: the scans, fits and tests of a search with each mass shape, and pyBumpHunter's scan.

    python analysis/published_spectra.py FILE.root ... --low 1530 [-o OUT]

Each FILE holds a histogram of event counts (TH1, the bins of the experiment). For each mass shape of the package:

- the fit of the whole spectrum, its goodness, the F-test chain, and the lower edge from which the shape describes it;
- the resonance fit without a cut at every mass of the range, for a Gaussian signal;
- the count in every interval of consecutive bins, against the fit outside it, with its spurious signal;
- pyBumpHunter on the same intervals, with the fit of the whole spectrum as its background. That background has no
  error, and contains part of any bump. Without pyBumpHunter these columns are left out.

The first and the last bin are in no interval, so that each has bins on both sides. Writes ``published-spectra.csv`` (a
row for each file and shape), ``published-intervals.csv`` (each interval) and a figure as PNG and PDF to OUT.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import uproot
from scipy import stats

from drapes_hep.bumphunt.background import FLAGGED, SpuriousSignal, check_background, spurious_signals, with_spurious
from drapes_hep.bumphunt.resonance import ResonancePoint, largest, scan_resonances
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.signal_shapes import gaussian
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.bumphunt.working_points import hunt_window
from drapes_hep.errors import DrapesError, FitError, InputError
from drapes_hep.files import atomic_path, write_bytes
from drapes_hep.plots import Band, Panel, Stamp, study_panels
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.spectrum.shapes import SHAPES
from drapes_hep.studies.study import csv_text

FloatArray = npt.NDArray[np.float64]
Row = dict[str, Any]


class Settings(NamedTuple):
    """What all scans share.

    Attributes
    ----------
    sqrt_s : float
        GeV.
    resolution : float
        sigma/m of the signal.
    widths : tuple of two ints
        Fewest and most bins of an interval.
    """

    sqrt_s: float = 13_000.0
    resolution: float = 0.05
    widths: tuple[int, int] = (1, 6)


VERDICTS = ("flagged", "warned", "small", "not assessed")
"""Of spurious signals."""


def read_spectrum(path: str | Path, histogram: str, low: float) -> tuple[FloatArray, FloatArray]:
    """Read the counts from a mass on, up to the last bin that holds events.

    Parameters
    ----------
    path : str or Path
        ROOT file.
    histogram : str
    low : float
        GeV; bins that begin below are left out.

    Returns
    -------
    counts : array, shape (bins,)
    edges : array, shape (bins + 1,)
        GeV.

    Raises
    ------
    InputError
        If there is no such histogram of counts, or fewer than ten bins of it are left.
    """
    try:
        with uproot.open(path) as file:
            counts, edges = file[histogram].to_numpy(flow=False)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reasons = {FileNotFoundError: "does not exist", uproot.KeyInFileError: f"has no histogram '{histogram}'"}
        reason = reasons.get(type(error), f"is not a ROOT file with a histogram '{histogram}'")
        raise InputError(path, reason, "name the file and --histogram") from error
    if np.ndim(counts) != 1 or np.any(counts < 0) or np.any(counts != np.rint(counts)):
        raise InputError(path, f"'{histogram}' does not hold counts of events", "give the counts, not a density")
    used = np.flatnonzero((edges[:-1] >= low) & (np.cumsum(counts[::-1])[::-1] > 0))
    if len(used) < 10:
        raise InputError(path, f"'{histogram}' has {len(used)} bins with events from {low:g} GeV on", "lower --low")
    first, last = used[0], used[-1]
    return counts[first : last + 1].astype(np.float64), edges[first : last + 2].astype(np.float64)


def intervals(edges: FloatArray, widths: tuple[int, int]) -> list[Window]:
    """Return all intervals of consecutive bins that leave a bin on either side, by rising width, then mass."""
    bins = len(edges) - 1
    return [
        Window(float(edges[i]), float(edges[i + width]), float(edges[0]), float(edges[-1]))
        for width in range(widths[0], widths[1] + 1)
        for i in range(1, bins - width)
    ]


def count_intervals(counts: SelectedCounts, shape: str, settings: Settings) -> list[Row]:
    """Compare the count in each interval with the fit outside it, without and with the spurious signal in the error."""
    windows = intervals(counts.edges, settings.widths)
    rows = []
    for window, spurious in zip(windows, spurious_signals(counts, windows, shape, settings.sqrt_s), strict=True):
        point = hunt_window(counts, window, shape=shape, sqrt_s=settings.sqrt_s).working_points[0]
        observed, expected, error = point.observed, point.expected, point.expected_error
        widened = None
        if point.z_local is not None and observed is not None and expected is not None and error is not None:
            larger = with_spurious(error, expected, expected, spurious.size)
            widened = float(local_significance(observed, expected, larger).z)
        rows.append(
            {
                "low_gev": window.lo,
                "high_gev": window.hi,
                "bins": int(window.in_signal_region(counts.edges[:-1]).sum()),
                "observed": observed,
                "expected": expected,
                "expected_error": error,
                "z_local": point.z_local,
                "z_local_with_spurious": widened,
                "spurious_events": spurious.events,
                "spurious_sigma": _signed(spurious),
                "spurious_verdict": spurious.verdict,
            }
        )
    return rows


def _signed(spurious: SpuriousSignal) -> float | None:
    """Return the spurious signal in standard deviations, with its sign."""
    if spurious.events is None or spurious.fraction is None:
        return None
    return float(np.copysign(spurious.fraction, spurious.events))


def bump_hunter(counts: FloatArray, expected: FloatArray, edges: FloatArray, widths: tuple[int, int]) -> Row:
    """Scan the same intervals with pyBumpHunter.

    Parameters
    ----------
    counts, expected : array, shape (bins,)
    edges : array, shape (bins + 1,)
        GeV.
    widths : tuple of two ints

    Returns
    -------
    dict
        Its best interval, GeV, and the local p-value and z there; nothing without pyBumpHunter.
    """
    if not has_bump_hunter():
        return {}
    from pyBumpHunter import BumpHunter1D

    hunter = BumpHunter1D(width_min=widths[0], width_max=widths[1], scan_step=1, nworker=1, seed=1)
    with contextlib.redirect_stdout(io.StringIO()):
        hunter.bump_scan(counts[1:-1], expected[1:-1], is_hist=True, do_pseudo=False)
    first, width, p = int(hunter.min_loc_ar[0]) + 1, int(hunter.min_width_ar[0]), float(hunter.min_Pval_ar[0])
    return {
        "bumphunter_low_gev": float(edges[first]),
        "bumphunter_high_gev": float(edges[first + width]),
        "bumphunter_p_local": p,
        "bumphunter_z_local": float(stats.norm.isf(p)),
    }


def has_bump_hunter() -> bool:
    """Whether pyBumpHunter is installed."""
    return importlib.util.find_spec("pyBumpHunter") is not None


def scan(
    counts: FloatArray, edges: FloatArray, shape: str, settings: Settings
) -> tuple[Row, list[Row], list[ResonancePoint]]:
    """Do all that the module's head lists, for one spectrum and one shape.

    Parameters
    ----------
    counts : array, shape (bins,)
    edges : array, shape (bins + 1,)
        GeV.
    shape : str
        A key of ``SHAPES``.
    settings : Settings

    Returns
    -------
    summary : dict
    intervals : list of dict
    points : list of ResonancePoint
    """
    selected = SelectedCounts(edges, (1.0,), counts[None], np.zeros(len(counts), dtype=np.bool_))
    sqrt_s = settings.sqrt_s
    fit = fit_spectrum(counts, edges, None, shape, sqrt_s)
    # without a cut, the fits do not depend on the window
    whole = Window(float(edges[1]), float(edges[-2]), float(edges[0]), float(edges[-1]))
    points = list(
        scan_resonances([whole], [selected], gaussian(settings.resolution), shape=shape, sqrt_s=sqrt_s).points
    )
    rows = count_intervals(selected, shape, settings)
    verdicts = [row["spurious_verdict"] for row in rows]
    summary: Row = {
        "events": int(counts.sum()),
        "chi2": fit.chi2,
        "ndof": fit.ndof,
        "p_value": fit.p_value,
        **_checked(selected, shape, sqrt_s),
        **_largest_resonance(points),
        **{f"interval_{name}": value for name, value in _best(rows, "z_local").items()},
        "largest_z_local_with_spurious": _best(rows, "z_local_with_spurious").get("z_local_with_spurious"),
        "intervals": len(rows),
        **{f"intervals_{verdict.replace(' ', '_')}": verdicts.count(verdict) for verdict in VERDICTS},
    }
    hunted = bump_hunter(counts, fit.expected, edges, settings.widths)
    if hunted:
        theirs = hunted["bumphunter_low_gev"], hunted["bumphunter_high_gev"]
        row = next(row for row in rows if (row["low_gev"], row["high_gev"]) == theirs)
        same = row is _best(rows, "z_local")
        summary |= hunted | {"same_interval": same, "z_local_in_bumphunter_interval": row["z_local"]}
    return summary, rows, points


def _checked(counts: SelectedCounts, shape: str, sqrt_s: float) -> Row:
    """Return the F-test chain and the lower edge."""
    check = check_background(counts, shape, sqrt_s)
    steps = [
        f"{test.shape} to {test.more}: {'no fit' if test.p_value is None else f'{test.p_value:.2g}'}"
        for test in check.f_tests
    ]
    return {
        "f_test_p_values": "; ".join(steps),
        "f_test_chooses": check.chosen,
        "describes_from_gev": check.describes_from,
    }


def _largest_resonance(points: Sequence[ResonancePoint]) -> Row:
    """Return the mass of the largest z, and what is fitted there."""
    best = next(iter(largest(points)), None)
    return {
        f"resonance_{name}": None if best is None else getattr(best, attribute)
        for name, attribute in (
            ("mass_gev", "mass"),
            ("z_local", "z"),
            ("signal", "signal"),
            ("signal_error", "error"),
            ("background", "background"),
        )
    }


def _best(rows: Sequence[Row], column: str) -> Row:
    """Return the row of the largest value; nothing where no row has one."""
    return max((row for row in rows if row[column] is not None), key=lambda row: row[column], default={})


def panels(
    name: str, points: Mapping[str, Sequence[ResonancePoint]], rows: Sequence[Row], width: int = 3
) -> list[Panel]:
    """Draw z of the resonance fit against its mass, and the spurious signal of intervals of some width.

    Parameters
    ----------
    name : str
        Of the spectrum.
    points : mapping of str to sequence of ResonancePoint
        By shape.
    rows : sequence of dict
        Intervals, with ``shape`` and ``bins``.
    width : int
        Bins of the intervals that are drawn.

    Returns
    -------
    list of Panel
    """

    def line(shape: str, x: Sequence[float], y: Sequence[float | None], marked: bool) -> Band:
        values = np.array([np.nan if value is None else value for value in y], dtype=np.float64)
        return Band(shape, np.array(x), values, values, values, marked)

    scans = [line(s, [p.mass for p in scanned], [p.z for p in scanned], False) for s, scanned in points.items()]
    spurious = []
    for shape in points:
        mine = [row for row in rows if row["shape"] == shape and row["bins"] == width]
        centres = [0.5 * (row["low_gev"] + row["high_gev"]) for row in mine]
        spurious.append(line(shape, centres, [row["spurious_sigma"] for row in mine], False))
    mass = r"$m_{JJ}$ [GeV]"
    zone = f"Not flagged: within {FLAGGED:g}"
    return [
        Panel(mass, "z of the resonance fit", scans, name, level=0.0, meaning="No signal"),
        Panel(mass, f"Spurious signal / σ, {width} bins", spurious, name, zone=(-FLAGGED, FLAGGED), zone_meaning=zone),
    ]


def published_spectra(files: Sequence[str], histogram: str, low: float, settings: Settings, out: Path) -> list[Path]:
    """Scan each file with each shape, and write the tables and the figure.

    Parameters
    ----------
    files : sequence of str
    histogram : str
    low : float
        GeV.
    settings : Settings
    out : Path
        Folder.

    Returns
    -------
    list of Path
    """
    stems = [Path(file).stem for file in files]
    names = stems if len(set(stems)) == len(stems) else files
    spectra = {str(name): read_spectrum(file, histogram, low) for name, file in zip(names, files, strict=True)}
    summaries: list[Row] = []
    every: list[Row] = []
    drawn: list[Panel] = []
    for name, (counts, edges) in spectra.items():
        points = {}
        for shape in SHAPES:
            _say(f"{name}: {shape}")
            labels = {"spectrum": name, "shape": shape}
            try:
                summary, rows, points[shape] = scan(counts, edges, shape, settings)
            except FitError as error:
                summaries.append(labels | {"reason": str(error)})
                continue
            summaries.append(labels | summary)
            every += [labels | row for row in rows]
        drawn += panels(name, points, [row for row in every if row["spectrum"] == name])
    paths = [out / f"published-{name}" for name in ("spectra.csv", "intervals.csv", "spectra.png", "spectra.pdf")]
    write_bytes(paths[0], csv_text(summaries).encode())
    write_bytes(paths[1], csv_text(every).encode())
    figure = study_panels(drawn, Stamp("Published spectra", "", None, settings.sqrt_s))
    for path in paths[2:]:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    return paths


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="ROOT files with a histogram of counts")
    parser.add_argument("--histogram", default="Mjj", help="its name (default: %(default)s)")
    parser.add_argument("--low", type=float, required=True, help="lowest edge of the fitted bins, GeV")
    standard = Settings()
    parser.add_argument("--sqrt-s", type=float, default=standard.sqrt_s, help="centre-of-mass energy, GeV")
    parser.add_argument("--resolution", type=float, default=standard.resolution, help="sigma/m of the Gaussian signal")
    parser.add_argument("--widths", type=int, nargs=2, default=standard.widths, help="fewest and most bins")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("published"), help="folder to write (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if not 1 <= arguments.widths[0] <= arguments.widths[1]:
        parser.error("--widths: two numbers of bins, rising, at least 1")
    if not 0.001 <= arguments.resolution <= 0.5:
        parser.error(f"--resolution {arguments.resolution:g}: must be from 0.001 to 0.5")
    if not has_bump_hunter():
        _say("pyBumpHunter is not installed, its columns are left out; pip install pyBumpHunter adds them")
    try:
        settings = Settings(arguments.sqrt_s, arguments.resolution, tuple(arguments.widths))
        written = published_spectra(arguments.files, arguments.histogram, arguments.low, settings, arguments.out)
    except DrapesError as error:
        _say(f"{Path(__file__).name}: {error}")
        sys.exit(2)
    for path in written:
        print(path)  # noqa: T201


if __name__ == "__main__":
    main()
