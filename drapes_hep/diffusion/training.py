r"""Training of a denoiser: Adam, warm-up and cosine decay, averaged weights, early stopping, resumable.

Rate at step :math:`k` of :math:`K`, with :math:`W = \lceil wK \rceil` steps of linear warm-up then half a cosine to 0:

.. math:: r_k = r \min\left(\tfrac{k + 1}{W}, 1\right) \cdot
    \tfrac12\left(1 + \cos\left(\pi \tfrac{\max(k + 1 - W, 0)}{K - W}\right)\right).

The averaged weights are the normalised exponential average of :math:`\theta_1 .. \theta_k`, without bias at the start:

.. math:: \bar\theta_k = \frac{(1 - \beta) \sum_{j \le k} \beta^{k - j} \theta_j}{1 - \beta^k}
    = \bar\theta_{k-1} + \frac{1 - \beta}{1 - \beta^k} (\theta_k - \bar\theta_{k-1}).

Validation uses them, on noise levels and noise that are drawn once, several for an event; the best are kept. Weights of
events are divided by their mean, so a batch of light events counts less than one of heavy ones.

All parameters are views of one buffer: the optimiser and the average are then a few kernels and a checkpoint a few
tensors. Random numbers are drawn on the CPU, so a checkpoint goes on on another device.

A checkpoint holds the state after a step: the random numbers of its epoch follow from the generator at the epoch's
start, so those of the steps that were done are drawn again and passed over. Ctrl-C writes one between two steps.

Events are rows of a tensor, or sets: then every member of a set counts alike in the loss, with its set's weight.

Memory: the events once, for sets the noise of one step, for rows that of one epoch; beside them a step's activations.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from drapes_hep.diffusion.denoisers import PreconditionedDenoiser
from drapes_hep.diffusion.losses import denoising_loss, stratified
from drapes_hep.diffusion.samplers import Precision, kernel_threads, products
from drapes_hep.errors import FitError, RunDirectoryError
from drapes_hep.files import write_bytes
from drapes_hep.interrupts import uninterrupted
from drapes_hep.packed import Sets, bounded, take

__all__ = [
    "Epoch",
    "TrainingCurve",
    "TrainingResult",
    "TrainingSettings",
    "ema_weight",
    "learning_rate",
    "train",
    "validation_loss",
]

_EVALUATION_ROWS = 4096

_LAYOUT = 2
"""Of checkpoints: changes with what they hold."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a denoiser is trained.

    Parameters
    ----------
    epochs : int
        Passes over the training events at most.
    batch : int
        Events a step; a random remainder of each epoch that fills no batch is left out.
    rate : float
        Largest learning rate of Adam.
    warmup : float
        Part of all steps over which the rate rises linearly, 0 <= warmup < 1.
    ema : float
        Decay a step of the averaged weights.
    patience : int, optional
        Epochs without a better validation loss before it stops; None never stops.
    validation_draws : int
        Noise levels a validation event is seen at.
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
    validation_draws: int = 4
    checkpoint_seconds: float = 30.0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.validation_draws) < 1 or (self.patience is not None and self.patience < 1):
            raise ValueError("epochs, batch, patience and validation_draws must be at least 1")
        if not (0 <= self.warmup < 1 and 0 <= self.ema < 1 and self.rate > 0):
            raise ValueError("training needs 0 <= warmup < 1, 0 <= ema < 1 and rate > 0")


