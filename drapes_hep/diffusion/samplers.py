r"""Samplers: follow the probability-flow ODE from noise to data.

With :math:`x_t = \alpha_t x_0 + \sigma_t n` and the denoiser's estimate of the noise
:math:`\hat n = (x_t - \alpha_t D(x_t; t)) / \sigma_t`, the ODE is :math:`dy/ds = \hat n` in :math:`y = x / \alpha,
s = \sigma / \alpha` (EDM: :math:`dx/d\sigma = (x - D) / \sigma`), so a step from t to r is

.. math:: x_r = \tfrac{\alpha_r}{\alpha_t} x_t + \left(\sigma_r - \tfrac{\alpha_r}{\alpha_t} \sigma_t\right) \hat n .

Euler takes :math:`\hat n` at t (global order 1; for EDM this is DDIM). Heun (Karras et al. 2022, algorithm 1) averages
:math:`\hat n` at t and at the Euler point at r (global order 2); its last step, to :math:`\sigma = 0`, is Euler's.

The state is float64, the network float32. All randomness is in the starting state that the caller makes: an event's
result depends on its batch through the rounding of float32 kernels only.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from drapes_hep.diffusion.denoisers import Denoiser

__all__ = ["SAMPLERS", "Point", "Sampler", "euler", "heun", "kernel_threads", "sample"]


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
        """Give the state at the end of ``path``; ``tick`` is called once a step."""


def _slope(predict: Predict, x: Tensor, p: Point) -> Tensor:
    return torch.sub(x, predict(x, p), alpha=p.alpha).div_(p.sigma)


def _step(x: Tensor, slope: Tensor, p: Point, q: Point) -> Tensor:
    ratio = q.alpha / p.alpha
    return torch.add(x if ratio == 1.0 else x * ratio, slope, alpha=q.sigma - ratio * p.sigma)


def euler(predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
    """Euler's method: one evaluation a step."""
    for p, q in itertools.pairwise(path):
        x = _step(x, _slope(predict, x, p), p, q)
        tick()
    return x


def heun(predict: Predict, x: Tensor, path: Sequence[Point], tick: Callable[[], None]) -> Tensor:
    """Heun's method: two evaluations a step, but one for a step that ends without noise."""
    for p, q in itertools.pairwise(path):
        slope = _slope(predict, x, p)
        ahead = _step(x, slope, p, q)
        x = ahead if q.sigma == 0.0 else _step(x, (slope + _slope(predict, ahead, q)).mul_(0.5), p, q)
        tick()
    return x


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun}


@contextlib.contextmanager
def kernel_threads(threads: int) -> Iterator[int]:
    """Run every kernel on this many threads inside the block; gives the number that torch had.

    A layer of 64 on a thousand rows takes 0.1 ms: threads inside it wait for one another longer than they work, by a
    factor of 100 when another process has a core. The setting is the process's: other threads see it too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def sample(
    denoiser: Denoiser,
    x_start: Tensor,
    times: Tensor,
    condition: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    solver: str | Sampler = "heun",
    batch: int | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Carry states from the first of ``times`` to the last.

    From noise, ``x_start`` is ``times[0]`` times standard normal numbers; for partial diffusion, data plus that, and
    ``times`` the last n' + 1 of the steps (:func:`~drapes_hep.diffusion.schedules.strength_steps`).

    Parameters
    ----------
    denoiser : Denoiser
        In whatever mode and precision it is; moved to ``device``.
    x_start : Tensor, shape (n, d)
        Starting states at ``times[0]``.
    times : Tensor, shape (m + 1,)
        Falling times, e.g. from :func:`~drapes_hep.diffusion.schedules.karras_steps`.
    condition : Tensor, shape (n, c), optional
        Condition of each event.
    offsets : Tensor of int64, shape (n + 1,), optional
        For sets: event ``i`` is the rows ``offsets[i]:offsets[i + 1]`` of ``x_start``.
    solver : str or Sampler
        "heun", "euler" or a function.
    batch : int, optional
        Events held on the device at once a worker. Default: 2048 on the CPU (the state of a layer stays in cache),
        262,144 on a GPU.
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
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError("times must be two or more falling numbers")
    events = len(x_start) if offsets is None else len(offsets) - 1
    if condition is not None and len(condition) != events:
        raise ValueError(f"{len(condition)} conditions for {events} events")
    if batch is None:
        batch = 2048 if place.type == "cpu" else 1 << 18
    if batch < 1:
        raise ValueError("batch must be positive")
    grid = times.double().cpu()
    alpha, sigma = denoiser.schedule(grid)
    path = [Point(*p) for p in zip(grid.tolist(), alpha.tolist(), sigma.tolist(), strict=True)]
    denoiser = denoiser.to(place)
    result = torch.empty(x_start.shape, dtype=torch.float64)
    starts = range(0, events, batch)
    total, done, lock = len(starts) * (len(path) - 1), 0, threading.Lock()

    def tick() -> None:
        nonlocal done
        with lock:
            done += 1
            if progress is not None:
                progress(done, total)

    def run(first: int) -> None:
        last = min(first + batch, events)
        rows, sets = slice(first, last), None
        if offsets is not None:
            rows = slice(int(offsets[first]), int(offsets[last]))
            sets = (offsets[first : last + 1] - offsets[first]).to(place)
        given = None if condition is None else condition[first:last].to(place)

        def predict(x: Tensor, p: Point) -> Tensor:
            mean: Tensor = denoiser(x, x.new_tensor([p.t]), given, sets)
            return mean

        # grad mode belongs to the thread, so it is set here and not around the pool
        with torch.inference_mode():
            result[rows] = method(predict, x_start[rows].to(place, torch.float64), path, tick).cpu()

    if place.type != "cpu":
        for first in starts:
            run(first)
        return result
    with kernel_threads(1) as threads, ThreadPoolExecutor(workers or threads) as pool:
        try:
            for _ in pool.map(run, starts):
                pass
        except BaseException:
            # an error or Ctrl-C must not wait for all the batches that are still queued
            pool.shutdown(cancel_futures=True)
            raise
    return result
