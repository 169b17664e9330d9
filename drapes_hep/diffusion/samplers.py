r"""Samplers: follow the probability-flow ODE from noise to data.

On a path :math:`x_t = \alpha_t x_0 + \sigma_t n` the denoiser D gives the mean of the data, hence of the noise
:math:`\hat n = (x_t - \alpha_t D) / \sigma_t`, and the flow is :math:`dx = D \, d\alpha + \hat n \, d\sigma`
(EDM: :math:`dx/d\sigma = (x - D) / \sigma`; flow matching: the velocity :math:`D - \hat n`). A step from t to r is

.. math:: x_r = x_t + (\alpha_r - \alpha_t) D + (\sigma_r - \sigma_t) \hat n .

=============  ====================================================================  ======  =================
``euler``      D and n at t. The result is :math:`\alpha_r D + \sigma_r \hat n`:     order   evaluations a step
               this *is* DDIM (Song et al. 2021), on any path                        1       1
``heun``       their means of t and of Euler's point at r (Karras et al. 2022,       2       2, last step 1
               algorithm 1); a last step to :math:`\sigma = 0` is Euler's
``midpoint``   those of Euler's point in the middle, for paths that are straight     2       2
               in t (EDM and flow matching)
``dpm2m``      DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2):     2       1
               exact for the linear part in :math:`\lambda = \ln(\alpha / \sigma)`,
               D extrapolated from the last two steps
``angle``      the midpoint method in the angle of noise and data (below)            2       2
=============  ====================================================================  ======  =================

With :math:`s^2 = \alpha^2 + \sigma^2`, the angle :math:`\theta = \arctan(\sigma / \alpha)` and
:math:`y = x / s`, the mean is :math:`D = y \cos\theta + F \sin\theta` and the flow :math:`dy/d\theta = -F`: F is what
the network of EDM gives for data of unit variance (the coordinates of TrigFlow, Lu and Song 2024, arXiv:2410.11081).
If the data are normally distributed, F is 0 and no step is too long. Features that were scaled to normal quantiles are
nearly so: a few steps suffice.

The state is float64, the network float32. All randomness is in the starting state that the caller makes: an event's
result depends on its batch through the rounding of float32 kernels only.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from drapes_hep.diffusion.denoisers import Denoiser
from drapes_hep.kernels import Precision, kernel_threads, products
from drapes_hep.packed import bounded

__all__ = [
    "EVALUATIONS",
    "SAMPLERS",
    "Point",
    "Sampler",
    "angle",
    "dpm2m",
    "euler",
    "evaluations",
    "heun",
    "midpoint",
    "sample",
]


class Point(NamedTuple):
    """A time of the path, with its signal and noise scales."""

    t: float
    alpha: float
    sigma: float


Predict = Callable[[Tensor, Point], Tensor]
"""The denoiser with condition and sets bound: (x, point) -> mean of the clean data."""


class Sampler(Protocol):
    """Integrate a state along a path of points; a multistep method keeps what it needs in its own loop."""

    def __call__(self, predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
        """Return the state at the end of ``path``; ``tick`` is called once a step."""


def _noise(x: Tensor, mean: Tensor, p: Point) -> Tensor:
    return torch.sub(x, mean, alpha=p.alpha).div_(p.sigma)


def _step(x: Tensor, mean: Tensor, noise: Tensor, p: Point, q: Point) -> Tensor:
    moved = torch.add(x, noise, alpha=q.sigma - p.sigma)
    return moved if q.alpha == p.alpha else moved.add_(mean, alpha=q.alpha - p.alpha)


def euler(predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
    """Euler's method (DDIM): one evaluation a step."""
    for p, q in itertools.pairwise(path):
        mean = predict(x, p)
        x = _step(x, mean, _noise(x, mean, p), p, q)
        tick()
    return x


