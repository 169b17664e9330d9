"""Are the count and the resonance fit calibrated without a signal? Background-only experiments with random scores.

    python analysis/null_resonance.py [--experiments 1500] [--few 600] [--json FILE]

Experiments have 64,000 events of a four-parameter dijet spectrum in 2700-6000 GeV, like the LHC Olympics R&D data after
the selection. Scores are random: a cut passes its fraction of the events of any mass, of which those in the window and
a share of 0.4 of the others are counted. Nothing is trained, so this tests the statistics alone.

*Count*: the pull (observed - expected) / sqrt(expected + error^2) of each of eight windows, and the frequency of
z_local > 3. *Resonance*: z of the fit of 3500 GeV, with the cut of window 3300-3700, and the spread of S / error.

*Few events*: a cut at which 1, 3 or 10 background events pass within two resolutions of 4500 GeV. Most experiments
have a signal of one to three standard deviations, and all are weighted to background alone, so that fewer are needed
for the frequencies of z > 2 and z > 3. These are of the asymptotic z, and of that from pseudo-experiments where the
asymptotic one is above 1.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from drapes_hep.bumphunt import (
    Background,
    PassFailCounts,
    fit_pass_fail,
    gaussian,
    local_significance,
    signal_templates,
)
from drapes_hep.bumphunt.expectation import (
    InclusiveSpectra,
    inclusive_expectations,
    mass_coordinate,
    quotable,
    selected_expectations,
    window_bins,
)
from drapes_hep.bumphunt.few_events import ALL, FIRST, LEAST_Z, tail_probability
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import bin_model
from drapes_hep.spectrum.poisson import fit_poisson

FloatArray = npt.NDArray[np.float64]
Row = dict[str, Any]
SEED = 1
RANGE, SHARE, CUTS, EVENTS = (2700.0, 6000.0), 0.4, (1.0, 0.1, 0.01, 0.001), 64_000
WINDOWS = tuple(Window(float(lo), lo + 400.0, *RANGE) for lo in range(2900, 4301, 200))
EDGES = spectrum_edges(RANGE, 20.0, WINDOWS)
CENTRE = 0.5 * (EDGES[1:] + EDGES[:-1])
SHAPE = np.array([0.0, 10.0, -5.0, 0.2])
SHAPE[0] += np.log(EVENTS / bin_model("dijet4", 13_000.0, EDGES, SHAPE)[0].sum())
MEAN, GRADIENT = bin_model("dijet4", 13_000.0, EDGES, SHAPE)
BACKGROUND = Background(MEAN, GRADIENT, mass_coordinate(EDGES))
SIGNAL = gaussian(0.033)


def selected(inclusive: FloatArray, window: Window, cuts: tuple[float, ...], rng: np.random.Generator) -> FloatArray:
    """Return the counted events that pass each cut, shape (cuts, n, bins): each cut passes a part of the last."""
    used = np.where(window.in_signal_region(CENTRE), 1.0, SHARE)
    passed = [rng.binomial(inclusive.astype(np.int64), used * cuts[0])]
    for before, cut in pairwise(cuts):
        passed.append(rng.binomial(passed[-1], cut / before))
    return np.stack(passed).astype(np.float64)


def count_rows(experiments: int) -> list[Row]:
    """Measure pulls and false alarms of the count, in all windows."""
    rng = np.random.default_rng([SEED, 1])
    inclusive = rng.poisson(MEAN, (experiments, len(MEAN))).astype(np.float64)
    pulls: list[list[FloatArray]] = [[] for _ in CUTS]
    alarms: list[list[FloatArray]] = [[] for _ in CUTS]
    for window in WINDOWS:
        bins = window_bins(EDGES, window)
        _, r = np.linalg.qr(np.sqrt(MEAN[bins.outside])[:, None] * GRADIENT[bins.outside])
        basis = GRADIENT @ np.linalg.inv(r)
        fit = fit_poisson(inclusive, basis, np.log(MEAN), fitted=bins.outside)
        spectra = InclusiveSpectra(fit.expected, basis, fit.covariance)
        passed = selected(inclusive, window, CUTS[1:], rng)
        for i, cut in enumerate(CUTS):
            counts = inclusive if cut == 1 else passed[i - 1]
            expected, error = inclusive_expectations(spectra, bins)
            if cut < 1:
                part = selected_expectations(counts, spectra, bins, min_events=10, share=SHARE)
                expected, error = part.expected, part.error
            n, good = counts[:, bins.inside].sum(axis=1), quotable(expected, error)
            n, expected, error = n[good], expected[good], error[good]
            pulls[i].append((n - expected) / np.sqrt(expected + error**2))
            alarms[i].append(local_significance(n, expected, error, good[good]).z > 3)
    return [
        {
            "statistic": "count",
            "cut": cut,
            "experiments": sum(map(len, pulls[i])),
            **_moments(np.concatenate(pulls[i])),
            "above 3": float(np.concatenate(alarms[i]).mean()),
        }
        for i, cut in enumerate(CUTS)
    ]


def resonance_rows(experiments: int) -> list[Row]:
    """Measure z of the resonance fit."""
    rng, window, mass = np.random.default_rng([SEED, 2]), WINDOWS[2], 3500.0
    inclusive = rng.poisson(MEAN, (experiments, len(MEAN))).astype(np.float64)
    passed = selected(inclusive, window, CUTS[1:], rng)
    shape = np.repeat(signal_templates(SIGNAL, [mass], EDGES), experiments, axis=0)
    share = np.broadcast_to(np.where(window.in_signal_region(CENTRE), 1.0, SHARE), shape.shape)
    rows = []
    for i, cut in enumerate(CUTS):
        counts = PassFailCounts(inclusive, None, np.ones_like(shape), shape)
        if cut < 1:
            counts = PassFailCounts(passed[i - 1], inclusive - passed[i - 1], share, shape)
        fits = fit_pass_fail(BACKGROUND, counts)
        rows.append(
            {
                "statistic": "resonance",
                "cut": cut,
                "experiments": int(fits.converged.sum()),
                **_moments(fits.z[fits.converged]),
                "above 3": float((fits.z[fits.converged] > 3).mean()),
                "spread of S / error": float(np.std((fits.signal / fits.error)[fits.converged])),
            }
        )
    return rows


def few_rows(experiments: int, toys: tuple[int, int] = (FIRST, ALL)) -> list[Row]:
    """Measure the frequencies of z > 2 and z > 3 where few events pass."""
    window, mass = WINDOWS[-1], 4500.0
    shape, share = signal_templates(SIGNAL, [mass], EDGES), np.where(window.in_signal_region(CENTRE), 1.0, SHARE)
    near = MEAN[np.abs(CENTRE - mass) <= 2.0 * float(SIGNAL.resolution(np.array(mass)))].sum()
    rows = []
    for b in (1.0, 3.0, 10.0):
        rng, efficiency = np.random.default_rng([SEED, 3, int(b)]), b / near
        means = share * MEAN * efficiency
        # no signal, or some one, two or three standard deviations
        strengths = np.arange(4.0) * (np.sqrt(b) + 0.7)
        all_means = means + strengths[:, None] * share * shape[0]
        passed = rng.poisson(all_means[rng.integers(4, size=experiments)]).astype(np.float64)
        log_ratio = passed @ np.log(all_means / means).T - (all_means - means).sum(axis=1)
        weight = np.exp(-special.logsumexp(log_ratio, axis=1)) * len(strengths)
        failed = rng.poisson(MEAN - means, passed.shape).astype(np.float64)
        quoted_events = passed[:, ~window.in_signal_region(CENTRE)].sum(axis=1) >= 10
        counts = PassFailCounts(
            passed, failed, np.broadcast_to(share, passed.shape), np.repeat(shape, experiments, axis=0)
        )[quoted_events]
        weight = weight[quoted_events]
        fits = fit_pass_fail(BACKGROUND, counts)
        z = fits.z.copy()
        for i in np.flatnonzero(fits.converged & (z >= LEAST_Z)):
            z[i] = tail_probability(BACKGROUND, counts[i : i + 1], fits.rows(slice(i, i + 1)), rng, toys).z
        for name, values in (("asymptotic", fits.z), ("pseudo-experiments", z)):
            row: Row = {"statistic": name, "background": b, "experiments": len(z)}
            for level in (2.0, 3.0):
                term = weight * (values > level)
                row |= {f"above {level:g}": float(term.mean()), f"error {level:g}": float(term.std() / len(z) ** 0.5)}
            rows.append(row)
    return rows


def _moments(values: FloatArray) -> Row:
    n = len(values)
    return {
        "mean": float(values.mean()),
        "mean error": float(values.std() / n**0.5),
        "width": float(values.std(ddof=1)),
        "width error": float(values.std() / (2 * n) ** 0.5),
    }


def table(rows: list[Row]) -> str:
    """Write the rows as a table."""
    lines = [f"nominal: above 2 {stats.norm.sf(2):.5f}, above 3 {stats.norm.sf(3):.5f}"]
    for row in rows:
        words = [f"{name} {value:.5g}" if isinstance(value, float) else str(value) for name, value in row.items()]
        lines.append(", ".join(words))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experiments", type=int, default=1500)
    parser.add_argument("--few", type=int, default=600, help="experiments of each number of few events")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    rows = [
        *count_rows(arguments.experiments), *resonance_rows(arguments.experiments), *few_rows(arguments.few)
    ]  # fmt: skip
    print(table(rows))  # noqa: T201
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
