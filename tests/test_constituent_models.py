"""Models of constituents: their scaling, training and sampling on sets, and what a generated event depends on."""

from __future__ import annotations

import json
from dataclasses import replace

import awkward as ak
import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from torch import nn

from drapes_hep.config import Config, ConstituentsConfig, TrainingConfig
from drapes_hep.diffusion import training as training_module
from drapes_hep.diffusion.denoisers import Denoiser, EDMDenoiser
from drapes_hep.diffusion.samplers import sample
from drapes_hep.diffusion.schedules import karras_steps
from drapes_hep.diffusion.training import TrainingSettings, train, validation_loss
from drapes_hep.errors import FitError, RunDirectoryError
from drapes_hep.events.chunks import Reading
from drapes_hep.events.features import compute_features, invariant_mass
from drapes_hep.events.scaling import fit_scaling
from drapes_hep.files import read_json
from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.epic import EPiC
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.networks.transformer import SetTransformer
from drapes_hep.packed import Sets, take
from drapes_hep.regions import Window
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import expected as expected_events
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.templates.constituents import model as model_module
from drapes_hep.templates.constituents.conserve import jet_sums
from drapes_hep.templates.constituents.fit import fit_constituents
from drapes_hep.templates.constituents.jet_model import JetModel
from drapes_hep.templates.constituents.kinematics import MASS, Bounds, N, coordinates, domain
from drapes_hep.templates.constituents.method import LOSSES, DrapesConstituents, build_jets
from drapes_hep.templates.constituents.packing import pack_jets, refill
from drapes_hep.templates.constituents.saved import load_constituent_model, save_constituent_model
from drapes_hep.templates.constituents.scaling import ConstituentScaling, fit_constituent_scaling
from drapes_hep.templates.drapes_family import RECIPES
from drapes_hep.templates.methods import FitTask, SampleTask
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION
from drapes_hep.templates.plan import Pool, plan_region, starts
from drapes_hep.templates.tables import EventTable
from drapes_hep.templates.window_models import unfinished
from drapes_hep.training import loop

WINDOW = Window(3300.0, 3700.0, 2700.0, 6000.0)
NAMES = ("pt", "eta", "phi", "mass", "n")
CONFIG = ConstituentsConfig(width=8, depth=1, heads=2, epochs=2, batch=128, steps=5, kinematics_strength=None)
TRAINING = TrainingConfig(width=8, depth=1, epochs=2, batch=256)


