"""Bias tests of the mass fit, and studies of the spectrum alone: a small `drapes study mass-fit`."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import yaml
from conftest import ROOT
from test_howto import example
from test_stages import cut_sample

from drapes_hep.bumphunt import SelectedCounts, hunt_window, spurious_signals
from drapes_hep.bumphunt.background import verdict_of
from drapes_hep.bumphunt.bias import window_biases
from drapes_hep.config import MassConfig, load_config
from drapes_hep.errors import ConfigError, DrapesError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plots.style import HepFigure
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import bin_model, fit_spectrum
from drapes_hep.spectrum.shapes import SHAPES
from drapes_hep.stages.skim import skim
from drapes_hep.studies.spectra import Spectrum, load_spectrum
from drapes_hep.studies.study import find_studies, load_study, run_study

WINDOWS = tuple(Window(lo, lo + 400, 2700, 6000) for lo in (2900, 3300))
EDGES = spectrum_edges((2700, 6000), 50, WINDOWS)
# as fitted to simulated QCD: 298,624 events
MEAN = bin_model("dijet5", 13_000, EDGES, [46.3026316, 32.1730935, 52.5016604, 30.7716570, 6.7853301])[0]
STUDY = load_study("mass-fit", {"mass-fit": ROOT / "analysis" / "mass_fit.py"})


# ---- the pulls -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spectra():
    return np.random.default_rng(3).poisson(MEAN, (400, len(MEAN))).astype(float)


def test_the_true_shape_has_no_bias(spectra):
    for bias in window_biases(spectra, MEAN, EDGES, WINDOWS, "dijet5"):
        assert bias.asimov == pytest.approx(0, abs=1e-3)
        assert abs(bias.mean) < 4 * bias.mean_error
        assert abs(bias.width - 1) < 4 * bias.width_error


def test_another_shape_has_the_bias_of_its_spurious_signal(spectra):
    biases = window_biases(spectra, MEAN, EDGES, WINDOWS, "dijet4")
    assert biases[0].asimov > 1.5
    for bias, window in zip(biases, WINDOWS, strict=True):
        assert bias.mean == pytest.approx(bias.asimov, abs=0.05 * abs(bias.asimov) + 4 * bias.mean_error)
        counts = SelectedCounts(EDGES, (1.0,), MEAN[None], np.zeros(len(MEAN), bool))
        signal = spurious_signals(counts, [window], "dijet4")[0]
        five = next(a for a in signal.alternatives if a.shape == "dijet5")
        assert bias.asimov == pytest.approx(five.fraction, abs=0.01)


def test_a_pull_is_that_of_the_hunt(spectra):
    (bias,) = window_biases(spectra[:2], MEAN, EDGES, WINDOWS[:1], "dijet4")
    pulls = []
    for spectrum in spectra[:2]:
        counts = SelectedCounts(EDGES, (1.0,), spectrum[None], np.zeros(len(MEAN), bool))
        point = hunt_window(counts, WINDOWS[0]).working_points[0]
        pulls.append((point.observed - point.expected) / np.hypot(np.sqrt(point.expected), point.expected_error))
    assert bias.good_fits == 2
    assert bias.mean == pytest.approx(np.mean(pulls), abs=0.01)


def test_an_experiment_whose_fit_is_poor_is_left_out(spectra):
    ragged = spectra[:5] * np.where(np.arange(len(MEAN)) % 2, 1.2, 0.8)
    (bias,) = window_biases(np.rint(ragged), MEAN, EDGES, WINDOWS[:1], "dijet4")
    assert (bias.good_fits, bias.mean, bias.width) == (0, None, None)


@pytest.mark.parametrize(
    ("fraction", "verdict"),
    [(None, "not assessed"), (0.2, "small"), (-0.21, "warned"), (0.5, "warned"), (-0.51, "flagged")],
)
def test_a_bias_has_the_verdict_of_a_spurious_signal(fraction, verdict):
    assert verdict_of(fraction) == verdict


# ---- a measurement ---------------------------------------------------------------------------------------------------


def spectrum_of(counts, mass=None, experiments=20):
    return Spectrum(EDGES, counts, WINDOWS, mass or MassConfig(), experiments, 1)


def test_a_bias_is_flagged_where_the_truth_describes_the_spectrum():
    rows = STUDY.measure(spectrum_of(np.rint(MEAN)), {"truth": "dijet5", "fitted": "dijet4"})
    assert [row["verdict"] for row in rows] == ["flagged", "flagged"]
    assert rows[0]["asimov"] > 1.5
    assert rows[0]["good_fraction"] == rows[0]["good_fits"] / 20


def test_a_truth_that_does_not_describe_the_spectrum_is_not_assessed():
    rows = STUDY.measure(spectrum_of(np.rint(MEAN)), {"truth": "dijet3", "fitted": "dijet4"})
    p_value = fit_spectrum(np.rint(MEAN), EDGES, None, "dijet3").p_value
    assert p_value < 0.05
    assert {row["truth_p_value"] for row in rows} == {p_value}
    assert {row["verdict"] for row in rows} == {"not assessed"}


def test_a_shape_that_cannot_be_fitted_is_not_assessed():
    few = np.zeros_like(MEAN)
    few[[0, 9, 40]] = 3
    rows = STUDY.measure(spectrum_of(few), {"truth": "dijet5", "fitted": "dijet4"})
    assert [(row["window_lo_gev"], row["verdict"]) for row in rows] == [(2900, "not assessed"), (3300, "not assessed")]
    assert "3 filled bins" in rows[0]["reason"]


def test_all_shapes_are_fitted_to_the_same_pseudo_experiments(monkeypatch):
    drawn = []
    monkeypatch.setitem(STUDY.measure.__globals__, "window_biases", lambda spectra, *_: drawn.append(spectra) or ())
    for truth, fitted in (("dijet4", "dijet4"), ("dijet4", "ua2"), ("ua2", "ua2")):
        STUDY.measure(spectrum_of(np.rint(MEAN)), {"truth": truth, "fitted": fitted})
    assert drawn[0].shape == (20, len(MEAN))
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_what_blinding_hides_decides_nothing():
    inside = (EDGES[:-1] >= 2900) & (EDGES[1:] <= 3700)
    hidden = spectrum_of(np.where(inside, np.nan, np.rint(MEAN)))
    rows = STUDY.measure(hidden, {"truth": "dijet4", "fitted": "dijet3"})
    visible = fit_spectrum(np.rint(MEAN), EDGES, None, "dijet4", fitted=~inside)
    assert rows[0]["truth_p_value"] == visible.p_value
    assert all(np.isfinite(row["asimov"]) for row in rows)


# ---- the study -------------------------------------------------------------------------------------------------------

CONFIG = {
    "name": "biases",
    "data": {"path": "events.root", "labels": True},
    "signal": {"inject": 60, "seed": 2},
    "mass": {"bin_width": 100},
    "windows": {"width": 400, "step": 400, "first": 3100, "last": 3500},
    "study": {"pseudo_experiments": 10},
    "blind": False,
    "seed": 4,
}
SHAPE = """import numpy as np


