"""Networks for constituents by their names: the package's own, and a user's class."""

from __future__ import annotations

import sys

import pytest
import torch
from test_howto import example
from torch import nn

from drapes_hep.config import ConstituentsConfig, load_config
from drapes_hep.errors import ConfigError
from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.epic import EPiC
from drapes_hep.networks.set_backbone import SetBackbone
from drapes_hep.networks.transformer import SetTransformer
from drapes_hep.templates.constituents.backbones import check_backbone, find_backbone, make_backbone
from drapes_hep.templates.registry import method_settings

SIZES = {"width": 8, "depth": 2, "heads": 2}


def section(name, **more):
    return ConstituentsConfig.model_validate({**SIZES, "network": name, **more})


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The network of docs/how-to.md, where a user has it."""
    (tmp_path / "my_networks.py").write_text(example("MeanField"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "my_networks:MeanField"
    sys.modules.pop("my_networks", None)


class Plain(nn.Module):
    """As short as may be: no base class of the project, weights from torch's own generator, config an attribute."""

    def __init__(self, features, condition_features, *, seed=0, **sizes):  # noqa: ARG002
        super().__init__()
        self.config = {"features": features, "condition_features": condition_features, **sizes}
        self.only = nn.Linear(features, features)

    def forward(self, x, noise, condition=None, *, offsets):  # noqa: ARG002
        return self.only(x)


class Without(Plain):
    """Says nothing of how it is built."""

    def __init__(self, features, condition_features, *, seed=0):
        super().__init__(features, condition_features, seed=seed)
        self.config = None


class Explodes(nn.Module):
    """Cannot say how it is built."""

    def __init__(self, features, condition_features, *, seed=0):  # noqa: ARG002
        super().__init__()
        self.only = nn.Linear(features, features)

    @property
    def config(self):
        raise KeyError("width")

    forward = Plain.forward


class Forgets(SetBackbone):
    """Records an argument that it does not take."""

    def __init__(self, features, condition_features=0, *, width=8, seed=0):
        sizes = {"features": features, "condition_features": condition_features, "width": width}
        super().__init__(**sizes, embedding="cosine", embedding_size=4, seed=seed)
        self.only = nn.Linear(features, features)

    def body(self, x, context, layout):  # noqa: ARG002
        return self.only(x)


class Wrong(Plain):
    """Gives one number a member."""

    def forward(self, x, noise, condition=None, *, offsets):  # noqa: ARG002
        return self.only(x)[:, :1]


class PerSet(Plain):
    """Wants a noise level for each set."""

    def forward(self, x, noise, condition=None, *, offsets):  # noqa: ARG002
        return self.only(x) * noise.repeat_interleave(offsets.diff())[:, None]


class Tied(Plain):
    """Shares a weight between two layers."""

    def __init__(self, features, condition_features, *, seed=0):
        super().__init__(features, condition_features, seed=seed)
        self.other = nn.Linear(features, features)
        self.other.weight = self.only.weight

    def forward(self, x, noise, condition=None, *, offsets):  # noqa: ARG002
        return self.other(self.only(x))


class Changes(Plain):
    """Is built again otherwise: the sign is in no weight, and not in config."""

    made = 0

    def __init__(self, features, condition_features, *, seed=0):
        super().__init__(features, condition_features, seed=seed)
        type(self).made += 1
        self.sign = -1.0 if type(self).made % 2 else 1.0

    def forward(self, x, noise, condition=None, *, offsets):  # noqa: ARG002
        return self.sign * self.only(x)


def _made_by_a_function():
    class Local(Plain):
        """Nobody can import it."""

    return Local


Local = _made_by_a_function()
NOTHING = object()


@pytest.mark.parametrize(
    ("name", "kind", "known"),
    [
        ("transformer", SetTransformer, {"width", "depth", "heads"}),
        ("epic", EPiC, {"width", "depth"}),
        ("deepsets", AttentiveDeepSets, {"width", "depth", "heads"}),
    ],
)
def test_the_packages_own_have_the_sizes_that_they_know(name, kind, known):
    backbone = make_backbone(section(name), seed=1)
    assert type(backbone) is kind
    assert {size: backbone.config.get(size) for size in known} == {size: SIZES[size] for size in known}


@pytest.mark.parametrize("name", ["transformer", "epic", "deepsets", f"{__name__}:Plain", f"{__name__}:Local"])
@pytest.mark.parametrize("path", ["edm", "flow"])
def test_a_network_that_works_is_not_refused(name, path):
    check_backbone(section(name, path=path))


def test_the_example_of_the_documentation_works(mine):
    check_backbone(section(mine))


def test_a_class_that_takes_anything_is_given_all_sizes():
    assert make_backbone(section(f"{__name__}:Plain"), seed=1).config.items() >= SIZES.items()


@pytest.mark.parametrize("name", ["my_networks:MeanField", f"{__name__}:Plain"])
def test_the_seed_decides_the_weights(mine, name):
    first, same, other = (
        torch.cat([value.detach().ravel() for value in make_backbone(section(name), seed).parameters()])
        for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_backbone(section(f"{__name__}:Plain"))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_the_model_is_named_by_the_network_at_work_and_not_by_an_edited_file(mine, tmp_path):
    """The file may be edited while its class trains: what was trained keeps its name, a new process gives another."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{{name: x, data: {{path: a.h5}}, constituents: {{network: '{mine}'}}}}")
    config = load_config(path)
    before = method_settings(config)
    with (tmp_path / "my_networks.py").open("a", encoding="utf-8") as file:
        file.write("\n# edited\n")
    assert method_settings(config) == before
    del sys.modules["my_networks"]
    assert method_settings(config) != before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:Class", "module nowhere cannot be imported"),
        (f"{__name__}:Missing", "no class 'Missing'"),
        (f"{__name__}:NOTHING", r"is not a network: it is not a subclass of torch\.nn\.Module"),
        (f"{__name__}:Without", "cannot be saved .* has no config"),
        (f"{__name__}:Explodes", "cannot be saved .*KeyError"),
        (f"{__name__}:Forgets", "cannot be saved and loaded again: .*embedding"),
        (f"{__name__}:Wrong", r"returns \(5, 1\) for members of \(5, 3\)"),
        (f"{__name__}:PerSet", "cannot be evaluated at one noise level"),
        (f"{__name__}:Tied", "cannot be saved .*share memory"),
        (f"{__name__}:Changes", "changes when it is saved"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused(name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_backbone(section(name))
    assert str(caught.value).replace("'", "").startswith(f"constituents.network {name}: ")
    assert "\n" not in str(caught.value)


def test_tokens_are_not_left_out_silently(mine):
    with pytest.raises(ConfigError, match=r"constituents\.tokens: the network .* has no tokens"):
        make_backbone(section(mine, tokens=4), seed=1)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'transformer'"):
        find_backbone("transfomer")
