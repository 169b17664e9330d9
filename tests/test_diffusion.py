"""Diffusion: preconditioning, exact denoisers, samplers' order, training, checkpoints, cards."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import signal

import numpy as np
import pytest
import torch
from references import GaussianDenoiser, GaussianMixtureDenoiser
from safetensors.torch import load_file, save_file

from drapes_hep.diffusion import training
from drapes_hep.diffusion.checkpoints import CARD, WEIGHTS, load_model, save_model
from drapes_hep.diffusion.denoisers import Denoiser, EDMDenoiser, FlowDenoiser
from drapes_hep.diffusion.losses import denoising_loss, noised, stratified
from drapes_hep.diffusion.samplers import EVALUATIONS, SAMPLERS, sample
from drapes_hep.diffusion.schedules import (
    EDMSchedule,
    FlowSchedule,
    angle_steps,
    even_steps,
    karras_steps,
    strength_steps,
)
from drapes_hep.diffusion.training import TrainingSettings, train, validation_loss
from drapes_hep.errors import FitError, RunDirectoryError
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.training import checkpoint, loop
from drapes_hep.training.loop import _flatten, ema_weight, learning_rate


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


class CosineSchedule:
    """A variance-preserving path, to hold the abstractions to more than alpha = 1."""

    config: dict = {}  # noqa: RUF012

    def __call__(self, t):
        return torch.cos(t), torch.sin(t)

    def training_times(self, u):
        return u * math.pi / 2


MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------- schedules


def test_karras_steps():
    s = karras_steps(200)
    assert s.dtype == torch.float64
    assert (len(s), float(s[0]), float(s[-2]), float(s[-1])) == (201, 80.0, 0.002, 0.0)
    assert bool((s.diff() < 0).all())
    i = 57
    expected = (80 ** (1 / 7) + i / 199 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(s[i]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("left", "strength"), [(98, 2.246), (72, 0.611)])
def test_partial_strengths_of_the_paper(left, strength):
    s = karras_steps(200)
    assert float(s[200 - left]) == pytest.approx(strength, abs=5e-4)
    assert strength_steps(s, strength) == left
    assert float(s[-(left + 1) :][0]) == float(s[200 - left])


def test_every_strength_is_its_own_index():
    s = karras_steps(50)
    assert [strength_steps(s, float(v)) for v in s[:-1]] == list(range(50, 0, -1))
    for outside in (100.0, 1e-4):
        with pytest.raises(ValueError, match="not within"):
            strength_steps(s, outside)


def test_training_times_are_log_normal():
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    log = torch.log(EDMSchedule().training_times(u))
    assert float(log.mean()) == pytest.approx(-1.2, abs=1e-6)
    assert float(log.std()) == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize("arguments", [(1,), (10, 0.0), (10, 2.0, 1.0)])
def test_karras_steps_refuses(arguments):
    with pytest.raises(ValueError, match="karras_steps"):
        karras_steps(*arguments)


# ---------------------------------------------------------------------------------------------------------- denoisers


@pytest.mark.parametrize("sigma_data", [0.5, [0.5, 2.0]])
def test_preconditioning_identities(sigma_data):
    denoiser = EDMDenoiser(ResidualMLP(2), sigma_data)
    t = torch.logspace(-3, 2, 40, dtype=torch.float64)
    c, d = denoiser.preconditioning(t), denoiser.sigma_data.double()
    s = t[:, None]
    torch.testing.assert_close(c.skip, d**2 / (s**2 + d**2))
    torch.testing.assert_close(c.out, s * d / torch.sqrt(s**2 + d**2))
    torch.testing.assert_close(c.input.expand_as(c.skip), (1 / torch.sqrt(s**2 + d**2)).expand_as(c.skip))
    torch.testing.assert_close(c.noise, torch.log(t) / 4)
    # unit variance of input, c_in^2 (sd^2 + s^2), and of target, ((1 - c_skip)^2 sd^2 + c_skip^2 s^2) / c_out^2
    one = torch.ones_like(c.skip)
    torch.testing.assert_close(c.input**2 * (d**2 + s**2) * one, one)
    torch.testing.assert_close(((1 - c.skip) ** 2 * d**2 + c.skip**2 * s**2) / c.out**2, one)


@pytest.mark.parametrize("schedule", [EDMSchedule(), CosineSchedule()])
def test_zero_network_is_the_best_linear_denoiser(schedule):
    sd = 1.5
    denoiser = EDMDenoiser(ResidualMLP(2), sd, schedule)
    exact = GaussianDenoiser(torch.zeros(2), sd**2 * torch.eye(2), schedule)
    x, t = normals(30, 2), torch.linspace(0.05, 1.4, 30, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, t), exact(x, t))
    assert denoiser(x, t).dtype == torch.float64


@pytest.mark.parametrize("schedule", [EDMSchedule(), CosineSchedule()])
def test_gaussian_oracle_is_the_posterior_mean(schedule):
    x, t = normals(20, 2), torch.linspace(0.05, 1.4, 20, dtype=torch.float64)
    alpha, sigma = schedule(t)
    found = GaussianDenoiser(MEAN, COVARIANCE, schedule)(x, t)
    for i in range(20):
        a, s = float(alpha[i]), float(sigma[i])
        gain = a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + s**2 * torch.eye(2, dtype=torch.float64))
        torch.testing.assert_close(found[i], MEAN + gain @ (x[i] - a * MEAN))


MIXTURE = ([0.3, 0.7], [-1.5, 1.0], [0.3, 0.5])


def mixture():
    w, m, s = (torch.tensor(v, dtype=torch.float64) for v in MIXTURE)
    return GaussianMixtureDenoiser(w, m[:, None], (s**2)[:, None, None])


def test_mixture_oracle_against_numerical_integration():
    grid = np.linspace(-8, 8, 20001)
    density = sum(w / s * np.exp(-0.5 * ((grid - m) / s) ** 2) for w, m, s in zip(*MIXTURE, strict=True))
    for x, t in [(0.0, 0.5), (-1.0, 0.1), (2.0, 3.0), (0.2, 1.0)]:
        posterior = density * np.exp(-0.5 * ((x - grid) / t) ** 2)
        found = mixture()(torch.tensor([[x]], dtype=torch.float64), torch.tensor([t], dtype=torch.float64))
        assert float(found) == pytest.approx((posterior * grid).sum() / posterior.sum(), abs=1e-6)


def test_sigma_data_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        EDMDenoiser(ResidualMLP(2), 0.0)


# ----------------------------------------------------------------------------------------------------------- samplers


def exact_flow(x, sigma):
    """Solution at 0 of the ODE from x at sigma, for Gaussian data: shrink every principal axis."""
    values, vectors = torch.linalg.eigh(COVARIANCE)
    return MEAN + ((x - MEAN) @ vectors * torch.sqrt(values / (values + sigma**2))) @ vectors.T


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpm2m", 2)])
def test_order_of_the_samplers(solver, order):
    # down to sigma = 0.5 only: the last step to 0 is Euler's and would hide the order
    oracle, start = GaussianDenoiser(MEAN, COVARIANCE), MEAN + 5 * normals(50, 2)
    values, vectors = torch.linalg.eigh(COVARIANCE)
    shrink = torch.sqrt((values + 0.25) / (values + 25.0))
    exact = MEAN + ((start - MEAN) @ vectors * shrink) @ vectors.T
    errors = []
    for n in (20, 40, 80):
        times = torch.logspace(math.log10(5.0), math.log10(0.5), n + 1, dtype=torch.float64)
        errors.append(float((sample(oracle, start, times, solver=solver) - exact).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.12)


def test_gaussian_flow_from_noise_and_from_the_middle():
    oracle, s = GaussianDenoiser(MEAN, COVARIANCE), karras_steps(200)
    start = 80 * normals(200, 2)
    torch.testing.assert_close(sample(oracle, start, s), exact_flow(start, 80.0), atol=2e-3, rtol=0)
    left = strength_steps(s, 0.6)
    times = s[-(left + 1) :]
    start = MEAN + float(times[0]) * normals(200, 2)
    torch.testing.assert_close(sample(oracle, start, times), exact_flow(start, float(times[0])), atol=2e-3, rtol=0)


def test_gaussian_samples_have_mean_and_covariance():
    n = 20000
    found = sample(GaussianDenoiser(MEAN, COVARIANCE), 80 * normals(n, 2), karras_steps(100))
    # sigma_max = 80 and not infinite: the mean's relic is |mean| sd / 80
    torch.testing.assert_close(found.mean(0), MEAN, atol=4 / math.sqrt(n) + 0.03, rtol=0)
    torch.testing.assert_close(torch.cov(found.T), COVARIANCE, atol=6 / math.sqrt(n), rtol=0)


def test_order_of_the_midpoint_method():
    # on the Gaussian flow its leading error cancels, so on a mixture
    def end(n, solver):
        times = torch.linspace(3.0, 0.5, n + 1, dtype=torch.float64)
        return sample(mixture(), 3 * normals(50, 1), times, solver=solver)

    exact = end(4000, "heun")
    coarse, fine = (float((end(n, "midpoint") - exact).square().mean()) ** 0.5 for n in (40, 80))
    assert coarse / fine == pytest.approx(4, rel=0.15)


def test_order_of_the_angle_solver():
    def end(n):
        return sample(mixture(), 80 * normals(50, 1), angle_steps(EDMSchedule(), n, 80.0), solver="angle")

    exact = end(4000)
    coarse, fine = (float((end(n) - exact).square().mean()) ** 0.5 for n in (80, 160))
    assert coarse / fine == pytest.approx(4, rel=0.15)


def test_angle_solver_is_exact_in_one_step_for_standard_normal_data():
    start = normals(50, 2)
    found = sample(
        GaussianDenoiser(torch.zeros(2), torch.eye(2)), start, angle_steps(EDMSchedule(), 1, 80.0), solver="angle"
    )
    torch.testing.assert_close(found, start / math.hypot(1, 80))


def test_angle_solver_is_the_same_on_every_path():
    # the state at the first angle is the same but for its scale
    ends = []
    for schedule in (EDMSchedule(), FlowSchedule()):
        times = angle_steps(schedule, 6, 2.0)
        alpha, _ = schedule(times[0])
        oracle = GaussianDenoiser(MEAN, COVARIANCE, schedule)
        ends.append(sample(oracle, alpha * normals(20, 2), times, solver="angle"))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("schedule", [EDMSchedule(), FlowSchedule()])
def test_angle_steps_start_at_their_strength(schedule):
    alpha, sigma = schedule(angle_steps(schedule, 5, 0.611)[0])
    assert float(sigma / alpha) == pytest.approx(0.611)


def test_angle_steps_of_the_straight_path_start_at_pure_noise():
    assert float(angle_steps(FlowSchedule(), 5, math.inf)[0]) == 1.0


@pytest.mark.parametrize("arguments", [(0, 1.0), (3, 0.0), (3, math.nan)])
def test_angle_steps_refuses(arguments):
    with pytest.raises(ValueError, match="angle_steps"):
        angle_steps(EDMSchedule(), *arguments)


def test_angle_solver_refuses_steps_without_a_middle():
    with pytest.raises(ValueError, match="middle of each step"):
        sample(GaussianDenoiser(MEAN, COVARIANCE), normals(3, 2), karras_steps(3), solver="angle")


@pytest.mark.parametrize("solver", ["heun", "euler", "dpm2m"])
def test_sampler_on_a_path_with_changing_alpha(solver):
    oracle = GaussianDenoiser(MEAN, COVARIANCE, CosineSchedule())
    times = torch.linspace(math.pi / 2 - 0.01, 0, 200, dtype=torch.float64)
    found = sample(oracle, normals(4000, 2), times, solver=solver)
    torch.testing.assert_close(found.mean(0), MEAN, atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(found.T), COVARIANCE, atol=0.1, rtol=0)


@pytest.mark.parametrize("solver", sorted(SAMPLERS))
def test_sampler_on_the_straight_path_of_flow_matching(solver):
    oracle = GaussianDenoiser(MEAN, COVARIANCE, FlowSchedule())
    found = sample(oracle, normals(4000, 2), even_steps(200), solver=solver)
    torch.testing.assert_close(found.mean(0), MEAN, atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(found.T), COVARIANCE, atol=0.1, rtol=0)


@pytest.mark.parametrize("solver", sorted(SAMPLERS))
def test_evaluations_a_step_are_those_stated(solver):
    calls = []

    class Counted(GaussianDenoiser):
        def forward(self, x, t, condition=None, offsets=None):
            calls.append(float(t))
            return super().forward(x, t, condition, offsets)

    times = angle_steps(EDMSchedule(), 20, 80.0) if solver == "angle" else karras_steps(20)
    sample(Counted(MEAN, COVARIANCE), 80 * normals(3, 2), times, solver=solver)
    assert len(calls) == EVALUATIONS[solver] * 20 - (solver == "heun")


def test_euler_is_ddim_on_any_path():
    oracle = GaussianDenoiser(MEAN, COVARIANCE, CosineSchedule())
    times = torch.tensor([1.2, 0.7], dtype=torch.float64)
    start = normals(20, 2)
    (a, b), (s, r) = (part.tolist() for part in CosineSchedule()(times))
    mean = oracle(start, times[:1])
    ddim = b * mean + r * (start - a * mean) / s
    torch.testing.assert_close(sample(oracle, start, times, solver="euler"), ddim)


def test_the_velocity_denoiser_turns_a_true_velocity_into_the_mean():
    class Velocity(torch.nn.Module):
        def forward(self, x, noise, _condition=None):
            return (3.0 - x) / noise[:, None]  # x0 - n, where every event is 3

    found = FlowDenoiser(Velocity())(normals(5, 2).double(), torch.tensor([0.3], dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((5, 2), 3.0, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_loss_of_the_velocity_is_flow_matching_s():
    net = ResidualMLP(3, 1, seed=4)
    with torch.no_grad():
        net.last.copy_(normals(3, net.width))
    x, noise, c = normals(40, 3).float(), normals(40, 3, seed=3).float(), normals(40, 1, seed=2).float()
    t = torch.linspace(0.05, 0.95, 40)
    noisy = (1 - t)[:, None] * x + t[:, None] * noise
    expected = (net(noisy, t, c) - (x - noise)).square().mean(1)
    flow = FlowDenoiser(net)
    torch.testing.assert_close(denoising_loss(flow, noised(flow, x, t, noise), c), expected, rtol=1e-4, atol=1e-4)


def test_marginal_of_the_mixture():
    n = 5000
    found = np.sort(sample(mixture(), 80 * normals(n, 1), karras_steps(50))[:, 0].numpy())
    cdf = sum(
        w * 0.5 * (1 + np.vectorize(math.erf)((found - m) / s / 2**0.5)) for w, m, s in zip(*MIXTURE, strict=True)
    )
    distance = np.abs(cdf - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, p = 0.001


def random_denoiser(**options):
    net = ResidualMLP(5, 1, **options)
    with torch.no_grad():
        net.last.copy_(0.2 * normals(5, net.width))
    return EDMDenoiser(net)


def test_an_event_does_not_depend_on_its_batch():
    denoiser, x, c = random_denoiser(), 80 * normals(300, 5), normals(300, 1, seed=2).float()
    s = karras_steps(12)
    whole = sample(denoiser, x, s, c)
    assert whole.dtype == torch.float64
    for batch, workers in ((7, 1), (64, 2), (299, 2)):
        torch.testing.assert_close(sample(denoiser, x, s, c, batch=batch, workers=workers), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(denoiser, x[40:41], s, c[40:41]), whole[40:41], rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(denoiser, x, s, c), whole)


def test_progress_threads_and_refusals():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    denoiser, x, c = random_denoiser(), normals(10, 5), normals(10, 1)
    sample(denoiser, x, karras_steps(3), c, batch=4, progress=lambda done, total: seen.append((done, total)))
    assert sorted(seen) == [(i, 9) for i in range(1, 10)]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert sample(denoiser, x[:0], karras_steps(3), c[:0]).shape == (0, 5)
    with pytest.raises(ValueError, match="unknown solver"):
        sample(denoiser, x, karras_steps(3), c, solver="rk4")
    with pytest.raises(ValueError, match="falling"):
        sample(denoiser, x, karras_steps(3).flip(0), c)
    with pytest.raises(ValueError, match="conditions"):
        sample(denoiser, x, karras_steps(3), c[:3])


class SetMean(torch.nn.Module):
    """A backbone for sets: every member sees its set's mean, noise level and condition."""

    def forward(self, x, noise, condition, offsets):
        sizes = offsets.diff()
        which = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        mean = torch.zeros(len(sizes), x.shape[1]).index_add_(0, which, x) / sizes[:, None]
        return 0.5 * torch.tanh(x - mean[which]) + (noise.expand(len(sizes))[:, None] + condition)[which]