def shower(n, seed=1, least=3, most=20, prongs=0.0, pt=None):
    """Pairs of jets that are the sums of their massless constituents, roughly back to back, their momenta falling."""
    rng = np.random.default_rng(seed)
    leading = 1210 + rng.exponential(300, n) if pt is None else pt
    axis = np.empty((n, 2, 3))
    axis[:, :, 0] = leading[:, None] * np.stack([np.ones(n), rng.uniform(0.85, 1, n)], axis=1)
    axis[:, :, 1] = rng.normal(0, 0.6, (n, 2)).clip(-2, 2)
    axis[:, 0, 2] = rng.uniform(-np.pi, np.pi, n)
    axis[:, 1, 2] = axis[:, 0, 2] + np.pi + rng.normal(0, 0.1, n)
    lengths = rng.integers(least, most + 1, 2 * n)
    jet = np.repeat(np.arange(2 * n), lengths)
    fraction = rng.exponential(1, len(jet)) + 1e-3
    fraction /= np.bincount(jet, fraction, minlength=2 * n)[jet]
    delta = rng.normal(0, 0.12, (len(jet), 2))
    delta[:, 0] += prongs * (rng.random(len(jet)) < 0.5)
    pt, eta, phi = axis.reshape(-1, 3)[jet].T
    values = np.stack([fraction * pt, eta + delta[:, 0], phi + delta[:, 1]], axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return build_jets(Sets(torch.as_tensor(values), torch.as_tensor(offsets)), Reading())


def parents_of(jets, seed=3):
    x = np.stack(list(compute_features(("m_j1", "delta_m"), jets).values()), axis=1)
    ids = np.random.default_rng(seed).choice(10**12, len(jets), replace=False)
    return EventTable(x, invariant_mass(jets), np.ones(len(jets)), ids, jets)


def beside(events):
    return events.take(~WINDOW.in_signal_region(events.mjj))


def fitted(events, config=CONFIG, training=TRAINING, hidden=((3300.0, 3700.0),), **more):
    part = np.random.default_rng(1).choice([TRAIN, VALIDATION, CLOSURE], len(events), p=[0.7, 0.2, 0.1])
    return fit_constituents(FitTask(events, part, hidden, seed=5, **more), config, training, "quantile", 1.0)


@pytest.fixture(scope="module")
def events():
    return parents_of(shower(900))


@pytest.fixture(scope="module")
def model(events):
    """A trained model, its network moved about so that neighbours in a set matter."""
    found, _ = fitted(beside(events))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in found.denoiser.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return found


@pytest.fixture(scope="module")
def packed(events):
    return pack_jets(events.jets)


# ---- packing ---------------------------------------------------------------------------------------------------------


def test_packed_jets_have_the_leading_one_first(events):
    straight = pack_jets(events.jets)
    turned = pack_jets(events.jets[:, ::-1])
    np.testing.assert_array_equal(turned[0], straight[0])
    assert torch.equal(turned[1].values, straight[1].values)
    assert torch.equal(turned[1].offsets, straight[1].offsets)


def test_packed_constituents_are_those_of_their_jet(packed):
    pairs, sets = packed
    np.testing.assert_array_equal(pairs.reshape(-1, 5)[:, N], sets.lengths.numpy())
    values, rows = sets.values.numpy(), pairs.reshape(-1, 5)
    sums = jet_sums(np.exp(values[:, 0]), values[:, 1], values[:, 2], sets.offsets.numpy())
    np.testing.assert_allclose(sums.mass * rows[:, 0], rows[:, MASS], rtol=1e-4, atol=1e-2)


def test_jets_without_constituents_cannot_be_packed(events):
    with pytest.raises(ValueError, match="have no constituents"):
        pack_jets(events.jets[["pt", "eta", "phi", "mass"]])


def test_events_of_one_jet_cannot_be_packed(events):
    with pytest.raises(ValueError, match="two jets"):
        pack_jets(events.jets[:, :1])


def test_jets_built_from_their_constituents_are_the_jets(events):
    pairs, sets = pack_jets(events.jets[:50])
    rows = pairs.reshape(-1, 5).repeat(sets.lengths.numpy(), axis=0)
    values = sets.values.numpy()
    absolute = np.stack(
        [np.exp(values[:, 0]) * rows[:, 0], values[:, 1] + rows[:, 1], values[:, 2] + rows[:, 2]], axis=1
    )
    found = build_jets(Sets(torch.as_tensor(absolute), sets.offsets), Reading())
    for name in ("pt", "eta", "mass", "tau1", "tau2", "tau3"):
        np.testing.assert_allclose(found[name], events.jets[:50][name], rtol=1e-4, atol=1e-4, err_msg=name)


# ---- scaling ---------------------------------------------------------------------------------------------------------


def isotropic(n=60_000, seed=1):
    rng = np.random.default_rng(seed)
    radius, angle = rng.gamma(1.5, 0.1, n), rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.log(rng.beta(0.5, 6, n)), radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def some_jets(n=100, seed=2):
    rng = np.random.default_rng(seed)
    columns = [rng.uniform(1200, 2000, n), rng.normal(0, 1, n), rng.uniform(-3, 3, n), rng.gamma(2, 60, n)]
    return np.stack([*columns, rng.integers(3, 50, n).astype(float)], axis=1), rng.uniform(2700, 6000, n)


@pytest.fixture(scope="module")
def scaling():
    return fit_constituent_scaling(isotropic(), *some_jets(), (*NAMES, "mjj"))


def test_scaled_constituents_come_back(scaling):
    values = isotropic()
    np.testing.assert_allclose(scaling.inverse(scaling.forward(values)), values, rtol=1e-6, atol=1e-9)


def test_normal_numbers_come_back(scaling):
    z = np.random.default_rng(4).normal(size=(10_000, 3))
    np.testing.assert_allclose(scaling.forward(scaling.inverse(z)), z, rtol=1e-6, atol=1e-6)


def test_scaled_constituents_are_normal(scaling):
    z = scaling.forward(isotropic(seed=9))
    for column in z.T:
        assert kstest(column, "norm").statistic < 0.01
    assert kstest((z[:, 1:] ** 2).sum(axis=1), chi2(2).cdf).statistic < 0.01


def test_beyond_the_training_lie_its_extremes(scaling):
    values = isotropic()
    length = np.hypot(values[:, 1], values[:, 2])
    far = scaling.inverse(np.array([[9.0, 30.0, 40.0], [-9.0, 0.0, 0.0]]))
    assert far[0, 0] == pytest.approx(values[:, 0].max(), abs=1e-4)
    assert np.hypot(*far[0, 1:]) == pytest.approx(length.max(), rel=1e-6)
    assert far[1, 0] == pytest.approx(values[:, 0].min(), abs=1e-4)


def test_scaling_commutes_with_rotations_about_the_axis(scaling):
    values, angle = isotropic(2000), 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotated = values.copy()
    rotated[:, 1:] = values[:, 1:] @ turn.T
    for way in (scaling.forward, scaling.inverse):
        one, other = way(rotated), way(values)
        np.testing.assert_allclose(one[:, 1:], other[:, 1:] @ turn.T, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(one[:, 0], other[:, 0])


def test_a_constituent_on_the_axis_stays_there(scaling):
    values = np.array([[-2.0, 0.0, 0.0]])
    np.testing.assert_array_equal(scaling.forward(values)[:, 1:], 0)
    np.testing.assert_array_equal(scaling.inverse(np.zeros((1, 3)))[:, 1:], 0)


def test_what_a_network_is_told_has_mean_zero_and_spread_one(scaling):
    told = scaling.conditions_of(*some_jets()).double()
    assert told.shape == (100, 6)
    assert told.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(told.std(0, correction=0), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_condition_that_never_changes_says_nothing():
    jets, mjj = some_jets()
    jets[:, N] = 7
    told = fit_constituent_scaling(isotropic(), jets, mjj, NAMES).conditions_of(jets, mjj)
    assert float(told[:, 4].abs().max()) < 1e-6


def test_a_scaling_survives_its_card_bit_for_bit(scaling):
    again = ConstituentScaling.from_dict(json.loads(json.dumps(scaling.to_dict())))
    values = isotropic(500)
    np.testing.assert_array_equal(again.forward(values), scaling.forward(values))
    assert torch.equal(again.conditions_of(*some_jets()), scaling.conditions_of(*some_jets()))
    assert again.condition == scaling.condition


@pytest.mark.parametrize(
    "spoil", [lambda card: card.pop("radius"), lambda card: card.update(log_fraction=[1.0, 2.0])], ids=["gone", "short"]
)
def test_a_damaged_scaling_is_refused(scaling, spoil):
    card = scaling.to_dict()
    spoil(card)
    with pytest.raises((KeyError, ValueError)):
        ConstituentScaling.from_dict(card)


@pytest.mark.parametrize("values", [isotropic(900), np.zeros((5000, 3))], ids=["few", "all alike"])
def test_too_few_constituents_cannot_be_scaled(values):
    with pytest.raises(FitError, match="too few to be scaled"):
        fit_constituent_scaling(values, *some_jets(), NAMES)


# ---- training on sets ------------------------------------------------------------------------------------------------

FAST = TrainingSettings(epochs=4, batch=64, rate=3e-3, validation_draws=2, patience=None, checkpoint_seconds=0)


class Deaf(nn.Module):
    """A network of rows that is given sets and does not look at them."""

    def __init__(self):
        super().__init__()
        self.net = ResidualMLP(2, 1, width=8, depth=1, embedding=8, seed=3)
        self.config = self.net.config

    def forward(self, x, noise, condition=None, offsets=None):  # noqa: ARG002
        return self.net(x, noise, condition)


def ones(values):
    return Sets(values, torch.arange(len(values) + 1))


def rows_of(n, seed):
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, 1, generator=generator)
    return 0.5 * torch.cat([c, -c], 1) + torch.randn(n, 2, generator=generator), c


def bags(n, seed, most=9):
    """Sets of 0 to ``most`` members about a mean that the condition tells."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most + 1, n)
    c = rng.normal(size=(n, 1))
    values = c.repeat(lengths, axis=0) + rng.normal(size=(lengths.sum(), 3))
    offsets = torch.as_tensor(np.concatenate([[0], np.cumsum(lengths)]))
    return Sets(torch.as_tensor(values, dtype=torch.float32), offsets), torch.as_tensor(c, dtype=torch.float32)


def weights(denoiser):
    return torch.cat([p.detach().reshape(-1) for p in denoiser.parameters()])


def on_sets(network=None, seed=5, weight=None, sets=None, **options):
    x, c = bags(256, 1)
    x_val, c_val = bags(96, 2)
    network = network or EPiC(3, 1, width=8, global_width=4, depth=1, seed=2)
    return train(EDMDenoiser(network), sets or x, c, weight, x_val, c_val, None, FAST, seed=seed, **options)


def test_sets_of_one_member_train_as_rows():
    (x, c), (x_val, c_val) = rows_of(512, 1), rows_of(128, 2)
    weight = torch.linspace(0.5, 1.5, 512)
    rows = train(EDMDenoiser(Deaf()), x, c, weight, x_val, c_val, None, FAST, seed=5)
    sets = train(EDMDenoiser(Deaf()), ones(x), c, weight, ones(x_val), c_val, None, FAST, seed=5)
    torch.testing.assert_close(weights(sets.denoiser), weights(rows.denoiser), rtol=1e-4, atol=1e-5)
    for one, other in zip(sets.history, rows.history, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("network", [EPiC, AttentiveDeepSets, SetTransformer])
def test_training_on_sets_lowers_the_loss(network):
    more = {} if network is EPiC else {"heads": 2}
    history = on_sets(network(3, 1, width=8, depth=1, seed=2, **more)).history
    assert history[-1].validation_loss < history[0].validation_loss


def test_a_training_on_sets_is_a_function_of_its_seed():
    one, same, other = on_sets(), on_sets(), on_sets(seed=6)
    assert torch.equal(weights(one.denoiser), weights(same.denoiser))
    assert not torch.equal(weights(one.denoiser), weights(other.denoiser))


def test_sets_of_weight_zero_teach_nothing():
    x, _ = bags(256, 1)
    weight = torch.ones(256)
    weight[::2] = 0.0
    spoilt = x.values.clone()
    spoilt[(x.index % 2) == 0] = 50.0
    one = on_sets(Deaf3(), weight=weight)
    two = on_sets(Deaf3(), weight=weight, sets=Sets(spoilt, x.offsets))
    torch.testing.assert_close(weights(one.denoiser), weights(two.denoiser))


class Deaf3(Deaf):
    def __init__(self):
        super().__init__()
        self.net = ResidualMLP(3, 0, width=8, depth=1, embedding=8, seed=3)
        self.config = self.net.config

    def forward(self, x, noise, condition=None, offsets=None):  # noqa: ARG002
        noise = noise if offsets is None or len(noise) == 1 else torch.repeat_interleave(noise, offsets.diff())
        return self.net(x, noise)


class Killed(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize("after", [2, 3])
def test_a_killed_training_on_sets_goes_on_bit_for_bit(tmp_path, after):
    whole = on_sets()

    def kill(epoch):
        if epoch.epoch == after:
            raise Killed

    with pytest.raises(Killed):
        on_sets(checkpoint=tmp_path / "one", progress=kill)
    assert (tmp_path / "one").is_file()
    seen = []
    again = on_sets(checkpoint=tmp_path / "one", progress=seen.append)
    assert torch.equal(weights(again.denoiser), weights(whole.denoiser))
    assert again.history == whole.history == tuple(seen)


@pytest.mark.parametrize("step", [1, 3, 8])
def test_an_interrupted_training_on_sets_resumes_bit_for_bit(tmp_path, monkeypatch, step):
    """The noise of the steps that were done is drawn again: it depends on how many members their sets have."""
    whole, steps, rate = on_sets(), [], loop.learning_rate

    def interrupted(*args):
        steps.append(args)
        if len(steps) == step:
            raise KeyboardInterrupt
        return rate(*args)

    monkeypatch.setattr(loop, "learning_rate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on_sets(checkpoint=tmp_path / "one")
    again = on_sets(checkpoint=tmp_path / "one")
    assert torch.equal(weights(again.denoiser), weights(whole.denoiser))
    assert again.history == whole.history


def test_a_checkpoint_of_other_sets_is_refused(tmp_path):
    on_sets(checkpoint=tmp_path / "one")
    x, _ = bags(256, 1)
    offsets = x.offsets.clone()
    # the same members, one of them in its neighbour's set
    move = int(torch.nonzero(x.lengths > 1)[0, 0]) + 1
    offsets[move] -= 1
    with pytest.raises(RunDirectoryError, match="another training"):
        on_sets(sets=Sets(x.values, offsets), checkpoint=tmp_path / "one")


def test_the_validation_loss_of_sets_keeps_its_draws():
    x, c = bags(96, 2)
    denoiser = shaken(EPiC(3, 1, width=8, global_width=4, depth=1, seed=2))
    torch.manual_seed(1)
    one = validation_loss(denoiser, x, c, seed=3)
    torch.manual_seed(2)
    assert validation_loss(denoiser, x, c, seed=3) == one
    assert validation_loss(denoiser, x, c, seed=4) != one


def test_the_validation_loss_of_sets_does_not_depend_on_how_they_are_cut(monkeypatch):
    x, c = bags(96, 2)
    denoiser = shaken(EPiC(3, 1, width=8, global_width=4, depth=1, seed=2))
    whole = validation_loss(denoiser, x, c)
    for rows in (1, 7, 100):
        monkeypatch.setattr(training_module, "_EVALUATION_ROWS", rows)
        assert validation_loss(denoiser, x, c) == pytest.approx(whole, rel=1e-5)


def test_a_step_may_have_one_set():
    x, c = bags(20, 1)
    settings = replace(FAST, batch=1, epochs=1)
    found = train(EDMDenoiser(Deaf3()), x, c, None, x, c, None, settings, seed=1)
    assert np.isfinite(found.history[0].train_loss)


def test_rows_cannot_validate_sets():
    x, c = bags(64, 1)
    with pytest.raises(ValueError, match="both be sets"):
        train(EDMDenoiser(Deaf3()), x, c, None, x.values, None, None, FAST, seed=1)


def test_sets_without_any_member_are_refused():
    none = Sets(torch.zeros(0, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="n > 0"):
        train(EDMDenoiser(Deaf3()), none, None, None, none, None, None, FAST, seed=1)


# ---- sampling sets ---------------------------------------------------------------------------------------------------


def shaken(network):
    """A network that says something before it is trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return EDMDenoiser(network).eval()


def drawn_sets(n=30, seed=1, most=12):
    sets, c = bags(n, seed, most)
    start = 5.0 * torch.randn(sets.values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Sets(start, sets.offsets), c


class Spy(nn.Module):
    """Note how many rows and sets each call has."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, noise, condition=None, offsets=None):  # noqa: ARG002
        self.calls.append((len(x), len(offsets) - 1))
        assert condition is None or len(condition) == len(offsets) - 1
        return torch.zeros_like(x)


@pytest.mark.parametrize("members", [1, 7, 25, 1000])
def test_no_call_has_more_members_than_allowed_but_a_lone_set(members):
    sets, c = drawn_sets()
    spy = Spy()
    sample(EDMDenoiser(spy), sets.values, karras_steps(3), c, offsets=sets.offsets, members=members, workers=1)
    assert sum(rows for rows, _ in spy.calls) == 5 * len(sets.values)
    assert all(rows <= members or count == 1 for rows, count in spy.calls)


def test_no_call_has_more_sets_than_the_batch():
    sets, c = drawn_sets()
    spy = Spy()
    sample(EDMDenoiser(spy), sets.values, karras_steps(3), c, offsets=sets.offsets, batch=4, workers=1)
    assert max(count for _, count in spy.calls) == 4


NETWORKS = {
    "epic": lambda: EPiC(3, 1, width=8, global_width=4, depth=1, seed=2),
    "deepsets": lambda: AttentiveDeepSets(3, 1, width=8, depth=1, heads=2, seed=2),
    "transformer": lambda: SetTransformer(3, 1, width=8, depth=1, heads=2, seed=2),
    "tokens": lambda: SetTransformer(3, 1, width=8, depth=1, heads=2, tokens=2, seed=2),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", [{"members": 9}, {"members": 40, "workers": 2}, {"batch": 1}], ids=str)
def test_sampled_sets_do_not_depend_on_what_is_sampled_beside_them(name, how):
    sets, c = drawn_sets()
    denoiser, times = shaken(NETWORKS[name]()), karras_steps(5, 0.002, 5.0)
    whole = sample(denoiser, sets.values, times, c, offsets=sets.offsets)
    torch.testing.assert_close(
        sample(denoiser, sets.values, times, c, offsets=sets.offsets, **how), whole, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_sampled_sets_do_not_depend_on_their_order(name):
    sets, c = drawn_sets()
    denoiser, times = shaken(NETWORKS[name]()), karras_steps(5, 0.002, 5.0)
    order = torch.randperm(len(sets), generator=torch.Generator().manual_seed(1))
    whole = Sets(sample(denoiser, sets.values, times, c, offsets=sets.offsets), sets.offsets)
    mixed = take(sets, order)
    found = sample(denoiser, mixed.values, times, c[order], offsets=mixed.offsets)
    torch.testing.assert_close(found, take(whole, order).values, rtol=1e-4, atol=1e-4)


def test_no_sets_are_sampled_to_none():
    nothing = sample(
        shaken(NETWORKS["epic"]()),
        torch.zeros(0, 3, dtype=torch.float64),
        karras_steps(3),
        torch.zeros(0, 1),
        offsets=torch.zeros(1, dtype=torch.int64),
    )
    assert nothing.shape == (0, 3)


# ---- generated constituents ------------------------------------------------------------------------------------------


def generate(model, pairs, key, seed=3, start=None, strength=None, **more):
    times = model.denoiser.schedule.sampling_times(5, 0.002, 80.0 if strength is None else strength)
    mjj = np.full(len(pairs), 3500.0)
    return model.generate(pairs, mjj, key, seed, times, start=start, **more)


def two(rows):
    """Sets of the jets of some events."""
    return torch.as_tensor(np.stack([2 * rows, 2 * rows + 1], axis=1).ravel())


def test_a_generated_jet_has_its_number_of_constituents(model, packed):
    pairs = packed[0][:40]
    found = generate(model, pairs, np.arange(40))
    np.testing.assert_array_equal(found.lengths.numpy(), pairs.reshape(-1, 5)[:, N])
    assert found.values.shape[1] == 3
    assert bool((found.values[:, 0] > 0).all())
    assert bool((found.values[:, 2].abs() <= np.pi).all())


def test_generated_constituents_add_up_to_their_jet(model, packed):
    pairs = packed[0][:40]
    found = generate(model, pairs, np.arange(40))
    assert model.conserves
    sums = jet_sums(*found.values.numpy().T, found.offsets.numpy())
    rows = pairs.reshape(-1, 5)
    np.testing.assert_allclose(sums.pt, rows[:, 0], rtol=1e-9)
    np.testing.assert_allclose(sums.eta, rows[:, 1], atol=1e-4)
    assert np.mean(np.abs(sums.mass / rows[:, MASS] - 1) < 1e-3) > 0.8


@pytest.mark.parametrize("how", [{}, {"members": 50}, {"workers": 2, "members": 100}], ids=str)
def test_an_event_s_constituents_depend_on_its_key_alone(model, packed, how):
    pairs, key = packed[0][:40], np.arange(1000, 1040)
    whole = generate(model, pairs, key)
    rows = np.random.default_rng(1).permutation(40)[:17]
    found = generate(model, pairs[rows], key[rows], **how)
    expected = take(whole, two(rows))
    assert torch.equal(found.offsets, expected.offsets)
    torch.testing.assert_close(found.values[:, 0], expected.values[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.values[:, 1:], expected.values[:, 1:], rtol=0, atol=1e-4)


def test_an_event_alone_is_the_event_among_others(model, packed):
    pairs, key = packed[0][:12], np.arange(12)
    whole = generate(model, pairs, key)
    for i in (0, 5, 11):
        expected = take(whole, two(np.array([i])))
        found = generate(model, pairs[i : i + 1], key[i : i + 1])
        torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("other", [{"seed": 4}, {"key": np.arange(40) + 99}], ids=["seed", "key"])
def test_another_seed_or_key_gives_other_constituents(model, packed, other):
    pairs = packed[0][:40]
    one, found = generate(model, pairs, np.arange(40)), generate(model, pairs, **({"key": np.arange(40)} | other))
    assert bool((one.values != found.values).all(dim=1).float().mean() > 0.99)


def test_the_two_jets_of_an_event_have_noise_of_their_own(model, packed):
    pairs = packed[0][:20].copy()
    pairs[:, 1] = pairs[:, 0]
    found = generate(model, pairs, np.arange(20))
    first, second = (take(found, 2 * torch.arange(20) + j).values for j in (0, 1))
    assert not bool((first == second).any())


def test_jets_are_generated_each_alone(model, packed):
    """What the other jet of an event is like changes nothing."""
    pairs = packed[0][:20]
    other = pairs.copy()
    other[:, 1] = packed[0][20:40, 1]
    one, found = generate(model, pairs, np.arange(20)), generate(model, other, np.arange(20))
    leading = [take(sets, 2 * torch.arange(20)).values for sets in (one, found)]
    torch.testing.assert_close(*leading, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("conserves", [True, False])
def test_little_noise_gives_the_parents_back(model, packed, conserves):
    pairs, sets = packed[0][:60], take(packed[1], torch.arange(120))
    start = refill(sets, sets.lengths.numpy(), np.arange(60), 1)
    found = generate(replace(model, conserves=conserves), pairs, np.arange(60), start=start, strength=0.004)
    rows = pairs.reshape(-1, 5).repeat(sets.lengths.numpy(), axis=0)
    values = found.values.numpy()
    fraction = np.log(values[:, 0] / rows[:, 0]) - sets.values.numpy()[:, 0]
    assert np.median(np.abs(fraction)) < 0.03
    assert np.median(np.abs(values[:, 1] - rows[:, 1] - sets.values.numpy()[:, 1])) < 0.005


def test_the_noise_decides_how_far_constituents_go(model, packed):
    pairs, sets = packed[0][:60], take(packed[1], torch.arange(120))
    rows = pairs.reshape(-1, 5).repeat(sets.lengths.numpy(), axis=0)
    moved = []
    for strength in (0.01, 0.3, 10.0):
        found = generate(model, pairs, np.arange(60), start=sets, strength=strength).values.numpy()
        moved.append(np.median(np.abs(np.log(found[:, 0] / rows[:, 0]) - sets.values.numpy()[:, 0])))
    assert moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("conserves", [True, False])
@pytest.mark.parametrize("partial", [True, False])
def test_a_device_makes_the_constituents_of_the_cpu(monkeypatch, model, packed, conserves, partial):
    pairs, sets = packed[0][:20], take(packed[1], torch.arange(40))
    more = {"start": sets, "strength": 1.0} if partial else {}
    some = replace(model, conserves=conserves)
    on_cpu = generate(some, pairs, np.arange(20), **more)
    monkeypatch.setattr(model_module, "in_torch", lambda _: True)
    monkeypatch.delattr(model_module, "event_normals")
    found = generate(some, pairs, np.arange(20), **more)
    assert torch.equal(found.offsets, on_cpu.offsets)
    torch.testing.assert_close(found.values, on_cpu.values, rtol=1e-4, atol=1e-4)


# ---- refilling -------------------------------------------------------------------------------------------------------


def refillable():
    values = torch.as_tensor(np.arange(18, dtype=float).reshape(6, 3))
    return Sets(values, torch.tensor([0, 2, 2, 5, 6]))


def test_refilled_sets_have_the_numbers_that_are_wanted():
    found = refill(refillable(), np.array([4, 3, 1, 0]), np.array([7, 8]), 1)
    assert found.lengths.tolist() == [4, 3, 1, 0]


def test_the_leading_members_are_kept():
    sets = refillable()
    found = refill(sets, np.array([1, 0, 2, 1]), np.array([7, 8]), 1)
    assert torch.equal(found.values, sets.values[[0, 2, 3, 5]])


def test_too_few_members_are_filled_up_with_copies():
    sets = refillable()
    found = refill(sets, np.array([6, 0, 9, 4]), np.array([7, 8]), 1)
    for i in (0, 2, 3):
        own, made = (take(one, torch.tensor([i])).values for one in (sets, found))
        assert torch.equal(made[: len(own)], own)
        assert {tuple(row) for row in made.tolist()} <= {tuple(row) for row in own.tolist()}


def test_copies_are_chosen_evenly():
    sets = Sets(torch.arange(12.0, dtype=torch.float64).reshape(4, 3), torch.tensor([0, 4, 4]))
    found = refill(sets, np.array([8004, 0]), np.array([7]), 1).values[4:, 0].numpy()
    counts = np.unique(found, return_counts=True)[1]
    assert counts == pytest.approx([2000] * 4, abs=200)


def test_sets_without_members_are_filled_with_their_axis():
    found = refill(refillable(), np.array([2, 5, 3, 1]), np.array([7, 8]), 1)
    made = take(found, torch.tensor([1])).values
    assert float(made[:, 0].exp().sum()) == pytest.approx(1)
    assert not made[:, 1:].any()


def test_refilling_does_not_depend_on_the_other_events():
    sets, lengths, key = refillable(), np.array([6, 2, 9, 4]), np.array([7, 8])
    whole = refill(sets, lengths, key, 1)
    late = refill(take(sets, torch.tensor([2, 3])), lengths[2:], key[1:], 1)
    assert torch.equal(late.values, take(whole, torch.tensor([2, 3])).values)


def test_refilling_with_what_is_there_changes_nothing(packed):
    sets = packed[1]
    found = refill(sets, sets.lengths.numpy(), np.arange(len(sets) // 2), 1)
    assert torch.equal(found.values, sets.values)


# ---- what decides the jets' kinematics -----------------------------------------------------------------------------


class Told(Denoiser):
    """Data that lie where the condition says: the flow ends in the condition itself."""

    def forward(self, x, t, condition=None, offsets=None):  # noqa: ARG002
        rows = condition if offsets is None else condition.repeat_interleave(offsets.diff(), dim=0)
        return rows.to(x.dtype).expand(-1, x.shape[1])


class Still(Denoiser):
    """A flow that moves nothing."""

    def forward(self, x, t, condition=None, offsets=None):  # noqa: ARG002
        return x


@pytest.mark.parametrize(("chart", "as_set"), [("solved", False), ("free", True)])
def test_kinematics_are_generated_under_the_mass_that_is_asked_for(events, packed, chart, as_set):
    """Generation: the condition of the jets' network is the target mass."""
    bounds = Bounds.of(packed[0])
    x, _ = coordinates(chart, packed[0], events.mjj, bounds, np.full((len(events), 2), 0.5))
    flat = x.reshape(-1, 5) if as_set else x
    copies = 2 if as_set else 1
    ones, mjj = np.ones(len(flat)), np.repeat(events.mjj, copies)
    scale = fit_scaling("standard", flat, mjj, ones, domain(chart, bounds))
    jets = JetModel(Told(), scale, chart, bounds, as_set)
    asked = np.linspace(3300, 3700, 40)
    found = jets.generate(asked, np.arange(40), 1, karras_steps(4))
    told = scale.condition(asked)
    column = 3 if as_set else 4
    mass = np.maximum(scale.mean[column] + scale.scale[column] * told[:, 0], 0)
    there = np.isfinite(found[:, 0, MASS])
    assert there.sum() > 20
    # either jet of a pair is generated at the same place; the network's condition is float32
    expected = [mass, mass if as_set else np.maximum(scale.mean[5] + scale.scale[5] * told[:, 0], 0)]
    np.testing.assert_allclose(found[there, :, MASS].T, np.array(expected)[:, there], rtol=1e-4)


def test_constituents_are_generated_for_their_jet(model, packed):
    """Generation: the condition of the constituents' network is the jet that they are made for."""

    class OfMass(Told):
        def forward(self, x, t, condition=None, offsets=None):
            return super().forward(x, t, condition[:, MASS : MASS + 1], offsets)

    pairs, mjj = packed[0][:40], np.full(40, 3500.0)
    free = replace(model, denoiser=OfMass(), conserves=False)
    found = free.generate(pairs, mjj, np.arange(40), 3, karras_steps(4))
    rows = pairs.reshape(-1, 5).repeat(found.lengths.numpy(), axis=0)
    told = model.scaling.conditions_of(rows, np.full(len(rows), 3500.0)).double().numpy()[:, [MASS]]
    expected = np.exp(model.scaling.inverse(np.repeat(told, 3, axis=1))[:, 0])
    np.testing.assert_allclose(found.values[:, 0].numpy() / rows[:, 0], expected, rtol=1e-4)


def test_as_many_masses_are_drawn_around_a_region_as_leave_it():
    """Masses: free kinematics are generated in a wider region, more events in the ratio of the spectrum's integrals."""
    edges, region = np.linspace(2700, 6000, 67), (3300.0, 3700.0)
    fit = fit_spectrum(1e5 * np.exp(-(edges[:-1] - 2700) / 600), edges)
    config = CONFIG.model_copy(update={"kinematics": "free", "margin": 0.1})
    free, nobody = method_of("from_noise", config), np.empty(0)
    pool = Pool(WINDOW, EventTable(nobody, nobody, nobody, nobody.astype(int)), nobody.astype(int))
    planned = plan_region(free, free.config.mass, pool, region, 1000, 7, fit, free.reach(region))
    uniform = starts(RECIPES["from_noise"], None, len(planned.starts), 7, lambda u: u).mjj
    np.testing.assert_allclose(planned.starts.mjj, draw(fit, 2970, 4070, uniform))
    more = expected_events(fit, 2970, 4070)[0] / expected_events(fit, *region)[0]
    assert len(planned.starts) == round(1000 * more)


def test_kinematics_of_a_parent_are_scaled_at_its_own_mass(model, events):
    """Drapes SB: with next to no noise a parent keeps its place among the jets of its mass at the target mass."""
    config = CONFIG.model_copy(update={"kinematics_strength": 0.002})
    still = replace(model, jets=replace(model.jets, denoiser=Still()), conserves=True)
    source = beside(events).take(beside(events).mjj > 3900)
    _, found = made(still, source, "from_sidebands", size=1.0, config=config)
    rows = np.argsort(source.event_id)[np.searchsorted(np.sort(source.event_id), found.parent_id)]
    middle = np.full((len(rows), 2), 0.5)
    places = []
    for jets, mjj in ((source.jets[rows], source.mjj[rows]), (found.jets, found.mjj)):
        x, _ = coordinates("solved", pack_jets(jets)[0], mjj, model.jets.bounds, middle)
        places.append(still.jets.scaled(x, mjj)[:, :4])
    assert len(rows) > 100
    # the noise is 0.002; the jets' masses, and with them the mass of the pair, are kept within 1 %
    assert np.median(np.abs(places[0] - places[1]), axis=0).max() < 0.1


@pytest.mark.parametrize("held", [VALIDATION, CLOSURE])
def test_scalings_and_bounds_of_jets_are_fitted_on_the_training_part_alone(events, held):
    """Scaling: other jets in the validation or the closure part move neither model's scaling, nor the bounds."""
    some, others = beside(events), parents_of(shower(1800, seed=8, most=40, prongs=0.5))
    others = beside(others).take(np.arange(len(some)))
    part = np.random.default_rng(1).choice([TRAIN, VALIDATION, CLOSURE], len(some), p=[0.7, 0.2, 0.1])
    jets = ak.where(part == held, others.jets, some.jets)
    mixed = replace(some, jets=jets, mjj=np.where(part == held, others.mjj, some.mjj))
    short = {"config": CONFIG.model_copy(update={"epochs": 1}), "training": TRAINING.model_copy(update={"epochs": 1})}
    one, other = (fitted(each, **short)[0] for each in (some, mixed))
    assert other.jets.scaling.to_dict() == one.jets.scaling.to_dict()
    assert other.jets.bounds == one.jets.bounds
    assert other.scaling.to_dict() == one.scaling.to_dict()


# ---- whole events ----------------------------------------------------------------------------------------------------


def method_of(method, config=CONFIG, features=("m_j1", "delta_m"), **template):
    whole = {"name": "t", "data": {"path": "none.h5"}, "features": features}
    template = {"method": method, "steps": 8, **template}
    if method == "from_simulation":
        template["source"] = "none.h5"
    return DrapesConstituents(Config.model_validate({**whole, "template": template, "constituents": config}))


def made(model, events, method="from_window", strength=2.24, size=1.0, config=CONFIG, region=None, **more):
    recipe = RECIPES[method]
    template = {"strength": strength} if recipe.partial else {}
    parents = None if recipe.source == "noise" else events
    mass = None if recipe.own_mass else lambda u: 3300 + 400 * u
    plan = starts(recipe, parents, size, 7, mass)
    task = SampleTask(7, region or WINDOW.in_signal_region)
    return plan, method_of(method, config, **template, **more).sample(model, plan, parents, task)


@pytest.fixture(scope="module")
def inside(events):
    return events.take(WINDOW.in_signal_region(events.mjj))


def test_little_noise_gives_parents_of_the_window_back(model, inside):
    plan, found = made(model, inside, strength=0.003)
    assert len(found.event_id) > 0.9 * len(plan.event_id)
    rows = np.searchsorted(inside.event_id, found.parent_id, sorter=np.argsort(inside.event_id))
    rows = np.argsort(inside.event_id)[rows]
    np.testing.assert_allclose(found.mjj, inside.mjj[rows], rtol=1e-3)
    assert np.median(np.abs(found.x[:, 0] - inside.x[rows, 0])) < 2


@pytest.mark.parametrize("method", ["from_noise", "from_window"])
def test_generated_events_are_kept_or_counted(model, inside, method):
    plan, found = made(model, inside, method, size=80 if method == "from_noise" else 1.0)
    assert set(found.lost) == set(LOSSES)
    assert len(found.event_id) + sum(found.lost.values()) == len(plan.event_id)
    assert WINDOW.in_signal_region(found.mjj).all()


def test_features_and_masses_are_those_of_the_jets(model, inside):
    _, found = made(model, inside)
    np.testing.assert_array_equal(found.mjj, invariant_mass(found.jets))
    expected = compute_features(("m_j1", "delta_m"), found.jets)
    np.testing.assert_array_equal(found.x, np.stack(list(expected.values()), axis=1))


def test_generated_jets_are_in_order(model, inside):
    _, found = made(model, inside)
    assert bool(ak.all(found.jets.pt[:, 0] >= found.jets.pt[:, 1]))
    inner = found.jets.constituents.pt
    assert bool(ak.all(inner[:, :, 1:] <= inner[:, :, :-1]))


@pytest.mark.parametrize("strength", [None, 1.0])
def test_a_chunk_of_parents_gives_the_events_of_the_whole(model, inside, strength):
    config = CONFIG.model_copy(update={"kinematics_strength": strength})
    _, whole = made(model, inside, size=1.5, config=config)
    parts = [made(model, inside.take(rows), size=1.5, config=config)[1] for rows in (slice(0, 13), slice(13, None))]
    np.testing.assert_array_equal(np.concatenate([one.event_id for one in parts]), whole.event_id)
    np.testing.assert_allclose(np.concatenate([one.mjj for one in parts]), whole.mjj, rtol=1e-4)
    np.testing.assert_allclose(np.concatenate([one.x for one in parts]), whole.x, rtol=1e-2, atol=0.5)


def test_a_chunk_without_parents_gives_no_event(model, inside):
    plan, found = made(model, inside.take(np.zeros(len(inside), dtype=bool)))
    assert len(plan.event_id) == len(found.event_id) == 0
    assert found.x.shape == (0, 2)
    assert sum(found.lost.values()) == 0


def test_masses_that_no_jets_have_are_counted(model, inside):
    bounds = replace(model.jets.bounds, leading_pt=50_000.0)
    _, found = made(replace(model, jets=replace(model.jets, bounds=bounds)), inside, "from_noise", size=20)
    assert found.lost["no_such_jets"] == 20
    assert len(found.event_id) == 0


def test_parents_need_their_jets(model, inside):
    bare = replace(inside, jets=None)
    with pytest.raises(ValueError, match="need their jets"):
        made(model, bare)


def test_events_without_constituents_stay_templates(events):
    """A training sample in which some jets have no constituents at all."""
    jets = shower(1000, least=0, most=6, seed=8)
    jets = jets[ak.all(jets.pt > 100, axis=1)]
    found, _ = fitted(beside(parents_of(jets)))
    pairs = pack_jets(jets)[0][:20].copy()
    pairs[:10, 1, N] = 0
    made = generate(found, pairs, np.arange(20))
    assert made.lengths.numpy()[1:20:2].tolist() == [0] * 10


# ---- what trains -----------------------------------------------------------------------------------------------------


KINDS = {
    "epic": {"network": "epic"},
    "deepsets": {"network": "deepsets"},
    "tokens": {"tokens": 2},
    "flow": {"path": "flow", "solver": "midpoint"},
    "free": {"kinematics": "free"},
    "pair": {"kinematics": "free", "kinematics_network": "deepsets"},
    "mjj": {"condition": ("pt", "mjj")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_makes_events_and_survives_its_cards(events, inside, tmp_path, kind):
    config = CONFIG.model_copy(update={**KINDS[kind], "epochs": 1})
    found, results = fitted(beside(events.take(slice(0, 500))), config)
    assert list(results) == ["jets", "constituents"]
    save_constituent_model(tmp_path, found)
    again = load_constituent_model(tmp_path)
    one, other = (made(each, inside, "from_noise", size=30, config=config)[1] for each in (found, again))
    assert one.lost == other.lost
    np.testing.assert_array_equal(one.mjj, other.mjj)
    assert ak.array_equal(one.jets.constituents.pt, other.jets.constituents.pt)


@pytest.mark.parametrize(("given", "expected"), [(None, False), (True, True)])
def test_jets_that_do_not_add_up_are_conserved_only_if_asked(events, given, expected):
    jets = ak.with_field(beside(events).jets, 1.2 * beside(events).jets.mass, "mass")
    some = replace(beside(events), jets=jets)
    config = CONFIG.model_copy(update={"conserve": given, "epochs": 1})
    assert fitted(some, config, TRAINING.model_copy(update={"epochs": 1}))[0].conserves is expected


def test_a_killed_training_of_constituents_goes_on(events, tmp_path, monkeypatch):
    some = beside(events.take(slice(0, 600)))
    whole, _ = fitted(some)
    plain = training_module.TrainingSettings
    monkeypatch.setattr(
        "drapes_hep.templates.constituents.fit.TrainingSettings", lambda **given: plain(**given, checkpoint_seconds=0)
    )

    def kill(name, epoch):
        if name == "constituents" and epoch.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        fitted(some, checkpoint=tmp_path / "model", progress=kill)
    assert {p.name for p in tmp_path.iterdir()} == {"model.jets.checkpoint", "model.constituents.checkpoint"}
    again, _ = fitted(some, checkpoint=tmp_path / "model")
    for one, other in ((again.denoiser, whole.denoiser), (again.jets.denoiser, whole.jets.denoiser)):
        assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize(
    ("method", "strength", "keeps", "expected"),
    [
        ("from_window", None, True, {"pt", "eta", "mass", "n", "mjj", "delta_phi_jj"}),
        ("from_window", None, False, {"n"}),
        ("from_window", 2.0, True, set()),
        ("from_noise", None, True, set()),
    ],
)
def test_what_a_template_takes_over(model, method, strength, keeps, expected):
    config = CONFIG.model_copy(update={"kinematics_strength": strength})
    chosen = method_of(method, config, **({"strength": 2.24} if RECIPES[method].partial else {}))
    assert set(chosen.kept(replace(model, conserves=keeps, adds_up=True))) == expected


# ---- on disk ---------------------------------------------------------------------------------------------------------


def constituent_files(folder):
    return [folder / part / name for part in ("jets", "constituents") for name in ("card.json", "model.safetensors")]


@pytest.fixture
def saved(model, tmp_path):
    written = save_constituent_model(tmp_path / "model", model)
    assert written == constituent_files(tmp_path / "model")
    assert all(path.is_file() for path in written)
    return tmp_path / "model"


def test_a_saved_model_makes_the_same_events(model, saved, inside):
    again = load_constituent_model(saved)
    assert again.hidden == model.hidden
    assert again.conserves == model.conserves
    one, other = made(model, inside)[1], made(again, inside)[1]
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.event_id, other.event_id)


def edited(folder, part, change):
    path = next(p for p in constituent_files(folder) if p.parent.name == part and p.suffix == ".json")
    card = read_json(path)
    change(card["extra"])
    path.write_text(json.dumps(card))


@pytest.mark.parametrize("part", ["jets", "constituents"])
def test_models_that_hide_different_windows_do_not_belong_together(saved, part):
    edited(saved, part, lambda card: card.update(hidden=[[3300, 3800]]))
    with pytest.raises(RunDirectoryError, match="different windows"):
        load_constituent_model(saved)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("jets", lambda card: card.pop("scaling")),
        ("jets", lambda card: card.pop("bounds")),
        ("jets", lambda card: card["bounds"].pop("abs_eta")),
        ("jets", lambda card: card.update(hidden=None)),
        ("constituents", lambda card: card.pop("conserves")),
        ("constituents", lambda card: card["scaling"].update(radius=[0.0, 1.0])),
        ("constituents", lambda card: card["scaling"].update(log_fraction="none")),
        ("constituents", lambda card: card.update(hidden=[[3300]])),
    ],
)
def test_a_damaged_card_is_said_in_one_line(saved, part, change):
    edited(saved, part, change)
    with pytest.raises(RunDirectoryError, match="is not a checkpoint of a constituent model") as said:
        load_constituent_model(saved)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("which", range(4))
def test_a_missing_or_cut_file_is_said(saved, which):
    path = constituent_files(saved)[which]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunDirectoryError):
        load_constituent_model(saved)
    path.unlink()
    with pytest.raises(RunDirectoryError, match="incomplete model checkpoint"):
        load_constituent_model(saved)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), ""),
        (("model.1a.checkpoint",), "features"),
        (("model.1a.jets.checkpoint",), "jets"),
        (("model.1a.jets.checkpoint", "model.1a.constituents.checkpoint"), "constituents and jets"),
        (("model.2b.jets.checkpoint",), ""),
    ],
)
def test_which_trainings_were_cut_off(tmp_path, names, said):
    for name in names:
        (tmp_path / name).touch()
    assert unfinished(tmp_path / "model.1a") == said