def heun(predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
    """Heun's method: two evaluations a step, but one for a step that ends without noise."""
    for p, q in itertools.pairwise(path):
        mean = predict(x, p)
        noise = _noise(x, mean, p)
        ahead = _step(x, mean, noise, p, q)
        if q.sigma == 0.0:
            x = ahead
        else:
            later = predict(ahead, q)
            noise.add_(_noise(ahead, later, q)).mul_(0.5)
            x = _step(x, (mean + later).mul_(0.5), noise, p, q)
        tick()
    return x


def midpoint(predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
    """Return the midpoint method: two evaluations a step, the last included."""
    for p, q in itertools.pairwise(path):
        half = Point((p.t + q.t) / 2, (p.alpha + q.alpha) / 2, (p.sigma + q.sigma) / 2)
        mean = predict(x, p)
        between = _step(x, mean, _noise(x, mean, p), p, half)
        mean = predict(between, half)
        x = _step(x, mean, _noise(between, mean, half), p, q)
        tick()
    return x


def dpm2m(predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
    """DPM-Solver++(2M): one evaluation a step; the first and the last step are of first order."""
    before: tuple[Tensor, float] | None = None
    for p, q in itertools.pairwise(path):
        mean = predict(x, p)
        # exp(-h) with h = lambda_q - lambda_p; finite also where one end has no data or no noise in it
        shrink = p.alpha * q.sigma / (q.alpha * p.sigma)
        width = -math.log(shrink) if shrink > 0.0 else math.inf
        used = mean
        if before is not None and math.isfinite(width) and math.isfinite(before[1]):
            weight = width / (2.0 * before[1])
            used = torch.add(mean, mean - before[0], alpha=weight)
        x = torch.add(x * (q.sigma / p.sigma), used, alpha=q.alpha * (1.0 - shrink))
        before = (mean, width)
        tick()
    return x


def angle(predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
    """Return the midpoint method in the angle; every other point of the path is the middle of a step."""
    if len(path) % 2 == 0:
        raise ValueError("the solver 'angle' needs the middle of each step: an odd number of times")

    def flow(y: Tensor, p: Point, scale: float) -> Tensor:
        return torch.sub(predict(y * scale, p), y, alpha=p.alpha / scale).mul_(scale / p.sigma)

    scales = [math.hypot(p.alpha, p.sigma) for p in path]
    angles = [math.atan2(p.sigma, p.alpha) for p in path]
    y = x / scales[0]
    for i in range(0, len(path) - 1, 2):
        between = torch.add(y, flow(y, path[i], scales[i]), alpha=angles[i] - angles[i + 1])
        y = torch.add(y, flow(between, path[i + 1], scales[i + 1]), alpha=angles[i] - angles[i + 2])
        # two intervals of the path
        tick()
        tick()
    return y * scales[-1]


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "midpoint": midpoint, "dpm2m": dpm2m, "angle": angle}
"""Samplers by the names that ``template.solver`` takes."""

EVALUATIONS = {"euler": 1, "heun": 2, "midpoint": 2, "dpm2m": 1, "angle": 2}
"""Network evaluations a step (Heun's last step takes one)."""


def evaluations(solver: str, steps: int) -> int:
    """Return the network evaluations of a number of steps that end without noise."""
    return EVALUATIONS[solver] * steps - (solver == "heun")


def sample(
    denoiser: Denoiser,
    x_start: Tensor,
    times: Tensor,
    condition: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    solver: str | Sampler = "heun",
    batch: int | None = None,
    members: int | None = None,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Carry states from the first of ``times`` to the last.

    From noise, ``x_start`` is sigma of ``times[0]`` times standard normal numbers; for partial diffusion, alpha times
    data plus that, and ``times`` the last n' + 1 of the steps (:func:`~drapes_hep.diffusion.schedules.strength_steps`).

    Parameters
    ----------
    denoiser : Denoiser
        In whatever mode and precision it is; moved to ``device``.
    x_start : Tensor, shape (n, d)
        Starting states at ``times[0]``.
    times : Tensor, shape (m + 1,)
        Falling times, e.g. from :func:`~drapes_hep.diffusion.schedules.karras_steps`; for the solver ``angle`` with the
        middle of each step, from :func:`~drapes_hep.diffusion.schedules.angle_steps`.
    condition : Tensor, shape (n, c), optional
        Condition of each event.
    offsets : Tensor of int64, shape (n + 1,), optional
        For sets: event ``i`` is the rows ``offsets[i]:offsets[i + 1]`` of ``x_start``.
    solver : str or Sampler
        A name of :data:`SAMPLERS` or a function.
    batch : int, optional
        Events held on the device at once a worker. Default: 2048 on the CPU (the state of a layer stays in cache),
        262,144 on a GPU.
    members : int, optional
        For sets: members of sets held at once, by which memory is bounded (a set with more goes alone). Default: 8192
        on the CPU, 524,288 on a GPU.
    precision : {"float32", "bf16"}
        Of the network's products on a GPU; the state stays float64.
    device : str or torch.device
        Where the network runs.
    workers : int, optional
        Batches in work at the same time, each on one thread (CPU only). Default: torch's number of threads.
    progress : callable, optional
        Called with (steps done, steps in all), over all batches, from the thread that works.

    Returns
    -------
    Tensor of float64, shape (n, d), on the CPU
        The states at ``times[-1]``, in the order of ``x_start``.

    Raises
    ------
    ValueError
        If times do not fall, shapes disagree or the solver is unknown.
    """
    place = torch.device(device)
    method = SAMPLERS.get(solver) if isinstance(solver, str) else solver
    if method is None:
        raise ValueError(f"unknown solver {solver!r}: one of {', '.join(SAMPLERS)}")
    path = _path(denoiser, times)
    events = len(x_start) if offsets is None else len(offsets) - 1
    if condition is not None and len(condition) != events:
        raise ValueError(f"{len(condition)} conditions for {events} events")
    starts = _batches(events, offsets, batch, members, cpu=place.type == "cpu")
    denoiser = denoiser.to(place)
    result = torch.empty(x_start.shape, dtype=torch.float64)
    total, done, lock = (len(starts) - 1) * (len(path) - 1), 0, threading.Lock()

    def tick() -> None:
        nonlocal done
        with lock:
            done += 1
            if progress is not None:
                progress(done, total)

    def run(edges: tuple[int, int]) -> None:
        first, last = edges
        rows, sets = slice(first, last), None
        if offsets is not None:
            rows = slice(int(offsets[first]), int(offsets[last]))
            sets = (offsets[first : last + 1] - offsets[first]).to(place)
        block_condition = None if condition is None else condition[first:last].to(place)

        def predict(x: Tensor, p: Point) -> Tensor:
            mean: Tensor = denoiser(x, x.new_tensor([p.t]), block_condition, sets)
            return mean

        # grad mode belongs to the thread, so it is set here and not around the pool
        with torch.inference_mode(), products(precision, place):
            result[rows] = method(predict, x_start[rows].to(place, torch.float64), path, tick).cpu()

    if place.type == "cpu":
        _run_in_threads(run, starts, workers)
    else:
        for edges in itertools.pairwise(starts):
            run(edges)
    return result


def _path(denoiser: Denoiser, times: Tensor) -> list[Point]:
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError("times must be two or more falling numbers")
    grid = times.double().cpu()
    alpha, sigma = denoiser.schedule(grid)
    return [Point(*p) for p in zip(grid.tolist(), alpha.tolist(), sigma.tolist(), strict=True)]


def _batches(
    events: int, offsets: Tensor | None, batch: int | None, members: int | None, *, cpu: bool
) -> Sequence[int]:
    """Return the first event of each batch, and the number of events."""
    if batch is None:
        batch = 2048 if cpu else 1 << 18
    if members is None:
        members = 8192 if cpu else 1 << 19
    if min(batch, members) < 1:
        raise ValueError("batch and members must be positive")
    return [*range(0, events, batch), events] if offsets is None else bounded(offsets, members, batch)


def _run_in_threads(run: Callable[[tuple[int, int]], None], starts: Sequence[int], workers: int | None) -> None:
    with kernel_threads(1) as threads, ThreadPoolExecutor(workers or threads) as pool:
        try:
            for _ in pool.map(run, itertools.pairwise(starts)):
                pass
        except BaseException:
            # an error or Ctrl-C must not wait for all the batches that are still queued
            pool.shutdown(cancel_futures=True)
            raise