def test_sets_of_varying_length():
    offsets = torch.tensor([0, 3, 4, 9, 11])
    denoiser, x, c = EDMDenoiser(SetMean()), normals(11, 2), normals(4, 1)
    whole = sample(denoiser, x, karras_steps(6), c, offsets=offsets)
    torch.testing.assert_close(sample(denoiser, x, karras_steps(6), c, offsets=offsets, batch=2), whole)
    t = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    one = denoiser(x[4:9], t[2:3], c[2:3], torch.tensor([0, 5]))
    torch.testing.assert_close(denoiser(x, t, c, offsets)[4:9], one)


# ------------------------------------------------------------------------------------------------------------- losses


def test_loss_is_edm_weighted_squared_error():
    denoiser = random_denoiser()
    x, noise, c = (normals(50, k, seed=k).float() for k in (5, 5, 1))
    t = denoiser.schedule.training_times(torch.linspace(0.01, 0.99, 50))
    plain = denoiser(x + t[:, None] * noise, t, c) - x
    weight = (t**2 + 1) / t**2
    torch.testing.assert_close(
        denoising_loss(denoiser, noised(denoiser, x, t, noise), c),
        weight * plain.square().mean(1),
        rtol=1e-3,
        atol=1e-5,
    )


def test_stratified_numbers_cover_every_batch():
    u = stratified(300, 100, rng())
    assert torch.equal((u * 100).long().view(3, 100), torch.arange(100).expand(3, 100))
    assert 0 < float(u.min()) <= float(u.max()) < 1


