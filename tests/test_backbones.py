"""Networks for sets by their names: the package's own, and a user's class."""

from __future__ import annotations

import sys

import pytest
import torch
from test_howto import example
from torch import nn

from drapes_hep.config import load_config
from drapes_hep.diffusion.cards import load_model, save_model
from drapes_hep.diffusion.denoisers import DENOISERS
from drapes_hep.errors import ConfigError
from drapes_hep.networks import AttentiveDeepSets, EPiC, SetTransformer
from drapes_hep.networks.backbones import check_backbone, find_backbone, make_backbone
from drapes_hep.networks.sets import SetBackbone, dense
from drapes_hep.templates.family import model_settings

SIZES = {"width": 8, "depth": 2, "heads": 2, "tokens": 0}
OFFSETS = torch.tensor([0, 3, 3, 7])


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The network of docs/how-to.md, where a user has it."""
    (tmp_path / "my_networks.py").write_text(example("MeanField"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_networks:MeanField"
    sys.modules.pop("my_networks", None)


class Without(nn.Module):
    """Says nothing of how it is built."""

    def __init__(self, features, condition_features, *, seed):  # noqa: ARG002
        super().__init__()


class Forgets(SetBackbone):
    """Records an argument that it does not take."""

    def __init__(self, features, condition_features=0, *, width=8, seed=0):
        super().__init__(
            features=features,
            condition_features=condition_features,
            width=width,
            embedding="cosine",
            embedding_size=4,
            seed=seed,
        )


class Wrong(nn.Module):
    """Gives one number a member."""

    def __init__(self, features, condition_features, *, seed=0):  # noqa: ARG002
        super().__init__()
        self.only = dense(features, 1, torch.Generator().manual_seed(seed))

    @property
    def config(self):
        return {"features": 3, "condition_features": 2}

    def forward(self, x, noise, condition=None, *, offsets):  # noqa: ARG002
        return self.only(x)


NOTHING = object()


@pytest.mark.parametrize(
    ("name", "kind", "known"),
    [
        ("transformer", SetTransformer, {"width", "depth", "heads", "tokens"}),
        ("epic", EPiC, {"width", "depth"}),
        ("deepsets", AttentiveDeepSets, {"width", "depth", "heads"}),
    ],
)
def test_the_packages_own_have_the_sizes_that_they_know(name, kind, known):
    made = make_backbone(name, 3, 2, SIZES, seed=1)
    assert type(made) is kind
    assert {size: made.config.get(size) for size in known} == {size: SIZES[size] for size in known}
    check_backbone(name, 3, 2, SIZES)


def test_the_example_of_the_documentation_is_saved_and_built_again(mine, tmp_path):
    check_backbone(mine, 3, 2, SIZES)
    denoiser = DENOISERS["edm"](make_backbone(mine, 3, 2, SIZES, seed=1))
    with torch.no_grad():
        for value in denoiser.parameters():
            value.add_(0.1)
    save_model(tmp_path / "model", denoiser)
    again, _ = load_model(tmp_path / "model")
    x, t, told = torch.randn(7, 3), torch.rand(3) + 0.1, torch.randn(3, 2)
    with torch.no_grad():
        torch.testing.assert_close(again(x, t, told, offsets=OFFSETS), denoiser(x, t, told, offsets=OFFSETS))


def test_an_edited_network_is_another_model(mine, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"{{name: x, data: {{path: a.h5}}, constituents: {{network: '{mine}'}}}}")
    config = load_config(path)
    before = model_settings(config)
    with (tmp_path / "my_networks.py").open("a", encoding="utf-8") as file:
        file.write("\n# edited\n")
    assert model_settings(config) != before


def test_the_seed_decides_the_weights(mine):
    one, same, other = (make_backbone(mine, 3, 2, SIZES, seed=seed).first.weight for seed in (1, 1, 2))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:Class", "ModuleNotFoundError"),
        (f"{__name__}:Missing", "AttributeError"),
        (f"{__name__}:NOTHING", "no class on torch.nn.Module"),
        (f"{__name__}:Without", "needs a property config"),
        (f"{__name__}:Forgets", "cannot be built again .*embedding"),
        (f"{__name__}:Wrong", r"gives \(5, 1\) for members of shape \(5, 3\)"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused(name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_backbone(name, 3, 2, SIZES)
    assert str(caught.value).startswith(f"constituents.network {name}: ")
    assert "\n" not in str(caught.value)


def test_tokens_are_not_left_out_silently(mine):
    with pytest.raises(ConfigError, match=r"constituents\.tokens: the network .* has none"):
        make_backbone(mine, 3, 2, {**SIZES, "tokens": 4}, seed=1)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        find_backbone("transfomer")
