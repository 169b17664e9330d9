"""Backbones: shapes, invariances, the shared-noise path, initialisation."""

from __future__ import annotations

import pytest
import torch

from drapes_hep.networks.mlp import CosineEmbedding, ResidualMLP


def random_mlp(**options) -> ResidualMLP:
    """A network whose zero last layer is filled, so that its output says something."""
    net = ResidualMLP(5, options.pop("condition_features", 2), **options)
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return net


def inputs(n=37, c=2):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=g), torch.randn(n, generator=g) / 4, torch.randn(n, c, generator=g)


OPTIONS = [{"inject": i, "activation": a} for i in ("input", "blocks") for a in ("silu", "relu", "hardswish")]


@pytest.mark.parametrize("options", OPTIONS)
def test_inference_equals_the_differentiable_pass(options):
    net, (x, s, c) = random_mlp(**options), inputs()
    with_grad = net(x, s, c)
    keep = x.clone(), c.clone()
    with torch.inference_mode():
        without = net(x, s, c)
    torch.testing.assert_close(without, with_grad.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, keep[0])
    assert torch.equal(c, keep[1])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("condition", [0, 2])
def test_one_noise_level_for_all_rows(options, grad, condition):
    net, (x, _, c) = random_mlp(condition_features=condition, **options), inputs()
    condition_values = c if condition else None
    level = torch.tensor([-0.4])
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(
            net(x, level, condition_values), net(x, level.expand(len(x)), condition_values), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("inject", ["input", "blocks"])
def test_every_parameter_gets_a_gradient(inject):
    net, (x, s, c) = random_mlp(inject=inject), inputs()
    net(x, s, c).square().sum().backward()
    for name, p in net.named_parameters():
        if p.numel():
            assert torch.isfinite(p.grad).all(), name
            assert p.grad.abs().sum() > 0, name


def test_starts_at_zero_and_depends_on_the_seed_alone():
    x, s, c = inputs()
    state = torch.random.get_rng_state()
    net, same, other = ResidualMLP(5, 2, seed=1), ResidualMLP(5, 2, seed=1), ResidualMLP(5, 2, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(net(x, s, c), torch.zeros(len(x), 5))
    assert torch.equal(net.first, same.first)
    assert not torch.equal(net.first, other.first)


def test_signal_keeps_its_size_through_the_layers():
    net = ResidualMLP(5, 1, width=256, depth=4)
    assert 0.9 < float(net.first.detach().var()) * net.first.shape[1] < 1.1
    assert 1.8 < float(net.hidden[0].detach().var()) * 256 < 2.2


def test_config_builds_the_same_architecture():
    net = random_mlp(inject="blocks", width=32, depth=3, embedding=8, activation="relu")
    again = ResidualMLP(**net.config)
    again.load_state_dict(net.state_dict())
    x, s, c = inputs()
    assert torch.equal(again(x, s, c), net(x, s, c))


def test_depth_of_one_and_flops():
    x, s, c = inputs()
    assert ResidualMLP(5, 2, depth=1, inject="blocks")(x, s, c).shape == (37, 5)
    net = ResidualMLP(5, 1)
    assert net.flops(shared_noise=False) == 2 * (64 * 22 + 3 * 64 * 64 + 64 * 5)
    assert net.flops(shared_noise=True) == 2 * (64 * 6 + 3 * 64 * 64 + 64 * 5)


def test_embedding_tells_noise_levels_apart():
    levels = torch.linspace(-1.6, 1.2, 200)  # sigma from 0.0017 to 120
    e = CosineEmbedding(16)(levels)
    distance = torch.cdist(e, e) + 10 * torch.eye(200)
    assert float(distance.min()) > 0.05


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"inject": "nowhere"}, {"activation": "tan"}])
def test_wrong_options(wrong):
    with pytest.raises(ValueError, match=r"positive|unknown"):
        ResidualMLP(5, 1, **wrong)