class Epoch(NamedTuple):
    """One line of the history: number (from 1), mean losses, and the rate of the epoch's last step."""

    epoch: int
    train_loss: float
    validation_loss: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """How a training went.

    Parameters
    ----------
    history : tuple of Epoch
        One entry per epoch.
    best_epoch : int
        Number of the epoch whose weights are used.
    stopped_early : bool
        Whether patience ended it.
    seconds : float
        Wall time, over all the runs of a resumed training.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingResult(TrainingCurve):
    """What a training gives.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser
        The one that was passed in, with the best averaged weights, in evaluation mode.
    """

    denoiser: PreconditionedDenoiser


def learning_rate(step: int, steps: int, rate: float, warmup: float) -> float:
    """Return the rate of step ``step`` (from 0) of ``steps``: linear warm-up, then a cosine to 0 (module head)."""
    rising = math.ceil(warmup * steps)
    ramp = min((step + 1) / rising, 1.0) if rising else 1.0
    return rate * ramp * 0.5 * (1.0 + math.cos(math.pi * max(step + 1 - rising, 0) / max(steps - rising, 1)))


def ema_weight(step: int, decay: float) -> float:
    """Return the weight of the newest parameters in the average after ``step`` steps (from 1)."""
    return (1.0 - decay) / (1.0 - decay**step)


def _flatten(module: nn.Module) -> nn.Parameter:
    """Move all parameters, and their gradients, into one buffer each; the module works on as before."""
    parameters = list(module.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    gradient = torch.zeros_like(flat)
    start = 0
    for p in parameters:
        stop = start + p.numel()
        p.data = flat[start:stop].view_as(p)
        # autograd adds into a gradient that exists: no copy, no list of tensors for the optimiser
        p.grad = gradient[start:stop].view_as(p)
        start = stop
    whole = nn.Parameter(flat)
    whole.grad = gradient
    return whole


def _unflatten(module: nn.Module, values: Tensor) -> None:
    """Return the module parameters of its own with these values."""
    start = 0
    for p in module.parameters():
        stop = start + p.numel()
        p.data = values[start:stop].view_as(p).clone()
        p.grad = None
        start = stop


class _Validation(NamedTuple):
    """Validation events, repeated, with the noise that they keep."""

    events: _Events
    t: Tensor
    noise: Tensor


def _fixed_draws(
    denoiser: PreconditionedDenoiser, events: _Events, draws: int, generator: torch.Generator
) -> _Validation:
    n = len(events)
    # row j of u holds the j-th part of the quantiles: every event sees low noise and high
    u = stratified(n * draws, n * draws, generator).view(draws, n)
    u = u[:, torch.randperm(n, generator=generator)].reshape(-1)
    device = events.x.device
    repeated = events.take(torch.arange(n, device=device).repeat(draws))
    noise = torch.randn(repeated.x.shape, generator=generator)
    return _Validation(repeated, denoiser.schedule.training_times(u.double()).float().to(device), noise.to(device))


@torch.no_grad()
def _validate(denoiser: PreconditionedDenoiser, v: _Validation, precision: Precision = "float32") -> float:
    device = v.events.x.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    weights = torch.zeros((), dtype=torch.float64, device=device)
    # how many members the sets of a part have is not known beforehand: their starts say
    starts = torch.arange(len(v.events) + 1) if v.events.offsets is None else v.events.offsets.cpu()
    for first, last in itertools.pairwise(bounded(starts, _EVALUATION_ROWS)):
        part = v.events.take(torch.arange(first, last, device=device))
        noise = v.noise[int(starts[first]) : int(starts[last])]
        with products(precision, device):
            loss = denoising_loss(denoiser, part.x, v.t[first:last], noise, part.condition, part.offsets)
        total += torch.dot(loss.double(), part.row_weight.double())
        weights += part.row_weight.double().sum()
    return float(total / weights)


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


def _fingerprint(
    denoiser: PreconditionedDenoiser, settings: TrainingSettings, seed: int, data: list[Tensor | None]
) -> str:
    """Hash of all that a training's result depends on, but the device."""
    # how often a checkpoint is written changes nothing
    fixed = {key: value for key, value in asdict(settings).items() if key != "checkpoint_seconds"}
    # the precision belongs to the device, and a checkpoint goes on on another
    fixed.pop("precision")
    model = [str(getattr(denoiser.backbone, "config", "")), str(denoiser.schedule.config)]
    digest = hashlib.sha256(json.dumps([_LAYOUT, fixed, seed, model], sort_keys=True).encode())
    for tensor in [*data, *denoiser.state_dict().values()]:
        if tensor is None:
            digest.update(b"none")
        else:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hash of a checkpoint's content."""
    digest = hashlib.sha256(json.dumps([metadata.get(name) for name in ("fingerprint", "seconds")]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # as bytes: a damaged file may state a type that numpy does not have
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunDirectoryError(f"{path}: not a readable checkpoint ({reason}); delete it to retrain") from error
    # safetensors has no checksum: a flipped bit would be another model, and nobody would know
    if metadata.get("sha256") != _digest(tensors, metadata):
        raise RunDirectoryError(f"{path}: damaged checkpoint (sha256 differs); delete it to retrain")
    if metadata.get("fingerprint") != fingerprint:
        raise RunDirectoryError(
            f"{path}: checkpoint of another training (settings, seed, data or network differ); delete it to retrain"
        )
    return tensors, metadata


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
    settings = settings or TrainingSettings()
    place = torch.device(device)
    events = _Events.of(x, condition, weight, place)
    held_out = _Events.of(x_val, condition_val, weight_val, place)
    if (events.offsets is None) != (held_out.offsets is None):
        raise ValueError("training and validation must both be rows, or both be sets")
    if events.x.shape[1] != held_out.x.shape[1]:
        raise ValueError(f"{events.x.shape[1]} features in training, {held_out.x.shape[1]} in validation")
    limit = threads if place.type == "cpu" else None
    with contextlib.nullcontext() if limit is None else kernel_threads(limit):
        return _train(
            denoiser.to(place).train(),
            events,
            held_out,
            settings,
            seed,
            None if checkpoint is None else Path(checkpoint),
            progress,
        )


class _Events(NamedTuple):
    """Checked events on the device; weights have mean 1."""

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
        given = None if condition is None else condition.to(device, torch.float32)
        scaled = (weight / weight.mean()).to(device, torch.float32)
        offsets = x.offsets.to(device) if isinstance(x, Sets) else None
        return cls(values.to(device, torch.float32), given, scaled, offsets)

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def row_weight(self) -> Tensor:
        """Weight of each row: of each member, that of its set."""
        return self.weight if self.offsets is None else torch.repeat_interleave(self.weight, self.offsets.diff())

    def take(self, chosen: Tensor) -> _Events:
        condition = None if self.condition is None else self.condition[chosen]
        if self.offsets is None:
            return _Events(self.x[chosen], condition, self.weight[chosen])
        sets = take(Sets(self.x, self.offsets), chosen)
        return _Events(sets.values, condition, self.weight[chosen], sets.offsets)


def _train(
    denoiser: PreconditionedDenoiser,
    events: _Events,
    held_out: _Events,
    settings: TrainingSettings,
    seed: int,
    checkpoint: Path | None,
    progress: Callable[[Epoch], None] | None,
) -> TrainingResult:
    began = time.perf_counter()
    device = events.x.device
    averaged = copy.deepcopy(denoiser).eval()
    parameters = _flatten(denoiser)
    average = _flatten(averaged).detach()
    # order, noise levels and noise of the two samples come from two streams: neither moves the other
    generator = torch.Generator().manual_seed(seed)
    fixed = _fixed_draws(denoiser, held_out, settings.validation_draws, torch.Generator().manual_seed(seed + 1))
    optimiser = torch.optim.Adam([parameters], lr=settings.rate, fused=True)
    moments = {name: torch.zeros_like(average) for name in ("exp_avg", "exp_avg_sq")}
    moments["step"] = torch.zeros((), dtype=torch.float32, device=device)
    best = average.clone()
    history: list[Epoch] = []
    seconds = 0.0
    # of the epoch under way: the generator at its start, the steps that are done and the sum of their losses
    start, done = generator.get_state(), 0
    summed = torch.zeros((), device=device)

    fingerprint = "" if checkpoint is None else _fingerprint(denoiser, settings, seed, [*events, *held_out])
    if checkpoint is not None and checkpoint.exists():
        tensors, metadata = _read(checkpoint, fingerprint)
        parameters.data.copy_(tensors["parameters"])
        average.copy_(tensors["average"])
        best.copy_(tensors["best"])
        for name, moment in moments.items():
            moment.copy_(tensors[name])
        start, done = tensors["generator"], int(tensors["done"])
        summed.copy_(tensors["summed"])
        history = [Epoch(int(line[0]), *line[1:]) for line in tensors["history"].tolist()]
        seconds = float(metadata["seconds"])
        if progress is not None:
            for line in history:
                progress(line)
    optimiser.state[parameters] = moments

    def keep() -> None:
        if checkpoint is not None:
            tensors = {"parameters": parameters.detach(), "average": average, "best": best, **moments}
            tensors |= {"generator": start, "done": torch.tensor(done), "summed": summed}
            tensors["history"] = torch.tensor(history, dtype=torch.float64)
            spent = seconds + time.perf_counter() - began
            metadata = {"fingerprint": fingerprint, "seconds": repr(spent)}
            metadata["sha256"] = _digest(tensors, metadata)
            write_bytes(checkpoint, save(tensors, metadata))

    n, batch = len(events), min(settings.batch, len(events))
    steps = n // batch
    total = steps * settings.epochs
    sets = events.offsets is not None
    saved = time.perf_counter()
    try:
        while len(history) < settings.epochs and not _idle(history, settings.patience):
            epoch = len(history) + 1
            generator.set_state(start)
            order = torch.randperm(n, generator=generator)[: steps * batch].to(device)
            u = stratified(len(order), batch, generator)
            t = denoiser.schedule.training_times(u).to(device)
            # of rows for the whole epoch: one draw instead of thousands of small ones
            noise = torch.randn(0 if sets else len(order), events.x.shape[1], generator=generator).to(device)
            passed = done
            for i in range(steps):
                rows = slice(i * batch, (i + 1) * batch)
                part = events.take(order[rows])
                if len(part.x) == 0:
                    continue
                drawn = torch.randn(part.x.shape, generator=generator).to(device) if sets else noise[rows]
                if i < passed:
                    continue
                with products(settings.precision, device):
                    losses = denoising_loss(denoiser, part.x, t[rows], drawn, part.condition, part.offsets)
                loss = torch.dot(losses, part.row_weight) / len(losses)
                loss.backward()  # type: ignore[no-untyped-call] # torch's own annotation is missing
                step = (epoch - 1) * steps + i
                optimiser.param_groups[0]["lr"] = learning_rate(step, total, settings.rate, settings.warmup)
                assert parameters.grad is not None
                with uninterrupted():
                    optimiser.step()
                    parameters.grad.zero_()
                    average.lerp_(parameters.detach(), ema_weight(step + 1, settings.ema))
                    summed += loss.detach()
                    done = i + 1
            rate = learning_rate(epoch * steps - 1, total, settings.rate, settings.warmup)
            line = Epoch(epoch, float(summed) / steps, _validate(averaged, fixed, settings.precision), rate)
            if not math.isfinite(line.train_loss) or not math.isfinite(line.validation_loss):
                raise FitError(f"training diverged in epoch {epoch}: lower its rate (now {settings.rate:g})")
            with uninterrupted():
                if line.validation_loss < min((past.validation_loss for past in history), default=math.inf):
                    best.copy_(average)
                history.append(line)
                start, done = generator.get_state(), 0
                summed.zero_()
            if progress is not None:
                progress(line)
            if time.perf_counter() - saved > settings.checkpoint_seconds:
                keep()
                saved = time.perf_counter()
        keep()
    except KeyboardInterrupt:
        with uninterrupted():
            keep()
        raise
    _unflatten(denoiser, best)
    return TrainingResult(
        denoiser=denoiser.eval(),
        history=tuple(history),
        best_epoch=_best(history).epoch,
        stopped_early=len(history) < settings.epochs,
        seconds=seconds + time.perf_counter() - began,
    )


def _best(history: list[Epoch]) -> Epoch:
    return min(history, key=lambda line: line.validation_loss)


def _idle(history: list[Epoch], patience: int | None) -> bool:
    return patience is not None and bool(history) and history[-1].epoch - _best(history).epoch >= patience
