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

Several trainings of one architecture may be a stack (:mod:`drapes_hep.training.weights`): their steps are taken
together, while order, rates, validation, early stopping and checkpoint are each one's own. One that ends leaves it.

A checkpoint holds the state after a step: the random numbers of its pass follow from the generator at the pass's start,
so those of the steps that were done are drawn again and passed over. Ctrl-C writes one between two steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from drapes_hep.errors import DrapesError, FitError
from drapes_hep.interrupts import uninterrupted
from drapes_hep.training.checkpoint import Checkpoint
from drapes_hep.training.curves import Epoch, TrainingCurve
from drapes_hep.training.settings import LoopSettings
from drapes_hep.training.weights import Stack, Weights

__all__ = ["LoopSettings", "NetworkTraining", "StackTask", "Task", "learning_rate", "train_network", "train_stack"]

Network = TypeVar("Network", bound=nn.Module)
_Taken = TypeVar("_Taken", bound=nn.Module, contravariant=True)


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


class StackTask(Task[_Taken], Protocol[_Taken]):
    """The task of a training that may be one of a stack."""

    def losses(self, network: _Taken, batches: Sequence[Any]) -> Tensor:
        """Compute the losses of batches, one a member, shape (members,); parameters have a leading dimension."""
        ...


def learning_rate(step: int, steps: int, rate: float, warmup: float) -> float:
    """Return the rate of step ``step`` (from 0) of ``steps``: linear warm-up, then a cosine to 0 (module head)."""
    rising = math.ceil(warmup * steps)
    ramp = min((step + 1) / rising, 1.0) if rising else 1.0
    return rate * ramp * 0.5 * (1.0 + math.cos(math.pi * max(step + 1 - rising, 0) / max(steps - rising, 1)))