# ----------------------------------------------------------------------------------------------------------- training

FAST = TrainingSettings(epochs=6, batch=64, rate=3e-3, validation_draws=2, patience=None)


def toy(n, seed):
    c = normals(n, 1, seed=seed).float()
    return torch.cat([c, -c], 1) * 0.6 + 0.8 * normals(n, 2, seed=seed + 1).float(), c


def small(seed=0, features=2, condition=1):
    return EDMDenoiser(ResidualMLP(features, condition, width=16, depth=2, embedding=8, seed=seed))


def fit(settings=FAST, weight=None, **options):
    x, c = toy(512, 1)
    x_val, c_val = toy(128, 3)
    options = {"seed": 5} | options
    return train(options.pop("denoiser", None) or small(), x, c, weight, x_val, c_val, None, settings, **options)


def weights(denoiser):
    return torch.cat([p.detach().reshape(-1) for p in denoiser.parameters()])


def test_trained_network_approaches_the_exact_denoiser():
    n = 4096
    factor = torch.linalg.cholesky(COVARIANCE)
    x, x_val = ((MEAN + normals(k, 2, seed=s) @ factor.T).float() for k, s in ((n, 1), (1000, 2)))
    denoiser = EDMDenoiser(ResidualMLP(2, 0, width=32, depth=2))
    settings = TrainingSettings(epochs=60, batch=256, rate=5e-3, ema=0.99)
    result = train(denoiser, x, None, None, x_val, None, None, settings, seed=1)
    oracle = GaussianDenoiser(MEAN, COVARIANCE)
    t = torch.exp(torch.empty(2000, dtype=torch.float64).uniform_(-3, 1, generator=rng(4)))
    noisy = MEAN + normals(2000, 2, seed=5) @ factor.T + t[:, None] * normals(2000, 2, seed=6)
    with torch.no_grad():
        c = result.denoiser.preconditioning(t)
        error = ((result.denoiser(noisy, t) - oracle(noisy, t)) / c.out).square().mean()
        at_start = ((c.skip * noisy - oracle(noisy, t)) / c.out).square().mean()
    assert float(error) < 0.02 * float(at_start)
    assert float(error) < 0.01


