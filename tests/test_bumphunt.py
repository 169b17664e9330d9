"""The hunt: counts, significances against closed forms, pulls and p-values on toys, blinding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from references import fit_spectrum_newton
from scipy import optimize, special, stats

from drapes_hep import bumphunt as bh
from drapes_hep.bumphunt import expectation as passing
from drapes_hep.errors import FitError
from drapes_hep.regions import Window
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import deviance_p_value

WINDOWS = tuple(Window(lo, lo + 400, 2700, 6000) for lo in (3100, 3300, 3500, 4300))
EDGES = spectrum_edges((2700, 6000), 20, WINDOWS)
POINTS = (1, 0.1, 0.01, 0.001)
TRUTH = np.array([0.0, 10.0, -5.0, 0.2])
TRUTH[0] += np.log(100_000 / bin_model("dijet4", 13_000, EDGES, TRUTH)[0].sum())
FIT = fit_spectrum(bin_model("dijet4", 13_000, EDGES, TRUTH)[0], EDGES)


def dataset(rng, signal=0, mean=100_000):
    """Masses, and per window tails that the windows share in part and that drift with the mass."""
    n = rng.poisson(mean)
    m = np.concatenate([draw(FIT, 2700, 6000, rng.uniform(size=n)), rng.normal(3500, 60, signal)])
    shared, drift = rng.normal(size=len(m)), 0.1 * (m - 3500) / 1000
    tails = special.ndtr((shared + rng.normal(size=(len(WINDOWS), len(m)))) / np.sqrt(2) + drift)
    tails[1, n:] = rng.uniform(0, 0.02, signal)
    return m, tails


def search(m, tails, toys, seed=1, **options):
    counts = [bh.count_selected(m, tail, EDGES, POINTS) for tail in tails]
    hunts = [bh.hunt_window(count, window) for count, window in zip(counts, WINDOWS, strict=True)]
    model = bh.background_model(WINDOWS, counts, bh.set_overlaps(m, tails, EDGES, POINTS))
    return hunts, model, bh.global_significance(hunts, model, toys, np.random.default_rng(seed), **options)


@pytest.fixture(scope="module")
def background():
    return dataset(np.random.default_rng(3))


@pytest.fixture(scope="module")
def model(background):
    return search(*background, 1)[1]


# ---- counting


def test_counts(background):
    m, tails = background
    count = bh.count_selected(m, tails[0], EDGES, (0.01, 0.1))
    assert count.efficiencies == (1.0, 0.1, 0.01)
    for row, cut in zip(count.nested, count.efficiencies, strict=True):
        np.testing.assert_array_equal(row, np.histogram(m[(tails[0] <= cut) & (m < 6000)], EDGES)[0])
    np.testing.assert_array_equal(bh.score_bin([0.0, 0.01, 0.0101, 0.1, 0.5, 1.0], (0.1, 0.01)), [2, 2, 1, 1, 0, 0])
    for bad in (np.nan, 1.5, -0.1):
        with pytest.raises(FitError, match="scored"):
            bh.score_bin([bad], POINTS)
    with pytest.raises(FitError, match="efficiencies"):
        bh.score_bin([0.5], (0.0, 2.0))


def test_overlaps_are_the_gram_matrix(background):
    m, tails = background
    gram = bh.set_overlaps(m, tails, EDGES, POINTS)
    inside = (m >= 2700) & (m < 6000)
    bins = np.stack([bh.score_bin(tail[inside], POINTS) for tail in tails])
    vectors = np.stack([np.ones(inside.sum()), *(bins[w] == b for w in range(len(tails)) for b in (1, 2, 3))])
    norm = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(gram, vectors @ vectors.T / np.outer(norm, norm), atol=1e-12)
    assert np.linalg.eigvalsh(gram)[0] > -1e-12


# ---- expectation


@pytest.mark.parametrize(
    ("efficiency", "slope", "curve", "part_counted"),
    [
        (0.1, 0, 0, 1),
        (0.1, -1, 0.5, 1),
        (0.01, 0.7, -0.4, 1),
        (0.001, 0.5, 0, 1),
        (0.1, -1, 0.5, 0.4),
        (0.01, 0, 0, 0.4),
    ],
)
def test_pulls(efficiency, slope, curve, part_counted):
    """Degrees chosen anew in every toy: unbiased, with honest widths, whatever is sculpted or counted outside."""
    rng, toys = np.random.default_rng(11), 1500
    bins = passing.window_bins(EDGES, WINDOWS[1])
    inside = bins.inside
    mu, gradient = bin_model("dijet4", 13_000, EDGES, TRUTH)
    share = np.exp(slope * bins.design[:, 1] + curve * bins.design[:, 2])
    share *= efficiency * mu.sum() / (mu * share).sum()
    selected = rng.poisson(mu * share, (toys, len(mu))).astype(float)
    inclusive = rng.poisson(mu * (1 - share), (toys, len(mu))) + selected
    basis = gradient @ np.linalg.inv(np.linalg.qr(np.sqrt(mu[~inside])[:, None] * gradient[~inside])[1])
    fit = passing.fit_poisson(inclusive, basis, np.log(mu), fitted=~inside)
    counted = np.where(inside, selected, rng.binomial(selected.astype(int), part_counted))
    spectra = passing.InclusiveSpectra(fit.expected, basis, fit.covariance)
    part = passing.selected_expectations(counted, spectra, bins, min_events=10, share=part_counted)
    observed = selected[:, inside].sum(axis=1)
    pull = (observed - part.expected) / np.hypot(np.sqrt(part.expected), part.error)
    assert abs(np.nanmean(pull)) < 0.15
    assert np.nanstd(pull) == pytest.approx(1, abs=0.07)
    # p_local of null data is uniform, up to its discreteness (the middle of each step is)
    above, at = (bh.local_significance(observed + i, part.expected, part.error).p for i in (1, 0))
    middle = above + rng.uniform(size=toys) * (at - above)
    assert stats.kstest(middle[np.isfinite(middle)], "uniform").pvalue > 1e-4
    assert np.nanmean(at < 0.0228) < 0.035


def test_events_that_are_not_counted_go_to_the_loosest_row(background):
    m, tails = background
    counted = np.arange(len(m)) % 5 < 2
    some = bh.count_selected(m, tails[0], EDGES, POINTS, (), counted, 0.4)
    every = bh.count_selected(m, tails[0], EDGES, POINTS)
    np.testing.assert_array_equal(some.nested[0], every.nested[0])
    np.testing.assert_array_equal(some.nested[1], np.histogram(m[counted & (tails[0] <= 0.1) & (m < 6000)], EDGES)[0])
    assert some.share == 0.4


def test_no_selection_is_the_inclusive_search():
    """The propagated error of an efficiency of 1 tends to the inclusive fit's own, plus what degree 2 costs."""
    mu, gradient = bin_model("dijet4", 13_000, EDGES, TRUTH)
    bins = passing.window_bins(EDGES, WINDOWS[1])
    fit = fit_spectrum(mu, EDGES, (3300, 3700))
    spectra = passing.InclusiveSpectra(fit.expected[None], gradient, fit.covariance[None])
    value, error = passing.inclusive_expectations(spectra, bins)
    part = passing.selected_expectations(mu[None], spectra, bins, min_events=10)
    assert part.expected[0] == pytest.approx(value[0], rel=1e-3)
    assert 0.9 * error[0] < part.error[0] < 1.6 * error[0]


