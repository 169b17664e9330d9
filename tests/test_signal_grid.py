"""Limits along a line of masses, and efficiencies over the masses of the daughters."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import yaml
from test_limits import project, quick  # noqa: F401 - fixtures
from test_stages import cut_sample

from drapes_hep.bumphunt.signal_limits import CutLimits, Limit
from drapes_hep.bumphunt.trained_efficiency import trained_efficiency
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.files import read_json
from drapes_hep.plots.style import Stamp
from drapes_hep.regions import Window
from drapes_hep.studies.limits import SignalLimits
from drapes_hep.studies.signal_grid import SignalPoint, draw_efficiencies, draw_limits

WINDOW = Window(3300.0, 3700.0, 2700.0, 6000.0)


def point(*masses, expected=100.0, luminosity=None):
    limit = Limit(1.1 * expected, tuple(expected * f for f in (0.5, 0.7, 1.0, 1.4, 2.0)))
    values = [np.array([0.1, 0.3]), np.array([0.3, 0.5]), np.array([0.4, 0.6])]
    efficiency = trained_efficiency([50.0, 100.0, 200.0], values)
    cuts = CutLimits(1.0, Limit(400.0, (400.0,) * 5), None, None), CutLimits(0.01, limit, None, None)
    limits = SignalLimits(
        WINDOW, 1000, 0.8, 0.01, 0.9, masses[0], luminosity, (50.0, 100.0, 200.0), 2, cuts, (None, efficiency), ()
    )
    return SignalPoint("_".join(f"{mass:g}" for mass in masses), masses, limits)


def test_efficiencies_are_those_of_the_middle_size():
    signal = point(3500.0, 500.0, 100.0)
    assert signal.size == 100.0
    [(cut, mean, spread)] = signal.efficiencies()
    assert (cut, mean, spread) == (0.01, pytest.approx(0.4), pytest.approx(np.std([0.3, 0.5], ddof=1)))


def test_a_line_of_masses_has_its_limits_in_fb():
    points = [point(3200.0, 500.0, 100.0, luminosity=10.0), point(3500.0, 500.0, 100.0, luminosity=10.0)]
    [ax] = draw_limits(points, Stamp()).axes
    assert ax.get_ylabel() == r"$\sigma$ [fb]"
    median = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(median.get_xdata(), [3200, 3500])
    np.testing.assert_allclose(median.get_ydata(), 100.0 / (10 * 0.8))


def test_a_map_has_the_numbers_of_each_signal():
    figure = draw_efficiencies([point(3500.0, 500.0, 100.0), point(3500.0, 300.0, 300.0)], Stamp())
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(500.0, 100.0): "0.40\n±0.14", (300.0, 300.0): "0.40\n±0.14"}


def test_the_study_computes_each_signal_once(project, drapes, quick, few_trees):  # noqa: F811
    events = cut_sample(10, 900)
    write_feature_root(project / "other.root", {name: v[events["label"] == 1] for name, v in events.items()})
    signals = "study.signals={signal.root: [3500, 500, 100], other.root: [3500, 300, 300]}"
    options = ("tiny.yaml", "-o", "out", "--quiet", "--workers", 1, "--set")
    status, _, said = drapes("study", "efficiency-map", *options, signals)
    assert status == 0, said
    assert len(quick) == 8
    with (project / "out" / "efficiency-map" / "efficiency-map.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["signal"], row["m_b"], row["m_c"]) for row in rows] == [
        ("signal", "500.0", "100.0"),
        ("other", "300.0", "300.0"),
    ]
    record = read_json(project / "out" / "signals" / "other" / "limits.json")
    [mean] = {float(row["efficiency_0.1"]) for row in rows}
    assert mean == pytest.approx(np.mean(record["cuts"][1]["efficiency"][1]))

    # one of them, by its mass
    quick.clear()
    status, _, said = drapes("study", "limits-by-mass", *options, "study.signals={signal.root: [3500, 500, 100]}")
    assert status == 0, said
    assert not quick


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": {}}, "study.signals: name the files of simulated signals"),
        ({"limits": {"reference": None}}, "limits.reference: set it"),
        ({"study": {"signals": {"a/s.root": [3500, 1, 1], "b/s.root": [3500, 1, 1]}}}, "two files have the name s"),
        ({"study": {"signals": {"s.root": [3500, 1]}}}, "study.signals"),
        ({"blind": True}, "blind: limits need the counts"),
        ({"study": {"signals": {"signal.root": [3500, 5, 1], "b.root": [3200, 5, 1]}}}, "m_A = 3200 and 3500 GeV"),
        ({"study": {"signals": {"signal.root": [3500, 5, 1], "b.root": [3500, 5, 1]}}}, "have the same masses"),
        ({"study": {"signals": {"signal.root": [3500, 5, 1], "b.root": [3500, 5, 2]}}}, "b.root"),
        ({"study": {"signals": {"signal.root": [500, 100, 3500]}}}, "signal.root has a median m_JJ of"),
    ],
)
def test_what_is_no_grid_is_refused_before_any_search(project, drapes, quick, change, words):  # noqa: F811
    tree = yaml.safe_load((project / "tiny.yaml").read_text())
    tree["study"] = {"signals": {"signal.root": [3500, 500, 100]}}
    (project / "tiny.yaml").write_text(yaml.safe_dump({**tree, **change}))
    status, _, said = drapes("study", "efficiency-map", "tiny.yaml", "-o", "out")
    assert status == 2
    assert words in said
    assert not quick


def test_a_line_has_one_signal_of_each_mass(project, drapes, quick):  # noqa: F811
    signals = "study.signals={signal.root: [3500, 5, 1], b.root: [3500, 5, 2]}"
    status, _, said = drapes("study", "limits-by-mass", "tiny.yaml", "-o", "out", "--set", signals)
    assert status == 2
    assert "two signals have the same mass of A" in said
    assert not quick
