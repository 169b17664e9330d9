r"""The training loop: Adam, warm-up and cosine decay, averaged weights, early stopping, resumable.

Rate at step :math:`k` of :math:`K`, with :math:`W = \lceil wK \rceil` steps of linear warm-up then half a cosine to 0:

.. math:: r_k = r \min\left(\tfrac{k + 1}{W}, 1\right) \cdot
    \tfrac12\left(1 + \cos\left(\pi \tfrac{\max(k + 1 - W, 0)}{K - W}\right)\right).

The averaged weights are the normalised exponential average of :math:`\theta_1 .. \theta_k`, without bias at the start:

.. math:: \bar\theta_k = \frac{(1 - \beta) \sum_{j \le k} \beta^{k - j} \theta_j}{1 - \beta^k}
    = \bar\theta_{k-1} + \frac{1 - \beta}{1 - \beta^k} (\theta_k - \bar\theta_{k-1}).

An *epoch* is what lies between two validations: a pass over the training rows, or less where ``steps`` ends a training
within few passes. The weights of the epoch with the smallest validation loss are used, the averaged ones where there is
an average.

All parameters may be views of one buffer: the optimiser and the average are then a few kernels and a checkpoint a few
tensors. Random numbers are drawn on the CPU, so a checkpoint is resumed on any device.

A checkpoint holds the state after a step: the random numbers of its pass follow from the generator at the pass's start,
so those of the steps that were done are drawn again and passed over. Ctrl-C writes one between two steps.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from drapes_hep.errors import FitError
from drapes_hep.interrupts import uninterrupted
from drapes_hep.training.checkpoint import Checkpoint
from drapes_hep.training.curves import Epoch, TrainingCurve

__all__ = ["LoopSettings", "Task", "ema_weight", "learning_rate", "train_network"]

Network = TypeVar("Network", bound=nn.Module)
_Taken = TypeVar("_Taken", bound=nn.Module, contravariant=True)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a network is trained.

    Parameters
    ----------
    epochs : int
        Passes over the training rows at most.
    batch : int
        Rows per step.
    rate : float
        Largest learning rate of Adam.
    warmup : float
        Fraction of all steps over which the rate rises linearly, 0 <= warmup < 1.
    starts_high : bool
        Whether the first step has the largest rate and the cosine begins after it; without warm-up.
    steps : int, optional
        Steps at most, whatever the number of rows.
    validations : int
        Least number of validations where ``steps`` ends the training before ``epochs`` does.
    drop_last : bool
        Whether the rows of a pass that fill no batch are left out of it.
    ema : float, optional
        Decay per step of the averaged weights, 0 <= ema < 1; None averages nothing.
    patience : int, optional
        Passes without a smaller validation loss before it stops; None never stops.
    weight_decay : float
        AdamW's, of matrices; 0 is Adam.
    clip : float, optional
        Largest norm of the gradient.
    one_buffer : bool
        Whether the parameters are moved into one buffer; a training with a checkpoint needs it, and has no
        ``weight_decay``.
    checkpoint_seconds : float
        Least time between two checkpoints; one is always written at the end, and when Ctrl-C or SIGTERM ends it.

    Raises
    ------
    ValueError
        If a value is out of range, or two exclude each other.
    """

    epochs: int
    batch: int
    rate: float
    warmup: float = 0.0
    starts_high: bool = False
    steps: int | None = None
    validations: int = 1
    drop_last: bool = False
    ema: float | None = None
    patience: int | None = None
    weight_decay: float = 0.0
    clip: float | None = None
    one_buffer: bool = False
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch, self.validations, self.patience, self.steps)
        if min(count for count in counts if count is not None) < 1:
            raise ValueError("epochs, batch, patience, steps and validations must be at least 1")
        if not (0 <= self.warmup < 1 and 0 <= (self.ema or 0.0) < 1 and self.rate > 0):
            raise ValueError("training needs 0 <= warmup < 1, 0 <= ema < 1 and rate > 0")
        if (self.starts_high and self.warmup) or (self.one_buffer and self.weight_decay):
            raise ValueError("starts_high excludes a warm-up, one_buffer a weight decay")


class Task(Protocol[_Taken]):
    """What a model brings: its rows in batches, and the losses."""

    def __len__(self) -> int:
        """Return the number of training rows, above 0."""
        ...

    def batches(self, order: Tensor, size: int, generator: torch.Generator) -> Iterator[Any]:
        """Yield the batches of a pass over rows in this order, with what is drawn for them; None is passed over."""
        ...

    def loss(self, network: _Taken, batch: Any) -> Tensor:
        """Compute the loss of a batch, a scalar."""
        ...

    def validation_loss(self, network: _Taken) -> float:
        """Compute the loss of the rows that are not trained on."""
        ...


def learning_rate(step: int, steps: int, rate: float, warmup: float) -> float:
    """Return the rate of step ``step`` (from 0) of ``steps``: linear warm-up, then a cosine to 0 (module head)."""
    rising = math.ceil(warmup * steps)
    ramp = min((step + 1) / rising, 1.0) if rising else 1.0
    return rate * ramp * 0.5 * (1.0 + math.cos(math.pi * max(step + 1 - rising, 0) / max(steps - rising, 1)))


