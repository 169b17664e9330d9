"""Figures: labelled with units, nothing clipped or overlapping, nothing blinded, nothing left behind in the session."""

from __future__ import annotations

import contextlib
import io

import hist
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import FancyBboxPatch, Rectangle, StepPatch
from matplotlib.text import Text
from scipy.stats import norm, poisson

from drapes_hep import plots
from drapes_hep.config import PlotConfig
from drapes_hep.metrics import roc
from drapes_hep.plots import style

STAMP = plots.Stamp("LHC Olympics", "R&D dataset", 139.0, 13_000.0)
WINDOW = (3300.0, 3700.0)


def make_spectrum(cut=1.0, blind=False, expected=True, seed=3):
    rng = np.random.default_rng(seed)
    edges = np.arange(2700.0, 6001.0, 20.0)
    centre = 0.5 * (edges[1:] + edges[:-1])
    mu = 1500 * cut * np.exp(-(centre - 2700) / 500)
    counts = rng.poisson(mu).astype(float)
    if blind:
        counts[(centre > WINDOW[0]) & (centre < WINDOW[1])] = np.nan
    if not expected:
        return plots.Spectrum(edges, counts, window=WINDOW, background_efficiency=cut)
    return plots.Spectrum(
        edges,
        counts,
        mu,
        0.03 * mu,
        WINDOW,
        cut,
        chi2=150.2,
        ndof=141,
        fit_p=0.3,
        observed=None if blind else 8211,
        total=8000.4,
        total_error=80.2,
        z_local=None if blind else -1.25,
    )


def make_closures(n=5):
    rng = np.random.default_rng(1)
    labels = (r"$m_{J_1}$ [GeV]", r"$m_{J_1} - m_{J_2}$ [GeV]", r"$\tau_{21}^{J_1}$", r"$\tau_{21}^{J_2}$", "x")
    scale = (100, 50, 0.2, 0.2, 1e-4)
    return [
        plots.make_closure(labels[i], scale[i] * rng.gamma(4, 1, 800), scale[i] * rng.gamma(4, 1, 3000))
        for i in range(n)
    ]


def make_roc(seed=2, n=4000):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.1
    return roc(rng.normal(1.5 * y, 1), y)


def make_hist(jets=False):
    rng = np.random.default_rng(4)
    axes = [
        hist.axis.StrCategory(["a", "b"], growth=True, name="dataset"),
        hist.axis.StrCategory(["before", "after"], name="selection"),
    ]
    if jets:
        axes.append(hist.axis.StrCategory(["leading", "subleading"], name="jet"))
    h = hist.Hist(*axes, hist.axis.Regular(80, 0, 8000, name="mjj", label=r"$m_{JJ}$ [GeV]"), storage="weight")
    for dataset in ("a", "b"):
        for selection in ("before", "after"):
            for jet in ("leading", "subleading") if jets else (None,):
                more = {"jet": jet} if jet else {}
                h.fill(dataset=dataset, selection=selection, mjj=rng.exponential(700, 2000) + 2500, **more)
    return h


def make_points(null=True):
    out = []
    for i, low in enumerate((2900.0, 3100.0, 3300.0)):
        for cut, p in ((1.0, 0.3), (0.1, 1e-3), (0.01, 3e-9), (0.001, None if null and i == 1 else 1e-5)):
            out.append(plots.LocalP((low, low + 400), cut, p))
    return out


GLOBAL = plots.GlobalP(
    5e-4, 3.29, (0.0, 1.8e-3), True, 2000, extrapolated=2.3e-5, extrapolated_z=4.07, extrapolated_interval=(2e-5, 3e-5)
)
TAILS = np.random.default_rng(5).random(4000)