@dataclass(frozen=True, eq=False)
class NetworkTraining(Generic[Network]):
    """One training.

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
    """

    network: Network
    task: Task[Network]
    settings: LoopSettings
    generator: torch.Generator
    title: str = "training"
    checkpoint: Checkpoint | None = None
    progress: Callable[[Epoch], None] | None = None


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
    """Train a network in place, from the weights that it has: a stack of one.

    Parameters
    ----------
    network, task, settings, generator, title, checkpoint, progress
        As for :class:`NetworkTraining`.

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
    return train_stack([NetworkTraining(network, task, settings, generator, title, checkpoint, progress)])[0]


def train_stack(trainings: Sequence[NetworkTraining[Any]]) -> list[TrainingCurve]:
    """Train several networks of one architecture in place, each step of all of them together.

    Each has its own rows, rates, validations, early stopping and checkpoint, and its result does not depend on the
    others: bit for bit on a CPU with one thread, to rounding elsewhere. A checkpoint may be resumed alone or in any
    stack. The time of a training is that of the stack until it ends.

    Parameters
    ----------
    trainings : sequence of NetworkTraining
        For more than one: with ``one_buffer``, batches of the same shapes, and a :class:`StackTask`.

    Returns
    -------
    list of TrainingCurve
        In their order.

    Raises
    ------
    FitError
        If a loss is not finite; the others leave their checkpoints.
    RunDirectoryError
        If a checkpoint cannot be read or written, or belongs to another training.
    ValueError
        If trainings cannot be stacked.
    """
    loops = [_Loop(training) for training in trainings]
    if len(loops) > 1 and not all(
        loop.size == loops[0].size and loop.settings.one_buffer and loop.settings.drop_last for loop in loops
    ):
        raise ValueError("a stack needs one_buffer, drop_last and one size of batches")
    for loop in loops:
        loop.restore()
    try:
        _take_steps(loops)
    except BaseException:
        # whatever ends one training, the others can go on from here
        with uninterrupted():
            for loop in loops:
                if not loop.ended:
                    with suppress(DrapesError):
                        loop.save()
        raise
    return [loop.curve() for loop in loops]


def _take_steps(loops: Sequence[_Loop]) -> None:
    """Take the steps of trainings, together where there are several, until the last has ended."""
    going = [(loop, loop.steps()) for loop in loops]
    stack: Stack | None = None
    while going:
        batches = [next(steps, None) for _, steps in going]
        going = [member for member, batch in zip(going, batches, strict=True) if batch is not None]
        if not going:
            return
        if stack is None or len(stack.members) != len(going):
            stack = Stack([loop.weights for loop, _ in going])
        losses = _gradients(going[0][0].task, stack, [batch for batch in batches if batch is not None])
        with uninterrupted():
            for (loop, _), loss in zip(going, losses, strict=True):
                loop.take(loss)


def _gradients(task: Task[Any], stack: Stack, batches: Sequence[Any]) -> Sequence[Tensor]:
    """Compute the loss of each member's batch, and leave its gradient in the member's parameters."""
    if len(batches) == 1:
        loss = task.loss(stack.network, batches[0])
        torch.autograd.backward(loss)
        return [loss.detach()]
    losses = cast(StackTask[Any], task).losses(stack.network, batches)
    stack.backward(losses)
    return list(losses.detach())


class _Loop:
    """The state of a training, and its steps."""

    def __init__(self, training: NetworkTraining[Any]) -> None:
        self.began = time.perf_counter()
        settings, task = training.settings, training.task
        self.network, self.task, self.settings, self.title = training.network.train(), task, settings, training.title
        self.generator, self.checkpoint, self.progress = training.generator, training.checkpoint, training.progress
        rows = len(task)
        self.rows, self.size = rows, min(settings.batch, rows)
        self.steps_per_pass = rows // self.size if settings.drop_last else -(-rows // self.size)
        whole = settings.epochs * self.steps_per_pass
        self.total = whole if settings.steps is None else min(whole, settings.steps)
        # a validation per pass; more often where the steps end before the passes do, maybe within the first
        often = self.total if self.total != settings.steps else -(-self.total // settings.validations)
        self.between = min(self.steps_per_pass, often)
        if self.checkpoint is not None and not (settings.one_buffer and self.between == self.steps_per_pass):
            raise ValueError("a training with a checkpoint needs one buffer, and a validation per pass")
        self.weights = Weights(training.network, settings)
        self.history: list[Epoch] = []
        self.seconds, self.saved = 0.0, self.began
        # of the pass under way: the generator at its start, and the steps that are done; the sum of an epoch's losses
        self.passes, self.start, self.done = 0, self.generator.get_state(), 0
        self.summed = torch.zeros((), device=next(training.network.parameters()).device)
        # the step and the place in its pass of the batch that was yielded last
        self.place, self.ended = (0, 0), False

    def steps(self) -> Iterator[Any]:
        """Yield the batch of each step that is left; whoever resumes this has taken the step."""
        self.saved = time.perf_counter()
        while self._goes_on():
            yield from self._pass()
        self.save()
        self.ended = True
        self.seconds += time.perf_counter() - self.began
        self.weights.use_best()

    def curve(self) -> TrainingCurve:
        """Return how the training went, once it has ended."""
        return TrainingCurve(
            history=tuple(self.history),
            best_epoch=self._best().epoch,
            stopped_early=len(self.history) * self.between < self.total,
            seconds=self.seconds,
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

    def _pass(self) -> Iterator[Any]:
        """Yield the batches of the rest of a pass, and validate where it is due."""
        self.generator.set_state(self.start)
        order = torch.randperm(self.rows, generator=self.generator)[: self.steps_per_pass * self.size]
        first, passed = self.passes * self.steps_per_pass, self.done
        for i, batch in enumerate(self.task.batches(order, self.size, self.generator)):
            step = first + i
            if batch is not None and i >= passed:
                self.place = step, i
                yield batch
            if (step + 1) % self.between == 0 or step + 1 == self.total:
                self._validate(step, ends_pass=i + 1 == self.steps_per_pass)
                if not self._goes_on():
                    return
        if self.passes * self.steps_per_pass == first:
            self._next_pass()

    def _next_pass(self) -> None:
        self.passes, self.start, self.done = self.passes + 1, self.generator.get_state(), 0

    def take(self, loss: Tensor) -> None:
        """Take the step of the last batch, whose gradient is there."""
        step, place = self.place
        self.weights.step(step + 1, self._rate(step))
        self.summed += loss
        self.done = place + 1

    def _validate(self, step: int, *, ends_pass: bool) -> None:
        """Judge the weights after a step: the epoch's line, the best weights, a checkpoint now and then."""
        epoch, since = len(self.history) + 1, step + 1 - len(self.history) * self.between
        self.weights.judged.eval()
        value = self.task.validation_loss(self.weights.judged)
        self.network.train()
        line = Epoch(epoch, float(self.summed) / since, value, self._rate(step))
        if not math.isfinite(line.train_loss) or not math.isfinite(line.validation_loss):
            self.ended = True
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
            self.save()
            self.saved = time.perf_counter()

    def save(self) -> None:
        """Write the checkpoint."""
        if self.checkpoint is not None:
            tensors = self.weights.state()
            tensors |= {"generator": self.start, "done": torch.tensor(self.done), "summed": self.summed}
            tensors["history"] = torch.tensor(self.history, dtype=torch.float64)
            self.checkpoint.write(tensors, self.seconds + time.perf_counter() - self.began)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
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