def test_hunt(background):
    m, tails = background
    window = WINDOWS[1]
    hunt = bh.hunt_window(bh.count_selected(m, tails[1], EDGES, POINTS), window)
    assert hunt.fit.good
    for point, cut in zip(hunt.working_points, POINTS, strict=True):
        assert point.background_efficiency == cut
        assert point.observed == int(((tails[1] <= cut) & window.in_signal_region(m)).sum())
        assert point.fitted_events == int(((tails[1] <= cut) & window.in_sidebands(m)).sum())
        assert (point.degree is None) == (cut == 1)
        assert abs(point.z_local) < 4


def test_few_events_and_poor_fits_say_nothing(background):
    m, tails = dataset(np.random.default_rng(4), mean=3000)
    hunt = bh.hunt_window(bh.count_selected(m, tails[0], EDGES, POINTS), WINDOWS[0])
    tight = hunt.working_points[-1]
    assert tight.fitted_events < 10
    assert (tight.expected, tight.expected_error, tight.p_local, tight.z_local, tight.degree) == (None,) * 5
    assert tight.observed is not None
    assert hunt.working_points[0].p_local is not None

    m, tails = background
    m = np.concatenate([m, np.full(2000, 2950.0)])
    tails = np.concatenate([tails, np.full((len(tails), 2000), 0.5)], axis=1)
    hunts = [
        bh.hunt_window(bh.count_selected(m, tail, EDGES, POINTS), w) for tail, w in zip(tails, WINDOWS, strict=True)
    ]
    assert not hunts[1].fit.good
    for hunt in hunts:
        assert all(p.p_local is None and p.expected is None and p.z_local is None for p in hunt.working_points)
    assert bh.best_working_point(hunts) is None
    with pytest.raises(FitError, match="describes neither the full spectrum nor that outside any window"):
        search(m, tails, 20)


