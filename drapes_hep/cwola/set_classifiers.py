r"""Classifiers on the constituents of the two jets: permutation invariant, packed, never padded.

Both see a jet's constituents as :math:`(\ln \min(\max(p_i / p_{jet}, 10^{-5}), 10), \Delta\eta_i, \Delta\phi_i)`, the
leading ones in transverse momentum, scaled to zero mean and unit variance on the training part. These variables are
relative to their jet, so no common factor of all momenta and no common rotation or boost changes them. That does not
hide m_JJ altogether: what a detector lets pass is cut off at a momentum in GeV, so the softest fractions still tell a
jet's momentum roughly (with the five softest of each jet, trees explain 14% of the variance of ln m_JJ of simulated
background, without them 0.2%). ``most`` leaves soft constituents out; the study ``sculpting`` shows what is left.

**Mass gives momentum away.** The constituents fix the *relative* mass :math:`m / p_T` of their jet, hence a network
that is given :math:`m` beside them has :math:`p_T = m / (m / p_T)`: on simulated jets to a part in :math:`10^4`.
From both jets' momenta m_JJ follows up to the angle between them. :class:`DijetTransformer` therefore gets
:math:`m / p_T`, unless it is asked for the jets' kinematics.

Training takes at most ``epochs`` passes and at most ``steps`` steps, whichever is less, whatever the number of events.
Events are read, packed and scaled once. All random numbers come from generators of the classifier's own, so trainings
in several threads do not disturb each other; kernels run on one thread of the CPU, which is part of the bits of the
result.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drapes_hep.cwola.classifiers import training_parts
from drapes_hep.cwola.jet_inputs import pack_events
from drapes_hep.cwola.network_files import load_network, read_tensors, save_network
from drapes_hep.cwola.task import ClassifierTask
from drapes_hep.events.types import AwkwardArray
from drapes_hep.kernels import one_thread
from drapes_hep.networks.set_pairs import Dropout, PairTransformer, SetPairs, TokenTransformer
from drapes_hep.packed import Sets, bounded
from drapes_hep.rng import stage_seed
from drapes_hep.training.loop import LoopSettings, train_network

__all__ = ["ConstituentTransformer", "DijetTransformer"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_HELD_OUT = 0.2
"""Part of the groups that stops the training; the full-phase-space paper's."""

_WARMUP = 0.05
"""Part of all steps over which the rate rises."""

_DECAY = 0.01
"""Weight decay of AdamW, on matrices alone."""

_CLIP = 1.0
"""Largest norm of the gradient: the first steps of attention may be wild."""

_CHECKS = 10
"""Least number of looks at the held-out part in a training whose steps end before its epochs."""

_SCALING = ("shift of constituents", "shift of jets", "scale of constituents", "scale of jets")
"""Names of what scales the inputs, in a classifier's file."""

_ROWS = 1 << 15
"""Constituents scored at once: with a width of 32 some 4 MiB a layer."""


