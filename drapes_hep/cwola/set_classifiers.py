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

import copy
import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import awkward as ak
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drapes_hep.cwola.classifiers import training_parts
from drapes_hep.diffusion.training import learning_rate
from drapes_hep.errors import ConfigError, FitError
from drapes_hep.events.ragged import KINEMATICS, low_level, pack_nested
from drapes_hep.events.types import AwkwardArray
from drapes_hep.networks.attention import packed_attention, pool_attention
from drapes_hep.networks.set_backbone import SetLayout, dense
from drapes_hep.packed import Sets, bounded, take
from drapes_hep.rng import stage_seed

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

_ROWS = 1 << 15
"""Constituents scored at once: with a width of 32 some 4 MiB a layer."""

_JET_FIELDS = ("pt", "eta", "phi", "mass")


_LOCK = threading.Lock()
_inside, _before = 0, 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run kernels on one thread each, whatever the folds that are trained side by side.

    The number is the process's: the first that enters sets it, the last that leaves sets it back. Every thread says it
    for itself as well, since a kernel's library asks the thread that calls it.
    """
    global _inside, _before
    with _LOCK:
        if _inside == 0:
            _before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before)


@dataclass(frozen=True)
class _Dijets:
    """Events as the networks read them; event i has the sets and rows 2 i and 2 i + 1."""

    constituents: Sets
    jets: Tensor

    def __len__(self) -> int:
        return len(self.jets) // 2

    def choose(self, events: Tensor) -> _Dijets:
        rows = (2 * events[:, None] + torch.arange(2, device=events.device)).flatten()
        return _Dijets(take(self.constituents, rows), self.jets[rows])

    def to(self, device: str | torch.device) -> _Dijets:
        return _Dijets(self.constituents.to(device), self.jets.to(device))


def _fields(array: AwkwardArray) -> list[str]:
    return list(ak.fields(array)) if isinstance(array, ak.Array) else []


def _read(x: AwkwardArray, most: int) -> tuple[Sets, Tensor]:
    """Return the low-level variables, a set a jet, and the jets' pt, eta, phi, mass; (2 n, 4) in double precision."""
    if "jets" not in _fields(x) or "constituents" not in _fields(x["jets"]):
        raise ConfigError("this classifier reads constituents: it needs events with jets.constituents, not features")
    jets = x["jets"]
    for array, names, what in ((jets, _JET_FIELDS, "jets"), (jets["constituents"], KINEMATICS, "constituents")):
        absent = [name for name in names if name not in _fields(array)]
        if absent:
            raise ConfigError(f"this classifier reads constituents: its events' {what} have no {', '.join(absent)}")
    if not bool(ak.all(ak.num(jets["pt"], axis=1) == 2)):
        raise ValueError("every event needs exactly two jets")
    # to one type first: data and template may store theirs differently
    columns = {name: ak.values_astype(jets["constituents"][name], np.float32) for name in KINEMATICS}
    sets, _ = pack_nested(ak.zip(columns), KINEMATICS)
    numbers = [ak.to_numpy(ak.flatten(jets[name]), allow_missing=False) for name in _JET_FIELDS]
    kinematics = torch.from_numpy(np.stack(numbers, axis=1).astype(np.float64))
    if not (bool(sets.values.isfinite().all()) and bool(kinematics.isfinite().all())):
        raise ValueError("jets and constituents must be finite: a momentum, a direction or a mass is not")
    return low_level(sets, kinematics, most), kinematics


def _prepared(x: AwkwardArray, most: int, kinematics: bool) -> _Dijets:
    """Return the inputs of the networks, not yet scaled."""
    sets, jets = _read(x, most)
    values = sets.values
    # the bounds keep what a generator may have made, none at all or more than the jet, within reach of the scaling
    values[:, 0] = values[:, 0].clamp(1e-5, 10.0).log()
    pt, eta, phi, mass = jets.unbind(1)
    # of the constituents that are seen: all that a generated jet has, whatever number it was asked for
    number = torch.log1p(sets.lengths.double())
    mass = mass.clamp(min=0.0)
    if kinematics:
        # the azimuth as a point of the circle, or -pi and pi would be far apart
        given = [pt.log(), eta, phi.cos(), phi.sin(), torch.log1p(mass), number]
    else:
        given = [torch.log(mass / pt + 1e-3), number]
    return _Dijets(Sets(values.float(), sets.offsets), torch.stack(given, 1).float())


class _Dropout(nn.Module):
    """Dropout whose draws come from a generator of ours, on the device; needs one in training alone."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.part == 0:
            return x
        keep = torch.empty_like(x).bernoulli_(1.0 - self.part, generator=self.generator)
        return x * keep.div_(1.0 - self.part)


class _Perceptron(nn.Module):
    """Two layers after a normalisation, added to their input."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = dense(width, 2 * width, generator, math.sqrt(2.0))
        self.down = dense(2 * width, width, generator, 0.5)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.down(F.relu(self.up(self.norm(h))))
        return out