def test_weights_are_honoured():
    # events of weight 0 must be without any influence: nonsense in them changes nothing but the draws' partners
    x, c = toy(512, 1)
    weight = torch.ones(512)
    weight[::2] = 0.0
    spoilt = x.clone()
    spoilt[::2] = 50.0
    x_val, c_val = toy(128, 3)
    one = train(small(), x, c, weight, x_val, c_val, None, FAST, seed=5)
    two = train(small(), spoilt, c, weight, x_val, c_val, None, FAST, seed=5)
    torch.testing.assert_close(weights(one.denoiser), weights(two.denoiser))
    # and only ratios of weights matter
    three = train(small(), x, c, 7 * weight, x_val, c_val, None, FAST, seed=5)
    torch.testing.assert_close(weights(one.denoiser), weights(three.denoiser))


def test_weight_pulls_the_conditional_mean():
    # two values, 0 and 1, weights 3 to 1: at large noise the denoiser gives the weighted mean
    x = (torch.arange(1024) % 2).float()[:, None]
    weight = torch.where(x[:, 0] > 0.5, 1.0, 3.0)
    net = EDMDenoiser(ResidualMLP(1, 0, width=16, depth=2), 0.5)
    settings = TrainingSettings(epochs=60, batch=256, rate=1e-2, ema=0.98, patience=None)
    result = train(net, x, None, weight, x[:200], None, weight[:200], settings, seed=1)
    with torch.no_grad():
        found = result.denoiser(torch.linspace(-3, 3, 41)[:, None] + 0.25, torch.full((41,), 3.0)).mean()
    assert float(found) == pytest.approx(0.25, abs=0.06)