def test_blinding_never_counts(background):
    m, tails = background
    inside = np.zeros(len(m), dtype=bool)
    for window in WINDOWS:
        inside |= window.in_signal_region(m)
    results = []
    for sentinel in (tails, np.where(inside, np.nan, tails)):
        counts = bh.count_selected(m, sentinel[1], EDGES, POINTS, hidden=WINDOWS)
        covered = (EDGES[:-1] >= 3100) & (EDGES[:-1] < 3900) | (EDGES[:-1] >= 4300) & (EDGES[:-1] < 4700)
        np.testing.assert_array_equal(np.isnan(counts.nested), np.broadcast_to(covered, counts.nested.shape))
        results.append(bh.hunt_window(counts, WINDOWS[1], blind=True))
    # a hundred more events inside, or their scores, change nothing
    more = np.concatenate([m, np.full(100, 3500.0)]), np.concatenate([tails[1], np.zeros(100)])
    results.append(bh.hunt_window(bh.count_selected(*more, EDGES, POINTS, hidden=WINDOWS), WINDOWS[1], blind=True))
    for hunt in results:
        assert hunt.working_points == results[0].working_points
        assert all(p.observed is None and p.p_local is None and p.z_local is None for p in hunt.working_points)
        assert all(p.expected is not None for p in hunt.working_points)
    # a selection that was not hidden is still not looked at
    open_counts = bh.hunt_window(bh.count_selected(m, tails[1], EDGES, POINTS), WINDOWS[1], blind=True)
    assert all(p.observed is None and p.p_local is None for p in open_counts.working_points)
    with pytest.raises(FitError, match="blind"):
        bh.background_model(WINDOWS, [counts] * len(WINDOWS), np.eye(13))


def test_bins_must_fit_the_window(background):
    m, tails = background
    edges = np.linspace(2700, 6000, 40)
    with pytest.raises(FitError, match="edges of window"):
        bh.hunt_window(bh.count_selected(m, tails[0], edges, POINTS), WINDOWS[0])


# ---- toys


def test_toys_have_the_means_and_correlations_of_the_model(model):
    ((inclusive, selected),) = bh.draw_toys(model, 1500, np.random.default_rng(5), chunk=1500)
    assert selected.shape == (4, 3, 1500, len(EDGES) - 1)
    for drawn, mean in ((inclusive, model.inclusive), (selected[1, 0], model.selected[1, 0])):
        pull = (drawn.mean(axis=0) - mean) / np.sqrt(mean / 1500)
        assert abs(pull).max() < 4.8
        np.testing.assert_allclose(drawn.var(axis=0).sum() / mean.sum(), 1, atol=0.03)
    gram = model.factor @ model.factor.T
    np.testing.assert_allclose(np.diag(gram), 1)
    low = slice(0, 20)
    centred = [x[:, low] - x[:, low].mean(axis=0) for x in (inclusive, selected[0, 0], selected[1, 0])]
    scaled = [x / x.std(axis=0) for x in centred]
    for (i, a), (j, b) in (((0, 0), (1, 1)), ((0, 0), (2, 4)), ((1, 1), (2, 4))):
        assert np.mean(scaled[i] * scaled[j]) == pytest.approx(gram[a, b], abs=0.03)


