"""The mass shape against the data: F-test, lower edge, spurious signal, and what the hunt makes of them."""

from __future__ import annotations

from types import SimpleNamespace

import h5py
import jsonschema
import numpy as np
import pytest
from scipy import stats

from drapes_hep import bumphunt as bh
from drapes_hep.bumphunt.background import (
    Alternative,
    BackgroundCheck,
    FTest,
    LowerEdge,
    SpuriousSignal,
    check_background,
    f_test_chain,
    scan_lower_edge,
    spurious_signals,
    with_spurious,
)
from drapes_hep.bumphunt.expectation import window_bins
from drapes_hep.errors import FitError
from drapes_hep.regions import Window, uncovered
from drapes_hep.report.mass_shape import mass_shape_lines, mass_shape_points, mass_shape_rows
from drapes_hep.results import background_record, results_record, results_schema, window_record
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import bin_model, fit_spectrum

WINDOWS = tuple(Window(lo, lo + 400, 2700, 6000) for lo in range(2900, 4301, 200))
EDGES = spectrum_edges((2700, 6000), 20, WINDOWS)
TRUTH = np.array([0.0, 10.0, -5.0, 0.2])
TRUTH[0] += np.log(100_000 / bin_model("dijet4", 13_000, EDGES, TRUTH)[0].sum())
SMOOTH = bin_model("dijet4", 13_000, EDGES, TRUTH)[0]
FIT = fit_spectrum(SMOOTH, EDGES)
QCD = [2.08, 0.68, -0.84, -1.51, -1.44, -0.89, -0.08, 0.70]
RD = [0.86, 0.31, -0.32, -0.61, -0.60, -0.38, -0.05, 0.28]
"""S_spur over the standard deviation of the count, truth dijet5 and search with dijet4, in each window."""


def counts_of(spectrum, hidden=None):
    """Make inclusive counts of a spectrum."""
    covered = np.zeros(len(spectrum), bool) if hidden is None else hidden
    return bh.SelectedCounts(EDGES, (1.0,), np.where(covered, np.nan, spectrum)[None], covered)


def hunt_all(counts, spurious=()):
    return [bh.hunt_window(counts, w, spurious=s) for w, s in zip(WINDOWS, spurious or [None] * 8, strict=True)]


@pytest.fixture(scope="module")
def qcd(data_dir):
    with h5py.File(data_dir / "simulated" / "qcd.h5") as file:
        return counts_of(np.histogram(file["mjj"][:], EDGES)[0])


@pytest.fixture(scope="module")
def qcd_spurious(qcd):
    return spurious_signals(qcd, WINDOWS)


def rd_masses(data_dir):
    """Return masses and labels of the R&D events that pass the selection of configs/lhco_rd.yaml."""
    with h5py.File(data_dir / "lhco" / "events_anomalydetection_first100k.features.h5") as file:
        names, values = file["df/block0_items"].asstr()[:], file["df/block0_values"][:]
    d = dict(zip(names, values.T, strict=True))
    p = np.stack([[d[f"{axis}{jet}"] for axis in ("px", "py", "pz")] for jet in ("j1", "j2")])
    mass = np.stack([d["mj1"], d["mj2"]])
    energy = np.sqrt((p**2).sum(axis=1) + mass**2)
    mjj = np.sqrt(energy.sum(axis=0) ** 2 - (p.sum(axis=0) ** 2).sum(axis=0))
    pt = np.hypot(p[:, 0], p[:, 1])
    passes = (pt.max(axis=0) > 1200) & (np.abs(np.arcsinh(p[:, 2] / pt)) < 2.5).all(axis=0)
    return mjj[passes], d["label"][passes] == 1


@pytest.fixture(scope="module")
def rd(data_dir):
    m, signal = rd_masses(data_dir)
    return counts_of(np.histogram(m[~signal], EDGES)[0]), np.histogram(m[signal], EDGES)[0] / 9059


def fractions(signals, shape):
    return [next(a.fraction for a in signal.alternatives if a.shape == shape) for signal in signals]


# ---- F-test and lower edge