def ema_weight(step: int, decay: float) -> float:
    """Return the weight of the newest parameters in the average after ``step`` steps (from 1)."""
    return (1.0 - decay) / (1.0 - decay**step)


def train_network(
    network: Network,
    task: Task[Network],
    settings: LoopSettings,
    generator: torch.Generator,
    *,
    title: str = "training",
    checkpoint: Checkpoint | None = None,
    progress: Callable[[Epoch], None] | None = None,
) -> TrainingCurve:
    """Train a network in place, from the weights that it has.

    Parameters
    ----------
    network : nn.Module
        On its device; leaves with the best weights, in evaluation mode. Buffers are not restored.
    task : Task
    settings : LoopSettings
    generator : torch.Generator
        Of the rows' order, and of what the task draws; on the CPU.
    title : str
        What a message calls it.
    checkpoint : Checkpoint, optional
        Written as the training goes, and resumed from where it exists. The result is bit for bit that of a training
        that was not interrupted.
    progress : callable, optional
        Called with each :class:`~drapes_hep.training.curves.Epoch`, also with those that a checkpoint holds.

    Returns
    -------
    TrainingCurve

    Raises
    ------
    FitError
        If a loss is not finite.
    RunDirectoryError
        If the checkpoint cannot be read or written, or belongs to another training.
    """
    return _Loop(network, task, settings, generator, title, checkpoint, progress).run()


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


_ADAM: dict[str, Any] = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False, "fused": True
}  # fmt: skip
"""The optimiser's defaults."""


