"""A perceptron of a few hidden layers, one number per row: for classifiers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Perceptron"]


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, with torch's own first weights.

    Parameters
    ----------
    inputs : int
        Columns of a row.
    hidden : sequence of int
        Widths of the hidden layers.
    seed : int
        Of the first weights; torch's global generator is left as it was.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for wide, narrow in itertools.pairwise((inputs, *hidden)):
                layers += [nn.Linear(wide, narrow), nn.ReLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Compute one number per row, shape (n,)."""
        out: Tensor = self.layers(x)[:, 0]
        return out