def test_average_of_weights_is_the_normalised_exponential_mean():
    theta, decay, average = normals(30), 0.9, torch.zeros((), dtype=torch.float64)
    for k in range(1, 31):
        average = torch.lerp(average, theta[k - 1], ema_weight(k, decay))
        powers = decay ** torch.arange(k - 1, -1, -1, dtype=torch.float64)
        torch.testing.assert_close(average, (powers * theta[:k]).sum() / powers.sum())


def test_learning_rate():
    rates = [learning_rate(k, 1000, 2.0, 0.1) for k in range(1000)]
    assert rates[:100] == pytest.approx([2.0 * (k + 1) / 100 for k in range(100)])
    assert max(rates) == rates[99]
    assert rates[549] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert np.diff(rates[100:]).max() < 0
    assert learning_rate(0, 10, 1.0, 0.0) < 1.0


def test_flat_parameters_are_the_module():
    net = small()
    before, names = weights(net), list(net.state_dict())
    flat = _flatten(net)
    assert torch.equal(flat.detach(), before)
    x, c = toy(8, 1)
    net(x, torch.ones(8), c).sum().backward()
    assert float(flat.grad.abs().sum()) > 0
    flat.data.mul_(2)
    assert torch.equal(weights(net), 2 * before)
    assert list(net.state_dict()) == names


