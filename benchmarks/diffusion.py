"""Speed of the diffusion model against this machine's own matrix product.

``python benchmarks/diffusion.py [--json FILE] [--threads N] [--device cpu]`` prints rates as a fraction of the sgemm
rate of the same run, at the same number of threads. Only the network's matrix products that are really done are counted
(2 x inputs x outputs a row; noise embedding, activations, optimiser and validation count as time, not as work); a
training step counts as three forward passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from products import activations, network_products, products, sgemm_rate, square, synchronised
from record import Benchmark, Sizes, Work, by_events, peak, timed

from drapes_hep.diffusion.denoisers import EDMDenoiser
from drapes_hep.diffusion.samplers import sample
from drapes_hep.diffusion.schedules import karras_steps
from drapes_hep.diffusion.training import TrainingSettings, train
from drapes_hep.kernels import kernel_threads
from drapes_hep.networks.mlp import ResidualMLP


def measure(threads: int, device: torch.device, events: int, steps: int, rounds: int, batch: int) -> dict[str, float]:
    """Rates of sampling and training; sgemm is measured around each, as other work on the machine comes and goes."""
    g = torch.Generator().manual_seed(0)
    net = ResidualMLP(5, 1)
    denoiser = EDMDenoiser(net)
    x, c = torch.randn(events, 5, generator=g), torch.randn(events, 1, generator=g)
    size = 2048 if device.type == "cpu" else 8192
    sigmas = karras_steps(steps)
    evaluations = events * (2 * steps - 1)
    settings = TrainingSettings(epochs=1, batch=batch, validation_draws=1)
    collected: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for key, value in values.items():
            collected.setdefault(key, []).append(value)

    for _ in range(rounds):
        with kernel_threads(threads):
            before = sgemm_rate(device, size)
            wall, _ = timed(
                lambda: synchronised(lambda: sample(denoiser, 80.0 * x, sigmas, c, device=device), device),
                time.perf_counter,
            )
            rate = evaluations / wall
            note(
                sgemm_gflops=before / 1e9,
                evaluations_per_s=rate,
                evaluation_fraction=rate * net.flops(shared_noise=True) / before,
                sampled_events_per_s=events / wall,
            )
        # training runs its kernels on one thread on the CPU, so it is held against one thread of sgemm
        with kernel_threads(1):
            before = sgemm_rate(device, size)
        result = train(denoiser, x, c, None, x[:2], c[:2], None, settings, seed=1, device=device)
        rate = (events // batch * batch) / result.seconds
        note(
            sgemm_one_thread_gflops=before / 1e9,
            training_samples_per_s=rate,
            training_fraction=3 * rate * net.flops(shared_noise=False) / before,
            training_fraction_of_all_threads=3
            * rate
            * net.flops(shared_noise=False)
            / collected["sgemm_gflops"][-1]
            / 1e9,
        )
    table = {key: statistics.median(values) for key, values in collected.items()}
    return table | {"threads": threads, "peak_rss_mib": peak() / 2**20}


FEATURES, BATCH, ROWS = 5, 1024, 2048
"""Features; rows of a step of the training, and of a batch of the sampler (the defaults)."""


def rows_of(events: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw scaled features (n, 5) and masses (n, 1)."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(events, FEATURES, generator=g), torch.randn(events, 1, generator=g)


def training(events: int) -> Work:
    """Train for as many passes as make 100,000 events, one at least; validation on a fifth, twice, after each."""
    net = ResidualMLP(FEATURES, 1)
    batch = min(BATCH, events)
    settings = TrainingSettings(epochs=max(100_000 // events, 1), batch=batch, patience=None)
    x, c = rows_of(events)
    held_out = max(events // 5, 2)
    steps = settings.epochs * (events // batch)
    return Work(
        lambda: train(EDMDenoiser(net), x, c, None, x[:held_out], c[:held_out], None, settings, seed=1),
        settings.epochs * events,
        "sgemm of the steps' shapes",
        products(network_products(net, batch, training=True)),
        steps,
    )


def least_of(limit: str, net: ResidualMLP, rows: int, *, training: bool) -> tuple[str, Callable[[], object], float]:
    """Return a limit of a batch: its name, what does it, and how often that fits into the batch."""
    multiply = products(network_products(net, rows, training=training))
    activate = activations(net, rows, training=training)
    if limit == "sgemm":
        return square(rows * net.flops(shared_noise=not training) * (3 if training else 1))
    if limit == "products":
        return "sgemm of the network's shapes", multiply, 1.0
    if limit == "activations":
        return "activations", activate, 1.0
    return "products and activations", lambda: (multiply(), activate()), 1.0


def evaluation(limit: str) -> Work:
    """Evaluate a denoiser on a batch of the sampler, all rows at one noise level."""
    net = ResidualMLP(FEATURES, 1)
    denoiser = EDMDenoiser(net)
    x, c = rows_of(ROWS)
    x, t = x.double(), torch.ones(1, dtype=torch.float64)
    name, least, times = least_of(limit, net, ROWS, training=False)

    def inferred(action: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return action()

        return run

    return Work(inferred(lambda: denoiser(x, t, c, None)), ROWS, name, inferred(least), times)


def step(limit: str, steps: int = 60) -> Work:
    """Train for some steps, noise, loss, optimiser and averages included, without validation to speak of."""
    net = ResidualMLP(FEATURES, 1)
    x, c = rows_of(steps * BATCH)
    settings = TrainingSettings(epochs=1, batch=BATCH, validation_draws=1)
    name, least, times = least_of(limit, net, BATCH, training=True)
    return Work(
        lambda: train(EDMDenoiser(net), x, c, None, x[:2], c[:2], None, settings, seed=1),
        steps * BATCH,
        name,
        least,
        times * steps,
    )


def every_limit(_: Sizes) -> list[dict[str, str]]:
    """Return the limits of a roofline: the ratio to each is the part of the whole that it takes."""
    return [{"limit": name} for name in ("sgemm", "products", "activations", "products and activations")]


BENCHMARKS = (
    Benchmark("train", training, by_events),
    Benchmark("denoiser evaluation", evaluation, every_limit),
    Benchmark("training step", step, every_limit),
)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--events", type=int, default=90_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="the median of these is given")
    parser.add_argument("--batch", type=int, default=1024)
    arguments = parser.parse_args()
    table = measure(
        arguments.threads,
        torch.device(arguments.device),
        arguments.events,
        arguments.steps,
        arguments.rounds,
        arguments.batch,
    )
    for key, value in table.items():
        print(f"{key:34s}{value:14,.3f}")
    print(f"{'targets: evaluation, training':34s}{0.35:14.2f}{0.25:8.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