def test_counts_of_a_toy_share_events_as_the_data_s_sets_do(background, model):
    """Toys: two counts have the correlation of the overlap that the two sets of events have in the data."""
    gram = bh.set_overlaps(*background, EDGES, POINTS)
    ((inclusive, selected),) = bh.draw_toys(model, 1500, np.random.default_rng(5), chunk=1500)
    # the first 20 bins: means of 30 and more in every set, where the copula loses nothing
    drawn = np.stack([x[:, :20] for x in (inclusive, selected[0, 0], selected[1, 0], selected[2, 0])])
    scaled = (drawn - drawn.mean(axis=1, keepdims=True)) / drawn.std(axis=1, keepdims=True)
    sets = [0, 1, 4, 7]
    # 30,000 pairs: a standard deviation of at most 0.006
    np.testing.assert_allclose(np.einsum("anb,cnb->ac", scaled, scaled) / 30_000, gram[np.ix_(sets, sets)], atol=0.03)


@pytest.fixture(scope="module")
def shared(background):
    """Counts of which the tight ones hold four tenths of the events outside each window, and their toys' model."""
    m, tails = background
    some = np.arange(len(m)) % 5 < 2
    counts = [
        bh.count_selected(m, tail, EDGES, POINTS, (), some | window.in_signal_region(m), 0.4)
        for tail, window in zip(tails, WINDOWS, strict=True)
    ]
    return counts, bh.background_model(WINDOWS, counts, bh.set_overlaps(m, tails, EDGES, POINTS))


def test_toys_have_only_the_counted_share_of_the_events_outside(shared):
    """Toys: as many selected events outside each window as were counted there, all of them inside."""
    counts, model = shared
    for w, (count, window) in enumerate(zip(counts, WINDOWS, strict=True)):
        inside = (EDGES[:-1] >= window.lo - 1e-6) & (EDGES[1:] <= window.hi + 1e-6)
        for b in range(len(POINTS) - 1):
            # a fit with a free normalisation expects what it was given in total
            assert model.selected[w, b, ~inside].sum() == pytest.approx(count.counts[b + 1, ~inside].sum(), rel=1e-6)
        ratio = model.selected[w, 0, inside].sum() / count.counts[1, inside].sum()
        assert ratio == pytest.approx(1, abs=5 / np.sqrt(count.counts[1, inside].sum()) + 0.1)


def test_toys_of_a_share_repeat_the_analysis_of_the_data(shared):
    """Toys: the share of the events outside is taken into account as the hunt does."""
    _, model = shared
    ((inclusive, selected),) = bh.draw_toys(model, 1, np.random.default_rng(6))
    log_p = bh.toy_local_p(model, inclusive, selected)[:, :, 0]
    for w, window in enumerate(WINDOWS):
        disjoint = np.concatenate([inclusive - selected[w].sum(axis=0), selected[w, :, 0]])
        counts = bh.SelectedCounts(EDGES, POINTS, disjoint, np.zeros(len(EDGES) - 1, bool), 0.4)
        points = bh.hunt_window(counts, window).working_points
        # the tolerance is that between MIGRAD and Newton; at 1e-3 the few counted events may be too few
        assert sum(point.p_local is not None for point in points) >= 3
        ours = np.array([np.nan if point.p_local is None else np.log(point.p_local) for point in points])
        np.testing.assert_allclose(log_p[w], ours, atol=2e-3)


def test_toys_follow_the_fit_of_the_full_spectrum(background, model):
    """Toys: under background alone the inclusive means are those of a fit that leaves no window out."""
    counts = np.histogram(background[0], EDGES)[0]
    np.testing.assert_allclose(model.inclusive, fit_spectrum(counts, EDGES).expected, rtol=1e-9)


def test_a_toy_whose_inclusive_fit_is_poor_has_no_p_value(model):
    """Toys: the rule of the hunt on poor fits holds for them."""
    ((inclusive, selected),) = bh.draw_toys(model, 1, np.random.default_rng(6))
    assert np.isfinite(bh.toy_local_p(model, inclusive, selected)[:, :2]).all()
    inclusive[0, (EDGES[:-1] >= 2940) & (EDGES[:-1] < 2960)] += 2000
    assert np.isnan(bh.toy_local_p(model, inclusive, selected)).all()