def test_the_chain_compares_likelihood_ratios(qcd):
    tests, _ = f_test_chain(qcd.nested[0], EDGES)
    one, two = (fit_spectrum(qcd.nested[0], EDGES, None, shape) for shape in ("dijet4", "dijet5"))
    f = (one.chi2 - two.chi2) / (two.chi2 / two.ndof)
    assert (tests[1].shape, tests[1].more) == ("dijet4", "dijet5")
    assert tests[1].f == pytest.approx(f)
    assert tests[1].p_value == pytest.approx(stats.f.sf(f, 1, two.ndof))


def test_simulated_qcd_needs_five_parameters(qcd):
    tests, chosen = f_test_chain(qcd.nested[0], EDGES)
    assert chosen == "dijet5"
    assert tests[-1].p_value == pytest.approx(1.1e-3, abs=0.05e-3)


def test_the_chain_ends_where_a_parameter_is_not_needed(rd):
    tests, chosen = f_test_chain(rd[0].nested[0], EDGES)
    assert (chosen, len(tests)) == ("dijet4", 2)
    three = bin_model("dijet3", 13_000, EDGES, TRUTH[:3])[0]
    tests, chosen = f_test_chain(np.random.default_rng(2).poisson(three).astype(float), EDGES)
    assert (chosen, len(tests)) == ("dijet3", 1)


def test_bins_too_few_for_a_function_end_the_chain():
    tests, chosen = f_test_chain(SMOOTH, EDGES, fitted=np.arange(len(SMOOTH)) < 4)
    assert (tests[0].f, tests[0].p_value, chosen) == (None, None, None)


def test_the_scan_finds_where_the_shape_begins_to_hold():
    middle = 0.5 * (EDGES[1:] + EDGES[:-1])
    rising = SMOOTH * np.where(middle < 3000, 0.7, 1.0)
    check = check_background(counts_of(np.random.default_rng(1).poisson(rising)))
    assert check.describes_from == 3000
    assert check.lower_edges[0].low == 2700
    assert check.lower_edges[0].p_value < 1e-6
    assert max(edge.low for edge in check.lower_edges) <= 4350


def test_a_shape_that_holds_nowhere_has_no_lower_edge():
    ragged = SMOOTH * np.where(np.arange(len(SMOOTH)) % 2, 1.5, 0.5)
    assert check_background(counts_of(ragged)).describes_from is None


def test_the_scan_starts_at_visible_bins(qcd):
    hidden = (EDGES[:-1] > 2890) & (EDGES[1:] < 4710)
    edges = scan_lower_edge(qcd.nested[0], EDGES, fitted=~hidden)
    assert [edge.low for edge in edges] == [2700, 2800]


# ---- the spurious signal


@pytest.mark.parametrize(("sample", "reference", "ua2"), [("qcd", QCD, 0.36), ("rd", RD, 0.19)])
def test_spurious_signals_of_real_and_simulated_events(qcd, rd, sample, reference, ua2):
    signals = spurious_signals(qcd if sample == "qcd" else rd[0], WINDOWS)
    np.testing.assert_allclose(fractions(signals, "dijet5"), reference, atol=0.006)
    assert max(abs(f) for f in fractions(signals, "ua2") if f is not None) <= ua2 + 0.005


def test_the_largest_alternative_counts(qcd_spurious):
    for signal in qcd_spurious:
        largest = max(abs(a.events) for a in signal.alternatives)
        assert signal.size == abs(signal.events) == largest > 0


def test_the_spurious_signal_is_what_the_search_leaves_of_another_truth(qcd, qcd_spurious):
    truth = fit_spectrum(qcd.nested[0], EDGES, None, "dijet5").expected
    hunted = bh.hunt_window(counts_of(truth), WINDOWS[0]).working_points[0]
    inside = window_bins(EDGES, WINDOWS[0]).inside
    assert qcd_spurious[0].events == pytest.approx(truth[inside].sum() - hunted.expected, rel=1e-3)


def test_a_shape_that_the_search_contains_is_no_alternative(qcd):
    by_shape = {
        shape: [a.shape for a in spurious_signals(qcd, WINDOWS[:1], shape)[0].alternatives]
        for shape in ("dijet3", "dijet4", "dijet5", "ua2")
    }
    assert by_shape == {
        "dijet3": ["dijet4", "dijet5", "ua2"],
        "dijet4": ["dijet5", "ua2"],
        "dijet5": ["ua2"],
        "ua2": ["dijet3", "dijet4", "dijet5"],
    }