def test_history_best_and_early_stop():
    seen = []
    result = fit(progress=seen.append)
    assert tuple(seen) == result.history
    assert [line.epoch for line in result.history] == list(range(1, 7))
    assert not result.stopped_early
    best = min(result.history, key=lambda line: line.validation_loss)
    assert best.epoch == result.best_epoch
    x_val, c_val = toy(128, 3)
    assert validation_loss(result.denoiser, x_val, c_val, draws=2, seed=6) == pytest.approx(best.validation_loss)
    # a rate so high that the first epoch stays best
    stopped = fit(dataclasses.replace(FAST, epochs=60, rate=0.5, ema=0.0, patience=3))
    assert stopped.stopped_early
    assert len(stopped.history) == stopped.best_epoch + 3 < 60


def test_a_training_that_gets_worse_keeps_the_weights_of_its_best_epoch():
    """Training: the denoiser is that of the best validation, not the last."""
    result = fit(dataclasses.replace(FAST, epochs=60, rate=0.5, ema=0.0, patience=3))
    losses = [line.validation_loss for line in result.history]
    x_val, c_val = toy(128, 3)
    assert validation_loss(result.denoiser, x_val, c_val, draws=2, seed=6) == pytest.approx(min(losses))
    assert losses[-1] > 1.01 * min(losses)