class _Weights:
    """A network's parameters as the optimiser takes them, their average, the best so far, and the optimiser."""

    def __init__(self, network: nn.Module, settings: LoopSettings) -> None:
        self.network, self._settings = network, settings
        averaged = None if settings.ema is None else copy.deepcopy(network)
        self.parameters = self._of(network)
        # what is validated, and its parameters: the network's own where nothing is averaged
        self.judged = network if averaged is None else averaged
        self.average = self.parameters if averaged is None else self._of(averaged)
        self.best = [values.detach().clone() for values in self.average]
        self.moments: dict[str, Tensor] = {}
        self.optimiser: torch.optim.Optimizer | None = None
        if settings.one_buffer:
            (flat,) = self.parameters
            self.moments = {name: torch.zeros_like(flat.detach()) for name in ("exp_avg", "exp_avg_sq")}
            self.moments["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        elif settings.weight_decay:
            decayed = [
                {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
            ]
            self.optimiser = torch.optim.AdamW(decayed, lr=settings.rate)
        else:
            self.optimiser = torch.optim.Adam(self.parameters, lr=settings.rate)

    def _of(self, network: nn.Module) -> list[nn.Parameter]:
        return [_flatten(network)] if self._settings.one_buffer else list(network.parameters())

    def step(self, number: int, rate: float) -> None:
        """Take step ``number`` (from 1) along the gradient that is there, and clear it."""
        if self.optimiser is None:
            self._step_buffer(rate)
        else:
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.step()
            self.optimiser.zero_grad()
        if self._settings.ema is not None:
            weight = ema_weight(number, self._settings.ema)
            for average, newest in zip(self.average, self.parameters, strict=True):
                average.detach().lerp_(newest.detach(), weight)

    @torch.no_grad()
    def _step_buffer(self, rate: float) -> None:
        """Take Adam's step for one buffer; its class takes five times as long to get there."""
        (flat,) = self.parameters
        assert flat.grad is not None
        first, second, step = ([self.moments[name]] for name in ("exp_avg", "exp_avg_sq", "step"))
        adam([flat.detach()], [flat.grad], first, second, [], step, lr=rate, **_ADAM)
        flat.grad.zero_()

    def keep(self) -> None:
        """Take what was validated as the best."""
        for best, value in zip(self.best, self.average, strict=True):
            best.copy_(value.detach())

    def use_best(self) -> None:
        """Return the network its best weights."""
        if self._settings.one_buffer:
            _unflatten(self.network, self.best[0])
        else:
            for p, best in zip(self.parameters, self.best, strict=True):
                p.data.copy_(best)
        self.network.eval()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of them, without copies; of parameters in one buffer."""
        (parameters,), (average,), (best,) = self.parameters, self.average, self.best
        return {"parameters": parameters.detach(), "average": average.detach(), "best": best, **self.moments}


class _Loop:
    """The state of a training, and its steps."""

    def __init__(
        self,
        network: nn.Module,
        task: Task[Any],
        settings: LoopSettings,
        generator: torch.Generator,
        title: str,
        checkpoint: Checkpoint | None,
        progress: Callable[[Epoch], None] | None,
    ) -> None:
        self.began = time.perf_counter()
        self.network, self.task, self.settings, self.title = network.train(), task, settings, title
        self.generator, self.checkpoint, self.progress = generator, checkpoint, progress
        rows = len(task)
        self.rows, self.size = rows, min(settings.batch, rows)
        self.steps_per_pass = rows // self.size if settings.drop_last else -(-rows // self.size)
        whole = settings.epochs * self.steps_per_pass
        self.total = whole if settings.steps is None else min(whole, settings.steps)
        # a validation per pass; more often where the steps end before the passes do, maybe within the first
        often = self.total if self.total != settings.steps else -(-self.total // settings.validations)
        self.between = min(self.steps_per_pass, often)
        if checkpoint is not None and not (settings.one_buffer and self.between == self.steps_per_pass):
            raise ValueError("a training with a checkpoint needs one buffer, and a validation per pass")
        self.weights = _Weights(network, settings)
        self.history: list[Epoch] = []
        self.seconds, self.saved = 0.0, self.began
        # of the pass under way: the generator at its start, and the steps that are done; the sum of an epoch's losses
        self.passes, self.start, self.done = 0, generator.get_state(), 0
        self.summed = torch.zeros((), device=next(network.parameters()).device)

    def run(self) -> TrainingCurve:
        """Train from the start or from the checkpoint to the end."""
        self._restore()
        self.saved = time.perf_counter()
        try:
            while self._goes_on():
                self._pass()
            self._save()
        except KeyboardInterrupt:
            with uninterrupted():
                self._save()
            raise
        self.weights.use_best()
        return TrainingCurve(
            history=tuple(self.history),
            best_epoch=self._best().epoch,
            stopped_early=len(self.history) * self.between < self.total,
            seconds=self.seconds + time.perf_counter() - self.began,
        )

    def _best(self) -> Epoch:
        return min(self.history, key=lambda line: line.validation_loss)

    def _goes_on(self) -> bool:
        if not self.history:
            return True
        # patience is counted in passes, however often one validates
        idle = (self.history[-1].epoch - self._best().epoch) * self.between
        patience = self.settings.patience
        tired = patience is not None and idle >= patience * self.steps_per_pass
        return len(self.history) * self.between < self.total and not tired

    def _rate(self, step: int) -> float:
        settings = self.settings
        return learning_rate(step - settings.starts_high, self.total, settings.rate, settings.warmup)

    def _pass(self) -> None:
        """Train on the rest of a pass, and validate where it is due."""
        self.generator.set_state(self.start)
        order = torch.randperm(self.rows, generator=self.generator)[: self.steps_per_pass * self.size]
        first, passed = self.passes * self.steps_per_pass, self.done
        for i, batch in enumerate(self.task.batches(order, self.size, self.generator)):
            step = first + i
            if batch is not None and i >= passed:
                self._step(step, i, batch)
            if (step + 1) % self.between == 0 or step + 1 == self.total:
                self._validate(step, ends_pass=i + 1 == self.steps_per_pass)
                if not self._goes_on():
                    return
        if self.passes * self.steps_per_pass == first:
            self._next_pass()

    def _next_pass(self) -> None:
        self.passes, self.start, self.done = self.passes + 1, self.generator.get_state(), 0

    def _step(self, step: int, place: int, batch: Any) -> None:
        loss = self.task.loss(self.network, batch)
        torch.autograd.backward(loss)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        rate = self._rate(step)
        with uninterrupted():
            self.weights.step(step + 1, rate)
            self.summed += loss.detach()
            self.done = place + 1

    def _validate(self, step: int, *, ends_pass: bool) -> None:
        """Judge the weights after a step: the epoch's line, the best weights, a checkpoint now and then."""
        epoch, since = len(self.history) + 1, step + 1 - len(self.history) * self.between
        self.weights.judged.eval()
        value = self.task.validation_loss(self.weights.judged)
        self.network.train()
        line = Epoch(epoch, float(self.summed) / since, value, self._rate(step))
        if not math.isfinite(line.train_loss) or not math.isfinite(line.validation_loss):
            raise FitError(f"{self.title} diverged in epoch {epoch}: lower its rate (now {self.settings.rate:g})")
        with uninterrupted():
            if not self.history or line.validation_loss < self._best().validation_loss:
                self.weights.keep()
            self.history.append(line)
            self.summed.zero_()
            if ends_pass:
                self._next_pass()
        if self.progress is not None:
            self.progress(line)
        if time.perf_counter() - self.saved > self.settings.checkpoint_seconds:
            self._save()
            self.saved = time.perf_counter()

    def _save(self) -> None:
        if self.checkpoint is not None:
            tensors = self.weights.state()
            tensors |= {"generator": self.start, "done": torch.tensor(self.done), "summed": self.summed}
            tensors["history"] = torch.tensor(self.history, dtype=torch.float64)
            self.checkpoint.write(tensors, self.seconds + time.perf_counter() - self.began)

    def _restore(self) -> None:
        saved = None if self.checkpoint is None else self.checkpoint.read()
        if saved is None:
            return
        tensors, self.seconds = saved
        for name, values in self.weights.state().items():
            values.copy_(tensors[name])
        self.start, self.done = tensors["generator"], int(tensors["done"])
        self.summed.copy_(tensors["summed"])
        self.history = [Epoch(int(line[0]), *line[1:]) for line in tensors["history"].tolist()]
        self.passes = len(self.history)
        if self.progress is not None:
            for line in self.history:
                self.progress(line)