FIGURES = {
    "spectrum": lambda: plots.spectrum(make_spectrum(), STAMP),
    "spectrum_tight": lambda: plots.spectrum(make_spectrum(1e-3), STAMP),
    "spectrum_blind": lambda: plots.spectrum(make_spectrum(0.1, blind=True), STAMP),
    "spectrum_bare": lambda: plots.spectrum(make_spectrum(0.01, expected=False), STAMP),
    "selected": lambda: plots.selected_spectra([make_spectrum(c) for c in (1, 0.1, 0.01, 0.001)], STAMP),
    "closure": lambda: plots.feature_closure(make_closures(1)[0], STAMP),
    "closure_grid": lambda: plots.feature_grid(make_closures(), STAMP, title="sidebands of 3300–3700 GeV"),
    "training": lambda: plots.training_loss(
        plots.TrainingCurve(np.exp(-np.arange(60) / 5) + 0.4, np.exp(-np.arange(60) / 5) + 0.41, np.full(60, 1e-3), 47),
        STAMP,
    ),
    "quality": lambda: plots.template_quality(
        [
            plots.QualityPoint(WINDOW, (0.52, 0.004), (0.505, 0.004), None),
            plots.QualityPoint((3500, 3900), None, (0.49, None)),
        ],
        STAMP,
    ),
    "roc": lambda: plots.roc_curve({"3300–3700 GeV": make_roc()}, STAMP),
    "sic": lambda: plots.sic_curve({"3300–3700 GeV": make_roc()}, STAMP),
    "sic_many": lambda: plots.sic_curve(
        {f"{2900 + 200 * i}–{3300 + 200 * i} GeV": make_roc(i) for i in range(9)}, STAMP
    ),
    "score": lambda: plots.score_distribution(TAILS**1.2, TAILS, STAMP, working_points=(1, 0.1, 0.01), title="window"),
    "scan": lambda: plots.local_p_scan(make_points(), STAMP, overall=GLOBAL),
    "toys": lambda: plots.toy_distribution(TAILS**2, 1e-7, STAMP),
    "passing": lambda: plots.passing_fraction(
        [
            plots.Passing(WINDOW, region, cut, 2000 * cut * factor, 2000)
            for cut in (0.1, 0.01)
            for region, factor in (("lower sideband", 0.9), ("window", 9), ("upper sideband", 0))
        ],
        STAMP,
    ),
    "control": lambda: plots.control_histogram(make_hist(), STAMP, hidden=[WINDOW]),
    "control_grid": lambda: plots.control_grid(
        [c for n in "abcd" for c in plots.control_cells(n, make_hist(True))], STAMP
    ),
    "split": lambda: plots.data_split(plots.SplitCounts(WINDOW, (2700, 6000), 40000, 5000, 5000, 10000, 50000, 5)),
}


@pytest.fixture(scope="module")
def figures():
    return {name: make() for name, make in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_outside_of_the_canvas(figures, name):
    fig = figures[name]
    fig.canvas.draw()
    with plots.figure_style():
        box = fig.get_tightbbox(fig.canvas.get_renderer())
    width, height = fig.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


@pytest.mark.parametrize("name", [n for n in FIGURES if n != "split"])
def test_axes_are_labelled(figures, name):
    fig = figures[name]
    visible = [ax for ax in fig.axes if ax.axison]
    assert any(ax.get_xlabel() for ax in visible)
    assert any(ax.get_ylabel() for ax in visible) or any("Fraction" in t.get_text() for t in fig.texts)
    for ax in visible:
        if "m_{J" in ax.get_xlabel():
            assert "GeV" in ax.get_xlabel()


@pytest.mark.parametrize("name", FIGURES)
def test_legends_hide_no_points(figures, name):
    fig = figures[name]
    fig.canvas.draw()
    for ax in fig.axes:
        if ax.get_legend() is None:
            continue
        box = ax.get_legend().get_window_extent()
        for line in ax.lines:
            marker = line.get_marker() not in ("None", None, "")
            if marker and line.get_transform() == ax.transData:
                xy = ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
                assert not box.contains(xy[:, 0], xy[:, 1]) if xy.ndim == 1 else not any(box.contains(*p) for p in xy)


@pytest.mark.parametrize("name", ["spectrum", "spectrum_tight", "spectrum_blind", "selected"])
def test_legends_lie_above_what_is_shaded(figures, name):
    fig = figures[name]
    fig.canvas.draw()
    ax = fig.axes[0]
    shaded = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, Rectangle)]
    assert shaded
    assert max(box.y1 for box in shaded) <= ax.get_legend().get_window_extent().y0


