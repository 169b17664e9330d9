"""Bias tests of the mass fit: a small analysis/mass_fit.py."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.mass_fit import bias_rows, mass_fit
from drapes_hep.bumphunt import SelectedCounts, hunt_window, spurious_signals
from drapes_hep.errors import RunDirectoryError
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import bin_model, fit_spectrum
from drapes_hep.spectrum.shapes import SHAPES

WINDOWS = [Window(lo, lo + 400, 2700, 6000) for lo in (2900, 3300)]
EDGES = spectrum_edges((2700, 6000), 50, WINDOWS)
# as fitted to simulated QCD: 298,624 events
MEAN = bin_model("dijet5", 13_000, EDGES, [46.3026316, 32.1730935, 52.5016604, 30.7716570, 6.7853301])[0]


@pytest.fixture(scope="module")
def spectra():
    return np.random.default_rng(3).poisson(MEAN, (400, len(MEAN))).astype(float)


def test_the_true_shape_has_no_bias(spectra):
    for row in bias_rows(spectra, MEAN, EDGES, WINDOWS, "dijet5", 13_000):
        assert row["asimov"] == pytest.approx(0, abs=1e-3)
        assert abs(row["pull_mean"]) < 4 * row["pull_mean_error"]
        assert abs(row["pull_width"] - 1) < 4 * row["pull_width_error"]


def test_another_shape_has_the_bias_of_its_spurious_signal(spectra):
    rows = bias_rows(spectra, MEAN, EDGES, WINDOWS, "dijet4", 13_000)
    assert rows[0]["asimov"] > 1.5
    for row, window in zip(rows, WINDOWS, strict=True):
        assert row["pull_mean"] == pytest.approx(
            row["asimov"], abs=0.05 * abs(row["asimov"]) + 4 * row["pull_mean_error"]
        )
        counts = SelectedCounts(EDGES, (1.0,), MEAN[None], np.zeros(len(MEAN), bool))
        signal = spurious_signals(counts, [window], "dijet4")[0]
        five = next(a for a in signal.alternatives if a.shape == "dijet5")
        assert row["asimov"] == pytest.approx(five.fraction, abs=0.01)


def test_a_pull_is_that_of_the_hunt(spectra):
    row = bias_rows(spectra[:2], MEAN, EDGES, WINDOWS[:1], "dijet4", 13_000)[0]
    pulls = []
    for spectrum in spectra[:2]:
        counts = SelectedCounts(EDGES, (1.0,), spectrum[None], np.zeros(len(MEAN), bool))
        point = hunt_window(counts, WINDOWS[0]).working_points[0]
        pulls.append((point.observed - point.expected) / np.hypot(np.sqrt(point.expected), point.expected_error))
    assert row["good_fits"] == 2
    assert row["pull_mean"] == pytest.approx(np.mean(pulls), abs=0.01)


def test_an_experiment_whose_fit_is_poor_is_left_out(spectra):
    ragged = spectra[:5] * np.where(np.arange(len(MEAN)) % 2, 1.2, 0.8)
    row = bias_rows(np.rint(ragged), MEAN, EDGES, WINDOWS[:1], "dijet4", 13_000)[0]
    assert (row["good_fits"], row["pull_mean"], row["pull_width"]) == (0, None, None)


def run_of(folder, counts):
    folder.mkdir()
    hunt = {"edges": EDGES.tolist(), "counts": counts, "windows": [{"sr": [w.lo, w.hi]} for w in WINDOWS]}
    (folder / "hunt.json").write_text(json.dumps(hunt))
    (folder / "manifest.json").write_text(json.dumps({"config": {"mass": {"sqrt_s": 13_000}, "plots": {}}}))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("mass_fit") / "run", np.rint(MEAN).tolist())
    return run, mass_fit(run, run / "out", 20)


@pytest.fixture
def no_figure(monkeypatch):
    """Leave out the drawing: what is tested is the table."""
    monkeypatch.setattr("analysis.mass_fit.study_panels", lambda *_: Figure())


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_pair_of_shapes_has_a_row_per_window(finished):
    rows = table(finished[1][0])
    pairs = [(r["truth"], r["fitted"], float(r["window_lo_gev"])) for r in rows]
    assert sorted(pairs) == sorted((t, f, w.lo) for t in SHAPES for f in SHAPES for w in WINDOWS)
    p = fit_spectrum(np.rint(MEAN), EDGES, None, "dijet3").p_value
    assert {float(r["truth_p_value"]) for r in rows if r["truth"] == "dijet3"} == {p}


def test_the_table_has_a_figure(finished):
    _, (_, png, pdf, _) = finished
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("no_figure")
def test_what_is_in_the_table_is_not_repeated(finished, monkeypatch):
    run, (path, *_) = finished
    whole = path.read_bytes()
    rows = table(path)
    lines = whole.decode().splitlines(keepends=True)
    cut = next(i for i, row in enumerate(rows) if (row["truth"], row["fitted"]) == ("ua2", "ua2"))
    path.write_text("".join(lines[: cut + 1]))
    fitted = []
    monkeypatch.setattr("analysis.mass_fit.bias_rows", lambda *a: fitted.append(a[4]) or bias_rows(*a))
    mass_fit(run, run / "out", 20)
    assert fitted == ["ua2"]
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("no_figure")
def test_another_number_of_pseudo_experiments_starts_over(finished):
    run, _ = finished
    out = shutil.copytree(run / "out", run / "changed")
    mass_fit(run, out, 4)
    assert {row["pseudo_experiments"] for row in table(out / "mass-fit.csv")} == {"4"}


def test_a_blinded_run_is_refused(tmp_path):
    run = run_of(tmp_path / "run", [None, *MEAN[1:].tolist()])
    with pytest.raises(RunDirectoryError, match="blinded"):
        mass_fit(run, tmp_path, 3)
