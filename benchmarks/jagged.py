"""Backbones for sets, packed against padded to 128: the same network, weights and jets, in the same run.

``python benchmarks/jagged.py [--data FILE] [--jets N] [--networks NAME ...] [--compile] [--json FILE]`` prints time and
memory of a training step (forward and backward) and of inference, and their ratios to the packed one. Each way runs in
a process of its own, in turn, so that peaks of memory do not mix; all give the same output, or the run stops.

The padded way is written as one would by hand: dense (jets, 128, width), no gathers, a mask in attention and in sums.
With a GPU everything is also done there, in float32 and in bfloat16; ``--compile`` adds both ways through
``torch.compile(dynamic=True)``.

FILE is HDF5 as for ``benchmarks/ragged.py``; by default ``simulated/qcd_constituents.h5`` in the folder
DRAPES_HEP_DATA, or jets drawn at random where there is none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from products import square, synchronised
from record import Benchmark, Work, fresh_peak, peak, timed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from drapes_hep.networks import deepsets, transformer
from drapes_hep.networks import set_backbone as sets
from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.epic import EPiC
from drapes_hep.networks.set_backbone import SetLayout
from drapes_hep.networks.transformer import SetTransformer

MOST = 128
CONDITIONS = 5

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "transformer": lambda: SetTransformer(3, CONDITIONS),
    "transformer, 4 tokens": lambda: SetTransformer(3, CONDITIONS, tokens=4),
    "epic": lambda: EPiC(3, CONDITIONS),
    "deepsets": lambda: AttentiveDeepSets(3, CONDITIONS),
}


def lengths_of(data: Path | None, jets: int) -> np.ndarray:
    """Constituents of each jet, 128 at most: of the first jets of a file, or drawn (mean 55, deviation 25)."""
    if data is None:
        mean, variance = 55.0, 25.0**2
        p = mean / variance
        lengths = np.random.default_rng(1).negative_binomial(mean * p / (1 - p), p, jets)
    else:
        with h5py.File(data) as file:
            lengths = np.diff(file["const_offset"][: jets + 1])
    return np.minimum(lengths, MOST)


# ------------------------------------------------------------------------------------------------------ the padded way


class Padded(SetLayout):
    """Every set is 128 rows, some of them padding; takes the place of the packed layout."""

    @cached_property
    def total(self) -> int:
        """Number of rows, padding included."""
        return self.sets * MOST

    @cached_property
    def mask(self) -> Tensor:
        """True at members, (sets, 128)."""
        # made while sampling, used while training: no inference tensor
        with torch.inference_mode(False):
            return torch.arange(MOST, device=self.offsets.device) < self.lengths[:, None]

    @cached_property
    def weight(self) -> Tensor:
        """1 at members, (sets, 128, 1)."""
        with torch.inference_mode(False):
            return self.mask[..., None].float()

    def expand(self, value: Tensor) -> Tensor:
        """Repeat to all rows."""
        return value[:, None].expand(-1, MOST, -1).reshape(self.total, -1)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over members."""
        return (values.view(self.sets, MOST, -1) * self.weight).sum(1).to(values.dtype)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def dense_packed(qkv: Tensor, layout: Padded, heads: int) -> Tensor:
    """Self-attention."""
    q, k, v = qkv.view(layout.sets, MOST, 3, heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask[:, None, None])
    return out.transpose(1, 2).reshape(layout.total, -1)


def dense_pool(q: Tensor, k: Tensor, v: Tensor, layout: Padded, heads: int) -> Tensor:
    """Tokens to members."""
    k, v = (_heads(x.view(layout.sets, MOST, -1), heads) for x in (k, v))
    out = F.scaled_dot_product_attention(_heads(q, heads), k, v, attn_mask=layout.mask[:, None, None])
    return out.transpose(1, 2).flatten(2)


def dense_token(q: Tensor, k: Tensor, v: Tensor, layout: Padded, heads: int) -> Tensor:
    """Members to tokens."""
    k, v = (_heads(x, heads) for x in (k, v))
    out = F.scaled_dot_product_attention(_heads(q.view(layout.sets, MOST, -1), heads), k, v)
    return out.transpose(1, 2).reshape(layout.total, -1)


def pad_everything(offsets: Tensor) -> None:
    """Let the backbones of this process work on padded rows."""
    layout = Padded(offsets, offsets.cpu())
    sets.layout_of = lambda *_: layout  # type: ignore[assignment]
    for module in (transformer, deepsets):
        module.packed_attention = dense_packed  # type: ignore[assignment]
    transformer.pool_attention, transformer.token_attention = dense_pool, dense_token  # type: ignore[assignment]


# ----------------------------------------------------------------------------------------------------------- measuring