def test_without_an_alternative_that_fits_nothing_is_assessed():
    ragged = SMOOTH * np.where(np.arange(len(SMOOTH)) % 2, 1.5, 0.5)
    signal = spurious_signals(counts_of(ragged), WINDOWS[:1])[0]
    assert (signal.events, signal.fraction, signal.shape, signal.verdict) == (None, None, None, "not assessed")
    assert all(a.events is None and a.p_value <= 0.05 for a in signal.alternatives)


def test_a_resonance_does_not_take_the_alternatives_away(rd):
    counts, shape = rd
    bump = counts_of(np.rint(counts.nested[0] + 3600 * shape))
    signal = spurious_signals(bump, WINDOWS)[2]
    assert [a.window_included for a in signal.alternatives] == [False, False]
    assert signal.verdict == "small"


def test_a_blinded_spurious_signal_sees_no_window(qcd):
    hidden = (EDGES[:-1] > 2890) & (EDGES[1:] < 4710)
    other = np.where(hidden, 7.0, qcd.nested[0])
    one, two = (spurious_signals(counts_of(n, hidden), WINDOWS) for n in (qcd.nested[0], other))
    assert one == two
    assert one[0].fraction == pytest.approx(0.70, abs=0.01)


@pytest.mark.parametrize(
    ("fraction", "verdict"), [(0.1, "small"), (0.2, "small"), (0.21, "warned"), (0.5, "warned"), (0.51, "flagged")]
)
def test_verdicts(fraction, verdict):
    assert SpuriousSignal(WINDOWS[0], 1.0, fraction, "ua2", ()).verdict == verdict


# ---- in the hunt


def test_errors_include_the_spurious_signal_once():
    rng = np.random.default_rng(4)
    selected = rng.poisson(0.05 * SMOOTH)
    counts = bh.SelectedCounts(
        EDGES, (1.0, 0.1), np.stack([rng.poisson(SMOOTH), selected]).astype(float), counts_of(SMOOTH).hidden
    )
    window, inside = WINDOWS[2], window_bins(EDGES, WINDOWS[2]).inside
    difference = np.where(inside, 7.0, -1.0)
    signal = SpuriousSignal(window, 7.0 * inside.sum(), 0.4, "ua2", (), difference)
    plain, with_signal = (bh.hunt_window(counts, window, spurious=s).working_points for s in (None, signal))
    for one, two in zip(plain, with_signal, strict=True):
        passing = one.expected / plain[0].expected
        added = signal.events * passing
        assert two.expected == one.expected
        assert two.expected_error == pytest.approx(np.hypot(one.expected_error, added))
        assert two.spectrum_covariance[np.ix_(inside, inside)].sum() == pytest.approx(two.expected_error**2)
        assert two.p_local > one.p_local if one.z_local > 0 else two.p_local < one.p_local
    assert with_signal[1].expected < 0.1 * with_signal[0].expected


def test_what_is_not_assessed_adds_nothing(qcd):
    signal = SpuriousSignal(WINDOWS[0], None, None, None, (Alternative("ua2", 0.0, True, None, None),))
    plain, hunted = (bh.hunt_window(qcd, WINDOWS[0], spurious=s) for s in (None, signal))
    assert hunted.working_points == plain.working_points


def test_no_spurious_signal_leaves_the_error_alone():
    error = np.array([1.1, np.nan])
    assert with_spurious(error, [3.0, 4.0], [5.0, 6.0], 0.0).tobytes() == error.tobytes()


def test_simulated_qcd_is_no_discovery(qcd, qcd_spurious):
    """Without the spurious signal this window is 4.5 standard deviations high, and none of 2000 toys is as extreme."""
    plain, hunted = hunt_all(qcd), hunt_all(qcd, qcd_spurious)
    assert plain[0].working_points[0].z_local == pytest.approx(4.55, abs=0.02)
    assert hunted[0].spurious is qcd_spurious[0]
    assert qcd_spurious[0].verdict == "flagged"
    assert hunted[0].working_points[0].z_local < 3
    model = bh.background_model(WINDOWS, [qcd] * 8, np.eye(1), spurious=qcd_spurious)
    assert bh.global_significance(hunted, model, 500, np.random.default_rng(1)).p_global > 0.05


