"""What a GPU does with trainings and templates, in at most ten minutes; on a CPU the same code at tiny sizes.

``python benchmarks/gpu.py [--device cuda] [--tiny] [--parts NAME ...] [--json FILE]`` draws its own data and prints:

- ``features``: 16 models of features trained one after the other and as one stack, and one sampled; rows a second, and
  the share of what a large product in float32 reaches in the same run;
- ``constituents``: steps a second of the network of ``configs/llv_paper.yaml``, in float32 and bf16, and their share;
- ``attention``: packed against padded, by ``benchmarks/jagged.py``;
- ``agreement``: the same training on the CPU and on the device: largest difference of the losses, and the AUC of a
  classifier between events of the two models (0.5 if they are the same);
- ``checkpoint``: a training that is interrupted on the CPU, goes on on the device, and ends on the CPU.

docs/gpu.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor

from drapes_hep.config import ConstituentsConfig, load_config
from drapes_hep.diffusion.denoisers import EDMDenoiser
from drapes_hep.diffusion.samplers import evaluations, sample
from drapes_hep.diffusion.schedules import angle_steps
from drapes_hep.diffusion.training import DenoiserTraining, TrainingResult, TrainingSettings, train_together
from drapes_hep.kernels import Precision
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.packed import Sets
from drapes_hep.templates.constituents.backbones import make_backbone

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = 16
FEATURES = 5
STEPS = 12
Record = dict[str, Any]


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def product_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Return the operations a second of a large matrix product: what the shares are relative to."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [seconds(device, lambda: a @ b) for _ in range(6)]
    return 2.0 * size**3 / min(times[1:])


def feature_training(i: int, rows: int, epochs: int, batch: int, **more: Any) -> DenoiserTraining:
    """Return a training of features that drift with the mass, of a window with its own seed and number of rows."""
    settings = TrainingSettings(epochs=epochs, batch=batch, checkpoint_seconds=0.0)
    generator = torch.Generator().manual_seed(i)
    rows += i * batch
    held_out = max(rows // 8, 256)
    mass = torch.rand(rows + held_out, 1, generator=generator)
    x = torch.randn(len(mass), FEATURES, generator=generator)
    x[:, 0] += mass[:, 0]
    x[:, 1] = x[:, 0] * x[:, 1]
    denoiser = EDMDenoiser(ResidualMLP(FEATURES, 1, seed=i))
    parts = (x[:rows], mass[:rows], None, x[rows:], mass[rows:], None)
    return DenoiserTraining(denoiser, *parts, settings, seed=i, **more)


def rows_of(results: list[TrainingResult], trainings: list[DenoiserTraining]) -> int:
    """Return the rows that were trained on, all passes together."""
    size = [len(task.x) // task.settings.batch * task.settings.batch for task in trainings]
    return sum(len(result.history) * rows for result, rows in zip(results, size, strict=True))


def features(device: torch.device, tiny: bool) -> Record:
    """Measure trainings one after the other and as a stack, and sampling."""
    rows, epochs, batch = (512, 1, 128) if tiny else (1 << 17, 4, 1024)
    peak = product_rate(device, 256 if tiny else 8192, torch.float32)
    record: Record = {"product_flops": peak}
    for name, together in (("alone", 1), ("stacked", WINDOWS)):
        trainings = [feature_training(i, rows, epochs, batch) for i in range(2 if name == "alone" else WINDOWS)]
        # the first call loads kernels
        train_together([feature_training(0, batch, 1, batch)], device=device)
        wait(device)
        began = time.perf_counter()
        results = train_together(trainings, device=device, together=together)
        wait(device)
        rate = rows_of(results, trainings) / (time.perf_counter() - began)
        operations = 3 * trainings[0].denoiser.backbone.flops(shared_noise=False)
        record[name] = {"rows_per_second": rate, "share": rate * operations / peak}
    denoiser = trainings[0].denoiser
    events = 2048 if tiny else 1 << 21
    times = angle_steps(denoiser.schedule, STEPS // 2, 80.0)
    state = 80.0 * torch.randn(events, FEATURES, generator=torch.Generator().manual_seed(1)).double()
    mass = torch.rand(events, 1)
    taken = seconds(device, lambda: sample(denoiser, state, times, mass, solver="angle", device=device))
    operations = evaluations("angle", STEPS // 2) * denoiser.backbone.flops(shared_noise=True)
    record["sampling"] = {"events_per_second": events / taken, "share": events / taken * operations / peak}
    return record


def jets_of(number: int, section: ConstituentsConfig) -> tuple[Sets, Tensor]:
    """Draw jets of 55 constituents on average, 128 at most, with their condition."""
    generator = np.random.default_rng(1)
    lengths = torch.as_tensor(np.clip(generator.negative_binomial(5, 5 / 60, number), 1, 128))
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    values = torch.as_tensor(generator.normal(size=(int(offsets[-1]), 3)), dtype=torch.float32)
    return Sets(values, offsets), torch.as_tensor(generator.normal(size=(number, len(section.condition)))).float()


def constituents(device: torch.device, tiny: bool) -> Record:
    """Measure steps of the network of constituents at the size of the paper."""
    section = load_config(ROOT / "configs" / "llv_paper.yaml").constituents
    assert section is not None
    if tiny:
        section = section.model_copy(update={"width": 32, "depth": 1, "heads": 4, "batch": 8})
    number = section.batch * (3 if tiny else 60)
    jets, condition = jets_of(number, section)
    few, some = jets_of(section.batch, section)
    record: Record = {"jets_per_step": section.batch, "members_per_step": len(jets.values) / number * section.batch}
    kinds: tuple[Precision, ...] = ("float32", "bf16")
    for precision in kinds if device.type == "cuda" else kinds[:1]:
        settings = TrainingSettings(epochs=1, batch=section.batch, precision=precision, validation_draws=1)
        for first in (True, False):
            # the first call loads kernels
            data = (few, some, None) if first else (jets, condition, None)
            training = DenoiserTraining(
                EDMDenoiser(make_backbone(section, 1)), *data, few, some, None, settings, seed=1
            )
            taken = seconds(device, lambda t=training: train_together([t], device=device, threads=None))
        record[precision] = {"steps_per_second": number / section.batch / taken}
    return record


def attention(device: torch.device, tiny: bool) -> Record:
    """Compare packed with padded sets, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jagged.json"
        sizes = ["--jets", "16" if tiny else "256", "--repeats", "2" if tiny else "5"]
        command = [sys.executable, str(ROOT / "benchmarks" / "jagged.py"), "--networks", "transformer"]
        subprocess.run([*command, *sizes, "--json", str(path)], check=True, stdout=subprocess.DEVNULL)
        runs = [run for run in json.loads(path.read_text())["runs"] if run["device"] == device.type]
    names = {False: "packed", True: "padded"}
    return {
        f"{names[run['padded']]}{', bf16' if run['half'] else ''}": {
            key: run[key] for key in ("training_ms", "inference_ms", "training_mib", "inference_mib")
        }
        for run in runs
    }