class _SetClassifier(ABC):
    """What the two share: options, inputs, training and scores."""

    reads: ClassVar[str] = "constituents"
    """What the stages pass as ``x``."""

    _kinematics = False

    def __init__(
        self,
        seed: int,
        *,
        epochs: int = 10,
        steps: int = 1500,
        batch: int = 128,
        rate: float = 2e-3,
        patience: int = 5,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        most: int = 128,
        device: str | torch.device = "cpu",
    ) -> None:
        if min(epochs, steps, batch, patience, width, depth, heads, most) < 1 or width % heads:
            raise ValueError("options must be at least 1, and width a multiple of heads")
        if not 0 < rate < math.inf:
            raise ValueError("rate must be above 0 and finite")
        self._seed, self._epochs, self._steps, self._batch = seed, epochs, steps, batch
        self._rate, self._patience, self._most = rate, patience, most
        self._width, self._depth, self._heads = width, depth, heads
        self._device = torch.device(device)
        self._net: nn.Module | None = None

    @abstractmethod
    def _network(self, jets: int, generator: torch.Generator) -> nn.Module:
        """Make the network, ``jets`` inputs a jet."""

    def _generator(self, purpose: str, device: str | torch.device = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(stage_seed(self._seed, purpose))

    def fit(self, x: AwkwardArray, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        """Train.

        Parameters
        ----------
        x : awkward.Array
            n events: a field ``jets`` of two jets each, with pt, eta, phi, mass (GeV, rad) and ``constituents``, lists
            of records pt, eta, phi (GeV, rad).
        y : array of int, shape (n,)
            Classes.
        weight : array, shape (n,)
        group : array of int, shape (n,)
            Events of one group are held out together, or not at all.

        Raises
        ------
        ConfigError
            Events without jets, or jets without constituents.
        ValueError
            Events of other than two jets; numbers that are not finite, or jets without transverse momentum.
        FitError
            A class that is missing in the training or the held-out part, or a loss that is not finite.
        """
        with one_thread():
            self._fit(x, y, weight, group)

    def _fit(self, x: AwkwardArray, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        held_out, balanced = training_parts(y, weight, group, _HELD_OUT, stage_seed(self._seed, "holdout"))
        events = pack_events(x, self._most, self._kinematics)
        mask = torch.from_numpy(held_out)
        self._set_scaling(events.choose(torch.nonzero(~mask)[:, 0]))
        events = self._scaled(events).to(self._device)
        target = torch.as_tensor(y, dtype=torch.float32).to(self._device)
        w = torch.as_tensor(balanced, dtype=torch.float32).to(self._device)
        net = self._network(events.rows.shape[1], self._generator("weights")).to(self._device)
        dropout = self._generator("dropout", self._device)
        for module in net.modules():
            if isinstance(module, Dropout):
                module.generator = dropout
        self._net = self._trained(net, events, target, w, mask)

    def _set_scaling(self, events: SetPairs) -> None:
        """Take means and deviations from the training part."""
        self._shift, self._scale = [], []
        for values in (events.sets.values, events.rows):
            values = values.double()
            empty = len(values) == 0  # jets without any constituents
            mean = values.new_zeros(values.shape[1]) if empty else values.mean(0)
            deviation = torch.ones_like(mean) if empty else values.std(0, correction=0)
            self._shift.append(mean.float())
            # a column that never varies says nothing, and must not be blown up by what it does elsewhere
            self._scale.append(torch.where(deviation > 1e-6, deviation, 1.0).float())

    def _scaled(self, events: SetPairs) -> SetPairs:
        sets = events.sets
        values = (sets.values - self._shift[0]) / self._scale[0]
        return SetPairs(Sets(values, sets.offsets), (events.rows - self._shift[1]) / self._scale[1])

    def _trained(self, net: nn.Module, events: SetPairs, target: Tensor, w: Tensor, held_out: Tensor) -> nn.Module:
        valid = torch.nonzero(held_out)[:, 0].to(self._device)
        settings = LoopSettings(
            epochs=self._epochs,
            batch=self._batch,
            rate=self._rate,
            warmup=_WARMUP,
            steps=self._steps,
            validations=_CHECKS,
            patience=self._patience,
            weight_decay=_DECAY,
            clip=_CLIP,
        )
        task = ClassifierTask(
            events.choose,
            target,
            w,
            torch.nonzero(~held_out)[:, 0],
            lambda network: self._held_out_loss(network, events, target, w, valid),
        )
        train_network(net, task, settings, self._generator("batches"), title="the classifier's training")
        return net

    def _held_out_loss(self, net: nn.Module, events: SetPairs, target: Tensor, w: Tensor, rows: Tensor) -> float:
        logits = self._logits(net, events.choose(rows))
        loss = F.binary_cross_entropy_with_logits(logits, target[rows].double(), weight=w[rows].double())
        return float(loss)

    def _logits(self, net: nn.Module, events: SetPairs) -> Tensor:
        """Return the log-odds in double precision, in batches of a bounded number of constituents."""
        net.eval()
        # an event is its constituents and its two jets
        starts = events.sets.offsets[::2].cpu() + 2 * torch.arange(len(events) + 1)
        parts = [torch.empty(0, dtype=torch.float64, device=self._device)]
        with torch.inference_mode():
            for start, stop in itertools.pairwise(bounded(starts, _ROWS)):
                rows = torch.arange(start, stop, device=events.rows.device)
                parts.append(net(events.choose(rows).to(self._device)).double())
        return torch.cat(parts)

    def score(self, x: AwkwardArray) -> FloatArray:
        """Return the log-odds of data against template, shape (n,).

        Parameters
        ----------
        x : awkward.Array
            n events as :meth:`fit` takes them.

        Raises
        ------
        ConfigError, ValueError
            As :meth:`fit`.
        RuntimeError
            Before :meth:`fit`.
        """
        if self._net is None:
            raise RuntimeError("fit the classifier before it scores")
        with one_thread():
            events = self._scaled(pack_events(x, self._most, self._kinematics))
            return np.asarray(self._logits(self._net, events).cpu().numpy(), dtype=np.float64)

    def save(self, folder: Path) -> list[Path]:
        """Write the network; see :class:`~drapes_hep.cwola.classifiers.Saves`."""
        if self._net is None:
            raise RuntimeError("fit the classifier before it is saved")
        scaling = zip((*self._shift, *self._scale), _SCALING, strict=True)
        return save_network(folder, self._net, {name: values for values, name in scaling})

    def load(self, folder: Path) -> None:
        """Read the network back; see :class:`~drapes_hep.cwola.classifiers.Saves`."""
        tensors = read_tensors(folder)
        values = [tensors[name] for name in _SCALING]
        self._shift, self._scale = values[:2], values[2:]
        net = self._network(len(self._shift[1]), self._generator("weights")).to(self._device)
        load_network(net, tensors)
        self._net = net


class ConstituentTransformer(_SetClassifier):
    """Drapes' classifier on the constituents alone (arXiv:2312.10130, section 3.4).

    A transformer encoder without order turns a jet's constituents into vectors, a learnable class token pools them by
    cross-attention (CaiT, arXiv:2103.17239), the vectors of the two jets, made by the same network, are summed, and a
    small perceptron gives the log-odds. It sees no quantity of the jets themselves. The paper states no sizes; these
    are ours.

    Parameters
    ----------
    seed : int
        Of the weights, the batches and the held-out part.
    epochs : int
        Most passes over the training part.
    steps : int
        Most steps, whatever the number of events.
    batch : int
        Events a step.
    rate : float
        Largest learning rate of AdamW: linear warm-up, then a cosine to 0.
    patience : int
        Epochs without a better held-out loss after which training stops; the best weights are kept.
    width : int
        Width of the vectors; a multiple of ``heads``.
    depth : int
        Blocks of the encoder.
    heads : int
        Heads of each attention.
    most : int
        Constituents that a jet keeps, the leading ones in transverse momentum; 128 is the paper's.
    device : str or torch.device
        Where it is trained and scores. The result is the same bit for bit on the CPU alone.

    Raises
    ------
    ValueError
        An option out of range, or a width that is no multiple of ``heads``.
    """

    def _network(self, jets: int, generator: torch.Generator) -> nn.Module:  # noqa: ARG002 - jets are not seen
        return TokenTransformer(self._width, self._depth, self._heads, generator)


class DijetTransformer(_SetClassifier):
    r"""The full-phase-space paper's classifier: particles and jets as nodes of one set (arXiv:2310.06897, III C).

    The particles of each jet attend to each other, with the same functions for both jets; the two jets, embedded by
    functions of their own that let them attend to each other, are two more nodes. A layer acts on every node, the mean
    over all :math:`N_1 + N_2 + 2` is taken, and another layer and the output follow; both layers with dropout and
    LeakyReLU. Neither the order of the particles nor that of the jets matters.

    **What the jet nodes are given differs from the paper.** There it is the jets' kinematics, and from those of both
    jets m_JJ follows exactly: the classifier could learn the window, and cuts on it sculpt the spectrum. Here a jet
    gives :math:`(\ln(m / p_T + 10^{-3}), \ln(1 + N))`, N the constituents that are seen. Both follow from the
    constituents, so nothing is added that fixes a scale, and momenta scaled by a common factor leave the score as it
    is. The mass itself is not given, as beside the constituents it gives :math:`p_T` away (head of the module).

    Parameters
    ----------
    seed : int
        Of the weights, the batches, the dropout and the held-out part.
    kinematics : bool
        Give the jets' :math:`\ln p_T, \eta, \cos\phi, \sin\phi, \ln(1 + m), \ln(1 + N)` as the paper does. This **shows
        m_JJ to the classifier**: never for a search, whose spectrum it sculpts.
    dropout : float
        Part of the values that each of the two layers drops in training, in [0, 1).
    epochs, steps, batch, rate, patience, width, depth, heads, most, device
        As for :class:`ConstituentTransformer`; ``depth`` is of the particles' and the jets' blocks alike.

    Raises
    ------
    ValueError
        An option out of range, or a width that is no multiple of ``heads``.
    """

    def __init__(
        self,
        seed: int,
        *,
        kinematics: bool = False,
        dropout: float = 0.1,
        epochs: int = 10,
        steps: int = 1500,
        batch: int = 128,
        rate: float = 2e-3,
        patience: int = 5,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        most: int = 128,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(
            seed,
            epochs=epochs,
            steps=steps,
            batch=batch,
            rate=rate,
            patience=patience,
            width=width,
            depth=depth,
            heads=heads,
            most=most,
            device=device,
        )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self._kinematics, self._dropout = kinematics, dropout

    def _network(self, jets: int, generator: torch.Generator) -> nn.Module:
        return PairTransformer(jets, self._width, self._depth, self._heads, self._dropout, generator)
