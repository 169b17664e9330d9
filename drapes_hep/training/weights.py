"""Weights of networks in training: in one buffer or not, averaged, the best so far; and those of several as a stack.

A *stack* is several networks of one architecture whose parameters have a leading dimension: each layer of all of them
is one product, and each member's result is its own. Its parameters and gradients are rows of one buffer each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from drapes_hep.training.settings import LoopSettings

__all__ = ["Stack", "Weights", "ema_weight", "flatten"]


def ema_weight(step: int, decay: float) -> float:
    """Return the weight of the newest parameters in the average after ``step`` steps (from 1)."""
    return (1.0 - decay) / (1.0 - decay**step)


def flatten(module: nn.Module) -> nn.Parameter:
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


def unflatten(module: nn.Module, values: Tensor) -> None:
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


class Weights:
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
        return [flatten(network)] if self._settings.one_buffer else list(network.parameters())

    def step(self, number: int, rate: float) -> None:
        """Take step ``number`` (from 1) along the gradient that is there, clipped, and clear it."""
        if self._settings.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip)
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
            unflatten(self.network, self.best[0])
        else:
            for p, best in zip(self.parameters, self.best, strict=True):
                p.data.copy_(best)
        self.network.eval()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of them, without copies; of parameters in one buffer."""
        (parameters,), (average,), (best,) = self.parameters, self.average, self.best
        return {"parameters": parameters.detach(), "average": average.detach(), "best": best, **self.moments}

    def move(self, values: Tensor, gradient: Tensor) -> None:
        """Let parameters and gradient of one buffer lie in these, shape (p,)."""
        (flat,) = self.parameters
        start = 0
        flat.data, flat.grad = values, gradient
        for p in self.network.parameters():
            stop = start + p.numel()
            p.data, p.grad = values[start:stop].view_as(p), gradient[start:stop].view_as(p)
            start = stop


class Stack:
    """Networks of one architecture as one network; a stack of one is the network itself.

    Parameters
    ----------
    members : sequence of Weights
        Those of several are in one buffer each; they then lie in a row of the stack's.
    """

    def __init__(self, members: Sequence[Weights]) -> None:
        self.members = members
        self.network = members[0].network
        if len(members) > 1:
            self._join()

    def _join(self) -> None:
        rows = torch.stack([member.parameters[0].detach() for member in self.members])
        self._gradient = torch.zeros_like(rows)
        for member, values, gradient in zip(self.members, rows, self._gradient, strict=True):
            member.move(values, gradient)
        self.network = copy.deepcopy(self.network)
        start = 0
        for p in self.network.parameters():
            stop = start + p.numel()
            p.data = rows[:, start:stop].view(len(rows), *p.shape)
            start = stop

    def backward(self, losses: Tensor) -> None:
        """Leave the gradient of each member's loss in its parameters; losses have shape (members,), of several."""
        # what the network has no use for has a gradient of 0
        gradients = torch.autograd.grad(losses.sum(), list(self.network.parameters()), materialize_grads=True)
        torch.cat([gradient.flatten(1) for gradient in gradients], dim=1, out=self._gradient)