class _Block(nn.Module):
    """Transformer encoder block (arXiv:1706.03762, normalised first): self-attention inside each set, perceptron."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.inputs = dense(width, 3 * width, generator)
        self.output = dense(width, width, generator, 0.5)
        self.perceptron = _Perceptron(width, generator)

    def forward(self, h: Tensor, layout: SetLayout) -> Tensor:
        read = packed_attention(self.inputs(self.norm(h)), layout, self.heads)
        out: Tensor = self.perceptron(h + self.output(read))
        return out


class _Encoder(nn.Module):
    """Embedding and blocks: elements of sets to elements of sets, in whatever order they are."""

    def __init__(self, inputs: int, width: int, depth: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = dense(inputs, width, generator)
        self.blocks = nn.ModuleList(_Block(width, heads, generator) for _ in range(depth))

    def forward(self, x: Tensor, layout: SetLayout) -> Tensor:
        h: Tensor = self.embedding(x)
        for block in self.blocks:
            h = block(h, layout)
        return h


class _ClassToken(nn.Module):
    """Pooling by the cross-attention of a learnable class token (CaiT, arXiv:2103.17239): a vector a set."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.empty(width).uniform_(-1.0, 1.0, generator=generator))
        self.norm = nn.LayerNorm(width)
        self.query = dense(width, width, generator)
        self.inputs = dense(width, 2 * width, generator)
        self.output = dense(width, width, generator)
        self.perceptron = _Perceptron(width, generator)

    def forward(self, h: Tensor, layout: SetLayout) -> Tensor:
        k, v = self.inputs(self.norm(h)).chunk(2, dim=1)
        # a set without elements gathers nothing: the token alone
        q = self.query(self.token).expand(layout.sets, 1, -1)
        pooled = pool_attention(q, k, v, layout, self.heads)[:, 0]
        out: Tensor = self.perceptron(self.token + self.output(pooled))
        return out