def test_lines_of_the_legend_are_those_of_the_scan(figures):
    fig = figures["scan"]
    dashed = {to_rgb(line.get_color()): line.get_linestyle() == "--" for line in fig.legends[0].get_lines()}
    assert sum(dashed.values()) == 1
    bars = [collection for collection in fig.axes[0].collections if isinstance(collection, LineCollection)]
    assert bars
    for bar in bars:
        assert (bar.get_linestyle()[0][1] is not None) == dashed[to_rgb(bar.get_color()[0])]


def test_words_of_the_split_lie_inside_their_boxes(figures):
    fig = figures["split"]
    fig.canvas.draw()
    ax = fig.axes[0]
    for box in (patch.get_window_extent() for patch in ax.patches if isinstance(patch, FancyBboxPatch)):
        for text in (label.get_window_extent() for label in ax.texts):
            if box.x0 < (text.x0 + text.x1) / 2 < box.x1 and box.y0 < (text.y0 + text.y1) / 2 < box.y1:
                assert box.x0 + 8 < text.x0 < text.x1 < box.x1 - 8


def test_session_is_left_alone(figures):
    # the backend resolves itself when it is looked at
    before = {k: v for k, v in mpl.rcParams.copy().items() if k != "backend"}
    plots.toy_distribution(TAILS, 0.01, STAMP).savefig(io.BytesIO())
    assert {k: v for k, v in mpl.rcParams.items() if k != "backend"} == before
    assert plt.get_fignums() == []


def test_same_bytes_whatever_the_session(figures):
    def pdf(fig):
        out = io.BytesIO()
        fig.savefig(out, format="pdf", metadata={"CreationDate": None})
        return out.getvalue()

    first = pdf(plots.toy_distribution(TAILS, 0.01, STAMP))
    with mpl.rc_context({"font.size": 3, "xtick.direction": "out", "mathtext.fontset": "cm", "lines.linewidth": 9}):
        assert pdf(plots.toy_distribution(TAILS, 0.01, STAMP)) == first


@pytest.mark.parametrize("name", ["spectrum", "closure", "scan", "control"])
def test_minor_ticks_are_where_matplotlib_draws_them(monkeypatch, name):
    def pixels():
        figure = FIGURES[name]()
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba()).astype(int)

    fast = pixels()
    monkeypatch.setattr(style, "_minor_ticks_as_lines", lambda _: contextlib.nullcontext())
    # rounding of colours where marks touch the frame
    assert np.abs(fast - pixels()).max() <= 1


def test_drawing_leaves_a_figure_as_it_was():
    figure = FIGURES["closure"]()
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    before = [axis.get_minor_locator() for axis in axes], [len(ax.get_children()) for ax in figure.axes]
    figure.canvas.draw()
    after = [axis.get_minor_locator() for axis in axes], [len(ax.get_children()) for ax in figure.axes]
    assert after == before


@pytest.mark.parametrize("format", ["png", "pdf"])
def test_a_formula_is_parsed_once_for_all_figures(monkeypatch, format):
    parsed, parse = [], MathTextParser.parse
    monkeypatch.setattr(style, "_FORMULAS", {})
    monkeypatch.setattr(
        MathTextParser, "parse", lambda self, s, *a, **k: (parsed.append(s), parse(self, s, *a, **k))[1]
    )
    FIGURES["toys"]().savefig(io.BytesIO(), format=format)
    first = len(parsed)
    FIGURES["toys"]().savefig(io.BytesIO(), format=format)
    assert first > 0
    assert len(parsed) == first


