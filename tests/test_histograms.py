"""Histograms of any axes and storage: exported to ROOT and JSON, and drawn with their own labels."""

from __future__ import annotations

import json
import types

import hist
import numpy as np
import pytest
import uhi.io.json
import uproot
from hist import axis as ax

from drapes_hep import plots
from drapes_hep.bumphunt.resonance import ResonancePoint, ResonanceScan
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.working_points import WindowHunt, WorkingPoint, eigen_variations
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.regions import Window
from drapes_hep.stages.histograms import by_category, export_key, write_histograms

STAMP = plots.Stamp("Simulation", "test", 13_000.0)
X = ax.Regular(4, 0, 4, name="x", label="$x$ [GeV]")
NO_SCAN = ResonanceScan("", (), (), "not fitted")
VALUES = np.array([0.5, 1.5, 1.5, 3.5, 9.0])


def made(*axes, storage="weight", **values):
    """A histogram of five values of x; other axes are given theirs by name."""
    histogram = hist.Hist(*axes, storage=storage)
    sample = {"sample": VALUES} if "mean" in storage else {}
    places = {axis.name: values.get(axis.name, VALUES) for axis in histogram.axes}
    return histogram.fill(**places, **sample)


def steps(values=X, **more):
    return made(ax.StrCategory(["before", "after"], name="selection"), values, selection=["after"] * 5, **more)


HISTOGRAMS = {
    "no categories": made(X),
    "systematics": made(ax.StrCategory([], growth=True, name="systematic"), X, systematic=[*"uudnn"]),
    "integers": made(ax.IntCategory([3, -1], name="charge"), X, storage="double", charge=[3, 3, -1, 7, 7]),
    "booleans": made(ax.Boolean(name="tag"), X, storage="int64", tag=[True, True, False, False, False]),
    "multiplicity": made(ax.Integer(0, 5, name="n"), storage="atomicint64", n=[0, 1, 1, 2, 9]),
    "profile": steps(storage="mean"),
    "weighted profile": made(X, storage="weightedmean"),
    "plane": made(X, ax.Variable([0, 1, 10], name="y", label="y")),
    "systematic plane": made(ax.StrCategory(["u", "d"], name="s"), X, ax.Regular(2, 0, 4, name="y"), s=["u"] * 5),
    "cube": made(X, ax.Regular(2, 0, 4, name="y"), ax.Regular(2, 0, 4, name="z")),
    "four": made(X, *(ax.Regular(2, 0, 4, name=name) for name in "yzt"), storage="double"),
    "profile of two": made(X, ax.Regular(2, 0, 4, name="y"), storage="mean"),
    "categories": made(ax.StrCategory(["e", "mu"], name="flavour"), flavour=["e", "e", "mu", "mu", "mu"]),
    "nothing known": hist.Hist(ax.StrCategory([], growth=True, name="c"), X),
    "empty": hist.Hist(X),
    "no axis": hist.Hist(storage="double"),
    "unnamed": hist.Hist(ax.Regular(4, 0, 4), storage="unlimited").fill(VALUES),
    "infinite": made(ax.Variable([0, 1, np.inf], name="x")),
    "logarithmic": made(ax.Regular(4, 0.1, 10, transform=ax.transform.log, name="x"), storage="double"),
    "circular": made(ax.Regular(4, 0, 4, circular=True, name="x"), storage="double"),
    "without flow": made(ax.Regular(4, 0, 4, flow=False, name="x"), storage="mean"),
    "a/b;c.<&>": made(
        ax.StrCategory(["a/b;1", "$x", "ü"], name="w.d"),
        ax.Regular(4, 0, 4, name="x", label="$ {"),
        **{"w.d": ["$x"] * 5},
    ),
    "a_b;c.<&>": made(X),
}  # fmt: skip
HISTOGRAMS["not finite"] = made(X)
HISTOGRAMS["not finite"].view()["value"][:3] = [np.nan, np.inf, -np.inf]
HISTOGRAMS["negative"] = hist.Hist(X, storage="weight").fill(VALUES, weight=[-1, 2, -3, 1, 1])