def test_the_global_p_value_of_one_window_is_the_local_one(qcd, qcd_spurious):
    """Toys with larger errors alone would give the p-value without the spurious signal, 3e-6."""
    model = bh.background_model(WINDOWS[:1], [qcd], np.eye(1), spurious=qcd_spurious[:1])
    hunted = bh.hunt_window(qcd, WINDOWS[0], spurious=qcd_spurious[0])
    overall = bh.global_significance([hunted], model, 4000, np.random.default_rng(2))
    p = hunted.working_points[0].p_local
    assert abs(overall.exceeding / 4000 - p) < 4 * np.sqrt(p / 4000)


def test_toys_of_a_search_without_spurious_signal_do_not_vary(qcd):
    model = bh.background_model(WINDOWS, [qcd] * 8, np.eye(1))
    assert model.spurious == (0.0,) * 8
    unassessed = [SpuriousSignal(w, None, None, None, ()) for w in WINDOWS]
    hunted = hunt_all(qcd)
    again = bh.background_model(WINDOWS, [qcd] * 8, np.eye(1), spurious=unassessed)
    one, two = (bh.global_significance(hunted, m, 50, np.random.default_rng(3)) for m in (model, again))
    np.testing.assert_array_equal(one.toy_log_p, two.toy_log_p)


def test_spurious_signals_of_other_windows_are_refused(qcd, qcd_spurious):
    with pytest.raises(FitError, match="not those of the windows"):
        bh.background_model(WINDOWS, [qcd] * 8, np.eye(1), spurious=qcd_spurious[:3])


def test_toys_follow_the_background_under_a_strong_resonance(rd):
    counts, shape = rd
    spectrum = np.rint(counts.nested[0] + 3600 * shape)
    assert not fit_spectrum(spectrum, EDGES).good
    model = bh.background_model(WINDOWS, [counts_of(spectrum)] * 8, np.eye(1))
    best = fit_spectrum(spectrum, EDGES, (3300, 3700))
    assert best.good
    np.testing.assert_array_equal(model.inclusive, best.expected)


def test_a_fit_that_is_valid_but_poor_makes_no_toys():
    ragged = np.rint(SMOOTH * np.where(np.arange(len(SMOOTH)) % 2, 1.1, 0.9))
    assert fit_spectrum(ragged, EDGES).valid
    with pytest.raises(FitError, match="p-value of the fit below"):
        bh.background_model(WINDOWS, [counts_of(ragged)] * 8, np.eye(1))


# ---- what a run says of it


def test_the_results_hold_the_tests_of_the_shape(qcd, qcd_spurious):
    hunts = hunt_all(qcd, qcd_spurious)
    quality = {"n_signal_truth": None, "template": {}, "metrics": None}
    records = [window_record(hunted, None, quality) for hunted in hunts]
    background = background_record(check_background(qcd), "dijet4")
    schema = results_schema()["properties"]
    for record, signal in zip(records, qcd_spurious, strict=True):
        jsonschema.validate(record["spurious_signal"], schema["windows"]["items"]["properties"]["spurious_signal"])
        assert record["spurious_signal"]["events"] == signal.events
    jsonschema.validate(background, schema["background"])
    assert (background["chosen"], background["describes_from"]) == ("dijet5", 2700)


def test_a_search_without_spurious_signal_says_null(qcd):
    quality = {"n_signal_truth": None, "template": {}, "metrics": None}
    assert window_record(hunt_all(qcd)[0], None, quality)["spurious_signal"] is None
    assert results_record({}, [], {}, {}, False, background=None)["background"] is None


@pytest.mark.parametrize(
    ("windows", "parts"),
    [
        ([(2900, 3300), (3100, 3500), (4300, 4700)], ((2700, 2900), (3500, 4300), (4700, 6000))),
        ([(2700, 6000)], ()),
        ([], ((2700, 6000),)),
        ([(4300, 4700), (2700, 4300)], ((4700, 6000),)),
    ],
)
def test_what_no_window_covers(windows, parts):
    assert uncovered((2700, 6000), [Window(lo, hi, 1000, 9000) for lo, hi in windows]) == parts


