"""The resonance fit: pass/fail likelihood, signal shapes, the scan over masses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from iminuit import Minuit
from scipy import special, stats

from drapes_hep import bumphunt as bh
from drapes_hep.bumphunt import pass_fail
from drapes_hep.bumphunt import pass_fail_likelihood as likelihood
from drapes_hep.bumphunt.resonance import largest
from drapes_hep.bumphunt.signal_shapes import signal_source
from drapes_hep.config import SignalShapeConfig, make_config
from drapes_hep.errors import ConfigError, FitError, InputError
from drapes_hep.events.chunks import split
from drapes_hep.events.readers import read_columns, scan
from drapes_hep.events.skims import write_skim
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import bin_model, fit_spectrum

WINDOW = Window(3300, 3700, 2700, 6000)
WINDOWS = tuple(Window(lo, lo + 400, 2700, 6000) for lo in range(2900, 4301, 200))
EDGES = spectrum_edges((2700, 6000), 20, WINDOWS)
CENTRE = 0.5 * (EDGES[1:] + EDGES[:-1])
U = (2 * CENTRE - EDGES[0] - EDGES[-1]) / (EDGES[-1] - EDGES[0])
INSIDE = WINDOW.in_signal_region(CENTRE)
POINTS = (1.0, 0.1, 0.01, 0.001)
TRUTH = np.array([0.0, 10.0, -5.0, 0.2])
TRUTH[0] += np.log(64_000 / bin_model("dijet4", 13_000, EDGES, TRUTH)[0].sum())
MU, GRADIENT = bin_model("dijet4", 13_000, EDGES, TRUTH)
BACKGROUND = bh.Background(MU, GRADIENT, U)
SIGNAL = bh.gaussian(0.033)


def template(mass):
    return bh.signal_templates(SIGNAL, [mass], EDGES)[0]


def cut_counts(mu, efficiency, passed, failed, shape, share):
    """Return expected counts of a cut that is flat in mass: one fit."""
    c = np.where(INSIDE, 1.0, share)
    n = c * (mu * efficiency + passed * shape)
    return bh.PassFailCounts(n[None], (mu + (passed + failed) * shape - n)[None], c[None], shape[None])


def background_counts(rng, experiments, efficiency, mass, share=0.4):
    """Return background-only experiments."""
    n = rng.poisson(MU, (experiments, len(MU))).astype(float)
    t = np.repeat(template(mass)[None], experiments, axis=0)
    if efficiency == 1:
        return bh.PassFailCounts(n, None, np.ones_like(n), t)
    c = np.repeat(np.where(INSIDE, 1.0, share)[None], experiments, axis=0)
    passed = rng.binomial(n.astype(np.int64), efficiency * c).astype(float)
    return bh.PassFailCounts(passed, n - passed, c, t)


# ---- the likelihood


@pytest.fixture(scope="module")
def rd_masses(data_dir):
    """Masses of the LHC Olympics R&D background and signal after the selection, and the signal's number before it."""
    (chunk,) = split(scan(data_dir / "lhco" / "events_anomalydetection_first100k.features.h5"), chunksize=10**9)
    columns = read_columns(chunk)
    energy = []
    for jet in ("j1", "j2"):
        px, py, pz, m = (np.asarray(columns[f"{name}{jet}"], dtype=float) for name in ("px", "py", "pz", "m"))
        energy.append((px, py, pz, np.sqrt(px**2 + py**2 + pz**2 + m**2)))
    sums = [a + b for a, b in zip(*energy, strict=True)]
    mjj = np.sqrt(sums[3] ** 2 - sums[0] ** 2 - sums[1] ** 2 - sums[2] ** 2)
    pt = [np.hypot(p[0], p[1]) for p in energy]
    eta = [np.arcsinh(p[2] / q) for p, q in zip(energy, pt, strict=True)]
    selected = (np.maximum(*pt) > 1200) & (np.abs(eta[0]) < 2.5) & (np.abs(eta[1]) < 2.5)
    label = np.asarray(columns["label"])
    return mjj[selected & (label == 0)], mjj[selected & (label == 1)], int((label == 1).sum())


ASIMOV = [(900, 1.0, 1.0, 4.38), (900, 0.1, 0.85, 9.5), (900, 0.01, 0.57, 13.0), (900, 0.001, 0.27, 11.0)]
ASIMOV += [(1800, 0.01, 0.57, 19.3)]


