"""What a search can discover: the error after unblinding, and the signal that half of all experiments see."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from scipy import stats

from analysis import blind_sensitivity as study
from drapes_hep import bumphunt as bh
from drapes_hep.bumphunt.expectation import (
    InclusiveSpectra,
    inclusive_expectations,
    mass_coordinate,
    selected_expectations,
    window_bins,
)
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import write_json
from drapes_hep.regions import Window, blinded
from drapes_hep.report.sensitivity import sensitivity_rows
from drapes_hep.report.tables import _write_sensitivities
from drapes_hep.results import results_schema, window_record
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import fit_poisson

WINDOWS = tuple(Window(lo, lo + 400, 2700, 6000) for lo in range(2900, 4301, 200))
EDGES = spectrum_edges((2700, 6000), 20, WINDOWS)
CENTRE = 0.5 * (EDGES[1:] + EDGES[:-1])
HIDDEN = blinded(CENTRE, WINDOWS)
CUTS = (1.0, 0.1, 0.01, 0.001)
SHARE = 0.4
TRUTH = np.array([0.0, 10.0, -5.0, 0.2])
TRUTH[0] += np.log(100_000 / bin_model("dijet4", 13_000, EDGES, TRUTH)[0].sum())
MEAN, GRADIENT = bin_model("dijet4", 13_000, EDGES, TRUTH)
DESIGN = GRADIENT @ np.linalg.inv(np.linalg.qr(np.sqrt(MEAN)[:, None] * GRADIENT)[1])


def counts_of(nested, *, blind=True):
    """Make counts of what passes each cut, one row per cut."""
    disjoint = np.array(nested, dtype=float)
    disjoint[:-1] -= disjoint[1:]
    hidden = HIDDEN if blind else np.zeros_like(HIDDEN)
    return bh.SelectedCounts(EDGES, CUTS[: len(disjoint)], np.where(hidden, np.nan, disjoint), hidden, SHARE)


def exact(window):
    """Return the mean of what passes cuts with efficiencies that do not depend on mass."""
    share = np.where(window.in_signal_region(CENTRE), 1.0, SHARE)
    return np.stack([MEAN, *(share * cut * MEAN for cut in CUTS[1:])])


def drawn(window, seed=3):
    """Draw what passes cuts whose efficiencies change with mass."""
    rng, share = np.random.default_rng(seed), np.where(window.in_signal_region(CENTRE), 1.0, SHARE)
    nested = [rng.poisson(MEAN)]
    for cut in CUTS[1:]:
        passing = (0.1 if cut < 0.1 else cut * share) * np.exp(0.2 * mass_coordinate(EDGES))
        nested.append(rng.binomial(nested[-1], passing))
    return np.stack(nested).astype(float)


def unblinded_errors(nested, window):
    """Fit a spectrum by Newton's method outside one window, at every cut."""
    bins = window_bins(EDGES, window)
    fit = fit_poisson(nested[0], DESIGN, np.log(MEAN), fitted=bins.outside)
    spectra = InclusiveSpectra(fit.expected, DESIGN, fit.covariance)
    cuts = [selected_expectations(row[None], spectra, bins, min_events=10, share=SHARE) for row in nested[1:]]
    return [inclusive_expectations(spectra, bins)[1][0], *(part.error[0] for part in cuts)]


@pytest.fixture(scope="module")
def smooth():
    """Hunt blind in the exact spectrum, in each window."""
    counts = [counts_of(exact(window)) for window in WINDOWS]
    return counts, [bh.hunt_window(count, window, blind=True) for count, window in zip(counts, WINDOWS, strict=True)]


# ---- the error after unblinding


def test_the_error_is_that_of_the_unblinded_fit_of_an_exact_spectrum(smooth):
    for window, count, hunt in zip(WINDOWS, *smooth, strict=True):
        errors = [s.expected_error[0] for s in bh.window_sensitivity(count, hunt)]
        # as far as MIGRAD finds the blinded expectation: within some 1e-6 of it
        np.testing.assert_allclose(errors, unblinded_errors(exact(window), window), rtol=3e-6)


