"""Find a backbone for sets by its name in the configuration, and build it."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from drapes_hep.errors import ConfigError
from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.epic import EPiC
from drapes_hep.networks.transformer import SetTransformer

__all__ = ["check_backbone", "find_backbone", "make_backbone"]

_KNOWN: dict[str, type[nn.Module]] = {"transformer": SetTransformer, "epic": EPiC, "deepsets": AttentiveDeepSets}


def find_backbone(name: str) -> type[nn.Module]:
    """Find a backbone's class.

    Parameters
    ----------
    name : str
        ``transformer``, ``epic``, ``deepsets`` or ``package.module:Class``.

    Returns
    -------
    type

    Raises
    ------
    ConfigError
        If there is no such class, or it is no module of torch.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"constituents.network {name}: {type(error).__name__}: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"constituents.network {name}: is no class on torch.nn.Module")
    return found


def make_backbone(
    name: str, features: int, condition_features: int, sizes: Mapping[str, int], *, seed: int
) -> nn.Module:
    """Build a backbone.

    Parameters
    ----------
    name : str
        As :func:`find_backbone` takes it.
    features, condition_features : int
        Numbers of a member, and of a set's condition.
    sizes : mapping of str to int
        Width, depth, heads and tokens; those that the class has no argument for are left out.
    seed : int
        Of the initial weights.

    Returns
    -------
    Module
        Called as :meth:`drapes_hep.networks.sets.SetBackbone.forward`.

    Raises
    ------
    ConfigError
        If there is no such class, or it refuses the arguments.
    """
    found: Any = find_backbone(name)
    known = inspect.signature(found).parameters
    if sizes.get("tokens", 0) and "tokens" not in known:
        raise ConfigError(f"constituents.tokens: the network {name} has none; leave it at 0")
    given = {size: value for size, value in sizes.items() if size in known}
    try:
        made: nn.Module = found(features, condition_features, **given, seed=seed)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"constituents.network {name}: cannot be built ({type(error).__name__}: {reason})") from error
    return made


def check_backbone(name: str, features: int, condition_features: int, sizes: Mapping[str, int]) -> None:
    """Check, before anything is trained, that a backbone can be called, saved and built again.

    Parameters
    ----------
    name, features, condition_features, sizes
        As for :func:`make_backbone`.

    Raises
    ------
    ConfigError
        With what is wrong.
    """
    made = make_backbone(name, features, condition_features, sizes, seed=0)
    arguments: Any = getattr(made, "config", None)
    if not isinstance(arguments, dict):
        raise ConfigError(f"constituents.network {name}: needs a property config, the arguments that build it again")
    offsets = torch.tensor([0, 2, 2, 5])
    told = torch.zeros(3, condition_features) if condition_features else None
    try:
        again = type(made)(**json.loads(json.dumps(arguments)))
        again.load_state_dict(made.state_dict())
        with torch.no_grad():
            shape = tuple(again(torch.zeros(5, features), torch.zeros(3), told, offsets=offsets).shape)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        what = f"cannot be built again from its config {arguments} and called"
        raise ConfigError(f"constituents.network {name}: {what} ({type(error).__name__}: {reason})") from error
    if shape != (5, features):
        raise ConfigError(f"constituents.network {name}: gives {shape} for members of shape {(5, features)}")
