"""The network for constituents: found by its name in the configuration, built, and tried before it is trained."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from drapes_hep.config import ConstituentsConfig
from drapes_hep.diffusion.checkpoints import load_model, save_model
from drapes_hep.diffusion.denoisers import DENOISERS
from drapes_hep.diffusion.losses import denoising_loss, noised
from drapes_hep.errors import ConfigError, RunDirectoryError, UsersCode, reason_of
from drapes_hep.plugins import Kind, load_class

__all__ = ["check_backbone", "find_backbone", "make_backbone"]

MEMBER = 3
"""Numbers of a constituent."""


def _network_problem(candidate: Any) -> str | None:
    fits = isinstance(candidate, type) and issubclass(candidate, nn.Module)
    return None if fits else "is not a subclass of torch.nn.Module"


_KIND = Kind(
    "network",
    "constituents.network",
    "a network",
    _network_problem,
    {
        "transformer": "drapes_hep.networks.transformer:SetTransformer",
        "epic": "drapes_hep.networks.epic:EPiC",
        "deepsets": "drapes_hep.networks.deepsets:AttentiveDeepSets",
    },
)


def find_backbone(name: str, folder: Path | None = None) -> type[nn.Module]:
    """Find a network's class.

    Parameters
    ----------
    name : str
        ``transformer``, ``epic``, ``deepsets``, an installed package's name, ``file.py:Class`` or
        ``package.module:Class``.
    folder : Path, optional
        Where the configuration is.

    Returns
    -------
    type

    Raises
    ------
    ConfigError
        If there is no such class, or it is not a module of torch.
    """
    return cast(type[nn.Module], load_class(_KIND, name, folder))


def make_backbone(config: ConstituentsConfig, seed: int) -> nn.Module:
    """Build the network of a configuration.

    Parameters
    ----------
    config : ConstituentsConfig
    seed : int
        Of the initial weights, whether the class takes them from it or from torch's own generator.

    Returns
    -------
    Module
        Called as :meth:`drapes_hep.networks.set_backbone.SetBackbone.forward`.

    Raises
    ------
    ConfigError
        If there is no such class, or it refuses the arguments.
    """
    name = config.network
    backbone: Any = find_backbone(name, config.folder)
    parameters = inspect.signature(backbone).parameters
    free = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if config.tokens and "tokens" not in parameters and not free:
        raise ConfigError(f"constituents.tokens: the network {name} has no tokens; set it to 0")
    sizes = {size: value for size, value in config.sizes.items() if size in parameters or free}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        with UsersCode(lambda error: _network_error(name, "cannot be built: ", error)):
            network: nn.Module = backbone(MEMBER, len(config.condition), **sizes, seed=seed)
    return network


def check_backbone(config: ConstituentsConfig) -> None:
    """Build a network, take a step of its training, save it, load it and evaluate it, on a handful of numbers.

    Parameters
    ----------
    config : ConstituentsConfig

    Raises
    ------
    ConfigError
        With what does not work.
    """
    # building draws weights, here and where a model is loaded
    with torch.random.fork_rng(devices=[]):
        _try(config)


def _try(config: ConstituentsConfig) -> None:
    name = config.network
    backbone = make_backbone(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 2, 2, 5])  # the second set is empty
    x, noise = torch.randn(2, 5, MEMBER, generator=generator).unbind()
    condition = torch.randn(3, len(config.condition), generator=generator)
    what = "cannot be trained: "
    with UsersCode(lambda error: _network_error(name, what, error)):
        shape = tuple(backbone(x, torch.zeros(3), condition, offsets=offsets).shape)
        if shape != tuple(x.shape):  # a column would be repeated
            raise ConfigError(f"constituents.network {name}: returns {shape} for members of {tuple(x.shape)}")
        denoiser = DENOISERS[config.path](backbone)
        data = noised(denoiser, x, torch.full((3,), 0.5), noise, offsets)
        denoising_loss(denoiser, data, condition, offsets).sum().backward()  # type: ignore[no-untyped-call]
        what = "cannot be saved and loaded again: "
        with tempfile.TemporaryDirectory() as folder:
            save_model(folder, denoiser)
            try:
                again, _ = load_model(folder, network=find_backbone(name, config.folder))
            except RunDirectoryError as error:  # of a folder that nobody has seen
                raise _network_error(name, what, error.__cause__ or error) from error
        # in training each set has its noise level, in sampling one serves all
        what = "cannot be evaluated at one noise level for all sets: "
        with torch.no_grad():
            before, after = (model.eval()(x, torch.tensor([0.5]), condition, offsets) for model in (denoiser, again))
    if not torch.equal(before, after):
        raise ConfigError(f"constituents.network {name}: changes when it is saved and loaded: check config")


def _network_error(name: str, what: str, error: BaseException) -> ConfigError:
    return ConfigError(f"constituents.network {name}: {what}{reason_of(error)[:200]}")