def test_the_error_is_far_from_the_blinded_one(smooth):
    for count, hunt in zip(*smooth, strict=True):
        for point, sensitivity in zip(hunt.working_points, bh.window_sensitivity(count, hunt), strict=True):
            assert sensitivity.expected_error[0] < 0.6 * point.expected_error


def test_the_error_is_that_of_a_hunt_in_the_expected_spectrum():
    window = WINDOWS[2]
    count = counts_of(drawn(window))
    hunt = bh.hunt_window(count, window, blind=True)
    share = np.where(window.in_signal_region(CENTRE), 1.0, SHARE)
    means = [hunt.fit.expected, *(share * point.spectrum for point in hunt.working_points[1:])]
    filled = counts_of(np.where(HIDDEN, means, count.nested), blind=False)
    again = bh.hunt_window(filled, window, blind=True)
    for point, before, sensitivity in zip(
        again.working_points, hunt.working_points, bh.window_sensitivity(count, hunt), strict=True
    ):
        # the expectation stays what it was: MIGRAD stops within a thousandth of its error
        assert point.expected == pytest.approx(before.expected, abs=2e-3 * point.expected_error)
        # and HESSE differentiates numerically
        assert sensitivity.expected_error[0] == pytest.approx(point.expected_error, rel=1e-4)


def test_an_open_search_has_the_errors_of_its_own_fit():
    window = WINDOWS[4]
    count = counts_of(drawn(window), blind=False)
    hunt = bh.hunt_window(count, window)
    for point, sensitivity in zip(
        hunt.working_points, bh.window_sensitivity(count, hunt, spurious=1000.0), strict=True
    ):
        assert sensitivity.expected_error[0] == point.expected_error


def test_the_uncertainty_of_the_error_comes_from_the_blinded_expectation(smooth):
    counts, hunts = smooth
    point, sensitivity = hunts[3].working_points[2], bh.window_sensitivity(counts[3], hunts[3])[2]
    value, error = sensitivity.expected_error
    relative = point.expected_error / point.expected
    # the root of the expectation: half of its relative error
    assert error / value == pytest.approx(np.sinh(relative / 2), rel=1e-9)


# ---- the spurious signal after unblinding


def test_the_spurious_signal_is_added_times_the_efficiency_of_the_cut(smooth):
    counts, hunts = smooth
    without, with_it = (bh.window_sensitivity(counts[0], hunts[0], spurious=s) for s in (None, 150.0))
    for point, a, b in zip(hunts[0].working_points, without, with_it, strict=True):
        efficiency = point.expected / hunts[0].working_points[0].expected
        assert b.expected_error[0] == pytest.approx(np.hypot(a.expected_error[0], 150.0 * efficiency), rel=1e-9)


def test_the_size_of_the_spurious_signal_is_uncertain(smooth):
    counts, hunts = smooth
    # nothing else is
    points = tuple(replace(point, expected_error=0.0) for point in hunts[0].working_points)
    hunt = replace(hunts[0], working_points=points)
    error = bh.window_sensitivity(counts[0], hunt)[0].expected_error[0]
    low, high = np.quantile(
        np.abs(stats.norm.ppf(np.arange(0.5, 20_000) / 20_000)), [stats.norm.cdf(x) for x in (-1, 1)]
    )
    expected = 0.5 * (np.hypot(error, 150 * high) - np.hypot(error, 150 * low))
    assert bh.window_sensitivity(counts[0], hunt, spurious=150.0)[0].expected_error[1] == pytest.approx(
        expected, rel=1e-3
    )