@pytest.mark.parametrize(("injected", "cut", "efficiency", "z"), ASIMOV)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_asimov_spectra_give_the_signal_back(rd_masses, injected, cut, efficiency, z, share):
    background, signal, generated = rd_masses
    edges = spectrum_edges((2700, 6000), 20, [WINDOW])
    fit = fit_spectrum(np.histogram(background, edges)[0], edges)
    mu, gradient = bin_model("dijet4", 13_000, edges, fit.parameters)
    centre = 0.5 * (edges[1:] + edges[:-1])
    u = (2 * centre - edges[0] - edges[-1]) / (edges[-1] - edges[0])
    expected = injected / generated * np.histogram(signal, edges)[0]
    shape, total = expected / expected.sum(), expected.sum()
    if cut == 1:
        counts = bh.PassFailCounts((mu + expected)[None], None, np.ones((1, len(mu))), shape[None])
    else:
        c = np.where(WINDOW.in_signal_region(centre), 1.0, share)
        passed = c * (mu * cut + efficiency * expected)
        counts = bh.PassFailCounts(passed[None], (mu + expected - passed)[None], c[None], shape[None])
    fits = bh.fit_pass_fail(bh.Background(mu, gradient, u), counts)
    assert fits.converged.all()
    assert fits.signal[0] == pytest.approx(efficiency * total, rel=0.02)
    if share == 0.4:
        assert fits.z[0] == pytest.approx(z, rel=0.05)
    else:  # more sidebands can only help; the reference is of 0.4
        assert fits.z[0] >= z - 0.05


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_minimum_is_that_of_an_independent_minimiser(share):
    rng = np.random.default_rng(5)
    mu, t, c = rng.poisson(MU), template(3500), np.where(INSIDE, 1.0, share)
    passed = rng.binomial(mu, 0.05 * np.exp(0.3 * U) * c) + rng.poisson(c * 150 * t)
    failed = mu + rng.poisson(30 * t)
    counts = bh.PassFailCounts(passed[None] * 1.0, failed[None] * 1.0, c[None], t[None])
    fits = bh.fit_pass_fail(BACKGROUND, counts)
    assert fits.degree[0] == 2
    scale = np.linalg.inv(np.linalg.qr(np.sqrt(MU)[:, None] * GRADIENT)[1])

    def objective(x):
        # the shape itself, not its expansion
        spectrum = bin_model("dijet4", 13_000, EDGES, TRUTH + scale @ x[:4])[0]
        eps = np.exp(np.stack([U**0, U, U**2], axis=1) @ x[4:7])
        means = c * (spectrum * eps + x[7] * t), spectrum * (1 - c * eps) + (x[8] + (1 - c) * x[7]) * t
        value = sum(
            special.kl_div(n, np.maximum(mean, 1e-9)).sum() for n, mean in zip((passed, failed), means, strict=True)
        )
        return 2 * value + ((x[5:7] / 1.5) ** 2).sum()

    def minimum(fixed):
        minuit = Minuit(objective, np.array([0.0, 0, 0, 0, np.log(0.05), 0, 0, 0, 0]))
        minuit.strategy, minuit.tol = 2, 1e-4
        minuit.errors = [1.0] * 4 + [0.1] * 3 + [30.0] * 2
        minuit.fixed["x7"] = fixed
        return minuit.migrad()

    full, null = minimum(False), minimum(True)
    assert fits.signal[0] == pytest.approx(full.values["x7"], abs=0.02 * full.errors["x7"])
    assert fits.signal_failing[0] == pytest.approx(full.values["x8"], abs=0.02 * full.errors["x8"])
    assert fits.z[0] == pytest.approx(np.sqrt(null.fval - full.fval), rel=2e-3)


