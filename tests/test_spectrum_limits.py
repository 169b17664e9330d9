"""Limits on a signal from the spectra that pass and fail: derivatives, pyhf, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from test_resonance import EDGES, GRADIENT, MU, U, template

from drapes_hep.bumphunt.pass_fail import Background
from drapes_hep.bumphunt.spectrum_limits import SignalSpectra, crossing, scan_signals
from drapes_hep.bumphunt.tied_likelihood import TiedLikelihood, TiedModel, varied_template
from drapes_hep.errors import FitError

SIGNAL = template(3500)
EPS = 0.01 * (1 + 0.2 * U)


def spectra(passed, failed, gradient=GRADIENT, degree=1, errors=(0.0, 0.0), share=1.0, **more):
    shape = varied_template(SIGNAL, EDGES, *errors)
    return SignalSpectra(
        Background(MU, gradient, U), passed, failed, np.full(len(MU), share), degree, shape, shape, **more
    )


def expected_counts(share=1.0):
    return share * MU * EPS, MU * (1 - share * EPS)


@pytest.mark.parametrize("cut", [False, True])
def test_score_and_information_are_those_of_the_means(cut):
    basis = GRADIENT @ np.linalg.inv(np.linalg.qr(np.sqrt(MU)[:, None] * GRADIENT)[1])
    design = U[:, None] ** np.arange(2 if cut else 0)
    shape = varied_template(SIGNAL, EDGES, 0.01, 0.1)
    bump = np.stack([np.stack([20 * SIGNAL, -20 * SIGNAL])])
    model = TiedModel(MU, basis, design, np.full(len(MU), 0.7), shape, shape, 0.05, bump)
    counts = expected_counts(0.7) if cut else (MU,)
    p = np.concatenate([[3, -2, 1, 0.5], [np.log(0.01), 0.3][: design.shape[1]], [150.0, 0.4, -0.7, 0.8, 0.3]])
    likelihood = TiedLikelihood(model, tuple(n[None] for n in counts), np.array([0.3]), np.zeros((1, model.size)))

    def values(x):
        parts = likelihood.state(x[None])
        return likelihood.objective(x[None], parts)[0], np.concatenate([part.mean[0] for part in parts])

    def derivative(k, of):
        step = 1e-5 * max(1.0, abs(p[k])) * (np.arange(model.size) == k)
        return (values(p + step)[of] - values(p - step)[of]) / (2 * step.max())

    assert model.size == len(p)
    score, information = likelihood.score_and_information(p[None], likelihood.state(p[None]))
    np.testing.assert_allclose(score[0], [-derivative(k, 0) for k in range(len(p))], rtol=1e-4, atol=1e-3)
    gradient = np.stack([derivative(k, 1) for k in range(len(p))])
    expected = gradient / values(p)[1] @ gradient.T + np.diag(model.precision)
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(information[0] / scale[:, None] / scale, expected / scale[:, None] / scale, atol=1e-5)


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
def test_pyhf_has_the_same_cls():
    pyhf = pytest.importorskip("pyhf")
    rng, efficiency = np.random.default_rng(4), 0.3
    passed, failed = (rng.poisson(n).astype(float) for n in expected_counts())
    # one norm of what passes and one of what fails: an efficiency that is constant, on a spectrum of a given shape
    flat = spectra(passed, failed, np.ones((len(MU), 1)), degree=0, normalisation=np.log(1.1))
    ours = scan_signals(flat, np.array([60.0, 120.0]), np.array([efficiency]))

    def channel(name, signal, background):
        yield_error = {"name": "yield", "type": "normsys", "data": {"hi": 1.1, "lo": 1 / 1.1}}
        return {
            "name": name,
            "samples": [
                {
                    "name": "signal",
                    "data": signal.tolist(),
                    "modifiers": [{"name": "mu", "type": "normfactor", "data": None}, yield_error],
                },
                {
                    "name": "background",
                    "data": background.tolist(),
                    "modifiers": [{"name": name, "type": "normfactor", "data": None}],
                },
            ],
        }

    channels = [
        channel("pass", efficiency * SIGNAL, 0.01 * MU),
        channel("fail", (1 - efficiency) * SIGNAL, 0.99 * MU),
    ]
    model = pyhf.Model({"channels": channels}, poi_name="mu")
    bounds = [
        (0.0, 1000.0) if name == "mu" else b
        for name, b in zip(model.config.par_order, model.config.suggested_bounds(), strict=True)
    ]
    # channels are in alphabetical order
    data = [*failed, *passed, *model.config.auxdata]
    pyhf.set_backend("numpy", "minuit")
    for place, mu in enumerate((60.0, 120.0)):
        observed, band = pyhf.infer.hypotest(
            mu, data, model, par_bounds=bounds, test_stat="qtilde", return_expected_set=True
        )
        assert ours.observed[place, 0] == pytest.approx(float(observed), rel=1e-4)
        np.testing.assert_allclose(ours.expected[place, 0], [float(x) for x in band], rtol=1e-4)


@pytest.fixture(scope="module")
def toys():
    """CLs of one signal in pseudo-experiments with that signal, and with none."""
    signal, efficiency, share = 200.0, 0.3, 0.6
    rng, out = np.random.default_rng(11), {}
    for name, true in (("with", signal), ("without", 0.0)):
        passed, failed = expected_counts(share)
        counted = share * efficiency * SIGNAL
        scans = []
        for _ in range(300):
            counts = rng.poisson(passed + true * counted), rng.poisson(failed + true * (SIGNAL - counted))
            data = spectra(*(n.astype(float) for n in counts), errors=(0.01, 0.1), share=share)
            scans.append(scan_signals(data, np.array([signal]), np.array([efficiency])))
        out[name] = scans
    return out


def test_a_signal_that_is_there_is_excluded_in_at_most_5_percent(toys):
    excluded = np.mean([scan.observed[0, 0] <= 0.05 for scan in toys["with"]])
    assert excluded <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_the_expected_band_is_that_of_a_background_alone(toys):
    observed = np.array([scan.observed[0, 0] for scan in toys["without"]])
    band = np.mean([scan.expected[0, 0] for scan in toys["without"]], axis=0)
    # a normal distribution is below these in 2, 16, 50, 84 and 98 %
    for value, part in zip(band, (0.0228, 0.1587, 0.5, 0.8413, 0.9772), strict=True):
        assert (observed < value).mean() == pytest.approx(part, abs=3.5 * np.sqrt(part * (1 - part) / 300))


def test_what_fails_the_cut_limits_the_signal_too():
    passed, failed = expected_counts()
    signal = np.geomspace(50, 1500, 40)
    found_nothing = np.zeros(1)
    blind_to_it = scan_signals(spectra(passed, failed), signal, found_nothing)
    inclusive = scan_signals(spectra(MU, None), signal, np.ones(1))
    limits = [crossing(scan.signal, scan.expected[:, 0, 2]) for scan in (blind_to_it, inclusive)]
    assert limits[0] == pytest.approx(limits[1], rel=0.02)
    cut = scan_signals(spectra(passed, failed), signal, np.array([0.3]))
    assert crossing(cut.signal, cut.expected[:, 0, 2]) < 0.4 * limits[1]


def test_trainings_are_averaged():
    passed, failed = expected_counts()
    data, signal = spectra(passed, failed), np.array([150.0, 60.0])
    fine = scan_signals(data, signal, np.linspace(0, 0.4, 9))
    exact = scan_signals(data, signal, np.array([0.0, 0.3, 0.37]))
    observed, expected = fine.averaged(np.array([[0.0, 0.3], [0.37, 0.37]]))
    assert observed[0] == pytest.approx(exact.observed[0, :2].mean(), rel=1e-6)
    np.testing.assert_allclose(expected[0], exact.expected[0, :2].mean(axis=0), rtol=1e-6)
    assert observed[1] == pytest.approx(exact.observed[1, 2], rel=0.03)


def test_uncertainties_of_the_signal_weaken_the_limit():
    passed, failed = expected_counts()
    signal, eps = np.geomspace(20, 400, 40), np.array([0.3])

    def limit(**more):
        scan = scan_signals(spectra(passed, failed, **more), signal, eps)
        return crossing(signal, scan.expected[:, 0, 2])

    plain = limit()
    assert plain < limit(errors=(0.02, 0.3)) < 1.3 * plain
    assert plain < limit(normalisation=0.2) < 1.3 * plain
    bump = np.stack([SIGNAL, -SIGNAL])[None]
    assert limit(additions=20 * bump) > limit(additions=5 * bump) > plain


def test_a_template_moves_with_the_scale_and_widens_with_the_resolution():
    shape = varied_template(SIGNAL, EDGES, 0.01, 0.1)
    centre = 0.5 * (EDGES[1:] + EDGES[:-1])

    def moments(nu):
        t = shape.at(np.array([nu]))[0][0]
        mean = t @ centre / t.sum()
        return mean, np.sqrt(t @ (centre - mean) ** 2 / t.sum())

    (mean, width), (higher, _), (_, wider) = (moments(nu) for nu in ((0, 0), (1, 0), (0, 1)))
    assert higher / mean == pytest.approx(1.01, rel=1e-3)
    assert wider / width == pytest.approx(1.1, rel=0.01)


def test_the_limit_is_where_all_larger_signals_are_excluded():
    signal = np.array([1.0, 2.0, 4.0, 8.0])
    assert crossing(signal, np.array([0.5, 0.1, 0.025, 0.001])) == pytest.approx(2 * np.sqrt(2))
    # one that falls and rises again is not excluded where it first falls
    assert crossing(signal, np.array([0.04, 0.1, 0.025, 0.001])) > 2
    assert crossing(signal, np.full(4, 0.01)) == 1.0
    assert crossing(signal, np.full(4, 0.2)) == np.inf
    assert crossing(signal, np.full(4, np.nan)) == np.inf


def test_no_signal_is_no_hypothesis():
    with pytest.raises(FitError, match="not above 0"):
        scan_signals(spectra(*expected_counts()), np.array([0.0]), np.ones(1))
