"""The training loop: batches, rates, what is validated and when, and what its options do."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from drapes_hep.errors import FitError
from drapes_hep.training.checkpoint import Checkpoint
from drapes_hep.training.loop import LoopSettings, train_network

SETTINGS = LoopSettings(epochs=4, batch=10, rate=0.1)


class Line:
    """Rows of a straight line; validation losses may be told beforehand."""

    def __init__(self, rows=45, losses=None, scale=1.0):
        self.x = torch.linspace(-1, 1, rows)[:, None]
        self.y, self.scale = 2 * self.x + 1, scale
        self.losses = None if losses is None else iter(losses)
        self.sizes, self.seen = [], []

    def __len__(self):
        return len(self.x)

    def batches(self, order, size, _):
        return iter(torch.split(order, size))

    def loss(self, network, batch):
        assert network.training
        self.sizes.append(len(batch))
        return self.scale * (network(self.x[batch]) - self.y[batch]).square().mean()

    def validation_loss(self, network):
        assert not network.training
        self.seen.append([p.detach().clone() for p in network.parameters()])
        with torch.no_grad():
            loss = float((network(self.x) - self.y).square().mean())
        return loss if self.losses is None else next(self.losses)


def made():
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(0.5)
        network.bias.fill_(-0.5)
    return network


def trained(task, settings=SETTINGS, **more):
    network = made()
    curve = train_network(network, task, settings, torch.Generator().manual_seed(1), **more)
    return network, curve


KINDS = {
    "plain": SETTINGS,
    "averaged": replace(SETTINGS, ema=0.9),
    "buffer": replace(SETTINGS, one_buffer=True),
    "averaged buffer": replace(SETTINGS, one_buffer=True, ema=0.9),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_weights_are_used(kind):
    task = Line(losses=[3.0, 1.0, 2.0, 1.5])
    network, curve = trained(task, KINDS[kind])
    assert (curve.best_epoch, len(curve.history), curve.stopped_early) == (2, 4, False)
    for p, best in zip(network.parameters(), task.seen[1], strict=True):
        assert torch.equal(p, best)
    assert not torch.equal(task.seen[1][0], task.seen[3][0])
    assert not network.training


def test_one_buffer_learns_the_same():
    (one, _), (other, _) = trained(Line()), trained(Line(), replace(SETTINGS, one_buffer=True))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_every_row_is_seen_once_per_pass():
    task = Line()
    trained(task, replace(SETTINGS, epochs=2))
    assert task.sizes == [10, 10, 10, 10, 5] * 2


def test_rows_that_fill_no_batch_are_left_out_if_asked():
    task = Line()
    trained(task, replace(SETTINGS, epochs=2, drop_last=True))
    assert task.sizes == [10] * 8


def test_patience_ends_a_training():
    _, curve = trained(Line(losses=itertools.count(1.0)), replace(SETTINGS, epochs=50, patience=3))
    assert (len(curve.history), curve.best_epoch, curve.stopped_early) == (4, 1, True)


@pytest.mark.parametrize(
    ("epochs", "steps", "taken", "validations"),
    [(1000, 7, 7, 7), (1000, 20, 20, 10), (1000, 25, 25, 9), (1000, 60, 60, 12), (4, 400, 20, 4)],
)
def test_steps_that_end_early_are_validated_more_often(epochs, steps, taken, validations):
    """Of five steps per pass, every one is validated, every second, every third; at last every pass."""
    task = Line()
    _, curve = trained(task, replace(SETTINGS, epochs=epochs, steps=steps, validations=10))
    assert (len(task.sizes), len(curve.history), curve.stopped_early) == (taken, validations, False)


def test_patience_counts_passes_however_often_one_validates():
    """Twenty steps of five per pass, a validation every two: patience of one pass is three validations."""
    settings = replace(SETTINGS, epochs=1000, steps=20, validations=10, patience=1)
    _, curve = trained(Line(losses=itertools.count(1.0)), settings)
    assert len(curve.history) == 4


def test_a_training_that_starts_high_has_the_rates_of_torch():
    rates = []
    network = made()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4)
    for _ in range(4):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    _, curve = trained(Line(), replace(SETTINGS, batch=45, starts_high=True))
    assert [line.rate for line in curve.history] == pytest.approx(rates, rel=1e-12)


def test_weights_decay_in_matrices_alone():
    network, curve = trained(Line(scale=0.0), replace(SETTINGS, batch=45, weight_decay=0.2))
    # the slope falls away from the truth, so the first of the validations is the best
    assert curve.best_epoch == 1
    assert network.bias.item() == -0.5
    assert network.weight.item() == pytest.approx(0.5 * (1 - 0.2 * curve.history[0].rate))


def test_a_clipped_gradient_has_the_norm_that_is_asked_for(monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def watched(self, *args):
        norms.append(float(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]).norm()))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    trained(Line(scale=1e3), replace(SETTINGS, epochs=1, clip=0.25))
    assert norms == pytest.approx([0.25] * 5, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_a_training_with_its_name():
    with pytest.raises(FitError, match=r"^the classifier's training diverged in epoch 2: lower its rate \(now 0\.1\)$"):
        trained(Line(losses=[1.0, float("nan")]), title="the classifier's training")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"steps": 0},
        {"validations": 0},
        {"patience": 0},
        {"warmup": 1.0},
        {"ema": 1.0},
        {"rate": 0.0},
        {"warmup": 0.1, "starts_high": True},
        {"one_buffer": True, "weight_decay": 0.1},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"at least 1|training needs|excludes"):
        replace(SETTINGS, **wrong)


@pytest.mark.parametrize("wrong", [{}, {"one_buffer": True, "steps": 7, "epochs": 100, "validations": 7}])
def test_a_checkpoint_needs_one_buffer_and_whole_passes(tmp_path, wrong):
    with pytest.raises(ValueError, match="one buffer"):
        trained(Line(), replace(SETTINGS, **wrong), checkpoint=Checkpoint(tmp_path / "one", ""))