def losses(result: TrainingResult) -> np.ndarray:
    """Return the losses of each epoch, shape (epochs, 2)."""
    return np.array([(line.train_loss, line.validation_loss) for line in result.history])


def difference(result: TrainingResult, other: TrainingResult) -> float:
    """Return the largest relative difference of two trainings' losses."""
    return float(np.max(np.abs(losses(result) / losses(other) - 1)))


def agreement(device: torch.device, tiny: bool) -> Record:
    """Train on the CPU and on the device, and compare losses and events."""
    rows, epochs, batch, events = (512, 2, 128, 1000) if tiny else (1 << 15, 5, 1024, 40_000)
    places = (torch.device("cpu"), device)
    results = [
        train_together([feature_training(i, rows, epochs, batch) for i in range(2)], device=place, together=2)
        for place in places
    ]
    generator = torch.Generator().manual_seed(2)
    samples = []
    for place, (result, _) in zip(places, results, strict=True):
        # other noise and masses for each: the same would be the same events
        state, mass = 80.0 * torch.randn(events, FEATURES, generator=generator).double(), torch.rand(events, 1)
        times = angle_steps(result.denoiser.schedule, STEPS // 2, 80.0)
        samples.append(sample(result.denoiser, state, times, mass, solver="angle", device=place).numpy())
    x, y = np.concatenate(samples), np.repeat([0, 1], events)
    half = np.arange(len(x)) % 2 == 0
    trees = HistGradientBoostingClassifier(max_iter=50, random_state=1).fit(x[half], y[half])
    auc = float(roc_auc_score(y[~half], trees.predict_proba(x[~half])[:, 1]))
    # of two equal samples of n / 2 events each: Hanley and McNeil at AUC = 1/2
    error = float(np.sqrt((events + 1) / (12 * (events / 2) ** 2)))
    pairs = zip(*results, strict=True)
    return {"losses": max(difference(*pair) for pair in pairs), "auc": auc, "auc_error": error}


class Interrupted(Exception):
    """Ends a training as a batch system might."""


def checkpoint(device: torch.device, tiny: bool) -> Record:
    """Interrupt a training on the CPU, go on on the device, end on the CPU."""
    rows, batch = (512, 128) if tiny else (1 << 14, 1024)
    whole = train_together([feature_training(0, rows, 6, batch)])[0]

    def until(epoch: int) -> Callable[[Any], None]:
        def stop(line: Any) -> None:
            if line.epoch == epoch:
                raise Interrupted

        return stop

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.checkpoint"
        for place, epoch in (("cpu", 2), (device, 4), ("cpu", 0)):
            training = feature_training(0, rows, 6, batch, checkpoint=path, progress=until(epoch))
            try:
                result = train_together([training], device=place)[0]
            except Interrupted:
                continue
    return {"losses": difference(result, whole)}


PARTS: dict[str, Callable[[torch.device, bool], Record]] = {
    "features": features,
    "constituents": constituents,
    "attention": attention,
    "agreement": agreement,
    "checkpoint": checkpoint,
}


def lines_of(record: Record, indent: str = "  ") -> list[str]:
    """Return a record as lines."""
    out = []
    for key, value in record.items():
        out += (
            [f"{indent}{key}", *lines_of(value, indent + "  ")]
            if isinstance(value, dict)
            else [f"{indent}{key:20s} {value:.5g}"]
        )
    return out


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal in seconds: its numbers mean nothing")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    table: Record = {"device": name, "torch": torch.__version__, "tiny": arguments.tiny}
    print(f"{name}, torch {torch.__version__}{', tiny: the numbers mean nothing' if arguments.tiny else ''}")
    for part in arguments.parts:
        began = time.perf_counter()
        table[part] = PARTS[part](device, arguments.tiny)
        table[part]["seconds"] = time.perf_counter() - began
        print("\n".join([part, *lines_of(table[part])]), flush=True)
        if arguments.json is not None:
            # after each part: a run that is cut off leaves what it has
            arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
