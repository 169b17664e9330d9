"""Template events per second, of each template and solver, against the limit of this machine's matrix product.

``python benchmarks/templates.py [--json FILE] [--workers N]`` makes templates of synthetic events through
``make_template``, scaling, noise and masses included. The limit is the time that the network's matrix products alone
would take at the sgemm rate of the same run, on as many threads; the share of it that is reached says what all else
costs. The weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from columns import scaling_of, table
from diffusion import ROWS
from products import network_products, products, sgemm_rate
from record import Benchmark, Work, by_events, timed

from drapes_hep.config import TemplateConfig
from drapes_hep.diffusion.denoisers import EDMDenoiser
from drapes_hep.kernels import kernel_threads
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.templates.drapes_family import RECIPES
from drapes_hep.templates.feature_model import BackgroundModel
from drapes_hep.templates.feature_templates import describe_sampler, levels, make_template
from drapes_hep.templates.methods import SampleTask
from drapes_hep.templates.plan import starts
from drapes_hep.templates.tables import EventTable, Plan

FEATURES = ("m_j1", "delta_m", "tau21_j1", "tau21_j2", "delta_r")


def model() -> BackgroundModel:
    """Make a model of the default size."""
    net = ResidualMLP(len(FEATURES), 1)
    return BackgroundModel(EDMDenoiser(net), scaling_of(), FEATURES, ((3300.0, 3700.0),))


def plan_of(method: str, parents: EventTable | None, n: int) -> Plan:
    """List n template events of a method."""
    draw = None if RECIPES[method].own_mass else lambda u: 3300 + 400 * u
    return starts(RECIPES[method], parents, n if parents is None else 1.0, 1, draw)


def sampler_of(background: BackgroundModel, config: TemplateConfig) -> dict[str, Any]:
    """Return the steps and network evaluations of a template."""
    schedule = background.denoiser.schedule
    return describe_sampler(levels(config, schedule), schedule, config.sampler[0])


def generate(events: int) -> Work:
    """Make a template from noise with the default sampler: noise, network, scaling."""
    background, config = model(), TemplateConfig()
    plan = plan_of(config.method, None, events)
    task = SampleTask(1, lambda mjj: np.full(len(mjj), True), workers=1)
    rows = min(ROWS, events)
    return Work(
        lambda: make_template(background, config, plan, None, task),
        events,
        "sgemm of the network's shapes",
        products(network_products(background.denoiser.backbone, rows, training=False)),
        sampler_of(background, config)["evaluations"] * events / rows,
    )


BENCHMARKS = (Benchmark("generate", generate, by_events),)


def measure(n: int, steps: int, workers: int, rounds: int) -> list[dict[str, float | str]]:
    """Time each template and solver; sgemm is measured beside each, as other work on the machine comes and goes."""
    background = model()
    x, mjj = table(n, 2)
    inside = EventTable(x, mjj, np.ones(n), np.arange(n, dtype=np.int64))
    flops = background.denoiser.backbone.flops(shared_noise=True)
    rows: list[dict[str, float | str]] = []
    for method, solver in [*((name, "heun") for name in RECIPES), ("from_noise", "dpm2m"), ("from_noise", "euler")]:
        config = TemplateConfig(
            method=method,
            steps=steps,
            solver=solver,
            strength=2.24 if RECIPES[method].partial else None,
            source="-" if method == "from_simulation" else None,
        )
        parents = None if RECIPES[method].source == "noise" else inside
        plan = plan_of(method, parents, n)
        sampler = sampler_of(background, config)
        n_steps, cost = sampler["steps"], sampler["evaluations"]
        task = SampleTask(1, lambda mjj: np.full(len(mjj), True), workers=workers)
        make = functools.partial(make_template, background, config, plan, parents, task)
        walls, shares = [], []
        for _ in range(rounds):
            with kernel_threads(workers):
                rate = sgemm_rate(torch.device("cpu"))
            wall, _ = timed(make, time.perf_counter)
            walls.append(wall)
            shares.append(n * cost * flops / rate / wall)
        wall = statistics.median(walls)
        rows.append(
            {
                "template": RECIPES[method].title,
                "solver": solver,
                "steps": n_steps,
                "evaluations": cost,
                "seconds": wall,
                "events_per_s": n / wall,
                "share_of_limit": statistics.median(shares),
            }
        )
    return rows


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="the median of these is given")
    arguments = parser.parse_args()
    rows = measure(arguments.events, arguments.steps, arguments.workers, arguments.rounds)
    print(f"{'template':20}{'solver':8}{'steps':>6}{'evaluations':>13}{'seconds':>9}{'events/s':>10}{'of limit':>10}")
    for row in rows:
        print(
            f"{row['template']:20}{row['solver']:8}{row['steps']:6}{row['evaluations']:13}{row['seconds']:9.2f}"
            f"{row['events_per_s']:10,.0f}{row['share_of_limit']:10.2f}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