def test_training_depends_on_its_seed_alone():
    state = torch.random.get_rng_state()
    one, same, other = fit(), fit(), fit(seed=6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(weights(one.denoiser), weights(same.denoiser))
    assert one.history == same.history
    assert not torch.equal(weights(one.denoiser), weights(other.denoiser))


class KilledError(Exception):
    """Stands for the end of the process."""


def test_killed_training_goes_on_to_the_same_bits(tmp_path):
    file = tmp_path / "deep" / "train.safetensors"
    settings = dataclasses.replace(FAST, checkpoint_seconds=0.0)
    whole = fit(settings)

    def kill(line):
        if line.epoch == 4:
            raise KilledError

    with pytest.raises(KilledError):
        fit(settings, checkpoint=file, progress=kill)
    seen = []
    result = fit(settings, checkpoint=file, progress=seen.append)
    assert torch.equal(weights(result.denoiser), weights(whole.denoiser))
    assert result.history == whole.history == tuple(seen)
    assert result.best_epoch == whole.best_epoch
    # a finished one is not trained again
    again = fit(settings, checkpoint=file)
    assert torch.equal(weights(again.denoiser), weights(whole.denoiser))
    assert [p.name for p in file.parent.iterdir()] == [file.name]


HOMES = {
    "denoising_loss": training,
    "_validate": training,
    "learning_rate": loop,
    "ema_weight": loop,
    "write_bytes": checkpoint,
}


def pressing(monkeypatch, name, calls, before=False):
    """Press Ctrl-C after (or before) a function of the training did its work so often; returns its calls."""
    module = HOMES[name]
    function, counted = getattr(module, name), []

    def pressed(*args, **kwargs):
        counted.append(name)
        if before and len(counted) in calls:
            signal.raise_signal(signal.SIGINT)
        out = function(*args, **kwargs)
        if not before and len(counted) in calls:
            signal.raise_signal(signal.SIGINT)
        return out

    monkeypatch.setattr(module, name, pressed)
    return counted


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("denoising_loss", {1}),  # before anything was learnt
        ("learning_rate", {4}),
        ("ema_weight", {1}),  # between the optimiser and the average: the step is brought to its end
        ("ema_weight", {8}),  # the last step of the first epoch
        ("_validate", {1}),
        ("_validate", {3}),
        ("learning_rate", {3, 21, 22}),
        ("write_bytes", {1}),  # while the last checkpoint is written
    ],
)
def test_an_interrupted_training_resumes_with_the_same_bits(tmp_path, monkeypatch, name, calls):
    """Ctrl-C at any place leaves a checkpoint, from which no step is taken twice."""
    whole = fit()
    file = tmp_path / "train.safetensors"
    pressing(monkeypatch, name, calls)
    steps = pressing(monkeypatch, "ema_weight", set()) if name != "ema_weight" else []
    for _ in calls:
        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=file)
        assert file.is_file()
    seen = []
    result = fit(checkpoint=file, progress=seen.append)
    assert torch.equal(weights(result.denoiser), weights(whole.denoiser))
    assert result.history == whole.history == tuple(seen)
    assert len(steps) in {0, FAST.epochs * 512 // FAST.batch}


def test_ctrl_c_from_a_callback_leaves_a_checkpoint(tmp_path):
    def interrupt(line):
        if line.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=tmp_path / "one", progress=interrupt)
    assert torch.equal(weights(fit(checkpoint=tmp_path / "one").denoiser), weights(fit().denoiser))


def test_a_second_ctrl_c_waits_for_the_checkpoint(tmp_path, monkeypatch):
    """The first comes in the second epoch; the second when the file is written on the way out."""
    pressing(monkeypatch, "denoising_loss", {10})
    written = pressing(monkeypatch, "write_bytes", {1}, before=True)
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=tmp_path / "one")
    assert len(written) == 1
    assert (tmp_path / "one").is_file()
    assert torch.equal(weights(fit(checkpoint=tmp_path / "one").denoiser), weights(fit().denoiser))


def test_checkpoints_of_others_and_broken_ones(tmp_path):
    file = tmp_path / "train.safetensors"
    fit(checkpoint=file)
    for options in ({"seed": 6}, {"settings": dataclasses.replace(FAST, rate=1e-4)}, {"denoiser": small(seed=3)}):
        with pytest.raises(RunDirectoryError, match="another training"):
            fit(**options, checkpoint=file)
    with pytest.raises(RunDirectoryError, match="another training"):
        fit(weight=torch.arange(512) + 1.0, checkpoint=file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(RunDirectoryError, match="not a readable checkpoint"):
        fit(checkpoint=file)


def test_bad_input_to_training():
    x, c = toy(64, 1)
    broken = x.clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="finite"):
        train(small(), broken, c, None, x, c, None, FAST, seed=1)
    with pytest.raises(ValueError, match="n > 0"):
        train(small(), x[:0], c[:0], None, x, c, None, FAST, seed=1)
    with pytest.raises(ValueError, match="weight of shape"):
        train(small(), x, c, torch.ones(3), x, c, None, FAST, seed=1)
    with pytest.raises(ValueError, match="more than 0"):
        train(small(), x, c, torch.zeros(64), x, c, None, FAST, seed=1)
    with pytest.raises(ValueError, match="features"):
        train(small(), x, c, None, x[:, :1], c, None, FAST, seed=1)
    with pytest.raises(FitError, match="diverged"):
        train(small(), 1e30 * x, c, None, x, c, None, dataclasses.replace(FAST, rate=1e30), seed=1)
    for wrong in ({"epochs": 0}, {"warmup": 1.0}, {"ema": 1.0}, {"patience": 0}, {"rate": 0.0}):
        with pytest.raises(ValueError, match=r"training needs|at least 1"):
            TrainingSettings(**wrong)


