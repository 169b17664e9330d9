"""The papers' small network on features, as a classifier."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from drapes_hep.cwola.classifiers import training_parts
from drapes_hep.cwola.network_files import load_network, read_tensors, save_network
from drapes_hep.cwola.task import ClassifierTask
from drapes_hep.networks.perceptron import Perceptron
from drapes_hep.rng import stage_seed
from drapes_hep.training.loop import LoopSettings, train_network

__all__ = ["Mlp"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Mlp:
    """The papers' small network: three hidden layers of 32 (CURTAINs, arXiv:2203.09470), best epoch kept.

    Parameters
    ----------
    seed : int
        Of the weights, the batches and the held-out part.
    epochs : int
        Passes over the training part at most.
    batch : int
        Events per step.
    rate : float
        Learning rate of Adam, annealed by a cosine.
    patience : int
        Epochs without improvement after which training stops.

    Raises
    ------
    ValueError
        An option out of range.
    """

    reads: ClassVar[str] = "features"

    def __init__(
        self, seed: int, *, epochs: int = 40, batch: int = 512, rate: float = 1e-3, patience: int = 10
    ) -> None:
        if min(epochs, batch, patience) < 1 or not 0 < rate < math.inf:
            raise ValueError("epochs, batch and patience must be at least 1, rate above 0 and finite")
        self._seed, self._epochs, self._batch, self._rate, self._patience = seed, epochs, batch, rate, patience
        self._net: nn.Module | None = None

    def fit(self, x: FloatArray, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        """Train; see :class:`~drapes_hep.cwola.classifiers.Classifier`."""
        held_out, balanced = training_parts(y, weight, group, 0.25, stage_seed(self._seed, "holdout"))
        self._mean, self._scale = x[~held_out].mean(0), x[~held_out].std(0) + 1e-12
        z, mask = self._scaled(x), torch.as_tensor(held_out)
        target, w = (torch.as_tensor(values, dtype=torch.float32) for values in (y, balanced))
        valid = torch.nonzero(mask)[:, 0]

        def held_out_loss(net: nn.Module) -> float:
            with torch.inference_mode():
                return float(binary_cross_entropy_with_logits(net(z[valid]), target[valid], weight=w[valid]))

        settings = LoopSettings(
            epochs=self._epochs, batch=self._batch, rate=self._rate, starts_high=True, patience=self._patience
        )
        self._net = self._network(x.shape[1])
        task = ClassifierTask(lambda rows: z[rows], target, w, torch.nonzero(~mask)[:, 0], held_out_loss)
        generator = torch.Generator().manual_seed(self._seed)
        train_network(self._net, task, settings, generator, title="the classifier's training")

    def _network(self, features: int) -> Perceptron:
        return Perceptron(features, (32, 32, 32), self._seed)

    def save(self, folder: Path) -> list[Path]:
        """Write the network; see :class:`~drapes_hep.cwola.classifiers.Saves`."""
        if self._net is None:
            raise RuntimeError("fit the classifier before it is saved")
        scaling = {"mean": torch.from_numpy(self._mean), "scale": torch.from_numpy(self._scale)}
        return save_network(folder, self._net, scaling)

    def load(self, folder: Path) -> None:
        """Read the network back; see :class:`~drapes_hep.cwola.classifiers.Saves`."""
        tensors = read_tensors(folder)
        self._mean, self._scale = (tensors[name].numpy() for name in ("mean", "scale"))
        self._net = self._network(len(self._mean))
        load_network(self._net, tensors)

    def _scaled(self, x: FloatArray) -> Tensor:
        return torch.as_tensor((x - self._mean) / self._scale, dtype=torch.float32)

    def score(self, x: FloatArray) -> FloatArray:
        """Return the log-odds of data against template, shape (n,)."""
        if self._net is None:
            raise RuntimeError("fit the classifier before it scores")
        with torch.inference_mode():
            return np.asarray(self._net(self._scaled(x)).double().numpy())