@pytest.mark.parametrize("degree", [None, 2, 3])
@pytest.mark.parametrize("signal", [150.0, -900.0, -4000.0])
@pytest.mark.parametrize("second", [False, True])
def test_score_and_information_are_those_of_the_means(degree, signal, second):
    basis = GRADIENT @ np.linalg.inv(np.linalg.qr(np.sqrt(MU)[:, None] * GRADIENT)[1])
    design = np.empty((len(U), 0)) if degree is None else U[:, None] ** np.arange(degree + 1)
    model = likelihood.Model(MU, basis, design, 1 + second)
    data = cut_counts(MU, 0.01, 0, 0, template(3500), 0.4)
    observed = (data.passed, data.failed) if degree is not None else (data.passed,)
    templates = np.stack([template(3500), template(4100)][: 1 + second])[None]
    counts = likelihood.Counts(observed, data.share, templates, np.full(1, -2000.0))
    p = np.zeros(model.size)
    p[:4] = (3, -2, 1, 0.5)
    if degree is not None:
        p[4 : 5 + degree] = (np.log(0.01), 0.3, -0.2, 0.1)[: degree + 1]
    p[model.passing :] = (signal, 0.3 * signal, 70, 500)[: model.size - model.passing]

    of_counts = likelihood.PassFailLikelihood.of(model, counts)

    def values(x):
        parts = of_counts.state(x[None])
        value = of_counts.objective(x[None], parts)
        return value[0], np.concatenate([part.mean[0] for part in parts])

    def derivative(k, of):
        step = 1e-5 * max(1.0, abs(p[k])) * (np.arange(model.size) == k)
        return (values(p + step)[of] - values(p - step)[of]) / (2 * step.max())

    parts = of_counts.state(p[None])
    score, information = of_counts.score_and_information(p[None], parts)
    np.testing.assert_allclose(score[0], [-derivative(k, 0) for k in range(model.size)], rtol=1e-4, atol=1e-3)
    mean = np.concatenate([part.mean[0] for part in parts])
    assert (mean > 0).all()
    gradient = np.stack([derivative(k, 1) for k in range(model.size)])
    expected = gradient / mean @ gradient.T + np.diag(model.precision)
    # the penalty on a signal below -2000, of width 200
    expected[model.passing, model.passing] += (signal < -2000) / 200.0**2
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(information[0] / scale[:, None] / scale, expected / scale[:, None] / scale, atol=1e-5)