class Exponential:
    parameter_names = ("ln_p1", "p2", "p3")

    def basis(self, z):
        return np.stack([np.ones_like(z), z, z * z], axis=-1)
"""
OWN = """from drapes_hep.studies.spectra import SpectrumStudy


def measure(spectrum, labels):
    return [{{"events": {events}}}]


STUDY = SpectrumStudy("Events", lambda spectrum: [{{"region": "all"}}], measure, lambda rows, config: [])
"""


@pytest.fixture(scope="module", autouse=True)
def no_rendering():
    """Let figures be made, but written of a few bytes: rendering takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HepFigure, "savefig", lambda _, path, format, dpi: path.write_text(format))  # noqa: ARG005
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mass_fit")
    write_feature_root(folder / "events.root", cut_sample(3000, 300))
    (folder / "biases.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "shapes.py").write_text(SHAPE)
    return folder


def context_of(project, *changes, out="out"):
    config = load_config(project / "biases.yaml", changes)
    return Context.of(config, open_run(project / out, "study"), device="cpu", reporter=Reporter(quiet=True))


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(project):
    return run_study("mass-fit", STUDY, context_of(project))


def test_the_verb_runs_the_study(project, finished, drapes, monkeypatch):
    monkeypatch.chdir(project)
    status, out, err = drapes("study", "mass-fit", "biases.yaml", "-o", "out")
    assert status == 0
    assert out.split() == [f"out/mass-fit/mass-fit.{kind}" for kind in ("csv", "png", "pdf", "json")]
    assert "0 measurements to do, 16 of 16 already done" in err
    assert [path.read_bytes() for path in finished[1:3]] == [b"png", b"pdf"]


def test_every_pair_of_shapes_has_a_row_per_window(finished):
    pairs = [(row["truth"], row["fitted"], float(row["window_lo_gev"])) for row in table(finished[0])]
    assert pairs == [(truth, fitted, low) for truth in SHAPES for fitted in SHAPES for low in (3100, 3500)]
    assert {row["pseudo_experiments"] for row in table(finished[0])} == {"10"}


def test_the_record_says_what_was_tested(project, finished):
    record = read_json(finished[3])
    counts = load_spectrum(context_of(project)).counts
    assert (record["study"], record["shape"], record["blind"]) == ("mass-fit", "dijet4", False)
    assert record["events"] == counts.sum() > 1000
    assert {"code", "versions", "config"} <= record.keys()


def test_the_spectrum_is_that_of_the_search_s_data(project, tmp_path):
    context = context_of(project)
    spectrum = load_spectrum(context)
    skim(dataclasses.replace(context, run=open_run(tmp_path / "run")))
    masses = read_skim(tmp_path / "run" / "skim" / "events.parquet")["mjj"]
    assert spectrum.counts.tolist() == np.histogram(masses, spectrum.edges)[0].tolist()


def test_more_signal_than_there_is_names_the_key(project):
    with pytest.raises(DrapesError, match=r"signal\.inject: 5000 signal events are requested, the sample has 300"):
        load_spectrum(context_of(project, "signal.inject=5000"))


def test_neither_labels_nor_what_blinding_hides_are_needed(project, finished, drapes, monkeypatch):
    record = read_json(finished[3])
    whole = load_spectrum(context_of(project, "signal.inject=null")).counts
    changes = ("blind=true", "data.labels=false", "signal.inject=null")
    monkeypatch.chdir(project)
    words = [word for change in changes for word in ("--set", change)]
    status, _, err = drapes("study", "mass-fit", "biases.yaml", "-o", "blinded", *words)
    assert status == 0
    assert "blind: study mass-fit uses only the events outside all windows" in err
    blinded = load_spectrum(context_of(project, *changes, out="blinded"))
    hidden = (blinded.edges[:-1] >= 3100) & (blinded.edges[1:] <= 3900)
    assert np.isnan(blinded.counts).tolist() == hidden.tolist()
    assert blinded.counts[~hidden].tolist() == whole[~hidden].tolist()
    assert read_json(project / "blinded" / "mass-fit" / "mass-fit.json")["events"] == whole[~hidden].sum()
    assert record["events"] > whole[~hidden].sum()


def test_what_is_done_is_not_repeated(project, finished):
    before = finished[0].read_bytes()
    records = {path: path.stat().st_mtime_ns for path in (project / "out" / "trials").iterdir()}
    assert len(records) == 16
    lost = sorted(records)[5]
    lost.unlink()
    run_study("mass-fit", STUDY, context_of(project))
    assert finished[0].read_bytes() == before
    assert {path for path, then in records.items() if path.stat().st_mtime_ns != then} == {lost}


def own_study(folder, events="int(spectrum.counts.sum())"):
    (folder / "analysis").mkdir(exist_ok=True)
    (folder / "analysis" / "events.py").write_text(OWN.format(events=events))
    return load_study("events", find_studies(folder))


WHOLE = spectrum_of(np.rint(MEAN))


@pytest.mark.parametrize(
    "change",
    [
        {"counts": WHOLE.counts + (np.arange(len(MEAN)) == 0)},
        {"counts": np.where(np.arange(len(MEAN)) == 0, np.nan, WHOLE.counts)},
        {"windows": WINDOWS[:1]},
        {"mass": MassConfig(fit="dijet5")},
        {"pseudo_experiments": 21},
        {"seed": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_a_measurement_changes_its_key(change):
    assert STUDY.key(dataclasses.replace(WHOLE, **change)) != STUDY.key(WHOLE)
    assert STUDY.key(dataclasses.replace(WHOLE)) == STUDY.key(WHOLE)


def test_an_edited_study_measures_again(tmp_path):
    keys = {own_study(tmp_path, events).key(WHOLE) for events in ("1", "1 + 1", "1")}
    assert len(keys) == 2


def test_an_edited_shape_is_measured_again(tmp_path):
    keys = []
    for text in (SHAPE, SHAPE.replace("z * z", "z**3")):
        (tmp_path / "shapes.py").write_text(text)
        (tmp_path / "biases.yaml").write_text(yaml.safe_dump(CONFIG))
        config = load_config(tmp_path / "biases.yaml", ["mass.fit=shapes.py:Exponential"])
        keys.append(STUDY.key(dataclasses.replace(WHOLE, mass=config.mass)))
    assert keys[0] != keys[1]


def test_a_shape_of_one_s_own_is_tested_too(project):
    config = load_config(project / "biases.yaml", ["mass.fit=shapes.py:Exponential"])
    spectrum = dataclasses.replace(WHOLE, mass=config.mass)
    pairs = {(row["truth"], row["fitted"]) for row in STUDY.entries(spectrum)}
    assert len(pairs) == 25
    rows = STUDY.measure(spectrum, {"truth": "dijet3", "fitted": "shapes.py:Exponential"})
    assert all(row["asimov"] is not None for row in rows)


def test_the_study_of_the_how_to_runs(project, finished):
    (project / "analysis").mkdir(exist_ok=True)
    (project / "analysis" / "goodness.py").write_text(example("SpectrumStudy"))
    context = context_of(project)
    written = run_study("goodness", load_study("goodness", find_studies(project)), context)
    rows = table(written[0])
    assert [(row["shape"], float(row["window"])) for row in rows] == [(s, m) for s in SHAPES for m in (3300, 3700)]
    assert all(0 <= float(row["p_value"]) <= 1 for row in rows)
    assert finished[0].parent != written[0].parent


def test_an_error_in_a_measurement_of_one_s_own_is_one_line(project):
    context = context_of(project)
    with pytest.raises(ConfigError, match=r"study 'events': ZeroDivisionError: .*events\.py, line 5"):
        run_study("events", own_study(project, "1 / 0"), context)