def test_toys_do_not_depend_on_the_chunk(background):
    calls = []
    one = search(*background, 60, chunk=60)[2]
    two = search(*background, 60, chunk=7, progress=lambda done, toys: calls.append((done, toys)))[2]
    np.testing.assert_allclose(one.toy_log_p, two.toy_log_p, rtol=1e-9)
    assert one.p_global == two.p_global
    assert calls[-1] == (60, 60)
    assert not np.array_equal(one.toy_log_p, search(*background, 60, seed=2)[2].toy_log_p)


def test_toys_repeat_the_analysis_of_the_data(model):
    """One toy, given to the data's own path through MIGRAD, has the same p_local."""
    ((inclusive, selected),) = bh.draw_toys(model, 1, np.random.default_rng(6))
    log_p = bh.toy_local_p(model, inclusive, selected)[:, :, 0]
    for w, window in enumerate(WINDOWS):
        disjoint = np.concatenate([inclusive - selected[w].sum(axis=0), selected[w, :, 0]])
        hunt = bh.hunt_window(bh.SelectedCounts(EDGES, POINTS, disjoint, np.zeros(len(EDGES) - 1, bool)), window)
        for point, value in zip(hunt.working_points, log_p[w], strict=True):
            assert np.log(point.p_local) == pytest.approx(value, abs=2e-3)


def minimised(counts, design, log_mu, fitted, precision):
    """scipy's minimum of the penalised deviance: parameters, objective, inverse information."""
    n, x, offset = counts[fitted], design[fitted], log_mu[fitted]

    def objective(theta):
        mu = np.exp(np.minimum(offset + x @ theta, 50))
        return special.kl_div(n, mu).sum() + 0.5 * theta**2 @ precision, x.T @ (mu - n) + precision * theta

    def information(theta):
        return (x.T * np.exp(np.minimum(offset + x @ theta, 50))) @ x + np.diag(precision)

    start = np.zeros(x.shape[1])
    if precision[1:].any():
        start[0] = np.log(n.sum() / np.exp(offset).sum())
    result = optimize.minimize(
        objective, start, jac=True, hess=information, method="trust-exact", options={"gtol": 1e-9, "maxiter": 500}
    )
    return result.x, result.fun, np.linalg.inv(information(result.x))


def one_by_one(model, w, inclusive, selected):
    """ln p_local of one toy in one window, written down from the formulas with scipy's minimiser."""
    window, share = model.windows[w], model.shares[w]
    inside = (EDGES[:-1] >= window.lo - 1e-6) & (EDGES[1:] <= window.hi + 1e-6)
    out, log_mu = ~inside, np.log(model.inclusive)
    basis = model.gradient @ np.linalg.inv(
        np.linalg.qr(np.sqrt(model.inclusive[out])[:, None] * model.gradient[out])[1]
    )
    theta, half, c = minimised(inclusive, basis, log_mu, out, np.zeros(basis.shape[1]))
    assert deviance_p_value(2 * half, model.inclusive[out], len(theta)) > 1e-3
    mu = np.exp(log_mu + basis @ theta)
    value, g = mu[inside].sum(), mu[inside] @ basis[inside]
    log_p = [local(inclusive[inside].sum(), value, np.hypot(np.sqrt(g @ c @ g), model.spurious[w]))]
    u = (EDGES[1:] + EDGES[:-1] - 8700) / 3300
    for counts in selected[::-1].cumsum(axis=0)[::-1]:
        if counts[out].sum() < model.min_events:
            log_p.append(np.nan)
            continue
        fits = []
        for terms in (3, 4):
            z = u[:, None] ** np.arange(terms)
            precision = np.array([0.0] + [1.5**-2] * (terms - 1))
            fits.append((z, precision, *minimised(counts, z, log_mu + basis @ theta + np.log(share), out, precision)))
        z, precision, a, _, covariance = fits[int(2 * (fits[0][3] - fits[1][3]) > 3.841458820694124)]
        passed = share * mu * np.exp(z @ a)
        if deviance_p_value(2 * special.kl_div(counts, passed)[out].sum(), passed[out], len(a)) < 1e-3:
            log_p.append(np.nan)
            continue
        within = passed[inside].sum()
        z_in, g_in = passed[inside] @ z[inside] / within, passed[inside] @ basis[inside] / within
        q = z_in @ covariance @ (z[out].T * passed[out]) @ basis[out]
        relative = np.sqrt(z_in @ covariance @ z_in + g_in @ c @ g_in - q @ c @ q)
        expected = within / share
        error = np.hypot(expected * relative, model.spurious[w] * expected / value)
        log_p.append(local(counts[inside].sum(), expected, error) if expected > 1e-3 else np.nan)
    return log_p