def test_a_fit_does_not_depend_on_its_batch():
    rng = np.random.default_rng(11)
    counts = background_counts(rng, pass_fail._BLOCK + 7, 0.01, 4200)
    together = bh.fit_pass_fail(BACKGROUND, counts)
    for i in (0, 5, pass_fail._BLOCK + 3):
        alone = bh.fit_pass_fail(BACKGROUND, counts[i : i + 1])
        for name, values in vars(alone).items():
            np.testing.assert_allclose(values[0], getattr(together, name)[i], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("efficiency", [1.0, 0.01])
def test_means_stay_positive_below_a_deficit(efficiency):
    t = template(3500)
    counts = (
        cut_counts(MU, efficiency, 0, 0, t, 0.4)
        if efficiency < 1
        else bh.PassFailCounts(MU[None], None, 0 * MU[None] + 1, t[None])
    )
    hole = counts.passed.copy()
    hole[:, np.abs(CENTRE - 3500) < 150] = 0.0
    fits = bh.fit_pass_fail(BACKGROUND, replace(counts, passed=hole))
    assert (fits.background + fits.peak > 0).all()
    assert fits.signal[0] < 0
    assert np.isfinite(fits.z[0])
    assert fits.z[0] < -5


@pytest.mark.parametrize("efficiency", POINTS)
def test_z_without_a_signal_is_standard_normal(efficiency):
    fits = bh.fit_pass_fail(BACKGROUND, background_counts(np.random.default_rng(17), 300, efficiency, 3500))
    assert fits.converged.all()
    assert abs(fits.z.mean()) < 3.5 / np.sqrt(300)
    assert abs(fits.z.std() - 1) < 3.5 / np.sqrt(600)
    # the errors that are quoted are the spread
    assert np.std(fits.signal / fits.error) == pytest.approx(1.0, abs=3.5 / np.sqrt(600))


def test_the_third_degree_is_for_an_efficiency_that_needs_it():
    eps = 0.01 * np.exp(0.9 * (5 * U**3 - 3 * U) / 2)
    c, t = np.ones_like(MU), template(3500)
    counts = bh.PassFailCounts(
        np.stack([MU * 0.01, MU * eps]), np.stack([MU * 0.99, MU * (1 - eps)]), np.stack([c, c]), np.stack([t, t])
    )
    fits = bh.fit_pass_fail(BACKGROUND, counts)
    np.testing.assert_array_equal(fits.degree, [2, 3])
    assert np.abs(fits.z).max() < 0.3


def test_goodness_of_fit_tells_signal_and_background_apart():
    counts = cut_counts(MU, 0.01, 1500, 100, template(3500), 0.4)
    fits = bh.fit_pass_fail(BACKGROUND, counts)
    assert fits.p_signal[0] > 0.999
    assert fits.p_background[0] < 1e-3


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_a_hidden_or_negative_bin_is_refused(bad):
    counts = background_counts(np.random.default_rng(1), 1, 1.0, 3500)
    counts.passed[0, 40] = bad
    with pytest.raises(FitError, match="hidden, negative or not finite"):
        bh.fit_pass_fail(BACKGROUND, counts)


# ---- signal shapes


@pytest.mark.parametrize("mass", [2700.0, 3500.0, 6000.0])
def test_a_template_sums_to_the_fraction_inside_the_range(mass):
    sigma = 0.033 * mass
    inside = stats.norm.cdf(6000, mass, sigma) - stats.norm.cdf(2700, mass, sigma)
    assert template(mass).sum() == pytest.approx(inside, rel=1e-12)


def test_a_resolution_may_depend_on_the_mass():
    shape = bh.gaussian((0.03, 20.0))
    np.testing.assert_allclose(shape.resolution(np.array([2000.0, 5000.0])), [80.0, 170.0])
    expected = np.diff(stats.norm.cdf(EDGES, 4000, 140))
    np.testing.assert_allclose(bh.signal_templates(shape, [4000], EDGES)[0], expected, atol=1e-14)


def test_the_crystal_ball_is_the_integral_of_its_density():
    a, n, b, k = 1.2, 2.5, 1.8, 6.0
    shape = bh.crystal_ball(0.04, (a, n, b, k))
    sigma = 0.04 * 3500

    def density(t):
        core = np.exp(-0.5 * np.clip(t, -a, b) ** 2)
        low = (1 + a / n * np.maximum(-t - a, 0)) ** -n
        return core * low * (1 + b / k * np.maximum(t - b, 0)) ** -k

    t = np.linspace(-4000, 4000, 8_000_001)
    total = np.trapezoid(density(t), t)
    nodes = np.linspace(EDGES[:-1], EDGES[1:], 201)
    expected = np.trapezoid(density((nodes - 3500) / sigma), nodes / sigma, axis=0) / total
    np.testing.assert_allclose(bh.signal_templates(shape, [3500], EDGES)[0], expected, rtol=2e-3)


def test_far_tails_make_the_crystal_ball_a_gaussian():
    shape = bh.crystal_ball(0.033, (8.0, 5.0, 8.0, 5.0))
    np.testing.assert_allclose(bh.signal_templates(shape, [3500], EDGES)[0], template(3500), atol=1e-12)


def test_a_sample_is_scaled_to_another_mass():
    quantiles = special.ndtri((np.arange(40_000) + 0.5) / 40_000)
    shape = bh.sample_shape(3500 * (1 + 0.033 * quantiles), np.ones(40_000), 3500)
    for mass in (3500, 4700):
        np.testing.assert_allclose(bh.signal_templates(shape, [mass], EDGES)[0], template(mass), atol=2e-5)
    assert shape.resolution(np.array(4000.0)) == pytest.approx(0.033 * 4000, rel=1e-3)


def test_weights_of_a_sample_count():
    masses = np.concatenate([np.linspace(3300, 3400, 500), np.linspace(3600, 3700, 500)])
    shape = bh.sample_shape(masses, np.repeat([3.0, 1.0], 500), 3500)
    t = bh.signal_templates(shape, [3500], EDGES)[0]
    assert t[CENTRE < 3500].sum() == pytest.approx(0.75, abs=1e-3)


def skim(path, masses, weight=1.0):
    write_skim(path, {"event_id": np.arange(len(masses)), "mjj": masses, "weight": np.full(len(masses), weight)})
    return SignalShapeConfig(shape="sample", sample=str(path), mass=3500)


def test_a_sample_is_read_from_a_skim(tmp_path):
    masses = 3500 + 115.5 * np.random.default_rng(1).normal(size=500)
    config = skim(tmp_path / "events.parquet", masses)
    shape = bh.find_signal(config)
    assert shape.title == "sample events.parquet of 3500 GeV"
    expected = bh.sample_shape(masses, np.ones(500), 3500)
    np.testing.assert_allclose(bh.signal_templates(shape, [3600], EDGES), bh.signal_templates(expected, [3600], EDGES))


def gaussian_sample(mass, width, size=20_000):
    quantiles = special.ndtri((np.arange(size) + 0.5) / size)
    return mass * (1 + width * quantiles), np.ones(size)


SAMPLES = {3000.0: gaussian_sample(3000, 0.05), 4000.0: gaussian_sample(4000, 0.03, 30_000)}


def test_a_shape_between_two_samples_is_between_them():
    shape = bh.interpolated_shape(SAMPLES)
    for mass, width in ((3250, 0.045), (3500, 0.04), (3900, 0.032)):
        expected = bh.signal_templates(bh.gaussian(width), [mass], EDGES)[0]
        np.testing.assert_allclose(bh.signal_templates(shape, [mass], EDGES)[0], expected, atol=1e-4)
        assert shape.resolution(np.array(mass)) == pytest.approx(width * mass, rel=1e-3)


def test_a_shape_keeps_a_tail_between_two_samples():
    # a mixture of both, each with its peak, would have two peaks
    rng = np.random.default_rng(2)
    low, high = (m * (1 - 0.05 * rng.exponential(size=20_000)) for m in (3000, 4000))
    t = bh.signal_templates(bh.interpolated_shape({3000: (low, low**0), 4000: (high, high**0)}), [3500], EDGES)[0]
    expected = np.diff(np.exp(np.minimum(EDGES / 3500 - 1, 0) / 0.05))
    np.testing.assert_allclose(t, expected, atol=4e-3)


def test_at_the_samples_the_shape_is_their_histogram():
    rng = np.random.default_rng(3)
    samples = {m: (rng.normal(m, 0.04 * m, 3000), rng.uniform(0.5, 2, 3000)) for m in (3000.0, 3600.0, 4200.0)}
    shape = bh.interpolated_shape(samples)
    for mass, (m, weights) in samples.items():
        t = bh.signal_templates(shape, [mass], EDGES)[0]
        alone = bh.signal_templates(bh.sample_shape(m, weights, mass), [mass], EDGES)[0]
        np.testing.assert_array_equal(t, alone)
        # to the event that is spread over each edge
        counted = np.histogram(m, EDGES, weights=weights)[0] / weights.sum()
        np.testing.assert_allclose(t, counted, atol=2 * weights.max() / weights.sum())


@pytest.mark.parametrize(("mass", "nearest"), [(2800.0, 3000.0), (5000.0, 4000.0)])
def test_beyond_the_samples_the_nearest_is_scaled(mass, nearest):
    t = bh.signal_templates(bh.interpolated_shape(SAMPLES), [mass], EDGES)
    scaled = bh.signal_templates(bh.sample_shape(*SAMPLES[nearest], nearest), [mass], EDGES)
    np.testing.assert_array_equal(t, scaled)


def test_several_samples_are_read_in_any_order(tmp_path):
    rng = np.random.default_rng(1)
    files = {}
    for mass in (3000, 3500, 4000):
        skim(tmp_path / f"{mass}.parquet", rng.normal(mass, 0.03 * mass, 400))
        files[str(tmp_path / f"{mass}.parquet")] = mass
    ours = SignalShapeConfig(shape="sample", sample=files)
    theirs = SignalShapeConfig(shape="sample", sample=dict(reversed(files.items())))
    assert signal_source(ours) == signal_source(theirs)
    first, second = (bh.find_signal(config) for config in (ours, theirs))
    assert first.title == second.title
    assert first.title == (
        "samples of 3000, 3500 and 4000 GeV, interpolated; below 3000 and above 4000 GeV the nearest, scaled"
    )
    masses = [2900, 3200, 3500, 3900, 4500]
    np.testing.assert_array_equal(*(bh.signal_templates(shape, masses, EDGES) for shape in (first, second)))
    # the masses belong to the source: other masses are another shape
    swapped = dict(zip(files, (3000, 4000, 3500), strict=True))
    assert signal_source(SignalShapeConfig(shape="sample", sample=swapped)) != signal_source(ours)


@pytest.mark.parametrize(
    ("masses", "weight", "problem"),
    [
        (np.full(20, 3500.0), 1.0, "has 20 events; a signal shape needs 100"),
        (np.full(200, 3500.0), 1.0, "relative resolution"),
        (np.full(200, np.nan), 1.0, "mjj that is not a positive number"),
        (np.linspace(3300, 3700, 200), -1.0, "a weight that is negative"),
        (np.linspace(3300, 3700, 200), 0.0, "no weight at all"),
    ],
)
def test_a_sample_that_is_no_resonance_is_refused(tmp_path, masses, weight, problem):
    with pytest.raises(InputError, match=problem):
        bh.find_signal(skim(tmp_path / "events.parquet", masses, weight))


def test_the_source_of_a_sample_changes_with_its_content(tmp_path):
    first = signal_source(skim(tmp_path / "events.parquet", np.linspace(3300, 3700, 200)))
    second = signal_source(skim(tmp_path / "events.parquet", np.linspace(3300, 3701, 200)))
    assert first != second
    assert signal_source(SignalShapeConfig()) is None
    with pytest.raises(ConfigError, match=r"hunt\.signal\.sample .*absent\.parquet: cannot be read"):
        signal_source(SignalShapeConfig(shape="sample", sample=str(tmp_path / "absent.parquet"), mass=3500))


MINIMAL = {"name": "x", "data": {"path": "a.root"}}


@pytest.mark.parametrize(
    ("signal", "problem"),
    [
        ({"width": 0.0}, "hunt.signal.width"),
        ({"width": 1e-4}, "sigma/m is 0.0001 to 0.0001 over mass.range"),
        ({"width": [0.01, 5000]}, "sigma/m is"),
        ({"width": [0.0, 0.0]}, "sigma/m is 0 to 0"),
        ({"width": [0.01, 1, 2]}, "hunt.signal.width"),
        ({"shape": "crystal_ball"}, "tails is required by shape crystal_ball"),
        ({"tails": [1, 2, 1, 2]}, "tails is required by shape crystal_ball, and is only for it"),
        ({"shape": "crystal_ball", "tails": [1, 1, 1, 2]}, "n must be above 1"),
        ({"shape": "crystal_ball", "tails": [1, 2, 1]}, "hunt.signal.tails"),
        ({"shape": "sample"}, "sample is required by shape sample"),
        (
            {"shape": "sample", "sample": "a.parquet"},
            "mass, of the resonance in the sample, is required by shape sample",
        ),
        ({"mass": 3500}, "mass, of the resonance in the sample, is required by shape sample, and is only for it"),
        ({"sample": {"a.parquet": 3000}}, "sample is required by shape sample, and is only for it"),
        ({"shape": "sample", "sample": {"a.parquet": 3000}, "mass": 3000}, "mass is for a single sample"),
        ({"shape": "sample", "sample": {"a.parquet": 3000, "b.parquet": 3000}}, "two files have the same mass"),
        ({"shape": "sample", "sample": {"a.parquet": -1}}, "hunt.signal.sample"),
        ({"shape": "sample", "sample": {}}, "hunt.signal.sample"),
        ({"shape": "voigt"}, "hunt.signal.shape"),
        ({"widht": 0.03}, "did you mean 'hunt.signal.width'"),
    ],
)
def test_a_wrong_signal_is_one_line(signal, problem):
    with pytest.raises(ConfigError) as caught:
        make_config({**MINIMAL, "hunt": {"signal": signal}})
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_samples_place_is_absolute():
    config = make_config({**MINIMAL, "hunt": {"signal": {"shape": "sample", "sample": "a.parquet", "mass": 3500}}})
    assert config.hunt.signal.sample is not None
    assert config.hunt.signal.sample.startswith("/")
    several = {"shape": "sample", "sample": {"a.parquet": 3000, "b.parquet": 4000}}
    config = make_config({**MINIMAL, "hunt": {"signal": several}})
    assert all(path.startswith("/") for path in config.hunt.signal.sample)
    assert list(config.hunt.signal.sample.values()) == [3000, 4000]


# ---- the scan


def selected(mjj, signal, window, rng, share=0.4, tight=0.57):
    """Count events whose scores are random, the signal's in its own window apart."""
    masses = np.concatenate([mjj, signal])
    tail = rng.uniform(size=len(masses))
    if len(signal) and window.lo <= np.median(signal) < window.hi:
        chosen = rng.uniform(size=len(signal)) < tight
        tail[len(mjj) :][chosen] = rng.uniform(0, 0.01, chosen.sum())
    used = window.in_signal_region(masses) | (rng.uniform(size=len(masses)) < share)
    return bh.count_selected(masses, tail, EDGES, POINTS, (), used, share)


def test_masses_cover_the_fitted_range_in_steps_of_half_the_resolution():
    masses = bh.scan_masses(SIGNAL, 2700, 6000)
    assert masses[0] == 2700
    np.testing.assert_allclose(np.diff(masses), 0.5 * 0.033 * masses[:-1])
    assert 6000 - 0.5 * 0.033 * 6000 < masses[-1] <= 6000


@pytest.fixture(scope="module")
def injected(rd_masses):
    background, signal, generated = rd_masses
    rng = np.random.default_rng(2)
    # 3600 before the selection
    chosen = rng.permutation(signal)[: round(3600 * len(signal) / generated)]
    counts = [selected(background, chosen, window, rng) for window in WINDOWS]
    return counts, bh.scan_resonances(WINDOWS, counts, bh.sample_shape(signal, np.ones(len(signal)), 3500))


def test_a_strong_signal_speaks_in_its_window(injected):
    counts, result = injected
    assert [bh.hunt_window(count, window).fit.good for count, window in zip(counts, WINDOWS, strict=True)].count(
        False
    ) >= 4
    speaking = {(p.window, p.background_efficiency): p for p in largest(result.points)}
    for cut, least in ((0.1, 15), (0.01, 20)):
        point = speaking[WINDOW, cut]
        assert point.z is not None
        assert point.z > least
        assert abs(point.mass - 3500) < point.resolution
        assert point.p_signal is not None
        assert point.p_signal > 1e-3 > (point.p_background or 0.0)


def test_a_strong_signal_silences_the_fits_of_other_masses(injected):
    # their models do not have it
    far = [p for p in injected[1].points if p.window in (WINDOWS[0], *WINDOWS[4:])]
    assert all("does not describe the spectrum" in (p.reason or "") for p in far)


def test_with_a_strong_signal_included_every_window_speaks(injected):
    _, result = injected
    assert result.conditional is not None
    included = result.conditional.included
    assert included.mass == pytest.approx(3500, abs=15)  # between the masses of the scan, 57 GeV apart
    points = result.conditional.points
    near = [p for p in points if abs(p.mass - included.mass) <= included.resolution]
    assert {p.reason for p in near} == {"it is not resolved from the included resonance"}
    quoted = [p for p in points if p.z is not None]
    assert len(quoted) + len(near) == len(points)
    keys = {(p.window, p.background_efficiency) for p in quoted}
    assert keys >= {(w, e) for w in WINDOWS for e in POINTS[1:]} | {(None, 1.0)}
    assert min(p.z for p in quoted) > -3
    assert max(p.z for p in quoted) < 3.5


def test_deficits_beside_a_resonance_go_when_it_is_included(rd_masses):
    background, signal, generated = rd_masses
    rng = np.random.default_rng(3)
    chosen = rng.permutation(signal)[: round(900 * len(signal) / generated)]
    counts = [selected(background, chosen, window, rng) for window in WINDOWS]
    result = bh.scan_resonances(WINDOWS, counts, SIGNAL)
    assert result.conditional is not None
    low = min((p for p in result.points if p.z is not None), key=lambda p: p.z)
    # weak enough for other masses to describe the spectrum, strong enough to pull their background up
    assert low.z < -4
    assert abs(low.mass - 3500) < 4 * low.resolution
    quoted = [p.z for p in result.conditional.points if p.z is not None]
    assert min(quoted) > -3
    assert max(quoted) < 3


def test_the_spectrum_with_a_strong_signal_has_no_deficit_beside_it(injected):
    counts, result = injected
    best = next(p for p in largest(result.points) if p.window is None)
    assert best.spectrum is not None
    assert best.peak is not None
    for window, count in zip(WINDOWS, counts, strict=True):
        inside = window.in_signal_region(CENTRE)
        expected = (best.spectrum + best.peak)[inside].sum()
        assert (count.nested[0][inside].sum() - expected) / np.sqrt(expected) > -3


def test_a_resonance_that_no_window_contains_is_seen():
    t = template(5200)
    strength = 5.0 / np.sqrt((t**2 / MU).sum())
    rng = np.random.default_rng(8)
    centre = np.repeat(CENTRE, np.round(MU).astype(int))
    for _ in range(4):  # the background absorbs a part of the signal: by hand, up to 5 standard deviations
        signal = 5200 * (1 + 0.033 * special.ndtri((np.arange(round(strength)) + 0.5) / round(strength)))
        counts = [selected(centre, signal, WINDOW, rng)]
        result = bh.scan_resonances([WINDOW], counts, SIGNAL)
        best = max(largest(result.points), key=lambda p: p.z or 0.0)
        if (best.z or 0.0) > 5:
            break
        strength *= 5.05 / (best.z or 1.0)
    assert best.z == pytest.approx(5.05, abs=0.15)
    assert best.window is None
    assert abs(best.mass - 5200) < best.resolution
    assert any(low <= 5200 < high for low, high in result.unsearched)


def test_each_mass_uses_the_windows_that_contain_it():
    rng = np.random.default_rng(4)
    centre = np.repeat(CENTRE, rng.poisson(MU))
    counts = [selected(centre, np.empty(0), window, rng) for window in WINDOWS[:2]]
    result = bh.scan_resonances(WINDOWS[:2], counts, SIGNAL)
    assert result.conditional is None  # nothing is above 5
    masses = bh.scan_masses(SIGNAL, 2700, 6000)
    wanted = [(m, None, 1.0) for m in masses]
    wanted += [(m, w, e) for w in WINDOWS[:2] for e in POINTS[1:] for m in masses if w.lo <= m < w.hi]
    assert [(p.mass, p.window, p.background_efficiency) for p in result.points] == wanted
    assert all((p.z is None) == (p.reason is not None) for p in result.points)
    assert all((p.degree is None) == (p.window is None) for p in result.points if p.z is not None)


def test_too_few_events_have_no_result_but_a_reason():
    rng = np.random.default_rng(4)
    centre = np.repeat(CENTRE, rng.poisson(MU))
    count = selected(centre, np.empty(0), WINDOW, rng)
    passing = count.nested[-1][~INSIDE].sum()
    result = bh.scan_resonances((WINDOW,), (count,), SIGNAL, min_events=int(passing) + 1)
    tight = [p for p in result.points if p.background_efficiency == 0.001]
    assert tight
    for p in tight:
        assert (p.signal, p.z, p.error) == (None, None, None)
        assert p.reason == f"fewer than {int(passing) + 1} events outside the window pass"
    assert all(p.z is not None for p in result.points if p.background_efficiency == 0.01)


def test_a_spectrum_that_no_signal_describes_has_no_result():
    rng = np.random.default_rng(4)
    steps = MU * np.where((np.arange(len(MU)) // 10) % 2, 1.3, 0.7)
    count = selected(np.repeat(CENTRE, rng.poisson(steps)), np.empty(0), WINDOW, rng)
    result = bh.scan_resonances((WINDOW,), (count,), SIGNAL)
    assert {p.z for p in result.points if p.window is None} == {None}
    assert all("does not describe the spectrum" in (p.reason or "") for p in result.points if p.window is None)


def test_hidden_bins_are_fitted_by_nothing():
    rng = np.random.default_rng(4)
    centre = np.repeat(CENTRE, rng.poisson(MU))
    count = bh.count_selected(centre, rng.uniform(size=len(centre)), EDGES, POINTS, (WINDOW,))
    result = bh.scan_resonances((WINDOW,), (count,), SIGNAL)
    assert result.points == ()
    assert result.reason == "the spectrum has hidden bins: the run is blinded"


def test_an_empty_spectrum_has_a_reason():
    count = bh.count_selected([3500.0], [0.5], EDGES, POINTS)
    result = bh.scan_resonances((WINDOW,), (count,), SIGNAL)
    assert result.points == ()
    assert "cannot constrain" in (result.reason or "")