def test_the_spurious_signal_is_the_root_mean_square_over_the_hidden_counts(smooth):
    counts, hunts = smooth
    fit, rng, n = hunts[0].fit, np.random.default_rng(5), 600
    visible = DESIGN[~HIDDEN]
    covariance = np.linalg.inv(visible.T @ (MEAN[~HIDDEN, None] * visible))
    shifts = rng.multivariate_normal(np.zeros(4), covariance, n) @ DESIGN.T
    spectra = np.where(HIDDEN, rng.poisson(MEAN * np.exp(shifts)), MEAN)
    sizes = []
    for name in ("dijet5", "ua2"):
        other = fit_spectrum(MEAN, EDGES, None, name)
        design = bin_model(name, 13_000, EDGES, other.parameters)[1]
        design = design @ np.linalg.inv(np.linalg.qr(np.sqrt(MEAN)[:, None] * design)[1])
        truths = fit_poisson(spectra, design, np.log(other.expected)).expected
        size = []
        for window in WINDOWS:
            bins = window_bins(EDGES, window)
            again = fit_poisson(truths, DESIGN, np.log(MEAN), fitted=bins.outside).expected
            size.append(np.sqrt(((truths - again)[:, bins.inside].sum(axis=1) ** 2).mean()))
        sizes.append(size)
    expected = bh.expected_spurious_signals(counts[0], fit, WINDOWS)
    # the spread of so many squares: five standard deviations
    np.testing.assert_allclose(expected, np.max(sizes, axis=0), rtol=5 / np.sqrt(2 * n))


def test_no_spurious_signal_is_expected_where_no_alternative_describes_the_data(smooth, monkeypatch):
    counts, hunts = smooth
    monkeypatch.setattr("drapes_hep.bumphunt.background.ALTERNATIVE_LEVEL", 2.0)
    assert bh.expected_spurious_signals(counts[0], hunts[0].fit, WINDOWS[:2]) == (None, None)


# ---- the signal needed


EXPECTATIONS = [(13_000.0, 100.0), (150.0, 14.0), (20.0, 5.0), (3.0, 0.9), (0.1, 0.3), (0.002, 0.001), (7.0, 0.0)]


@pytest.mark.parametrize(("expected", "error"), EXPECTATIONS)
@pytest.mark.parametrize("z", [3.0, 5.0])
def test_the_critical_count_is_the_first_with_its_significance(z, expected, error):
    (count,) = bh.critical_counts(z, [expected], [error])
    below, at = bh.local_significance([count - 1, count], expected, error).z
    assert at >= z
    assert not below >= z


@pytest.mark.parametrize(("expected", "error"), EXPECTATIONS)
def test_half_of_all_experiments_reach_the_significance_with_the_signal_needed(expected, error):
    signal = float(bh.signal_needed(3.0, expected, error))
    count = float(bh.critical_counts(3.0, expected, error))
    assert stats.poisson.sf(count - 1, expected + signal) == pytest.approx(0.5, rel=1e-9)


def test_the_median_significance_with_the_signal_needed_is_three():
    signal = float(bh.signal_needed(3.0, 13_000.0, 100.0))
    count = np.random.default_rng(1).poisson(13_000 + signal, 20_000)
    z = bh.local_significance(count, 13_000.0, 100.0).z
    # one count more is 0.008 sigma more
    assert np.median(z) == pytest.approx(3.0, abs=0.02)


def test_a_window_needs_the_signal_of_its_error(smooth):
    for count, hunt in zip(*smooth, strict=True):
        for point, s in zip(hunt.working_points, bh.window_sensitivity(count, hunt), strict=True):
            for z, needed in ((3.0, s.signal_z3), (5.0, s.signal_z5)):
                assert needed[0] == bh.signal_needed(z, point.expected, s.expected_error[0])


def test_a_cut_is_compared_with_none(smooth):
    counts, hunts = smooth
    first, *cuts = bh.window_sensitivity(counts[1], hunts[1])
    assert first.break_even_efficiency is None
    for cut in cuts:
        assert cut.break_even_efficiency == cut.signal_z3[0] / first.signal_z3[0]


