"""Speed of the diffusion model against this machine's own matrix product.

``python benchmarks/diffusion.py [--json FILE] [--threads N] [--device cpu]`` prints rates as a fraction of the sgemm
rate of the same run, at the same number of threads. Only the network's matrix products that are really done are counted
(2 x inputs x outputs a row; noise embedding, activations, optimiser and validation count as time, not as work); a
training step counts as three forward passes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from drapes_hep.diffusion.denoisers import EDMDenoiser
from drapes_hep.diffusion.samplers import sample
from drapes_hep.diffusion.schedules import karras_steps
from drapes_hep.diffusion.training import TrainingSettings, train
from drapes_hep.kernels import kernel_threads
from drapes_hep.networks.mlp import ResidualMLP


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue included."""
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def sgemm(device: torch.device, size: int, repeats: int = 3) -> float:
    """FLOP/s of float32 matrix products (TF32 as torch has it set), best of a few."""
    a, b = torch.randn(2, size, size, device=device)
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(repeats))


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
            before = sgemm(device, size)
            wall = seconds(lambda: sample(denoiser, 80.0 * x, sigmas, c, device=device), device)
            rate = evaluations / wall
            note(
                sgemm_gflops=before / 1e9,
                evaluations_per_s=rate,
                evaluation_fraction=rate * net.flops(shared_noise=True) / before,
                sampled_events_per_s=events / wall,
            )
        # training runs its kernels on one thread on the CPU, so it is held against one thread of sgemm
        with kernel_threads(1):
            before = sgemm(device, size)
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
    # ru_maxrss is in KiB on Linux, in bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return table | {
        "threads": threads,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20,
    }


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