ROOT_HAS_NONE = {"four", "profile_of_two", "no_axis", "without_flow"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export all of them, as the hunt does; returns the folder and what was said."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    run.skim_hists.parent.mkdir()
    text = json.dumps(
        {name: json.loads(json.dumps(histogram, default=uhi.io.json.default)) for name, histogram in HISTOGRAMS.items()}
    )
    run.skim_hists.write_text(text)
    lines: list[str] = []
    context = types.SimpleNamespace(run=run, hidden=(), reporter=types.SimpleNamespace(say=lines.append))
    write_histograms(context, (), (), (), NO_SCAN)
    return run.path, lines


def in_json(folder):
    raw = json.loads((folder / "hists.json").read_text(), object_hook=uhi.io.json.object_hook)
    return {name: hist.Hist(record) for name, record in raw.items()}


def test_every_entry_of_every_histogram_is_exported(exported):
    stored = in_json(exported[0])
    for name, histogram in HISTOGRAMS.items():
        parts = {key: part for key, part in stored.items() if key.startswith(export_key(f"control_{name}"))}
        if name in {"nothing known", "not finite", "no axis", "a/b;c.<&>", "a_b;c.<&>"} or histogram.kind == "MEAN":
            continue
        total = sum(np.asarray(part.values(flow=True)).sum() for part in parts.values())
        assert total == np.asarray(histogram.values(flow=True)).sum(), name


def test_root_and_json_hold_the_same_under_the_same_keys(exported):
    stored = in_json(exported[0])
    with uproot.open(exported[0] / "hists.root") as file:
        keys = {key.partition(";")[0] for key in file.keys()}  # noqa: SIM118
        assert set(stored) - keys == {f"control_{name}" for name in ROOT_HAS_NONE}
        for key in keys:
            theirs = file[key]
            np.testing.assert_array_equal(theirs.values(), stored[key].values())


def test_what_root_cannot_hold_is_named_in_one_line(exported):
    assert len(exported[1]) == 1
    for name in ROOT_HAS_NONE:
        assert f"control_{name}" in exported[1][0]


def test_keys_are_plain_and_unique(exported):
    stored = in_json(exported[0])
    assert all(key.replace("_", "").isalnum() and key.isascii() for key in stored)
    # an entry of no category is in a part of its own
    assert {"control_integers_3", "control_integers_m1", "control_integers_other"} <= set(stored)
    assert {"control_booleans_False", "control_systematics_u", "control_a_b_c____", "control_profile_after"} <= set(
        stored
    )


@pytest.mark.parametrize(
    ("name", "taken", "key"),
    [
        ("mjj_3300_3700_eff0.01", (), "mjj_3300_3700_eff0p01"),
        ("mjj_eff1e-05", (), "mjj_eff1em05"),
        ("a b", (), "a_b"),
        ("a b", ("a_b", "a_b_2"), "a_b_3"),
        ("", (), "_"),
    ],
)
def test_a_key_is_spelled_alike_in_root_and_json(name, taken, key):
    assert export_key(name, taken) == key


def test_a_selection_comes_first_and_an_only_dataset_has_no_name():
    histogram = hist.Hist(
        ax.StrCategory(["data"], name="dataset"), ax.StrCategory(["j1"], name="jet"),
        ax.StrCategory(["before", "after"], name="selection"), X,
    )  # fmt: skip
    assert [suffix for suffix, _ in by_category(histogram)] == ["_before_j1", "_after_j1"]


def test_the_expectation_comes_with_its_covariance_and_variations(tmp_path):
    edges = np.array([3000.0, 3100.0, 3300.0, 3400.0])
    spectrum = np.array([9.0, 5.0, 2.0])
    modes = np.array([[1.0, 0.6, 0.3], [0.2, 0.0, -0.2]])
    point = WorkingPoint(
        0.01, None, 5.0, 0.6, None, None, 2, 9, spectrum, modes.T @ modes, 1.0, 1
    )  # fmt: skip
    counts = SelectedCounts(edges, (0.01,), np.ones((1, 3)), np.array([False, True, False]))
    run = RunDirectory(tmp_path)
    (tmp_path / "skim").mkdir()
    run.skim_hists.write_text("{}")
    context = types.SimpleNamespace(run=run, hidden=((3100, 3300),))
    window = Window(3100, 3300, 3000, 3400)
    write_histograms(context, [window], [counts], [WindowHunt(window, None, (point,))], NO_SCAN)
    name = "mjj_expected_3100_3300_eff0p01"
    with uproot.open(tmp_path / "hists.root") as file:
        np.testing.assert_allclose(file[f"{name}_covariance"].values(), modes.T @ modes)
        assert "do not add them in quadrature" in file[name].title
        shifts = np.array([file[f"{name}_fit{i}Up"].values() - spectrum for i in (1, 2)])
        np.testing.assert_allclose(shifts.T @ shifts, modes.T @ modes, atol=1e-12)
        np.testing.assert_allclose(file[f"{name}_fit1Down"].values(), spectrum - shifts[0])
        assert f"{name}_fit3Up" not in file
        np.testing.assert_allclose(file[name].errors(), np.sqrt(np.diagonal(modes.T @ modes)))
    np.testing.assert_allclose(in_json(tmp_path)[f"{name}_covariance"].values(), modes.T @ modes)
    np.testing.assert_allclose(eigen_variations(modes.T @ modes), shifts)


def test_the_fitted_signal_of_the_largest_z_is_exported(tmp_path):
    edges = np.array([3000.0, 3100.0, 3300.0, 3400.0])
    counts = SelectedCounts(edges, (0.01,), np.ones((1, 3)), np.zeros(3, dtype=bool))
    window = Window(3100, 3300, 3000, 3400)
    background, peak = np.array([9.0, 5.0, 2.0]), np.array([0.0, 4.0, 0.1])
    points = [
        ResonancePoint(3150.0, 100.0, None, 1.0, z=1.0, spectrum=10 * background, peak=peak),
        ResonancePoint(3200.0, 100.0, window, 0.01, z=2.0, spectrum=background, peak=peak),
        ResonancePoint(3250.0, 100.0, window, 0.01, z=1.0, spectrum=background, peak=0 * peak),
        ResonancePoint(3250.0, 100.0, window, 0.001, reason="few"),
    ]
    run = RunDirectory(tmp_path)
    (tmp_path / "skim").mkdir()
    run.skim_hists.write_text("{}")
    context = types.SimpleNamespace(run=run, hidden=((0, 0),))
    count = WorkingPoint(0.01, 1, None, None, None, None, None, 9)
    hunted = [WindowHunt(window, None, (count,))]
    write_histograms(context, [window], [counts], hunted, ResonanceScan("Gaussian", tuple(points), ()))
    with uproot.open(tmp_path / "hists.root") as file:
        np.testing.assert_array_equal(file["mjj_resonance_background_3100_3300_eff0p01"].values(), background)
        np.testing.assert_array_equal(file["mjj_resonance_signal_3100_3300_eff0p01"].values(), peak)
        assert file["mjj_resonance_signal_3100_3300_eff0p01"].title == "Fit of a resonance of 3200 GeV: signal"
        np.testing.assert_array_equal(file["mjj_resonance_background_inclusive_eff1"].values(), 10 * background)
        assert not [key for key in file if "0p001" in key]


# ---- drawn


def cells_of(name):
    return list(plots.control_cells(name, HISTOGRAMS[name]))


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_any_histogram_is_drawn(name):
    for cell in cells_of(name):
        figure = plots.control_grid([cell], STAMP, hidden=[(1, 2)])
        figure.canvas.draw()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("no categories", ["events"]),
        ("systematics", ["u", "d", "n"]),
        ("integers", ["charge 3", "charge -1"]),
        ("booleans", ["tag False", "tag True"]),
        ("profile", ["before the selection", "after the selection"]),
        ("categories", ["events"]),
    ],
)
def test_a_legend_is_that_of_the_histograms_own_axes(name, lines):
    (cell,) = cells_of(name)
    figure = plots.control_grid([cell], STAMP)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == lines


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("no categories", ["$x$ [GeV]"]),
        ("plane", ["$x$ [GeV]"]),
        ("cube", ["$x$ [GeV]", "y", "z"]),
        ("categories", ["flavour"]),
        ("no axis", []),
    ],
)
def test_an_axis_is_labelled_with_its_own_label(name, labels):
    figures = [plots.control_grid([cell], STAMP) for cell in cells_of(name)]
    assert [figure.axes[0].get_xlabel() for figure in figures] == labels


def test_cells_of_other_lines_share_no_legend():
    with pytest.raises(ValueError, match="share no legend"):
        plots.control_grid([*cells_of("systematics"), *cells_of("integers")], STAMP)


def test_lines_hold_the_contents_of_their_categories():
    (cell,) = cells_of("systematics")
    figure = plots.control_grid([cell], STAMP)
    values = [patch.get_data().values.tolist() for patch in figure.axes[0].patches]
    assert values == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_too_many_lines_are_counted():
    histogram = hist.Hist(ax.IntCategory(range(20), name="i"), X)
    (cell,) = plots.control_cells("many", histogram)
    assert len(cell.lines) == 8
    assert cell.note == "12 more in hists.json"