def test_an_expectation_that_is_hardly_known_has_a_finite_error(smooth):
    counts, hunts = smooth
    points = [replace(point, expected_error=50 * point.expected) for point in hunts[0].working_points]
    for sensitivity in bh.window_sensitivity(counts[0], replace(hunts[0], working_points=tuple(points))):
        assert np.isfinite(sensitivity.signal_z3[1])


# ---- where there is none


def test_too_few_events_are_said(smooth):
    nested = exact(WINDOWS[3])
    nested[3] *= 9.0 / nested[3][~HIDDEN].sum()
    count = counts_of(nested)
    hunt = bh.hunt_window(count, WINDOWS[3], blind=True)
    *rest, last = bh.window_sensitivity(count, hunt)
    assert last == bh.Sensitivity(reason="fewer than 10 visible events pass")
    # the looser cuts are what they are without it
    counts, hunts = smooth
    assert rest[2].expected_error[0] == pytest.approx(
        bh.window_sensitivity(counts[3], hunts[3])[2].expected_error[0], rel=1e-6
    )


def test_a_poor_cut_is_said():
    nested = exact(WINDOWS[3])
    nested[2] = nested[2] * np.where(np.arange(len(CENTRE)) % 2, 3.0, 0.1)
    count = counts_of(nested)
    reasons = [s.reason for s in bh.window_sensitivity(count, bh.hunt_window(count, WINDOWS[3], blind=True))]
    assert reasons == [None, None, "the fit of the events that pass is poor", None]


def test_a_poor_spectrum_is_said():
    count = counts_of(exact(WINDOWS[3])[:2] * np.where(np.arange(len(CENTRE)) % 2, 1.2, 0.8))
    reasons = {s.reason for s in bh.window_sensitivity(count, bh.hunt_window(count, WINDOWS[3], blind=True))}
    assert reasons == {"the fit of the inclusive spectrum is poor"}


def test_next_to_nothing_expected_is_said(smooth):
    counts, hunts = smooth
    points = list(hunts[0].working_points)
    points[3] = replace(points[3], expected=1e-4, expected_error=1e-4)
    last = bh.window_sensitivity(counts[0], replace(hunts[0], working_points=tuple(points)))[3]
    assert last.reason == "fewer than 0.001 events are expected"


# ---- blinding


def test_no_hidden_event_changes_it():
    rng = np.random.default_rng(8)
    mjj, tail = 2700 + rng.exponential(480, 60_000), rng.random(60_000)
    out = []
    for changed in (False, True):
        inside = blinded(mjj, WINDOWS)
        if changed:
            mjj, tail = np.where(inside, 3500.0, mjj), np.where(inside, 1e-6, tail)
        count = bh.count_selected(mjj, tail, EDGES, CUTS, WINDOWS, share=SHARE)
        hunts = [bh.hunt_window(count, window, blind=True) for window in WINDOWS[:3]]
        spurious = bh.expected_spurious_signals(count, hunts[0].fit, WINDOWS[:3])
        out.append([bh.window_sensitivity(count, h, spurious=s) for h, s in zip(hunts, spurious, strict=True)])
        assert out[-1][0][1].signal_z3 is not None
    assert out[0] == out[1]


# ---- results and report


@pytest.fixture(scope="module")
def record(smooth):
    counts, hunts = smooth
    sensitivities = list(bh.window_sensitivity(counts[0], hunts[0]))
    sensitivities[3] = bh.Sensitivity(reason="fewer than 10 visible events pass")
    quality = {"n_signal_truth": None, "template": {}, "metrics": None}
    return window_record(hunts[0], None, quality, sensitivities, 12.5)


