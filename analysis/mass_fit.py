"""How far off is a mass fit if another shape is true? Pseudo-experiments from each shape, fitted with each shape.

    python analysis/mass_fit.py RUN [--toys 1000] [-o OUT]

RUN is a finished run that is not blinded. Each of the package's shapes is fitted to its full spectrum, and
pseudo-experiments are drawn from the fit. In each window of the run, each shape is fitted to each of them outside the
window, and the pull of the count inside is (observed - expected) / sqrt(expected + error^2). The mean of the pulls is
the bias, and without fluctuations it is ``asimov``, the spurious signal of that truth in standard deviations. The
width is 1 if the errors are right.

Writes ``mass-fit.csv`` (a row per true shape, fitted shape and window), its figure as PNG and PDF, and
``mass-fit.json`` to OUT, by default RUN/mass-fit. Pairs of shapes that are in the table are not repeated, unless the
spectrum, the windows or the number of pseudo-experiments changed.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.efficiency import InclusiveSpectra, inclusive_expectations, window_bins
from drapes_hep.config import PlotConfig
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import atomic_path, content_hash, read_json, write_bytes, write_json
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.plots.studies import Band, Panel, study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE, bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import deviance_p_value, fit_poisson
from drapes_hep.spectrum.shapes import SHAPES

FloatArray = npt.NDArray[np.float64]
Row = dict[str, Any]
SEED = 1


def bias_rows(
    spectra: FloatArray, truth: FloatArray, edges: FloatArray, windows: Sequence[Window], shape: str, sqrt_s: float
) -> list[Row]:
    """Fit a shape to many spectra outside each window, and compare the counts inside with the expectations.

    Parameters
    ----------
    spectra : array, shape (n, bins)
        Pseudo-experiments.
    truth : array, shape (bins,)
        Their mean.
    edges : array, shape (bins + 1,)
        GeV.
    windows : sequence of Window
    shape : str
        A key of ``SHAPES``.
    sqrt_s : float
        GeV.

    Returns
    -------
    list of dict
        One per window; the pulls are those of good fits.
    """
    # fits start from what the shape makes of the truth; row 0 is the truth itself
    start = fit_spectrum(truth, edges, None, shape, sqrt_s)
    mean, gradient = bin_model(shape, sqrt_s, edges, start.parameters)
    every = np.concatenate([truth[None], spectra])
    rows = []
    for window in windows:
        bins = window_bins(edges, window)
        _, r = np.linalg.qr(np.sqrt(mean[bins.outside])[:, None] * gradient[bins.outside])
        design = gradient @ np.linalg.inv(r)
        fit = fit_poisson(every, design, np.log(mean), fitted=bins.outside)
        expected, error = inclusive_expectations(InclusiveSpectra(fit.expected, design, fit.covariance), bins)
        pulls = (every[:, bins.inside].sum(axis=1) - expected) / np.sqrt(expected + error**2)
        good = deviance_p_value(fit.deviance, mean[bins.outside], design.shape[1]) >= GOOD_FIT_P_VALUE
        quoted = pulls[1:][(good & fit.converged)[1:]]
        n = len(quoted)
        width = float(quoted.std(ddof=1)) if n > 1 else None
        rows.append(
            {
                "window_lo_gev": window.lo,
                "window_hi_gev": window.hi,
                "pseudo_experiments": len(spectra),
                "good_fits": n,
                "asimov": float(pulls[0]),
                "pull_mean": float(quoted.mean()) if n else None,
                "pull_mean_error": None if width is None else width / n**0.5,
                "pull_width": width,
                "pull_width_error": None if width is None else width / (2 * (n - 1)) ** 0.5,
            }
        )
    return rows


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Draw the mean pull against the window, a panel per true shape, a line per fitted shape."""

    def band(truth: str, fitted: str) -> Band:
        lines = [row for row in rows if (row["truth"], row["fitted"]) == (truth, fitted)]
        centre, mean, error = (
            np.array([np.nan if value in (None, "") else float(value) for value in values])
            for values in (
                [(float(row["window_lo_gev"]) + float(row["window_hi_gev"])) / 2 for row in lines],
                [row["pull_mean"] for row in lines],
                [row["pull_mean_error"] for row in lines],
            )
        )
        return Band(f"fitted: {fitted}", centre, mean, mean - error, mean + error)

    truths, shapes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("truth", "fitted"))
    return [
        Panel(
            r"Middle of the window, $m_{JJ}$ [GeV]",
            "Mean pull",
            [band(truth, fitted) for fitted in shapes],
            title=f"true: {truth}",
            level=0.0,
        )
        for truth in truths
    ]


def read_rows(table: Path, record: Path, key: str) -> list[Row]:
    """Read the rows of an earlier run of the same tests; none if there is no such run."""
    try:
        same = read_json(record).get("key") == key
    except RunDirectoryError:
        return []
    if not same or not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table; what does not exist is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def mass_fit(run: Path, out: Path, toys: int) -> list[Path]:
    """Run the tests that are missing, and write the table, the figure twice and the record.

    Parameters
    ----------
    run : Path
        A finished run directory.
    out : Path
        Folder of the results.
    toys : int
        Pseudo-experiments per true shape.

    Returns
    -------
    list of Path

    Raises
    ------
    RunDirectoryError
        If the run has no hunt, or is blinded.
    FitError
        If a shape cannot be fitted at all.
    """
    directory = RunDirectory(run)
    hunt, config = read_json(directory.hunt), read_json(directory.manifest)["config"]
    if any(count is None for count in hunt["counts"]):
        raise RunDirectoryError(
            f"{directory.hunt}: is of a blinded run, whose spectrum is not complete; unblind it first"
        )
    edges, counts = np.array(hunt["edges"], dtype=np.float64), np.array(hunt["counts"], dtype=np.float64)
    windows = [Window(lo, hi, float(edges[0]), float(edges[-1])) for lo, hi in (w["sr"] for w in hunt["windows"])]
    sqrt_s = float(config["mass"]["sqrt_s"])
    key = content_hash([hunt["edges"], hunt["counts"], [w["sr"] for w in hunt["windows"]], sqrt_s, toys, SEED])
    out.mkdir(parents=True, exist_ok=True)
    table, record = out / "mass-fit.csv", out / "mass-fit.json"
    rows = read_rows(table, record, key)
    write_json(record, {"key": key, "run": str(run), "toys": toys, "seed": SEED})
    finished = {(row["truth"], row["fitted"]) for row in rows}
    for i, truth in enumerate(SHAPES):
        missing = [shape for shape in SHAPES if (truth, shape) not in finished]
        if not missing:
            continue
        fit = fit_spectrum(counts, edges, None, truth, sqrt_s)
        spectra = np.random.default_rng([SEED, i]).poisson(fit.expected, (toys, len(counts))).astype(np.float64)
        for shape in missing:
            labels = {"truth": truth, "truth_p_value": fit.p_value, "fitted": shape}
            rows += [labels | row for row in bias_rows(spectra, fit.expected, edges, windows, shape, sqrt_s)]
            write_rows(table, rows)
    figure = study_panels(panels(rows), Stamp.from_config(PlotConfig.model_validate(config["plots"]), sqrt_s))
    pictures = [out / "mass-fit.png", out / "mass-fit.pdf"]
    for path in pictures:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    return [table, *pictures, record]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--toys", type=int, default=1000, help="pseudo-experiments per true shape")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    for path in mass_fit(arguments.run, arguments.out or arguments.run / "mass-fit", arguments.toys):
        print(path)  # noqa: T201


if __name__ == "__main__":
    main()
