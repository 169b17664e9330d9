"""Scans of pseudo-experiments for resonances, over the cores."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from drapes_hep.bumphunt.resonance import ResonanceScan
from drapes_hep.bumphunt.resonance_toys import ResonanceSignificance, resonance_significance, scan_toys
from drapes_hep.bumphunt.signal_shapes import find_signal
from drapes_hep.bumphunt.toys import ToyModel
from drapes_hep.config import Config
from drapes_hep.parallel import in_processes
from drapes_hep.pipeline.context import Context
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.shapes import find_shape

__all__ = ["scan_significance"]

_CHUNK = 20
"""Pseudo-experiments of one seed: some seconds, and the result is the same on any number of cores."""


def scan_significance(context: Context, model: ToyModel, scan: ResonanceScan) -> ResonanceSignificance | str:
    """Compute the global significance of a scan for resonances.

    Parameters
    ----------
    context : Context
    model : ToyModel
        Of the search's counts.
    scan : ResonanceScan
        Of the data.

    Returns
    -------
    ResonanceSignificance or str
        The reason where there is none.
    """
    toys = context.config.hunt.resonance_toys
    if toys == 0:
        return "hunt.resonance_toys is 0: no pseudo-experiments"
    if not scan.points:
        return scan.reason or "nothing was fitted"
    sizes = [min(_CHUNK, toys - start) for start in range(0, toys, _CHUNK)]
    jobs = [(context.config, model, number, size) for number, size in enumerate(sizes)]
    parts: dict[int, list[float]] = {}
    with context.reporter.bar("resonances in pseudo-experiments", toys) as bar:
        for number, log_p in in_processes(_scan, jobs, context.workers):
            parts[number] = log_p
            bar(sum(map(len, parts.values())))
    whole = resonance_significance(scan, np.concatenate([parts[number] for number in sorted(parts)]))
    return "no fit of a resonance has a result" if whole is None else whole


def _scan(config: Config, model: ToyModel, number: int, toys: int) -> tuple[int, list[float]]:
    with threadpool_limits(limits=1):
        log_p = scan_toys(
            model,
            find_signal(config.hunt.signal),
            toys,
            stage_seed(config.seed, "resonance toys", number),
            shape=find_shape(config.mass),
            sqrt_s=config.mass.sqrt_s,
        )
    return number, log_p.tolist()