class _ConstituentNetwork(nn.Module):
    """Encoder and class token of one jet, the same for both; their sum to a number an event."""

    def __init__(self, width: int, depth: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = _Encoder(3, width, depth, heads, generator)
        self.pool = _ClassToken(width, heads, generator)
        self.norm = nn.LayerNorm(width)
        self.hidden = dense(width, width, generator, math.sqrt(2.0))
        self.last = dense(width, 1, generator, 0.1)

    def forward(self, batch: _Dijets) -> Tensor:
        layout = SetLayout.of(batch.constituents.offsets)
        pooled = self.pool(self.encoder(batch.constituents.values, layout), layout)
        h = self.norm(pooled.view(len(batch), 2, -1).sum(1))
        out: Tensor = self.last(F.relu(self.hidden(h)))[:, 0]
        return out


class _DijetNetwork(nn.Module):
    """Particles of each jet and the two jets as nodes of one set, pooled to a number an event."""

    def __init__(
        self, jets: int, width: int, depth: int, heads: int, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.particles = _Encoder(3, width, depth, heads, generator)
        self.jets = _Encoder(jets, width, depth, heads, generator)
        self.norm = nn.LayerNorm(width)
        self.node = dense(width, width, generator, math.sqrt(2.0))
        self.hidden = dense(width, width, generator, math.sqrt(2.0))
        self.last = dense(width, 1, generator, 0.1)
        self.dropout = _Dropout(dropout)

    def _hidden(self, layer: nn.Module, h: Tensor) -> Tensor:
        return F.leaky_relu(self.dropout(layer(h)))

    def forward(self, batch: _Dijets) -> Tensor:
        layout = SetLayout.of(batch.constituents.offsets)
        pairs = SetLayout.of(torch.arange(0, 2 * len(batch) + 1, 2, device=batch.jets.device))
        particles = self._hidden(self.node, self.norm(self.particles(batch.constituents.values, layout)))
        jets = self._hidden(self.node, self.norm(self.jets(batch.jets, pairs)))
        # the mean over all N1 + N2 + 2 nodes: sums of a jet's particles, then of the two jets
        total = (layout.sum(particles) + jets).view(len(batch), 2, -1).sum(1)
        nodes = (layout.lengths + 1).view(len(batch), 2).sum(1, keepdim=True)
        out: Tensor = self.last(self._hidden(self.hidden, total / nodes))[:, 0]
        return out


def _batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffle and split, pass after pass, without an end; every batch of a pass but the last has ``size`` events."""
    while True:
        yield from torch.split(rows[torch.randperm(len(rows), generator=generator)], size)


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
        with _one_thread():
            self._fit(x, y, weight, group)

    def _fit(self, x: AwkwardArray, y: IntArray, weight: FloatArray, group: IntArray) -> None:
        held, balanced = training_parts(y, weight, group, _HELD_OUT, stage_seed(self._seed, "holdout"))
        events = _prepared(x, self._most, self._kinematics)
        mask = torch.from_numpy(held)
        self._set_scaling(events.choose(torch.nonzero(~mask)[:, 0]))
        events = self._scaled(events).to(self._device)
        target = torch.as_tensor(y, dtype=torch.float32).to(self._device)
        w = torch.as_tensor(balanced, dtype=torch.float32).to(self._device)
        net = self._network(events.jets.shape[1], self._generator("weights")).to(self._device)
        dropout = self._generator("dropout", self._device)
        for module in net.modules():
            if isinstance(module, _Dropout):
                module.generator = dropout
        self._net = self._trained(net, events, target, w, mask)

    def _set_scaling(self, events: _Dijets) -> None:
        """Take means and deviations from the training part."""
        self._shift, self._scale = [], []
        for values in (events.constituents.values, events.jets):
            values = values.double()
            empty = len(values) == 0  # jets without any constituents
            mean = values.new_zeros(values.shape[1]) if empty else values.mean(0)
            deviation = torch.ones_like(mean) if empty else values.std(0, correction=0)
            self._shift.append(mean.float())
            # a column that never varies says nothing, and must not be blown up by what it does elsewhere
            self._scale.append(torch.where(deviation > 1e-6, deviation, 1.0).float())

    def _scaled(self, events: _Dijets) -> _Dijets:
        sets = events.constituents
        values = (sets.values - self._shift[0]) / self._scale[0]
        return _Dijets(Sets(values, sets.offsets), (events.jets - self._shift[1]) / self._scale[1])

    def _trained(self, net: nn.Module, events: _Dijets, target: Tensor, w: Tensor, held: Tensor) -> nn.Module:
        train, valid = torch.nonzero(~held)[:, 0], torch.nonzero(held)[:, 0].to(self._device)
        a_pass = -(-len(train) // self._batch)
        steps = min(self._epochs * a_pass, self._steps)
        # a look an epoch; more often where the steps end before the epochs do, maybe within the first
        between = min(a_pass, -(-steps // _CHECKS)) if steps == self._steps else a_pass
        matrices = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim < 2]
        optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}], lr=self._rate
        )
        batches = _batches(train, self._batch, self._generator("batches"))
        best, best_state, idle, since = math.inf, copy.deepcopy(net.state_dict()), 0, 0
        for step in range(steps):
            for part in optimiser.param_groups:
                part["lr"] = learning_rate(step, steps, self._rate, _WARMUP)
            rows = next(batches).to(self._device)
            net.train()
            loss = F.binary_cross_entropy_with_logits(net(events.choose(rows)), target[rows], weight=w[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(net.parameters(), _CLIP)
            optimiser.step()
            since += 1
            if since < between and step + 1 < steps:
                continue
            since, value = 0, self._held_out_loss(net, events, target, w, valid)
            if not math.isfinite(value):
                raise FitError("the classifier's loss is not finite: lower its learning rate")
            if value < best:
                best, idle, best_state = value, 0, copy.deepcopy(net.state_dict())
            else:
                idle += 1
                # patience is counted in epochs, however often one looks
                if idle * between >= self._patience * a_pass:
                    break
        net.load_state_dict(best_state)
        return net.eval()

    def _held_out_loss(self, net: nn.Module, events: _Dijets, target: Tensor, w: Tensor, rows: Tensor) -> float:
        logits = self._logits(net, events.choose(rows))
        loss = F.binary_cross_entropy_with_logits(logits, target[rows].double(), weight=w[rows].double())
        return float(loss)

    def _logits(self, net: nn.Module, events: _Dijets) -> Tensor:
        """Return the log-odds in double precision, in batches of a bounded number of constituents."""
        net.eval()
        # an event is its constituents and its two jets
        starts = events.constituents.offsets[::2].cpu() + 2 * torch.arange(len(events) + 1)
        found = [torch.empty(0, dtype=torch.float64, device=self._device)]
        with torch.inference_mode():
            for start, stop in itertools.pairwise(bounded(starts, _ROWS)):
                rows = torch.arange(start, stop, device=events.jets.device)
                found.append(net(events.choose(rows).to(self._device)).double())
        return torch.cat(found)

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
        with _one_thread():
            events = self._scaled(_prepared(x, self._most, self._kinematics))
            return np.asarray(self._logits(self._net, events).cpu().numpy(), dtype=np.float64)


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
        return _ConstituentNetwork(self._width, self._depth, self._heads, generator)


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
        return _DijetNetwork(jets, self._width, self._depth, self._heads, self._dropout, generator)
