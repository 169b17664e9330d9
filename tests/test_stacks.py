"""Trainings of several networks together: each ends as it does alone."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from conftest import ROOT

from drapes_hep.diffusion import training
from drapes_hep.diffusion.denoisers import EDMDenoiser
from drapes_hep.diffusion.training import DenoiserTraining, TrainingSettings, train_together
from drapes_hep.errors import FitError
from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.mlp import ResidualMLP, linear
from drapes_hep.networks.transformer import SetTransformer
from drapes_hep.packed import Sets
from drapes_hep.training.weights import Stack, Weights

SETTINGS = TrainingSettings(epochs=6, batch=100, rate=6e-3, ema=0.95, checkpoint_seconds=0.0)
ROWS = (730, 415, 512)


def settings_of(i):
    """The second stops early: its rate is hopeless."""
    return replace(SETTINGS, patience=2, rate=3.0) if i == 1 else SETTINGS


def member(i, folder=None, settings=None, progress=None, width=32):
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(ROWS[i] + 64, 3, generator=generator)
    mass, weight = torch.rand(len(x), 1, generator=generator), torch.rand(len(x), generator=generator)
    parts = [part[rows] for rows in (slice(ROWS[i]), slice(ROWS[i], None)) for part in (x, mass, weight)]
    return DenoiserTraining(
        EDMDenoiser(ResidualMLP(3, 1, width=width, depth=3, seed=i)),
        *parts,
        settings or settings_of(i),
        seed=10 + i,
        checkpoint=None if folder is None else folder / f"{i}.checkpoint",
        progress=progress,
    )


def weights(result):
    return torch.cat([p.detach().ravel() for p in result.denoiser.parameters()])


def assert_same(one, other):
    assert one.history == other.history
    assert (one.best_epoch, one.stopped_early) == (other.best_epoch, other.stopped_early)
    assert torch.equal(weights(one), weights(other))


@pytest.fixture(scope="module")
def alone():
    return [train_together([member(i)])[0] for i in range(3)]


def test_the_second_training_stops_early(alone):
    assert [result.stopped_early for result in alone] == [False, True, False]


def test_each_of_a_stack_ends_as_it_does_alone(alone):
    """Different numbers of rows, so of steps; one stops early, and the others go on without it."""
    for one, other in zip(train_together([member(i) for i in range(3)]), alone, strict=True):
        assert_same(one, other)


def test_results_do_not_depend_on_the_size_of_stacks(alone):
    for one, other in zip(train_together([member(i) for i in range(3)], together=2), alone, strict=True):
        assert_same(one, other)


class KilledError(Exception):
    pass


def killed_at(epoch):
    def kill(line):
        if line.epoch == epoch:
            raise KilledError

    return kill


def test_a_stack_resumes_together_and_alone(alone, tmp_path):
    """The last is killed in its third epoch; then one goes on by itself, the others together."""
    with pytest.raises(KilledError):
        train_together([member(0, tmp_path), member(1, tmp_path), member(2, tmp_path, progress=killed_at(3))])
    assert len(list(tmp_path.iterdir())) == 3
    seen = []
    last = train_together([member(2, tmp_path, progress=seen.append)])[0]
    resumed = [*train_together([member(0, tmp_path), member(1, tmp_path)]), last]
    for one, other in zip(resumed, alone, strict=True):
        assert_same(one, other)
    assert tuple(seen) == alone[2].history


def test_trainings_that_were_interrupted_alone_go_on_together(alone, tmp_path):
    for i in (0, 2):
        with pytest.raises(KilledError):
            train_together([member(i, tmp_path, progress=killed_at(2 + i))])
    for one, other in zip(train_together([member(i, tmp_path) for i in range(3)]), alone, strict=True):
        assert_same(one, other)


def test_ctrl_c_leaves_a_checkpoint_of_each(alone, tmp_path):
    def interrupt(line):
        if line.epoch == 2:
            raise KeyboardInterrupt

    quiet = {"settings": replace(SETTINGS, checkpoint_seconds=1e9)}
    with pytest.raises(KeyboardInterrupt):
        train_together([member(0, tmp_path, **quiet), member(2, tmp_path, progress=interrupt, **quiet)])
    assert len(list(tmp_path.iterdir())) == 2
    for one, i in zip(train_together([member(0, tmp_path), member(2, tmp_path)]), (0, 2), strict=True):
        assert_same(one, alone[i])


def test_one_that_diverges_leaves_the_checkpoints_of_the_others(tmp_path):
    hopeless = replace(SETTINGS, rate=1e30, checkpoint_seconds=1e9)
    calm = replace(SETTINGS, checkpoint_seconds=1e9)
    with pytest.raises(FitError, match="diverged"):
        train_together([member(0, tmp_path, calm), member(2, tmp_path, hopeless)])
    assert [path.name for path in tmp_path.iterdir()] == ["0.checkpoint"]


def test_other_networks_are_trained_beside_a_stack(alone):
    results = train_together([member(0), member(1, width=16), member(2)])
    assert_same(results[0], alone[0])
    assert_same(results[2], alone[2])
    assert results[1].denoiser.backbone.width == 16


@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize(("inputs", "outputs"), [(22, 64), (64, 64), (64, 5), (64, 1), (8, 8), (18, 16)])
def test_layers_of_a_stack_are_those_of_each(rows, inputs, outputs):
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias, out = (
        torch.randn(3, *shape, generator=generator)
        for shape in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )

    def results(choice):
        leaves = [part[choice].clone().requires_grad_() for part in (x, weight, bias)]
        y = linear(*leaves)
        y.backward(out[choice])
        return [y, *(leaf.grad for leaf in leaves)]

    together = results(slice(None))
    for i in range(3):
        assert all(torch.equal(whole[i], one) for whole, one in zip(together, results(i), strict=True))


# ---- on a GPU, rehearsed on the CPU --------------------------------------------------------------------------------


def test_the_benchmark_of_a_gpu_can_be_rehearsed(tmp_path, monkeypatch):
    spec = spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    module = sys.modules["gpu"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    parts = ["features", "constituents", "agreement", "checkpoint"]
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--device", "cpu", "--json", str(out), "--parts", *parts])
    module.main()
    table = json.loads(out.read_text())
    assert set(parts) < set(table)
    # on one device it is the same training, whoever interrupts it
    assert table["agreement"]["losses"] == table["checkpoint"]["losses"] == 0
    assert abs(table["agreement"]["auc"] - 0.5) < 5 * table["agreement"]["auc_error"]


# ---- nothing waits for a device --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows", "stack", "deepsets", "transformer"])
def test_no_step_waits_for_the_device(kind):
    """On the meta device, where no value can be read: batches, loss and gradient of a pass."""
    meta, sizes = torch.device("meta"), torch.tensor([3, 0, 5, 1, 4, 2] * 4)
    x, mass, weight = torch.zeros(24, 2), torch.zeros(24, 1), torch.ones(24)
    network = ResidualMLP(2, 1, width=16, depth=2)
    if kind in ("deepsets", "transformer"):
        network = {"deepsets": AttentiveDeepSets, "transformer": SetTransformer}[kind](2, 1, width=16, depth=1)
        x = Sets(torch.zeros(int(sizes.sum()), 2), torch.nn.functional.pad(sizes.cumsum(0), (1, 0)))
    events = training._Events.of(x, mass, weight, "cpu")
    moved = training._Events(*(part.to(meta) for part in events[:3]), events.offsets)
    denoiser = EDMDenoiser(network).to(meta)
    task = training._Task(denoiser, moved, None, "float32")
    generator = torch.Generator().manual_seed(1)
    batches = list(task.batches(torch.randperm(24, generator=generator), 8, generator))
    assert len(batches) == 3
    if kind == "stack":
        stack = Stack([Weights(denoiser, SETTINGS.loop()), Weights(copy.deepcopy(denoiser), SETTINGS.loop())])
        stack.backward(task.losses(stack.network, batches[:2]))
    else:
        task.loss(denoiser, batches[0]).backward()
    assert all(p.grad is not None for p in denoiser.parameters() if p.numel())