def local(n, mu, s):
    return 0.0 if n == 0 else stats.nbinom.logsf(n - 1, 1 + (mu / s) ** 2, mu / (mu + s**2))


@pytest.mark.parametrize("spurious", [0.0, 90.0])
def test_toys_are_analysed_as_the_formulas_say(shared, spurious):
    """Toys: fits, degrees, goodness, errors, shares and spurious signals, against scipy's minimiser one by one."""
    model = replace(shared[1], spurious=(spurious,) * len(WINDOWS))
    ((inclusive, selected),) = bh.draw_toys(model, 6, np.random.default_rng(8))
    log_p = bh.toy_local_p(model, inclusive, selected)
    for i in range(6):
        for w in range(len(WINDOWS)):
            expected = one_by_one(model, w, inclusive[i], selected[w, :, i])
            np.testing.assert_allclose(log_p[w, :, i], expected, atol=1e-5)
    assert np.isfinite(log_p[:, 1:]).sum() > 60


def test_degenerate_toys(shared):
    """Toys: cuts that nothing passes, events on one side only, a whole toy without events."""
    _, model = shared
    ((inclusive, selected),) = bh.draw_toys(model, 4, np.random.default_rng(9))
    usual = bh.toy_local_p(model, inclusive, selected)
    selected[:, :, 0] = 0
    selected[:, :, 1, 40:] = 0
    inclusive[2], selected[:, :, 2] = 0, 0
    log_p = bh.toy_local_p(model, inclusive, selected)
    assert np.isnan(log_p[:, 1:, 0]).all()
    assert np.isnan(log_p[:, :, 2]).all()
    np.testing.assert_allclose(log_p[:, :, 3], usual[:, :, 3], rtol=1e-9)
    for w in range(len(WINDOWS)):
        np.testing.assert_allclose(log_p[w, :, 1], one_by_one(model, w, inclusive[1], selected[w, :, 1]), atol=1e-4)


def test_a_toy_that_expects_next_to_nothing_has_a_p_value(background):
    """A spurious signal of many times the expectation: the toys are analysed, whatever they miss."""
    _, model, _ = search(*background, 1)
    model = replace(model, inclusive=model.inclusive * 1e-7, spurious=(1.0,) * len(model.windows), min_events=0)
    ((inclusive, selected),) = bh.draw_toys(model, 50, np.random.default_rng(3))
    for variation in (-40.0, 40.0):
        log_p = bh.toy_local_p(model, inclusive, selected, np.full(50, variation))
        assert not np.isposinf(log_p).any()


def test_a_cut_that_nothing_passes_has_next_to_no_expectation():
    counts = np.stack([np.full(len(EDGES) - 1, 400.0), np.zeros(len(EDGES) - 1)])
    selected = bh.SelectedCounts(EDGES, (1.0, 0.001), counts, np.zeros(len(EDGES) - 1, dtype=bool))
    point = bh.hunt_window(selected, WINDOWS[0], min_events=0).working_points[1]
    assert point.expected is None or point.expected < 0.1


def test_toys_do_not_depend_on_the_threads(background):
    """Toys: the same numbers in the same order, whoever analyses them."""
    one, three = (search(*background, 60, chunk=8, threads=threads)[2] for threads in (1, 3))
    np.testing.assert_array_equal(one.toy_log_p, three.toy_log_p)


