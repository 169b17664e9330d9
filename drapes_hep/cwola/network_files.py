"""A classifier's network on disk: its weights and what scales its inputs, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor, nn

from drapes_hep.files import write_bytes

__all__ = ["load_network", "read_tensors", "save_network"]

_FILE = "network.safetensors"
_WEIGHTS = "network."
"""Before the names of weights, so that no other tensor is taken for one."""


def save_network(folder: Path, network: nn.Module, others: Mapping[str, Tensor]) -> list[Path]:
    """Write a network with some tensors beside its weights.

    Parameters
    ----------
    folder : Path
    network : Module
    others : mapping of str to Tensor

    Returns
    -------
    list of Path
        The file.
    """
    tensors = {f"{_WEIGHTS}{name}": value for name, value in network.state_dict().items()} | dict(others)
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_bytes(folder / _FILE, content)
    return [folder / _FILE]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors back, on the CPU.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict of str to Tensor
    """
    return dict(load((folder / _FILE).read_bytes()))


def load_network(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put weights that were read into a network of the same architecture.

    Parameters
    ----------
    network : Module
    tensors : mapping of str to Tensor
        From :func:`read_tensors`.
    """
    network.load_state_dict(
        {name.removeprefix(_WEIGHTS): value for name, value in tensors.items() if name.startswith(_WEIGHTS)}
    )
    network.eval()
