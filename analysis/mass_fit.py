"""How far off is a mass fit if another shape is true? Pseudo-experiments from each shape, fitted with each shape.

    drapes study mass-fit configs/lhco_rd.yaml

Each shape is fitted to the spectrum: the package's and, if it is another one, that of ``mass.fit``. Pseudo-experiments
are drawn from the fit. Outside each window, each shape is fitted to each of them, and the pull of the count inside is
(observed - expected) / sqrt(expected + error^2). The mean of the pulls is the bias; ``asimov`` is the pull without
fluctuations, the spurious signal of that truth in standard deviations; the width is 1 if the errors are right.
``verdict`` is of ``asimov``, as in a search, and is "not assessed" where the true shape does not describe the spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drapes_hep.bumphunt.background import ALTERNATIVE_LEVEL, FLAGGED, verdict_of
from drapes_hep.bumphunt.bias import Bias, window_biases
from drapes_hep.config import Config
from drapes_hep.errors import FitError
from drapes_hep.plots import Band, Panel
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.studies.design import Row, select
from drapes_hep.studies.spectra import Spectrum, SpectrumStudy


def entries(spectrum: Spectrum) -> list[Row]:
    """Take each shape for the truth, and fit each."""
    return [{"truth": truth, "fitted": fitted} for truth in spectrum.shapes for fitted in spectrum.shapes]


def measure(spectrum: Spectrum, labels: Row) -> list[Row]:
    """Draw pseudo-experiments from one shape, fit one shape, and return a line for each window."""
    truth, fitted = (spectrum.shapes[str(labels[role])] for role in ("truth", "fitted"))
    sqrt_s = spectrum.mass.sqrt_s
    try:
        fit = fit_spectrum(spectrum.counts, spectrum.edges, None, truth, sqrt_s, fitted=spectrum.visible)
        if not fit.valid:
            raise FitError(f"the fit of {truth.name} to the spectrum does not converge")
        # drawn anew for each fitted shape, and the same for all
        rng = np.random.default_rng(stage_seed(spectrum.seed, "mass-fit", truth.name))
        size = spectrum.pseudo_experiments, len(fit.expected)
        spectra = rng.poisson(fit.expected, size).astype(np.float64)
        biases = window_biases(spectra, fit.expected, spectrum.edges, spectrum.windows, fitted, sqrt_s)
    except FitError as error:
        return [
            {"window_lo_gev": window.lo, "window_hi_gev": window.hi, "verdict": verdict_of(None), "reason": str(error)}
            for window in spectrum.windows
        ]
    return [_row(bias, fit.p_value) for bias in biases]


def _row(bias: Bias, p_value: float) -> Row:
    return {
        "window_lo_gev": bias.window.lo,
        "window_hi_gev": bias.window.hi,
        "truth_p_value": p_value,
        "pseudo_experiments": bias.experiments,
        "good_fits": bias.good_fits,
        "good_fraction": bias.good_fits / bias.experiments,
        "pull_mean": bias.mean,
        "pull_mean_error": bias.mean_error,
        "pull_width": bias.width,
        "pull_width_error": bias.width_error,
        "asimov": bias.asimov,
        "verdict": verdict_of(bias.asimov if p_value > ALTERNATIVE_LEVEL else None),
    }


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw the mean pull against the window, a panel for each true shape, a line for each fitted one."""
    shapes = list(dict.fromkeys(str(row["truth"]) for row in rows))
    return [
        Panel(
            r"Middle of the window, $m_{JJ}$ [GeV]",
            "Mean pull",
            [_band(select(rows, truth=truth, fitted=fitted), fitted) for fitted in shapes],
            title=_title(truth, select(rows, truth=truth)),
            zone=(-FLAGGED, FLAGGED),
            zone_meaning=f"Not flagged: within {FLAGGED:g}",
        )
        for truth in shapes
    ]


def _title(truth: str, rows: Sequence[Row]) -> str:
    p_value = next((row["truth_p_value"] for row in rows if row.get("truth_p_value") is not None), None)
    return f"true: {truth}, {'no fit' if p_value is None else f'p = {p_value:.2g}'}"


def _band(rows: Sequence[Row], fitted: str) -> Band:
    centre, mean, error = (
        np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        for values in (
            [0.5 * (float(row["window_lo_gev"] or 0) + float(row["window_hi_gev"] or 0)) for row in rows],
            [row.get("pull_mean") for row in rows],
            [row.get("pull_mean_error") for row in rows],
        )
    )
    return Band(f"fitted: {fitted}", centre, mean, mean - error, mean + error)


STUDY = SpectrumStudy(
    "Bias of the mass fit: each shape fitted to pseudo-experiments from each", entries, measure, panels
)