def run_with(signals, background, blind=False):
    """Return what the report reads of a run."""
    windows = [SimpleNamespace(title=f"window {i}", result={"spurious_signal": s}) for i, s in enumerate(signals)]
    results = {"background": background}
    return SimpleNamespace(windows=windows, results=results, blind=blind, edges=EDGES)


def signal_record(fraction, shape="dijet5"):
    return window_record(
        bh.WindowHunt(WINDOWS[0], FIT, (), SpuriousSignal(WINDOWS[0], fraction and -9.4, fraction, shape, ())),
        None,
        {"n_signal_truth": None, "template": {}, "metrics": None},
    )["spurious_signal"]


def background_of(chosen="dijet4", describes=2700.0, shape="dijet4"):
    tests = (FTest("dijet3", "dijet4", 30.0, 1e-7), FTest("dijet4", "dijet5", 11.0, 1.1e-3))
    return background_record(BackgroundCheck(tests, chosen, (LowerEdge(2700, 80.0, 161, 0.5),), describes), shape)


def test_nothing_is_pointed_out_of_a_shape_that_holds():
    assert list(mass_shape_points(run_with([signal_record(0.1), None], background_of()))) == []
    assert list(mass_shape_points(run_with([None], None))) == []


def test_spurious_signals_are_pointed_out_by_size():
    run = run_with([signal_record(0.6), signal_record(0.3, "ua2"), signal_record(0.1), signal_record(None, None)], None)
    flagged, warned, unassessed = mass_shape_points(run)
    assert flagged == (
        "The mass shape decides the result (spurious signal above 0.5 standard deviations): window 0 GeV, 0.60"
        " (dijet5)."
    )
    assert warned.endswith("standard deviations): window 1 GeV, 0.30 (ua2).")
    assert unassessed.startswith("Spurious signal not assessed")
    assert unassessed.endswith(": window 3 GeV.")


@pytest.mark.parametrize(
    ("background", "words"),
    [
        (background_of("dijet5"), "The F-test prefers dijet5 to the mass shape dijet4 (p = 0.0011)"),
        (background_of(None), "The F-tests of the mass shape have no result"),
        (background_of(describes=3400.0), "describes the spectrum (p above 0.05) only from 3400 GeV"),
        (background_of(describes=None), "describes the spectrum from no lower edge"),
    ],
)
def test_what_the_tests_say_against_the_shape_is_a_point_to_check(background, words):
    (point,) = mass_shape_points(run_with([], background))
    assert words in point


@pytest.mark.parametrize("shape", ["dijet5", "ua2", "shape.py:Mine"])
def test_a_shape_that_is_large_enough_or_in_no_chain_is_not_pointed_out(shape):
    assert list(mass_shape_points(run_with([], background_of("dijet5", shape=shape)))) == []


def test_in_a_blinded_run_the_shape_concerns_the_blinded_expectation():
    (point,) = mass_shape_points(run_with([signal_record(0.6)], None, blind=True))
    assert point.startswith("The mass shape decides the blinded expectation (")


def test_what_a_blinded_window_will_have_is_in_the_table():
    run = run_with([signal_record(0.6), signal_record(0.1)], None, blind=True)
    run.windows[0].result["spurious_signal_unblinded"] = 36.2
    first, second = mass_shape_rows(run)
    assert first["unblinded"] == "36"
    assert "null" in second["unblinded"]


def test_the_table_of_the_shape_is_in_the_report():
    rows = mass_shape_rows(run_with([signal_record(0.6), None, signal_record(None, None)], None))
    assert [(row["window"], row["events"], row["fraction"]) for row in rows[:1]] == [("window 0", "−9", "0.60")]
    assert "no alternative fits" in rows[1]["events"]
    tests, edges = mass_shape_lines(run_with([], background_of()))
    assert "dijet4 → dijet5: F = 11.00" in tests
    assert "2700 GeV: 0.5" in edges