def test_fewer_events_than_a_batch():
    x, c = toy(10, 1)
    assert len(train(small(), x, c, None, x, c, None, FAST, seed=1).history) == 6


# -------------------------------------------------------------------------------------------------------------- cards


def test_save_and_load(tmp_path):
    denoiser = EDMDenoiser(ResidualMLP(3, 1, width=8, inject="blocks", seed=4), [1.0, 0.5, 2.0], EDMSchedule(-1.0, 1.5))
    with torch.no_grad():
        denoiser.backbone.last.add_(normals(3, 8).float())
    extra = {"window": [3300, 3700], "scaling": {"mean": [0.1, 0.2, 0.3]}, "seed": 1}
    folder = save_model(tmp_path / "a" / "model", denoiser, extra)
    again, card = load_model(folder)
    assert sorted(p.name for p in folder.iterdir()) == [CARD, WEIGHTS]
    assert card["extra"] == extra
    assert card["torch"] == torch.__version__
    assert again.schedule == denoiser.schedule
    x, t, c = normals(9, 3), normals(9).exp(), normals(9, 1)
    assert torch.equal(again(x, t, c), denoiser(x, t, c))
    save_model(folder, again, extra)  # over itself, to the same bytes
    assert json.loads((folder / CARD).read_text()) == card


def edit(folder, change):
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


OWN = "drapes_hep.networks."
BROKEN = {
    "no card": (lambda f: (f / CARD).unlink(), "incomplete model checkpoint"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "incomplete model checkpoint"),
    "half a card": (lambda f: (f / CARD).write_text('{"card_ver'), "not JSON"),
    "another version": (lambda f: edit(f, lambda c: c.update(card_version=99)), "version"),
    "a list": (lambda f: (f / CARD).write_text("[]"), "not a model checkpoint"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-4]), "sha256"),
    "another width": (lambda f: edit(f, lambda c: c["architecture"]["arguments"].update(width=9)), "RuntimeError"),
    "a stranger": (lambda f: edit(f, lambda c: c["architecture"].update(backbone="os:system")), "is not a network of"),
    "no module": (lambda f: edit(f, lambda c: c["architecture"].update(backbone=OWN + "x:Net")), "No module named"),
    "no class": (lambda f: edit(f, lambda c: c["architecture"].update(backbone=OWN + "mlp:nn")), "not a backbone"),
    "too deep": (lambda f: (f / CARD).write_text("[" * 100_000), "nested too deeply"),
    "no schedule": (lambda f: edit(f, lambda c: c["schedule"].update(name="Later")), "Later"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_models_are_said_in_one_line(tmp_path, what):
    folder = save_model(tmp_path, small())
    spoil, message = BROKEN[what]
    spoil(folder)
    with pytest.raises(RunDirectoryError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_cards_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        save_model(tmp_path / "file", small())
    with pytest.raises(TypeError, match="config"):
        save_model(tmp_path, EDMDenoiser(SetMean()))
    with pytest.raises(ValueError, match="JSON compliant"):
        save_model(tmp_path, small(), {"x": math.nan})


def test_weights_tampered_with_and_rehashed(tmp_path):
    folder = save_model(tmp_path, small())
    tensors = load_file(folder / WEIGHTS)
    tensors["backbone.last"] = tensors["backbone.last"] + 1
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(RunDirectoryError, match="sha256"):
        load_model(folder)


def test_base_denoiser_is_abstract():
    with pytest.raises(NotImplementedError):
        Denoiser()(normals(1, 1), normals(1))