def test_an_error_in_a_thread_ends_all(background, monkeypatch):
    hunts, model, _ = search(*background, 1)
    calls = []

    def broken(*_):
        calls.append(1)
        raise FitError("broken")

    monkeypatch.setattr("drapes_hep.bumphunt.toys.toy_local_p", broken)
    with pytest.raises(FitError, match="broken"):
        bh.global_significance(hunts, model, 1000, np.random.default_rng(1), chunk=1, threads=2)
    assert len(calls) < 1000


def test_global_p_value_is_uniform_under_background():
    """The toys know only a copula; the data sets are events with shared scores."""
    rng = np.random.default_rng(21)
    p = [search(*dataset(rng), 60, seed=i)[2].p_global for i in range(40)]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert 0.3 < np.mean(p) < 0.7


def test_signal_raises_the_significance(background):
    overall = [search(*dataset(np.random.default_rng(9), signal), 200) for signal in (0, 60, 250)]
    z = [hunts[1].working_points[2].z_local for hunts, _, _ in overall]
    assert z[0] < z[1] < z[2]
    found = overall[-1][2]
    assert found.best_window == WINDOWS[1]
    assert found.best_efficiency < 1
    assert found.bound
    assert found.p_global == pytest.approx(1 / 201)
    assert found.p_global_interval[0] == 0
    assert found.p_global_interval[1] == pytest.approx(1 - 0.025 ** (1 / 200))
    assert found.z_global == pytest.approx(stats.norm.isf(1 / 201))
    assert found.extrapolated.p < found.p_global
    null = overall[0][2]
    assert not null.bound
    assert null.p_global_interval[0] < null.exceeding / null.toys < null.p_global_interval[1]
    assert null.p_global > 0.01
    assert null.toy_log_p.shape == (200,)


def test_global_significance_never_falls_as_the_data_get_more_extreme(background):
    hunts, model, _ = search(*background, 1)
    hunt, point = hunts[1], hunts[1].working_points[0]
    found = []
    for pull in (1.5, 2.4, 2.7, 3, 5, 8):
        observed = int(point.expected + pull * np.sqrt(point.expected + point.expected_error**2))
        more = replace(hunt, working_points=(replace(point, observed=observed),))
        found.append(bh.global_significance([more], model, 60, np.random.default_rng(3)))
    z = [one.z_global for one in found]
    last = max(i for i, one in enumerate(found) if one.exceeding)
    assert found[last].exceeding <= 2
    assert z[last] < z[last + 1] == z[-1] == stats.norm.isf(1 / 61)
    assert (np.diff(z) >= 0).all()
    assert (np.diff([one.extrapolated.z for one in found]) > 0).all()


def test_a_toy_like_the_data_is_as_extreme(background, monkeypatch):
    """Toys: those as extreme as the data count, and the data count as one more."""
    hunts, model, _ = search(*background, 1)
    log_p = bh.best_working_point(hunts)[2]
    monkeypatch.setattr("drapes_hep.bumphunt.toys.toy_local_p", lambda *_: log_p + np.array([[[-0.1, 0, 0, 0.1, 0.2]]]))
    found = bh.global_significance(hunts, model, 5, np.random.default_rng(1))
    assert (found.exceeding, found.p_global) == (3, 4 / 6)


def test_the_extrapolation_says_what_more_toys_would_count(model):
    """Fitted to 400 toys, it holds where 2000 others can still count."""
    smallest = []
    for inclusive, selected in bh.draw_toys(model, 2400, np.random.default_rng(12)):
        smallest.append(np.nan_to_num(bh.toy_local_p(model, inclusive, selected)).min(axis=(0, 1)))
    few, others = np.split(np.concatenate(smallest), [400])
    for log_p in np.log(stats.norm.sf([2.0, 2.5, 3.0])):
        counted = float(np.mean(others <= log_p))
        found = bh.extrapolate(few, log_p)
        error = np.hypot(np.sqrt(counted / 2000), 0.5 * np.diff(found.p_interval)[0])
        assert abs(found.p - counted) < 5 * error
    assert 3 < found.trials < 16  # windows times cuts at most


# ---- the covariance of the expectation