def median_ms(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median milliseconds of a call, wall time, after two to warm up."""
    times = [timed(lambda: synchronised(call, device), time.perf_counter)[0] for _ in range(repeats + 2)]
    return 1e3 * statistics.median(times[2:])


def training_step(network: str, jets: int = 128) -> Work:
    """Train a network of sets for one step, forward and backward, packed, against the products that it does."""
    net = NETWORKS[network]()
    offsets = F.pad(torch.from_numpy(lengths_of(None, jets)).cumsum(0), (1, 0))
    g = torch.Generator().manual_seed(1)
    x = torch.randn(int(offsets[-1]), 3, generator=g)
    noise, condition = torch.randn(jets, generator=g) / 2, torch.randn(jets, CONDITIONS, generator=g)

    def step() -> None:
        net.zero_grad()
        net(x, noise, condition, offsets=offsets).square().sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    return Work(step, jets, *square(counter.get_total_flops()))


BENCHMARKS = (
    Benchmark("step on sets", training_step, lambda _: [{"network": name} for name in NETWORKS], quick=False),
)


def measure(job: dict[str, Any]) -> dict[str, float]:
    """One network, one way, in this process."""
    torch.set_num_threads(job["threads"])
    device, half, padded = torch.device(job["device"]), job["half"], job["padded"]
    cuda = device.type == "cuda"
    lengths = torch.from_numpy(lengths_of(Path(job["data"]) if job["data"] else None, job["jets"]))
    offsets = F.pad(lengths.cumsum(0), (1, 0)).to(device)
    g = torch.Generator().manual_seed(1)
    net = NETWORKS[job["network"]]().to(device)
    with torch.no_grad():
        net.last.weight.copy_(torch.randn(net.last.weight.shape, generator=g) / 16)
    x = torch.randn(int(offsets[-1]), 3, generator=g).to(device)
    noise, condition = torch.randn(job["jets"], generator=g) / 2, torch.randn(job["jets"], CONDITIONS, generator=g)
    noise, condition = noise.to(device), condition.to(device)
    weight = torch.ones(len(x), 1, device=device)
    if padded:
        rows = (torch.arange(MOST) < lengths[:, None]).ravel().nonzero()[:, 0].to(device)
        x = x.new_zeros(job["jets"] * MOST, 3).index_copy(0, rows, x)
        weight = weight.new_zeros(len(x), 1).index_copy(0, rows, weight)
        pad_everything(offsets)
    run: Callable[..., Tensor] = torch.compile(net, dynamic=True) if job["compile"] else net
    half_precision = torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()

    def forward() -> Tensor:
        with half_precision:
            return run(x, noise, condition, offsets=offsets)

    def step() -> None:
        net.zero_grad()
        (forward().float().square() * weight).sum().backward()

    def infer() -> None:
        with torch.inference_mode():
            forward()

    result: dict[str, float] = {}
    # inference first: where the peak cannot start again, it never falls
    for name, call in (("inference", infer), ("training", step)):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else fresh_peak()
        result[f"{name}_ms"] = median_ms(call, device, job["repeats"])
        result[f"{name}_mib"] = ((torch.cuda.max_memory_allocated() if cuda else peak()) - before) / 2**20
    with torch.inference_mode():
        result["output"] = float((forward().double().square() * weight).sum())
    return result


def main() -> None:
    """Measure, print, and write JSON if asked."""
    folder = Path(os.environ.get("DRAPES_HEP_DATA", "."))
    default = folder / "simulated" / "qcd_constituents.h5"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=default if default.is_file() else None, help="HDF5, see above")
    parser.add_argument("--jets", type=int, default=128, help="a batch")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5, help="the median of these is given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--one", help="measure this one way, JSON; used by the rest")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one))))
        return
    lengths = lengths_of(arguments.data, arguments.jets)
    source = "drawn at random" if arguments.data is None else arguments.data.name
    print(
        f"{arguments.jets} jets ({source}), {lengths.sum()} constituents,"
        f" {arguments.jets * MOST / lengths.sum():.2f} x padded"
    )
    table: dict[str, Any] = {
        "sample": source,
        "jets": arguments.jets,
        "constituents": int(lengths.sum()),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "runs": [],
    }
    places = [("cpu", False)] + ([("cuda", False), ("cuda", True)] if torch.cuda.is_available() else [])
    ways = [
        (compiled, padded)
        for compiled in ((False, True) if arguments.compile else (False,))
        for padded in (False, True)
    ]
    keys = ("training_ms", "training_mib", "inference_ms", "inference_mib")
    print(f"{'':52s}" + "".join(f"{key:>15s}" for key in keys))
    for name in arguments.networks:
        for device, half in places:
            runs: list[dict[str, Any]] = []
            for compiled, padded in ways:
                job = {"network": name, "device": device, "half": half, "padded": padded, "compile": compiled}
                job |= {
                    "jets": arguments.jets,
                    "data": str(arguments.data) if arguments.data else "",
                    "repeats": arguments.repeats,
                }
                job |= {"threads": arguments.threads}
                command = [sys.executable, __file__, "--one", json.dumps(job)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                runs.append({**job, **json.loads(output)})
                words = ["padded" if padded else "packed", "compiled" if compiled else "", "bf16" if half else ""]
                label = f"{name}, {device} {' '.join(word for word in words if word)}"
                print(f"{label:52s}" + "".join(f"{runs[-1][key]:15.1f}" for key in keys), flush=True)
                if abs(runs[-1]["output"] / runs[0]["output"] - 1) > (5e-2 if half else 1e-3):
                    sys.exit("the ways do not give the same output: the comparison means nothing")
                if padded:
                    ratios = {key: runs[-1][key] / max(runs[-2][key], 1e-3) for key in keys}
                    print(f"{'    padded / packed':52s}" + "".join(f"{ratios[key]:15.2f}" for key in keys), flush=True)
            table["runs"] += runs
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
