"""Models on disk: ``model.safetensors`` with the weights, ``card.json`` with all else. Nothing read back is a pickle.

The card says what builds the denoiser (network, preconditioning, schedule), the hash of the weights, and what the
caller adds: scaling, window, seed, hash of the data. The card is written last: a folder that has one has a whole model.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from drapes_hep.diffusion.denoisers import DENOISERS, PreconditionedDenoiser
from drapes_hep.diffusion.schedules import EDMSchedule, FlowSchedule
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import parse_json, write_bytes

__all__ = ["CARD", "WEIGHTS", "load_model", "read_card", "save_model"]

CARD, WEIGHTS = "card.json", "model.safetensors"
_VERSION = 1
_OWN = f"{__name__.partition('.')[0]}.networks."
"""Where the package's own networks are."""
_SCHEDULES: dict[str, Any] = {"EDMSchedule": EDMSchedule, "FlowSchedule": FlowSchedule}


def save_model(folder: str | Path, denoiser: PreconditionedDenoiser, card: Mapping[str, Any] | None = None) -> Path:
    """Write a denoiser and its card.

    Parameters
    ----------
    folder : str or Path
        Made if it does not exist; a model in it is replaced.
    denoiser : PreconditionedDenoiser
        Its backbone must have a ``config`` property: the arguments, as JSON, that build it again.
    card : mapping, optional
        What the caller adds, as JSON; given back by :func:`load_model` under "extra".

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    RunDirectoryError
        If the folder cannot be written.
    TypeError
        If the card is not JSON or the backbone has no ``config``.
    """
    folder = Path(folder)
    backbone: Any = denoiser.backbone
    if not isinstance(getattr(backbone, "config", None), dict):
        raise TypeError(f"{type(backbone).__name__} has no config: it cannot be rebuilt")
    weights = save({name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()})
    schedule = denoiser.schedule
    content = {
        "card_version": _VERSION,
        "architecture": {
            "backbone": _name_of(type(backbone)),
            "arguments": backbone.config,
            "parameters": sum(p.numel() for p in denoiser.parameters()),
        },
        "preconditioning": next(name for name, kind in DENOISERS.items() if type(denoiser) is kind),
        "sigma_data": denoiser.sigma_data.tolist(),
        "schedule": {"name": type(schedule).__name__, "arguments": schedule.config},
        "torch": torch.__version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "extra": dict(card or {}),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # an old card with new weights would be inconsistent: better none
        (folder / CARD).unlink(missing_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"{folder}: cannot be written ({error.strerror or error})") from error
    write_bytes(folder / WEIGHTS, weights)
    write_bytes(folder / CARD, (text + "\n").encode())
    return folder


def _name_of(network: type[nn.Module]) -> str:
    return f"{network.__module__}:{network.__qualname__}"


def _backbone(name: str, arguments: Mapping[str, Any], network: type[nn.Module] | None) -> nn.Module:
    network_class: Any = network
    if network is None or name != _name_of(network):
        module, _, attribute = name.partition(":")
        # the card must not decide what is imported, since importing runs a module
        if not module.startswith(_OWN):
            requested = "" if network is None else f", and not the configuration's {_name_of(network)}"
            raise TypeError(f"{name} is not a network of this package{requested}")
        network_class = getattr(importlib.import_module(module), attribute)
        if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
            raise TypeError(f"{name} is not a backbone")
    built = network_class(**arguments)
    if not isinstance(built, nn.Module) or not isinstance(getattr(built, "config", None), dict):
        raise TypeError(f"{name} is not a backbone")
    return built


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read the card of a model.

    Parameters
    ----------
    folder : str or Path
        Where :func:`save_model` wrote.

    Returns
    -------
    dict
        The whole card; the caller's part under "extra".

    Raises
    ------
    RunDirectoryError
        If it is missing, damaged or of another version.
    """
    path = Path(folder) / CARD
    try:
        card = parse_json(path.read_bytes())
    except OSError as error:
        raise RunDirectoryError(
            f"{folder}: incomplete model checkpoint ({error.filename}: {error.strerror})"
        ) from error
    except ValueError as error:
        raise RunDirectoryError(f"{path}: not JSON ({error})") from error
    if not isinstance(card, dict) or card.get("card_version") != _VERSION:
        raise RunDirectoryError(f"{path}: not a model checkpoint of version {_VERSION}")
    return card


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", network: type[nn.Module] | None = None
) -> tuple[PreconditionedDenoiser, dict[str, Any]]:
    """Read a denoiser and its card.

    Parameters
    ----------
    folder : str or Path
        Where :func:`save_model` wrote.
    device : str or torch.device
        Where the denoiser goes.
    network : type, optional
        The class of the backbone, if it is not one of the package: the card alone may not import a module.

    Returns
    -------
    denoiser : PreconditionedDenoiser
        In evaluation mode.
    card : dict
        The whole card; the caller's part under "extra".

    Raises
    ------
    RunDirectoryError
        If a file is missing or cannot be read, the weights are not the card's, or the card asks for something that
        this version does not have, or for a network that is neither the package's nor ``network``.
    """
    folder = Path(folder)
    card = read_card(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise RunDirectoryError(
            f"{folder}: incomplete model checkpoint ({error.filename}: {error.strerror})"
        ) from error
    if hashlib.sha256(weights).hexdigest() != card.get("weights_sha256"):
        raise RunDirectoryError(
            f"{folder / WEIGHTS}: the weights do not match the checkpoint (sha256 differs): train again"
        )
    try:
        architecture, schedule = card["architecture"], card["schedule"]
        denoiser = DENOISERS[card["preconditioning"]](
            _backbone(architecture["backbone"], architecture["arguments"], network),
            card["sigma_data"],
            _SCHEDULES[schedule["name"]](**schedule["arguments"]),
        )
        denoiser.load_state_dict(load(weights))
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise RunDirectoryError(f"{folder / CARD}: cannot be rebuilt ({type(error).__name__}: {reason})") from error
    return denoiser.to(device).eval(), card
