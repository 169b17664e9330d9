"""Scans of published spectra, beside pyBumpHunter: analysis/published_spectra.py on real and small spectra."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import uproot
from references import cms_spectrum
from scipy import stats

from analysis import published_spectra
from analysis.published_spectra import Settings, bump_hunter, count_intervals, intervals, main, read_spectrum, scan
from drapes_hep.bumphunt import SelectedCounts, hunt_window, spurious_signals
from drapes_hep.errors import InputError
from drapes_hep.spectrum.fit import bin_model
from drapes_hep.spectrum.shapes import SHAPES

EDGES = np.arange(2000.0, 5001, 200)
MEAN = bin_model("dijet4", 13_000, EDGES, [5.0, 10.0, -5.0, 0.2])[0]
COUNTS = np.rint(MEAN * 2e5 / MEAN.sum())


def selected(counts, edges=EDGES):
    return SelectedCounts(edges, (1.0,), counts[None], np.zeros(len(counts), bool))


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spectrum_file(tmp_path):
    def write(counts, name="Mjj", edges=EDGES):
        with uproot.recreate(tmp_path / "spectrum.root") as file:
            file[name] = (np.asarray(counts, dtype=np.float64), edges)
        return tmp_path / "spectrum.root"

    return write


def test_bins_below_and_empty_bins_above_are_left_out(spectrum_file):
    path = spectrum_file([*COUNTS[:-2], 0, 0])
    counts, edges = read_spectrum(path, "Mjj", 2400)
    assert edges.tolist() == EDGES[2:-2].tolist()
    assert counts.tolist() == COUNTS[2:-2].tolist()


@pytest.mark.parametrize(
    ("counts", "name", "low", "said"),
    [
        (COUNTS, "mjj", 2000, "has no histogram 'Mjj'"),
        (COUNTS / 3, "Mjj", 2000, "does not hold counts of events"),
        (COUNTS, "Mjj", 4000, r"has 5 bins with events from 4000 GeV on; lower --low"),
    ],
)
def test_what_is_no_spectrum_of_counts_is_one_line(spectrum_file, counts, name, low, said):
    with pytest.raises(InputError, match=said):
        read_spectrum(spectrum_file(counts, name), "Mjj", low)


def test_a_mistake_ends_with_status_2(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.root").write_text("no ROOT file")
    monkeypatch.setattr("sys.argv", ["published_spectra.py", str(tmp_path / "text.root"), "--low", "1530"])
    monkeypatch.setattr(published_spectra, "has_bump_hunter", lambda: False)
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "pyBumpHunter is not installed, its columns are left out; pip install pyBumpHunter adds them"
    assert "text.root: is not a ROOT file with a histogram 'Mjj'" in second


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"none\.root: does not exist"):
        read_spectrum(tmp_path / "none.root", "Mjj", 2000)


def test_a_shape_that_cannot_be_fitted_has_a_reason(spectrum_file, tmp_path, monkeypatch):
    few = [*COUNTS[:4], *[0] * 8, *COUNTS[-3:]]
    monkeypatch.setattr(published_spectra, "SHAPES", {"dijet5": SHAPES["dijet5"]})
    paths = published_spectra.published_spectra([spectrum_file(few)], "Mjj", 2000, Settings(), tmp_path)
    with paths[0].open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["spectrum"], row["shape"]) == ("spectrum", "dijet5")
    assert "cannot constrain the 5 parameters" in row["reason"]


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_intervals_leave_a_bin_on_either_side():
    found = [(window.lo, window.hi) for window in intervals(EDGES[:6], (1, 2))]
    assert found == [(2200, 2400), (2400, 2600), (2600, 2800), (2200, 2600), (2400, 2800)]


def test_an_interval_is_hunted_like_a_window():
    counts = np.random.default_rng(2).poisson(COUNTS).astype(float)
    windows = intervals(EDGES, (3, 3))
    spurious = spurious_signals(selected(counts), windows)
    for row, window, each in zip(
        count_intervals(selected(counts), "dijet4", Settings(widths=(3, 3))), windows, spurious, strict=True
    ):
        plain, wide = (hunt_window(selected(counts), window, spurious=s).working_points[0] for s in (None, each))
        assert (row["low_gev"], row["high_gev"], row["bins"]) == (window.lo, window.hi, 3)
        assert (row["observed"], row["z_local"]) == (plain.observed, plain.z_local)
        assert row["z_local_with_spurious"] == pytest.approx(wide.z_local, rel=1e-12)
        assert row["spurious_verdict"] == each.verdict
        assert row["spurious_events"] == each.events


def test_a_bump_is_in_the_best_interval_and_in_the_resonance():
    counts = COUNTS.copy()
    counts[6:8] += np.rint(4 * np.sqrt(COUNTS[6:8]))
    summary, rows, points = scan(counts, EDGES, "dijet4", Settings(widths=(1, 3)))
    assert (summary["interval_low_gev"], summary["interval_high_gev"]) == (3200, 3600)
    assert summary["intervals"] == len(rows) == 13 + 12 + 11
    assert sum(summary[f"intervals_{name}"] for name in ("flagged", "warned", "small", "not_assessed")) == len(rows)
    assert 3200 < summary["resonance_mass_gev"] < 3600
    assert summary["resonance_z_local"] == max(point.z for point in points if point.z is not None)


def test_without_pybumphunter_its_columns_are_left_out(monkeypatch):
    monkeypatch.setattr(published_spectra, "has_bump_hunter", lambda: False)
    summary, _, _ = scan(COUNTS, EDGES, "dijet4", Settings(widths=(2, 2)))
    assert not [name for name in summary if "bumphunter" in name]
    assert "same_interval" not in summary


def test_pybumphunter_scans_the_same_intervals():
    pytest.importorskip("pyBumpHunter")
    counts = COUNTS.copy()
    counts[0] *= 2  # in no interval
    counts[4:7] += np.rint(6 * np.sqrt(COUNTS[4:7]))
    background = MEAN * 2e5 / MEAN.sum()
    row = bump_hunter(counts, background, EDGES, (1, 4))
    assert (row["bumphunter_low_gev"], row["bumphunter_high_gev"]) == (2800, 3400)
    p = stats.poisson.sf(counts[4:7].sum() - 1, background[4:7].sum())
    assert row["bumphunter_p_local"] == pytest.approx(p, rel=1e-9)
    assert row["bumphunter_z_local"] == pytest.approx(stats.norm.isf(p), rel=1e-9)


# ---- CMS -------------------------------------------------------------------------------------------------------------

FILES = [f"JetHT_run{year}_red_cert_scan" for year in (2016, 2017)]


def test_the_spectrum_of_cms_is_read_as_the_reference_reads_it(data_dir):
    for name in FILES:
        path = data_dir / "cms" / f"{name}.root"
        for mine, theirs in zip(read_spectrum(path, "Mjj", 1530), cms_spectrum(path), strict=True):
            assert mine.tolist() == theirs.tolist()


def test_intervals_of_three_bins_have_their_excess_where_pybumphunter_has_it(data_dir):
    pytest.importorskip("pyBumpHunter")
    counts, edges = read_spectrum(data_dir / "cms" / f"{FILES[1]}.root", "Mjj", 1530)
    summary, _, _ = scan(counts, edges, "dijet4", Settings(widths=(3, 3)))
    assert (summary["bumphunter_low_gev"], summary["bumphunter_high_gev"]) == (3704, 4171)
    assert summary["same_interval"]
    # numbers of docs/validation.md
    assert summary["interval_z_local"] == pytest.approx(2.75, abs=0.01)
    assert summary["bumphunter_z_local"] == pytest.approx(2.48, abs=0.01)
    assert summary["interval_z_local_with_spurious"] == pytest.approx(2.62, abs=0.01)
    assert (summary["interval_spurious_verdict"], summary["f_test_chooses"]) == ("warned", "dijet3")


@pytest.fixture(scope="module")
def cms_tables(data_dir, tmp_path_factory):
    """Both tables of the command in docs/validation.md, by spectrum and shape."""
    out = tmp_path_factory.mktemp("cms")
    files = [str(data_dir / "cms" / f"{name}.root") for name in FILES]
    table, _, png, _ = published_spectra.published_spectra(files, "Mjj", 1530.0, Settings(), out)
    assert png.stat().st_size > 10_000
    with table.open(newline="") as file:
        return {(row["spectrum"], row["shape"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_every_function_is_scanned_on_both_spectra_of_cms(cms_tables):
    assert list(cms_tables) == [(name, shape) for name in FILES for shape in SHAPES]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chi2", "ndof"), [(FILES[0], 35.6, 38), (FILES[1], 48.6, 37)])
def test_the_fit_is_that_of_cms(cms_tables, name, chi2, ndof):
    """Their density is taken at the middle of each bin: the integral over the bins is 0.05 to 0.07 lower."""
    row = cms_tables[name, "dijet4"]
    assert float(row["chi2"]) == pytest.approx(chi2, abs=0.1)
    assert int(row["ndof"]) == ndof


@pytest.mark.slow
def test_the_best_interval_is_that_of_pybumphunter(cms_tables):
    pytest.importorskip("pyBumpHunter")
    same = {key for key, row in cms_tables.items() if row["same_interval"] == "True"}
    # dijet3 in 2016: six bins from the same edge have 0.04 more than one bin
    assert set(cms_tables) - same == {(FILES[0], "dijet3")}
    for row in cms_tables.values():
        # its background is fitted through the bump, and without an error
        more = float(row["z_local_in_bumphunter_interval"]) - float(row["bumphunter_z_local"])
        assert 0.15 < more < 0.61


@pytest.mark.slow
def test_there_is_no_excess(cms_tables):
    assert max(float(row["resonance_z_local"]) for row in cms_tables.values()) < 3
    assert max(float(row["largest_z_local_with_spurious"]) for row in cms_tables.values()) < 3.5