def test_the_results_hold_the_sensitivity(record):
    properties = results_schema()["properties"]["windows"]["items"]["properties"]
    for point in record["working_points"]:
        jsonschema.validate(point, properties["working_points"]["items"])
    jsonschema.validate(record["spurious_signal_unblinded"], properties["spurious_signal_unblinded"])
    assert record["working_points"][0]["sensitivity"]["signal_z3"]["value"] > 100
    assert record["working_points"][3]["sensitivity"]["reason"].startswith("fewer than 10 visible events")


def run_of(record, blind=True):
    files = SimpleNamespace(title="2900–3300", sr=(2900, 3300), points=record["working_points"])
    return SimpleNamespace(windows=[files], blind=blind)


def test_the_report_of_a_blinded_run_has_a_row_per_cut(record):
    rows = sensitivity_rows(run_of(record))
    assert [row["cut"] for row in rows] == ["1 (inclusive)", "0.1", "0.01", "0.001"]
    z3 = record["working_points"][1]["sensitivity"]["signal_z3"]
    assert rows[1]["z3"] == f"{z3['value']:.0f} ± {z3['error']:.0f}"
    assert "fewer than 10 visible events pass" in rows[3]["error"]


def test_the_report_of_an_open_or_older_run_has_none(record):
    assert sensitivity_rows(run_of(record, blind=False)) == []
    assert sensitivity_rows(run_of({"working_points": [{"background_efficiency": 1}]})) == []


def test_the_table_of_the_report_has_a_line_per_cut(record, tmp_path):
    path = tmp_path / "sensitivity.csv"
    _write_sensitivities(run_of(record), path)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [float(row["background_efficiency"]) for row in rows] == list(CUTS)
    assert float(rows[0]["signal_z5_error"]) == record["working_points"][0]["sensitivity"]["signal_z5"]["error"]
    assert (rows[3]["signal_z3"], rows[3]["break_even_efficiency"]) == ("", "")


# ---- the study


SEARCH = study.Search(WINDOWS[2:3], WINDOWS, "dijet4", 13_000.0, 10, spurious=False)


@pytest.fixture(scope="module")
def toys():
    counts = [counts_of(drawn(WINDOWS[2])[:3], blind=False)]
    return study.toy_rows(SEARCH, counts, 25, np.random.default_rng(4))


def test_the_blinded_prediction_holds_in_pseudo_experiments(toys):
    for row in toys:
        assert row["quoted"] > 20
        # rows: no cut, 0.1, 0.01
        assert row["error_ratio"] == pytest.approx(1.0, abs=0.1)
        # the median of 25 values of width 1 and more
        assert row["median_z"] == pytest.approx(3.0, abs=4 * 1.25 * 1.3 / np.sqrt(25))


def test_pseudo_experiments_have_the_background_of_the_run():
    count = counts_of(drawn(WINDOWS[2])[:3], blind=False)
    mean, efficiency = study.background(SEARCH, [count])
    rng = np.random.default_rng(6)
    total = sum(study.draw(mean, efficiency, [count], rng)[0].nested.sum(axis=1) for _ in range(50)) / 50
    np.testing.assert_allclose(total, count.nested.sum(axis=1), rtol=0.05)


def test_a_run_is_compared_window_by_window():
    count = counts_of(drawn(WINDOWS[2]), blind=False)
    rows = study.compare(SEARCH, [count])
    hunt = bh.hunt_window(count, WINDOWS[2])
    assert [row["expected_error"] for row in rows] == [point.expected_error for point in hunt.working_points]
    assert rows[0]["predicted_error"] == pytest.approx(rows[0]["expected_error"], rel=0.05)


def test_a_blinded_run_has_nothing_to_compare(tmp_path):
    write_json(tmp_path / "hunt.json", {"counts": [1.0, None], "edges": [2700, 3000, 3300], "windows": []})
    write_json(tmp_path / "manifest.json", {"config": {"data": {"path": "a.root"}, "features": ["m_j1"]}})
    with pytest.raises(RunDirectoryError, match="unblind it first"):
        study.read_search(tmp_path)