def test_nothing_blinded_is_drawn(figures):
    top, pulls = figures["spectrum_blind"].axes
    for line in top.lines:
        # the fit may cross the window, points may not
        if line.get_marker() not in ("None", None, ""):
            assert not [x for x in line.get_xdata() if WINDOW[0] < x < WINDOW[1]]
    for bars in (c for c in top.collections if isinstance(c, LineCollection)):
        assert not [s for s in bars.get_segments() if len(s) and WINDOW[0] < s[:, 0].mean() < WINDOW[1]]
    (steps,) = [p for p in pulls.patches if isinstance(p, StepPatch)]
    values, edges, _ = steps.get_data()
    inside = (edges[:-1] >= WINDOW[0]) & (edges[1:] <= WINDOW[1])
    assert inside.any()
    assert not values[inside].any()
    words = [t.get_text() for t in top.get_legend().get_texts()]
    assert "blinded" in words
    assert any("observed blind" in w for w in words)


def test_control_histogram_hides_the_windows(figures):
    for line in (p.get_data() for p in figures["control"].axes[0].patches if isinstance(p, StepPatch)):
        inside = (line.edges[:-1] < WINDOW[1]) & (line.edges[1:] > WINDOW[0])
        assert np.isnan(line.values[inside]).all()
        assert np.isfinite(line.values[~inside]).all()


def test_merged_bins_respect_the_window_and_keep_events():
    fine = make_spectrum(0.1, blind=True)
    merged = plots.merge_bins(fine, 7)
    assert len(merged.counts) < len(fine.counts)
    assert set(WINDOW) <= set(merged.edges)
    assert np.nansum(merged.counts) == np.nansum(fine.counts)
    assert merged.expected.sum() == pytest.approx(fine.expected.sum())
    inside = (merged.edges[:-1] >= WINDOW[0]) & (merged.edges[1:] <= WINDOW[1])
    np.testing.assert_array_equal(np.isnan(merged.counts), inside)
    assert plots.merge_bins(fine, 1) is fine


def test_poisson_interval_is_garwoods():
    low, high = plots.poisson_interval([0, 1, 7, np.nan])
    tail = norm.sf(1)
    assert low[0] == 0
    assert high[0] == pytest.approx(1.8410, abs=1e-4)
    for n, a, b in zip((1, 7), low[1:], high[1:], strict=False):
        assert poisson.sf(n - 1, a) == pytest.approx(tail)
        assert poisson.cdf(n, b) == pytest.approx(tail)
    assert np.isnan(low[3])
    assert np.isnan(high[3])


