"""What a classifier's network brings to the training loop: weighted cross-entropy of data against template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["ClassifierTask"]


class ClassifierTask:
    """Events of two classes, some held out.

    Parameters
    ----------
    inputs : callable
        From rows (k,) to what the network takes.
    target, weight : Tensor, shape (n,)
        Classes, 0 or 1, and weights, of all events.
    rows : Tensor of int, shape (m,)
        Events that are trained on.
    held_out_loss : callable
        From the network to the loss of the other events.
    """

    def __init__(
        self,
        inputs: Callable[[Tensor], Any],
        target: Tensor,
        weight: Tensor,
        rows: Tensor,
        held_out_loss: Callable[[nn.Module], float],
    ) -> None:
        self._inputs, self._target, self._weight, self._rows = inputs, target, weight, rows
        self._held_out_loss = held_out_loss

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, order: Tensor, size: int, _: torch.Generator) -> Iterator[Tensor]:
        """Yield the events of each batch."""
        return iter(torch.split(self._rows[order], size))

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Compute the mean weighted cross-entropy."""
        batch = batch.to(self._target.device)
        logits = network(self._inputs(batch))
        return binary_cross_entropy_with_logits(logits, self._target[batch], weight=self._weight[batch])

    def validation_loss(self, network: nn.Module) -> float:
        """Compute that of the events that are held out."""
        return self._held_out_loss(network)
