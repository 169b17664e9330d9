"""Checkpoints of a training: tensors in one file, with a hash of what they belong to and one of what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import write_bytes

__all__ = ["Checkpoint", "fingerprint"]

_LAYOUT = 2
"""Of checkpoints: changes with what they hold."""


def fingerprint(settings: Sequence[Any], tensors: Sequence[Tensor | None]) -> str:
    """Return a hash of all that a training's result depends on.

    Parameters
    ----------
    settings : sequence
        What JSON can hold.
    tensors : sequence of Tensor or None
        Data and first weights, by shape and bytes; on any device.
    """
    digest = hashlib.sha256(json.dumps([_LAYOUT, *settings], sort_keys=True).encode())
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
        else:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training.

    Parameters
    ----------
    path : Path
    fingerprint : str
        Of the training that it belongs to, from :func:`fingerprint`.
    """

    path: Path
    fingerprint: str

    def write(self, tensors: Mapping[str, Tensor], seconds: float) -> None:
        """Replace the file by one with these tensors and the time that the training took so far."""
        metadata = {"fingerprint": self.fingerprint, "seconds": repr(seconds)}
        metadata["sha256"] = _digest(tensors, metadata)
        write_bytes(self.path, save(dict(tensors), metadata))

    def read(self) -> tuple[dict[str, Tensor], float] | None:
        """Read tensors and time back; None without a file.

        Raises
        ------
        RunDirectoryError
            If the file cannot be read, is damaged, or belongs to another training.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RunDirectoryError(
                f"{self.path}: not a readable checkpoint ({reason}); delete it to retrain"
            ) from error
        # safetensors has no checksum: a flipped bit would be another model, and nobody would know
        if metadata.get("sha256") != _digest(tensors, metadata):
            raise RunDirectoryError(f"{self.path}: damaged checkpoint (sha256 differs); delete it to retrain")
        if metadata.get("fingerprint") != self.fingerprint:
            raise RunDirectoryError(
                f"{self.path}: checkpoint of another training (settings, seed, data or network differ);"
                " delete it to retrain"
            )
        return tensors, float(metadata["seconds"])


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return a hash of a checkpoint's content."""
    digest = hashlib.sha256(json.dumps([metadata.get(name) for name in ("fingerprint", "seconds")]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # as bytes: a damaged file may state a type that numpy does not have
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