def _lab(colours, sight):
    """CIELAB of colours as seen with the linear-RGB matrix ``sight``."""
    rgb = np.array([to_rgb(c) for c in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(sight).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize(
    "sight",
    [
        np.eye(3),
        # no red, green, blue cones: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009) 1291
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
)
def test_colours_are_told_apart(sight):
    lab = _lab(plots.PALETTE, sight)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(len(lab), 1)]
    assert distance.min() > 25


def words_of(figure):
    return [t.get_text() for t in figure.findobj(Text)]


def test_the_diagram_says_which_sideband_events_measure_a_cut(figures):
    words = " ".join(words_of(figures["split"]))
    assert "the fit after a cut uses only the closure events" in words
    assert "efficiency of each cut" in words


def test_densities_have_units_and_factors(figures):
    labels = [ax.get_ylabel() for ax in figures["closure_grid"].axes if "templ." not in ax.get_ylabel()]
    assert labels == [
        r"Normalised [$\mathrm{10^{-3}}$ / GeV]",
        r"Normalised [$\mathrm{10^{-3}}$ / GeV]",
        *["Normalised density"] * 3,
    ]
    coarse = plots.make_closure("x [GeV]", np.linspace(0, 3, 300), np.linspace(0, 3, 300))
    assert plots.feature_closure(coarse, STAMP).axes[0].get_ylabel() == "Normalised [1 / GeV]"
    assert [ax.get_ylabel() for ax in figures["training"].axes] == [
        "Loss per event",
        "Learning rate\n" + r"[$\mathrm{10^{-3}}$]",
    ]


def test_the_pseudo_window_is_drawn_at_its_own_mass():
    point = plots.QualityPoint((3600, 4000), (0.52, 0.004), (0.505, 0.004), (0.523, 0.004), (4200, 4600))
    fig = plots.template_quality([point], STAMP)
    (at,) = [line.get_xdata()[0] for line in fig.axes[0].lines if 0.523 in np.asarray(line.get_ydata())]
    assert 4380 < at < 4440
    assert fig.axes[0].get_xlim()[1] > 4600


def test_dots_alone_say_where_background_is_scarce(figures):
    for name in ("sic", "roc"):
        (ax,) = figures[name].axes
        assert "under 10 background events" in [t.get_text() for t in ax.get_legend().get_texts()]
    assert not [p for p in figures["sic"].axes[0].patches if isinstance(p, Rectangle)]


def test_a_fit_is_judged_by_its_likelihood_ratio(figures):
    words = " ".join(words_of(figures["spectrum"]))
    assert "2NLLR/ndof" in words
    assert "chi" not in words
    assert "chi" in " ".join(words_of(figures["closure"]))


def test_nulls_are_marked_as_not_quoted(figures):
    (legend,) = figures["scan"].legends
    assert "not quoted" in [t.get_text() for t in legend.get_texts()]
    ax = figures["scan"].axes[0]
    assert any(
        line.get_markerfacecolor() == "none" and min(line.get_ydata()) > 1 for line in ax.lines if len(line.get_ydata())
    )
    full = plots.local_p_scan(make_points(null=False), STAMP)
    assert "not quoted" not in [t.get_text() for t in full.legends[0].get_texts()]


def test_global_p_says_when_it_is_a_bound():
    assert r"measured $p \leq" in GLOBAL.text
    assert r"z \geq" in GLOBAL.text
    assert "2000" in GLOBAL.text
    assert r"4.07}$ (extrapolated)" in GLOBAL.text
    measured = plots.GlobalP(0.02, 2.05, (0.015, 0.026), False, 2000, exceeding=39, extrapolated=0.019).text
    assert r"\leq" not in measured
    assert "extrapolated" not in measured
    assert "[" in measured
    assert plots.GlobalP().text == "global p: not quoted"
    assert plots.GlobalP(reason="the run is blinded").text == "global p: not quoted (the run is blinded)"


def test_extreme_p_values_are_drawn():
    fig = plots.local_p_scan([plots.LocalP(WINDOW, 0.01, 0.0), plots.LocalP(WINDOW, 1.0, 1.0)], STAMP)
    fig.canvas.draw()
    plots.toy_distribution(np.ones(50), 1e-320, STAMP).canvas.draw()


def test_closure_of_equal_samples_is_one():
    values = np.random.default_rng(0).normal(size=500)
    closure = plots.make_closure("x [GeV]", values, values, template_weight=np.full(500, 3.0))
    np.testing.assert_allclose(closure.template, 3 * closure.reference)
    assert closure.outside[0] == pytest.approx(closure.outside[1])


def test_curve_without_known_background_has_no_dots():
    curve = make_roc()
    unknown = type(curve)(curve.signal_efficiency, curve.background_efficiency, float("nan"), float("nan"))
    fig = plots.sic_curve({"x": unknown}, STAMP)
    assert "under 10 background events" not in [t.get_text() for t in fig.axes[0].get_legend().get_texts()]


def test_stamp_has_the_words_of_the_configuration():
    stamp = plots.Stamp.from_config(PlotConfig(label="Open_data 100%", text="a & b", lumi=2.5), 13_600.0)
    fig = plots.toy_distribution(TAILS, None, stamp)
    words = " ".join(t.get_text() for t in [*fig.texts, *fig.axes[0].texts, *fig.axes[0].artists])
    words += " ".join(str(c.get_text()) for c in fig.axes[0].get_children() if hasattr(c, "get_text"))
    assert "Open_data 100%" in words
    assert "13.6" in words
    assert "2.5" in words
    plots.feature_grid(make_closures(2), stamp).canvas.draw()
