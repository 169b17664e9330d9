"""Training of a denoiser: noise levels and noise of a pass, the loss of a batch, validation on noise that stays.

The loop is that of :mod:`drapes_hep.training.loop`. Validation uses the averaged weights, on noise levels and noise
that are drawn once, several per event. Weights of events are divided by their mean, so a batch of light events counts
less than one of heavy ones.

Events are rows of a tensor, or sets: then every member of a set counts alike in the loss, with its set's weight.

Several denoisers may be trained together (:func:`train_together`), each on its own events, which fills a GPU.

Memory: the events once, for sets the noise of one step, for rows that of one epoch; with them a step's activations.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from drapes_hep.diffusion.denoisers import PreconditionedDenoiser
from drapes_hep.diffusion.losses import Noised, denoising_loss, noised, stratified
from drapes_hep.kernels import Precision, kernel_threads, products
from drapes_hep.packed import Sets, bounded, runs
from drapes_hep.training.checkpoint import Checkpoint, fingerprint
from drapes_hep.training.curves import Epoch, TrainingCurve
from drapes_hep.training.loop import LoopSettings, NetworkTraining, train_stack

__all__ = [
    "DenoiserTraining",
    "TrainingResult",
    "TrainingSettings",
    "stack_size",
    "train",
    "train_together",
    "validation_loss",
]

_EVALUATION_ROWS = {"cpu": 1 << 12}
"""Rows of a validation batch: on a CPU what stays in cache, elsewhere what fills the device."""

_MANY_ROWS = 1 << 18

_BLOCK = 1 << 16
"""Rows that noise is added to at once: kernels on a step's rows take longer to call than to run."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a denoiser is trained.

    Parameters
    ----------
    epochs : int
        Passes over the training events at most.
    batch : int
        Events per step; a random remainder of each epoch that fills no batch is left out.
    rate : float
        Largest learning rate of Adam.
    warmup : float
        Fraction of all steps over which the rate rises linearly, 0 <= warmup < 1.
    ema : float
        Decay per step of the averaged weights.
    patience : int, optional
        Epochs without a better validation loss before it stops; None never stops.
    validation_draws : int
        Noise levels per validation event.
    checkpoint_seconds : float
        Least time between two checkpoints; one is always written at the end, and when Ctrl-C or SIGTERM ends it.
    precision : {"float32", "bf16"}
        Of the network's products on a GPU; parameters, averages and losses stay float32. A CPU always takes float32.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    epochs: int = 200
    batch: int = 1024
    rate: float = 6e-3
    warmup: float = 0.02
    ema: float = 0.999
    patience: int | None = 50
    validation_draws: int = 2
    checkpoint_seconds: float = 30.0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.validation_draws < 1:
            raise ValueError("validation_draws must be at least 1")
        self.loop()

    def loop(self) -> LoopSettings:
        """Return what the training loop takes of it."""
        return LoopSettings(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            warmup=self.warmup,
            drop_last=True,
            ema=self.ema,
            patience=self.patience,
            one_buffer=True,
            checkpoint_seconds=self.checkpoint_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingResult(TrainingCurve):
    """How a training went, and its denoiser.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser
        The one that was passed in, with the best averaged weights, in evaluation mode.
    """

    denoiser: PreconditionedDenoiser


class _Validation(NamedTuple):
    """Validation events, repeated, with the noise that they keep."""

    events: _Events
    data: Noised


def _fixed_draws(
    denoiser: PreconditionedDenoiser, events: _Events, draws: int, generator: torch.Generator
) -> _Validation:
    n = len(events)
    # row j of u holds the j-th part of the quantiles: every event sees low noise and high
    u = stratified(n * draws, n * draws, generator).view(draws, n)
    u = u[:, torch.randperm(n, generator=generator)].reshape(-1)
    device = events.x.device
    repeated = events.take(torch.arange(n).repeat(draws))
    noise = torch.randn(repeated.x.shape, generator=generator).to(device)
    t = denoiser.schedule.training_times(u.double()).float().to(device)
    return _Validation(repeated, noised(denoiser, repeated.x, t, noise, repeated.offsets))


@torch.no_grad()
def _validate(denoiser: PreconditionedDenoiser, v: _Validation, precision: Precision = "float32") -> float:
    device = v.events.x.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    weights = torch.zeros((), dtype=torch.float64, device=device)
    # how many members the sets of a part have is not known beforehand: their starts say
    starts = torch.arange(len(v.events) + 1) if v.events.offsets is None else v.events.offsets
    for first, last in itertools.pairwise(bounded(starts, _EVALUATION_ROWS.get(device.type, _MANY_ROWS))):
        part = v.events.part(first, last)
        rows = slice(int(starts[first]), int(starts[last]))
        data = Noised(v.data.input[rows], v.data.level[first:last], v.data.target[rows])
        with products(precision, device):
            loss = denoising_loss(denoiser, data, part.condition, part.offsets)
        total += torch.dot(loss.double(), part.row_weight.double())
        weights += part.row_weight.double().sum()
    return float(total / weights)


_TOGETHER = {"cpu": 4}
"""On a CPU the activations of more do not stay in cache: a step of 4 takes 0.94 of the time alone, of 8 1.1."""


def stack_size(device: str | torch.device, trainings: int) -> int:
    """Return how many of these trainings are best done together: all, but on a CPU."""
    return min(_TOGETHER.get(torch.device(device).type, trainings), trainings)


def validation_loss(
    denoiser: PreconditionedDenoiser,
    x: Tensor | Sets,
    condition: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    draws: int = 4,
    seed: int = 0,
) -> float:
    """Return the weighted mean loss on noise levels and noise that depend on ``seed`` alone.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser
        On the device of ``x``.
    x : Tensor of shape (n, d), or Sets
        Events.
    condition : Tensor, shape (n, c), optional
        Their condition.
    weight : Tensor, shape (n,), optional
        Their weights, default 1.
    draws : int
        Noise levels an event is seen at.
    seed : int
        Seed of the draws.

    Returns
    -------
    float
    """
    device = x.values.device if isinstance(x, Sets) else x.device
    events = _Events.of(x, condition, weight, device)
    return _validate(denoiser, _fixed_draws(denoiser, events, draws, torch.Generator().manual_seed(seed)))


def train(
    denoiser: PreconditionedDenoiser,
    x: Tensor | Sets,
    condition: Tensor | None,
    weight: Tensor | None,
    x_val: Tensor | Sets,
    condition_val: Tensor | None,
    weight_val: Tensor | None,
    settings: TrainingSettings | None = None,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    threads: int | None = 1,
    checkpoint: str | Path | None = None,
    progress: Callable[[Epoch], None] | None = None,
) -> TrainingResult:
    """Train a denoiser.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser
        Trained in place, from the weights that it has.
    x, x_val : Tensor of shape (n, d), or Sets
        Scaled training and validation events; for sets condition and weight belong to a set.
    condition, condition_val : Tensor, shape (n, c), optional
        Their condition, scaled.
    weight, weight_val : Tensor, shape (n,), optional
        Their weights, default 1.
    settings : TrainingSettings, optional
        Default ``TrainingSettings()``.
    seed : int
        Seed of order, noise levels and noise.
    device : str or torch.device
        Where it runs.
    threads : int, optional
        Threads inside a kernel (CPU); None leaves torch's setting. One is best for a network of 64: two took 25 times
        as long where another process had a core. It is part of the bits of the result.
    checkpoint : str or Path, optional
        File that is written as it goes, and gone on from where it exists. The result is bit for bit that of a training
        that was not interrupted.
    progress : callable, optional
        Called with each :class:`Epoch` (also with those that a checkpoint holds).

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError
        If there are no events, shapes disagree, values are not finite or the weights do not add up to more than 0.
    RunDirectoryError
        If the checkpoint cannot be read or written, or belongs to another training.
    FitError
        If the loss is not finite.
    """
    training = DenoiserTraining(
        denoiser,
        x,
        condition,
        weight,
        x_val,
        condition_val,
        weight_val,
        settings or TrainingSettings(),
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
    )
    return train_together([training], device=device, threads=threads)[0]


def train_together(
    trainings: Sequence[DenoiserTraining],
    *,
    device: str | torch.device = "cpu",
    threads: int | None = 1,
    together: int | None = None,
) -> list[TrainingResult]:
    """Train several denoisers, in stacks of those whose networks and batches have the same shapes.

    Parameters
    ----------
    trainings : sequence of DenoiserTraining
        Each with its own events, settings, seed and checkpoint. What it results in does not depend on the others: bit
        for bit on a CPU with one thread; elsewhere to rounding, which grows in training as that of another batch would.
    device, threads
        As for :func:`train`.
    together : int, optional
        Denoisers of a stack at most; what suits the device by default. It decides no result.

    Returns
    -------
    list of TrainingResult
        In their order; the seconds of each are those of its stack until it ended.

    Raises
    ------
    ValueError, RunDirectoryError, FitError
        As for :func:`train`; checkpoints of the others are written before.
    """
    place = torch.device(device)
    limit = threads if place.type == "cpu" else None
    size = together or stack_size(place, len(trainings))
    results: dict[int, TrainingResult] = {}
    alike: dict[Hashable, list[int]] = {}
    for i, training in enumerate(trainings):
        alike.setdefault(training.shapes() or i, []).append(i)
    with contextlib.nullcontext() if limit is None else kernel_threads(limit):
        for group in alike.values():
            for first in range(0, len(group), size):
                part = group[first : first + size]
                curves = train_stack([trainings[i].prepare(place) for i in part])
                for i, curve in zip(part, curves, strict=True):
                    results[i] = TrainingResult(denoiser=trainings[i].denoiser, **vars(curve))
    return [results[i] for i in range(len(trainings))]


@dataclass(frozen=True, eq=False)
class DenoiserTraining:
    """One denoiser, with what it is trained on.

    Parameters
    ----------
    denoiser, x, condition, weight, x_val, condition_val, weight_val, settings, seed, checkpoint, progress
        As for :func:`train`.
    """

    denoiser: PreconditionedDenoiser
    x: Tensor | Sets
    condition: Tensor | None
    weight: Tensor | None
    x_val: Tensor | Sets
    condition_val: Tensor | None
    weight_val: Tensor | None
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = field(kw_only=True)
    checkpoint: Path | None = field(default=None, kw_only=True)
    progress: Callable[[Epoch], None] | None = field(default=None, kw_only=True)

    def shapes(self) -> Hashable:
        """Return what trainings of one stack have in common; None for one that is trained alone."""
        network, settings = self.denoiser.backbone, self.settings
        if isinstance(self.x, Sets) or not getattr(network, "stacks", False):
            return None
        kinds = (type(self.denoiser).__qualname__, type(network).__qualname__, str(getattr(network, "config", "")))
        return (*kinds, min(settings.batch, len(self.x)), settings.precision, self.condition is None)

    def prepare(self, place: torch.device) -> NetworkTraining[PreconditionedDenoiser]:
        """Move all to the device, and draw the noise of the validation."""
        settings, denoiser = self.settings, self.denoiser
        events = _Events.of(self.x, self.condition, self.weight, place)
        held_out = _Events.of(self.x_val, self.condition_val, self.weight_val, place)
        if (events.offsets is None) != (held_out.offsets is None):
            raise ValueError("training and validation must both be rows, or both be sets")
        if events.x.shape[1] != held_out.x.shape[1]:
            raise ValueError(f"{events.x.shape[1]} features in training, {held_out.x.shape[1]} in validation")
        denoiser = denoiser.to(place)
        file = None
        if self.checkpoint is not None:
            tensors = [*events, *held_out, *denoiser.state_dict().values()]
            file = Checkpoint(self.checkpoint, fingerprint(_decisive(denoiser, settings, self.seed), tensors))
        # order, noise levels and noise of the two samples come from two streams: neither moves the other
        fixed = _fixed_draws(
            denoiser, held_out, settings.validation_draws, torch.Generator().manual_seed(self.seed + 1)
        )
        task = _Task(denoiser, events, fixed, settings.precision)
        generator = torch.Generator().manual_seed(self.seed)
        return NetworkTraining(denoiser, task, settings.loop(), generator, checkpoint=file, progress=self.progress)


def _decisive(denoiser: PreconditionedDenoiser, settings: TrainingSettings, seed: int) -> list[Any]:
    """Return what a training's result depends on, but its tensors and the device."""
    # how often a checkpoint is written changes nothing, and the precision belongs to the device
    fixed = {key: value for key, value in asdict(settings).items() if key not in ("checkpoint_seconds", "precision")}
    return [fixed, seed, [str(getattr(denoiser.backbone, "config", "")), str(denoiser.schedule.config)]]


class _Events(NamedTuple):
    """Checked events on the device; weights have mean 1. Offsets stay on the CPU: no step waits for the device."""

    x: Tensor
    condition: Tensor | None
    weight: Tensor
    offsets: Tensor | None = None

    @classmethod
    def of(
        cls, x: Tensor | Sets, condition: Tensor | None, weight: Tensor | None, device: str | torch.device
    ) -> _Events:
        n = len(x)
        values = x.values if isinstance(x, Sets) else x
        if values.ndim != 2 or n == 0 or len(values) == 0:
            raise ValueError(f"events must have shape (n, d) with n > 0, not {tuple(values.shape)}")
        weight = torch.ones(n) if weight is None else weight.double()
        if weight.shape != (n,) or (condition is not None and (condition.ndim != 2 or len(condition) != n)):
            raise ValueError(f"{n} events need a weight of shape ({n},) and a condition of shape ({n}, c)")
        if not all(bool(torch.isfinite(part).all()) for part in (values, weight, condition) if part is not None):
            raise ValueError("events, conditions and weights must be finite")
        if float(weight.sum()) <= 0:
            raise ValueError("the weights must add up to more than 0")
        conditions = None if condition is None else condition.to(device, torch.float32)
        scaled = (weight / weight.mean()).to(device, torch.float32)
        offsets = x.offsets.cpu() if isinstance(x, Sets) else None
        return cls(values.to(device, torch.float32), conditions, scaled, offsets)

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def row_weight(self) -> Tensor:
        """Weight of each row: of each member, that of its set."""
        if self.offsets is None:
            return self.weight
        lengths = self.offsets.diff().to(self.weight.device)
        return torch.repeat_interleave(self.weight, lengths, output_size=len(self.x))

    def take(self, chosen: Tensor) -> _Events:
        """Return some events; sets are chosen by an index on the CPU."""
        device = self.x.device
        index = chosen.to(device)
        condition = None if self.condition is None else self.condition[index]
        if self.offsets is None:
            return _Events(self.x[index], condition, self.weight[index])
        first, lengths = self.offsets[chosen], self.offsets.diff()[chosen]
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        rows, _ = runs(first.to(device), lengths.to(device), int(offsets[-1]))
        return _Events(self.x[rows], condition, self.weight[index], offsets)

    def part(self, first: int, last: int) -> _Events:
        """Return events in a row; nothing is copied."""
        condition = None if self.condition is None else self.condition[first:last]
        if self.offsets is None:
            return _Events(self.x[first:last], condition, self.weight[first:last])
        offsets = self.offsets[first : last + 1]
        rows = slice(int(offsets[0]), int(offsets[-1]))
        return _Events(self.x[rows], condition, self.weight[first:last], offsets - offsets[0])


class _Batch(NamedTuple):
    """Events of a step, with noise; of a stack all tensors have a leading dimension."""

    events: _Events
    data: Noised

    @classmethod
    def stack(cls, batches: Sequence[_Batch]) -> _Batch:
        """Return batches of rows of one shape as one."""
        events = [batch.events for batch in batches]
        conditions = [part.condition for part in events if part.condition is not None]
        joined = _Events(
            torch.stack([part.x for part in events]),
            torch.stack(conditions) if conditions else None,
            torch.stack([part.weight for part in events]),
        )
        return cls(joined, Noised(*map(torch.stack, zip(*(batch.data for batch in batches), strict=True))))


@dataclass(frozen=True)
class _Task:
    """A denoiser's training events and validation, as the loop takes them."""

    denoiser: PreconditionedDenoiser
    events: _Events
    fixed: _Validation
    precision: Precision

    def __len__(self) -> int:
        return len(self.events)

    def batches(self, order: Tensor, size: int, generator: torch.Generator) -> Iterator[_Batch | None]:
        """Yield the batches of a pass; None for sets that have no members."""
        events, device = self.events, self.events.x.device
        sets = events.offsets is not None
        order = order if sets else order.to(device)
        t = self.denoiser.schedule.training_times(stratified(len(order), size, generator)).to(device)
        # of rows for the whole pass: one draw instead of thousands of small ones
        noise = torch.randn(0 if sets else len(order), events.x.shape[1], generator=generator).to(device)
        block = size if sets else max(_BLOCK // size, 1) * size
        for begin in range(0, len(order), block):
            rows = slice(begin, begin + block)
            part = events.take(order[rows])
            if len(part.x) == 0:
                yield None
                continue
            drawn = torch.randn(part.x.shape, generator=generator).to(device) if sets else noise[rows]
            data = noised(self.denoiser, part.x, t[rows], drawn, part.offsets)
            if sets:
                yield _Batch(part, data)
                continue
            for first in range(0, len(part), size):
                step = slice(first, first + size)
                yield _Batch(part.part(first, first + size), Noised(*(values[step] for values in data)))

    def loss(self, network: PreconditionedDenoiser, batch: _Batch) -> Tensor:
        """Compute the weighted mean loss of a batch."""
        events, data = batch
        with products(self.precision, data.input.device):
            losses = denoising_loss(network, data, events.condition, events.offsets)
        return (losses * events.row_weight).mean(dim=-1)

    def losses(self, network: PreconditionedDenoiser, batches: Sequence[_Batch]) -> Tensor:
        """Compute the weighted mean loss of each member's batch of rows, shape (members,)."""
        return self.loss(network, _Batch.stack(batches))

    def validation_loss(self, network: PreconditionedDenoiser) -> float:
        """Compute the weighted mean loss of the validation events."""
        return _validate(network, self.fixed, self.precision)