@pytest.fixture(scope="module")
def points(background):
    m, tails = background
    counts = bh.count_selected(m, tails[1], EDGES, POINTS)
    return bh.hunt_window(counts, WINDOWS[1]).working_points


IN_WINDOW = (EDGES[:-1] >= 3300 - 1e-6) & (EDGES[1:] <= 3700 + 1e-6)


def test_the_covariance_of_a_windows_bins_sums_to_its_error(points):
    for point in points:
        inside = point.spectrum_covariance[np.ix_(IN_WINDOW, IN_WINDOW)]
        assert inside.sum() == pytest.approx(point.expected_error**2, rel=1e-9)
        # what a fit that takes the bins as independent believes
        assert np.sqrt(np.trace(inside)) < 0.35 * point.expected_error


def test_the_covariance_is_one(points):
    for point in points:
        covariance = point.spectrum_covariance
        np.testing.assert_array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance)[0] > -1e-12 * np.linalg.eigvalsh(covariance)[-1]
        np.testing.assert_allclose(point.spectrum_error, np.sqrt(np.diagonal(covariance)))


def test_few_variations_reproduce_the_covariance(points):
    for point in points:
        variations = bh.eigen_variations(point.spectrum_covariance)
        # no more than the parameters of the spectrum and of the efficiency
        assert 3 <= len(variations) <= 8
        np.testing.assert_allclose(
            variations.T @ variations, point.spectrum_covariance, atol=1e-6 * variations.max() ** 2
        )
        inside = variations[:, IN_WINDOW].sum(axis=1)
        assert np.hypot.reduce(inside) == pytest.approx(point.expected_error, rel=1e-6)
        assert (variations.sum(axis=1) > 0).all()


def test_the_error_of_an_expectation_is_the_propagation_of_all_counts():
    """Hunt: the error after a cut is what the Poisson errors of both rows of counts propagate to, no term missing."""
    window = WINDOWS[1]
    edges = spectrum_edges((2700, 6000), 100, (window,))
    mu = 20 * bin_model("dijet4", 13_000, edges, TRUTH)[0]
    inside = (edges[:-1] >= window.lo - 1e-6) & (edges[1:] <= window.hi + 1e-6)
    u = np.linspace(-1, 1, len(mu))
    passing = 0.4 * np.exp(-0.3 * u + 0.2 * u**2)
    # disjoint, and each a Poisson count of its own
    counts = np.stack([mu * (1 - passing), mu * passing])

    def hunted(counts):
        found = bh.SelectedCounts(edges, (1.0, 0.4), counts, np.zeros(len(mu), dtype=bool))
        return bh.hunt_window(found, window).working_points[1]

    variance = 0.0
    for row, column in zip(*np.nonzero(np.broadcast_to(~inside, counts.shape)), strict=True):
        moved = []
        for sign in (-1, 1):
            other = counts.copy()
            other[row, column] += sign * np.sqrt(counts[row, column])
            moved.append(hunted(other).expected)
        variance += (0.5 * (moved[1] - moved[0])) ** 2
    # first order of 1 standard deviation of bins with 50 events and more, and the efficiency's prior: below 1 %
    assert hunted(counts).expected_error == pytest.approx(np.sqrt(variance), rel=0.02)


def test_the_inclusive_covariance_is_that_of_toys():
    rng = np.random.default_rng(5)
    truth = bin_model("dijet4", 13_000, EDGES, TRUTH)[0]
    outside = ~IN_WINDOW
    fits = [fit_spectrum_newton(rng.poisson(truth), EDGES, outside) for _ in range(400)]
    expected = np.array([fit.expected for fit in fits])[:, IN_WINDOW]
    counts = bh.SelectedCounts(EDGES, (1.0,), truth[None], np.zeros(len(truth), dtype=bool))
    ours = bh.hunt_window(counts, WINDOWS[1]).working_points[0].spectrum_covariance[np.ix_(IN_WINDOW, IN_WINDOW)]
    # 400 toys know a variance to 7 %
    np.testing.assert_allclose(np.cov(expected.T), ours, rtol=0.35)
    np.testing.assert_allclose(np.corrcoef(expected.T), ours / np.sqrt(np.outer(*[np.diagonal(ours)] * 2)), atol=0.15)
